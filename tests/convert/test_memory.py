"""Conversion streams: its peak memory does not grow with the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.synthetic import tiny_config, write_checkpoint, write_json, write_sparse_weights

N_TOKENS = 20_000
LARGE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
# A process of its own: a peak never falls again.
CONVERT = """
import sys
from pathlib import Path
from edgevlm.native.peak_memory import peak_memory_n_bytes
from edgevlm_convert import convert_checkpoint, plan_conversion
folder, outtype, n_threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
plan = plan_conversion(folder, outtype=outtype)
paths = folder / "text.gguf", folder / "mmproj.gguf"
convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1], n_threads=n_threads)
print(peak_memory_n_bytes())
"""


@pytest.mark.parametrize(("outtype", "n_threads"), [("auto", 16), ("f16", 2)])
def test_peak_memory_stays_below_300_mb(tmp_path: Path, outtype: str, n_threads: int) -> None:
    write_checkpoint(tmp_path, n_tokens=N_TOKENS)
    config = tiny_config(text=LARGE, n_tokens=N_TOKENS)
    write_json(tmp_path / "config.json", config)
    assert write_sparse_weights(tmp_path, config) > 400_000_000
    command = [sys.executable, "-c", CONVERT, str(tmp_path), outtype, str(n_threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for path in tmp_path.glob("*.gguf"):
        path.unlink()
    assert int(done.stdout) < 300_000_000
