"""Sections of rotary pairs for time, height and width (M-RoPE)."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm_convert.text.rope import Rope

# Radians per token that a rotary pair may miss before answers suffer; Qwen3-VL's own is 4e-7.
_MAX_LOST_ROTATION = 1e-3


def read_sections(rope: Rope, *, default: Sequence[int], half: int, interleaved: bool) -> list[int]:
    """Return the four sections that llama.cpp takes: time, height, width, and none.

    Args:
        rope: the rotary settings.
        default: three sections, where the settings name none.
        half: rotary pairs of a head, which the sections share out.
        interleaved: whether pairs of the three take turns (Qwen3-VL) or stand in blocks.

    Raises:
        CheckpointError: sections of another sum or order, or a pair that llama.cpp leaves alone.
    """
    section = rope.section
    section.require("mrope_interleaved", (interleaved,), default=interleaved)
    sections = list(default)
    if section.has("mrope_section"):
        sections = section.integers("mrope_section", low=1, high=4096, max_length=3)
    if len(sections) != 3 or sum(sections) != half:
        section.fail("mrope_section", f"three numbers with the sum {half:g}, half a head")
    if interleaved:
        _check_rotated(rope, sections)
    return [*sections, 0]


def _check_rotated(rope: Rope, sections: Sequence[int]) -> None:
    """Refuse sections that leave a rotary pair unrotated in llama.cpp alone, if it turns fast.

    Pair i belongs to time, height or width by i % 3, below three times that section. transformers
    rotates the pairs beyond by time, ggml by a fourth position, which is 0 for text
    (ggml-cpu/ops.cpp, `ggml_mrope_cache_init`; llama-graph.cpp, `llm_graph_input_pos`).
    """
    half = sum(sections)
    for pair in range(half):
        lost = rope.theta ** (-pair / half)
        if pair >= 3 * sections[pair % 3] and lost > _MAX_LOST_ROTATION:
            rope.section.fail(
                "mrope_section", f"sections that cover rotary pair {pair} in llama.cpp"
            )
