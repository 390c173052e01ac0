"""From a Hugging Face checkpoint to GGUF: edgevlm's one pass beside llama.cpp's steps.

    python benchmarks/convert.py --peer-python PYTHON --peer-source LLAMA_CPP [--runs 3]
                                 [--to Q4_K_M|16-bit] [--shapes qwen3-vl-0.5b smolvlm2-500m ...]

The claim: one pass reads the checkpoint once, writes only the final files, and stays small whatever
the model's size. Measured on random checkpoints of published shapes (`random_checkpoint.py`):
seconds from start to exit of every process, the largest ru_maxrss of any of them, and the bytes
written. To Q4_K_M the encoders are the limit, to the 16-bit files the disk is: its bandwidth is
printed, and the seconds that the bytes alone take on it.

The peer makes the same two files. To Q4_K_M, as llama.cpp's tools/quantize/README.md shows it:
`convert_hf_to_gguf.py` for the text model (`--outtype auto`: BF16) and for the projector
(`--mmproj --outtype q8_0`), then llama.cpp's quantizer on all cores: `llama-quantize` if one is
named, else the same function of the installed llama-cpp-python, called in a process of its own. To
16 bits both files with `--outtype auto`. Random vocabularies are not in the converter's list of
hashes, so that one lookup is answered for it; nothing else of it is touched.

Both sides run in turn, warm cache, outputs deleted and the disk synced between runs. ru_maxrss
counts mapped pages of a file as memory, as the kernel does; this process stays small because Linux
counts the parent's memory at the fork to the child.

stderr gets the tables, stdout one JSON document: a list, one entry a shape.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROBE_BYTES = 512 << 20
MIN_FREE_BYTES = 40_000_000_000
CHUNK = 8 << 20

PEER_CONVERT = """
import runpy, sys
source = sys.argv[1]
sys.path[:0] = [source + "/gguf-py", source]
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
sys.argv = [source + "/convert_hf_to_gguf.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
PEER_QUANTIZE = """
import sys
from llama_cpp import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
source, target = (name.encode() for name in sys.argv[1:3])
params.nthread = int(sys.argv[3])
sys.exit(llama_cpp.llama_model_quantize(source, target, params))
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One side, once: all its processes."""

    seconds: float
    step_seconds: dict[str, float]
    cpu_seconds: float
    peak_rss_bytes: int
    bytes_written: int


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", type=Path, required=True, help="a Python with torch")
    parser.add_argument("--peer-source", type=Path, required=True, help="llama.cpp, unpacked")
    parser.add_argument("--peer-quantize", type=Path, help="llama-quantize")
    parser.add_argument("--shapes", nargs="+", default=["qwen3-vl-0.5b"])
    parser.add_argument("--to", choices=("Q4_K_M", "16-bit"), default="Q4_K_M")
    parser.add_argument("--checkpoints", type=Path, help="folder, kept; made when it is missing")
    parser.add_argument("--work", type=Path, help="folder for the outputs")
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    documents: list[dict[str, object]] = []
    for shape in args.shapes:
        with tempfile.TemporaryDirectory(dir=args.work, prefix="edgevlm-convert-") as name:
            documents.append(compare(args, shape, Path(name)))
    print(json.dumps(documents, indent=1))


def compare(args: argparse.Namespace, shape: str, work: Path) -> dict[str, object]:
    free = shutil.disk_usage(work).free
    if free < MIN_FREE_BYTES:
        sys.exit(
            f"error: {free / 1e9:.0f} GB are free in {work}, {MIN_FREE_BYTES / 1e9:.0f} needed"
        )
    checkpoint = (args.checkpoints or work) / shape
    make_checkpoint(checkpoint, shape)
    disk = disk_bandwidth(work)
    say(
        f"{shape} to {args.to}; disk: {disk['write_mb_per_s']:.0f} MB/s written and synced, "
        f"{disk['cached_read_mb_per_s']:.0f} MB/s read from the cache"
    )
    ours: list[Run] = []
    peer: list[Run] = []
    hashes: dict[str, list[str]] = {}
    for index in range(args.runs):
        for side, runs, steps in (
            ("edgevlm", ours, our_steps(args, checkpoint, work / "out")),
            ("llama.cpp", peer, peer_steps(args, checkpoint, work / "out")),
        ):
            runs.append(measure(steps, work / "out", checkpoint))
            hashes.setdefault(side, []).append(final_hash(work / "out"))
            say(f"run {index + 1} {side}: {runs[-1].seconds:.2f} s")
            shutil.rmtree(work / "out")
    if any(len(set(values)) != 1 for values in hashes.values()):
        sys.exit("error: two runs of one side wrote different bytes")
    document = {"shape": shape, "to": args.to, **report(args, checkpoint, disk, ours, peer)}
    print_table(disk, ours, peer)
    return document


def make_checkpoint(folder: Path, shape: str) -> None:
    """Build it in a process of its own: this one must stay small."""
    if not (folder / "model.safetensors").exists():
        say(f"making a random checkpoint in {folder}")
        command = [sys.executable, str(HERE / "random_checkpoint.py"), str(folder)]
        subprocess.run([*command, "--shape", shape], check=True, stdout=subprocess.DEVNULL)


def our_steps(args: argparse.Namespace, checkpoint: Path, out: Path) -> dict[str, list[str]]:
    command = [sys.executable, "-m", "edgevlm", "convert", str(checkpoint), "--out", str(out)]
    command += ["--name", "m", "--quiet"]
    return {"convert": [*command, "--level", args.to] if args.to != "16-bit" else command}


def peer_steps(args: argparse.Namespace, checkpoint: Path, out: Path) -> dict[str, list[str]]:
    convert = [str(args.peer_python), "-c", PEER_CONVERT, str(args.peer_source), str(checkpoint)]
    text, final, threads = str(out / "text.gguf"), str(out / "m-Q4_K_M.gguf"), str(os.cpu_count())
    projector = str(out / "mmproj.gguf")
    if args.to == "16-bit":
        return {
            "convert text": [*convert, "--outfile", text, "--outtype", "auto"],
            "convert mmproj": [*convert, "--outfile", projector, "--mmproj", "--outtype", "auto"],
        }
    if args.peer_quantize:
        quantize = [str(args.peer_quantize), text, final, "Q4_K_M", threads]
    else:
        quantize = [sys.executable, "-c", PEER_QUANTIZE, text, final, threads]
    return {
        "convert text": [*convert, "--outfile", text, "--outtype", "auto"],
        "convert mmproj": [*convert, "--outfile", projector, "--mmproj", "--outtype", "q8_0"],
        "quantize": quantize,
    }


def measure(steps: dict[str, list[str]], out: Path, checkpoint: Path) -> Run:
    """Run the steps one after the other, the disk quiet and the checkpoint in the cache."""
    read_all(checkpoint)
    os.sync()
    out.mkdir()
    seconds: dict[str, float] = {}
    peak = 0
    cpu = 0.0
    for name, command in steps.items():
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds[name] = time.perf_counter() - start
        if process.returncode:
            sys.exit(f"error: {name} failed\n{errors.decode(errors='replace')[-2000:]}")
        peak = max(peak, usage.ru_maxrss * 1024)
        cpu += usage.ru_utime + usage.ru_stime
    return Run(
        seconds=sum(seconds.values()),
        step_seconds=seconds,
        cpu_seconds=cpu,
        peak_rss_bytes=peak,
        bytes_written=sum(path.stat().st_size for path in out.iterdir()),
    )


def read_all(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(CHUNK):
                pass


def final_hash(out: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(out.glob("*.gguf")):
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def disk_bandwidth(folder: Path) -> dict[str, float]:
    path = folder / "probe"
    chunk = os.urandom(CHUNK)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(PROBE_BYTES // CHUNK):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    write_seconds = time.perf_counter() - start
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(CHUNK):
            pass
    read_seconds = time.perf_counter() - start
    path.unlink()
    return {
        "write_mb_per_s": PROBE_BYTES / 1e6 / write_seconds,
        "cached_read_mb_per_s": PROBE_BYTES / 1e6 / read_seconds,
    }


def report(
    args: argparse.Namespace,
    checkpoint: Path,
    disk: dict[str, float],
    ours: list[Run],
    peer: list[Run],
) -> dict[str, object]:
    our_seconds = statistics.median(run.seconds for run in ours)
    peer_seconds = statistics.median(run.seconds for run in peer)
    our_peak = max(run.peak_rss_bytes for run in ours)
    peer_peak = max(run.peak_rss_bytes for run in peer)
    return {
        "benchmark": "convert",
        "machine": machine(),
        "versions": {name: version(name) for name in ("edgevlm", "llama-cpp-python", "numpy")},
        "checkpoint": describe_checkpoint(checkpoint),
        "peer_quantize": "llama-quantize" if args.peer_quantize else "llama_model_quantize",
        "disk": disk,
        "median_seconds": {"edgevlm": our_seconds, "llama.cpp": peer_seconds},
        "peak_rss_bytes": {"edgevlm": our_peak, "llama.cpp": peer_peak},
        "bytes_written": {
            "edgevlm": ours[0].bytes_written,
            "llama.cpp": peer[0].bytes_written,
        },
        "ratios": {
            "seconds": peer_seconds / our_seconds,
            "peak_rss": peer_peak / our_peak,
            "bytes_written": peer[0].bytes_written / ours[0].bytes_written,
        },
        "runs": {
            "edgevlm": [asdict(run) for run in ours],
            "llama.cpp": [asdict(run) for run in peer],
        },
    }


def describe_checkpoint(folder: Path) -> dict[str, object]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    keys = ("hidden_size", "num_hidden_layers", "vocab_size")
    return {
        **{key: config["text_config"][key] for key in keys},
        "vision_hidden_size": config["vision_config"]["hidden_size"],
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
    }


def machine() -> dict[str, object]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((x.partition(":")[2].strip() for x in lines if "model name" in x), model)
    return {
        "cpu": model,
        "n_cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def print_table(disk: dict[str, float], ours: list[Run], peer: list[Run]) -> None:
    say(f"{'':24}{'edgevlm':>12}{'llama.cpp':>12}{'ratio':>8}")
    rows = (
        ("seconds (median)", lambda run: run.seconds, statistics.median, ".2f"),
        ("CPU seconds (median)", lambda run: run.cpu_seconds, statistics.median, ".2f"),
        ("peak RSS, MB", lambda run: run.peak_rss_bytes / 1e6, max, ".0f"),
        ("written, MB", lambda run: run.bytes_written / 1e6, max, ".0f"),
    )
    for label, value, summary, form in rows:
        left, right = (summary([value(run) for run in runs]) for runs in (ours, peer))
        say(f"{label:24}{left:12{form}}{right:12{form}}{right / left:8.2f}")
    alone = ours[0].bytes_written / 1e6 / disk["write_mb_per_s"]
    say(f"{'disk alone, seconds':24}{alone:12.2f}")
    for name in peer[0].step_seconds:
        seconds = statistics.median(run.step_seconds[name] for run in peer)
        say(f"  llama.cpp {name:14}{'':12}{seconds:12.2f}")


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
