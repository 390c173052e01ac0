"""Qwen2.5-VL: tied, with windows; then one configured for yarn as its README says, in old style."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32, string, u32

from tests.convert.mutations import instead, mmproj, nothing, swap, text, values
from tests.goldens.qwen2_checkpoints import flat, qwen2_config, write_qwen_tokenizer
from tests.goldens.recipe import Recipe
from tests.synthetic import preprocessor_config

_CONFIG = qwen2_config(
    "Qwen2_5_VL",
    text={
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "mrope_section": [2, 3, 3],
            "rope_theta": 100.0,
            "rope_type": "default",
        },
    },
    vision={
        "depth": 6,
        "fullatt_block_indexes": [2, 5],
        "hidden_act": "silu",
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 2,
        "out_hidden_size": 96,
        "patch_size": 14,
        "window_size": 112,
    },
    tied=True,
)
# Windows are 4 x 4 visual tokens: 6 of them in 5 x 9 tokens, 3 in 9 x 4, none of them whole.
_PROMPTS = (
    ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
    ("one image", "What is in the image?", ("140x252-1",)),
    ("another image", "What is in the image?", ("140x252-2",)),
    ("two images", "Is the circle in one or in the other?", ("140x252-2", "252x112-3")),
)
_PATTERN = "clip.vision.n_wa_pattern"

RECIPE = Recipe(
    name="qwen2_5_vl",
    config=_CONFIG,
    preprocessor=preprocessor_config(14),
    write_tokenizer=write_qwen_tokenizer,
    model_class="Qwen2_5_VLForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    prompts=_PROMPTS,
    # A window of 113 pixels holds as many patches as one of 112.
    free_numbers=("num_heads", "window_size"),
    gains={"embed_tokens": 0.15, "patch_embed": 0.01},
    mutations={
        "one frame of the patch kernel twice": mmproj(
            instead("v.patch_embd.weight.1", "v.patch_embd.weight")
        ),
        "query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "key and value exchanged": mmproj(swap("attn_k.", "attn_v.")),
        "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
        "norm of the last block as merger norm": mmproj(swap("v.blk.5.ln1.", "v.post_ln.")),
        "vision norms with another epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-5)}
        ),
        "vision gate and up exchanged": mmproj(swap("ffn_gate", "ffn_up")),
        "no vision bias": mmproj(values("ffn_gate.bias", np.zeros_like)),
        "gelu for silu": mmproj(nothing, {"clip.use_silu": None, "clip.use_gelu": boolean(True)}),
        "no windows": mmproj(nothing, {_PATTERN: u32(0)}),
        "windows in all layers": mmproj(nothing, {_PATTERN: u32(7)}),
        "the whole image in every second layer": mmproj(nothing, {_PATTERN: u32(2)}),
        "the whole image in the last layer only": mmproj(nothing, {_PATTERN: u32(6)}),
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "no bias on values": text(values("attn_v.bias", np.zeros_like)),
        "rotary sections in another order": text(
            nothing, {"qwen2vl.rope.dimension_sections": array("INT32", [3, 2, 3, 0])}
        ),
        "another rotary base": text(nothing, {"qwen2vl.rope.freq_base": f32(110.0)}),
    },
)

_SCALING = "qwen2vl.rope.scaling."
_FLAT = flat(
    _CONFIG,
    rope_scaling={
        "type": "yarn",
        "mrope_section": [2, 3, 3],
        "factor": 4,
        "original_max_position_embeddings": 512,
    },
)
YARN = replace(
    RECIPE,
    name="qwen2_5_vl_yarn",
    config={**_FLAT, "rms_norm_eps": 1e-05},
    prompts=_PROMPTS[:3],
    outtypes=("f32",),
    free_numbers=("num_heads", "window_size", "factor"),
    mended_keys={
        "clip.vision.attention.layer_norm_epsilon": "llama.cpp takes the text model's where it"
        " stands at the root; transformers fixes it at 1e-6",
    },
    mutations={
        "no scaling": text(nothing, {f"{_SCALING}type": string("none")}),
        "linear": text(nothing, {f"{_SCALING}type": string("linear")}),
        "attention factor 1": text(nothing, {f"{_SCALING}attn_factor": f32(1 / 1.1386294)}),
        "the whole context as the original one": text(
            nothing, {f"{_SCALING}original_context_length": None}
        ),
        "llama.cpp's vision epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-5)}
        ),
    },
)
