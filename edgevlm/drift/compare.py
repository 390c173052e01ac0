"""A comparison: every level is led along the baseline's answers, one pair of files at a time.

Passes, each over the questions that its records lack: the baseline; every level with the projector
it ships with; for what is lost where, the level's text model with the baseline's projector and the
reverse. Images are encoded once for each projector. Only one text model is loaded at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgevlm.build.cache import scratch_folder
from edgevlm.build.quantize import quantize_model
from edgevlm.build.write_level import WrittenLevel, write_level
from edgevlm.drift.kept_rows import KeptRows
from edgevlm.drift.levels import Side, identity, planned_identity, sizes_of
from edgevlm.drift.passes import Leading, open_probe, run_baseline, run_level
from edgevlm.drift.questions import Question
from edgevlm.drift.records import Record, load_record, save_record
from edgevlm.drift.rows_file import load_rows, save_rows
from edgevlm.drift.speed import text_speed
from edgevlm.drift.workspace import Pair, Workspace
from edgevlm.errors import DriftError
from edgevlm.files import human_bytes
from edgevlm.gguf_shards import read_model
from edgevlm.model_dir import ModelDir
from edgevlm.native.peak_memory import forget_peak_memory, peak_memory_n_bytes
from edgevlm.progress import SILENT, Progress
from edgevlm.runtime.memory import check_memory
from edgevlm.runtime.vlm import VLM, open_vlm

_ROUND = 256
_CONTEXT = ("context", "")
# Flat distributions are kept whole, a megabyte a token for a large vocabulary.
MAX_ROWS_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How models are loaded and led; the same for all of them.

    Attributes:
        leading: along which answers, and how long those are.
        n_ctx: context length in tokens; None: what the questions need.
        n_threads: threads.
        device: as `open_vlm` takes it.
        gpu_layers: as `open_vlm` takes it.
        keep: levels that are made go into the model directory.
    """

    leading: Leading
    n_ctx: int | None
    n_threads: int
    device: str = "auto"
    gpu_layers: int | None = None
    keep: bool = False


