"""Images that the runtime resizes otherwise: warned about, and never taken for another fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from numpy.typing import NDArray

from edgevlm.reference_file import Case, CaseImage, Reference
from edgevlm.verify.embeddings import EMBEDDINGS
from edgevlm.verify.logits import IMAGE_LOGITS, TEXT_LOGITS
from edgevlm.verify.pixels import PIXELS
from edgevlm.verify.report import VerifyReport
from edgevlm.verify.run import ModelFiles, verify_model
from edgevlm.verify.tokens import TOKENS
from tests.goldens.files import drawn_image, golden_cases
from tests.verify.converted import Golden, by_name

Pixels = NDArray[np.float32]


@pytest.fixture
def files(golden: Golden, tmp_path: Path) -> ModelFiles:
    text, mmproj = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    plan = plan_conversion(golden("qwen3_vl"), outtype="f32")
    convert_checkpoint(plan, text_path=text, mmproj_path=mmproj)
    return ModelFiles(text=text, mmproj=mmproj, manifest=None)


def verified(
    files: ModelFiles, change: Callable[[CaseImage], CaseImage], only: str = ""
) -> VerifyReport:
    """Hold the model against its reference with changed images, one of them or all."""

    def changed(case: Case) -> Case:
        images = (change(one) if only in one.name else one for one in case.images)
        return replace(case, images=tuple(images))

    cases = tuple(changed(case) for case in golden_cases("qwen3_vl"))
    names = {image.name for case in cases for image in case.images}
    reference = Reference(made_by="", cases=cases)
    return verify_model(files, reference=reference, images=[drawn_image(name) for name in names])


def _pixels(change: Callable[[Pixels], Pixels]) -> Callable[[CaseImage], CaseImage]:
    return lambda image: replace(image, pixels=tuple(change(tile) for tile in image.pixels))


def _noise(tile: Pixels) -> Pixels:
    signs = np.where(np.random.PCG64(1).random_raw(tile.size) % 2, 1, -1).astype(np.float32)
    noise = np.float32(0.008) * signs.reshape(tile.shape)
    return (tile + noise).astype(np.float32)


def _padded(tile: Pixels) -> Pixels:
    changed = tile.copy()
    changed[:, : tile.shape[1] // 4] = 0
    return changed


def test_rounding_is_a_warning_and_the_rest_is_compared(files: ModelFiles) -> None:
    stages = by_name(verified(files, _pixels(_noise)))
    assert stages[PIXELS].status == "warn"
    assert "rounds otherwise" in stages[PIXELS].cause
    assert stages[EMBEDDINGS].status == stages[IMAGE_LOGITS].status == "pass"


def test_what_follows_from_rounding_is_no_more_than_a_warning(files: ModelFiles) -> None:
    def change(image: CaseImage) -> CaseImage:
        assert image.embeddings is None or image.embeddings.size
        rows = image.embeddings * np.float32(1.5) if image.embeddings is not None else None
        return replace(_pixels(_noise)(image), embeddings=rows)

    report = verified(files, change)
    stage = by_name(report)[EMBEDDINGS]
    assert (stage.status, report.verdict) == ("warn", "warn")
    assert f"follows from `{PIXELS}`" in stage.cause


def test_an_image_cut_otherwise_is_left_out(files: ModelFiles) -> None:
    report = verified(files, _pixels(_padded))
    stages = by_name(report)
    assert stages[PIXELS].status == report.verdict == "warn"
    assert "an image of 32x80 needs no resizing" in stages[PIXELS].cause
    assert stages[EMBEDDINGS].status == stages[IMAGE_LOGITS].status == "not checked"
    assert stages[TOKENS].status == stages[TEXT_LOGITS].status == "pass"


def test_the_others_are_compared_all_the_same(files: ModelFiles) -> None:
    stages = by_name(verified(files, _pixels(_padded), only="48x64-1"))
    assert stages[PIXELS].summary.startswith("2 of 3 images are equal; 48x64-1")
    assert stages[EMBEDDINGS].status == stages[IMAGE_LOGITS].status == "pass"
    # "another image" and "two images": 16 positions each.
    assert stages[IMAGE_LOGITS].numbers["n_positions"] == 32


def test_another_size_fails(files: ModelFiles) -> None:
    stages = by_name(verified(files, _pixels(lambda tile: tile[:, :, :32])))
    assert stages[PIXELS].status == "fail"
    assert "64x48 here, 32x48 in transformers" in stages[PIXELS].summary


def test_rows_in_another_order(files: ModelFiles) -> None:
    def change(image: CaseImage) -> CaseImage:
        if image.embeddings is None:
            return image
        return replace(image, embeddings=np.ascontiguousarray(image.embeddings[::-1]))

    stage = by_name(verified(files, change))[EMBEDDINGS]
    assert stage.status == "fail"
    assert "in another order" in stage.cause


def test_another_number_of_rows(files: ModelFiles) -> None:
    def change(image: CaseImage) -> CaseImage:
        rows = image.embeddings
        return replace(image, embeddings=rows[1:] if rows is not None else None)

    stage = by_name(verified(files, change))[EMBEDDINGS]
    assert stage.status == "fail"
    assert "another number of visual tokens" in stage.cause
