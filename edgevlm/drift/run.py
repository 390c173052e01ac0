"""From a model and questions to a drift report."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from edgevlm import __version__
from edgevlm.drift.assemble import DRAWS, Assembly, similarity_settings
from edgevlm.drift.compare import Comparison, Setup
from edgevlm.drift.gallery import most_changed
from edgevlm.drift.layers import layer_drift
from edgevlm.drift.levels import Side, baseline_of, identity, levels_of, planned_identity
from edgevlm.drift.passes import Leading
from edgevlm.drift.questions import Question, QuestionSet
from edgevlm.drift.report import DriftReport, LevelReport, Machine, PromptSet, Settings
from edgevlm.drift.saved_baseline import SavedBaseline, read_saved, restore_baseline, save_baseline
from edgevlm.drift.verdict import Limits
from edgevlm.drift.workspace import open_workspace
from edgevlm.errors import PromptError, ReferenceFileError, SourceNotFoundError
from edgevlm.files import sha256_file
from edgevlm.model_dir import ModelDir
from edgevlm.native.library import load_library
from edgevlm.native.system import n_allowed_processors, read_processor
from edgevlm.progress import SILENT, Progress
from edgevlm.runtime.threads import default_threads

# Changed when records mean something else than before.
_FORMAT = 2
# A converter's error is a thousand times smaller; another fine-tune's is larger than this.
_OTHER_CHECKPOINT_KLD = 0.5


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What is compared, and how.

    Attributes:
        levels: names or profiles; none: those that are there, else the usual ones.
        baseline: level; None: 16 or 32 bits.
        mmproj: projector for all levels; None: each level's own.
        leading: along which answers models are led.
        n_ctx: context length in tokens; None: what the questions need.
        n_threads: None for as many as the baseline is worth.
        device: as `open_vlm` takes it.
        gpu_layers: as `open_vlm` takes it.
        keep: levels that are made go into the model directory.
        layers: measure every block and every role of the text model alone.
        against: a saved baseline that levels are held against, the baseline's own files first.
        save: where the baseline is saved.
        seed: of the bootstrap.
        limits: of what is acceptable.
    """

    levels: Sequence[str] = ()
    baseline: str | None = None
    mmproj: Path | None = None
    leading: Leading
    n_ctx: int | None = None
    n_threads: int | None = None
    device: str = "auto"
    gpu_layers: int | None = None
    keep: bool = False
    layers: bool = False
    against: Path | None = None
    save: Path | None = None
    seed: int = 0
    limits: Limits = field(default_factory=Limits)


def compare(
    model: ModelDir,
    asked: QuestionSet,
    options: CompareOptions,
    *,
    named: Path | None = None,
    progress: Progress = SILENT,
) -> DriftReport:
    """Measure how levels drift from the baseline.

    What was measured stays in the cache: an interrupted run, or one with another level, goes on.

    Args:
        model: the model directory.
        asked: questions.
        options: what and how.
        named: the text model's file that the user named.
        progress: told questions.

    Raises:
        EdgeVLMError: no such level, no baseline, no room in memory or in the context, ...
    """
    started = time.perf_counter()
    name = model.manifest.name if model.manifest else model.folder.resolve().name
    machine = _machine()
    chosen = _choose(model, options, named)
    _check_sight(asked.questions, [chosen.baseline, *chosen.sides])
    setup = Setup(
        leading=options.leading,
        n_ctx=options.n_ctx,
        n_threads=options.n_threads or _threads(chosen),
        device=options.device,
        gpu_layers=options.gpu_layers,
        keep=options.keep,
    )
    with (
        open_workspace(_identity(model, chosen, asked.questions, setup, machine)) as workspace,
        Comparison(
            model=model,
            baseline=chosen.baseline,
            questions=asked.questions,
            setup=setup,
            workspace=workspace,
            saved=chosen.saved_as,
            progress=progress,
        ) as comparison,
    ):
        if options.against is not None and chosen.saved is not None:
            restore_baseline(options.against, chosen.saved, comparison, workspace)
        else:
            comparison.run_baseline()
        _check_reference(comparison)
        levels = _levels(comparison, chosen.sides, options, n_threads=setup.n_threads)
        changed = most_changed(comparison, chosen.sides)
        if options.save is not None:
            save_baseline(
                options.save,
                comparison,
                model=name,
                machine=machine,
                n_threads=setup.n_threads,
            )
    return DriftReport(
        model=name,
        baseline=chosen.baseline_name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - started, 3),
        machine=machine,
        settings=_settings(options, setup, n_ctx=comparison.n_ctx),
        prompts=_prompt_set(asked),
        levels=levels,
        changed=changed,
        notes=chosen.notes(machine, n_threads=setup.n_threads),
    )


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What is compared with what; `saved` is the baseline where that is one in a file."""

    baseline: Side
    sides: Sequence[Side]
    saved: SavedBaseline | None = None
    saved_as: str | None = None

    @property
    def baseline_name(self) -> str:
        level = self.baseline.level
        return level if self.saved is None else f"{self.saved.level}, saved before"

    def notes(self, machine: Machine, *, n_threads: int) -> list[str]:
        return self.saved.differences(machine, n_threads=n_threads) if self.saved else []


def _choose(model: ModelDir, options: CompareOptions, named: Path | None) -> _Chosen:
    mmproj = options.mmproj
    if mmproj is not None and not mmproj.is_file():
        raise SourceNotFoundError(f"no file `{mmproj}`", hint="check the path given to --mmproj")
    baseline = baseline_of(model, asked=options.baseline, named=named, mmproj=mmproj)
    sides: list[Side] = []
    if options.levels or options.against is None:
        sides = levels_of(model, options.levels, baseline=baseline, named=named, mmproj=mmproj)
    if options.against is None:
        return _Chosen(baseline=baseline, sides=sides)
    return _Chosen(
        baseline=baseline,
        # What this runtime makes of the same files comes first.
        sides=[replace(baseline), *sides],
        saved=read_saved(options.against),
        saved_as=f"saved {sha256_file(options.against)}",
    )


def _levels(
    comparison: Comparison, sides: Sequence[Side], options: CompareOptions, *, n_threads: int
) -> list[LevelReport]:
    """Run every level, and return the baseline's row and theirs."""
    for number, side in enumerate(sides, start=1):
        comparison.run_level(side, label=f"{side.level} ({number} of {len(sides)})")
    assembly = Assembly(comparison=comparison, seed=options.seed, limits=options.limits)
    rows = [assembly.level(comparison.baseline)]
    for side in sides:
        layers = None
        if options.layers:
            layers = layer_drift(comparison, side, n_threads=n_threads)
        rows.append(assembly.level(side, layers=layers))
    return rows


