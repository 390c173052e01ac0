"""How answers changed, and how many are right.

No model judges: two answers are compared by their letters and by their words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.drift.intervals import clustered_mean, clustered_share, mcnemar
from edgevlm.drift.report import AnswerDrift, Estimate, Kind, KindScore, TaskDrift
from edgevlm.runtime.loop_guard import LoopGuard

SIMILAR_EDIT = 0.4
SIMILAR_F1 = 0.7
# Answers of up to so many words are facts: no word may be another.
SHORT_WORDS = 9
_SIGNIFICANT = 0.05
# Letters of a text that are compared; what follows counts by the words alone.
_MOST_LETTERS = 20_000
# Scripts without spaces: each letter is a word.
_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_ALONE}]|[^\\W{_ALONE}]+")


@dataclass(frozen=True, kw_only=True)
class AnswerPair:
    """A baseline's answer and a level's to one prompt.

    Attributes:
        cluster: what is drawn again as one: the image's digest, or the prompt where there is none.
        kind: how far they are apart (`compare_answers`).
        first_difference: see `first_difference`; None where the tokens are the same.
        n_base_tokens: of the baseline's answer.
        n_level_tokens: of the level's.
        has_loop: whether the level's answer repeats itself and nothing else.
    """

    cluster: str
    kind: Kind
    first_difference: int | None
    n_base_tokens: int
    n_level_tokens: int
    has_loop: bool


@dataclass(frozen=True, kw_only=True)
class ScoredTask:
    """One question with a known answer.

    Attributes:
        cluster: as of `AnswerPair`.
        kind: of question, as the prompt says it.
        base_right: whether the baseline is right.
        level_right: whether the level is.
    """

    cluster: str
    kind: str
    base_right: bool
    level_right: bool


def edit_similarity(one: str, other: str) -> float:
    """Return 1 - (least edits) / (length of the longer), 1 for two empty texts.

    An edit adds, removes or replaces one letter; white space is collapsed. Of longer texts the
    first 20,000 letters are compared. The rows of the table of edits stand in bits of whole
    numbers: Myers, "A fast bit-vector algorithm for approximate string matching" (1999), in
    Hyyro's form (2003).
    """
    a, b = (" ".join(text.split())[:_MOST_LETTERS] for text in (one, other))
    longer = max(len(a), len(b))
    return 1 - _n_edits(a, b) / longer if longer else 1.0


def _n_edits(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    every = (1 << len(a)) - 1
    places: dict[str, int] = {}
    for place, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << place
    last = 1 << (len(a) - 1)
    # Where a column of the table grows and falls from one row to the next.
    up, down, found = every, 0, len(a)
    for letter in b:
        same = places.get(letter, 0)
        zero = (((same & up) + up) ^ up) | same | down
        right_up = down | ~(zero | up) & every
        right_down = zero & up
        if right_up & last:
            found += 1
        if right_down & last:
            found -= 1
        right_up = (right_up << 1 | 1) & every
        up = (right_down << 1) & every | ~(zero | right_up) & every
        down = right_up & zero
    return found


def token_f1(one: str, other: str) -> float:
    """Return the harmonic mean of the shares of words found in the other text; 1 for no words.

    Words are runs of letters and digits, in any case; a word that stands twice counts twice. In
    Chinese and Japanese each letter is a word.
    """
    a, b = (Counter(_WORD.findall(text.casefold())) for text in (one, other))
    n_words = a.total() + b.total()
    return 2 * (a & b).total() / n_words if n_words else 1.0


def compare_answers(
    base_text: str,
    level_text: str,
    *,
    similar_edit: float = SIMILAR_EDIT,
    similar_f1: float = SIMILAR_F1,
) -> Kind:
    """Return how far two answers are apart, case and a final period aside.

    Exact: the same text. Similar: of up to nine words, the same words in the same order, since a
    short answer is a fact, and "two" is not "three"; of more words, the edit similarity and the
    word F1 reach both limits. A description told in another way keeps an F1 of 0.7 to 0.9; one of
    another scene, in the same manner, has 0.6 or less. The edit similarity says that it is told in
    the same order; it falls to 0.4 where the wording changes early, to 0.3 between texts that
    have nothing in common, and where one of them is cut or repeats itself.
    """
    if base_text == level_text:
        return "exact"
    base, level = _plain(base_text), _plain(level_text)
    words = [_WORD.findall(text) for text in (base, level)]
    if max(map(len, words)) <= SHORT_WORDS:
        return "similar" if words[0] == words[1] else "different"
    is_similar = (
        edit_similarity(base, level) >= similar_edit and token_f1(base, level) >= similar_f1
    )
    return "similar" if is_similar else "different"


def _plain(text: str) -> str:
    """Return a text in one case, white space collapsed, without one final period."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the place of the first token that differs or is missing; None for equal answers."""
    if list(one) == list(other):
        return None
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def has_loop(token_ids: Sequence[int]) -> bool:
    """Return whether an answer falls into a cycle, as chat's guard sees it."""
    guard = LoopGuard()
    return any(guard.sees_loop(token) for token in token_ids)


