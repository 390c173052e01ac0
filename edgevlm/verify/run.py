"""Verify a model: against a reference stage by stage, or alone as far as that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import ReferenceFileError
from edgevlm.gguf_file import GGUFFile
from edgevlm.gguf_shards import read_model
from edgevlm.manifest import Manifest
from edgevlm.progress import SILENT, Progress
from edgevlm.reference_file import Case, Reference, image_sha256, read_reference
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM, open_vlm
from edgevlm.verify.compare import N_STAGES, compare, stated_losses
from edgevlm.verify.report import VerifyReport
from edgevlm.verify.self_check import check_ledger, check_sight, check_tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What is verified.

    Attributes:
        text: the text model.
        mmproj: its projector, or None.
        manifest: of their folder, or None.
        checkpoint: that they were made from, for its tokenizer; None when it is not at hand.
    """

    text: Path
    mmproj: Path | None
    manifest: Manifest | None
    checkpoint: Path | None = None


def read_or_make(
    against: Path, images: Sequence[tuple[str, Pixels]], *, progress: Progress = SILENT
) -> Reference:
    """Return the reference in a file, or that of a checkpoint, which transformers then runs.

    Args:
        against: a reference file, or a checkpoint folder.
        images: (name, RGB uint8 [height, width, 3]) to ask the checkpoint about.
        progress: told the questions answered.

    Raises:
        EdgeVLMError: see `read_reference` and `make_reference`.
    """
    if not against.is_dir():
        return read_reference(against)
    from edgevlm.verify.questions import stock_questions
    from edgevlm.verify.transformers_model import make_reference

    return make_reference(against, stock_questions(images), progress=progress)


def verify_model(
    files: ModelFiles,
    *,
    reference: Reference | None = None,
    against: str = "",
    images: Sequence[Pixels] = (),
    n_threads: int | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Load a model on the CPU with the settings of a strict comparison, and check it.

    Args:
        files: the model.
        reference: what transformers computes; None: only what can be proved without.
        against: the reference in words.
        images: RGB uint8 [height, width, 3]; those of the reference are found by their hash.
        n_threads: None for as many as the model is worth.
        progress: told the stages.

    Raises:
        EdgeVLMError: the files cannot be loaded, or no image of the reference was given.
    """
    text = read_model(files.text)
    mmproj = read_model(files.mmproj) if files.mmproj is not None else None
    headers = [file for file in (text, mmproj) if file is not None]
    stages = [
        check_tokenizer(files.text, files.manifest, files.checkpoint),
        check_ledger(files.manifest, headers),
    ]
    by_hash = {image_sha256(pixels): pixels for pixels in images}
    cases = reference.cases if reference is not None else ()
    usable = _usable(cases, by_hash, sees=mmproj is not None)
    with (
        open_vlm(
            model=files.text,
            mmproj=files.mmproj,
            n_ctx=_context(usable, text),
            n_threads=n_threads,
            device="cpu",
            strict=True,
        ) as vlm,
        progress.task("Verifying", total=1 + N_STAGES if usable else 1, unit="items") as advance,
    ):
        _check_vocabulary(vlm, usable)
        if mmproj is not None:
            stages.append(check_sight(vlm, images[0] if images else None))
            advance(1)
        for stage in compare(vlm, usable, by_hash, text=text, mmproj=mmproj) if usable else ():
            stages.append(stage)
            advance(1)
    return VerifyReport(
        text_file=files.text.name,
        mmproj_file=files.mmproj.name if files.mmproj is not None else "",
        against=against,
        stages=tuple(stages),
        losses=tuple(loss for header in headers for loss in stated_losses(header)),
        n_left_out=len(cases) - len(usable),
    )


def _usable(cases: Sequence[Case], images: Mapping[str, Pixels], *, sees: bool) -> list[Case]:
    """Return the prompts whose images were given; those without any for a model without sight.

    Raises:
        ReferenceFileError: there is none.
    """
    usable = [case for case in cases if all(image.sha256 in images for image in case.images)]
    if cases and not usable:
        names = ", ".join(sorted({image.name for case in cases for image in case.images})[:5])
        raise ReferenceFileError(
            "none of the reference's images was given", hint=f"name them with --image: {names}"
        )
    return [case for case in usable if sees or not case.images]


def _check_vocabulary(vlm: VLM, cases: Sequence[Case]) -> None:
    """Refuse token ids that the model does not have, before they reach the runtime.

    Raises:
        ReferenceFileError: there is one.
    """
    for case in cases:
        for ids in (case.answer, case.top_ids):
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vlm.n_vocab:
                raise ReferenceFileError(
                    f"the reference's prompt `{case.name}` has token ids from {int(ids.min())} to"
                    f" {int(ids.max())}; this model has {vlm.n_vocab} tokens",
                    hint="the reference is of another model: make it of this model's checkpoint",
                )


def _context(cases: Sequence[Case], file: GGUFFile) -> int | None:
    """Return a context with room for the longest prompt and its answer; None for the usual one."""
    if not cases:
        return None
    longest = max(len(case.input_ids) + len(case.answer) for case in cases)
    wanted = -(-(longest + 64) // 256) * 256
    trained = file.metadata.get(f"{file.architecture}.context_length")
    if trained is None or not isinstance(trained.value, int):
        return wanted
    return min(wanted, max(trained.value, 1))
