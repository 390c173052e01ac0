"""Goldens, converted with or without a fault, and verified against their references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.plan import OuttypeOption

from edgevlm.reference_file import read_reference
from edgevlm.verify.report import Stage, VerifyReport
from edgevlm.verify.run import ModelFiles, verify_model
from tests.convert.mutations import Mutation
from tests.goldens.files import GOLDENS, drawn_image

Golden = Callable[[str], Path]


def verified(
    checkpoint: Path,
    folder: Path,
    *,
    reference: str,
    outtype: OuttypeOption = "f32",
    fault: Mutation | None = None,
) -> VerifyReport:
    """Convert a golden's checkpoint and hold it against the reference of a golden."""
    plan = plan_conversion(checkpoint, outtype=outtype)
    files = ModelFiles(
        text=folder / "text.gguf",
        mmproj=folder / "mmproj.gguf",
        manifest=None,
        checkpoint=checkpoint,
    )
    assert files.mmproj is not None
    convert_checkpoint(
        fault(plan) if fault else plan, text_path=files.text, mmproj_path=files.mmproj
    )
    stored = read_reference(GOLDENS / reference / "reference.npz")
    names = {image.name for case in stored.cases for image in case.images}
    return verify_model(files, reference=stored, images=[drawn_image(name) for name in names])


def by_name(report: VerifyReport) -> dict[str, Stage]:
    return {stage.name: stage for stage in report.stages}
