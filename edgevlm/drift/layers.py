"""Which part of a text model a level's drift comes from: each block, and each role, alone.

For every part the baseline's text model is written with that part at the level's types, and led
along the baseline's answers to a few questions. The parts' drifts need not add up to the whole's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
from edgevlm_convert.writer import write_gguf

from edgevlm.build.cache import scratch_folder
from edgevlm.build.write_level import WrittenLevel
from edgevlm.drift.compare import Comparison
from edgevlm.drift.levels import Side
from edgevlm.drift.report import LayerDrift
from edgevlm.errors import QuantizationError
from edgevlm.files import check_free_space
from edgevlm.gguf_shards import read_model
from edgevlm.quantize.part_encoder import part_encoder
from edgevlm.quantize.run import plan_quantize, quantized_type
from edgevlm.quantize.tensors import block_number, text_role

MOST_QUESTIONS = 16
WHOLE_BLOCK = "all"


def layer_drift(comparison: Comparison, side: Side, *, n_threads: int) -> list[LayerDrift]:
    """Measure a level's parts; files are made in the cache, one at a time, and removed.

    Args:
        comparison: whose baseline has been run.
        side: the level.
        n_threads: encoders at work.

    Raises:
        QuantizationError: the baseline is quantized: its parts cannot be told from the level's.
        OutputError: the disk is too small.
    """
    indices = _some(comparison)
    found: list[LayerDrift] = []
    base = comparison.base_files()
    if quantized_type(read_model(base.text)) is not None:
        raise QuantizationError(
            f"--layers needs a baseline of floats, {comparison.baseline.level} is quantized",
            hint="leave out --baseline or --layers",
        )
    for block, role, part in _parts(_types(side), _types_of_file(base.text)):
        name = f"block {block}" if block is not None else role
        pair = (_identity(comparison, part), comparison.base_keys[1])
        missing = comparison.missing(pair, indices)
        if missing:
            with scratch_folder("compare") as folder:
                text = _written(base.text, part, folder, n_threads=n_threads)
                comparison.lead(
                    f"{side.level}, {name}",
                    pair,
                    WrittenLevel(text=text, mmproj=base.mmproj),
                    missing,
                    answers=False,
                )
        records = [comparison.record(pair, index).divergence for index in indices]
        klds = np.concatenate([one.kld for one in records if one is not None])
        found.append(LayerDrift(block=block, role=role, mean_kld=float(klds.mean())))
    return found


def _some(comparison: Comparison) -> list[int]:
    """Return the questions that parts are measured with: a few, from all over the set."""
    own = [index for index, one in enumerate(comparison.questions) if one.case is None]
    indices = comparison.image_indices or own
    places = np.linspace(0, len(indices) - 1, min(len(indices), MOST_QUESTIONS))
    return [indices[round(place)] for place in places]


def _parts(
    level: Mapping[str, str], base: Mapping[str, str]
) -> Iterator[tuple[int | None, str, dict[str, str]]]:
    """Yield (block, role, types) of each block as a whole, then of each role in all blocks."""
    changed = {name: type_ for name, type_ in level.items() if base.get(name, type_) != type_}
    is_tied = "output.weight" not in base
    blocks = sorted({number for name in changed if (number := block_number(name)) is not None})
    for block in blocks:
        yield (
            block,
            WHOLE_BLOCK,
            {name: type_ for name, type_ in changed.items() if block_number(name) == block},
        )
    roles: dict[str, dict[str, str]] = {}
    for name, type_ in changed.items():
        roles.setdefault(text_role(name, is_tied=is_tied), {})[name] = type_
    yield from ((None, role, part) for role, part in roles.items())


def _types(side: Side) -> Mapping[str, str]:
    files = side.plan.files if side.plan is not None else ()
    planned = next((file.plan.types for file in files if file.role == "text"), None)
    if planned is not None or side.text is None:
        return planned or {}
    return _types_of_file(side.text)


def _types_of_file(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in read_model(path).tensors}


def _identity(comparison: Comparison, part: Mapping[str, str]) -> str:
    types = "\n".join(f"{name} {type_}" for name, type_ in sorted(part.items()))
    return f"part of {comparison.base_keys[0]} {sha256(types.encode()).hexdigest()}"


def _written(source: Path, part: Mapping[str, str], folder: Path, *, n_threads: int) -> Path:
    encoder = part_encoder(part)
    plan = plan_quantize(source, encoder)
    check_free_space(folder, plan.n_bytes)
    path = folder / "part.gguf"
    write_gguf(plan, path, encoder=encoder, n_threads=n_threads)
    return path
