"""How often the 95 % intervals of the drift report hold the true value, by simulation.

    python benchmarks/interval_coverage.py [--json FILE] [--runs N]

Images are drawn from made-up populations whose true value is known, as many as a user might have;
each has some tokens or some questions. The share of intervals that hold the true value should be
0.95. `plain` is the bootstrap's percentile interval, the one that tools usually print.

- `KLD`: an image's mean drift is lognormal with a sigma of 0.7 or 1.3 (the larger, the more a few
  images weigh), its 5 to 59 tokens lie around it, most of them lower, as drift does.
- `share`: four questions an image, which go together (beta-binomial).
- `ratio`: a perplexity ratio, normal from image to image.

Limits: real drift has another shape; what is shown is how many images make an interval honest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgevlm.drift.intervals import clustered_mean, clustered_ratio, clustered_share
from edgevlm.drift.report import Estimate

N_IMAGES = (1, 2, 3, 5, 10, 20, 50, 100, 200)
SEED = 1

Random = np.random.Generator
# Sums and counts of each image, and the true value.
Sample = tuple[np.ndarray, np.ndarray, float]


def kld(random: Random, n: int, sigma: float) -> Sample:
    means = random.lognormal(-(sigma**2) / 2, sigma, n)
    counts = random.integers(5, 60, n).astype(float)
    sums = means * random.gamma(0.3 * counts) / 0.3
    return sums, counts, 1.0


def share(random: Random, n: int, p: float) -> Sample:
    counts = np.full(n, 4.0)
    return random.binomial(4, random.beta(2 * p, 2 * (1 - p), n)).astype(float), counts, p


def ratio(random: Random, n: int) -> Sample:
    counts = random.integers(5, 60, n).astype(float)
    return random.normal(0.01, 0.05, n) * counts, counts, float(np.exp(0.01))


CASES: dict[str, tuple[Callable[..., Estimate], Callable[[Random, int], Sample]]] = {
    "KLD, sigma 0.7": (clustered_mean, lambda random, n: kld(random, n, 0.7)),
    "KLD, sigma 1.3": (clustered_mean, lambda random, n: kld(random, n, 1.3)),
    "share of 5 %": (clustered_share, lambda random, n: share(random, n, 0.05)),
    "share of 50 %": (clustered_share, lambda random, n: share(random, n, 0.5)),
    "perplexity ratio": (clustered_ratio, ratio),
}


def coverage(case: str, n: int, *, runs: int, draws: int = 2000) -> dict[str, float]:
    """Return the shares of intervals that hold the true value, and the median relative width."""
    interval, sample = CASES[case]
    random = np.random.default_rng([SEED, n])
    held = held_plain = 0
    widths: list[float] = []
    for run in range(runs):
        sums, counts, truth = sample(random, n)
        found = interval(sums, counts, seed=run, draws=draws)
        held += found.low <= truth <= found.high
        widths.append((found.high - found.low) / truth)
        low, high = plain(sums, counts, np.random.default_rng(run), draws)
        if interval is clustered_ratio:
            low, high = np.exp(low), np.exp(high)
        held_plain += low <= truth <= high
    return {"held": held / runs, "plain": held_plain / runs, "width": float(np.median(widths))}


def plain(sums: np.ndarray, counts: np.ndarray, random: Random, draws: int) -> tuple[float, float]:
    chosen = random.integers(len(sums), size=(draws, len(sums)))
    ratios = sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Coverage of the drift report's intervals.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=2000)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'':18} {'images':>6} {'held':>6} {'plain':>6} {'width':>7}")
    for case in CASES:
        for n in N_IMAGES:
            row = coverage(case, n, runs=options.runs)
            found.setdefault(case, {})[str(n)] = row
            numbers = f"{row['held']:6.3f} {row['plain']:6.3f} {row['width']:7.2g}"
            print(f"{case:18} {n:6} {numbers}", flush=True)
    if options.json:
        document = {"runs": options.runs, "draws": 2000, "coverage": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
