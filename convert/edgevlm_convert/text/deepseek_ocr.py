"""DeepSeek's small mixture inside DeepSeek-OCR: plain attention, llama.cpp's `deepseek2-ocr`.

Facts: names, shapes and what the graph computes from llama.cpp src/models/deepseek2ocr.cpp and
deepseek2.cpp (`is_ocr`); keys from conversion/deepseek.py (`DeepseekV2Model`); defaults from
transformers' `DeepseekOcr2TextConfig`, how experts are chosen from its modeling_deepseek_ocr2.py.
Checkpoints of DeepSeek's own class have these keys in `language_config`.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, f32, u32
from edgevlm_convert.rules import Rename, Rule
from edgevlm_convert.text.decoder import (
    Sizes,
    attention_rules,
    head_metadata,
    matrices,
    mlp_rules,
    model_rules,
    norm_metadata,
    norm_rules,
    read_sizes,
    require_usual_heads,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.experts import MAX_EXPERTS, Experts, count_metadata, routed_rules
from edgevlm_convert.text.rope import read_rope

_NAME = "deepseek2-ocr"
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "vocab_size": 102400,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.0,
    "moe_intermediate_size": 1407,
}
_UNLIMITED_DEFAULTS = {
    "hidden_size": 1280,
    "intermediate_size": 6848,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 129280,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "routed_scaling_factor": 1.0,
    "moe_intermediate_size": 896,
    "first_k_dense_replace": 1,
}
_WINDOWS, _USUAL_WINDOW = ("sliding_window", "sliding_window_size"), 128
# The graph ends the process at another one.
_THETA = 10_000.0


def build_deepseek_ocr(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text = source.text
    _require_what_is_computed(text)
    sizes = read_sizes(text)
    require_usual_heads(text, sizes)
    if sizes.n_head_kv != sizes.n_head:
        text.fail("num_key_value_heads", f"{sizes.n_head}, one for each attention head")
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=(), default_theta=_THETA)
    if rope.theta != _THETA:
        rope.section.fail("rope_theta", f"{_THETA:g}: llama.cpp computes no other")
    experts, n_dense = _read_experts(text), read_n_dense(text, sizes.n_layers)
    rules = model_rules(source, sizes.n_embd)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += norm_rules(*names, sizes.n_embd)
        rules += attention_rules(*names, sizes)
        if layer < n_dense:
            rules += mlp_rules(*names, sizes.n_embd, sizes.n_ff)
        else:
            rules += _mixture_rules(source, *names, sizes, experts)
    return Part(
        rules=tuple(rules),
        metadata={
            **size_metadata(_NAME, text, sizes, rope),
            **rope_base(_NAME, rope),
            **norm_metadata(_NAME, text),
            **count_metadata(_NAME, experts),
            **_group_metadata(text),
            **head_metadata(_NAME, text, sizes),
        },
        late_metadata={
            f"{_NAME}.leading_dense_block_count": u32(n_dense),
            f"{_NAME}.vocab_size": u32(source.n_vocab),
            f"{_NAME}.expert_feed_forward_length": u32(experts.n_ff),
            f"{_NAME}.expert_shared_count": u32(experts.n_ff_shared // experts.n_ff),
            f"{_NAME}.expert_weights_scale": f32(
                text.number("routed_scaling_factor", low=1e-3, high=1e3)
            ),
            f"{_NAME}.rope.dimension_count": u32(sizes.head_dim),
        },
        losses=_window_losses(source),
    )


def _require_what_is_computed(text: Section) -> None:
    text.require("hidden_act", ("silu",), default="silu")
    text.require("pretraining_tp", (1,), default=1)
    for key in ("attention_bias", "mlp_bias", "use_mla", "norm_topk_prob"):
        text.require(key, (False,), default=False)
    text.require("topk_method", ("greedy",), default="greedy")
    text.require("scoring_func", ("softmax",), default="softmax")
    text.require("moe_layer_freq", (1,), default=1)


def _read_experts(text: Section) -> Experts:
    n_experts = text.integer("n_routed_experts", low=2, high=MAX_EXPERTS)
    n_ff = text.integer("moe_intermediate_size", low=1, high=MAX_WIDTH)
    return Experts(
        n_experts=n_experts,
        n_used=text.integer("num_experts_per_tok", low=1, high=n_experts),
        n_ff=n_ff,
        n_ff_shared=n_ff * text.integer("n_shared_experts", low=1, high=MAX_WIDTH // n_ff),
    )


def read_n_dense(text: Section, n_layers: int) -> int:
    """Return how many layers stand before the first of experts.

    transformers names the kind of every layer, DeepSeek's own class the number.

    Raises:
        CheckpointError: a dense layer stands behind one of experts, or there are no experts.
    """
    key = "mlp_layer_types"
    if not text.has(key):
        return text.integer("first_k_dense_replace", low=0, high=n_layers - 1)
    kinds = text.texts(key)
    n_dense = next((number for number, kind in enumerate(kinds) if kind != "dense"), n_layers)
    if n_dense == n_layers or kinds != ["dense"] * n_dense + ["sparse"] * (n_layers - n_dense):
        text.fail(key, f"{n_layers} layers, `dense` ones before `sparse` ones")
    return n_dense


def _group_metadata(text: Section) -> dict[str, Value]:
    """Return the keys of groups of experts, which llama.cpp's converter copies."""
    keys = {"n_group": "expert_group_count", "topk_group": "expert_group_used_count"}
    for key in keys:
        text.require(key, (1,), default=1)
    return {f"{_NAME}.{to}": u32(1) for key, to in keys.items() if text.has(key)}


