"""Rotary position settings of a text model: base, scaling, factors.

transformers 5 writes `rope_parameters`, 4 wrote `rope_scaling` with a `rope_theta` beside it.
Facts: the keys of llama.cpp from its src/llama-arch.cpp, what it computes from them from
src/llama-context.cpp and ggml's `rope_yarn`; the formulas of transformers from its
modeling_rope_utils.py (`_compute_yarn_parameters`, `_compute_longrope_parameters`,
`_compute_llama3_parameters`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgevlm_convert.config import Section
from edgevlm_convert.metadata import Value, f32, string, u32

DEFAULT_THETA = 10_000.0
# What every architecture of llama.cpp computes; its `llama` reads tensors of factors as well.
PLAIN_KINDS = ("linear", "yarn")
# Dynamic scaling changes nothing within `max_position_embeddings`, the context that a file names.
SHORT_KINDS = (*PLAIN_KINDS, "dynamic")
ALL_KINDS = (*PLAIN_KINDS, "llama3", "longrope")
_NO_SCALING = ("default", "mrope")
_MAX_CONTEXT = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions.

    Attributes:
        section: where the settings stand, for errors about them.
        theta: base of the wave lengths.
        scaling: llama.cpp's keys behind `ARCHITECTURE.rope.scaling.`.
        factors: [head_dim / 2] float32 by which each wave length grows, by tensor name.
        losses: where llama.cpp does not compute what transformers does.
    """

    section: Section
    theta: float
    scaling: Mapping[str, Value] = field(default_factory=dict[str, Value])
    factors: Mapping[str, NDArray[np.float32]] = field(
        default_factory=dict[str, NDArray[np.float32]]
    )
    losses: tuple[str, ...] = ()


def rope_section(text: Section) -> Section:
    """Return the rotary settings, whichever transformers wrote them; empty when there are none."""
    key = "rope_parameters" if text.has("rope_parameters") else "rope_scaling"
    return text.section(key) if text.has(key) else text.empty(key)


def read_rope(
    text: Section,
    *,
    head_dim: int,
    kinds: Sequence[str],
    default_theta: float = DEFAULT_THETA,
    partial: bool = False,
    any_betas: bool = False,
) -> Rope:
    """Return the rotary settings of a model whose layers all have the same.

    Args:
        text: the text model's configuration.
        head_dim: channels of a head that are rotated.
        kinds: scaling types that llama.cpp computes for the architecture.
        default_theta: of the transformers class.
        partial: whether a head may have more channels, as `partial_rotary_factor` says.
        any_betas: whether llama.cpp reads yarn's betas for the architecture.

    Raises:
        CheckpointError: a scaling type that llama.cpp does not compute, or a broken one.
    """
    return read_rope_of(
        rope_section(text),
        text,
        head_dim=head_dim,
        kinds=kinds,
        default_theta=default_theta,
        partial=partial,
        any_betas=any_betas,
    )


def read_rope_of(
    rope: Section,
    text: Section,
    *,
    head_dim: int,
    kinds: Sequence[str],
    default_theta: float,
    partial: bool = False,
    any_betas: bool = False,
) -> Rope:
    """Return the rotary settings that stand in one section, as `read_rope`."""
    for section in () if partial else (text, rope):
        section.require("partial_rotary_factor", (1.0, 1), default=1.0)
    theta = read_theta(rope, text, default=default_theta)
    kind = read_kind(rope, kinds)
    if kind == "linear":
        scaling = {"type": string("linear"), "factor": f32(_factor(rope))}
        return Rope(section=rope, theta=theta, scaling=scaling)
    if kind == "yarn":
        return Rope(section=rope, theta=theta, scaling=_yarn(rope, text, any_betas=any_betas))
    if kind == "llama3":
        values = _llama3_factors(rope, text, theta=theta, head_dim=head_dim)
        return Rope(section=rope, theta=theta, factors={"rope_freqs.weight": values})
    if kind == "longrope":
        return _longrope(rope, text, theta=theta, head_dim=head_dim)
    return Rope(section=rope, theta=theta)


def read_theta(rope: Section, text: Section, *, default: float) -> float:
    """Return the base, from wherever it stands."""
    source = rope if rope.has("rope_theta") else text
    return source.number("rope_theta", low=1.0, high=1e12, default=default)


def read_n_rotated(text: Section, *, head_dim: int, default: float) -> int:
    """Return how many channels of a head are rotated.

    Args:
        text: the text model's configuration.
        head_dim: channels of a head.
        default: the part of them where no `partial_rotary_factor` says it.

    Raises:
        CheckpointError: an odd number, or none.
    """
    key = "partial_rotary_factor"
    rope = rope_section(text)
    source = rope if rope.has(key) else text
    n_rotated = int(head_dim * source.number(key, low=0, high=1, default=default))
    if n_rotated < 2 or n_rotated % 2:
        source.fail(key, f"an even number of a head's {head_dim} channels")
    return n_rotated


