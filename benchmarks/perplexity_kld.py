"""Our KLD beside llama-perplexity's own, on the same text and files.

    python benchmarks/perplexity_kld.py --peer LLAMA_PERPLEXITY [--shape qwen3-vl-0.5b]
                                        [--levels Q8_0 Q4_K_M Q2_K] [--chunks N] [--threads 2]
                                        [--checkpoints DIR] [--json FILE]

llama-perplexity scores text alone: the second half of each chunk of 512 tokens, 255 positions. It
stores the baseline's logits in 16 bits, in steps of (largest - smallest) / 65535, where smallest is
at most 16 below the largest; tokens below exp(-16) are left out of its sum. Three numbers are
therefore held against each other:

- `theirs`: what it prints.
- `again`: its formula, computed anew from its file of the baseline and our logits of the level.
  Where this equals `theirs`, both sides saw the same logits, and the rest is its storage.
- `ours`: `drift.kept_rows` and `drift.metrics`, the numbers of `edgevlm compare`.

The level `F16` is the baseline beside itself: ours is 0, theirs its noise. `log_ratio` is the mean
of ln PPL(level)/PPL(baseline); where the text holds tokens below exp(-16), theirs is off by the
same amount at every level, the one that F16 shows.

`--shape` takes a random checkpoint of a published shape (benchmarks/random_checkpoint.py) in place
of the built-in model, its last norm scaled so that logits have a standard deviation of 2.5. They
are flat over the whole vocabulary, the hardest case for rows that are kept in part: nearly all are
kept whole. The peer must be built from the llama.cpp that is installed.

stderr gets the table, `--json` the numbers.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf
from numpy.typing import NDArray

from convert import make_checkpoint
from edgevlm.build.resolve import built_in_checkpoint, built_in_folder
from edgevlm.drift.kept_rows import KeptRows, diverge, keep_rows, token_logprobs
from edgevlm.drift.metrics import ScoredAnswer, token_drift
from edgevlm.drift.prompts import read_prompts
from edgevlm.gguf_file import read_gguf
from edgevlm.native.text_context import ContextOptions, TextContext, open_context
from edgevlm.native.text_model import ModelOptions, open_text_model
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.run import plan_quantize

N_CTX = 512
FIRST = N_CTX // 2
LOWEST = -16.0
SEED = 1
SPREAD = 2.5
PRINTED = {
    "mean_kld": r"Mean +KLD: +(\S+)",
    "max_kld": r"Maximum KLD: +(\S+)",
    "p999_kld": r"99\.9% +KLD: +(\S+)",
    "p99_kld": r"99\.0% +KLD: +(\S+)",
    "median_kld": r"Median +KLD: +(\S+)",
    "log_ratio": r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +: +(\S+)",
    "mean_delta_p": r"Mean +Δp: +(\S+)",
    "rms_delta_p": r"RMS Δp +: +(\S+)",
    "same_top": r"Same top p: +(\S+)",
}
PERCENT = ("mean_delta_p", "rms_delta_p", "same_top")


@dataclass(frozen=True, kw_only=True)
class Base:
    """llama-perplexity's file of the baseline.

    Attributes:
        tokens: int32 [n_chunks, 512].
        scales: float32 [n_chunks, 255], one step of a stored value.
        lowest: float32 [n_chunks, 255], log-probability of the value 0.
        values: uint16 [n_chunks, 255, n_vocab], mapped.
    """

    tokens: NDArray[np.int32]
    scales: NDArray[np.float32]
    lowest: NDArray[np.float32]
    values: NDArray[np.uint16]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--shape")
    parser.add_argument("--checkpoints", type=Path, help="folder, kept; made when it is missing")
    parser.add_argument("--levels", nargs="+", default=["Q8_0", "Q4_K_M", "Q2_K"])
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="edgevlm-kld-") as name:
        folder = Path(name)
        checkpoint = built_in_checkpoint()
        if options.shape:
            checkpoint = (options.checkpoints or folder) / options.shape
            make_checkpoint(checkpoint, options.shape)
        text = folder / "F16.gguf"
        write_gguf(plan_conversion(checkpoint, name="m", outtype="f16").text, text)
        words = folder / "words.txt"
        words.write_text(some_text(), encoding="utf-8")
        peer = Peer(options.peer, words, options.chunks, options.threads)
        peer.run(text, ["--kl-divergence-base", str(folder / "base.kld")])
        if options.shape:
            spread(text, read_base(folder / "base.kld"), options.threads)
            peer.run(text, ["--kl-divergence-base", str(folder / "base.kld")])
        base = read_base(folder / "base.kld")
        kept, logprobs = our_baseline(text, base, options.threads)
        for level in ("F16", *options.levels):
            path = text
            if level != "F16":
                path = folder / "level.gguf"
                encoder = text_encoder(load_profile(level))
                write_gguf(plan_quantize(text, encoder), path, encoder=encoder)
            theirs = peer.compare(path, folder / "base.kld")
            again, ours = compared(path, base, kept, logprobs, options.threads)
            found[level] = {"theirs": theirs, "again": again, "ours": ours}
            show(level, found[level])
        n_kept = [len(rows.ids) / len(rows) for rows in kept]
    if options.json:
        document = {
            "model": options.shape or "shapes",
            "n_vocab": base.values.shape[2],
            "n_positions": base.scales.size,
            "mean_kept_tokens": float(np.mean(n_kept)),
            "levels": found,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def some_text() -> str:
    """Return the built-in questions with their answers, over and over in another order."""
    prompts = read_prompts(built_in_folder() / "prompts.jsonl")
    lines = [f"{one.prompt} {one.answer}" for one in prompts]
    draw = random.Random(SEED)
    return "\n".join("\n".join(draw.sample(lines, len(lines))) for _ in range(24))


class Peer:
    """llama-perplexity on one text."""

    def __init__(self, program: Path, words: Path, n_chunks: int, n_threads: int) -> None:
        self._command = [str(program), "-f", str(words), "--chunks", str(n_chunks)]
        sizes = ["-c", str(N_CTX), "-b", str(N_CTX), "-ub", str(N_CTX)]
        self._command += [*sizes, "-t", str(n_threads), "-ngl", "0"]

    def run(self, model: Path, options: list[str]) -> str:
        """Return what it says of a model."""
        done = subprocess.run(
            [*self._command, "-m", str(model), *options], capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"llama-perplexity failed:\n{done.stderr[-2000:]}")
        return done.stdout + done.stderr

    def compare(self, model: Path, base: Path) -> dict[str, float]:
        """Return its numbers of a level, in nats and shares."""
        said = self.run(model, ["--kl-divergence", "--kl-divergence-base", str(base)])
        numbers = {name: re.search(pattern, said) for name, pattern in PRINTED.items()}
        missing = [name for name, match in numbers.items() if match is None]
        if missing:
            sys.exit(f"llama-perplexity does not print {missing}:\n{said[-2000:]}")
        return {
            name: float(match[1].rstrip("%")) / (100 if name in PERCENT else 1)
            for name, match in numbers.items()
            if match is not None
        }


def read_base(path: Path) -> Base:
    """Read what `--kl-divergence-base` wrote (llama.cpp, tools/perplexity/perplexity.cpp)."""
    with path.open("rb") as file:
        if file.read(8) != b"_logits_":
            sys.exit(f"{path} is no file of log-probabilities")
        n_ctx, n_vocab, n_chunks = np.fromfile(file, dtype="<i4", count=3).tolist()
        tokens = np.fromfile(file, dtype="<i4", count=n_ctx * n_chunks).reshape(n_chunks, n_ctx)
        start = file.tell()
    # Two float32 before the values of each row, and room for an even number of them.
    width = 2 * ((n_vocab + 1) // 2) + 4
    shape = (n_chunks, n_ctx - 1 - n_ctx // 2, width)
    rows = np.memmap(path, dtype="<u2", mode="r", offset=start, shape=shape)
    heads = np.ascontiguousarray(rows[:, :, :4]).view("<f4")
    values = rows[:, :, 4 : 4 + n_vocab]
    return Base(tokens=tokens, scales=heads[..., 0], lowest=heads[..., 1], values=values)


def chunks(path: Path, base: Base, n_threads: int) -> Iterator[NDArray[np.float32]]:
    """Yield the logits of each chunk's second half, [255, n_vocab]."""
    options = ContextOptions(n_ctx=N_CTX, n_batch=N_CTX, n_outputs=FIRST, n_threads=n_threads)
    with open_text_model(path, ModelOptions(device="cpu")) as model:
        for tokens in base.tokens:
            read = tokens.tolist()
            if model.adds_bos and model.bos is not None:
                read[0] = model.bos
            with open_context(model, options) as context:
                yield second_half(context, read)


