"""Mistral and Ministral 3 inside Mistral 3: Llama's tensors, queries that grow with positions.

Facts: names and what is computed from llama.cpp src/models/mistral3.cpp, yarn's scale from
src/llama-context.cpp; keys and their order from conversion/mistral3.py; defaults and the scaling
of queries from transformers' `Mistral3Config`, `Ministral3Config` and modeling_ministral3.py.
"""

from __future__ import annotations

import math
from dataclasses import replace

from edgevlm_convert.config import Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.metadata import Value, f32
from edgevlm_convert.text.llama import build_like_llama, read_llama_sizes
from edgevlm_convert.text.rope import ALL_KINDS, Rope, read_kind, read_rope, rope_section

_NAME = "mistral3"
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "vocab_size": 32000,
}
_MINISTRAL_DEFAULTS = {
    **_DEFAULTS,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "num_hidden_layers": 34,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 16.0,
        "llama_4_scaling_beta": 0.1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 16384,
        "rope_theta": 1000000.0,
        "rope_type": "yarn",
    },
    "sliding_window": None,
    "vocab_size": 131072,
}


def build_mistral3(source: Source) -> Part:
    """Return rules and metadata of a Mistral inside Mistral 3.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    sizes = read_llama_sizes(source.text)
    rope = read_rope(source.text, head_dim=sizes.head_dim, kinds=ALL_KINDS, any_betas=True)
    return build_like_llama(source, _NAME, sizes, rope, tied_by_default=_lacks_head(source))


def build_ministral3(source: Source) -> Part:
    """Return rules and metadata of a Ministral 3: yarn, and queries scaled by their position.

    Raises:
        CheckpointError: as for `build_mistral3`.
    """
    text = source.text
    section = rope_section(text)
    if read_kind(section, ("yarn",)) != "yarn":
        section.fail("rope_type", "'yarn', which transformers asks of this text model")
    beta = section.number("llama_4_scaling_beta", low=0.0, high=1e3)
    if not section.has("original_max_position_embeddings"):
        section.fail("original_max_position_embeddings", "a number of positions")
    sizes = read_llama_sizes(text)
    rope = read_rope(text, head_dim=sizes.head_dim, kinds=("yarn",), any_betas=True)
    rope, log_mul = _with_log_mul(rope, section)
    part = build_like_llama(source, _NAME, sizes, rope, tied_by_default=_lacks_head(source))
    late = {**part.late_metadata, **log_mul}
    late[f"{_NAME}.attention.temperature_scale"] = f32(beta)
    return replace(part, late_metadata=late)


def _lacks_head(source: Source) -> bool:
    """Return whether the checkpoint has no output matrix.

    `Mistral3Config` ties by default, yet transformers takes a matrix that is stored.
    """
    return f"{source.prefixes.head}weight" not in source.shapes


def _with_log_mul(rope: Rope, section: Section) -> tuple[Rope, dict[str, Value]]:
    """Return the settings with `yarn_log_mul` in place of the attention factor it stands for.

    llama.cpp divides 0.1 ln(factor) + 1 by the same with `yarn_log_mul` in front, and multiplies by
    `attn_factor`; what is missing to transformers' attention factor stays in the latter.
    """
    all_dim = section.number("mscale_all_dim", low=0.0, high=1e3, default=0.0)
    if not all_dim:
        return rope, {}
    growth = 0.1 * math.log(section.number("factor", low=1.0, high=1e6))
    scaling = dict(rope.scaling)
    stored = scaling.pop("attn_factor", None)
    factor = stored.value if stored is not None else 1.0
    if not isinstance(factor, float):
        section.fail("attention_factor", "a number")
    wanted = factor * (all_dim * growth + 1.0)
    if not math.isclose(wanted, 1.0, rel_tol=1e-9):
        scaling["attn_factor"] = f32(wanted)
    key = f"{_NAME}.rope.scaling.yarn_log_multiplier"
    return replace(rope, scaling=scaling), {key: f32(all_dim)}


MISTRAL3 = TextArchitecture(
    name=_NAME, model_types=("mistral",), defaults=_DEFAULTS, build=build_mistral3
)
MINISTRAL3 = TextArchitecture(
    name=_NAME, model_types=("ministral3",), defaults=_MINISTRAL_DEFAULTS, build=build_ministral3
)
