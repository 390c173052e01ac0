"""Checkpoints that are quantized already: 8 bits become floats, and are counted; others refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgevlm.cli.app import main
from edgevlm.manifest import read_manifest
from tests.convert.test_dequantize import KINDS, quantized
from tests.hub_server import HubServer, Repo
from tests.synthetic import write_checkpoint

REFUSED: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
}
WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["fp8 by block", "int8 packed by group"])
def test_the_summary_counts_them(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_weights = len(quantized(tmp_path / "checkpoint", *KINDS[kind]))
    source = ["convert", str(tmp_path / "checkpoint"), "--name", "m", "--out", str(tmp_path / "m")]
    assert main(source) == 0
    assert f"{n_weights} weights of 8 bits read as floats" in capsys.readouterr().out
    assert main([*source, "--json", "--force"]) == 0
    ledger = json.loads(capsys.readouterr().out)["ledger"]
    assert (ledger["n_dequantized"], ledger["n_adapter_tensors"]) == (n_weights, 0)
    # Weights, scales and shapes: every stored tensor is counted once.
    assert ledger["n_source_tensors"] == len(ledger["used"]) + len(ledger["dropped"])
    manifest = read_manifest(tmp_path / "m")
    assert manifest is not None
    assert manifest.ledger.n_dequantized == n_weights


def test_what_is_not_quantized_says_nothing_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "checkpoint")
    assert main(["convert", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "m")]) == 0
    out = capsys.readouterr().out
    assert "8 bits" not in out
    assert "adapter" not in out


def _write(folder: Path, method: str) -> Path:
    config = write_checkpoint(folder)
    config["quantization_config"] = REFUSED[method]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _refused(capsys: pytest.CaptureFixture[str], source: str, out: Path, method: str) -> None:
    capsys.readouterr()
    assert main(["convert", source, "--out", str(out)]) == 1
    err = capsys.readouterr().err
    assert err == (
        f"error: the checkpoint is quantized already (quant_method `{method}`)\n\n"
        "hint: convert the original 16-bit checkpoint: quantizing twice loses accuracy twice; its"
        " name is usually this one's without the ending\n"
    )
    assert not out.exists()


@pytest.mark.parametrize("method", REFUSED)
def test_other_methods_are_refused(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _write(tmp_path / "checkpoint", method)
    _refused(capsys, str(folder), tmp_path / "out", method)


@pytest.mark.parametrize("method", REFUSED)
def test_other_methods_of_the_hub_cost_no_download(
    method: str, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _write(tmp_path / "checkpoint", method)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repos["org/small"] = Repo(files=files)
    _refused(capsys, "org/small", tmp_path / "out", method)
    assert not any(WEIGHTS in one.path for one in hub.requests)
