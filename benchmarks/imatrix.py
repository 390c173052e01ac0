"""Does an importance matrix that has seen images help? On `shapes`, and on a copy of 320 columns.

    python benchmarks/imatrix.py --json benchmarks/results/imatrix.json
    python benchmarks/imatrix.py --checkpoint shapes-320 --name "shapes, 320 columns" --json ...

(`shapes/widen.py` says how the copy is made: its rows do not divide by 256, so levels fall back to
blocks of 32.) The F16 model is run over scenes of the training kind, as `edgevlm calibrate` does,
with questions that it was trained for; the sums are balanced in several ways: rows of text alone
(what llama-imatrix would see of such prompts), rows of images alone, and weights between. "stock"
asks the questions that `edgevlm calibrate --images` asks, which `shapes` has never heard.

Each level is quantized with each and led along the F32 model's answers about held-out scenes, two
questions each, with the same F32 projector: mean KL divergence in nats, with 95 % intervals by
drawing scenes again. What counts is the ratio to the level without a matrix: both are measured on
the same scenes, so its interval draws the same scenes for both and is narrower than the values'
own. The last line is the geometric mean of all levels' ratios.

Then the projector at three levels, with and without, beside the F32 text model: the same KL
divergence, and one minus the cosine of each visual token with F32's.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent / "shapes"))

from drawing import draw_scene, render
from level_drift import DESCRIBE, Asked, ask_about, lead, quantize
from scenes import KINDS, held_out
from scenes import ask as draw_question

from edgevlm.build.resolve import built_in_checkpoint
from edgevlm.calibrate.matrix import balanced, read_progress
from edgevlm.calibrate.run import Options, Sample, calibrate
from edgevlm.drift.prompts import STOCK_PROMPTS
from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import mmproj_encoder
from edgevlm.quantize.importance import Importance
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.run import plan_quantize
from edgevlm.runtime.vlm import open_vlm
from edgevlm.vectors import cosines

LEVELS = ("Q5_K_M", "Q4_K_M", "pi", "Q3_K_M", "Q2_K", "IQ3_S")
TEXT_ALONE = "text alone"
WEIGHTS = {TEXT_ALONE: 0.0, "0.25": 0.25, "0.5": 0.5, "images alone": 1.0}
STOCK, STOCK_WEIGHT = "stock, 0.25", 0.25
PROJECTOR_LEVELS = ("Q6_K", "Q5_K", "Q4_K")
N_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one file drifts from F32.

    Attributes:
        bits_per_weight: of the file.
        sums: [n_scenes, 2], KL divergence in nats and tokens, both questions of a scene together.
    """

    bits_per_weight: float
    sums: NDArray[np.float64]

    def mean(self) -> float:
        """Return the mean KL divergence over all tokens, in nats."""
        return float(self.sums[:, 0].sum() / self.sums[:, 1].sum())


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="An importance matrix on shapes.")
    parser.add_argument("--checkpoint", type=Path, default=built_in_checkpoint())
    parser.add_argument("--name", default="shapes")
    parser.add_argument("--levels", nargs="+", default=LEVELS)
    parser.add_argument("--scenes", type=int, default=64, help="to calibrate on")
    parser.add_argument("--held-out", type=int, default=128, help="scenes to measure on")
    parser.add_argument(
        "--variants", nargs="+", help="only these matrices; the projector not at all"
    )
    parser.add_argument("--json", type=Path, help="file to add the numbers to")
    parser.add_argument("--table", type=Path, help="print the tables of such a file, and no more")
    options = parser.parse_args()
    if options.table:
        print(tables(json.loads(options.table.read_text(encoding="utf-8"))))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files: dict[str, tuple[Path, Path]] = {}
        for outtype in ("f32", "f16"):
            conversion = plan_conversion(options.checkpoint, name="shapes", outtype=outtype)
            files[outtype] = folder / f"text-{outtype}.gguf", folder / f"mmproj-{outtype}.gguf"
            write_gguf(conversion.text, files[outtype][0])
            write_gguf(conversion.mmproj, files[outtype][1])
        matrices = collect(folder, files["f16"], options.scenes)
        chosen = {name: matrices[name] for name in options.variants or matrices}
        examples = [held_out(index) for index in range(options.held_out)]
        asked = ask_about(
            [(np.asarray(render(scene)), question.text) for scene, question in examples],
            *files["f32"],
        )
        text = texts(folder, *files["f32"], asked, chosen, options.levels)
        projector: dict[str, Any] = {}
        if not options.variants:
            projector = projectors(folder, *files["f32"], asked, matrices["0.5"])
    if options.json:
        document: dict[str, Any] = {}
        if options.json.exists():
            document = json.loads(options.json.read_text(encoding="utf-8"))
        document[options.name] = {
            "calibrated_on": options.scenes,
            "held_out": options.held_out,
            "n_tokens": sum(len(one.answer) for one in asked),
            "text": text,
            "projector": projector,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def tables(document: Mapping[str, Any]) -> str:
    """Return the numbers as tables of Markdown."""
    lines: list[str] = []
    for name, found in document.items():
        rows = found["text"]
        variants = [one for one in rows["all"] if one != "none"]
        lines += [f"| {name} | bits | no matrix | {' | '.join(variants)} |"]
        lines += ["|" + " --- |" * (3 + len(variants))]
        for level, row in rows.items():
            if level == "all":
                ratios, bits, kld = row, "", ""
            else:
                ratios = {one: row[one]["ratio"] for one in row}
                bits, kld = f"{row['none']['bits_per_weight']:.2f}", drifted(row["none"])
            shown = " | ".join(marked(ratios[one]) for one in variants)
            lines += [f"| {level} | {bits} | {kld} | {shown} |"]
        lines += [
            "",
            "| projector | no matrix | ratio | 1 - cosine, mean (worst) | with the matrix |",
        ]
        lines += ["|" + " --- |" * 5]
        for level, row in found["projector"].items():
            if level == "all":
                lines += [f"| all | | {marked(row)} | | |"]
                continue
            none, matrix = row["none"], row["matrix"]
            apart = " | ".join(
                "{:.1e} ({:.1e})".format(*one["one_minus_cosine"]) for one in (none, matrix)
            )
            lines += [f"| {level} | {drifted(none)} | {marked(matrix['ratio'])} | {apart} |"]
        lines += [""]
    return "\n".join(lines)


def drifted(record: Mapping[str, Any]) -> str:
    """Return a mean KL divergence with its interval."""
    return f"{record['mean_kld']:.1e} ± {record['interval']:.0e}"


def marked(ratio: Sequence[float]) -> str:
    """Return a ratio with its interval, bold where that leaves out 1."""
    value, low, high = ratio
    mark = "" if low <= 1 <= high else "**"
    return f"{mark}{value:.2f}{mark} ({low:.2f} to {high:.2f})"


def collect(folder: Path, files: tuple[Path, Path], n_scenes: int) -> dict[str, Importance]:
    """Calibrate on scenes that were not held out; return the matrix balanced in several ways."""
    chance = random.Random("calibration/0")
    own: list[Sample] = []
    stock: list[Sample] = []
    for index in range(n_scenes):
        path = folder / f"scene-{index:03d}.png"
        scene = draw_scene(chance)
        render(scene).save(path)
        drawn = [draw_question(chance, scene, kind) for kind in chance.sample(KINDS, len(KINDS))]
        asked = [question.text for question in drawn if question is not None]
        own += [Sample(image=path, prompt=prompt) for prompt in (DESCRIBE, *asked[:2])]
        stock += [Sample(image=path, prompt=prompt) for prompt in STOCK_PROMPTS]
    found: dict[str, Importance] = {}
    for samples, weights in ((own, WEIGHTS), (stock, {STOCK: STOCK_WEIGHT})):
        out = folder / "imatrix.gguf"
        result = calibrate(*files, samples, out=out, options=Options(image_weight=0.5))
        print(f"{result.n_run} prompts, rows: {result.n_rows}")
        sums = read_progress(out).sums
        for name, weight in weights.items():
            channels = {
                matrix: (one.sum2 / np.maximum(one.counts, 1)[:, None]).astype(np.float32).ravel()
                for matrix, one in balanced(sums, image_weight=weight).items()
                if matrix != "token_embd.weight"
            }
            found[name] = Importance(channels=channels)
    return found


def texts(
    folder: Path,
    text: Path,
    mmproj: Path,
    asked: Sequence[Asked],
    matrices: Mapping[str, Importance],
    levels: Sequence[str],
) -> dict[str, Any]:
    """Print and return what each level of the text model drifts, with each matrix."""
    variants: dict[str, Importance | None] = {"none": None, **matrices}
    print(f"{'level':14}", *(f"{name:>25}" for name in variants), flush=True)
    table: dict[str, dict[str, Measured]] = {}
    for level in levels:
        table[level] = {}
        for name, importance in variants.items():
            path = folder / "level.gguf"
            quantize(load_profile(level), text, path, importance)
            table[level][name] = drift(path, path, mmproj, asked)
        print(f"{level:14}", *cells(table[level]), flush=True)
    overall = {
        name: pooled([row[name] for row in table.values()], nothing(table)) for name in variants
    }
    print(f"{'all':14}", *(f"{show(*ratio):>25}" for ratio in overall.values()), flush=True)
    if TEXT_ALONE in variants:
        bases = [row[TEXT_ALONE] for row in table.values()]
        ratios = [pooled([row[name] for row in table.values()], bases) for name in variants]
        print(f"{'to text alone':14}", *(f"{show(*ratio):>25}" for ratio in ratios), flush=True)
    return {**{level: records(row) for level, row in table.items()}, "all": overall}


def drift(path: Path, text: Path, mmproj: Path, asked: Sequence[Asked]) -> Measured:
    """Lead the model along the answers; `path` is the file whose bits count."""
    parts = [(kld.sum(), len(kld)) for kld, _ in lead(text, mmproj, asked)]
    sums = np.array(parts, dtype=np.float64).reshape(-1, 2, 2).sum(axis=1)
    return Measured(bits_per_weight=read_gguf(path).bits_per_weight, sums=sums)


def nothing(table: Mapping[str, Mapping[str, Measured]]) -> list[Measured]:
    """Return each level without a matrix."""
    return [row["none"] for row in table.values()]


def pooled(ones: Sequence[Measured], bases: Sequence[Measured]) -> tuple[float, float, float]:
    """Return the geometric mean of ratios of means, and its 95 % interval over scenes."""
    chance = np.random.default_rng(0)
    n_scenes = len(bases[0].sums)
    drawn = chance.integers(0, n_scenes, size=(N_DRAWS, n_scenes))
    logs = np.zeros(N_DRAWS)
    exact = 0.0
    for one, base in zip(ones, bases, strict=True):
        # The tokens are the same on both sides: only the sums of divergence are left.
        logs += np.log(one.sums[drawn, 0].sum(axis=1) / base.sums[drawn, 0].sum(axis=1))
        exact += float(np.log(one.mean() / base.mean()))
    low, high = np.exp(np.quantile(logs / len(ones), [0.025, 0.975]))
    return float(np.exp(exact / len(ones))), float(low), float(high)


def half_interval(one: Measured) -> float:
    """Return half the 95 % interval of the mean, scenes drawn again."""
    chance = np.random.default_rng(0)
    drawn = one.sums[chance.integers(0, len(one.sums), size=(N_DRAWS, len(one.sums)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(high - low) / 2


def show(ratio: float, low: float, high: float) -> str:
    """Return a ratio with its interval."""
    return f"x{ratio:.2f} [{low:.2f}, {high:.2f}]"


def cells(row: Mapping[str, Measured]) -> list[str]:
    """Return mean and ratio of each variant of a level."""
    return [f"{one.mean():.2e} {show(*pooled([one], [row['none']])):>16}" for one in row.values()]


def records(row: Mapping[str, Measured]) -> dict[str, Any]:
    """Return a level's variants as numbers of a document."""
    return {
        name: {
            "bits_per_weight": one.bits_per_weight,
            "mean_kld": one.mean(),
            "interval": half_interval(one),
            "ratio": pooled([one], [row["none"]]),
            **({"to_text": pooled([one], [row[TEXT_ALONE]])} if TEXT_ALONE in row else {}),
        }
        for name, one in row.items()
    }


def projectors(
    folder: Path, text: Path, mmproj: Path, asked: Sequence[Asked], importance: Importance
) -> dict[str, Any]:
    """Print and return what each level of the projector drifts, without and with the matrix."""
    images = [one.pixels for one in asked[::2]]
    exact = embeddings(text, mmproj, images)
    found: dict[str, Any] = {}
    table: dict[str, dict[str, Measured]] = {}
    print("projector: KLD; 1 - cosine, mean and largest; without and with the matrix")
    for level in PROJECTOR_LEVELS:
        row: dict[str, Measured] = {}
        apart: dict[str, tuple[float, float]] = {}
        for name, one in (("none", None), ("matrix", importance.for_projector())):
            path = folder / "mmproj-level.gguf"
            encoder = replace(mmproj_encoder(level), importance=one)
            write_gguf(plan_quantize(mmproj, encoder), path, encoder=encoder)
            row[name] = drift(path, text, path, asked)
            cosine = cosines(exact, embeddings(text, path, images))
            apart[name] = (float(1 - cosine.mean()), float(1 - cosine.min()))
        table[level] = row
        found[level] = records(row)
        for name, both in apart.items():
            found[level][name]["one_minus_cosine"] = both
        print(f"{level:14}", *cells(row), *(f"{a:10.2e} {b:9.2e}" for a, b in apart.values()))
    found["all"] = pooled([row["matrix"] for row in table.values()], nothing(table))
    print(f"{'all':14}", show(*found["all"]), flush=True)
    return found


def embeddings(
    text: Path, mmproj: Path, images: Sequence[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """Return the visual tokens of all images, [n, width]."""
    with open_vlm(model=text, mmproj=mmproj, n_ctx=512, device="cpu") as vlm:
        rows = [tile for image in images for tile in vlm.encode(image).tiles]
    return np.concatenate(rows)


if __name__ == "__main__":
    sys.exit(main())
