"""The records of a comparison become its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from edgevlm.drift.answers import (
    SIMILAR_EDIT,
    SIMILAR_F1,
    AnswerPair,
    ScoredTask,
    answer_drift,
    compare_answers,
    first_difference,
    is_right,
    task_drift,
)
from edgevlm.drift.compare import Comparison
from edgevlm.drift.kept_rows import Divergence
from edgevlm.drift.levels import Side
from edgevlm.drift.metrics import ScoredAnswer, token_drift, vision_drift
from edgevlm.drift.questions import Question
from edgevlm.drift.records import Record
from edgevlm.drift.report import (
    AnswerDrift,
    Attribution,
    Cost,
    Estimate,
    LayerDrift,
    LevelReport,
    ReferenceDrift,
    TaskDrift,
    VisionDrift,
)
from edgevlm.drift.verdict import Limits, judge
from edgevlm.drift.workspace import Pair

DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """Makes the parts of a report from records.

    Attributes:
        comparison: whose passes have run.
        seed: of the bootstrap.
        limits: that levels are judged by, before their profiles' own.
    """

    comparison: Comparison
    seed: int
    limits: Limits

    def level(self, side: Side, *, layers: Sequence[LayerDrift] | None = None) -> LevelReport:
        """Return all about a level whose passes have run; of the baseline, the same without drift.

        Args:
            side: the level, or the baseline.
            layers: drift by parts, where that was measured.
        """
        comparison = self.comparison
        pair = comparison.keys(side)
        base = [comparison.base_record(index) for index in range(len(comparison.questions))]
        is_baseline = side is comparison.baseline
        own = (
            base if is_baseline else [comparison.record(pair, index) for index in range(len(base))]
        )
        triples = list(zip(comparison.questions, base, own, strict=True))
        scored = [_scored(*triple) for triple in triples if triple[0].case is None]
        image = token_drift([one for one in scored if one.is_image], seed=self.seed, draws=DRAWS)
        text = token_drift([one for one in scored if not one.is_image], seed=self.seed, draws=DRAWS)
        tokens = image or text
        answers = self._answers(triples)
        vision = None if is_baseline else self._vision(pair[1])
        return LevelReport(
            level=side.level,
            mean_kld=tokens.mean_kld if tokens is not None else None,
            text_file=side.text_name,
            mmproj_file=side.mmproj_name,
            mmproj_level=side.mmproj_level,
            is_baseline=is_baseline,
            image=image,
            text=text,
            vision=vision,
            answers=answers,
            tasks=self._tasks(triples),
            attribution=None if is_baseline else self._attribution(pair, image and image.mean_kld),
            layers=list(layers) if layers is not None else None,
            reference=self._reference(triples, is_baseline=is_baseline),
            cost=self._cost(pair),
            verdict=judge(
                tokens=tokens,
                answers=answers,
                limits=self.limits,
                budget=None if is_baseline else side.budget,
                level=side.level,
            ),
        )

    def _answers(self, triples: Sequence[tuple[Question, Record, Record]]) -> AnswerDrift:
        pairs = [
            AnswerPair(
                cluster=question.cluster,
                kind=compare_answers(base.answer.text, own.answer.text),
                first_difference=first_difference(base.answer.tokens, own.answer.tokens),
                n_base_tokens=len(base.answer.tokens),
                n_level_tokens=len(own.answer.tokens),
                has_loop=own.answer.stop_reason == "loop",
            )
            for question, base, own in triples
            if base.answer is not None and own.answer is not None
        ]
        return answer_drift(pairs, seed=self.seed, draws=DRAWS)

    def _tasks(self, triples: Sequence[tuple[Question, Record, Record]]) -> TaskDrift | None:
        return task_drift(
            [
                ScoredTask(
                    cluster=question.cluster,
                    kind=question.kind,
                    base_right=is_right(base.answer.text, question.expected, question.keywords),
                    level_right=is_right(own.answer.text, question.expected, question.keywords),
                )
                for question, base, own in triples
                if question.is_task and base.answer is not None and own.answer is not None
            ],
            seed=self.seed,
            draws=DRAWS,
        )

    def _vision(self, projector: str) -> VisionDrift | None:
        comparison = self.comparison
        base = comparison.workspace.images(comparison.keys(comparison.baseline)[1])
        level = comparison.workspace.images(projector)
        names = {
            bytes.fromhex(digest): name
            for question in comparison.questions
            for digest, name in zip(question.digests, question.names, strict=True)
        }
        found = ((name, base.rows(digest), level.rows(digest)) for digest, name in names.items())
        return vision_drift(
            (name, one, other)
            for name, one, other in found
            if one is not None and other is not None
        )

    def _attribution(self, pair: Pair, both: Estimate | None) -> Attribution | None:
        comparison = self.comparison
        base = comparison.keys(comparison.baseline)
        if both is None:
            return None
        text_alone = both if pair[1] == base[1] else self._mean_kld((pair[0], base[1]))
        mmproj_alone = both if pair[0] == base[0] else self._mean_kld((base[0], pair[1]))
        return Attribution(
            text_alone=None if pair[0] == base[0] else text_alone,
            mmproj_alone=None if pair[1] == base[1] else mmproj_alone,
            both=both,
        )

    def _mean_kld(self, pair: Pair) -> Estimate | None:
        comparison = self.comparison
        scored = [
            _scored(
                comparison.questions[index],
                comparison.base_record(index),
                comparison.record(pair, index),
            )
            for index in comparison.image_indices
        ]
        drift = token_drift(scored, seed=self.seed, draws=DRAWS)
        return drift.mean_kld if drift is not None else None

    def _reference(
        self, triples: Sequence[tuple[Question, Record, Record]], *, is_baseline: bool
    ) -> ReferenceDrift | None:
        cases = [triple for triple in triples if triple[0].case is not None]
        first = token_drift(
            [_of_reference(question, base) for question, base, _ in cases],
            seed=self.seed,
            draws=DRAWS,
        )
        whole = token_drift(
            [_of_reference(question, own) for question, _, own in cases],
            seed=self.seed,
            draws=DRAWS,
        )
        second = token_drift([_scored(*triple) for triple in cases], seed=self.seed, draws=DRAWS)
        if first is None or second is None or whole is None:
            return None
        return ReferenceDrift(
            n_prompts=whole.n_prompts,
            n_tokens=whole.n_tokens,
            reference_to_baseline=first.mean_kld,
            baseline_to_level=second.mean_kld,
            reference_to_level=first.mean_kld if is_baseline else whole.mean_kld,
            same_top_token=whole.same_top_token,
        )

    def _cost(self, pair: Pair) -> Cost:
        facts = cast(Mapping[str, Any], self.comparison.facts(pair))
        images = self.comparison.workspace.images(pair[1])
        digests = {digest for question in self.comparison.questions for digest in question.digests}
        times = [
            image.encode_ms
            for digest in digests
            if (image := images.get(bytes.fromhex(digest))) is not None
        ]
        return Cost(
            text_n_bytes=facts["text_n_bytes"],
            mmproj_n_bytes=facts["mmproj_n_bytes"],
            bits_per_weight=facts["bits_per_weight"],
            mmproj_bits_per_weight=facts["mmproj_bits_per_weight"],
            peak_memory_n_bytes=facts.get("peak"),
            encode_ms=float(np.mean(times)) if times else None,
            prefill_tok_per_sec=facts.get("prefill"),
            decode_tok_per_sec=facts.get("decode"),
        )


def similarity_settings() -> dict[str, float]:
    """Return the limits of a similar answer, as `Settings` names them."""
    return {"similar_edit": SIMILAR_EDIT, "similar_f1": SIMILAR_F1}


def _scored(question: Question, base: Record, own: Record) -> ScoredAnswer:
    return _along(question, base, own, own.divergence)


def _of_reference(question: Question, record: Record) -> ScoredAnswer:
    return _along(question, record, record, record.reference)


def _along(question: Question, base: Record, own: Record, found: Divergence | None) -> ScoredAnswer:
    divergence = found or _none(len(base.tokens))
    return ScoredAnswer(
        cluster=question.cluster,
        is_image=bool(question.images),
        kld=divergence.kld,
        kld_error=divergence.kld_error,
        same_top=divergence.same_top,
        p_level=np.exp(own.logprobs),
        p_base=np.exp(base.logprobs),
        logprob_level=own.logprobs,
        logprob_base=base.logprobs,
    )


def _none(n_positions: int) -> Divergence:
    return Divergence(
        kld=np.zeros(n_positions),
        kld_error=np.zeros(n_positions),
        same_top=np.ones(n_positions, dtype=np.bool_),
    )
