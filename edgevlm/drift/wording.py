"""Numbers and verdicts of a drift report in words that every view shares.

Digits are what a measurement of some hundred prompts can carry: two or three. Strings of the report
come from strangers (prompts, file names); `clean` makes them safe to show, escaping is the view's.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from edgevlm.drift.report import DriftReport, Estimate, LevelReport, TokenDrift
from edgevlm.files import human_bytes

DASH = "\N{EN DASH}"
# Override the direction of all that follows: a reader would see another text than is there.
_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e")


def clean(text: str) -> str:
    """Return `text` with control characters and lone surrogates shown as escapes."""
    return "".join(
        character
        if character in "\n\t" or not _is_hidden(character)
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or character in _OVERRIDES


def kld(value: float) -> str:
    """Return nats with three digits or so: `0`, `4.2e-5`, `0.00061`, `0.0123`, `1.24`."""
    size = abs(value)
    if size == 0:
        return "0"
    if size < 0.0001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    if size >= 1:
        return f"{value:.3g}" if size < 1000 else f"{value:.0f}"
    return f"{value:.{3 if size >= 0.1 else 4 if size >= 0.01 else 5}f}"


def percent(share: float) -> str:
    """Return a share as `98.7 %`; only what is exactly so is 0 % or 100 %."""
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    shown = f"{100 * share:.1f}"
    return f"{'99.9' if shown == '100.0' else '0.1' if shown == '0.0' else shown} %"


def points(share: float) -> str:
    """Return a difference of shares in percentage points: `-1.5`, `+0.5`, `0`."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}") if abs(share) >= 0.0005 else "0"


def ratio(value: float) -> str:
    """Return a ratio to the baseline: `1.023`."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def rate(tok_per_sec: float) -> str:
    """Return a speed: `2,034`, `34.2`, `3.42`."""
    if tok_per_sec >= 100:
        return f"{tok_per_sec:,.0f}"
    return f"{tok_per_sec:.1f}" if tok_per_sec >= 10 else f"{tok_per_sec:.2f}"


def span(estimate: Estimate, show: Callable[[float], str]) -> str:
    """Return the 95 % interval, low and high with an en dash between: `88.9` to `96.8 %`."""
    return f"{show(estimate.low).removesuffix(' %')}\N{EN DASH}{show(estimate.high)}"


def plural(n: int, noun: str) -> str:
    """Return `1 image`, `2 images`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Return `A`, `A and B`, `A, B and C`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def n_bytes_of(level: LevelReport) -> int:
    """Return the bytes of text model and projector together."""
    return level.cost.text_n_bytes + (level.cost.mmproj_n_bytes or 0)


def drift_of(level: LevelReport) -> TokenDrift | None:
    """Return the drift that a level is judged by, None where no token could be scored."""
    return level.image or level.text


def has_limits(level: LevelReport) -> bool:
    """Whether anything was demanded of a level."""
    verdict = level.verdict
    limits = (
        verdict.max_mean_kld,
        verdict.max_p99_kld,
        verdict.min_same_top_token,
        verdict.max_share_different,
    )
    return any(limit is not None for limit in limits)


def verdict_word(level: LevelReport) -> str:
    """Return a level's verdict in a word or two."""
    if level.is_baseline:
        return "baseline"
    if not level.verdict.within:
        return "too much drift"
    return "within limits" if has_limits(level) else "no limit set"


def best_level(report: DriftReport) -> LevelReport | None:
    """Return the smallest level within its limits, None where none is or none was set."""
    found = [
        level
        for level in report.levels
        if not level.is_baseline and level.verdict.within and has_limits(level)
    ]
    return min(found, key=n_bytes_of, default=None)


def verdict_sentences(report: DriftReport) -> list[str]:
    """Return the verdict on all levels: which to take, and which lose too much."""
    levels = [level for level in report.levels if not level.is_baseline]
    if not levels:
        return [f"Only the baseline {report.baseline} was measured: there is nothing to compare."]
    if not any(has_limits(level) for level in levels):
        return ["No limits were set, so nothing is judged.", *_least_drift(levels)]
    fine = [level.level for level in levels if level.verdict.within]
    lost = [level.level for level in levels if not level.verdict.within]
    return [_division(fine, lost), *_advice(report, only=len(fine) == 1)]


def _least_drift(levels: Sequence[LevelReport]) -> list[str]:
    drifts = [(one.level, drift) for one in levels if (drift := drift_of(one)) is not None]
    if not drifts:
        return []
    level, drift = min(drifts, key=lambda one: one[1].mean_kld.value)
    return [f"{level} drifts least: mean KLD {kld(drift.mean_kld.value)}."]


def _division(fine: Sequence[str], lost: Sequence[str]) -> str:
    if not lost:
        return (
            f"{fine[0]} stays within its limits."
            if len(fine) == 1
            else f"All {len(fine)} levels stay within their limits."
        )
    if not fine:
        return (
            f"{lost[0]} drifts too far."
            if len(lost) == 1
            else f"All {len(lost)} levels drift too far."
        )
    return (
        f"{listed(fine)} {'stays' if len(fine) == 1 else 'stay'} within"
        f" {'its' if len(fine) == 1 else 'their'} limits;"
        f" {listed(lost)} {'drifts' if len(lost) == 1 else 'drift'} too far."
    )


def _advice(report: DriftReport, *, only: bool) -> list[str]:
    best = best_level(report)
    if best is None:
        return []
    size = human_bytes(n_bytes_of(best))
    share = n_bytes_of(best) / max(1, n_bytes_of(report.levels[0]))
    compared = f", {percent(share)} of {report.baseline}'s" if report.levels[0].is_baseline else ""
    if only:
        return [f"{best.level} takes {size}{compared}."]
    return [f"The smallest within them is {best.level}: {size}{compared}."]