def _threads(chosen: _Chosen) -> int:
    # The same for all: the number of threads changes the last bits.
    sides = (chosen.baseline, *chosen.sides)
    paths = [side.text for side in sides if side.text is not None]
    return default_threads(paths[0]) if paths else n_allowed_processors()


def _check_sight(questions: Sequence[Question], sides: Sequence[Side]) -> None:
    """Raise PromptError where images are asked about and a level has no projector."""
    if not any(question.images for question in questions):
        return
    for side in sides:
        if side.mmproj_name is None:
            raise PromptError(
                f"the prompts have images, and {side.level} has no projector",
                hint="name its file with --mmproj, or give prompts without images",
            )


def _check_reference(comparison: Comparison) -> None:
    """Raise ReferenceFileError where the baseline is far from what transformers computed."""
    for index, question in enumerate(comparison.questions):
        found = comparison.base_record(index).reference
        if question.case is not None and found is not None:
            kld = float(found.kld.mean())
            if kld > _OTHER_CHECKPOINT_KLD:
                raise ReferenceFileError(
                    f"the baseline is {kld:.2f} nats from the reference at `{question.case.name}`:"
                    " it is of another checkpoint, or the conversion is wrong",
                    hint="`edgevlm verify MODEL --against REF.npz` finds which",
                )


def _identity(
    model: ModelDir,
    chosen: _Chosen,
    questions: Sequence[Question],
    setup: Setup,
    machine: Machine,
) -> str:
    """Return all that the baseline's numbers depend on."""
    baseline = chosen.baseline
    asked = [
        [
            question.prompt,
            question.digests,
            question.expected if setup.leading.along == "expected" else None,
            question.case.answer.tolist() if question.case is not None else None,
        ]
        for question in questions
    ]
    return json.dumps(
        {
            "format": _FORMAT,
            "saved": chosen.saved_as,
            "text": planned_identity(baseline, "text", "checkpoint")
            if baseline.text is None
            else identity(baseline.text, model),
            "mmproj": baseline.mmproj and identity(baseline.mmproj, model),
            "asked": asked,
            "along": setup.leading.along,
            "max_tokens": setup.leading.max_tokens,
            "n_ctx": setup.n_ctx,
            "n_threads": setup.n_threads,
            "device": [setup.device, setup.gpu_layers],
            "machine": [machine.edgevlm, machine.llama_cpp_python, machine.cpu_features],
        }
    )


def _machine() -> Machine:
    processor = read_processor()
    return Machine(
        edgevlm=__version__,
        llama_cpp_python=load_library().version,
        processor=processor.name or "unknown",
        cpu_features=sorted(processor.features),
    )


def _settings(options: CompareOptions, setup: Setup, *, n_ctx: int) -> Settings:
    return Settings(
        n_ctx=n_ctx,
        n_threads=setup.n_threads,
        device=setup.device,
        max_tokens=setup.leading.max_tokens,
        led_along=setup.leading.along,
        bootstrap_draws=DRAWS,
        seed=options.seed,
        **similarity_settings(),
    )


def _prompt_set(asked: QuestionSet) -> PromptSet:
    own = [question for question in asked.questions if question.case is None]
    n_image_prompts = sum(bool(question.images) for question in own)
    return PromptSet(
        n_prompts=len(own),
        n_image_prompts=n_image_prompts,
        n_text_prompts=len(own) - n_image_prompts,
        n_images=len({digest for question in own for digest in question.digests}),
        n_with_answer=sum(question.is_task for question in own),
        source=asked.source,
        skipped=list(asked.skipped),
    )
