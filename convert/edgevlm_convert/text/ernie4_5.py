"""ERNIE 4.5 inside PaddleOCR-VL: Llama's layers with M-RoPE. llama.cpp's `paddleocr`.

Facts: names and shapes from llama.cpp src/models/ernie4-5.cpp and paddleocr.cpp; keys from
conversion/ernie.py; defaults from transformers' `PaddleOCRTextConfig`.
"""

from __future__ import annotations

from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import array
from edgevlm_convert.rules import Drop, Rename, Rule
from edgevlm_convert.text.decoder import (
    attention_rules,
    head_metadata,
    mlp_rules,
    model_rules,
    norm_metadata,
    norm_rules,
    read_sizes,
    rope_base,
    size_metadata,
)
from edgevlm_convert.text.mrope import read_sections
from edgevlm_convert.text.rope import PLAIN_KINDS, read_rope

_NAME = "paddleocr"
_DEFAULTS = {
    "vocab_size": 103424,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
}
_THETA = 500_000.0
SECTIONS = (16, 24, 24)


def build_paddleocr_text(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text = source.text
    text.require("hidden_act", ("silu",), default="silu")
    # Of attention and of the feed-forward network alike, and the graph adds none in the latter.
    text.require("use_bias", (False,), default=False)
    sizes = read_sizes(text)
    if sizes.head_dim % 2:
        text.fail("head_dim", "an even number: rotary positions turn pairs of channels")
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=PLAIN_KINDS, default_theta=_THETA)
    sections = read_sections(rope, default=SECTIONS, half=sizes.head_dim // 2, interleaved=False)
    rules = model_rules(source, sizes.n_embd, tied_by_default=True)
    rules[-1] = _head_rule(source, rules[-1], sizes.n_embd)
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        rules += norm_rules(*names, sizes.n_embd)
        rules += attention_rules(*names, sizes)
        rules += mlp_rules(*names, sizes.n_embd, sizes.n_ff)
    return Part(
        rules=tuple(rules),
        metadata={
            **size_metadata(_NAME, text, sizes, rope),
            f"{_NAME}.rope.dimension_sections": array("INT32", sections),
            **rope_base(_NAME, rope),
            **norm_metadata(_NAME, text),
            **head_metadata(_NAME, text, sizes),
        },
    )


def _head_rule(source: Source, usual: Rule, n_embd: int) -> Rule:
    """Return the rule of the output matrix, which transformers reads wherever there is one.

    Its configuration class calls every model tied of which the text model's section does not say
    otherwise (configuration_paddleocr_vl.py), and a stored matrix is then kept all the same.
    """
    name = f"{source.prefixes.head}weight"
    if name not in source.shapes:
        says_not = source.text.has("tie_word_embeddings") and not source.text.boolean(
            "tie_word_embeddings", default=True
        )
        return usual if says_not else Drop(source=name, reason="tied to the token embedding")
    return Rename(source=name, target="output.weight", shape=(source.n_vocab, n_embd))


PADDLEOCR_TEXT = TextArchitecture(
    name=_NAME,
    model_types=("paddleocr_vl_text", "paddleocr_vl", "ernie4_5"),
    defaults=_DEFAULTS,
    build=build_paddleocr_text,
)
