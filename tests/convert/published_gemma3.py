"""Published configurations of Gemma 3 and MedGemma, written out in the form they have.

From the repositories of Google on the Hugging Face Hub; left out is what only training or
generation reads. They leave out what equals transformers' classes, or say everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.goldens.llava_checkpoints import vision_shapes
from tests.goldens.recipe import Config

Shapes = dict[str, tuple[int, ...]]
_SIGLIP: Config = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
_TEXT: Config = {
    "model_type": "gemma3_text",
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
# The 4B says no more: heads, their channels and the vocabulary are the class's own.
_4B: Config = {
    **_TEXT,
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
}
_12B: Config = {
    **_TEXT,
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_attention_heads": 16,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
}
_27B: Config = {
    **_TEXT,
    "head_dim": 128,
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_attention_heads": 32,
    "num_hidden_layers": 62,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 168,
}
# What transformers 4.50 wrote when a model was saved again, as fine-tunes and MedGemma were.
_SAVED: Config = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
    "use_cache": True,
    "vocab_size": 262208,
}
_SAVED_SIGLIP: Config = {
    **_SIGLIP,
    "attention_dropout": 0.0,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-06,
    "num_channels": 3,
}
PREPROCESSOR: Config = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 896, "width": 896},
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published configuration.

    Attributes:
        config: config.json.
        sizes: width, inner width, layers, heads, KV heads and channels of a head of its text model.
        n_parameters: of the whole checkpoint, as transformers counts them; half of what its index
            file says in bytes.
    """

    config: Config
    sizes: str
    n_parameters: int


def _config(text: Config, vision: Config = _SIGLIP, **more: object) -> Config:
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "vision_config": vision,
        **more,
    }


def _layer_types(n_layers: int) -> list[str]:
    kinds = [*["sliding_attention"] * 5, "full_attention"]
    return [kinds[layer % 6] for layer in range(n_layers)]


_SIZES_4B = "2560 10240 34 8 4 256"
_SIZES_12B = "3840 15360 48 16 8 256"
_SIZES_27B = "5376 21504 62 32 16 128"
PUBLISHED: Mapping[str, Published] = {
    "google/gemma-3-4b-it": Published(
        config=_config(_4B), sizes=_SIZES_4B, n_parameters=4_300_079_472
    ),
    "google/gemma-3-4b-pt": Published(
        config=_config({**_SAVED, **_4B, "sliding_window_pattern": 6}, _SAVED_SIGLIP),
        sizes=_SIZES_4B,
        n_parameters=4_300_079_472,
    ),
    "google/gemma-3-12b-it": Published(
        config=_config(_12B), sizes=_SIZES_12B, n_parameters=12_187_325_040
    ),
    "google/gemma-3-12b-pt": Published(
        config=_config({**_SAVED, **_12B, "sliding_window_pattern": 6}, _SAVED_SIGLIP),
        sizes=_SIZES_12B,
        n_parameters=12_187_325_040,
    ),
    "google/gemma-3-27b-it": Published(
        config=_config(_27B), sizes=_SIZES_27B, n_parameters=27_432_406_640
    ),
    "google/gemma-3-27b-pt": Published(
        config=_config({**_SAVED, **_27B, "sliding_window_pattern": 6}, _SAVED_SIGLIP),
        sizes=_SIZES_27B,
        n_parameters=27_432_406_640,
    ),
    "google/medgemma-4b-it": Published(
        config=_config(
            {
                **_SAVED,
                **_4B,
                "_sliding_window_pattern": 6,
                "layer_types": _layer_types(34),
                "use_bidirectional_attention": False,
            },
            _SAVED_SIGLIP,
            pad_token_id=0,
        ),
        sizes=_SIZES_4B,
        n_parameters=4_300_079_472,
    ),
    "google/medgemma-27b-it": Published(
        config=_config(
            {
                **_SAVED,
                **_27B,
                "_sliding_window_pattern": 6,
                "layer_types": _layer_types(62),
                "use_bidirectional_attention": False,
            },
            _SAVED_SIGLIP,
            pad_token_id=0,
        ),
        sizes=_SIZES_27B,
        n_parameters=27_432_406_640,
    ),
}


def tensor_shapes(config: Config, sizes: str) -> Shapes:
    """Return every tensor that transformers 5 saves, by name, and its shape.

    Args:
        config: config.json, every size of the tower in it.
        sizes: those of the text model; see Published.
    """
    width, inner, n_layers, n_heads, n_kv_heads, head = map(int, sizes.split())
    text, vision = config["text_config"], config["vision_config"]
    stem = "language_model.model."
    shapes: Shapes = {f"{stem}embed_tokens.weight": (text.get("vocab_size", 262208), width)}
    if not config.get("tie_word_embeddings", True):
        shapes["language_model.lm_head.weight"] = shapes[f"{stem}embed_tokens.weight"]
    shapes[f"{stem}norm.weight"] = (width,)
    for layer in range(n_layers):
        prefix = f"{stem}layers.{layer}."
        for norm in (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ):
            shapes[f"{prefix}{norm}.weight"] = (width,)
        for letter, n_out in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)):
            shapes[f"{prefix}self_attn.{letter}_proj.weight"] = (n_out * head, width)
        shapes[f"{prefix}self_attn.o_proj.weight"] = (width, n_heads * head)
        for letter in "qk":
            shapes[f"{prefix}self_attn.{letter}_norm.weight"] = (head,)
        for name in ("gate", "up"):
            shapes[f"{prefix}mlp.{name}_proj.weight"] = (inner, width)
        shapes[f"{prefix}mlp.down_proj.weight"] = (width, inner)
    projector, n_vision = "multi_modal_projector.mm_", vision["hidden_size"]
    shapes[f"{projector}input_projection_weight"] = (n_vision, width)
    shapes[f"{projector}soft_emb_norm.weight"] = (n_vision,)
    return shapes | vision_shapes(vision)
