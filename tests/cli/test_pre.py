"""`edgevlm convert --pre`: a pre-tokenizer whose structure is not known, named by the user."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevlm.build.resolve import resolve_model
from edgevlm.cli.app import main
from edgevlm.gguf_file import read_gguf
from edgevlm.manifest import Manifest, read_manifest
from tests.synthetic import write_checkpoint


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def spell_otherwise(tokenizer: dict[str, Any]) -> None:
    """Write the expression in a way that splits alike, and that no table has."""
    pattern = tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    pattern["Regex"] = f"(?:{pattern['Regex']})"


@pytest.fixture
def odd(shapes_checkpoint: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(shapes_checkpoint, tmp_path / "odd")
    edit(folder, spell_otherwise)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "\nhint: " in err
    return err


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def test_the_hint_leads_to_a_model(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("convert", odd, "--name", "m", "--out", tmp_path / "m", "--level")
    assert "give `--pre qwen2`" in fails(capsys, *source, "Q8_0")
    out = run(capsys, *source, "Q8_0", "--pre", "qwen2")
    assert "pre-tokenizer qwen2, chosen with --pre" in out
    assert "500 of 500 texts" in out
    manifest = manifest_of(tmp_path / "m")
    assert manifest.source.pre == "qwen2"
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.n_probes == 500
    assert json.loads(run(capsys, *source, "Q5_K_M", "--pre", "qwen2", "--json"))["pre"] == "qwen2"


def test_a_level_made_later_has_it_too(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("convert", odd, "--name", "m", "--out", tmp_path / "m")
    run(capsys, *source, "--level", "Q8_0", "--pre", "qwen2")
    run(capsys, "quantize", tmp_path / "m", "--level", "Q4_K_M")
    rebuilt = resolve_model(str(tmp_path / "m"), level="Q5_K_M").text
    for path in (tmp_path / "m" / "m-Q4_K_M.gguf", rebuilt):
        assert read_gguf(path).metadata["tokenizer.ggml.pre"].value == "qwen2"
    assert "holds this checkpoint with the pre-tokenizer qwen2" in fails(
        capsys, *source, "--level", "Q4_K_M", "--pre", "smaug-bpe"
    )


def test_other_ids_are_an_error_with_the_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def merge_digits(tokenizer: dict[str, Any]) -> None:
        model = tokenizer["model"]
        left, right = model["merges"][-1]
        model["merges"][-1] = ["1", "2"]
        model["vocab"]["12"] = model["vocab"].pop(left + right)

    write_checkpoint(tmp_path / "checkpoint")
    edit(tmp_path / "checkpoint", merge_digits)
    source = ("convert", tmp_path / "checkpoint", "--out", tmp_path / "out")
    err = fails(capsys, *source, "--pre", "smaug-bpe")
    assert "llama.cpp tokenizes '" in err
    assert "12" in err.partition("tokenizes '")[2].partition("' (")[0]
    assert "where its pre-tokenizer was chosen with `--pre`, choose another" in err
    assert not (tmp_path / "out").exists()
    run(capsys, *source, "--pre", "qwen2")


def test_a_name_that_llama_cpp_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Before the checkpoint is looked at.
    err = fails(capsys, "convert", tmp_path / "nowhere", "--pre", "qwen3")
    assert "llama.cpp has no pre-tokenizer `qwen3`" in err
    assert "names close to it: " in err
    assert "qwen2" in err
