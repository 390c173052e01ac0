"""The Qwen3 language model as it stands inside Qwen3-VL: llama.cpp's `qwen3vl`.

Facts: names and shapes from llama.cpp src/models/qwen3vl.cpp and gguf-py constants.py; metadata and
its order from conversion/base.py (`TextModel.set_gguf_parameters`) and conversion/qwen3vl.py;
defaults of config keys from transformers' `Qwen3VLTextConfig`.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_HEADS, MAX_LAYERS, MAX_VOCABULARY, MAX_WIDTH, Section
from edgevlm_convert.family import Part, TextArchitecture
from edgevlm_convert.metadata import array, f32, u32
from edgevlm_convert.rules import Drop, Rename, Rule

_DEFAULT_HEAD_DIM = 128
_DEFAULT_ROPE_THETA = 500_000.0
_DEFAULT_MROPE_SECTION = (24, 20, 20)
# Radians per token that a rotary pair may miss before answers suffer; Qwen3-VL's own is 4e-7.
_MAX_LOST_ROTATION = 1e-3


def build_qwen3_vl(config: Section, prefix: str) -> Part:
    """Return rules and metadata of the text model.

    Args:
        config: config.json; the deepstack features that the vision tower hands over count here too.
        prefix: of the tensors, such as `model.language_model.`.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text = config.section("text_config")
    n_layers = text.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
    n_embd = text.integer("hidden_size", low=1, high=MAX_WIDTH)
    n_ff = text.integer("intermediate_size", low=1, high=MAX_WIDTH)
    n_head = text.integer("num_attention_heads", low=1, high=MAX_HEADS)
    n_head_kv = text.integer("num_key_value_heads", low=1, high=n_head, default=n_head)
    head_dim = text.integer("head_dim", low=2, high=4096, default=_DEFAULT_HEAD_DIM)
    if n_head % n_head_kv:
        text.fail("num_key_value_heads", f"a divisor of the {n_head} attention heads")
    text.require("hidden_act", ("silu",), default="silu")
    text.require("attention_bias", (False,), default=False)
    theta, sections = _rope(text, head_dim)
    n_deepstack = len(
        config.section("vision_config").integers(
            "deepstack_visual_indexes", low=0, high=MAX_LAYERS, max_length=MAX_LAYERS
        )
    )
    heads = (n_head * head_dim, n_head_kv * head_dim)
    rules: list[Rule] = [*_model_rules(config, prefix, n_embd)]
    for layer in range(n_layers):
        rules += _layer_rules(f"{prefix}layers.{layer}.", f"blk.{layer}.", n_embd, n_ff, heads)
        rules += _head_norms(f"{prefix}layers.{layer}.", f"blk.{layer}.", head_dim)
    return Part(
        rules=tuple(rules),
        metadata={
            "qwen3vl.block_count": u32(n_layers),
            "qwen3vl.context_length": u32(
                text.integer("max_position_embeddings", low=1, high=1 << 31)
            ),
            "qwen3vl.embedding_length": u32(n_embd),
            "qwen3vl.feed_forward_length": u32(n_ff),
            "qwen3vl.attention.head_count": u32(n_head),
            "qwen3vl.attention.head_count_kv": u32(n_head_kv),
            "qwen3vl.rope.dimension_sections": array("INT32", [*sections, 0]),
            "qwen3vl.rope.freq_base": f32(theta),
            "qwen3vl.attention.layer_norm_rms_epsilon": f32(
                text.number("rms_norm_eps", low=1e-12, high=1.0, default=1e-6)
            ),
            "qwen3vl.attention.key_length": u32(head_dim),
            "qwen3vl.attention.value_length": u32(head_dim),
        },
        late_metadata={"qwen3vl.n_deepstack_layers": u32(n_deepstack)},
    )


def _n_vocab(config: Section) -> int:
    return config.section("text_config").integer("vocab_size", low=1, high=MAX_VOCABULARY)


QWEN3_VL = TextArchitecture(
    name="qwen3vl", model_type="qwen3_vl_text", build=build_qwen3_vl, n_vocab=_n_vocab
)


