"""Predicted memory beside measured memory: what `edgevlm chat` refuses by, held against the kernel.

    python benchmarks/memory.py [--work FOLDER] [--out FILE.json]

The claim: the prediction from the files' headers is within 10 % of the peak resident memory (VmHWM,
mapped pages included) of a process that loads the model and answers two questions, each about an
image of its own where there is a projector. Models: the built-in `shapes`, and a random one of 0.5
billion parameters (`random_checkpoint.py`) at F16, Q8_0, Q4_K_M and Q4_0 (a level of its own here,
because on processors with AVX2 or dotprod its matrices are kept twice); contexts of 256 to 8,192
tokens, three types of KV cache, images of 128 to 1,024 pixels a side.

The peak after the first question is reported too: it may be lower, because the second image is laid
out while the text model's buffers are already in memory. A question is some 200 to 300 tokens long,
or in the cases named "full" as long as the context allows: without flash attention a table of n_ctx
values per token and head is predicted, and an empty context never touches it. Every case is one
process; its file pages are mapped as in a chat.

stderr gets the table, stdout (or --out) one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from edgevlm.build.convert import convert_model
from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.build.resolve import built_in_checkpoint
from edgevlm.model_dir import open_model_dir
from edgevlm.native.system import read_processor
from edgevlm.runtime.memory import check_memory

HERE = Path(__file__).resolve().parent
Q4_0 = """
name = "Q4_0"
description = "all matrices in Q4_0"
file_type = "Q4_0"
type = "Q4_0"
[mmproj]
type = "Q8_0"
"""
ASK = """
import json, re, sys
from pathlib import Path
from edgevlm.runtime.image import load_image
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import open_vlm

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

case = json.loads(sys.argv[1])
image = [load_image(case["image"])] if case["mmproj"] else []
params = SamplingParams(max_tokens=4)
with open_vlm(
    model=Path(case["text"]),
    mmproj=Path(case["mmproj"]) if case["mmproj"] else None,
    n_ctx=case["n_ctx"],
    kv_type=case["kv_type"],
    flash_attention=case["flash_attention"],
) as vlm:
    question, n_times = "What is this? ", 20
    vlm.generate(question * n_times, image, params=params)
    first = peak()
    if case["fill"]:
        n_short, n_long = (len(vlm.token_ids(question * n, image)) for n in (20, 40))
        n_times += 20 * (case["n_ctx"] - n_short - 8) // (n_long - n_short)
    vlm.generate(question * n_times, [255 - one for one in image], params=params)