def _mixture_rules(
    source: Source, prefix: str, target: str, sizes: Sizes, experts: Experts
) -> list[Rule]:
    mlp, n_embd, n_shared = f"{prefix}mlp.", sizes.n_embd, experts.n_ff_shared
    return [
        Rename(
            source=f"{mlp}gate.weight",
            target=f"{target}ffn_gate_inp.weight",
            shape=(experts.n_experts, n_embd),
            # The router's scores decide; llama.cpp keeps them exact.
            precision="f32",
        ),
        *matrices(
            f"{mlp}shared_experts.",
            target,
            {
                "gate_proj.weight": ("ffn_gate_shexp.weight", (n_shared, n_embd)),
                "up_proj.weight": ("ffn_up_shexp.weight", (n_shared, n_embd)),
                "down_proj.weight": ("ffn_down_shexp.weight", (n_embd, n_shared)),
            },
        ),
        *routed_rules(source, f"{mlp}experts.", target, n_embd, experts),
    ]


def _window_losses(source: Source) -> tuple[str, ...]:
    """Say what Unlimited-OCR's window means here; DeepSeek-OCR has none."""
    names = source.config.texts("architectures")
    # Its own naming has the number beside the text model's section.
    places = (source.text, source.config)
    found = [(one, key) for key in _WINDOWS for one in places if one.has(key)]
    if not found and not any(name.startswith("Unlimited") for name in names):
        return ()
    window = _USUAL_WINDOW
    if found:
        window = found[0][0].integer(found[0][1], low=1, high=1 << 31)
    return (
        f"while it answers, the model looks back at the prompt and {window} tokens, llama.cpp's"
        f" graph at all of them: an answer of up to {window} tokens is not affected",
    )


DEEPSEEK_OCR_TEXT = TextArchitecture(
    name=_NAME,
    model_types=("deepseek_ocr2_text", "deepseek_v2"),
    defaults=_DEFAULTS,
    build=build_deepseek_ocr,
)
UNLIMITED_OCR_TEXT = TextArchitecture(
    name=_NAME,
    model_types=("unlimited_ocr_text",),
    defaults=_UNLIMITED_DEFAULTS,
    build=build_deepseek_ocr,
)