def read_kind(rope: Section, kinds: Sequence[str]) -> str:
    """Return the scaling type, "default" for none.

    Raises:
        CheckpointError: one that is not among `kinds`.
    """
    key = "rope_type" if rope.has("rope_type") else "type"
    kind = rope.text(key, default="default")
    if kind in _NO_SCALING:
        return "default"
    if kind not in kinds:
        known = " or ".join(("default", *kinds))
        rope.fail(key, f"{known}: llama.cpp computes no other for this architecture")
    return kind


def _factor(rope: Section) -> float:
    return rope.number("factor", low=1.0, high=1e6)


def _original_context(rope: Section, text: Section) -> int:
    key = "original_max_position_embeddings"
    # transformers puts the outer one first.
    source = text if text.has(key) else rope
    fallback = text.integer("max_position_embeddings", low=1, high=_MAX_CONTEXT)
    return source.integer(key, low=1, high=_MAX_CONTEXT, default=fallback)


def _yarn(rope: Section, text: Section, *, any_betas: bool) -> dict[str, Value]:
    """Return the keys of yarn.

    llama.cpp scales cosines by 0.1 ln(factor) + 1 and by `attn_factor`, and reads no
    `yarn_attn_factor`; a model whose attention factor is another gets the quotient.
    """
    factor = _factor(rope)
    values = {
        "type": string("yarn"),
        "factor": f32(factor),
        "original_context_length": u32(_original_context(rope, text)),
    }
    for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if not any_betas:
            # Its runtime reads these keys for few architectures.
            rope.require(key, (usual, int(usual)), default=usual)
        if rope.has(key):
            values[f"yarn_{key}"] = f32(rope.number(key, low=1e-3, high=1e6))
    rope.require("truncate", (True,), default=True)
    ordinary = _mscale(factor, 1.0)
    wanted = ordinary
    if rope.has("mscale") and rope.has("mscale_all_dim"):
        scales = [rope.number(key, low=0, high=1e3) for key in ("mscale", "mscale_all_dim")]
        if all(scales):
            wanted = _mscale(factor, scales[0]) / _mscale(factor, scales[1])
    if rope.has("attention_factor"):
        wanted = rope.number("attention_factor", low=1e-3, high=1e3)
    if wanted != ordinary:
        values["attn_factor"] = f32(wanted / ordinary)
    return values


def _mscale(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


def _longrope(rope: Section, text: Section, *, theta: float, head_dim: int) -> Rope:
    context = _original_context(rope, text)
    longest = text.integer("max_position_embeddings", low=1, high=_MAX_CONTEXT)
    growth = rope.number("factor", low=1.0, high=1e6, default=max(1.0, longest / context))
    usual = math.sqrt(1 + math.log(growth) / math.log(context)) if growth > 1 else 1.0
    attention = rope.number("attention_factor", low=1e-3, high=1e3, default=usual)
    return Rope(
        section=rope,
        theta=theta,
        scaling={
            "type": string("longrope"),
            "attn_factor": f32(attention),
            "original_context_length": u32(context),
        },
        factors={
            f"rope_factors_{name}.weight": np.asarray(
                rope.numbers(f"{name}_factor", length=head_dim // 2, low=1e-6, high=1e6),
                dtype=np.float32,
            )
            for name in ("long", "short")
        },
        losses=(
            f"longrope: llama.cpp takes the long factors as soon as the context (`--ctx`) is above"
            f" {context}, transformers only for a prompt that is",
        ),
    )


def _llama3_factors(
    rope: Section, text: Section, *, theta: float, head_dim: int
) -> NDArray[np.float32]:
    """Return by how much each wave length grows: not at all, by `factor`, or in between."""
    factor = _factor(rope)
    low = rope.number("low_freq_factor", low=1e-6, high=1e6)
    high = rope.number("high_freq_factor", low=1e-6, high=1e6)
    if high <= low:
        rope.fail("high_freq_factor", f"a number above low_freq_factor, {low:g}")
    context = _original_context(rope, text)
    one = np.float32(1)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # Rounded from double precision, so that the last bit is the same on every machine.
    frequencies = one / (theta ** exponents.astype(np.float64)).astype(np.float32)
    factors: list[np.float32] = []
    for frequency in frequencies:
        # Step by step in float32, as llama.cpp's converter does (conversion/llama.py).
        wave_length = one / frequency * np.float32(2 * math.pi)
        if wave_length < context / high:
            factors.append(one)
        elif wave_length > context / low:
            factors.append(np.float32(factor))
        else:
            position = one / wave_length * np.float32(context) - np.float32(low)
            smooth = position / np.float32(high - low)
            factors.append(one / ((one - smooth) / np.float32(factor) + smooth))
    return np.asarray(factors, dtype=np.float32)
