"""The answers that changed most, with a small picture of what they are about."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from edgevlm.drift.answers import compare_answers, edit_similarity, first_difference
from edgevlm.drift.compare import Comparison
from edgevlm.drift.levels import Side
from edgevlm.drift.questions import Question
from edgevlm.drift.report import ChangedAnswer
from edgevlm.errors import EdgeVLMError

_MOST_OF_LEVEL, _MOST = 8, 40
_SIDE, _QUALITY = 240, 80


def most_changed(comparison: Comparison, sides: Sequence[Side]) -> list[ChangedAnswer]:
    """Return the answers of all levels that changed, the most changed first; 40 at most."""
    changed: list[tuple[ChangedAnswer, Question]] = []
    for side in sides:
        own = _of_level(comparison, side)
        own.sort(key=lambda pair: _order(pair[0]))
        changed += own[:_MOST_OF_LEVEL]
    changed.sort(key=lambda pair: _order(pair[0]))
    thumbnails: dict[str, str | None] = {}
    found: list[ChangedAnswer] = []
    for answer, question in changed[:_MOST]:
        if question.digests and question.digests[0] not in thumbnails:
            thumbnails[question.digests[0]] = _thumbnail(question)
        picture = thumbnails[question.digests[0]] if question.digests else None
        found.append(answer.model_copy(update={"thumbnail": picture}))
    return found


def _order(answer: ChangedAnswer) -> tuple[float, float]:
    return answer.similarity, -answer.mean_kld


def _of_level(comparison: Comparison, side: Side) -> list[tuple[ChangedAnswer, Question]]:
    pair = comparison.keys(side)
    found: list[tuple[ChangedAnswer, Question]] = []
    for index, question in enumerate(comparison.questions):
        base, own = comparison.base_record(index), comparison.record(pair, index)
        if base.answer is None or own.answer is None:
            continue
        kind = compare_answers(base.answer.text, own.answer.text)
        if kind == "exact":
            continue
        answer = ChangedAnswer(
            level=side.level,
            prompt=question.prompt,
            image=question.names[0] if question.names else None,
            thumbnail=None,
            baseline_answer=base.answer.text,
            answer=own.answer.text,
            expected=question.expected,
            kind=kind,
            similarity=edit_similarity(base.answer.text, own.answer.text),
            mean_kld=float(own.divergence.kld.mean()) if own.divergence is not None else 0.0,
            first_differing_token=first_difference(base.answer.tokens, own.answer.tokens),
        )
        found.append((answer, question))
    return found


def _thumbnail(question: Question) -> str | None:
    """Return a data URL of the first image, small; None where it is gone since it was measured."""
    try:
        image = Image.fromarray(question.pixels()[0])
    except EdgeVLMError:
        return None
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
