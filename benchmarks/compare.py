"""What `edgevlm compare` finds on `shapes`, and what it costs beside the bare decodes.

    python benchmarks/compare.py [--model DIR] [--prompts FILE.jsonl] [--n 200] [--max-tokens 128]
                                 [--levels Q8_0 Q6_K Q5_K_M Q4_K_M Q3_K_M Q2_K] [--json FILE]

The claims: drift rises as bits fall; a comparison takes at most 1.5 times what it spends in
llama.cpp (llama_decode, and encoding images); its memory is at most that of the largest model and
300 MB; a second run takes a third at most. Without --model the built-in model is asked held-out
questions (benchmarks/shapes/scenes.py), which it has not seen in training. With it, any model
directory, such as one made of benchmarks/random_checkpoint.py, for time and memory alone.

Time in llama.cpp is taken around the two calls, of the main process; the files of the levels are
made before the clock starts. There is no peer to run beside: llama-perplexity measures text alone,
from files of whole logits (benchmarks/perplexity_kld.py holds the KLD itself against it).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "shapes"))

from scenes import write_held_out

from edgevlm.build.convert import convert_model
from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.build.resolve import built_in_checkpoint
from edgevlm.drift.passes import Leading
from edgevlm.drift.questions import gather
from edgevlm.drift.report import DriftReport
from edgevlm.drift.run import CompareOptions, compare
from edgevlm.model_dir import open_model_dir
from edgevlm.native.projector import Projector
from edgevlm.native.text_context import TextContext

LEVELS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


class Clock:
    """Seconds spent in some methods."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, owner: type, name: str) -> None:
        """Count the time of a method from now on."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - started

        setattr(owner, name, timed)


def main() -> int:
    """Compare twice, and print the table and what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--n", type=int, default=200, help="held-out questions about shapes")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--levels", nargs="+", default=list(LEVELS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgevlm-compare-") as name:
        work = Path(name)
        os.environ["EDGEVLM_CACHE"] = str(work / "cache")
        folder = args.model or work / "shapes"
        if args.model is None:
            convert_model(built_in_checkpoint(), out=folder, name="shapes", outtype="f16")
        for level in args.levels:
            if open_model_dir(folder).find("text", level) is None:
                quantize_model(plan_quantization(open_model_dir(folder), level=level))
        prompts = args.prompts
        if prompts is None:
            write_held_out(args.n, work / "held-out")
            prompts = work / "held-out" / "prompts.jsonl"
        asked = gather(prompts=prompts)
        options = CompareOptions(
            levels=args.levels,
            leading=Leading(along="baseline", max_tokens=args.max_tokens),
            device="cpu",
        )
        clock = Clock()
        clock.watch(TextContext, "_decode")
        clock.watch(Projector, "encode")
        report = compare(open_model_dir(folder), asked, options)
        bare = clock.seconds
        again = compare(open_model_dir(folder), asked, options)
    show(report)
    sizes = [row.cost.text_n_bytes + (row.cost.mmproj_n_bytes or 0) for row in report.levels]
    peaks = [row.cost.peak_memory_n_bytes or 0 for row in report.levels]
    found = {
        "seconds": report.seconds,
        "bare_seconds": round(bare, 3),
        "ratio": round(report.seconds / bare, 3),
        "second_run_seconds": again.seconds,
        "second_run_share": round(again.seconds / report.seconds, 4),
        "largest_model_n_bytes": max(sizes),
        "peak_memory_n_bytes": max(peaks),
        "beyond_largest_n_bytes": max(peaks) - max(sizes),
    }
    print(json.dumps(found, indent=1), file=sys.stderr)
    if args.json:
        document = {"cost": found, "report": report.model_copy(update={"changed": []}).model_dump()}
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


def show(report: DriftReport) -> None:
    """Print a row a level."""
    print(
        f"{'level':8} {'bits':>6} {'mean KLD':>10} {'95 % interval':>20} {'p99':>9} {'max':>8}"
        f" {'same top':>9} {'rms dp':>8} {'ppl':>8} {'exact/sim/diff':>15} {'right':>6}"
        f" {'peak MB':>8}"
    )
    for row in report.levels:
        drift, answers = row.tokens, row.answers
        kld = drift.mean_kld
        right = "" if row.tasks is None else str(row.tasks.n_right)
        print(
            f"{row.level:8} {row.cost.bits_per_weight:6.2f} {kld.value:10.3g}"
            f" {f'{kld.low:.2g} to {kld.high:.2g}':>20} {drift.p99_kld:9.2g} {drift.max_kld:8.2g}"
            f" {drift.same_top_token.value:9.2%} {drift.rms_delta_p:8.2g}"
            f" {drift.perplexity_ratio.value:8.5f}"
            f" {f'{answers.exact}/{answers.similar}/{answers.different}':>15} {right:>6}"
            f" {(row.cost.peak_memory_n_bytes or 0) / 1e6:8.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
