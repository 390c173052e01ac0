"""The text model of Gemma 4 without towers: Gemma 4's, whose visual tokens always see each other.

llama.cpp's `gemma4`. Facts: defaults from transformers' `Gemma4UnifiedTextConfig`, which has
neither embeddings of every layer nor experts; tokens that are never sampled from llama.cpp
conversion/gemma.py (`Gemma4UnifiedModel`); that images are seen both ways from
tools/mtmd/mtmd.cpp (`mtmd_decode_use_non_causal`).
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array
from edgevlm_convert.text.gemma4 import GEMMA4, build_gemma4

_BOTH_WAYS = "use_bidirectional_attention"
_DEFAULTS = {
    **GEMMA4.defaults,
    "max_position_embeddings": 262144,
    "hidden_size_per_layer_input": 0,
    "sliding_window": 1024,
    _BOTH_WAYS: "vision",
}
_MAX_SUPPRESSED = 4096


def build_gemma4_unified(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    given = source.config.section("text_config") if source.config.has("text_config") else None
    # A null is none of the class's defaults.
    if given is not None and _BOTH_WAYS in set(given.keys()) and not given.has(_BOTH_WAYS):
        given.fail(_BOTH_WAYS, '"vision": visual tokens see each other both ways in llama.cpp')
    text = source.text
    text.require("enable_moe_block", (False,), default=False)
    text.require("hidden_size_per_layer_input", (0,), default=0)
    part = build_gemma4(source, causal_widths=())
    return replace(part, late_metadata={**part.late_metadata, **_suppressed(source)})


def _suppressed(source: Source) -> dict[str, Value]:
    """Return the key of tokens that an answer never has, such as those around an image."""
    key = "suppress_tokens"
    if not source.generation.has(key):
        return {}
    tokens = source.generation.integers(
        key, low=0, high=source.n_vocab - 1, max_length=_MAX_SUPPRESSED
    )
    return {f"tokenizer.ggml.{key}": array("INT32", tokens)} if tokens else {}


GEMMA4_UNIFIED = TextArchitecture(
    name=GEMMA4.name,
    model_types=("gemma4_unified_text",),
    defaults=_DEFAULTS,
    build=build_gemma4_unified,
)
