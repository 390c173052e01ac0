"""Granite: Llama with four factors of its own. llama.cpp's `granite`.

Facts: names and what the graph computes from llama.cpp src/models/granite.cpp; keys from
conversion/granite.py; defaults from transformers' `Granite4VisionTextConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, array, f32
from edgevlm_convert.text.decoder import require_usual_heads
from edgevlm_convert.text.llama import build_like_llama, read_llama_sizes
from edgevlm_convert.text.rope import ALL_KINDS, read_rope
from edgevlm_convert.towers.granite4 import read_streams

_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "vocab_size": 32000,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
# llama.cpp's key by that of the configuration, in its order.
_FACTORS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_HEAD_KEYS = ("attention.key_length", "attention.value_length")


def build_granite(source: Source) -> Part:
    """Return rules and metadata of the text model of Granite 4 Vision.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text, name = source.text, GRANITE.name
    sizes = read_llama_sizes(text)
    require_usual_heads(text, sizes)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=ALL_KINDS)
    part = build_like_llama(source, name, sizes, rope)
    heads = [f"{name}.{key}" for key in _HEAD_KEYS]
    # 0 means another thing to llama.cpp than to transformers.
    factors: Mapping[str, Value] = {
        f"{name}.{key}": f32(text.number(factor, low=1e-6, high=1e6))
        for factor, key in _FACTORS.items()
    }
    return replace(
        part,
        metadata={key: value for key, value in part.metadata.items() if key not in heads},
        late_metadata={
            **part.late_metadata,
            **factors,
            f"{name}.deepstack_mapping": array("INT32", _mapping(source, sizes.n_layers)),
        },
    )


def _mapping(source: Source, n_layers: int) -> list[int]:
    """Return for each layer the stream of visual features that is added before it, -1 for none.

    The first stream stands in place of token embeddings.
    """
    mapping = [-1] * n_layers
    for number, stream in enumerate(read_streams(source)):
        mapping[stream.text_layer] = number if number else -1
    return mapping


GRANITE = TextArchitecture(
    name="granite",
    model_types=("granite4_vision_text", "granite"),
    defaults=_DEFAULTS,
    build=build_granite,
)
