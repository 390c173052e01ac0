"""`edgevlm compare`: its table, its documents, its exit status; what it refuses, and says."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from edgevlm.cli.app import main
from edgevlm.drift.report import DriftReport
from edgevlm.drift.schema import report_schema
from edgevlm.model_dir import open_model_dir
from tests.drift.compared import linked, some_prompts, write_prompts

FAST = ("--threads", "1", "--device", "cpu", "--max-tokens", "32")


@pytest.fixture
def model(shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))
    return str(linked(shapes_dir, tmp_path / "shapes"))


@pytest.fixture
def prompts(shapes_assets: Path, tmp_path: Path) -> str:
    return str(some_prompts(shapes_assets, tmp_path / "prompts.jsonl", 2))


def test_a_table_a_verdict_and_what_changed(
    model: str, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", model, "--prompts", prompts, "--levels", "Q4_K_M", *FAST]) == 0
    out = capsys.readouterr().out
    for expected in ("4 prompts about 2 images", "mean KLD", "Q4_K_M: within its limits", "4.88"):
        assert expected in out


def test_the_levels_that_are_there_are_compared_unless_named(
    model: str, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", model, "--prompts", prompts, "--json", *FAST]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    jsonschema.validate(document, report_schema())
    report = DriftReport.model_validate(document)
    assert report.levels[0].level == report.baseline == "F16"
    assert {level.level for level in report.levels[1:]} == {"Q8_0", "Q5_K_M", "Q4_K_M"}
    assert report.settings.n_ctx > 0
    assert report.machine.llama_cpp_python
    # The card of the model finds it again.
    kept = open_model_dir(Path(model)).manifest
    assert kept is not None
    assert DriftReport.model_validate(kept.drift["compare"]).levels == report.levels


def test_a_limit_exceeded_ends_with_3(
    model: str, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", model, "--prompts", prompts, "--levels", "Q2_K", *FAST]
    assert main([*arguments, "--max-kld", "1e-9"]) == 3
    out = capsys.readouterr().out
    assert "OVER" in out
    assert "is over 1e-09" in out
    assert main([*arguments, "--min-same-top", "1", "--max-kld", "10"]) in (0, 3)
    assert main([*arguments, "--max-kld", "10", "--max-different", "1"]) == 0


def test_markdown_goes_to_stdout_and_a_page_to_a_file(
    model: str, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    arguments = ["compare", model, "--prompts", prompts, "--levels", "Q4_K_M", *FAST]
    assert main([*arguments, "--markdown", "--html", str(page)]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("| Q4_K_M |") == 1
    assert f"wrote {page}" in captured.err
    assert "<!doctype html>" in page.read_text(encoding="utf-8").lower()
    assert main([*arguments, "--html", str(page)]) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--html", str(tmp_path / "none" / "r.html")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert main([*arguments, "--markdown", "--json"]) == 2


def test_a_folder_of_images_gets_stock_prompts_and_bad_ones_are_left_out(
    model: str, shapes_assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    good = sorted((shapes_assets / "images").glob("*.png"))[0]
    (folder / "good.png").write_bytes(good.read_bytes())
    (folder / "bad.png").write_bytes(good.read_bytes()[:60])
    arguments = ["compare", model, "--images", str(folder), "--levels", "Q8_0", "--json", *FAST]
    assert main(arguments) == 0
    report = DriftReport.model_validate_json(capsys.readouterr().out)
    assert (report.prompts.n_prompts, report.prompts.n_images) == (3, 1)
    assert len(report.prompts.skipped) == 1
    assert "bad.png" in report.prompts.skipped[0]
    (folder / "good.png").unlink()
    assert main(arguments) == 1
    assert "none of the 3 prompts has images that can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--levels", "Q9"], "Q9"),
        (["--levels", "IQ2_M"], "importance matrix"),
        (["--baseline", "Q6_K"], "no level Q6_K to compare with"),
        (["--ctx", "40"], "too long for the context of 40"),
        (["--ctx", "999999"], "the model was trained for"),
        (["--answers"], "prompts without an answer"),
        (["--reference", "none.npz"], "there is no file `none.npz`"),
        (["--against-baseline", "none.zip"], "there is no file `none.zip`"),
        (["--mmproj", "none.gguf"], "none.gguf"),
    ],
)
def test_what_cannot_be_compared_is_said(
    model: str,
    prompts: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    given = ["--levels", "Q4_K_M"] if "--levels" not in arguments else []
    assert main(["compare", model, "--prompts", prompts, *given, *FAST, *arguments]) == 1
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "hint:" in captured.err
    assert "Traceback" not in captured.err


def test_bad_prompts_are_named_by_their_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    assert main(["compare", model, "--prompts", str(path), *FAST]) == 1
    assert "line 2" in capsys.readouterr().err
    path.write_text("\n\n")
    assert main(["compare", model, "--prompts", str(path), *FAST]) == 1
    assert "holds no prompt" in capsys.readouterr().err


def test_images_must_be_given_for_a_model_of_ones_own(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = Path(model) / "edgevlm.json"
    manifest.write_text(manifest.read_text().replace('"name": "shapes"', '"name": "other"'))
    assert main(["compare", model, *FAST]) == 1
    captured = capsys.readouterr()
    assert "no images to compare `other` with" in captured.err
    assert "--images DIR" in captured.err


def test_a_projector_of_another_model_is_refused(
    model: str, prompts: str, shapes_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = str(shapes_dir / "shapes-Q8_0.gguf")
    assert main(["compare", model, "--prompts", prompts, "--mmproj", text, *FAST]) == 1
    assert "hint:" in capsys.readouterr().err


def test_keywords_and_kinds_are_scored(
    model: str, shapes_assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(sorted((shapes_assets / "images").glob("*.png"))[0])
    path = write_prompts(
        tmp_path / "p.jsonl",
        [
            {"image": image, "prompt": "Describe the image.", "keywords": ["a"], "kind": "any"},
            {"image": image, "prompt": "Describe the image.", "keywords": ["zebra"], "kind": "no"},
        ],
    )
    arguments = ["compare", model, "--prompts", str(path), "--levels", "Q8_0", "--json", *FAST]
    assert main(arguments) == 0
    tasks = DriftReport.model_validate_json(capsys.readouterr().out).levels[1].tasks
    assert tasks is not None
    assert {(kind.kind, kind.n_right) for kind in tasks.by_kind} == {("any", 1), ("no", 0)}


def test_two_images_of_one_prompt(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
    path = write_prompts(
        tmp_path / "p.jsonl", [{"images": ["0.png", "1.png"], "prompt": "Are they the same?"}]
    )
    arguments = ["compare", model, "--prompts", str(path), "--levels", "Q8_0", "--json", *FAST]
    assert main(arguments) == 0
    report = DriftReport.model_validate_json(capsys.readouterr().out)
    assert (report.prompts.n_prompts, report.prompts.n_images) == (1, 2)
    assert report.levels[1].vision is not None
    assert report.levels[1].vision.n_images == 2
