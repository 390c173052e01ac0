"""Every family on this machine's GPU: does it load, does it see, how far is it from transformers?

    python benchmarks/device.py [--device auto] [--json FILE] [GOLDEN ...]

Each golden of tests/goldens is converted and answers its reference's prompts on the CPU and on the
device, in a process of its own, so that an abort is a line of the table and not the end of it. The
numbers are the largest KL divergence from transformers in nats (teacher-forced, worst position):
F16 on the CPU and on the device with the settings of a comparison (KV cache in F32, no flash
attention), on the device as `chat` runs it, and there from Q4_K_M, whose own loss dominates. Then
`shapes` answers its 64 questions on both, with decode tokens per second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from edgevlm_convert import convert_checkpoint, plan_conversion

from edgevlm.native.devices import devices
from edgevlm.quantize.encode import mmproj_encoder, text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.runtime.vlm import open_vlm
from edgevlm.verify.metrics import kl_divergence
from tests.goldens.files import case_images, golden_cases, redraw
from tests.goldens.recipes import RECIPES

# (column, level, on the device, strict)
RUNS = (
    ("cpu", "F16", False, True),
    ("device", "F16", True, True),
    ("as chat runs", "F16", True, False),
    ("Q4_K_M", "Q4_K_M", True, False),
)
MAX_SECONDS = 300


def main() -> int:
    """Print a table, a line per family."""
    parser = argparse.ArgumentParser(description="Every family on this GPU.")
    parser.add_argument("goldens", nargs="*", metavar="GOLDEN")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.device)))
        return 0
    found = {"devices": [f"{one.name}: {one.description}" for one in devices()]}
    print("\n".join(found["devices"]))
    names = options.goldens or [name for name, one in RECIPES.items() if not one.refused]
    columns = [run[0] for run in RUNS]
    print(f"{'golden':24}", *(f"{column:>13}" for column in columns))
    results: dict[str, dict[str, float] | str] = {}
    for name in names:
        results[name] = one = in_child(name, options.device)
        if isinstance(one, str):
            print(f"{name:24} {one}", flush=True)
        else:
            print(f"{name:24}", *(f"{one[column]:13.2g}" for column in columns), flush=True)
    if options.json:
        options.json.write_text(json.dumps({**found, "max_kld": results}, indent=1) + "\n")
    return 0


def in_child(name: str, device: str) -> dict[str, float] | str:
    """Measure one golden in another process; return what it printed, or how it ended."""
    command = [sys.executable, __file__, "--one", name, "--device", device]
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end after {MAX_SECONDS} s"
    if run.returncode:
        last = (run.stderr.strip() or "nothing said").splitlines()[-1]
        return f"ended with {run.returncode}: {last}"
    return json.loads(run.stdout.splitlines()[-1])


def measure(name: str, device: str) -> dict[str, float]:
    """Return the largest KLD of every run."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = redraw(name, folder / "checkpoint")
        files = {level: write(checkpoint, folder, level) for level in ("F16", "Q4_K_M")}
        return {
            column: worst(name, files[level], device if on_device else "cpu", strict=strict)
            for column, level, on_device, strict in RUNS
        }


def write(checkpoint: Path, folder: Path, level: str) -> tuple[Path, Path]:
    """Convert a checkpoint; return text model and projector."""
    paths = folder / f"{level}.gguf", folder / f"mmproj-{level}.gguf"
    profile = load_profile(level) if level != "F16" else None
    text = text_encoder(profile) if profile else None
    mmproj = mmproj_encoder("Q8_0" if profile else "F16")
    plan = plan_conversion(checkpoint, outtype="f16", text_encoder=text, mmproj_encoder=mmproj)
    convert_checkpoint(
        plan, text_path=paths[0], mmproj_path=paths[1], text_encoder=text, mmproj_encoder=mmproj
    )
    return paths


def worst(name: str, files: Sequence[Path], device: str, *, strict: bool) -> float:
    """Return the largest KLD from transformers over all prompts and positions, in nats."""
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=1024, device=device, strict=strict) as vlm:
        parts = [
            kl_divergence(
                case,
                vlm.answer_logits(
                    case.prompt, case_images(case), answer=[int(token) for token in case.answer]
                ),
            )
            for case in golden_cases(name)
        ]
    return float(np.concatenate(parts).max())


if __name__ == "__main__":
    sys.exit(main())
