"""What each level costs on `shapes`: drift of the distributions on its held-out scenes.

    python benchmarks/level_drift.py [--json FILE] [LEVEL|FILE.toml ...]

The F32 model answers the 64 built-in questions and describes each image, greedily; each level is
then led along the same answers (teacher-forced), and its distribution held against the F32 one at
every token. The projector is the same F32 file throughout: this is the text model's loss alone. Two
tables: the file as it is (rows of 256 and 768 divide by every block), and `narrow`: the same rules
with every fallback taken, as in models whose rows do not divide by 256, such as SmolVLM (576, 960)
or Qwen2.5-0.5B (896).

Limits: one model of 10 M parameters, small questions. It orders levels and sets the budgets of our
own profiles; how much another model loses must be measured on it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf
from numpy.typing import NDArray

from edgevlm.build.resolve import built_in_checkpoint, built_in_folder
from edgevlm.drift.prompts import read_prompts
from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.importance import Importance
from edgevlm.quantize.profile import QuantProfile, Rule
from edgevlm.quantize.profile_file import load_profile, profile_names
from edgevlm.quantize.run import plan_quantize
from edgevlm.runtime.image import load_image
from edgevlm.runtime.vlm import VLM, open_vlm
from edgevlm.vectors import log_softmax

MAX_TOKENS = 60
CONTEXT = 512
DESCRIBE = "Describe the image."


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question, and what the 16-bit model says to it.

    Attributes:
        prompt: the question.
        pixels: RGB uint8 [128, 128, 3].
        answer: token ids.
        logprobs: [n_tokens, n_vocab] float64, natural logarithm.
    """

    prompt: str
    pixels: NDArray[np.uint8]
    answer: tuple[int, ...]
    logprobs: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far a level is from 16 bits, over all tokens of all answers.

    Attributes:
        bits_per_weight: of the file, everything in it counted.
        mean_kld: in nats.
        interval: half the width of the mean's 95 % interval, scenes drawn again (bootstrap).
        p99_kld: 99th percentile, in nats.
        max_kld: in nats.
        same_top: share of positions with the same most likely token.
        n_tokens: positions.
    """

    bits_per_weight: float
    mean_kld: float
    interval: float
    p99_kld: float
    max_kld: float
    same_top: float
    n_tokens: int


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Drift of every level on shapes.")
    parser.add_argument("levels", nargs="*", metavar="LEVEL")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    profiles = [load_profile(level) for level in options.levels or profile_names()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        conversion = plan_conversion(built_in_checkpoint(), name="shapes", outtype="f32")
        text, mmproj = folder / "text.gguf", folder / "mmproj.gguf"
        write_gguf(conversion.text, text)
        write_gguf(conversion.mmproj, mmproj)
        asked = ask(text, mmproj)
        tables: dict[str, dict[str, Drift]] = {"as it is": {}, "narrow": {}}
        for table, drifts in tables.items():
            print(f"{table:12} {'bits':>6} {'mean KLD':>21} {'p99':>9} {'max':>8} {'same top':>9}")
            for profile in profiles:
                one = narrowed(profile) if table == "narrow" else profile
                drifts[profile.name] = drift = measure(one, text, mmproj, asked, folder)
                print(row(profile.name, drift), flush=True)
    if options.json:
        document = {
            table: {name: asdict(drift) for name, drift in drifts.items()}
            for table, drifts in tables.items()
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def ask(text: Path, mmproj: Path) -> list[Asked]:
    """Return the built-in questions and a description of every image, with 16-bit answers."""
    folder = built_in_folder()
    prompts = read_prompts(folder / "prompts.jsonl")
    scenes = [(load_image(folder / one.paths[0]), one.prompt) for one in prompts]
    return ask_about(scenes, text, mmproj)


def ask_about(
    scenes: Sequence[tuple[NDArray[np.uint8], str]], text: Path, mmproj: Path
) -> list[Asked]:
    """Return the question and a description of each picture, with 16-bit answers, in turn."""
    asked: list[Asked] = []
    with open_vlm(model=text, mmproj=mmproj, n_ctx=CONTEXT, device="cpu") as vlm:
        for pixels, own in scenes:
            for question in (own, DESCRIBE):
                answer = vlm.generate(question, [pixels]).token_ids[:MAX_TOKENS]
                logits = vlm.answer_logits(question, [pixels], answer=answer)
                asked.append(
                    Asked(
                        prompt=question,
                        pixels=pixels,
                        answer=tuple(answer),
                        logprobs=log_softmax(logits),
                    )
                )
    return asked


def narrowed(profile: QuantProfile) -> QuantProfile:
    """Return the profile with every type replaced by its fallback."""

    def of(rule: Rule) -> Rule:
        fallback = rule.fallback or profile.fallback.get(rule.type, rule.type)
        return replace(rule, type=fallback)

    return replace(
        profile,
        type=profile.fallback.get(profile.type, profile.type),
        rules=tuple(of(rule) for rule in profile.rules),
    )


def measure(
    profile: QuantProfile,
    text: Path,
    mmproj: Path,
    asked: Sequence[Asked],
    folder: Path,
    importance: Importance | None = None,
) -> Drift:
    """Quantize the text model, and lead it along the answers."""
    path = folder / "level.gguf"
    quantize(profile, text, path, importance)
    parts = lead(path, mmproj, asked)
    means = np.array([[kld.sum(), len(kld)] for kld, _ in parts])
    klds = np.concatenate([kld for kld, _ in parts])
    same = np.concatenate([same for _, same in parts])
    file = read_gguf(path)
    return Drift(
        bits_per_weight=file.bits_per_weight,
        mean_kld=float(klds.mean()),
        interval=half_interval(means),
        p99_kld=float(np.quantile(klds, 0.99)),
        max_kld=float(klds.max()),
        same_top=float(same.mean()),
        n_tokens=len(klds),
    )


def quantize(profile: QuantProfile, text: Path, path: Path, importance: Importance | None) -> None:
    """Write the text model at a level."""
    if importance is None:
        profile = replace_imatrix_types(profile)
    encoder = text_encoder(profile, importance=importance)
    write_gguf(plan_quantize(text, encoder), path, encoder=encoder)


def lead(
    path: Path, mmproj: Path, asked: Sequence[Asked]
) -> list[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Lead a model along the answers; return what `divergence` does of each."""
    with open_vlm(model=path, mmproj=mmproj, n_ctx=CONTEXT, device="cpu") as vlm:
        return [divergence(vlm, one) for one in asked]


