"""Score the built-in `shapes` model on held-out questions, through transformers and as GGUF.

What: the share of exact answers per kind of question, greedy, each question asked alone, and the
share of questions to which both paths give the same answer, right or wrong. Why: the first tells
whether the model sees, the second whether the conversion and the runtime see the same. Limit: of
250 questions a kind the share is known to about +-2.5 points (two standard deviations at 95 %).

    python benchmarks/shapes/evaluate.py                                # both, the built-in model
    python benchmarks/shapes/evaluate.py --backend gguf --model DIR     # a folder of GGUF files
    python benchmarks/shapes/evaluate.py --backend transformers --answers a.json
    python benchmarks/shapes/evaluate.py --backend gguf --against a.json

The last two serve where torch and llama.cpp live in different environments. The table goes to
stderr, one JSON document to stdout.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from drawing import Scene, render
from plot import BARS
from scenes import CAPTION, KINDS, Question, held_out

ASSETS = Path(__file__).resolve().parents[2] / "edgevlm" / "assets" / "shapes"
MAX_TOKENS = {CAPTION: 120}
BATCH = 50

Example = tuple[Scene, Question]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to ask.

    Attributes:
        blind: show the empty background instead of the scene: what guessing alone gets.
        n_threads: of the runtime; None for every processor.
    """

    blind: bool = False
    n_threads: int | None = None

    def pixels(self, scene: Scene) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return what the model gets to see of `scene`, uint8 (128, 128, 3)."""
        seen = replace(scene, things=(), number=None) if self.blind else scene
        return np.asarray(render(seen))


Answers = list[str]


def answer_with_transformers(
    examples: list[Example], model_path: Path, options: Options
) -> Answers:
    """Answer with `Qwen3VLForConditionalGeneration` in float32, batched by length."""
    import torch
    from packing import SIDE, patches
    from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = Qwen3VLForConditionalGeneration.from_pretrained(model_path, dtype=torch.float32).eval()
    image_pad = model.config.image_token_id

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    lead = [*ids("<|im_start|>user\n<|vision_start|>"), *[image_pad] * SIDE**2]

    def tokens(index: int) -> list[int]:
        asked = examples[index][1].text
        return lead + ids(f"<|vision_end|>{asked}<|im_end|>\n<|im_start|>assistant\n")

    def group(index: int) -> tuple[bool, int]:
        return examples[index][1].kind == CAPTION, len(tokens(index))

    answers = [""] * len(examples)
    for key, run in itertools.groupby(sorted(range(len(examples)), key=group), group):
        for chunk in _chunks(list(run)):
            prompt = torch.tensor([tokens(index) for index in chunk])
            pixels, grid = patches([options.pixels(examples[index][0]) for index in chunk])
            with torch.inference_mode():
                output = model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    mm_token_type_ids=(prompt == image_pad).long(),
                    pixel_values=pixels,
                    image_grid_thw=grid,
                    do_sample=False,
                    max_new_tokens=MAX_TOKENS[CAPTION] if key[0] else 16,
                    eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
                    pad_token_id=tokenizer.pad_token_id,
                )
            for index, row in zip(chunk, output[:, prompt.shape[1] :], strict=True):
                answers[index] = tokenizer.decode(row, skip_special_tokens=True)
    return answers


def answer_with_gguf(examples: list[Example], model_path: Path, options: Options) -> Answers:
    """Answer through our own runtime; a checkpoint is first converted to F16 files."""
    from edgevlm.runtime.sampling import SamplingParams
    from edgevlm.runtime.vlm import open_vlm

    answers: Answers = []
    with contextlib.ExitStack() as stack:
        if (model_path / "config.json").exists():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            model_path = _convert(model_path, folder)
        projectors = set(model_path.glob("mmproj*.gguf"))
        model = _only(model_path, set(model_path.glob("*.gguf")) - projectors)
        mmproj = _only(model_path, projectors)
        vlm = stack.enter_context(
            open_vlm(model=model, mmproj=mmproj, n_ctx=512, n_threads=options.n_threads)
        )
        for scene, question in examples:
            params = SamplingParams(max_tokens=MAX_TOKENS.get(question.kind, 16))
            image = options.pixels(scene)
            answers.append(vlm.generate(question.text, [image], params=params).text)
    return answers


def _convert(checkpoint: Path, folder: Path) -> Path:
    from edgevlm.build.convert import convert_model

    return convert_model(checkpoint, out=folder, name="shapes", outtype="f16").folder


def _only(folder: Path, found: set[Path]) -> Path:
    """Return the one file found, for a table must be of one level."""
    if len(found) != 1:
        names = ", ".join(sorted(path.name for path in found)) or "none"
        raise SystemExit(f"error: {folder} must hold one model and one mmproj, found {names}")
    return found.pop()


def _chunks(indices: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(indices), BATCH):
        yield indices[start : start + BATCH]


def report(
    examples: list[Example], answers: dict[str, Answers], seconds: dict[str, float]
) -> dict[str, Any]:
    """Return the accuracies per kind and path, and how often the paths agree."""
    kinds: dict[str, list[int]] = collections.defaultdict(list)
    for index, (_, question) in enumerate(examples):
        kinds[question.kind].append(index)
    rows: dict[str, Any] = {}
    for kind, indices in kinds.items():
        row: dict[str, Any] = {"n": len(indices), "bar": BARS.get(kind)}
        for path, given in answers.items():
            row[path] = _share(given[i] == examples[i][1].answer for i in indices)
        row["agreement"] = _agreement(answers, indices)
        rows[kind] = row
    everything = list(range(len(examples)))
    return {
        "n": len(examples),
        "kinds": rows,
        "agreement": _agreement(answers, everything),
        "seconds": {path: round(value, 1) for path, value in seconds.items()},
        "bars_met": {
            path: all(row["bar"] is None or row[path] >= row["bar"] for row in rows.values())
            for path in answers
        },
    }


def _share(values: Iterator[bool] | list[bool]) -> float:
    listed = list(values)
    return round(sum(listed) / len(listed), 4)


def _agreement(answers: dict[str, Answers], indices: list[int]) -> float | None:
    if len(answers) < 2:
        return None
    one, other = list(answers.values())[:2]
    return _share([one[i] == other[i] for i in indices])


def show(document: dict[str, Any], paths: list[str]) -> None:
    """Print the table for people on stderr."""
    print(f"{'kind':<15}{'n':>6}{'bar':>7}", end="", file=sys.stderr)
    print("".join(f"{path:>14}" for path in (*paths, "agreement")), file=sys.stderr)
    for kind, row in document["kinds"].items():
        bar = "-" if row["bar"] is None else f"{row['bar']:.2f}"
        cells = [row[path] for path in (*paths, "agreement")]
        shares = ["-" if cell is None else f"{cell:.4f}" for cell in cells]
        print(f"{kind:<15}{row['n']:>6}{bar:>7}", end="", file=sys.stderr)
        print("".join(f"{share:>14}" for share in shares), file=sys.stderr)


def main() -> None:
    """Score as the command line asks."""
    parser = argparse.ArgumentParser(description="Score the shapes model on held-out questions.")
    parser.add_argument("--backend", choices=("transformers", "gguf", "both"), default="both")
    parser.add_argument("--model", type=Path, default=ASSETS / "checkpoint")
    parser.add_argument("--n", type=int, default=2000, help="questions, balanced over the kinds")
    parser.add_argument("--captions", action="store_true", help="score captions too, one in nine")
    parser.add_argument("--answers", type=Path, help="also write the answers to this file")
    parser.add_argument("--blind", action="store_true", help="show an empty picture instead")
    parser.add_argument("--threads", type=int, help="of the runtime; by default every processor")
    parser.add_argument("--against", type=Path, help="compare with answers written before")
    arguments = parser.parse_args()
    kinds = (*KINDS, CAPTION) if arguments.captions else KINDS
    examples = [held_out(index, kinds) for index in range(arguments.n)]
    options = Options(blind=arguments.blind, n_threads=arguments.threads)
    answers: dict[str, Answers] = {}
    seconds: dict[str, float] = {}
    if arguments.against:
        answers |= json.loads(arguments.against.read_text(encoding="utf-8"))
    backends: dict[str, Callable[[list[Example], Path, Options], Answers]] = {
        "transformers": answer_with_transformers,
        "gguf": answer_with_gguf,
    }
    for name, answer in backends.items():
        if arguments.backend in (name, "both"):
            began = time.perf_counter()
            answers[name] = answer(examples, arguments.model, options)
            seconds[name] = time.perf_counter() - began
    if arguments.answers:
        arguments.answers.write_text(json.dumps(answers) + "\n", encoding="utf-8")
    document = {"model": arguments.model.name, **report(examples, answers, seconds)}
    show(document, list(answers))
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
