"""Which projector type and how many threads answer fastest on this machine.

The fastest type is not the smallest, and differs by processor: kernels exist for some types and
some instructions. So every type is made, and measured with every number of threads, one at a time;
its embeddings are held against those of the 16-bit projector.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.build.one_file import write_one
from edgevlm.drift.speed import EncodeSpeed, TextSpeed, encode_speed, text_speed
from edgevlm.errors import EdgeVLMError, SourceNotFoundError
from edgevlm.gguf_shards import shard_paths
from edgevlm.manifest import Role
from edgevlm.model_dir import FLOAT_LEVELS, ModelDir
from edgevlm.progress import SILENT, Progress
from edgevlm.quantize.encode import mmproj_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.memory import check_memory
from edgevlm.runtime.vlm import open_vlm
from edgevlm.vectors import cosines

MMPROJ_TYPES = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")
# Made for the measurement where a model has no quantized level yet.
_USUAL_LEVELS = ("Q8_0", "Q4_K_M")
_N_CTX = 512


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What is measured.

    Attributes:
        images: RGB uint8 [height, width, 3] each, at least one.
        mmproj_types: levels of the projector.
        levels: of the text model; empty: those that are there, and usual ones where none is
            quantized.
        thread_counts: numbers of threads.
        device: as `open_vlm` takes it.
        gpu_layers: as `open_vlm` takes it.
    """

    images: Sequence[Pixels]
    mmproj_types: Sequence[str] = MMPROJ_TYPES
    levels: Sequence[str] = ()
    thread_counts: Sequence[int]
    device: str = "auto"
    gpu_layers: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProjectorRow:
    """One type of the projector.

    Attributes:
        level: its name.
        n_bytes: of the file.
        seconds: per image, by the number of threads.
        mean_cosine: of visual tokens with those of the 16-bit projector.
        min_cosine: of the worst visual token.
        problem: why it was not measured; "" when it was.
    """

    level: str
    n_bytes: int = 0
    seconds: Mapping[int, float] = field(default_factory=dict[int, float])
    mean_cosine: float = 0.0
    min_cosine: float = -1.0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """One level of the text model.

    Attributes:
        level: its name.
        n_bytes: of its files.
        speeds: by the number of threads.
        problem: why it was not measured; "" when it was.
    """

    level: str
    n_bytes: int = 0
    speeds: Mapping[int, TextSpeed] = field(default_factory=dict[int, TextSpeed])
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All numbers of a run.

    Attributes:
        projectors: in the order asked.
        texts: in the order asked.
        n_visual_tokens: of one image, rounded.
    """

    projectors: tuple[ProjectorRow, ...]
    texts: tuple[TextRow, ...]
    n_visual_tokens: int


def usual_thread_counts() -> tuple[int, ...]:
    """Return 1, 2, 4 ... and the number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    n_processors = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    powers = {1 << power for power in range(n_processors.bit_length())}
    return tuple(sorted({*powers, n_processors}))


def measure(
    model: ModelDir,
    options: TuneOptions,
    *,
    folder: Path,
    text: Path | None = None,
    progress: Progress = SILENT,
) -> Measured:
    """Measure every type of the projector and every level of the text model.

    Args:
        model: the model directory; nothing is written there.
        options: what is measured.
        folder: where files are made for the measurement, one at a time.
        text: the text model's file that the user named; None: every level.
        progress: told the measurements done.

    Raises:
        SourceNotFoundError: there is no projector, or no text model.
        EdgeVLMError: the 16-bit projector itself cannot be measured.
    """
    texts = _text_files(model, options, text)
    smallest = min((path for path in texts.values() if path), key=_n_bytes, default=None)
    if smallest is None:
        smallest = min((file.path for file in model.of_role("text")), key=_n_bytes, default=None)
    if smallest is None:
        raise SourceNotFoundError(
            f"`{model.folder}` has no text model to try images with",
            hint="make a level first: `edgevlm quantize`",
        )
    types = [mmproj_encoder(level).level for level in options.mmproj_types]
    order = _reference_first(model, types)
    n_steps = (len(order) + len(texts)) * len(options.thread_counts)
    with progress.task("Measuring", total=n_steps, unit="items") as advance:
        bench = _Bench(model, options, folder, smallest, advance)
        projectors = {level: bench.projector(level) for level in order}
        rows = tuple(bench.text(level, path) for level, path in texts.items())
    return Measured(
        projectors=tuple(projectors[level] for level in types),
        texts=rows,
        n_visual_tokens=bench.n_visual_tokens,
    )