def replace_imatrix_types(profile: QuantProfile) -> QuantProfile:
    """Return the profile with IQ2_S, which needs an importance matrix, stored as Q2_K."""

    def of(type_: str) -> str:
        return "Q2_K" if type_ == "IQ2_S" else type_

    rules = tuple(replace(rule, type=of(rule.type)) for rule in profile.rules)
    return replace(profile, type=of(profile.type), rules=rules)


def divergence(vlm: VLM, one: Asked) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return KLD(16 bits, level) in nats and whether the top token is the same, per position."""
    ours = log_softmax(vlm.answer_logits(one.prompt, [one.pixels], answer=one.answer))
    kld = (np.exp(one.logprobs) * (one.logprobs - ours)).sum(axis=1)
    return np.maximum(kld, 0.0), ours.argmax(axis=1) == one.logprobs.argmax(axis=1)


def half_interval(sums: NDArray[np.float64]) -> float:
    """Return half the 95 % interval of sum / count, questions drawn again 1,000 times."""
    random = np.random.default_rng(0)
    drawn = sums[random.integers(0, len(sums), size=(1000, len(sums)))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    return float(high - low) / 2


def row(name: str, drift: Drift) -> str:
    """Return a line of the table."""
    return (
        f"{name:12} {drift.bits_per_weight:6.2f} {drift.mean_kld:11.3g} +- {drift.interval:6.1g}"
        f" {drift.p99_kld:9.2g} {drift.max_kld:8.2g} {100 * drift.same_top:8.2f}%"
    )


if __name__ == "__main__":
    sys.exit(main())
