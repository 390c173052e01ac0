"""Qwen3-VL with experts: untied, saved by transformers; published checkpoints transpose them."""

from __future__ import annotations

import numpy as np
from edgevlm_convert.metadata import array, u32

from tests.convert.mutations import mmproj, nothing, swap, text, values, without
from tests.goldens.qwen3_checkpoints import N_TOKENS, moe_config, transpose_experts
from tests.goldens.recipe import Recipe
from tests.synthetic import preprocessor_config, write_tokenizer

_CONFIG = moe_config(
    text={
        "hidden_size": 96,
        "intermediate_size": 160,
        "moe_intermediate_size": 40,
        "num_attention_heads": 6,
        "num_experts_per_tok": 3,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "num_local_experts": 5,
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
        "depth": 3,
        "deepstack_visual_indexes": [2],
    },
)

RECIPE = Recipe(
    name="qwen3_vl_moe",
    config=_CONFIG,
    preprocessor=preprocessor_config(8),
    write_tokenizer=lambda folder: write_tokenizer(folder, n_tokens=N_TOKENS),
    model_class="Qwen3VLMoeForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    adapt=transpose_experts,
    free_numbers=("num_heads", "num_experts_per_tok", "intermediate_size"),
    # A packed expert is drawn as if it had as many inputs as values.
    gains={"gate_up_proj": 9.0, "down_proj": 18.0, "mlp.gate.": 3.0},
    # Chosen by the margin between the last expert taken and the first left out, 0.005 of the
    # logits' deviation at every token: with a smaller one rounding decides.
    seed=20261149,
    mutations={
        "gate and up exchanged": text(swap("ffn_gate_exps", "ffn_up_exps")),
        "experts in another order": text(values("ffn_down_exps", lambda one: one[::-1])),
        "gate and up cut in another place": text(
            values("ffn_gate_exps", lambda one: np.roll(one, 1, axis=1))
        ),
        "router in another order": text(values("ffn_gate_inp", lambda one: one[::-1])),
        "one expert less": text(nothing, {"qwen3vlmoe.expert_used_count": u32(2)}),
        "tied though it is not": text(without("output.weight")),
        "head norms exchanged": text(swap("attn_q_norm", "attn_k_norm")),
        "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "rotary sections in another order": text(
            nothing, {"qwen3vlmoe.rope.dimension_sections": array("INT32", [8, 3, 5, 0])}
        ),
        "merger norms exchanged": mmproj(swap("ln1.", "ln2.")),
    },
)
