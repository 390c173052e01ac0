"""The tables of a drift report as words: every view shows these, each in its own dress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from edgevlm.drift.report import (
    DriftReport,
    Estimate,
    LevelReport,
    TaskDrift,
    TokenDrift,
    VisionDrift,
)
from edgevlm.drift.wording import (
    DASH,
    clean,
    drift_of,
    kld,
    n_bytes_of,
    percent,
    plural,
    points,
    rate,
    ratio,
    span,
    verdict_word,
)
from edgevlm.files import human_bytes

Tone = Literal["good", "bad", "plain"]
_NO_IMAGES = "no image prompts"
_NO_TEXT = "no text prompts"
_NO_ANSWERS = "no answers given"
_NO_PROJECTOR = "no projector"
_NOT_MEASURED = "not measured"
_NO_TOKENS = "no token to score"
_BASELINE = "the baseline"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a table says in one place.

    Attributes:
        text: the number with its unit, or a dash.
        note: its interval, what it is made of, or why there is none.
    """

    text: str
    note: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is no number."""
        return self.text == DASH


@dataclass(frozen=True, kw_only=True)
class GlanceRow:
    """A level in the table at a glance.

    Attributes:
        level: its name.
        projector: which mmproj it was measured with.
        size: of both files.
        bits: true bits per weight of the text model.
        drift: mean KLD.
        same_top: share of positions with the same most likely token.
        answers: how many are exact, similar and different.
        accuracy: share of right answers.
        speed: decoding, tokens per second.
        verdict: in words.
        tone: the verdict's colour.
        breaches: what is beyond a limit, a sentence each.
    """

    level: str
    projector: str
    size: Cell
    bits: Cell
    drift: Cell
    same_top: Cell
    answers: tuple[int, int, int]
    accuracy: Cell
    speed: Cell
    verdict: str
    tone: Tone
    breaches: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class NumberRow:
    """One number of all levels.

    Attributes:
        name: what it is.
        cells: one a level.
    """

    name: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class NumberGroup:
    """Numbers that belong together, under one heading."""

    name: str
    rows: tuple[NumberRow, ...]


def glance(report: DriftReport) -> list[GlanceRow]:
    """Return the table at a glance, a row a level."""
    return [_glance_row(level) for level in report.levels]


def _glance_row(level: LevelReport) -> GlanceRow:
    cost, tokens, answers = level.cost, drift_of(level), level.answers
    unscored = Cell(text=DASH, note=_NO_TOKENS)
    of_both = [human_bytes(n) for n in (cost.text_n_bytes, cost.mmproj_n_bytes) if n is not None]
    word = verdict_word(level)
    tones: dict[str, Tone] = {"within limits": "good", "too much drift": "bad"}
    return GlanceRow(
        level=clean(level.level),
        projector=f"projector {level.mmproj_level}" if level.mmproj_level else _NO_PROJECTOR,
        size=Cell(
            text=human_bytes(n_bytes_of(level)), note=" + ".join(of_both) if of_both[1:] else ""
        ),
        bits=Cell(text=f"{cost.bits_per_weight:.2f}"),
        drift=_estimated(tokens.mean_kld, kld, level) if tokens else unscored,
        same_top=_estimated(tokens.same_top_token, percent, level) if tokens else unscored,
        answers=(answers.exact, answers.similar, answers.different),
        accuracy=accuracy(level.tasks, is_baseline=level.is_baseline),
        speed=_number(cost.decode_tok_per_sec, rate, _NOT_MEASURED),
        verdict=word,
        tone=tones.get(word, "plain"),
        breaches=tuple(clean(breach) for breach in level.verdict.breaches),
    )


def accuracy(tasks: TaskDrift | None, *, is_baseline: bool) -> Cell:
    """Return the share of right answers; a change that so few questions cannot prove is named."""
    if tasks is None:
        return Cell(text=DASH, note=_NO_ANSWERS)
    shown = percent(tasks.accuracy.value)
    if is_baseline:
        return Cell(text=shown, note=span(tasks.accuracy, percent))
    if tasks.within_noise:
        change = "no change" if not tasks.lost + tasks.gained else "within noise"
        return Cell(text=shown, note=change)
    change = points((tasks.gained - tasks.lost) / max(1, tasks.n))
    return Cell(text=shown, note=f"{change} points, p = {tasks.p_value:.2g}")


def _estimated(estimate: Estimate, show: Callable[[float], str], level: LevelReport) -> Cell:
    note = "" if level.is_baseline else span(estimate, show)
    return Cell(text=show(estimate.value), note=note)


def _number(value: float | None, show: Callable[[float], str], why_not: str) -> Cell:
    return Cell(text=DASH, note=why_not) if value is None else Cell(text=show(value))


def numbers(report: DriftReport) -> list[NumberGroup]:
    """Return all numbers, a column a level."""
    levels = report.levels
    groups = [
        ("Image prompts", list(_token_rows(levels, [one.image for one in levels], _NO_IMAGES))),
        ("Text prompts", list(_token_rows(levels, [one.text for one in levels], _NO_TEXT))),
        ("Projector's output", list(_vision_rows(levels))),
        ("Answers", list(_answer_rows(levels))),
        ("Questions with a known answer", list(_task_rows(levels))),
        ("Cost", list(_cost_rows(levels))),
    ]
    return [NumberGroup(name=name, rows=tuple(rows)) for name, rows in groups if rows]


def _row(name: str, cells: Iterator[Cell] | Sequence[Cell]) -> NumberRow:
    return NumberRow(name=name, cells=tuple(cells))


def _token_rows(
    levels: Sequence[LevelReport], found: Sequence[TokenDrift | None], why_not: str
) -> Iterator[NumberRow]:
    if not any(found):
        return

    def row(name: str, cell: Callable[[TokenDrift, LevelReport], Cell]) -> NumberRow:
        return _row(
            name,
            [
                cell(drift, level) if drift else Cell(text=DASH, note=why_not)
                for level, drift in zip(levels, found, strict=True)
            ],
        )

    yield row("mean KLD, nats", lambda drift, level: _estimated(drift.mean_kld, kld, level))
    yield row("median KLD", lambda drift, _: Cell(text=kld(drift.median_kld)))
    yield row("99th percentile", lambda drift, _: Cell(text=kld(drift.p99_kld)))
    yield row("99.9th percentile", lambda drift, _: Cell(text=kld(drift.p999_kld)))
    yield row("maximum", lambda drift, _: Cell(text=kld(drift.max_kld)))
    yield row("same top token", lambda drift, one: _estimated(drift.same_top_token, percent, one))
    yield row("mean Δp, points", lambda drift, _: Cell(text=points(drift.mean_delta_p)))
    yield row("RMS Δp", lambda drift, _: Cell(text=percent(drift.rms_delta_p)))
    yield row(
        "perplexity, ratio", lambda drift, level: _estimated(drift.perplexity_ratio, ratio, level)
    )
    yield row("error of the mean KLD, at most", lambda drift, _: Cell(text=kld(drift.kld_error)))
    yield row(
        "measured on",
        lambda drift, _: Cell(
            text=plural(drift.n_tokens, "token"), note=plural(drift.n_prompts, "prompt")
        ),
    )


def _vision_rows(levels: Sequence[LevelReport]) -> Iterator[NumberRow]:
    if not any(level.vision for level in levels):
        return

    def row(name: str, cell: Callable[[VisionDrift], Cell]) -> NumberRow:
        return _row(
            name,
            [
                cell(level.vision)
                if level.vision
                else Cell(text=DASH, note=_BASELINE if level.is_baseline else _NO_PROJECTOR)
                for level in levels
            ],
        )

    yield row("mean cosine", lambda vision: Cell(text=f"{vision.mean_cosine:.4f}"))
    yield row(
        "worst visual token's cosine",
        lambda vision: Cell(text=f"{vision.min_cosine:.4f}", note=clean(vision.worst_image)),
    )
    yield row("mean relative error", lambda vision: Cell(text=percent(vision.mean_relative_error)))


def _answer_rows(levels: Sequence[LevelReport]) -> Iterator[NumberRow]:
    found = [(level.answers, level) for level in levels]
    yield _row("the same", [Cell(text=f"{one.exact} of {one.n}") for one, _ in found])
    yield _row("similar", [Cell(text=str(one.similar)) for one, _ in found])
    yield _row("different", [Cell(text=str(one.different)) for one, _ in found])
    yield _row(
        "share different", [_estimated(one.share_different, percent, at) for one, at in found]
    )
    yield _row(
        "first differing token, median",
        [
            _number(one.first_differing_token, lambda v: f"{v:g}", "none differs")
            for one, _ in found
        ],
    )
    yield _row(
        "length, ratio", [_number(one.length_ratio, ratio, _NOT_MEASURED) for one, _ in found]
    )
    yield _row("answers that loop", [Cell(text=str(one.n_loops)) for one, _ in found])


def _task_rows(levels: Sequence[LevelReport]) -> Iterator[NumberRow]:
    found = [(level.tasks, level) for level in levels]
    if not any(tasks for tasks, _ in found):
        return
    none = Cell(text=DASH, note=_NO_ANSWERS)
    yield _row(
        "right",
        [
            Cell(text=f"{tasks.n_right} of {tasks.n}", note=percent(tasks.accuracy.value))
            if tasks
            else none
            for tasks, _ in found
        ],
    )
    yield _row(
        "95 % interval",
        [Cell(text=span(tasks.accuracy, percent)) if tasks else none for tasks, _ in found],
    )
    yield _row(
        "lost, gained",
        [
            Cell(text=DASH, note=_BASELINE)
            if level.is_baseline
            else Cell(text=f"{tasks.lost}, {tasks.gained}", note=f"p = {tasks.p_value:.2g}")
            if tasks
            else none
            for tasks, level in found
        ],
    )
    kinds = dict.fromkeys(kind.kind for tasks, _ in found if tasks for kind in tasks.by_kind)
    for kind in kinds if len(kinds) > 1 else ():
        cells = [
            next(
                (
                    Cell(text=f"{one.n_right} of {one.n}")
                    for one in (tasks.by_kind if tasks else ())
                    if one.kind == kind
                ),
                none,
            )
            for tasks, _ in found
        ]
        yield _row(f"right: {clean(kind) or 'no kind'}", cells)


def _cost_rows(levels: Sequence[LevelReport]) -> Iterator[NumberRow]:
    costs = [level.cost for level in levels]

    def row(
        name: str, values: Sequence[float | None], show: Callable[[float], str], why_not: str
    ) -> NumberRow:
        return _row(name, [_number(value, show, why_not) for value in values])

    def size(value: float) -> str:
        return human_bytes(int(value))

    yield row("text model", [one.text_n_bytes for one in costs], size, _NOT_MEASURED)
    yield row("its bits per weight", [one.bits_per_weight for one in costs], _bits, _NOT_MEASURED)
    yield row("projector", [one.mmproj_n_bytes for one in costs], size, _NO_PROJECTOR)
    yield row(
        "its bits per weight", [one.mmproj_bits_per_weight for one in costs], _bits, _NO_PROJECTOR
    )
    yield row("peak memory", [one.peak_memory_n_bytes for one in costs], size, _NOT_MEASURED)
    yield row("encoding an image, ms", [one.encode_ms for one in costs], _whole, _NOT_MEASURED)
    yield row("prefill, tok/s", [one.prefill_tok_per_sec for one in costs], rate, _NOT_MEASURED)
    yield row("decode, tok/s", [one.decode_tok_per_sec for one in costs], rate, _NOT_MEASURED)


def _bits(value: float) -> str:
    return f"{value:.2f}"


def _whole(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
