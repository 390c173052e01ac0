"""One question at one loaded model: led along the baseline's answer, and let go where it leaves it.

An answer is not written twice. The rows along the baseline's answer say where the greedy answer of
the level leaves it: only from there on it is written. At a near tie the batch may find another
token most likely than the single steps did, at the baseline too: what the baseline itself finds
there counts as its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.drift.kept_rows import (
    Divergence,
    KeptRows,
    concatenate,
    diverge,
    keep_rows,
    token_logprobs,
    top_tokens,
)
from edgevlm.drift.questions import Question
from edgevlm.drift.records import Record
from edgevlm.errors import DriftError, PromptError, ReferenceFileError
from edgevlm.reference_file import Case
from edgevlm.runtime.embedding_cache import Embeddings
from edgevlm.runtime.probe import GreedyAnswer, Probe
from edgevlm.runtime.vlm import VLM

LedAlong = Literal["baseline", "expected"]


@dataclass(frozen=True, kw_only=True)
class Leading:
    """How models are led.

    Attributes:
        along: the baseline's greedy answers, or the prompts' own.
        max_tokens: of a greedy answer.
    """

    along: LedAlong
    max_tokens: int


def open_probe(vlm: VLM, question: Question, known: Embeddings) -> Probe:
    """Return the question as this model reads it; a thinking model is told not to."""
    think = False if vlm.layouter.takes_think else None
    return vlm.probe(question.prompt, question.pixels(), known=known, think=think)


def run_baseline(
    vlm: VLM, question: Question, known: Embeddings, leading: Leading
) -> tuple[Record, KeptRows]:
    """Answer a question at the baseline, and keep its distributions along what all are led along.

    Raises:
        PromptError: an expected answer without a token.
        ReferenceFileError: a reference of another vocabulary.
    """
    probe = open_probe(vlm, question, known)
    answer, case = None, question.case
    if case is not None:
        _check_case(vlm, case, probe)
        tokens = tuple(map(int, case.answer))
    else:
        answer = probe.greedy(max_tokens=leading.max_tokens)
        tokens = (*answer.tokens, *([] if answer.end_token is None else [answer.end_token]))
    if leading.along == "expected" and question.expected is not None:
        tokens = tuple(vlm.tokenize(question.expected))
    if not tokens:
        raise PromptError(
            f"the answer to `{question.prompt}` has no token", hint="give it words, or leave it out"
        )
    kept: list[KeptRows] = []
    logprobs: list[NDArray[np.float64]] = []
    reference: list[Divergence] = []
    at = 0
    for block in probe.forced(tokens[:-1]):
        kept.append(keep_rows(block))
        logprobs.append(token_logprobs(block, np.asarray(tokens[at : at + len(block)])))
        if case is not None:
            reference.append(diverge(_case_rows(case, vlm.n_vocab, at, at + len(block)), block))
        at += len(block)
    record = Record(
        tokens=tokens,
        logprobs=np.concatenate(logprobs),
        answer=answer,
        reference=_joined(reference) if reference else None,
    )
    return record, concatenate(kept)


def run_level(
    vlm: VLM,
    question: Question,
    known: Embeddings,
    *,
    base: Record,
    rows: KeptRows,
    max_tokens: int,
    answers: bool,
) -> Record:
    """Lead a level along the baseline's tokens.

    Args:
        vlm: the level.
        question: the question.
        known: embeddings of its projector.
        base: the baseline's record.
        rows: the baseline's distributions along `base.tokens`.
        max_tokens: of a greedy answer.
        answers: whether the level's greedy answer is wanted, where the baseline has one.

    Raises:
        DriftError: a baseline of another vocabulary, or logits that are no numbers.
    """
    if rows.n_vocab != vlm.n_vocab:
        raise DriftError(
            f"the baseline has {rows.n_vocab} tokens in its vocabulary, this model {vlm.n_vocab}",
            hint="compare levels of one model",
        )
    probe = open_probe(vlm, question, known)
    parts: list[Divergence] = []
    reference: list[Divergence] = []
    logprobs: list[NDArray[np.float64]] = []
    tops: list[NDArray[np.int64]] = []
    at = 0
    for block in probe.forced(base.tokens[:-1]):
        until = at + len(block)
        parts.append(diverge(_between(rows, at, until), block))
        logprobs.append(token_logprobs(block, np.asarray(base.tokens[at:until])))
        tops.append(block.argmax(axis=1))
        if question.case is not None:
            reference.append(diverge(_case_rows(question.case, vlm.n_vocab, at, until), block))
        at = until
    answer = None
    if answers and base.answer is not None:
        answer = _answer(probe, base, rows, np.concatenate(tops), max_tokens)
    return Record(
        tokens=base.tokens,
        logprobs=np.concatenate(logprobs),
        divergence=_joined(parts),
        answer=answer,
        reference=_joined(reference) if reference else None,
    )


def _answer(
    probe: Probe, base: Record, rows: KeptRows, tops: NDArray[np.int64], max_tokens: int
) -> GreedyAnswer | None:
    answer = base.answer
    if answer is None:
        return None
    ending = () if answer.end_token is None else (answer.end_token,)
    if base.tokens != (*answer.tokens, *ending):  # led along another answer than its own
        return probe.greedy(max_tokens=max_tokens)
    leaves = np.flatnonzero((tops != base.tokens) & (tops != top_tokens(rows)))
    if not len(leaves):
        return answer
    begun = [*base.tokens[: leaves[0]], int(tops[leaves[0]])]
    return probe.greedy(max_tokens=max_tokens, begun=begun)


def _between(rows: KeptRows, start: int, stop: int) -> KeptRows:
    first, last = rows.offsets[start], rows.offsets[stop]
    return KeptRows(
        ids=rows.ids[first:last],
        logprobs=rows.logprobs[first:last],
        offsets=rows.offsets[start : stop + 1] - first,
        tail=rows.tail[start:stop],
        n_vocab=rows.n_vocab,
    )


def _joined(parts: Sequence[Divergence]) -> Divergence:
    return Divergence(
        kld=np.concatenate([part.kld for part in parts]),
        kld_error=np.concatenate([part.kld_error for part in parts]),
        same_top=np.concatenate([part.same_top for part in parts]),
    )


def _case_rows(case: Case, n_vocab: int, start: int, stop: int) -> KeptRows:
    """Return what transformers computed, as kept rows."""
    ids, logprobs = case.top_ids[start:stop], case.top_logprobs[start:stop]
    n, k = ids.shape
    # What rounding leaves of a tail that is not there must not count.
    tail = case.tail_mass[start:stop].astype(np.float64)
    return KeptRows(
        ids=ids.reshape(-1),
        logprobs=logprobs.reshape(-1),
        offsets=np.arange(0, n * k + 1, k, dtype=np.int64),
        tail=np.where((k < n_vocab) & (tail > 1e-9), tail, 0.0),
        n_vocab=n_vocab,
    )


def _check_case(vlm: VLM, case: Case, probe: Probe) -> None:
    hint = "the reference is of another model: make it of this model's checkpoint"
    for ids in (case.answer, case.top_ids):
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vlm.n_vocab:
            raise ReferenceFileError(
                f"the reference's prompt `{case.name}` has token ids from {int(ids.min())} to"
                f" {int(ids.max())}; this model has {vlm.n_vocab} tokens",
                hint=hint,
            )
    if not set(probe.layout.text_tokens) <= set(map(int, case.input_ids)):
        raise ReferenceFileError(
            f"the reference's prompt `{case.name}` was tokenized in another way", hint=hint
        )
