"""How long a person waits before anything happens: help, import, and a look into a file.

    python benchmarks/startup.py [--runs 15]

The claims: `edgevlm --help` within 0.2 s, `import edgevlm` within 0.05 s, `edgevlm inspect` of
    a file
with a vocabulary of 150,000 tokens (and 300,000 merges) within 0.5 s. Each is a process from start
to exit, after one that is not counted; a bare `python -c pass` stands beside them, because that
much
is Python's own. The peer for `inspect` is gguf-py's `gguf-dump --no-tensors` on the same file.

stderr gets the table (median, minimum, maximum), stdout one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gguf
import numpy as np

N_TOKENS = 150_000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15, help="counted runs of each")
    return parser.parse_args()


def write_vocabulary(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "qwen3vl")
    writer.add_array("tokenizer.ggml.tokens", [f"token{number}" for number in range(N_TOKENS)])
    writer.add_array("tokenizer.ggml.token_type", [1] * N_TOKENS)
    writer.add_array("tokenizer.ggml.merges", [f"a{i} b{i}" for i in range(2 * N_TOKENS)])
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def seconds(command: list[str], runs: int) -> list[float]:
    found: list[float] = []
    for run in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if run:
            found.append(time.perf_counter() - start)
    return found


def main() -> None:
    options = arguments()
    edgevlm = str(Path(sys.executable).with_name("edgevlm"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_vocabulary(path)
        dump = str(Path(sys.executable).with_name("gguf-dump"))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import edgevlm": [sys.executable, "-c", "import edgevlm"],
            "edgevlm --help": [edgevlm, "--help"],
            "edgevlm inspect, 150,000 tokens": [edgevlm, "inspect", str(path)],
            "gguf-dump, the same file": [dump, "--no-tensors", str(path)],
        }
        rows = {
            name: seconds(command, 1 if command[0] == dump else options.runs)
            for name, command in commands.items()
        }
    for name, times in rows.items():
        middle = statistics.median(times)
        print(f"{name:34} {middle:6.3f} s  {min(times):6.3f} .. {max(times):6.3f}", file=sys.stderr)
    document = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "runs": options.runs,
        "median_seconds": {name: statistics.median(times) for name, times in rows.items()},
        "min_seconds": {name: min(times) for name, times in rows.items()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
