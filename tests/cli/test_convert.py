"""`edgevlm convert` and `edgevlm quantize` as a user types them."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest

from edgevlm.cli import console
from edgevlm.cli.app import main
from edgevlm.files import sha256_file
from edgevlm.gguf_file import read_gguf


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    capsys.readouterr()
    assert main(list(arguments)) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_convert_prints_the_ledger_and_the_files(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    out, err = run(capsys, "convert", str(shapes_checkpoint), "--name", "s", "--out", str(folder))
    n_tensors = len(json.loads((folder / "edgevlm.json").read_text())["ledger"]["used"])
    assert f"{n_tensors} used, 0 dropped" in out
    assert "s-BF16.gguf" in out
    assert "mmproj-s-BF16.gguf" in out
    assert "peak memory" in err
    assert f"edgevlm chat IMAGE -m {folder}" in err


def test_names_are_never_folded(
    shapes_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    shown = StringIO()
    monkeypatch.setattr(console, "out", lambda: Console(file=shown, width=60))
    name = "a-model-with-a-long-name"
    source = ["convert", str(shapes_checkpoint), "--name", name, "--out", str(tmp_path / "m")]
    assert main([*source, "--split-max-size", "2M"]) == 0
    lines = shown.getvalue().splitlines()
    assert {f"{name}-BF16-*-of-00004.gguf", f"mmproj-{name}-BF16.gguf"} <= set(lines)
    assert "  BF16, 6.5 MB, 16.01 bits per weight" in lines
    assert max(map(len, lines)) <= 60


def test_convert_json_is_one_document(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    out, err = run(
        capsys,
        *("convert", str(shapes_checkpoint), "--name", "s", "--out", str(folder)),
        *("--level", "Q4_K_M", "--json"),
    )
    assert err == ""
    document = json.loads(out)
    text, mmproj = document["files"]
    assert (text["name"], text["level"]) == ("s-Q4_K_M.gguf", "Q4_K_M")
    assert (mmproj["name"], mmproj["level"]) == ("mmproj-s-Q8_0.gguf", "Q8_0")
    file = read_gguf(folder / "s-Q4_K_M.gguf")
    assert text["bits_per_weight"] == pytest.approx(file.bits_per_weight, abs=1e-4)
    assert {name: count["n_tensors"] for name, count in text["tensor_types"].items()} == {
        name: count.n_tensors for name, count in file.type_histogram().items()
    }
    ledger = document["ledger"]
    assert ledger["n_source_tensors"] == len(ledger["used"]) + len(ledger["dropped"])
    assert all(ledger["used"].values())
    assert document["peak_rss_bytes"] > 0


@pytest.mark.parametrize(("outtype", "level"), [("f16", "F16"), ("bf16", "BF16"), ("f32", "F32")])
def test_outtype(
    outtype: str,
    level: str,
    shapes_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(
        capsys,
        *("convert", str(shapes_checkpoint), "--name", "s", "--out", str(tmp_path / "m")),
        *("--outtype", outtype),
    )
    for name in (f"s-{level}.gguf", f"mmproj-s-{level}.gguf"):
        assert level in read_gguf(tmp_path / "m" / name).type_histogram()


def test_one_pass_equals_two(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    source = (str(shapes_checkpoint), "--name", "s")
    run(capsys, "convert", *source, "--out", str(one), "--level", "Q4_K_M")
    run(capsys, "convert", *source, "--out", str(two))
    run(capsys, "quantize", str(two), "--level", "Q4_K_M")
    for name in ("s-Q4_K_M.gguf", "mmproj-s-Q8_0.gguf"):
        assert sha256_file(one / name) == sha256_file(two / name)


def test_a_second_level_keeps_the_projector(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("convert", str(shapes_checkpoint), "--name", "s", "--out", str(tmp_path / "m"))
    run(capsys, *arguments, "--level", "Q4_K_M")
    before = (tmp_path / "m" / "mmproj-s-Q8_0.gguf").stat().st_ino
    _, err = run(capsys, *arguments, "--level", "Q5_K_M")
    assert "kept mmproj-s-Q8_0.gguf" in err
    assert (tmp_path / "m" / "mmproj-s-Q8_0.gguf").stat().st_ino == before
    manifest = json.loads((tmp_path / "m" / "edgevlm.json").read_text())
    assert [entry["name"] for entry in manifest["files"]] == [
        "s-Q4_K_M.gguf",
        "mmproj-s-Q8_0.gguf",
        "s-Q5_K_M.gguf",
    ]


def test_quantize_without_a_16_bit_file_goes_back_to_the_checkpoint(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    arguments = ("convert", str(shapes_checkpoint), "--name", "s", "--out", str(folder))
    run(capsys, *arguments, "--level", "Q4_K_M")
    run(capsys, "quantize", str(folder), "--level", "Q8_0")
    assert {path.name for path in folder.glob("s-*.gguf")} == {"s-Q4_K_M.gguf", "s-Q8_0.gguf"}


def test_mmproj_level(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    run(
        capsys,
        *("convert", str(shapes_checkpoint), "--name", "s", "--out", str(folder)),
        *("--level", "Q8_0", "--mmproj-level", "f16"),
    )
    assert (folder / "mmproj-s-F16.gguf").exists()
    assert main(["quantize", str(folder), "--level", "Q8_0", "--mmproj-level", "Q2_K"]) == 1
    assert "F16, BF16, Q8_0" in capsys.readouterr().err


def test_dry_run_writes_nothing_and_tells_the_exact_size(
    shapes_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("shapes-F16.gguf", "mmproj-shapes-F16.gguf"):
        (tmp_path / name).write_bytes((shapes_dir / name).read_bytes())
    out, _ = run(capsys, "quantize", str(tmp_path), "--level", "Q4_K_M", "--dry-run", "--json")
    assert len(list(tmp_path.iterdir())) == 2
    planned = json.loads(out)["files"]
    run(capsys, "quantize", str(tmp_path), "--level", "Q4_K_M")
    assert len(planned) == 2
    for file in planned:
        assert (tmp_path / file["name"]).stat().st_size == file["n_bytes"]


def test_quantize_names_one_file(
    shapes_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tuned-F16.gguf").write_bytes((shapes_dir / "shapes-F16.gguf").read_bytes())
    out, _ = run(capsys, "quantize", str(tmp_path / "tuned-F16.gguf"), "--level", "Q8_0")
    assert "tuned-Q8_0.gguf" in out
    assert sha256_file(tmp_path / "tuned-Q8_0.gguf") == sha256_file(shapes_dir / "shapes-Q8_0.gguf")


def test_own_profile(shapes_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgevlm.quantize.profile_file import profile_folder

    for name in ("shapes-F16.gguf", "mmproj-shapes-F16.gguf"):
        (tmp_path / name).write_bytes((shapes_dir / name).read_bytes())
    profile = (profile_folder() / "Q8_0.toml").read_text()
    own = tmp_path / "own.toml"
    own.write_text(profile.replace('name = "Q8_0"', 'name = "mine"'))
    run(capsys, "quantize", str(tmp_path), "--level", str(own))
    assert (tmp_path / "shapes-mine.gguf").exists()
    own.write_text(profile.replace('name = "Q8_0"', 'name = "../mine"'))
    assert main(["quantize", str(tmp_path), "--level", str(own)]) == 1
    assert "error: " in capsys.readouterr().err


def test_families(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = run(capsys, "families", "--json")
    (llava,) = (family for family in json.loads(out) if family["name"] == "llava")
    assert llava["architectures"] == ["LlavaForConditionalGeneration"]
    assert llava["projector"] == "mlp"
    assert {"llama", "qwen2"} <= set(llava["text_models"])
    assert "KLD to transformers" in llava["status"]
    out, _ = run(capsys, "families")
    assert "Qwen3VLForConditionalGeneration" in out
    # What is known to be lost is said, wherever the lines break.
    assert "no published checkpoint was at hand" in " ".join(out.split())


def test_level_and_outtype_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "x", "--outtype", "f16", "--level", "Q8_0"]) == 2
    assert "--outtype" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from edgevlm import __version__

    out, _ = run(capsys, "--version")
    assert out == f"edgevlm {__version__}\n"
