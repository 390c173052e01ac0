"""Mistral's own naming: params.json and consolidated.safetensors, in the words of transformers.

The configuration is translated; names of tensors are kept, and the rules' are translated to them,
so that every message names what the checkpoint holds. Query and key rows stand in the order that
ggml rotates. Facts: keys and tensor names from mistral_inference's `TransformerArgs` and
`VisionEncoderArgs` as llama.cpp conversion/pixtral.py, mistral.py and gguf-py tensor_mapping.py
read them; mean and deviation from mistral_common tokens/tokenizers/image.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from edgevlm.errors import ConversionError
from edgevlm_convert.config import MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Section
from edgevlm_convert.family import Part
from edgevlm_convert.json_file import read_json
from edgevlm_convert.rules import Drop, Rename, Row, Rule, Transform
from edgevlm_convert.vocabulary.tekken import image_section

PARAMS = "params.json"
SINGLE_FILE = "consolidated.safetensors"
INDEX_FILE = "consolidated.safetensors.index.json"
_MAX_BYTES = 4_000_000
_MERGES = "patch_merge"
_CONTEXT = 128_000
_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^language_model\.lm_head\.", "output."),
        (r"^language_model\.model\.embed_tokens\.", "tok_embeddings."),
        (r"^language_model\.model\.", ""),
        (r"^vision_tower\.", "vision_encoder."),
        (r"^multi_modal_projector\.norm\.", "pre_mm_projector_norm."),
        (r"^multi_modal_projector\.linear_1\.", "vision_language_adapter.w_in."),
        (r"^multi_modal_projector\.linear_2\.", "vision_language_adapter.w_out."),
        (r"^multi_modal_projector\.", ""),
        (r"\.input_layernorm\.", ".attention_norm."),
        (r"\.post_attention_layernorm\.", ".ffn_norm."),
        (r"\.(?:self_attn|attention)\.([qkvo])_proj\.", r".attention.w\1."),
        (r"\.(?:mlp|feed_forward)\.gate_proj\.", ".feed_forward.w1."),
        (r"\.(?:mlp|feed_forward)\.down_proj\.", ".feed_forward.w2."),
        (r"\.(?:mlp|feed_forward)\.up_proj\.", ".feed_forward.w3."),
    )
)


def mistral_name(name: str) -> str:
    """Return Mistral's name of a tensor by the one that transformers saves it under."""
    for pattern, found in _NAMES:
        name = pattern.sub(found, name)
    return name


def read_params(folder: Path) -> Section:
    """Return params.json as a config.json of transformers would say it.

    Raises:
        CheckpointError: the file is broken, or a key is missing or absurd.
    """
    params = Section(read_json(folder / PARAMS, max_bytes=_MAX_BYTES), file=PARAMS)
    values: dict[str, object] = {
        "architectures": [_architecture(params)],
        "tie_word_embeddings": params.boolean("tied_embeddings", default=False),
        "text_config": _text(params),
    }
    if params.has("quantization"):
        quantization = params.section("quantization")
        quantization.require("qformat_weight", ("fp8_e4m3",), default=None)
        values["quantization_config"] = {"quant_method": "fp8"}
    if params.has("vision_encoder"):
        values |= _vision(params.section("vision_encoder"))
    return Section(values, file=PARAMS)


def image_settings(folder: Path) -> Section | None:
    """Return the image settings that Mistral's own code has; None for other checkpoints.

    Raises:
        CheckpointError: a file is broken.
    """
    section, keys = image_section(folder), ("max_image_size", "image_size")
    if section is None and (folder / PARAMS).exists():
        params = Section(read_json(folder / PARAMS, max_bytes=_MAX_BYTES), file=PARAMS)
        section = params.section("vision_encoder") if params.has("vision_encoder") else None
    if section is None:
        return None
    key = next((key for key in keys if section.has(key)), keys[0])
    longest = section.integer(key, low=1, high=1 << 20)
    return Section(
        {
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "size": {"longest_edge": longest},
        },
        file=PARAMS,
    )


