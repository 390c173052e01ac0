"""Conversion streams: memory stays bounded whatever the model's size, and Ctrl-C cleans up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.synthetic import tiny_config, write_checkpoint, write_json, write_sparse_weights

BOUND_BYTES = 300 * 10**6
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 0.6 GB that takes no disk: its weights are a hole in a file."""
    folder = tmp_path_factory.mktemp("large") / "checkpoint"
    write_checkpoint(folder)
    config = tiny_config(text=LARGE)
    write_json(folder / "config.json", config)
    assert write_sparse_weights(folder, config) > 2 * BOUND_BYTES
    return folder


def command(source: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "edgevlm", "convert", str(source), "--out", str(out), *more]


@pytest.mark.parametrize("level", [(), ("--level", "Q8_0")], ids=["16-bit", "one pass"])
def test_peak_memory(large: Path, tmp_path: Path, level: tuple[str, ...]) -> None:
    done = subprocess.run(
        command(large, tmp_path / "out", "--json", *level), capture_output=True, check=True
    )
    document = json.loads(done.stdout)
    assert document["files"][0]["n_bytes"] > BOUND_BYTES
    assert document["peak_rss_bytes"] <= BOUND_BYTES


def test_ctrl_c_cleans_up(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        command(large, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not list(out.glob(".edgevlm-tmp-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not out.exists()
