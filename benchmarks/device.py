"""Every family on this machine's GPU: does it load, does it see, how far is it from transformers?

    python benchmarks/device.py [--device auto] [--jobs 4] [--json FILE] [GOLDEN ...]

Each golden of tests/goldens is converted and answers its reference's prompts on the CPU and on the
device, in a process of its own, so that an abort is a line of the table and not the end of it. The
numbers are the largest KL divergence from transformers in nats (teacher-forced, worst position).
`strict` has the settings of a comparison (KV cache in F32, no flash attention), `chat` those of a
chat. Q4_K_M's own loss dominates what it shows, so `apart` is the largest KLD between the CPU's and
the device's distributions of the same Q4_K_M file. `exact` is F32, strict, on the device, where
cuBLAS is told not to round to TF32 or F16 (environment variables of cuBLAS and ggml): what is left
there is not rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from edgevlm_convert import convert_checkpoint, plan_conversion
from numpy.typing import NDArray

from edgevlm.native.devices import devices
from edgevlm.quantize.encode import mmproj_encoder, text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.runtime.vlm import open_vlm
from edgevlm.vectors import log_softmax
from edgevlm.verify.metrics import kl_divergence
from tests.goldens.files import case_images, golden_cases, redraw
from tests.goldens.recipes import RECIPES

# (column, level, on the device, strict)
RUNS = (
    ("cpu strict", "F16", False, True),
    ("strict", "F16", True, True),
    ("cpu chat", "F16", False, False),
    ("chat", "F16", True, False),
    ("cpu Q4_K_M", "Q4_K_M", False, False),
    ("Q4_K_M", "Q4_K_M", True, False),
)
EXACT = {"NVIDIA_TF32_OVERRIDE": "0", "GGML_CUDA_FORCE_CUBLAS_COMPUTE_32F": "1"}
COLUMNS = (*(run[0] for run in RUNS), "apart", "exact")
MAX_SECONDS = 300


def main() -> int:
    """Print a table, a line per family."""
    parser = argparse.ArgumentParser(description="Every family on this GPU.")
    parser.add_argument("goldens", nargs="*", metavar="GOLDEN")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measured = (measure_exact if options.exact else measure)(options.one, options.device)
        print(json.dumps(measured))
        return 0
    found = {"devices": [f"{one.name}: {one.description}" for one in devices()]}
    print("\n".join(found["devices"]))
    names = options.goldens or [name for name, one in RECIPES.items() if not one.refused]
    print(f"{'golden':24}", *(f"{column:>11}" for column in COLUMNS))
    results: dict[str, dict[str, float] | str] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = pool.map(partial(both, device=options.device), names)
        for name, one in zip(names, rows, strict=True):
            results[name] = one
            if isinstance(one, str):
                print(f"{name:24} {one}", flush=True)
            else:
                print(f"{name:24}", *(f"{one[column]:11.2g}" for column in COLUMNS), flush=True)
    if options.json:
        options.json.write_text(json.dumps({**found, "max_kld": results}, indent=1) + "\n")
    return 0


def both(name: str, *, device: str) -> dict[str, float] | str:
    """Measure one golden, as it runs and as exactly as it can."""
    usual = in_child(name, device, [], {})
    exact = in_child(name, device, ["--exact"], EXACT)
    if isinstance(usual, str):
        return usual
    return exact if isinstance(exact, str) else {**usual, **exact}


def in_child(
    name: str, device: str, more: Sequence[str], environment: Mapping[str, str]
) -> dict[str, float] | str:
    """Measure one golden in another process; return what it printed, or how it ended."""
    command = [sys.executable, __file__, "--one", name, "--device", device, *more]
    try:
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=MAX_SECONDS,
            check=False,
            env={**os.environ, **environment},
        )
    except subprocess.TimeoutExpired:
        return f"no end after {MAX_SECONDS} s"
    if run.returncode:
        last = (run.stderr.strip() or "nothing said").splitlines()[-1]
        return f"ended with {run.returncode}: {last}"
    return json.loads(run.stdout.splitlines()[-1])


def measure(name: str, device: str) -> dict[str, float]:
    """Return the largest KLD of every run, and between both Q4_K_M."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = redraw(name, folder / "checkpoint")
        files = {level: write(checkpoint, folder, level) for level in ("F16", "Q4_K_M")}
        found = {
            column: answer(name, files[level], device if on_device else "cpu", strict=strict)
            for column, level, on_device, strict in RUNS
        }
    return {
        **{column: worst(name, rows) for column, rows in found.items()},
        "apart": apart(found["cpu Q4_K_M"], found["Q4_K_M"]),
    }


def measure_exact(name: str, device: str) -> dict[str, float]:
    """Return the largest KLD of F32 files, in the environment of EXACT."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = redraw(name, folder / "checkpoint")
        files = write(checkpoint, folder, "F32")
        return {"exact": worst(name, answer(name, files, device, strict=True))}


def write(checkpoint: Path, folder: Path, level: str) -> tuple[Path, Path]:
    """Convert a checkpoint; return text model and projector."""
    paths = folder / f"{level}.gguf", folder / f"mmproj-{level}.gguf"
    is_quantized = level not in ("F16", "F32")
    text = text_encoder(load_profile(level)) if is_quantized else None
    mmproj = mmproj_encoder("Q8_0" if is_quantized else level)
    outtype = "f32" if level == "F32" else "f16"
    plan = plan_conversion(checkpoint, outtype=outtype, text_encoder=text, mmproj_encoder=mmproj)
    convert_checkpoint(
        plan, text_path=paths[0], mmproj_path=paths[1], text_encoder=text, mmproj_encoder=mmproj
    )
    return paths


def answer(
    name: str, files: Sequence[Path], device: str, *, strict: bool
) -> list[NDArray[np.float32]]:
    """Return the logits along the answer of each of a golden's prompts."""
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=1024, device=device, strict=strict) as vlm:
        return [
            vlm.answer_logits(
                case.prompt, case_images(case), answer=[int(token) for token in case.answer]
            )
            for case in golden_cases(name)
        ]


def worst(name: str, rows: Sequence[NDArray[np.float32]]) -> float:
    """Return the largest KLD from transformers over all prompts and positions, in nats."""
    parts = [kl_divergence(*pair) for pair in zip(golden_cases(name), rows, strict=True)]
    return float(np.concatenate(parts).max())


def apart(one: Sequence[NDArray[np.float32]], other: Sequence[NDArray[np.float32]]) -> float:
    """Return the largest KLD between two sides' distributions, in nats."""
    left, right = (log_softmax(np.concatenate(rows)) for rows in (one, other))
    return float((np.exp(left) * (left - right)).sum(axis=1).max())


if __name__ == "__main__":
    sys.exit(main())
