"""Qwen4-Exp: two residual streams, n-grams before the second layer, an indexer in the fourth.

The indexer's budget is longer than the prompts, as in contexts that are exact in llama.cpp.
"""

from __future__ import annotations

import numpy as np
from edgevlm_convert.metadata import array, u32
from numpy.typing import NDArray

from tests.convert.mutations import mmproj, nothing, swap, text, values, without
from tests.goldens.qwen3_checkpoints import hybrid_config, write_hybrid_tokenizer
from tests.goldens.recipe import PROMPTS, Config, Recipe
from tests.goldens.recipes.qwen3_5 import GAINS, VISION, minus_one, rope
from tests.synthetic import preprocessor_config

_HYBRID = hybrid_config(
    text={
        "eos_token_id": 293,
        "hc_count": 2,
        "hc_lowrank": 8,
        "heads_per_ngram": 2,
        "hidden_size": 64,
        "indexer_budget": 256,
        "indexer_compress_ratio": 4,
        "indexer_head_dim": 16,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "make_ngram_vocab_size_divisible_by": 8,
        "moe_intermediate_size": 40,
        "ngram_size": 3,
        "ngram_vocab_size_base": 50,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "output_gate_type": "sigmoid",
        "ple_conv_kernel_size": 3,
        "ple_embed_dim": 64,
        "ple_layer_ids": [2],
        "rope_parameters": rope([2, 1, 1], 0.25),
        "seed": 1234,
        "shared_expert_intermediate_size": 48,
        "split_ngram_parts": 2,
    },
    vision=VISION,
    moe=True,
)
_CONFIG: Config = {
    **_HYBRID,
    "architectures": ["Qwen4ExpForConditionalGeneration"],
    "model_type": "qwen4_exp",
    "text_config": {**_HYBRID["text_config"], "model_type": "qwen4_exp_text"},
    "vision_config": {**_HYBRID["vision_config"], "model_type": "qwen4_exp_vision"},
}
_PLE = "qwen4exp.ple."


def _first_tap_last(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    return kernel[:, ::-1]


RECIPE = Recipe(
    name="qwen4_exp",
    config=_CONFIG,
    preprocessor=preprocessor_config(8),
    write_tokenizer=write_hybrid_tokenizer,
    model_class="Qwen4ExpForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    pre="qwen35",
    prompts=PROMPTS[:3],
    outtypes=("f32",),
    mended={
        "blk.0.ssm_a": "the last bit of an exponential, which is taken in double precision here"
    },
    mended_keys={
        "qwen4exp.attention.compress_ratios": "transformers 5.23 calls full attention by another"
        " name, by which llama.cpp's converter does not know that it has an indexer",
    },
    free_numbers=(
        "num_heads",
        "num_experts_per_tok",
        "seed",
        "indexer_budget",
        "indexer_compress_ratio",
        "make_ngram_vocab_size_divisible_by",
        "ngram_vocab_size_base",
    ),
    gains={
        **GAINS,
        # Norms of the streams, around 1 as well.
        "hc_norm": 0.3,
        "norm_key": 0.3,
        "norm_query": 0.3,
        "norm_conv": 0.3,
        "mlp.gate.": 8.0,
        "shared_expert_gate": 3.0,
        "embed_tokens": 0.03,
        "o_proj": 3.0,
        "out_proj": 2.0,
        "ple.value_proj": 0.1,
        "lm_head": 0.8,
        "mlp.linear_fc2": 1.0,
    },
    seed=20261128,
    mutations={
        "streams of attention and experts exchanged": text(swap("hc_attn_", "hc_ffn_")),
        "norms of streams without 1": text(values("hc_attn_norm", minus_one)),
        "table of n-grams upside down": text(values("per_layer_token_embd", lambda one: one[::-1])),
        "longer n-grams alone": text(nothing, {f"{_PLE}head_offsets": array("UINT64", [0] * 4)}),
        "n-grams over the end of a turn": text(nothing, {f"{_PLE}eos_token_id": u32(1)}),
        "another token for images": text(nothing, {f"{_PLE}image_token_id": u32(1)}),
        "n-grams in another order in time": text(values("ple_conv1d", _first_tap_last)),
        "experts in another order": text(values("ffn_down_exps", lambda one: one[::-1])),
        "alpha and beta exchanged": text(swap("ssm_alpha", "ssm_beta")),
        "tied though it is not": text(without("output.weight")),
        "rotary sections in another order": text(
            nothing, {"qwen4exp.rope.dimension_sections": array("INT32", [1, 2, 1, 0])}
        ),
        "merger norms exchanged": mmproj(swap("ln1.", "ln2.")),
    },
)
