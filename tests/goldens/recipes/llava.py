"""LLaVA: both towers, four text models, and a rotary scaling type each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32, string
from edgevlm_convert.writer import OutputTensor
from numpy.typing import NDArray

from tests.convert.mutations import (
    Mutation,
    instead,
    mmproj,
    nothing,
    swap,
    text,
    unpaired,
    values,
    without,
)
from tests.goldens.llava_checkpoints import (
    IMAGE_TOKEN,
    as_published,
    clip_config,
    preprocessor,
    siglip_config,
    square_prompts,
    write_tokenizer_llava_qwen,
)
from tests.goldens.recipe import Config, Recipe
from tests.tokenizers.llama_spm import write_tokenizer_llava, write_tokenizer_llava_mistral

# So that the image is heard beside the words, and the epsilons in front of the first blocks.
_GAINS = {
    "o_proj": 2.0,
    "patch_embedding": 0.01,
    "position_embedding": 0.005,
    "class_embedding": 0.005,
    "embed_tokens": 0.02,
    # Activations are heard where they differ most.
    "mlp.fc2": 6.0,
}
_ATTENTION = (
    "llama.cpp's converter writes `yarn_attn_factor`, which its runtime replaces; `attn_factor` is"
    " heard"
)
_VISION: dict[str, Mutation] = {
    "query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
    "key and value exchanged": mmproj(swap("attn_k.", "attn_v.")),
    "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
    "pixels normalized as usual": mmproj(
        nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
    ),
    "a block less": mmproj(nothing, {"clip.vision.feature_layer": array("INT32", [1])}),
}
_TEXT: dict[str, Mutation] = {
    "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
    "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
}


def _recipe(
    name: str,
    config: Config,
    *,
    gains: Mapping[str, float] = _GAINS,
    free: tuple[str, ...] = (),
    **more: Any,
) -> Recipe:
    return Recipe(
        name=f"llava_{name}",
        config=config,
        preprocessor=preprocessor(config),
        model_class="LlavaForConditionalGeneration",
        image_token=IMAGE_TOKEN,
        prompts=square_prompts(config),
        refused_mmproj="it takes this class for Pixtral's",
        free_numbers=("vision_feature_layer", *free),
        gains=gains,
        **more,
    )


def _rotated_back(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.roll(table, 1, axis=0)


def _halves_exchanged(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.roll(rows, rows.shape[1] // 2, axis=1)


def _with_last_norm(tensors: dict[str, OutputTensor]) -> None:
    for kind in ("weight", "bias"):
        instead(f"v.post_ln.{kind}", f"v.blk.2.ln1.{kind}")(tensors)


def _unpaired_bias(bias: NDArray[np.float32]) -> NDArray[np.float32]:
    return unpaired(6)(bias[:, None])


SIGLIP_QWEN2 = _recipe(
    "siglip_qwen2",
    siglip_config(
        text={
            "model_type": "qwen2",
            "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
            "tie_word_embeddings": True,
            "use_sliding_window": False,
        },
        tie_word_embeddings=True,
    ),
    write_tokenizer=write_tokenizer_llava_qwen,
    adapt=as_published("Qwen2ForCausalLM"),
    gains={**_GAINS, "embed_tokens": 0.25},
    seed=13,
    mutations={
        **_VISION,
        **_TEXT,
        "without a feature layer": mmproj(nothing, {"clip.vision.feature_layer": None}),
        "with a norm behind the last block": mmproj(_with_last_norm),
        "quick-gelu for gelu": mmproj(nothing, {"clip.use_gelu": None}),
        "vision norms with another epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-5)}
        ),
        "no bias on queries": text(values("attn_q.bias", np.zeros_like)),
        "no bias on values": text(values("attn_v.bias", np.zeros_like)),
        "another rotary base": text(nothing, {"qwen2.rope.freq_base": f32(110.0)}),
    },
)
CLIP_LLAMA = _recipe(
    "clip_llama",
    clip_config(
        text={
            "model_type": "llama",
            "rope_parameters": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 100.0,
                "rope_type": "llama3",
            },
        },
    ),
    write_tokenizer=write_tokenizer_llava,
    adapt=as_published("LlamaForCausalLM"),
    gains={**_GAINS, "lm_head": 1.5},
    # What does not make a whole patch is left over.
    free=("image_size", "projection_dim"),
    mutations={
        **_VISION,
        **_TEXT,
        "positions in the checkpoint's order": mmproj(values("position_embd", _rotated_back)),
        "no class token": mmproj(values("class_embd", np.zeros_like)),
        "no norm before the first block": mmproj(without("v.pre_ln.weight", "v.pre_ln.bias")),
        "gelu for quick-gelu": mmproj(nothing, {"clip.use_gelu": boolean(True)}),
        "vision norms with another epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}
        ),
        "tied though it is not": text(without("output.weight")),
        "no rotary factors": text(without("rope_freqs.weight")),
        "queries in transformers' order": text(values("attn_q.weight", unpaired(6))),
        "keys in transformers' order": text(values("attn_k.weight", unpaired(2))),
        "another rotary base": text(nothing, {"llama.rope.freq_base": f32(110.0)}),
        "norms with another epsilon": text(
            nothing, {"llama.attention.layer_norm_rms_epsilon": f32(1e-6)}
        ),
    },
)
SIGLIP_MISTRAL = _recipe(
    "siglip_mistral",
    siglip_config(
        text={
            "head_dim": 24,
            "model_type": "mistral",
            "rope_parameters": {
                "attention_factor": 1.3,
                "factor": 4.0,
                "original_max_position_embeddings": 512,
                "rope_theta": 100.0,
                "rope_type": "yarn",
            },
            "sliding_window": 1024,
        },
        layer=[0, -2],
        multimodal_projector_bias=False,
    ),
    write_tokenizer=write_tokenizer_llava_mistral,
    adapt=as_published("MistralForCausalLM"),
    free=("sliding_window",),
    mended_keys={
        "llama.rope.scaling.attn_factor": _ATTENTION,
        "llama.rope.scaling.yarn_attn_factor": _ATTENTION,
    },
    mutations={
        "other feature layers": mmproj(
            nothing, {"clip.vision.feature_layer": array("INT32", [1, 2])}
        ),
        "feature layers exchanged": mmproj(values("mm.0.weight", _halves_exchanged)),
        "linear for yarn": text(nothing, {"llama.rope.scaling.type": string("linear")}),
        "the usual attention factor": text(nothing, {"llama.rope.scaling.attn_factor": None}),
        "attention factor itself": text(nothing, {"llama.rope.scaling.attn_factor": f32(1.3)}),
        "the whole context as the original one": text(
            nothing, {"llama.rope.scaling.original_context_length": None}
        ),
        "queries in transformers' order": text(values("attn_q.weight", unpaired(6))),
    },
)
_LONG = {
    "long_factor": [1.0 + 0.5 * number for number in range(12)],
    "rope_theta": 100.0,
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.1 * number for number in range(12)],
}


def _longrope(original: int) -> Config:
    return siglip_config(
        text={
            "attention_bias": True,
            "head_dim": 24,
            "mlp_bias": True,
            "model_type": "llama",
            "rope_parameters": {**_LONG, "original_max_position_embeddings": original},
        },
    )


_EXCHANGED = text(swap("rope_factors_long", "rope_factors_short"))
LONGROPE = _recipe(
    "longrope",
    _longrope(32),
    write_tokenizer=write_tokenizer_llava,
    adapt=as_published("LlamaForCausalLM"),
    mended={
        f"rope_factors_{name}.weight": "llama.cpp's converter writes them for Phi-3 alone"
        for name in ("long", "short")
    },
    mended_keys={
        f"llama.rope.scaling.{key}": "llama.cpp's converter writes the type alone"
        for key in ("attn_factor", "original_context_length")
    },
    mutations={
        "short factors for long ones": _EXCHANGED,
        "no factors": text(without("rope_factors_long.weight", "rope_factors_short.weight")),
        "no attention factor": text(nothing, {"llama.rope.scaling.attn_factor": None}),
        "biases of queries in transformers' order": text(values("attn_q.bias", _unpaired_bias)),
        "no bias behind attention": text(values("attn_output.bias", np.zeros_like)),
        "no bias in the feed-forward network": text(values("ffn_down.bias", np.zeros_like)),
    },
)
SHORTROPE = replace(
    LONGROPE,
    name="llava_shortrope",
    config=_longrope(1024),
    prompts=LONGROPE.prompts[:3],
    outtypes=("f32",),
    mutations={"long factors for short ones": _EXCHANGED},
)
SIGLIP_QWEN3 = _recipe(
    "siglip_qwen3",
    siglip_config(
        text={
            "head_dim": 24,
            "model_type": "qwen3",
            "rope_parameters": {"factor": 4.0, "rope_theta": 100.0, "rope_type": "linear"},
            "use_sliding_window": False,
        },
    ),
    write_tokenizer=write_tokenizer_llava_qwen,
    adapt=as_published("Qwen3ForCausalLM"),
    mutations={
        "no scaling": text(
            nothing, {"qwen3.rope.scaling.type": None, "qwen3.rope.scaling.factor": None}
        ),
        "another rotary base": text(nothing, {"qwen3.rope.freq_base": f32(110.0)}),
        "head norms exchanged": text(swap("attn_q_norm", "attn_k_norm")),
    },
)
RECIPES = (
    SIGLIP_QWEN2,
    CLIP_LLAMA,
    SIGLIP_MISTRAL,
    LONGROPE,
    SHORTROPE,
    SIGLIP_QWEN3,
)
