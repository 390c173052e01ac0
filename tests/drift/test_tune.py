"""What is chosen from measurements, and what a run measures; nothing here looks at a clock."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from edgevlm.build.convert import convert_model
from edgevlm.drift.images import read_images
from edgevlm.drift.speed import TextSpeed
from edgevlm.drift.tune import (
    Measured,
    ProjectorRow,
    TextRow,
    TuneOptions,
    measure,
    usual_thread_counts,
)
from edgevlm.drift.tuned_profile import choose, plain_name, write_profile
from edgevlm.errors import OutputExistsError, QuantizationError, SourceNotFoundError
from edgevlm.model_dir import ModelDir, open_model_dir
from edgevlm.quantize.profile_file import load_profile


def _projector(
    level: str, seconds: dict[int, float], cosine: float, n_bytes: int = 10
) -> ProjectorRow:
    return ProjectorRow(
        level=level, n_bytes=n_bytes, seconds=seconds, mean_cosine=cosine, min_cosine=cosine
    )


def _text(level: str, **tok_per_sec: float) -> TextRow:
    speeds = {int(n[1:]): TextSpeed(prefill=10 * v, decode=v) for n, v in tok_per_sec.items()}
    return TextRow(level=level, n_bytes=5, speeds=speeds)


def _measured(*projectors: ProjectorRow, texts: tuple[TextRow, ...] = ()) -> Measured:
    return Measured(
        projectors=projectors,
        texts=texts or (_text("Q4_K_M", t1=10, t4=32),),
        n_visual_tokens=128,
    )


def test_the_fastest_within_the_bound_is_chosen() -> None:
    measured = _measured(
        _projector("F16", {1: 4.0, 4: 1.0}, 1.0),
        _projector("Q8_0", {1: 3.0, 4: 0.8}, 0.999),
        _projector("Q4_0", {1: 2.0, 4: 0.5}, 0.95),
    )
    choice = choose(measured, level="Q4_K_M", min_cosine=0.99)
    assert (choice.projector.level, choice.n_threads) == ("Q8_0", 4)
    # 160 tokens in at 320 a second and 64 out at 32: half a second and two, behind the encode.
    assert choice.seconds[4] == pytest.approx(0.8 + 0.5 + 2.0)
    assert choose(measured, level="Q4_K_M", min_cosine=0.9).projector.level == "Q4_0"


def test_of_equally_fast_types_the_smallest_is_chosen() -> None:
    measured = _measured(
        _projector("F16", {1: 1.00}, 1.0, n_bytes=100),
        _projector("Q8_0", {1: 1.04}, 0.999, n_bytes=50),
        _projector("Q6_K", {1: 1.20}, 0.999, n_bytes=40),
        texts=(_text("Q4_K_M", t1=10),),
    )
    assert choose(measured, level="Q4_K_M", min_cosine=0.99).projector.level == "Q8_0"


def test_the_type_is_the_fastest_at_the_threads_that_are_best_for_all() -> None:
    # Two threads encode F16 fastest, but make the answer wait.
    measured = _measured(
        _projector("F16", {1: 1.0, 2: 0.5}, 1.0),
        _projector("Q8_0", {1: 0.8, 2: 0.9}, 1.0),
        texts=(_text("Q4_K_M", t1=10, t2=1),),
    )
    choice = choose(measured, level="Q4_K_M", min_cosine=0.99)
    assert (choice.projector.level, choice.n_threads) == ("Q8_0", 1)


def test_a_level_that_was_not_measured_is_judged_by_the_first_that_was() -> None:
    failed = TextRow(level="F16", problem="too large")
    measured = _measured(_projector("F16", {1: 1.0}, 1.0), texts=(failed, _text("Q8_0", t1=3)))
    assert choose(measured, level="Q5_0", min_cosine=0.99).text.level == "Q8_0"


def test_nothing_to_choose_from_is_an_error_that_says_why() -> None:
    rows = (_projector("Q4_0", {1: 1.0}, 0.97), ProjectorRow(level="F16", problem="overflow"))
    with pytest.raises(QuantizationError, match=r"0\.99 \(the best: 0\.9700\)"):
        choose(_measured(*rows), level="Q8_0", min_cosine=0.99)
    failed = (TextRow(level="F16", problem="too large"),)
    with pytest.raises(QuantizationError, match="F16: too large"):
        choose(_measured(*rows, texts=failed), level="Q8_0", min_cosine=0.9)


def test_the_profile_is_one_that_quantize_takes(tmp_path: Path) -> None:
    choice = choose(
        _measured(_projector("Q5_K", {1: 1.0, 4: 0.3}, 0.9995)), level="Q4_K_M", min_cosine=0.99
    )
    path = tmp_path / "mine-tuned.toml"
    for force in (False, True):
        write_profile(
            path,
            name="mine-tuned",
            level="Q4_K_M",
            choice=choice,
            machine='Cortex-A76\n"type = 1',
            force=force,
        )
    profile, base = load_profile(str(path)), load_profile("Q4_K_M")
    assert (profile.name, profile.mmproj.type) == ("mine-tuned", "Q5_K")
    assert (profile.type, profile.rules, profile.budget) == (base.type, base.rules, base.budget)
    assert set(tomllib.loads(path.read_text())) == {"name", "description", "extends", "mmproj"}
    assert "--threads 4" in path.read_text()
    with pytest.raises(OutputExistsError):
        write_profile(
            path, name="x", level="Q4_K_M", choice=choice, machine="this machine", force=False
        )


@pytest.mark.parametrize(
    ("model", "name"),
    [("shapes", "shapes"), ("My model (2B)", "My-model-2B"), ("../x", "x"), ("\u4e2d", "model")],
)
def test_the_profiles_name_can_stand_in_a_file_name(model: str, name: str) -> None:
    assert plain_name(model) == name


def test_usual_thread_counts_end_with_all_processors() -> None:
    counts = usual_thread_counts()
    assert counts[0] == 1
    assert list(counts) == sorted(set(counts))


def test_a_run_measures_types_and_levels_and_leaves_no_file(
    shapes_dir: Path, shapes_assets: Path, tmp_path: Path
) -> None:
    model = open_model_dir(shapes_dir)
    before = sorted(shapes_dir.iterdir())
    images = read_images(shapes_assets / "images", n_most=2, side=96)
    assert [image.shape for image in images] == [(96, 96, 3)] * 2
    measured = measure(
        model,
        TuneOptions(
            images=images,
            mmproj_types=("q8_0", "F16", "Q4_0"),
            levels=("q4_k_m", "Q5_0"),
            thread_counts=(1,),
            device="cpu",
        ),
        folder=tmp_path,
    )
    assert [row.level for row in measured.projectors] == ["Q8_0", "F16", "Q4_0"]
    eight, sixteen, four = measured.projectors
    assert sixteen.min_cosine == pytest.approx(1.0, abs=1e-6)
    assert four.min_cosine < eight.min_cosine < sixteen.min_cosine
    assert four.n_bytes < eight.n_bytes < sixteen.n_bytes
    assert all(row.seconds[1] > 0 for row in measured.projectors)
    assert [row.level for row in measured.texts] == ["Q4_K_M", "Q5_0"]
    assert all(row.speeds[1].prefill > 0 < row.speeds[1].decode for row in measured.texts)
    assert measured.n_visual_tokens == 9
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".gguf"]
    assert sorted(shapes_dir.iterdir()) == before


def test_a_type_that_cannot_be_made_is_said_and_the_others_are_measured(
    shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: ModelDir, **options: object) -> Path:
        raise QuantizationError(f"no {options['level']}")

    monkeypatch.setattr("edgevlm.drift.tune.write_one", fail)
    image = np.zeros((64, 64, 3), np.uint8)
    options = TuneOptions(
        images=[image], mmproj_types=("F16", "Q4_0"), levels=("Q8_0", "Q5_0"), thread_counts=(1,)
    )
    measured = measure(open_model_dir(shapes_dir), options, folder=tmp_path)
    assert [row.problem for row in measured.projectors] == ["", "no Q4_0"]
    assert [row.problem for row in measured.texts] == ["", "no Q5_0"]


def test_a_model_without_a_projector_has_nothing_to_tune(shapes_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "shapes-Q8_0.gguf").write_bytes((shapes_dir / "shapes-Q8_0.gguf").read_bytes())
    options = TuneOptions(images=[np.zeros((64, 64, 3), np.uint8)], thread_counts=(1,))
    with pytest.raises(SourceNotFoundError, match="no projector"):
        measure(open_model_dir(tmp_path), options, folder=tmp_path)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="no image"):
        read_images(tmp_path, n_most=2)


def test_a_projector_in_16_bits_is_enough_beside_a_quantized_text_model(
    shapes_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name in ("shapes-Q4_K_M.gguf", "mmproj-shapes-F16.gguf"):
        (folder / name).write_bytes((shapes_dir / name).read_bytes())
    options = TuneOptions(
        images=[np.zeros((64, 64, 3), np.uint8)], mmproj_types=("Q5_K",), thread_counts=(1,)
    )
    measured = measure(open_model_dir(folder), options, folder=tmp_path)
    assert [(row.level, row.problem) for row in measured.projectors] == [("Q5_K", "")]
    assert [(row.level, row.problem) for row in measured.texts] == [("Q4_K_M", "")]


def test_without_16_bit_files_the_checkpoint_is_the_source(
    shapes_checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    convert_model(shapes_checkpoint, out=folder, name="shapes", level="Q4_0")
    options = TuneOptions(
        images=[np.zeros((64, 64, 3), np.uint8)], mmproj_types=("Q6_K",), thread_counts=(1,)
    )
    measured = measure(open_model_dir(folder), options, folder=tmp_path)
    assert [(row.level, row.problem) for row in measured.projectors] == [("Q6_K", "")]
    # Held against F16, which was made for it.
    assert 0.99 < measured.projectors[0].min_cosine < 1
    assert [row.level for row in measured.texts] == ["Q4_0"]
