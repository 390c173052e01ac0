"""Verify a model: against a reference stage by stage, or alone as far as that goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import ReferenceFileError
from edgevlm.gguf_file import GGUFFile
from edgevlm.gguf_shards import read_model
from edgevlm.model_dir import Manifest
from edgevlm.progress import SILENT, Progress
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM, open_vlm
from edgevlm.verify.reference_file import Case, Reference, image_sha256, read_reference
from edgevlm.verify.report import Stage, VerifyReport
from edgevlm.verify.self_check import check_ledger, check_sight
from edgevlm.verify.stages import (
    BOUNDS,
    IMAGE_LOGITS,
    TEXT_LOGITS,
    Bounds,
    check_embeddings,
    check_logits,
    check_pixels,
    check_tokens,
)

_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """What is verified.

    Attributes:
        text: the text model.
        mmproj: its projector, or None.
        manifest: of their folder, or None.
    """

    text: Path
    mmproj: Path | None
    manifest: Manifest | None


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
    more: Sequence[Stage] = (),
    n_threads: int | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Load a model on the CPU with the settings of a strict comparison, and check it.

    Args:
        files: the model.
        reference: what transformers computes; None: only what can be proved without.
        against: the reference in words.
        images: RGB uint8 [height, width, 3]; those of the reference are found by their hash.
        more: stages that were checked elsewhere, to stand first.
        n_threads: None for as many as the model is worth.
        progress: told the stages.

    Raises:
        EdgeVLMError: the files cannot be loaded, or no image of the reference was given.
    """
    headers = [read_model(path) for path in (files.text, files.mmproj) if path is not None]
    stages = [*more, check_ledger(files.manifest, headers)]
    bounds = BOUNDS[precision(headers)]
    cases = reference.cases if reference is not None else ()
    by_hash = {image_sha256(pixels): pixels for pixels in images}
    usable = [case for case in cases if all(image.sha256 in by_hash for image in case.images)]
    if cases and not usable:
        names = ", ".join(sorted({image.name for case in cases for image in case.images})[:5])
        raise ReferenceFileError(
            "none of the reference's images was given", hint=f"name them with --image: {names}"
        )
    with (
        open_vlm(
            model=files.text,
            mmproj=files.mmproj,
            n_ctx=_context(usable),
            n_threads=n_threads,
            device="cpu",
            strict=True,
        ) as vlm,
        progress.task("Verifying", total=5 if usable else 1) as advance,
    ):
        if files.mmproj is not None:
            stages.append(check_sight(vlm, images[0] if images else None))
            advance(1)
        for stage in _compared(vlm, usable, by_hash, bounds) if usable else ():
            stages.append(stage)
            advance(1)
    return VerifyReport(
        text_file=files.text.name,
        mmproj_file=files.mmproj.name if files.mmproj is not None else "",
        against=against,
        stages=tuple(stages),
        losses=tuple(files.manifest.losses) if files.manifest is not None else (),
        n_left_out=len(cases) - len(usable),
    )


def precision(files: Sequence[GGUFFile]) -> str:
    """Return which bounds a model is held to: "F32", "16-bit" or "quantized"."""
    types = {tensor.type for file in files for tensor in file.tensors}
    if types <= {"F32"}:
        return "F32"
    return "16-bit" if types <= set(_FLOATS) else "quantized"


def _compared(
    vlm: VLM, cases: Sequence[Case], images: Mapping[str, Pixels], bounds: Bounds
) -> list[Stage]:
    found = {image.sha256: image for case in cases for image in case.images}
    for case in cases:
        for image in case.images:
            # The same image may stand in several prompts, its embeddings with one of them only.
            if image.embeddings is not None:
                found[image.sha256] = image
    encoded = [(image, vlm.encode(images[sha256])) for sha256, image in found.items()]
    with_images = [case for case in cases if case.images]
    without = [case for case in cases if not case.images]
    return [
        check_tokens(vlm, cases, images),
        check_pixels(encoded),
        check_embeddings(encoded, bounds),
        check_logits(vlm, without, images, bounds, name=TEXT_LOGITS),
        check_logits(vlm, with_images, images, bounds, name=IMAGE_LOGITS),
    ]


def _context(cases: Sequence[Case]) -> int | None:
    """Return a context with room for the longest prompt and its answer; None for the usual one."""
    if not cases:
        return None
    longest = max(len(case.input_ids) + len(case.answer) for case in cases)
    return -(-(longest + 64) // 256) * 256