def _rope(text: Section, head_dim: int) -> tuple[float, list[int]]:
    """Return the rotary base and the sections for time, height and width.

    transformers 5 writes `rope_parameters`, 4 wrote `rope_scaling` and a `rope_theta` beside it.
    """
    key = "rope_parameters" if text.has("rope_parameters") else "rope_scaling"
    rope = text.section(key) if text.has(key) else text.empty(key)
    rope.require(
        "type" if rope.has("type") else "rope_type", ("default", "mrope"), default="default"
    )
    rope.require("mrope_interleaved", (True,), default=True)
    for section in (text, rope):
        section.require("partial_rotary_factor", (1.0, 1), default=1.0)
    source = rope if rope.has("rope_theta") else text
    theta = source.number("rope_theta", low=1.0, high=1e12, default=_DEFAULT_ROPE_THETA)
    sections: list[int] = list(_DEFAULT_MROPE_SECTION)
    if rope.has("mrope_section"):
        sections = rope.integers("mrope_section", low=1, high=4096, max_length=3)
    if len(sections) != 3 or 2 * sum(sections) != head_dim:
        rope.fail("mrope_section", f"three numbers with the sum {head_dim / 2:g}, half a head")
    _check_rotated(rope, theta, sections)
    return theta, sections


def _check_rotated(rope: Section, theta: float, sections: list[int]) -> None:
    """Refuse sections that leave a rotary pair unrotated in llama.cpp alone, if it turns fast.

    Pair i belongs to time, height or width by i % 3, below three times that section. transformers
    rotates the pairs beyond by time, ggml by a fourth position, which is 0 for text
    (ggml-cpu/ops.cpp, `ggml_mrope_cache_init`; llama-graph.cpp, `llm_graph_input_pos`).
    """
    half = sum(sections)
    for pair in range(half):
        lost = theta ** (-pair / half)
        if pair >= 3 * sections[pair % 3] and lost > _MAX_LOST_ROTATION:
            rope.fail("mrope_section", f"sections that cover rotary pair {pair} in llama.cpp")


def _model_rules(config: Section, prefix: str, n_embd: int) -> list[Rule]:
    shape = (_n_vocab(config), n_embd)
    # transformers 5 asks the outer key; older files may have the inner one alone.
    inner = config.section("text_config").boolean("tie_word_embeddings", default=False)
    tied = config.boolean("tie_word_embeddings", default=inner)
    head: Rule = (
        Drop(source="lm_head.weight", reason="tied to the token embedding")
        if tied
        else Rename(source="lm_head.weight", target="output.weight", shape=shape)
    )
    return [
        Rename(source=f"{prefix}embed_tokens.weight", target="token_embd.weight", shape=shape),
        Rename(source=f"{prefix}norm.weight", target="output_norm.weight", shape=(n_embd,)),
        head,
    ]


def _layer_rules(
    source: str, target: str, n_embd: int, n_ff: int, heads: tuple[int, int]
) -> list[Rule]:
    """Return the rules of one layer; `heads` are the widths of all query and all key heads."""
    n_query, n_key = heads
    shapes = {
        "input_layernorm": ("attn_norm", (n_embd,)),
        "post_attention_layernorm": ("ffn_norm", (n_embd,)),
        "self_attn.q_proj": ("attn_q", (n_query, n_embd)),
        "self_attn.k_proj": ("attn_k", (n_key, n_embd)),
        "self_attn.v_proj": ("attn_v", (n_key, n_embd)),
        "self_attn.o_proj": ("attn_output", (n_embd, n_query)),
        "mlp.gate_proj": ("ffn_gate", (n_ff, n_embd)),
        "mlp.up_proj": ("ffn_up", (n_ff, n_embd)),
        "mlp.down_proj": ("ffn_down", (n_embd, n_ff)),
    }
    return [
        Rename(source=f"{source}{name}.weight", target=f"{target}{to}.weight", shape=shape)
        for name, (to, shape) in shapes.items()
    ]


def _head_norms(source: str, target: str, head_dim: int) -> list[Rule]:
    """Return the norms over each query and key head, which Qwen3 has and Qwen2 has not."""
    return [
        Rename(
            source=f"{source}self_attn.{letter}_norm.weight",
            target=f"{target}attn_{letter}_norm.weight",
            shape=(head_dim,),
        )
        for letter in "qk"
    ]