class Comparison:
    """Runs passes and keeps their records.

    Args:
        model: the model directory.
        baseline: what levels are held against.
        questions: what is asked.
        setup: how.
        workspace: where records are kept.
        saved: what tells a saved baseline from others, where the baseline's records are from one.
        progress: told each question of a pass.

    A context manager: the baseline's files, where they had to be made, go when it ends.

    Attributes:
        base_keys: what tells the baseline's text model and projector from others.
    """

    def __init__(
        self,
        *,
        model: ModelDir,
        baseline: Side,
        questions: Sequence[Question],
        setup: Setup,
        workspace: Workspace,
        saved: str | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.baseline = baseline
        self.questions = questions
        self.workspace = workspace
        self._model = model
        self._setup = setup
        self._progress = progress
        self._stack = ExitStack()
        self._base_files: WrittenLevel | None = None
        self._records: dict[tuple[Pair, int], Record] = {}
        # What another run found is found again: the context decides the last bits.
        self._n_ctx = setup.n_ctx or workspace.facts(_CONTEXT).get("n_ctx")
        text, mmproj = self._keys(baseline, source="checkpoint")
        self.base_keys = (saved or text, mmproj)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def base_files(self) -> WrittenLevel:
        """Return the baseline's files; they are made once, where they are not there."""
        if self._base_files is None:
            self._base_files = self._stack.enter_context(self.files(self.baseline))
        return self._base_files

    @property
    def n_ctx(self) -> int:
        """Context length in tokens, once a model was loaded."""
        return self._n_ctx or 0

    @property
    def image_indices(self) -> list[int]:
        """Questions of the user's own that are about images."""
        return [
            index
            for index, question in enumerate(self.questions)
            if question.images and question.case is None
        ]

    def keys(self, side: Side) -> Pair:
        """Return what tells a side's text model and projector from others."""
        if side is self.baseline:
            return self.base_keys
        return self._keys(side, source=self.base_keys[0])

    def _keys(self, side: Side, *, source: str) -> Pair:
        if side.text is not None:
            text = identity(side.text, self._model)
        else:
            text = planned_identity(side, "text", source)
        if side.mmproj is not None:
            return text, identity(side.mmproj, self._model)
        return text, planned_identity(side, "mmproj", "the baseline")

    def base_record(self, index: int) -> Record:
        """Return the baseline's record of a question.

        Raises:
            LookupError: it is not there.
        """
        return self.record(self.base_keys, index)

    def base_paths(self, index: int) -> tuple[Path, Path]:
        """Return where the baseline's record and distributions of a question are."""
        pair = self.base_keys
        return self.workspace.record_path(pair, index), self.workspace.rows_path(index)

    @property
    def leading(self) -> Leading:
        """How models are led."""
        return self._setup.leading

    def record(self, pair: Pair, index: int) -> Record:
        """Return the record of a question at a text model with a projector.

        Raises:
            LookupError: it is not there.
        """
        record = self._record(pair, index)
        if record is None:
            raise LookupError(f"no record of question {index}")
        return record

    def run_baseline(self) -> None:
        """Answer every question at the baseline."""
        pair = self.base_keys
        missing = [
            index
            for index in range(len(self.questions))
            if self._record(pair, index) is None
            or load_rows(self.workspace.rows_path(index)) is None
        ]
        if not missing and self.workspace.facts(pair):
            return

        paths = [self.workspace.rows_path(index) for index in range(len(self.questions))]
        n_bytes = sum(path.stat().st_size for path in paths if path.exists())

        def ask(vlm: VLM, index: int) -> None:
            nonlocal n_bytes
            known = self.workspace.images(self.base_keys[1])
            record, rows = run_baseline(vlm, self.questions[index], known, self._setup.leading)
            n_bytes += rows.n_bytes
            self._check_rows(n_bytes)
            save_rows(self.workspace.rows_path(index), rows)
            self._keep(pair, index, record)

        self._pass(f"Baseline {self.baseline.level}", pair, self.base_files(), missing, ask)

    def run_level(self, side: Side, *, label: str) -> None:
        """Lead a level with its own projector along everything, and tell its errors apart."""
        text, mmproj = self.keys(side)
        base_text, base_mmproj = self.base_keys
        every, seen = list(range(len(self.questions))), self.image_indices
        parts = [(text, mmproj, every, True)]
        if seen and mmproj != base_mmproj and text != base_text:
            parts += [(text, base_mmproj, seen, False), (base_text, mmproj, seen, False)]
        missing = [self.missing((one, two), indices) for one, two, indices, _ in parts]
        if not any(missing) and self.facts((text, mmproj)):
            return
        with self.files(side) as own:
            base = self.base_files() if len(parts) > 1 else own
            pairs = (
                own,
                WrittenLevel(text=own.text, mmproj=base.mmproj),
                WrittenLevel(text=base.text, mmproj=own.mmproj),
            )
            names = (label, f"{label}, baseline's mmproj", f"{label}, its mmproj alone")
            for name, files, (one, two, _, answers), indices in zip(
                names, pairs, parts, missing, strict=False
            ):
                self.lead(name, (one, two), files, indices, answers=answers)

    def lead(
        self,
        label: str,
        pair: Pair,
        files: WrittenLevel,
        indices: Sequence[int],
        *,
        answers: bool,
    ) -> None:
        """Lead one pair of files along the baseline's answers to some questions."""
        known = self.workspace.images(pair[1])

        def ask(vlm: VLM, index: int) -> None:
            record = run_level(
                vlm,
                self.questions[index],
                known,
                base=self.base_record(index),
                rows=self._rows(index),
                max_tokens=self._setup.leading.max_tokens,
                answers=answers,
            )
            self._keep(pair, index, record)

        self._pass(label, pair, files, indices, ask, is_measured=answers)

    def facts(self, pair: Pair) -> dict[str, object]:
        """Return sizes and speeds of a text model with a projector."""
        return self.workspace.facts(pair)

    @contextmanager
    def files(self, side: Side) -> Generator[WrittenLevel]:
        """Yield a side's files; what is made for it is removed again, unless it is to be kept."""
        if side.plan is None and side.text is not None:
            yield WrittenLevel(text=side.text, mmproj=side.mmproj)
            return
        if side.plan is None:
            raise ValueError("a side has files or a plan")
        if self._setup.keep:
            built = quantize_model(side.plan, progress=self._progress)
            names = {entry.role: entry.name for entry in built.written}
            own = built.folder / names["mmproj"] if "mmproj" in names else None
            yield WrittenLevel(text=built.folder / names["text"], mmproj=side.mmproj or own)
            return
        with scratch_folder("compare") as folder:
            made = write_level(side.plan, folder, progress=self._progress)
            yield WrittenLevel(text=made.text, mmproj=side.mmproj or made.mmproj)

    def missing(self, pair: Pair, indices: Sequence[int]) -> list[int]:
        """Return the questions of which a pair of files has no record."""
        return [index for index in indices if self._record(pair, index) is None]

    def _check_rows(self, n_bytes: int) -> None:
        """Raise DriftError where the baseline's distributions take more than the disk is for."""
        if n_bytes > MAX_ROWS_BYTES:
            raise DriftError(
                f"the baseline's distributions take more than {human_bytes(MAX_ROWS_BYTES)}: they"
                " are flat, as those of an untrained model",
                hint="give fewer prompts, or shorter answers with --max-tokens",
            )

    def _record(self, pair: Pair, index: int) -> Record | None:
        """Return a record, read once; None where there is none that is whole."""
        record = self._records.get((pair, index))
        if record is None:
            record = load_record(self.workspace.record_path(pair, index))
            if record is not None:
                self._records[pair, index] = record
        return record

    def _keep(self, pair: Pair, index: int, record: Record) -> None:
        save_record(self.workspace.record_path(pair, index), record)
        self._records[pair, index] = record

    def _rows(self, index: int) -> KeptRows:
        rows = load_rows(self.workspace.rows_path(index))
        if rows is None:
            raise LookupError(f"no distributions of question {index}")
        return rows

    def _pass(
        self,
        label: str,
        pair: Pair,
        files: WrittenLevel,
        indices: Sequence[int],
        ask: Callable[[VLM, int], None],
        *,
        is_measured: bool = True,
    ) -> None:
        sees = any(question.images for question in self.questions)
        mmproj = files.mmproj if sees else None
        if indices and self._n_ctx is None:
            self._n_ctx = self._needed_context(files.text, mmproj)
            self.workspace.add_facts(_CONTEXT, {"n_ctx": self._n_ctx})
        watched = forget_peak_memory()
        if indices:
            with (
                self._opened(files.text, mmproj) as vlm,
                self._progress.task(label, total=len(indices), unit="items") as advance,
            ):
                for index in indices:
                    ask(vlm, index)
                    advance(1)
        if not is_measured or ("decode" in self.facts(pair) and not indices):
            return
        facts = sizes_of(files)
        if watched and indices:
            facts["peak"] = peak_memory_n_bytes()
        n_threads = self._setup.n_threads
        with self._progress.task(f"{label}, speed", total=1, unit="items"):
            speed = text_speed(
                files.text,
                (n_threads,),
                device=self._setup.device,
                gpu_layers=self._setup.gpu_layers,
            )[n_threads]
        self.workspace.add_facts(pair, {**facts, "prefill": speed.prefill, "decode": speed.decode})

    @contextmanager
    def _opened(self, text: Path, mmproj: Path | None) -> Generator[VLM]:
        setup = self._setup
        check_memory(
            text, mmproj, n_ctx=self._n_ctx, device=setup.device, gpu_layers=setup.gpu_layers
        )
        with open_vlm(
            model=text,
            mmproj=mmproj,
            n_ctx=self._n_ctx,
            n_threads=setup.n_threads,
            device=setup.device,
            gpu_layers=setup.gpu_layers,
        ) as vlm:
            yield vlm

    def _needed_context(self, text: Path, mmproj: Path | None) -> int:
        """Return a context with room for the longest question and its answer."""
        file, longest = read_model(text), 0
        entry = file.metadata.get(f"{file.architecture}.context_length")
        trained = entry.value if entry is not None and isinstance(entry.value, int) else _ROUND
        with open_vlm(model=text, mmproj=mmproj, n_ctx=min(_ROUND, trained), device="cpu") as vlm:
            for question in self.questions:
                probe = open_probe(vlm, question, self.workspace.images("none"))
                n_answer = self._setup.leading.max_tokens
                if question.case is not None:
                    n_answer = len(question.case.answer)
                elif self._setup.leading.along == "expected" and question.expected is not None:
                    n_answer = max(n_answer, len(vlm.tokenize(question.expected)))
                longest = max(longest, probe.layout.n_tokens + n_answer)
        return min(-(-(longest + 1) // _ROUND) * _ROUND, trained)
