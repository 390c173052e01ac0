"""Whether a level drifts more than is acceptable, and by which limit."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.drift.report import AnswerDrift, TokenDrift, Verdict
from edgevlm.quantize.profile import Budget

# More answers than this that mean something else: the level is too aggressive (the field's rule).
MAX_DIFFERENT = 0.10


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the user accepts; None: the profile's budget, and the field's rule.

    Attributes:
        max_kld: largest mean KLD in nats.
        min_same_top: least share of positions with the same top token.
        max_different: largest share of different answers.
    """

    max_kld: float | None = None
    min_same_top: float | None = None
    max_different: float | None = None


def judge(
    *,
    tokens: TokenDrift | None,
    answers: AnswerDrift,
    limits: Limits,
    budget: Budget | None,
    level: str,
) -> Verdict:
    """Hold a level against its limits.

    Args:
        tokens: its drift.
        answers: its answers.
        limits: the user's.
        budget: its profile's; None for the baseline, which has no limits.
        level: its name.
    """
    if budget is None:
        return Verdict(
            within=True,
            breaches=[],
            max_mean_kld=None,
            max_p99_kld=None,
            min_same_top_token=None,
            max_share_different=None,
            source="the baseline",
        )
    max_kld = limits.max_kld if limits.max_kld is not None else budget.mean_kld
    min_same = limits.min_same_top if limits.min_same_top is not None else budget.same_top_token
    max_different = limits.max_different if limits.max_different is not None else MAX_DIFFERENT
    breaches: list[str] = []
    if tokens is not None:
        kld, p99, same = tokens.mean_kld.value, tokens.p99_kld, tokens.same_top_token.value
        if max_kld is not None and kld > max_kld:
            breaches.append(f"mean KLD {kld:.3g} is over {max_kld:.3g}")
        if budget.p99_kld is not None and p99 > budget.p99_kld:
            breaches.append(f"99th-percentile KLD {p99:.3g} is over {budget.p99_kld:.3g}")
        if min_same is not None and same < min_same:
            breaches.append(f"same top token {same:.2%} is under {min_same:.2%}")
    different = answers.share_different.value
    if different > max_different:
        breaches.append(f"{different:.1%} of the answers are different, over {max_different:.1%}")
    return Verdict(
        within=not breaches,
        breaches=breaches,
        max_mean_kld=max_kld,
        max_p99_kld=budget.p99_kld,
        min_same_top_token=min_same,
        max_share_different=max_different,
        source=_source(limits, budget, level),
    )


def _source(limits: Limits, budget: Budget, level: str) -> str:
    sources: list[str] = []
    if limits != Limits():
        sources.append("the command line")
    if budget != Budget():
        sources.append(f"the budget of the profile {level}")
    if limits.max_different is None:
        sources.append("the field's rule of 10 % different answers")
    return ", ".join(sources)
