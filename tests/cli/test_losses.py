"""What llama.cpp cannot do with a model is said wherever the model is described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgevlm.cli.app import main
from edgevlm.cli.built import dropped_lines
from tests.goldens.files import redraw
from tests.synthetic import write_checkpoint

LOST = "images that are not square: llama.cpp puts grey bars beside them"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with CLIP, whose images llama.cpp scales in another way."""
    return redraw("llava_clip_llama", tmp_path_factory.mktemp("clip") / "checkpoint")


def test_of_a_llava_with_clip(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    convert = ("convert", str(clip), "--name", "c", "--out", str(folder), "--level", "Q4_K_M")

    def run(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    # In the ledger, which is data: being quiet does not silence it.
    assert f"  known loss: {LOST}" in run(*convert, "--quiet")
    assert json.loads((folder / "edgevlm.json").read_text())["losses"][-1].startswith(LOST)
    (path,) = map(str, folder.glob("mmproj-*.gguf"))
    shown = run("inspect", path)
    (line,) = (
        line for line in shown.splitlines() if line.startswith("  known loss  ") and LOST in line
    )
    assert line.endswith("transformers takes the square in their middle")
    losses = json.loads(run("inspect", path, "--json"))["metadata"]["edgevlm.losses"]["value"]
    assert losses[-1].startswith(LOST)
    assert json.loads(run(*convert, "--force", "--json"))["losses"] == losses


def test_of_a_tokenizer_with_nfc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    convert = ("convert", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "m"))
    assert main([*convert, "--quiet"]) == 0
    shown = capsys.readouterr().out
    manifest = json.loads((tmp_path / "m" / "edgevlm.json").read_text())
    (limit,) = manifest["tokenizer"]["limits"]
    n_alike = 500 - limit["n_probes"]
    assert f"{n_alike} of 500 texts become the same tokens in llama.cpp\n" in shown
    assert f"  known limit: {limit['reason']} ({limit['n_probes']} texts, first 'cafe" in shown
    assert main([*convert, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokenizer"] == manifest["tokenizer"]


def test_towers_that_are_left_out_are_a_line_each_and_few_tensors_are_named() -> None:
    few = {f"probe.{number}": "no VLM uses it" for number in range(12)}
    tower = {f"audio_tower.{number}": "hears" for number in range(13)}
    lines = dropped_lines({"a\x1b": "odd", **few, **tower})
    assert lines[1:13] == [f"  dropped {name}: no VLM uses it" for name in few]
    assert lines[13:] == ["  dropped audio_tower.0 and 12 more (edgevlm.json names them): hears"]
    assert "\x1b" not in lines[0]
