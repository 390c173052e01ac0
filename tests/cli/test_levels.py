"""Overrides, profiles of the user's own and importance matrices, as the command line takes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgevlm.cli.app import main
from edgevlm.files import sha256_file
from edgevlm.gguf_file import read_gguf
from edgevlm.model_dir import open_model_dir
from tests.quantize.test_imatrix_file import write_imatrix
from tests.quantize.test_levels import importance_of


@pytest.fixture
def model(tmp_path: Path, shapes_checkpoint: Path) -> Path:
    """A model directory with the 16-bit files alone."""
    folder = tmp_path / "model"
    assert main(["convert", str(shapes_checkpoint), "--out", str(folder), "--name", "m", "-q"]) == 0
    return folder


def planned(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a dry run would write, by file name."""
    capsys.readouterr()
    assert main(["quantize", *arguments, "--dry-run", "--json"]) == 0
    return {file["name"]: file for file in json.loads(capsys.readouterr().out)["files"]}


def test_an_override_goes_before_the_level_and_changes_the_files_name(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(model), "--level", "q4_k_m"]
    plain = planned(capsys, arguments)["m-Q4_K_M.gguf"]["tensor_types"]
    override = ["--tensor-type", r"blk\.[01]\.ffn_down=q8_0"]
    changed = planned(capsys, [*arguments, *override])["m-Q4_K_M-custom.gguf"]["tensor_types"]
    assert "Q8_0" not in plain
    assert changed["Q8_0"] == 2


def test_a_rule_that_decides_nothing_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(model), "--level", "Q8_0", "--tensor-type", "ffn_dwn=Q6_K"]) == 1
    assert '{ tensor = "ffn_dwn", type = "Q6_K" } decides no tensor' in capsys.readouterr().err
    own = tmp_path / "mine.toml"
    text = 'name = "mine"\ndescription = "Mine."\nextends = "Q4_K_M"\n'
    own.write_text(text + 'rules = [{ role = "attn_qkv", type = "Q8_0" }]\n')
    assert main(["quantize", str(model), "--level", str(own)]) == 1
    assert '{ role = "attn_qkv", type = "Q8_0" } decides no tensor' in capsys.readouterr().err
    # In the projector it decides some; and what holds in some models only is no mistake.
    own.write_text(text + '[mmproj]\nrules = [{ role = "attn_qkv", type = "F16" }]\n')
    assert set(planned(capsys, [str(model), "--level", str(own)])) == {
        "m-mine.gguf",
        "mmproj-m-mine.gguf",
    }
    own.write_text(text + 'rules = [{ role = "attn_qkv", experts = 8, type = "Q8_0" }]\n')
    assert "m-mine.gguf" in planned(capsys, [str(model), "--level", str(own)])
    assert not list(model.glob("*mine*"))


def test_an_importance_matrix_is_used_and_remembered(
    model: Path, shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = next(path for path in model.glob("m-*.gguf"))
    channels = dict(importance_of(text).channels)
    imatrix = write_imatrix(
        tmp_path / "i.gguf",
        {name: (values[None], [1.0]) for name, values in channels.items()},
    )
    assert main(["quantize", str(model), "--level", "IQ2_M"]) == 1
    assert "needs an importance matrix" in capsys.readouterr().err

    with_it = ["--level", "Q4_K_M", "--imatrix", str(imatrix), "-q"]
    assert main(["quantize", str(model), *with_it]) == 0
    manifest = open_model_dir(model).manifest
    assert manifest is not None
    records = {entry.name: entry.imatrix for entry in manifest.files}
    record = records["m-Q4_K_M.gguf"]
    assert record is not None
    assert (record.sha256, record.datasets) == (sha256_file(imatrix), ["scenes"])
    assert record.n_without == 0
    assert records[text.name] is None
    del channels["blk.0.ffn_up.weight"], channels["blk.1.ffn_up.weight"]
    partial = write_imatrix(
        tmp_path / "partial.gguf",
        {name: (values[None], [1.0]) for name, values in channels.items()},
    )
    capsys.readouterr()
    assert main(["quantize", str(model), "--level", "Q4_K_S", "--imatrix", str(partial)]) == 0
    assert "knows nothing of 2 tensors" in capsys.readouterr().err

    one_pass = tmp_path / "one"
    source = str(shapes_checkpoint)
    assert main(["convert", source, "--out", str(one_pass), "--name", "m", *with_it]) == 0
    theirs = (one_pass / "m-Q4_K_M.gguf").read_bytes()
    assert (model / "m-Q4_K_M.gguf").read_bytes() == theirs
    plain = tmp_path / "plain"
    assert main(["convert", source, "--out", str(plain), "--name", "m", *with_it[:2], "-q"]) == 0
    assert (plain / "m-Q4_K_M.gguf").read_bytes() != theirs


def test_what_a_level_needs_is_said(
    tmp_path: Path, shapes_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--imatrix", "x"], ["--tensor-type", "a=Q8_0"]):
        command = ["convert", str(shapes_checkpoint), "--out", str(tmp_path / "x"), *option]
        assert main(command) == 1
        assert f"{option[0]} goes with a level" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("level", ["f16", "BF16", "f32"])
def test_float_levels_are_levels(model: Path, level: str) -> None:
    assert main(["quantize", str(model), "--level", level, "--force", "-q"]) == 0
    file = read_gguf(model / f"m-{level.upper()}.gguf")
    assert file.file_type == level.upper()
    assert set(file.type_histogram()) <= {"F32", level.upper()}
