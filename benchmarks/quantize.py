"""From a 16-bit GGUF file to a level: `edgevlm quantize` beside llama.cpp's own quantizer.

    python benchmarks/quantize.py [--shape qwen3-vl-0.5b] [--levels Q4_K_M Q5_K_M Q8_0] [--runs 3]
                                  [--threads 2] [--checkpoints DIR]

The claim: not slower, and with less memory, at the same types and bytes (the tests hold the bytes).
The source is the text model of a random checkpoint of a published shape, as F16. The peer is
`llama_model_quantize` of the installed llama-cpp-python, called in a process of its own, as
llama-quantize does. Both sides run in turn, warm cache, outputs deleted and the disk synced between
runs. Ours does more: SHA-256 of the file for the manifest, and it waits until the file is on the
disk.

stderr gets the table, stdout one JSON document.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from convert import Run, machine, make_checkpoint, measure, say
from edgevlm.ggml_types import FILE_TYPES
from edgevlm.gguf_file import read_gguf

FILE_TYPE_IDS = {name: id_ for id_, name in FILE_TYPES.items()}
PEER = """
import sys
from llama_cpp import llama_cpp
source, target, level, threads = sys.argv[1:5]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = int(level), int(threads)
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), params))
"""


def main() -> None:
    """Run both sides at every level."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="qwen3-vl-0.5b")
    parser.add_argument("--levels", nargs="+", default=["Q4_K_M", "Q5_K_M", "Q8_0"])
    parser.add_argument("--checkpoints", type=Path, help="folder, kept; made when it is missing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgevlm-quantize-") as name:
        work = Path(name)
        checkpoint = (args.checkpoints or work) / args.shape
        make_checkpoint(checkpoint, args.shape)
        command = [sys.executable, "-m", "edgevlm", "convert", str(checkpoint), "--quiet"]
        subprocess.run(
            [*command, "--out", str(work / "f16"), "--name", "m", "--outtype", "f16"], check=True
        )
        say(f"{args.shape}, {args.threads} threads: edgevlm, llama.cpp, ratio")
        documents = [compare(level, args, work) for level in args.levels]
    print(
        json.dumps({"benchmark": "quantize", "machine": machine(), "levels": documents}, indent=1)
    )


def compare(level: str, args: argparse.Namespace, work: Path) -> dict[str, object]:
    """Run both sides in turn at one level."""
    source, out = work / "f16" / "m-F16.gguf", work / "out"
    target, threads = out / f"m-{level}.gguf", str(args.threads)
    ours_command = [sys.executable, "-m", "edgevlm", "quantize", str(out / source.name)]
    ours_command += ["--level", level, "--threads", threads, "--quiet"]
    peer_command = [sys.executable, "-c", PEER, str(source), str(target)]
    peer_command += [str(FILE_TYPE_IDS[level]), threads]
    runs: dict[str, list[Run]] = {"edgevlm": [], "llama.cpp": []}
    contents: dict[str, list[tuple[str, str, int]]] = {}
    for _ in range(args.runs):
        for side, command in (("edgevlm", ours_command), ("llama.cpp", peer_command)):
            # Ours writes beside its source; a link keeps the run apart from the others.
            link = ["ln", "-s", str(source), str(out / source.name)]
            run = measure({"link": link, side: command}, out, source.parent)
            runs[side].append(run)
            contents[side] = table(target)
            shutil.rmtree(out)
    if contents["edgevlm"] != contents["llama.cpp"]:
        sys.exit(f"error: the two sides chose other types at {level}")
    return report(level, runs)


def table(path: Path) -> list[tuple[str, str, int]]:
    """Return name, type and size of every tensor; llama.cpp writes them in another order."""
    return sorted((one.name, one.type, one.n_bytes) for one in read_gguf(path).tensors)


def report(level: str, runs: dict[str, list[Run]]) -> dict[str, object]:
    """Print a line, and return what it says with every run."""
    seconds = {
        side: statistics.median(run.step_seconds[side] for run in some)
        for side, some in runs.items()
    }
    peak = {side: max(run.peak_rss_bytes for run in some) for side, some in runs.items()}
    ratio = seconds["llama.cpp"] / seconds["edgevlm"]
    times = " ".join(f"{seconds[side]:6.2f}" for side in runs)
    memory = " ".join(f"{peak[side] / 1e6:6.0f}" for side in runs)
    less = peak["llama.cpp"] / peak["edgevlm"]
    say(f"{level:8} seconds {times} {ratio:5.2f}   peak RSS, MB {memory} {less:5.1f}")
    return {
        "level": level,
        "median_seconds": seconds,
        "peak_rss_bytes": peak,
        "ratio": ratio,
        "runs": {side: [asdict(run) for run in some] for side, some in runs.items()},
    }


if __name__ == "__main__":
    main()