def second_half(context: TextContext, tokens: list[int]) -> NDArray[np.float32]:
    context.decode_tokens(tokens, n_logits=FIRST)
    return context.logits(FIRST)[:-1]


def spread(path: Path, base: Base, n_threads: int) -> None:
    """Scale the last norm of a model so that its logits have the standard deviation SPREAD."""
    logits = next(chunks(path, base, n_threads))
    factor = np.float32(SPREAD / logits.std())
    norm = next(one for one in read_gguf(path).tensors if one.name == "output_norm.weight")
    if norm.type != "F32":
        sys.exit(f"{norm.name} is {norm.type}")
    weights = np.memmap(path, dtype="<f4", mode="r+", offset=norm.offset, shape=norm.shape)
    weights *= factor
    weights.flush()


def our_baseline(
    path: Path, base: Base, n_threads: int
) -> tuple[list[KeptRows], list[NDArray[np.float64]]]:
    kept: list[KeptRows] = []
    logprobs: list[NDArray[np.float64]] = []
    for logits, tokens in zip(chunks(path, base, n_threads), base.tokens, strict=True):
        kept.append(keep_rows(logits))
        logprobs.append(token_logprobs(logits, tokens[FIRST + 1 :]))
    return kept, logprobs


def compared(
    path: Path,
    base: Base,
    kept: list[KeptRows],
    logprobs: list[NDArray[np.float64]],
    n_threads: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return llama-perplexity's formula computed again, and our own numbers."""
    scored: list[ScoredAnswer] = []
    again: list[NDArray[np.float64]] = []
    for number, logits in enumerate(chunks(path, base, n_threads)):
        found = diverge(kept[number], logits)
        level = token_logprobs(logits, base.tokens[number, FIRST + 1 :])
        scored.append(
            ScoredAnswer(
                cluster=str(number),
                is_image=False,
                kld=found.kld,
                kld_error=found.kld_error,
                same_top=found.same_top,
                p_level=np.exp(level),
                p_base=np.exp(logprobs[number]),
                logprob_level=level,
                logprob_base=logprobs[number],
            )
        )
        again.append(their_klds(base, number, logits))
    drift = token_drift(scored, seed=SEED)
    assert drift is not None
    klds = np.concatenate(again)
    ours = {
        "mean_kld": drift.mean_kld.value,
        "max_kld": drift.max_kld,
        "p999_kld": drift.p999_kld,
        "p99_kld": drift.p99_kld,
        "median_kld": drift.median_kld,
        "log_ratio": float(np.log(drift.perplexity_ratio.value)),
        "mean_delta_p": drift.mean_delta_p,
        "rms_delta_p": drift.rms_delta_p,
        "same_top": drift.same_top_token.value,
        "kld_error": drift.kld_error,
    }
    p999, p99, median = np.quantile(klds, [0.999, 0.99, 0.5])
    return {
        "mean_kld": float(klds.mean()),
        "max_kld": float(klds.max()),
        "p999_kld": float(p999),
        "p99_kld": float(p99),
        "median_kld": float(median),
    }, ours


def their_klds(base: Base, number: int, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sum over stored p above exp(-16) of p (ln p - ln q), position by position."""
    klds = np.zeros(len(logits))
    for place, row in enumerate(logits.astype(np.float64)):
        values = base.values[number, place].astype(np.float64)
        stored = base.scales[number, place] * values + base.lowest[number, place]
        level = row - row.max()
        level -= np.log(np.exp(level).sum())
        there = stored > LOWEST
        klds[place] = (np.exp(stored[there]) * (stored[there] - level[there])).sum()
    return klds


def show(level: str, numbers: dict[str, dict[str, float]]) -> None:
    print(f"{level:14} {'theirs':>10} {'again':>10} {'ours':>10}", file=sys.stderr)
    for name in (*PRINTED, "kld_error"):
        cells = [numbers[side].get(name) for side in ("theirs", "again", "ours")]
        texts = ["" if value is None else f"{value:.6f}" for value in cells]
        print(f"  {name:12} " + " ".join(f"{text:>10}" for text in texts), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