def _reference_first(model: ModelDir, types: Sequence[str]) -> list[str]:
    """Return the types to measure, before them all the one that the others are held against."""
    own = model.baseline("mmproj")
    if own is None and not model.of_role("mmproj"):
        raise SourceNotFoundError(
            f"`{model.folder}` has no projector to tune",
            hint="a text model alone has nothing to choose but `--threads`",
        )
    of_16_bits = [level for level in types if level in FLOAT_LEVELS]
    first = own.level if own is not None else next(iter(of_16_bits), "F16")
    return [first, *(level for level in types if level != first)]


class _Bench:
    """Measures one file after the other; the first projector is what others are held against."""

    def __init__(
        self,
        model: ModelDir,
        options: TuneOptions,
        folder: Path,
        smallest: Path,
        advance: Callable[[int], None],
    ) -> None:
        self._model = model
        self._options = options
        self._folder = folder
        self._smallest = smallest
        self._advance = advance
        self._reference: tuple[NDArray[np.float32], ...] = ()
        self.n_visual_tokens = 0

    def projector(self, level: str) -> ProjectorRow:
        """Measure one type of the projector."""
        is_reference = not self._reference
        try:
            return self._projector(level)
        except EdgeVLMError as error:
            if is_reference:
                raise
            self._advance(len(self._options.thread_counts))
            return ProjectorRow(level=level, problem=error.message)

    def _projector(self, level: str) -> ProjectorRow:
        found = self._model.find("mmproj", level)
        own = found is not None and level in FLOAT_LEVELS
        path = found.path if found is not None and own else self._written("mmproj", level)
        try:
            speeds = {count: self._encode(path, count) for count in self._options.thread_counts}
            n_bytes = path.stat().st_size
        finally:
            if not own:
                path.unlink()
        rows = next(iter(speeds.values())).rows
        if not self._reference:
            self._reference = rows
            self.n_visual_tokens = round(sum(map(len, rows)) / len(rows))
        pairs = zip(rows, self._reference, strict=True)
        found = np.concatenate([cosines(one, other) for one, other in pairs])
        return ProjectorRow(
            level=level,
            n_bytes=n_bytes,
            seconds={count: speed.seconds for count, speed in speeds.items()},
            mean_cosine=float(found.mean()),
            min_cosine=float(found.min()),
        )

    def _encode(self, path: Path, n_threads: int) -> EncodeSpeed:
        sizes = [(image.shape[1], image.shape[0]) for image in self._options.images]
        device = self._options.device
        check_memory(self._smallest, path, n_ctx=_N_CTX, image_sizes=sizes, device=device)
        with open_vlm(
            model=self._smallest,
            mmproj=path,
            n_ctx=_N_CTX,
            n_threads=n_threads,
            device=device,
            gpu_layers=self._options.gpu_layers,
        ) as vlm:
            speed = encode_speed(vlm, self._options.images)
        self._advance(1)
        return speed

    def text(self, level: str, path: Path | None) -> TextRow:
        """Measure one level of the text model, which is made where there is no file."""
        n_left = len(self._options.thread_counts)

        def advance() -> None:
            nonlocal n_left
            n_left -= 1
            self._advance(1)

        made: Path | None = None
        try:
            if path is None:
                path = made = self._written("text", level)
            check_memory(path, None, n_ctx=_N_CTX, device=self._options.device)
            speeds = text_speed(
                path,
                self._options.thread_counts,
                device=self._options.device,
                gpu_layers=self._options.gpu_layers,
                on_done=advance,
            )
            return TextRow(level=level, n_bytes=_n_bytes(path), speeds=speeds)
        except EdgeVLMError as error:
            self._advance(n_left)
            return TextRow(level=level, problem=error.message)
        finally:
            if made is not None:
                made.unlink()

    def _written(self, role: Role, level: str) -> Path:
        return write_one(self._model, role=role, level=level, folder=self._folder)


def _text_files(
    model: ModelDir, options: TuneOptions, named: Path | None
) -> dict[str, Path | None]:
    """Return the text model's file by level, None where it is made for the measurement."""
    there = {file.level: file.path for file in reversed(model.of_role("text"))}
    if named is not None and not options.levels:
        return {level: path for level, path in there.items() if path.name == named.name}
    files: dict[str, Path | None] = {}
    for level in options.levels or _usual_levels(there):
        file = model.find("text", level)
        if file is not None:
            files[file.level] = file.path
        else:
            files[load_profile(level).name] = None
    return files


def _usual_levels(there: Iterable[str]) -> list[str]:
    levels = list(there)
    if all(level in FLOAT_LEVELS for level in levels):
        levels += [level for level in _USUAL_LEVELS if level not in levels]
    return levels


def _n_bytes(path: Path) -> int:
    return sum(part.stat().st_size for part in shard_paths(path))