def _architecture(params: Section) -> str:
    """Return the class that transformers has for it; those that see no images are refused by it."""
    if params.has("moe"):
        return "MixtralForCausalLM"
    if not params.has("vision_encoder"):
        return "MistralForCausalLM"
    if params.section("vision_encoder").text("mm_projector_id", default="") == _MERGES:
        return "Mistral3ForConditionalGeneration"
    return "LlavaForConditionalGeneration"


def _text(params: Section) -> dict[str, object]:
    n_heads = params.integer("n_heads", low=1, high=MAX_HEADS)
    values: dict[str, object] = {
        "hidden_size": params.integer("dim", low=1, high=MAX_WIDTH),
        "intermediate_size": params.integer("hidden_dim", low=1, high=MAX_WIDTH),
        "num_hidden_layers": params.integer("n_layers", low=1, high=MAX_LAYERS),
        "num_attention_heads": n_heads,
        "num_key_value_heads": params.integer("n_kv_heads", low=1, high=n_heads, default=n_heads),
        "rms_norm_eps": params.number("norm_eps", low=1e-12, high=1.0),
        "vocab_size": params.integer("vocab_size", low=1, high=MAX_VOCABULARY),
        "max_position_embeddings": _context(params),
        "sliding_window": params.raw("sliding_window"),
        "hidden_act": params.text("activation", default="silu"),
        "model_type": "mistral",
    }
    if params.has("head_dim"):
        values["head_dim"] = params.integer("head_dim", low=2, high=4096)
    theta = params.number("rope_theta", low=1.0, high=1e12, default=10_000.0)
    rope: dict[str, object] = {"rope_theta": theta, "rope_type": "default"}
    if params.has("yarn"):
        rope |= _yarn(params.section("yarn"))
    if params.has("llama_4_scaling"):
        scaling = params.section("llama_4_scaling")
        rope["llama_4_scaling_beta"] = scaling.number("beta", low=0.0, high=1e3)
        # Both scale by how often this context is exceeded.
        original = rope.get("original_max_position_embeddings")
        scaling.require("original_max_position_embeddings", (original,), default=original)
        values["model_type"] = "ministral3"
    return values | {"rope_parameters": rope}


def _context(params: Section) -> int:
    key = "max_position_embeddings" if params.has("max_position_embeddings") else "max_seq_len"
    return params.integer(key, low=1, high=1 << 31, default=_CONTEXT)


def _yarn(yarn: Section) -> dict[str, object]:
    """Return yarn's keys; without `apply_scale` cosines keep their size."""
    values: dict[str, object] = {
        "rope_type": "yarn",
        "factor": yarn.number("factor", low=1.0, high=1e6),
        "original_max_position_embeddings": yarn.integer(
            "original_max_position_embeddings", low=1, high=1 << 31
        ),
        "beta_fast": yarn.number("beta", low=1e-3, high=1e6, default=32.0),
        "beta_slow": yarn.number("alpha", low=1e-3, high=1e6, default=1.0),
    }
    if not yarn.boolean("apply_scale", default=True):
        values |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    return values


def _vision(vision: Section) -> dict[str, object]:
    merges = vision.text("mm_projector_id", default="") == _MERGES
    vision.require("mm_projector_id", ("", _MERGES), default="")
    vision.require("add_pre_mm_projector_layer_norm", (merges,), default=merges)
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_channels",
        "image_size",
        "patch_size",
        "rope_theta",
    )
    values: dict[str, object] = {
        "vision_config": {
            "model_type": "pixtral",
            "hidden_act": "silu",
            **{key: vision.raw(key) for key in keys if vision.has(key)},
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": vision.boolean("adapter_bias", default=True),
    }
    if merges:
        values["spatial_merge_size"] = vision.integer("spatial_merge_size", low=1, high=16)
    return values


def with_mistral_names(part: Part) -> Part:
    """Return a part whose rules name tensors as Mistral's own files do."""
    rules: list[Rule] = []
    for rule in part.rules:
        if not isinstance(rule, Rename | Transform | Row | Drop):
            raise ConversionError("a rule of several tensors has no name in Mistral's own files")
        rules.append(replace(rule, source=mistral_name(rule.source)))
    return replace(part, rules=tuple(rules))