def is_right(answer: str, expected: str | None, keywords: Sequence[str] = ()) -> bool:
    """Return whether an answer is right.

    It is the expected one, up to case, white space and one final period; or holds every keyword
    as whole words, in any case.

    Raises:
        ValueError: nothing is expected.
    """
    if expected is None and not keywords:
        raise ValueError("a question without an answer cannot be scored")
    said = _plain(answer)
    if expected is not None and said == _plain(expected):
        return True
    return bool(keywords) and all(_has_words(said, keyword) for keyword in keywords)


def _has_words(said: str, keyword: str) -> bool:
    wanted = " ".join(keyword.casefold().split())
    before = r"(?<!\w)" if wanted[:1].isalnum() else ""
    after = r"(?!\w)" if wanted[-1:].isalnum() else ""
    return re.search(before + re.escape(wanted) + after, said) is not None


def answer_drift(pairs: Sequence[AnswerPair], *, seed: int, draws: int = 2000) -> AnswerDrift:
    """Return how the answers of a level changed.

    Args:
        pairs: one a prompt; of none, the share is anything.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """
    kinds = Counter(pair.kind for pair in pairs)
    different, counts = _by_cluster(
        [(pair.cluster, float(pair.kind == "different")) for pair in pairs]
    )
    share = Estimate(value=0, low=0, high=1)
    if pairs:
        share = clustered_share(different, counts, seed=seed, draws=draws)
    places = [pair.first_difference for pair in pairs if pair.first_difference is not None]
    ratios = [pair.n_level_tokens / pair.n_base_tokens for pair in pairs if pair.n_base_tokens]
    return AnswerDrift(
        n=len(pairs),
        exact=kinds["exact"],
        similar=kinds["similar"],
        different=kinds["different"],
        share_different=share,
        first_differing_token=float(np.median(places)) if places else None,
        length_ratio=float(np.mean(ratios)) if ratios else None,
        n_loops=sum(pair.has_loop for pair in pairs),
    )


def task_drift(scored: Sequence[ScoredTask], *, seed: int, draws: int = 2000) -> TaskDrift | None:
    """Return how many answers are right, and what flipped; None where nothing is expected.

    A change of accuracy is within noise unless both its interval, images drawn again, leaves out 0
    and McNemar's test finds the flips one-sided (p <= 0.05): with few images the interval alone
    says too much, with many questions an image the test does.

    Args:
        scored: one a question with a known answer.
        seed: of the bootstrap.
        draws: of the bootstrap.
    """
    if not scored:
        return None
    right, counts = _by_cluster([(task.cluster, float(task.level_right)) for task in scored])
    change, _ = _by_cluster(
        [(task.cluster, float(task.level_right) - float(task.base_right)) for task in scored]
    )
    difference = clustered_mean(change, counts, seed=seed, draws=draws)
    lost = sum(task.base_right and not task.level_right for task in scored)
    gained = sum(task.level_right and not task.base_right for task in scored)
    p_value = mcnemar(lost, gained)
    n_right = Counter(task.kind for task in scored if task.level_right)
    asked = Counter(task.kind for task in scored)
    return TaskDrift(
        n=len(scored),
        n_right=n_right.total(),
        accuracy=clustered_share(right, counts, seed=seed, draws=draws),
        by_kind=[
            KindScore(kind=kind, n=n, n_right=n_right[kind]) for kind, n in sorted(asked.items())
        ],
        lost=lost,
        gained=gained,
        p_value=p_value,
        within_noise=difference.low <= 0 <= difference.high or p_value > _SIGNIFICANT,
    )


def _by_cluster(values: Sequence[tuple[str, float]]) -> tuple[list[float], list[float]]:
    """Return the sum and the number of values of each cluster."""
    sums: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for cluster, value in values:
        sums[cluster] = sums.get(cluster, 0.0) + value
        counts[cluster] += 1
    return list(sums.values()), [float(counts[cluster]) for cluster in sums]