print(json.dumps([first, peak()]))
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One process to measure; side 0 is a chat without projector."""

    model: str
    level: str
    mmproj_level: str = "F16"
    n_ctx: int = 4096
    side: int = 0
    kv_type: str = "F16"
    flash_attention: str = "auto"
    fill: bool = False


CASES = (
    Case(model="shapes", level="F16", n_ctx=256),
    Case(model="shapes", level="F16", n_ctx=256, side=128),
    Case(model="shapes", level="F16", n_ctx=4096, side=128),
    Case(model="shapes", level="F16", n_ctx=4096, side=1024),
    Case(model="shapes", level="Q4_K_M", n_ctx=4096, side=512),
    Case(model="shapes", level="F16", n_ctx=4096, side=512, flash_attention="off", fill=True),
    Case(model="random", level="F16", n_ctx=512),
    Case(model="random", level="F16", n_ctx=1024, side=256),
    Case(model="random", level="F16", n_ctx=8192, side=512),
    Case(model="random", level="Q8_0", mmproj_level="Q8_0", n_ctx=4096, side=512),
    Case(model="random", level="Q8_0", mmproj_level="Q8_0", n_ctx=4096, side=512, kv_type="Q8_0"),
    Case(model="random", level="Q4_K_M", mmproj_level="Q8_0", n_ctx=1024, side=256),
    Case(model="random", level="Q4_K_M", mmproj_level="Q8_0", n_ctx=2048, side=1024),
    Case(model="random", level="Q4_K_M", mmproj_level="Q8_0", n_ctx=8192, side=512),
    Case(model="random", level="Q4_K_M", mmproj_level="Q8_0", n_ctx=8192, side=512, kv_type="F32"),
    Case(
        model="random",
        level="Q4_K_M",
        mmproj_level="Q8_0",
        n_ctx=1024,
        side=512,
        flash_attention="off",
        fill=True,
    ),
    Case(model="random", level="Q4_0", mmproj_level="Q8_0", n_ctx=2048, side=512),
)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="folder for the models, kept when named")
    parser.add_argument("--out", type=Path, help="file for the results")
    return parser.parse_args()


def make_models(work: Path) -> None:
    checkpoint = work / "checkpoint"
    if not (checkpoint / "model.safetensors").exists():
        command = [sys.executable, str(HERE / "random_checkpoint.py"), str(checkpoint)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (work / "Q4_0.toml").write_text(Q4_0, encoding="utf-8")
    for name, source in (("shapes", built_in_checkpoint()), ("random", checkpoint)):
        folder = work / name
        if (folder / "edgevlm.json").exists():
            continue
        convert_model(source, out=folder, name=name, outtype="f16")
        for level in ("Q8_0", "Q4_K_M", str(work / "Q4_0.toml")):
            plan = plan_quantization(open_model_dir(folder), level=level)
            quantize_model(plan)


def measure(work: Path, case: Case) -> dict[str, object]:
    folder = work / case.model
    text = folder / f"{case.model}-{case.level}.gguf"
    mmproj = folder / f"mmproj-{case.model}-{case.mmproj_level}.gguf" if case.side else None
    image = work / f"{case.side}.png"
    if case.side:
        noise = np.random.default_rng(0).integers(0, 256, (case.side, case.side, 3), np.uint8)
        Image.fromarray(noise).save(image)
    asked = {
        **asdict(case),
        "text": str(text),
        "mmproj": str(mmproj) if mmproj else "",
        "image": str(image),
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(asked)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"error: {case}\n{done.stderr[-2000:]}")
    check = check_memory(
        text,
        mmproj,
        n_ctx=case.n_ctx,
        kv_type=case.kv_type,  # type: ignore[arg-type]
        flash_attention=case.flash_attention,  # type: ignore[arg-type]
        image_sizes=[(case.side, case.side)] if case.side else [],
        override=True,
    )
    first, measured = json.loads(done.stdout)
    predicted = check.footprint.peak_n_bytes
    return {
        **asdict(case),
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "measured_first_bytes": first,
        "ratio": round(predicted / measured, 4),
        "ratio_first": round(predicted / first, 4),
        "parts": asdict(check.footprint),
    }


def show(row: dict[str, object]) -> None:
    predicted, measured = (
        int(str(row[key])) / 1e6 for key in ("predicted_bytes", "measured_bytes")
    )
    print(
        f"{row['model']:7} {row['level']:7} {row['n_ctx']:>6} {row['side']:>6} {row['kv_type']:>5}"
        f" {row['flash_attention']:>5} {predicted:10.1f} {measured:10.1f} {row['ratio']:7.3f}"
        f" {row['ratio_first']:7.3f}{'  full' if row['fill'] else ''}",
        file=sys.stderr,
        flush=True,
    )


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory(prefix="edgevlm-memory-") as name:
        work: Path = args.work or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        make_models(work)
        print(
            f"{'model':7} {'level':7} {'n_ctx':>6} {'image':>6} {'KV':>5} {'flash':>5}"
            f" {'predicted':>10} {'measured':>10} {'ratio':>7} {'first':>7}  (MB)",
            file=sys.stderr,
        )
        rows: list[dict[str, object]] = []
        for case in CASES:
            rows.append(measure(work, case))
            show(rows[-1])
    ratios = [float(str(row["ratio"])) for row in rows]
    processor = read_processor()
    document = {
        "benchmark": "memory",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cpu": processor.name,
            "features": sorted(processor.features),
            "n_cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("edgevlm", "llama-cpp-python", "numpy")},
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "within_10_percent": all(0.9 <= ratio <= 1.1 for ratio in ratios),
        "cases": rows,
    }
    text = json.dumps(document, indent=1) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    print(f"predicted / measured: {min(ratios):.3f} to {max(ratios):.3f}", file=sys.stderr)
    if not document["within_10_percent"]:
        sys.exit("error: a prediction is off by more than 10 %")


if __name__ == "__main__":
    main()
