"""How much longer calibration takes than asking the same question plainly.

    python benchmarks/random_checkpoint.py FOLDER
    edgevlm convert FOLDER --outtype f16 --out MODEL
    python benchmarks/calibrate_cost.py MODEL [--runs 5] [--threads 2] [--tokens 64]

Two models are held open, one with sums and one without, and asked in turn about one image of
448 x 448: encode, prefill, a greedy answer. With sums the answer is read again in one batch, as
`edgevlm calibrate` does. Printed are wall seconds and seconds of processor time of each pair, and
the median of their ratios: on a busy machine processor time with --threads 1 is the honest one, for
nothing waits. The goal is a ratio of at most 1.2.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from edgevlm.native.channel_sums import ChannelSums
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm

QUESTION = "Describe the image."


def main() -> int:
    """Print a line a pair, and the medians."""
    parser = argparse.ArgumentParser(description="The cost of calibration.")
    parser.add_argument("model", type=Path, help="folder with one 16-bit model and its projector")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    mmproj = next(options.model.glob("mmproj*.gguf"))
    text = next(path for path in options.model.glob("*.gguf") if path != mmproj)
    sums = ChannelSums(leaves_out_steps=True)

    def opened(sums: ChannelSums | None):
        return open_vlm(
            model=text,
            mmproj=mmproj,
            n_ctx=1024,
            device="cpu",
            n_threads=options.threads,
            sums=sums,
        )

    ratios: list[tuple[float, float]] = []
    with opened(None) as plain, opened(sums) as summed:
        for run in range(options.runs + 1):
            one = asked(plain, options.tokens, again=False)
            other = asked(summed, options.tokens, again=True)
            if run == 0:
                continue  # pages of the files come in
            ratios.append((other[0] / one[0], other[1] / one[1]))
            print(
                f"plain {one[0]:.2f} s, {one[1]:.2f} s of the processor; with sums {other[0]:.2f},"
                f" {other[1]:.2f}",
                flush=True,
            )
    wall, processor = (median(one[index] for one in ratios) for index in (0, 1))
    print(f"with sums: {wall:.2f} of the time, {processor:.2f} of the processor's")
    return 0


def asked(vlm: VLM, n_tokens: int, *, again: bool) -> tuple[float, float]:
    """Ask once; return wall seconds and seconds of processor time."""
    image = np.random.default_rng(0).integers(0, 255, (448, 448, 3), dtype=np.uint8)
    vlm.forget()
    start = time.perf_counter(), time.process_time()
    answer = vlm.generate(QUESTION, [image], params=SamplingParams(max_tokens=n_tokens))
    if again:
        vlm.cache.read_again(vlm.cache.n_used - answer.n_prompt_tokens)
    return time.perf_counter() - start[0], time.process_time() - start[1]


if __name__ == "__main__":
    sys.exit(main())
