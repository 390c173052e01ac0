"""Qwen3-VL, dense: untied, three shards, every number far from tests/synthetic.py's defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgevlm_convert.metadata import array

from tests.convert.mutations import instead, mmproj, nothing, swap, text, without
from tests.goldens.recipe import Recipe
from tests.synthetic import preprocessor_config, tiny_config, write_tokenizer

_N_TOKENS = 300
_CONFIG = tiny_config(
    text={
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "vocab_size": 320,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
            "rope_theta": 100.0,
            "rope_type": "default",
        },
    },
    vision={
        "hidden_size": 48,
        "num_heads": 3,
        "intermediate_size": 80,
        "depth": 4,
        "deepstack_visual_indexes": [3, 1],
    },
    n_tokens=_N_TOKENS,
)


def _write_tokenizer(folder: Path) -> Any:
    write_tokenizer(folder, n_tokens=_N_TOKENS)


RECIPE = Recipe(
    name="qwen3_vl",
    config=_CONFIG,
    preprocessor=preprocessor_config(8),
    write_tokenizer=_write_tokenizer,
    model_class="Qwen3VLForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    free_numbers=("num_heads", "deepstack_visual_indexes"),
    shards=3,
    seed=20261123,
    mutations={
        "one frame of the patch kernel twice": mmproj(
            instead("v.patch_embd.weight.1", "v.patch_embd.weight")
        ),
        "deepstack by number, not by layer": mmproj(swap("v.deepstack.1.", "v.deepstack.3.")),
        "merger norms exchanged": mmproj(swap("ln1.", "ln2.")),
        "vision norm of the last layer as merger norm": mmproj(swap("v.blk.3.ln1.", "v.post_ln.")),
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "tied though it is not": text(without("output.weight")),
        "head norms exchanged": text(swap("attn_q_norm", "attn_k_norm")),
        "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "rotary sections in another order": text(
            nothing, {"qwen3vl.rope.dimension_sections": array("INT32", [8, 3, 5, 0])}
        ),
    },
)
