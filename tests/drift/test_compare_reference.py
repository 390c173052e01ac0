"""The two stages side by side: what the conversion lost, and what the level lost on top."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edgevlm.build.convert import convert_model
from edgevlm.drift.questions import gather
from edgevlm.errors import ReferenceFileError
from edgevlm.reference_file import Reference, read_reference
from tests.drift.compared import compare, level_of
from tests.goldens.files import GOLDENS, drawn_image, golden_cases


@pytest.fixture(scope="module")
def folder(golden: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of a golden, with its images beside it."""
    folder = tmp_path_factory.mktemp("reference")
    convert_model(golden("qwen3_vl"), out=folder / "m", name="m", outtype="f16")
    for case in golden_cases("qwen3_vl"):
        for image in case.images:
            Image.fromarray(drawn_image(image.name)).save(folder / f"{image.name}.png")
    return folder


@pytest.fixture(scope="module")
def reference() -> Reference:
    return read_reference(GOLDENS / "qwen3_vl" / "reference.npz")


def test_both_stages_and_the_whole(
    folder: Path, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path))
    questions = gather(images=folder, reference=reference)
    report = compare(folder / "m", questions, "Q8_0", "Q4_0")
    stages = [level_of(report, level).reference for level in ("F16", "Q8_0", "Q4_0")]
    first, second, third = (stage for stage in stages if stage is not None)
    assert first.n_prompts == len(reference.cases)
    assert first.n_tokens == sum(len(case.answer) for case in reference.cases)
    # The conversion's own error, as tests/convert bounds it.
    assert 0 < first.reference_to_baseline.value < 1e-3
    assert first.baseline_to_level.value == 0
    assert first.reference_to_level == first.reference_to_baseline
    for stage in (second, third):
        assert stage.reference_to_baseline == first.reference_to_baseline
        assert stage.baseline_to_level.value == pytest.approx(
            stage.reference_to_level.value, rel=0.5
        )
    assert second.baseline_to_level.value < third.baseline_to_level.value
    # The reference's prompts are asked as well, for answers and drift of the user's own kind.
    assert report.prompts.n_prompts == len(reference.cases)


def test_without_its_images_a_reference_cannot_be_used(
    folder: Path, reference: Reference, tmp_path: Path, shapes_assets: Path
) -> None:
    seeing = Reference(
        made_by=reference.made_by, cases=tuple(case for case in reference.cases if case.images)
    )
    with pytest.raises(ReferenceFileError, match="none of the reference's images"):
        gather(images=shapes_assets / "images", reference=seeing)
    some = gather(images=folder, reference=reference)
    assert not some.skipped


def test_a_reference_of_another_checkpoint_is_refused(
    reference: Reference,
    folder: Path,
    golden: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))
    # The same architecture and tokenizer, other weights.
    convert_model(golden("qwen3_vl_moe"), out=tmp_path / "m", name="m", outtype="f16")
    questions = gather(images=folder, reference=reference)
    with pytest.raises(ReferenceFileError, match=r"another checkpoint|another way|token ids"):
        compare(tmp_path / "m", questions, "Q8_0")
