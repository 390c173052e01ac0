"""Does an importance matrix that has seen images help? On `shapes`, at six levels.

    python benchmarks/imatrix.py [--scenes 64] [--json FILE] [--levels Q4_K_M ...]

`edgevlm calibrate` runs the F16 model over scenes of the training kind, three questions each, and
the matrix is balanced in several ways: text rows alone (what llama-imatrix would see of such
prompts), image rows alone, and weights between. Each level is quantized with each, and its drift
from F32 measured on the 64 held-out scenes (`level_drift.py`: mean KL divergence in nats, 95 %
interval). `narrow` takes every fallback, as in models whose rows do not divide by 256.

The second table is the projector: its cosine with F32's, mean and least over the visual tokens of
the held-out scenes, with and without the matrix.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent / "shapes"))

from drawing import draw_scene, render
from level_drift import Drift, ask, measure, narrowed

from edgevlm.build.resolve import built_in_checkpoint, built_in_folder
from edgevlm.calibrate.matrix import balanced, read_progress
from edgevlm.calibrate.run import Options, Sample, calibrate
from edgevlm.cli.calibrate import STOCK_PROMPTS
from edgevlm.quantize.encode import mmproj_encoder
from edgevlm.quantize.importance import Importance
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.run import plan_quantize
from edgevlm.runtime.image import load_image
from edgevlm.runtime.vlm import open_vlm
from edgevlm.vectors import cosines

LEVELS = ("Q5_K_M", "Q4_K_M", "pi", "Q3_K_M", "Q2_K", "IQ3_S")
WEIGHTS = {"text alone": 0.0, "0.25": 0.25, "0.5": 0.5, "0.75": 0.75, "images alone": 1.0}
PROJECTOR_LEVELS = ("Q6_K", "Q5_K", "Q4_K")


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="An importance matrix on shapes.")
    parser.add_argument("--levels", nargs="+", default=LEVELS)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files: dict[str, tuple[Path, Path]] = {}
        for outtype in ("f32", "f16"):
            conversion = plan_conversion(built_in_checkpoint(), name="shapes", outtype=outtype)
            files[outtype] = folder / f"text-{outtype}.gguf", folder / f"mmproj-{outtype}.gguf"
            write_gguf(conversion.text, files[outtype][0])
            write_gguf(conversion.mmproj, files[outtype][1])
        matrices = collect(folder, files["f16"], options.scenes)
        text, mmproj = files["f32"]
        asked = ask(text, mmproj)
        tables: dict[str, dict[str, dict[str, Drift]]] = {}
        for table in ("as it is", "narrow"):
            print(f"{table:9}", *(f"{name:>19}" for name in ("none", *matrices)), flush=True)
            tables[table] = {}
            for level in options.levels:
                profile = load_profile(level)
                profile = narrowed(profile) if table == "narrow" else profile
                row: dict[str, Drift] = {}
                for name, importance in {"none": None, **matrices}.items():
                    row[name] = measure(profile, text, mmproj, asked, folder, importance)
                tables[table][level] = row
                cells = [f"{one.mean_kld:9.2e} +-{one.interval:7.0e}" for one in row.values()]
                print(f"{level:9}", *cells, flush=True)
        projector = projectors(folder, text, mmproj, matrices["0.5"])
    if options.json:
        document = {
            "text": {
                table: {
                    level: {name: asdict(one) for name, one in row.items()}
                    for level, row in x.items()
                }
                for table, x in tables.items()
            },
            "projector": projector,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def collect(folder: Path, files: tuple[Path, Path], n_scenes: int) -> dict[str, Importance]:
    """Calibrate on scenes that were not held out; return the matrix balanced in several ways."""
    chance = random.Random("calibration/0")
    samples: list[Sample] = []
    for index in range(n_scenes):
        path = folder / f"scene-{index:03d}.png"
        render(draw_scene(chance)).save(path)
        samples += [Sample(image=path, prompt=prompt) for prompt in STOCK_PROMPTS]
    out = folder / "imatrix.gguf"
    result = calibrate(*files, samples, out=out, options=Options(image_weight=0.5))
    print(f"{result.n_run} prompts, rows: {result.n_rows}")
    sums = read_progress(out).sums
    found: dict[str, Importance] = {}
    for name, weight in WEIGHTS.items():
        channels = {
            matrix: (one.sum2 / np.maximum(one.counts, 1)[:, None]).astype(np.float32).ravel()
            for matrix, one in balanced(sums, image_weight=weight).items()
            if matrix != "token_embd.weight"
        }
        found[name] = Importance(channels=channels)
    return found


def projectors(
    folder: Path, text: Path, mmproj: Path, importance: Importance
) -> dict[str, dict[str, tuple[float, float]]]:
    """Print and return mean and least cosine of visual tokens by level, without and with."""
    images = [load_image(path) for path in sorted((built_in_folder() / "images").glob("*.png"))]
    exact = embeddings(text, mmproj, images)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    print("projector: 1 - cosine, mean and largest, without and with the matrix")
    for level in PROJECTOR_LEVELS:
        found[level] = {}
        for name, one in (("none", None), ("matrix", importance.for_projector())):
            path = folder / "mmproj-level.gguf"
            encoder = mmproj_encoder(level)
            encoder = replace(encoder, importance=one)
            write_gguf(plan_quantize(mmproj, encoder), path, encoder=encoder)
            cosine = cosines(exact, embeddings(text, path, images))
            found[level][name] = (float(1 - cosine.mean()), float(1 - cosine.min()))
        print(f"{level:9}", *(f"{a:10.2e} {b:9.2e}" for a, b in found[level].values()), flush=True)
    return found


def embeddings(text: Path, mmproj: Path, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the visual tokens of all images, [n, width]."""
    with open_vlm(model=text, mmproj=mmproj, n_ctx=512, device="cpu") as vlm:
        rows = [tile for image in images for tile in vlm.encode(image).tiles]
    return np.concatenate(rows)


if __name__ == "__main__":
    sys.exit(main())
