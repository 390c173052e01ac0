"""Qwen3.5: with an MTP layer and three value heads a key head; then small, tied, without MTP."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32, u32
from numpy.typing import NDArray

from tests.convert.mutations import instead, mmproj, nothing, swap, text, values, without
from tests.goldens.qwen3_checkpoints import hybrid_config, mtp_shapes, write_hybrid_tokenizer
from tests.goldens.recipe import PROMPTS, Config, Recipe
from tests.synthetic import preprocessor_config

N_KEY, N_VALUE, HEAD = 2, 6, 16


def rope(sections: list[int], factor: float) -> Config:
    """Return `rope_parameters`."""
    return {
        "mrope_interleaved": True,
        "mrope_section": sections,
        "partial_rotary_factor": factor,
        "rope_theta": 100.0,
        "rope_type": "default",
    }


VISION = {"depth": 3, "hidden_size": 48, "num_heads": 3, "intermediate_size": 80}
_CONFIG = hybrid_config(
    text={
        "hidden_size": 96,
        "intermediate_size": 160,
        "linear_num_key_heads": N_KEY,
        "linear_num_value_heads": N_VALUE,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 6,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "rope_parameters": rope([3, 3, 2], 0.5),
    },
    vision=VISION,
)


def grouped(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo the order of value heads, along the first axis, of what is theirs alone."""
    return rows.reshape(N_VALUE // N_KEY, N_KEY, -1).swapaxes(0, 1).reshape(rows.shape)


def _joint(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    first = 2 * N_KEY * HEAD
    return np.concatenate([rows[:first], grouped(rows[first:])])


def _columns(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return grouped(np.ascontiguousarray(rows.T)).T


def minus_one(norm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Undo what is added to norms."""
    return norm - 1


GAINS = {
    # Some heads remember for long: as drawn, all forget an image before it is asked for.
    "A_log": 3.0,
    # Norms are drawn around 1, to which 1 is added.
    "layernorm.weight": 0.3,
    "q_norm": 0.2,
    "k_norm": 0.2,
    "language_model.norm": 0.3,
    "embed_tokens": 0.2,
    "lm_head": 0.6,
    # The activation of the tower is heard.
    "mlp.linear_fc2": 3.0,
}
RECIPE = Recipe(
    name="qwen3_5",
    config=_CONFIG,
    preprocessor=preprocessor_config(8),
    write_tokenizer=write_hybrid_tokenizer,
    model_class="Qwen3_5ForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    pre="qwen35",
    extra=mtp_shapes(_CONFIG),
    free_numbers=("num_heads", "mtp_num_hidden_layers"),
    gains=GAINS,
    shards=2,
    # One of the seeds whose decay rates torch rounds correctly: bytes are compared.
    seed=20261132,
    mutations={
        "value rows grouped": text(values("attn_qkv", _joint)),
        "gate rows grouped": text(values("attn_gate", grouped)),
        "decay rows grouped": text(values("ssm_alpha", grouped)),
        "beta rows grouped": text(values("ssm_beta", grouped)),
        "decay rates grouped": text(values("ssm_a", grouped, at_end=True)),
        "time steps grouped": text(values("ssm_dt", grouped)),
        "kernels grouped": text(values("ssm_conv1d", _joint)),
        "output columns grouped": text(values("ssm_out", _columns)),
        "logarithms of decay rates": text(
            values("ssm_a", lambda rates: np.log(-rates), at_end=True)
        ),
        "decay rates without sign": text(values("ssm_a", np.negative, at_end=True)),
        "kernels backwards": text(values("ssm_conv1d", lambda rows: rows[:, ::-1])),
        "layer norms without 1": text(values("attn_norm", minus_one)),
        "norms after attention without 1": text(values("post_attention_norm", minus_one)),
        "head norms without 1": text(values("attn_k_norm", minus_one)),
        "last norm without 1": text(values("output_norm", minus_one)),
        "norm of linear attention with 1": text(values("ssm_norm", lambda norm: norm + 1)),
        "alpha and beta exchanged": text(swap("ssm_alpha", "ssm_beta")),
        "norms of another layer": text(instead("blk.0.ssm_norm.weight", "blk.1.ssm_norm.weight")),
        "all of a head rotated": text(nothing, {"qwen35.rope.dimension_count": u32(32)}),
        "rotary sections in another order": text(
            nothing, {"qwen35.rope.dimension_sections": array("INT32", [2, 3, 3, 0])}
        ),
        "another rotary base": text(nothing, {"qwen35.rope.freq_base": f32(110.0)}),
        "another epsilon": text(nothing, {"qwen35.attention.layer_norm_rms_epsilon": f32(1e-4)}),
        "tied though it is not": text(without("output.weight")),
        "merger norms exchanged": mmproj(swap("ln1.", "ln2.")),
        "one frame of the patch kernel twice": mmproj(
            instead("v.patch_embd.weight.1", "v.patch_embd.weight")
        ),
        "quick-gelu": mmproj(nothing, {"clip.use_gelu": boolean(False)}),
    },
)


def _open_gates(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make the gates, the second half of what each head's rows give, all one half."""
    heads = rows.reshape(4, 2, 32, -1).copy()
    heads[:, 1] = 0
    return heads.reshape(rows.shape)


_SMALL = hybrid_config(
    text={
        "full_attention_interval": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "layer_types": None,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 4,
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rope_parameters": rope([2, 1, 1], 0.25),
    },
    vision=VISION,
    tied=True,
)

# Tied, as many value heads as key heads (0.8B and 2B are so), layers by their interval alone.
SMALL = replace(
    RECIPE,
    name="qwen3_5_small",
    config=_SMALL,
    prompts=PROMPTS[:3],
    options=("--no-mtp",),
    extra={},
    outtypes=("auto", "f32"),
    free_numbers=("num_heads",),
    mended_keys={
        "qwen35.full_attention_interval": "llama.cpp's converter writes 4 where transformers has"
        " turned the interval into a list of layers; its runtime reads the list"
    },
    shards=1,
    seed=20261129,
    mutations={
        "gates of full attention left open": text(values("attn_q.", _open_gates)),
        "query and key exchanged": text(
            values("attn_qkv", lambda rows: np.roll(rows, 4 * HEAD, axis=0))
        ),
        "gates before queries": text(values("attn_q.", lambda rows: np.roll(rows, 32, axis=0))),
        "alpha and beta exchanged": text(swap("ssm_alpha", "ssm_beta")),
        "kernels backwards": text(values("ssm_conv1d", lambda rows: rows[:, ::-1])),
        "layer norms without 1": text(values("attn_norm", minus_one)),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "rotary sections in another order": text(
            nothing, {"qwen35.rope.dimension_sections": array("INT32", [1, 2, 1, 0])}
        ),
        "merger norms exchanged": mmproj(swap("ln1.", "ln2.")),
    },
)
