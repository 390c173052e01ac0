"""GLM-4 inside GLM-4.1V and GLM-OCR: four norms a layer, rotary pairs side by side, M-RoPE.

Checkpoints of GLM-OCR end with a layer for multi-token prediction. llama.cpp's graph has no use
for it (src/models/glm4.cpp skips its tensors), so it is left out: a sixth of the weights.

Facts: names and shapes from llama.cpp src/models/glm4.cpp; keys and the order of rotary rows from
conversion/glm.py; defaults from transformers' `Glm4vTextConfig` and `GlmOcrTextConfig`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgevlm_convert.config import MAX_LAYERS
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array, u32
from edgevlm_convert.rules import Drop, Rule, Shape, Transform
from edgevlm_convert.text.decoder import (
    Sizes,
    head_metadata,
    matrices,
    model_rules,
    norm_metadata,
    read_sizes,
    require_usual_heads,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.mrope import read_sections
from edgevlm_convert.text.rope import PLAIN_KINDS, read_n_rotated, read_rope
from edgevlm_convert.transforms import reordered_columns, reordered_rows

_NAME = "glm4"
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "num_hidden_layers": 40,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "vocab_size": 151552,
}
_OCR_DEFAULTS = {
    **_DEFAULTS,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 59392,
}
SECTIONS = (8, 12, 12)
# The turn that follows an answer ends it; llama.cpp does not know the token by its text.
_END_OF_TURN = "<|user|>"


def build_glm4v_text(source: Source) -> Part:
    """Return rules and metadata of the text model of GLM-4.1V: biases on query, key and value.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    sizes = read_sizes(source.text)
    # transformers takes hidden_size / num_attention_heads, whatever `head_dim` says.
    require_usual_heads(source.text, sizes)
    return _build(source, sizes, ocr=False)


def build_glm_ocr_text(source: Source) -> Part:
    """Return rules and metadata of the text model of GLM-OCR: heads of their own size.

    Raises:
        CheckpointError: as `build_glm4v_text`.
    """
    return _build(source, read_sizes(source.text), ocr=True)


def _build(source: Source, sizes: Sizes, *, ocr: bool) -> Part:
    text = source.text
    text.require("hidden_act", ("silu",), default="silu")
    n_rotated = read_n_rotated(text, head_dim=sizes.head_dim, default=1.0)
    rope = read_rope(text, head_dim=n_rotated, kinds=PLAIN_KINDS, partial=True)
    sections = read_sections(rope, default=SECTIONS, half=n_rotated // 2, interleaved=False)
    rules = model_rules(source, sizes.n_embd)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += _layer_rules(*names, sizes, n_rotated, qkv_bias=not ocr)
    return Part(
        rules=(*rules, *(predictor_rules(source, sizes.n_layers) if ocr else ())),
        metadata={
            **size_metadata(_NAME, text, sizes, rope),
            f"{_NAME}.rope.dimension_sections": array("INT32", sections),
            **rope_base(_NAME, rope),
            **norm_metadata(_NAME, text),
            **head_metadata(_NAME, text, sizes),
        },
        late_metadata={
            f"{_NAME}.rope.dimension_count": u32(n_rotated),
            **end_of_turn(source),
        },
    )


def end_of_turn(source: Source) -> dict[str, Value]:
    """Return the key of the token that ends an answer, for runtimes that read no other list."""
    end = source.token_id(_END_OF_TURN)
    return {} if end is None else {"tokenizer.ggml.eot_token_id": u32(end)}


def predictor_rules(source: Source, n_layers: int) -> list[Rule]:
    """Return the rules of layers for multi-token prediction, which stand behind the others.

    Raises:
        CheckpointError: `num_nextn_predict_layers` is absurd.
    """
    key = "num_nextn_predict_layers"
    n_predictors = source.text.integer(key, low=0, high=MAX_LAYERS, default=0)
    reason = "multi-token prediction: answers are written token by token"
    stems = tuple(
        f"{source.prefixes.text}layers.{layer}."
        for layer in range(n_layers, n_layers + n_predictors)
    )
    names = [name for name in source.shapes if stems and name.startswith(stems)]
    return [Drop(source=name, reason=reason) for name in names]


def _layer_rules(
    source: str, target: str, sizes: Sizes, n_rotated: int, *, qkv_bias: bool
) -> list[Rule]:
    n_embd, n_ff = sizes.n_embd, sizes.n_ff
    shapes: dict[str, tuple[str, Shape]] = {
        "input_layernorm.weight": ("attn_norm.weight", (n_embd,)),
        "post_self_attn_layernorm.weight": ("post_attention_norm.weight", (n_embd,)),
        "post_attention_layernorm.weight": ("ffn_norm.weight", (n_embd,)),
        "post_mlp_layernorm.weight": ("post_ffw_norm.weight", (n_embd,)),
        "self_attn.v_proj.weight": ("attn_v.weight", (sizes.n_key, n_embd)),
        "self_attn.o_proj.weight": ("attn_output.weight", (n_embd, sizes.n_query)),
        # Gate above, up below, in one matrix on both sides.
        "mlp.gate_up_proj.weight": ("ffn_up.weight", (2 * n_ff, n_embd)),
        "mlp.down_proj.weight": ("ffn_down.weight", (n_embd, n_ff)),
    }
    if qkv_bias:
        shapes["self_attn.v_proj.bias"] = ("attn_v.bias", (sizes.n_key,))
    rules = matrices(source, target, shapes)
    for letter, n_head in (("q", sizes.n_head), ("k", sizes.n_head_kv)):
        order = _halves_order(n_head, sizes.head_dim, n_rotated)
        name, to = f"{source}self_attn.{letter}_proj.", f"{target}attn_{letter}."
        rules.append(
            Transform(
                source=f"{name}weight",
                target=f"{to}weight",
                shape=(len(order), n_embd),
                rows=reordered_rows(order),
            )
        )
        if qkv_bias:
            rules.append(
                Transform(
                    source=f"{name}bias",
                    target=f"{to}bias",
                    shape=(len(order),),
                    rows=reordered_columns(order),
                )
            )
    return rules


def _halves_order(n_head: int, head_dim: int, n_rotated: int) -> NDArray[np.int64]:
    """Return the rows of query or key in ggml's M-RoPE order, [n_head x head_dim] int64.

    transformers rotates a row of a head together with the next one, ggml's M-RoPE with the one
    half of the rotated rows further; rows that are not rotated stay behind them.
    """
    rotated = np.arange(n_rotated, dtype=np.int64)
    head = np.concatenate([rotated[::2], rotated[1::2], np.arange(n_rotated, head_dim)])
    return (np.arange(n_head)[:, None] * head_dim + head).reshape(-1)


GLM4V_TEXT = TextArchitecture(
    name=_NAME,
    model_types=("glm4v_text",),
    defaults=_DEFAULTS,
    build=build_glm4v_text,
)
GLM_OCR_TEXT = TextArchitecture(
    name=_NAME,
    model_types=("glm_ocr_text",),
    defaults=_OCR_DEFAULTS,
    build=build_glm_ocr_text,
)
