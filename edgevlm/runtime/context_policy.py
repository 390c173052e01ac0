"""What happens to a conversation that does not fit into the context.

"error" says by how much. "trim" leaves out the oldest turns, "summarize" lets the model say in a
few sentences what they held. A turn is a question with what follows it; the system prompt, turns
with images and the last question stay whatever the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgevlm.errors import ContextOverflowError
from edgevlm.runtime.answer import ContextPolicy
from edgevlm.runtime.layout import Layout
from edgevlm.runtime.prompt import Message

Turn = tuple[Message, ...]
LayOut = Callable[[Sequence[Message]], Layout]
Summarize = Callable[[Layout, int], str]
_MAX_SUMMARY_TOKENS = 160
_REQUEST = (
    "Summarize this conversation in a few short sentences. Keep names, numbers and facts about"
    " images.\n\n"
)
_SUMMARY = "(What was said before: {})\n\n"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much there is room for.

    Attributes:
        n_ctx: tokens of the context.
        n_ctx_train: the most that the model could have.
        n_answer: tokens that a trimmed conversation leaves free for the answer.
    """

    n_ctx: int
    n_ctx_train: int
    n_answer: int

    @property
    def n_summary(self) -> int:
        """Tokens of a summary, at most."""
        return max(1, min(_MAX_SUMMARY_TOKENS, self.n_ctx // 6))


class ContextFitter:
    """Makes conversations fit; remembers the last summary, so that it is made once."""

    def __init__(self) -> None:
        self._summarized: list[Turn] = []
        self._summary = ""

    def fit(
        self,
        messages: Sequence[Message],
        lay_out: LayOut,
        *,
        policy: ContextPolicy,
        limits: Limits,
        summarize: Summarize,
        on_note: Callable[[str], None],
    ) -> Layout:
        """Return the layout of what fits.

        Args:
            messages: the whole conversation.
            lay_out: lays out a conversation.
            policy: what may be done to it.
            limits: how much there is room for.
            summarize: lets the model answer a request in so many tokens.
            on_note: told what was done.

        Raises:
            ContextOverflowError: it cannot be made to fit.
        """
        layout = lay_out(messages)
        n_room = limits.n_ctx - layout.n_tokens
        if policy == "error" or n_room >= limits.n_answer:
            layout.check_room(limits.n_ctx, n_more=1, n_ctx_train=limits.n_ctx_train)
            return layout
        turns = _turns(messages)
        n_reserved = limits.n_answer + (limits.n_summary if policy == "summarize" else 0)
        kept, dropped = _drop(turns, lay_out, limits.n_ctx - n_reserved)
        if not dropped:
            layout.check_room(limits.n_ctx, n_more=1, n_ctx_train=limits.n_ctx_train)
            return layout
        if policy == "summarize":
            summary = self._summary_of(dropped, lay_out, limits, summarize)
            shortened = _with_summary(turns, dropped, summary) if summary else None
            layout = lay_out(shortened) if shortened else layout
            if shortened and layout.n_tokens < limits.n_ctx:
                on_note(f"{_count(dropped)} summarized, to fit the context of {limits.n_ctx}")
                return layout
        layout = lay_out(_joined(kept))
        try:
            layout.check_room(limits.n_ctx, n_more=1, n_ctx_train=limits.n_ctx_train)
        except ContextOverflowError as error:
            error.message += f", though {_count(dropped)} left out"
            error.args = (error.message,)
            raise
        on_note(f"{_count(dropped)} left out, to fit the context of {limits.n_ctx}")
        return layout

    def _summary_of(
        self, dropped: list[Turn], lay_out: LayOut, limits: Limits, summarize: Summarize
    ) -> str:
        """Return a summary of `dropped`; what was summarized before is not read again."""
        n_known = len(self._summarized)
        if not n_known or n_known > len(dropped) or self._summarized != dropped[:n_known]:
            n_known, self._summary = 0, ""
        if n_known < len(dropped):
            transcript = self._summary + "\n\n" if self._summary else ""
            transcript += "\n".join(
                f"{message.role}: {_text_of(message)}"
                for turn in dropped[n_known:]
                for message in turn
            )
            layout = _request(transcript, lay_out, limits.n_ctx - limits.n_summary)
            self._summarized, self._summary = [], ""
            if layout is not None:
                self._summary = summarize(layout, limits.n_summary).strip()
            if self._summary:
                self._summarized = dropped
        return self._summary


def _turns(messages: Sequence[Message]) -> list[Turn]:
    """Cut a conversation into turns; each begins with a user's message, or is a system's."""
    turns: list[list[Message]] = []
    for message in messages:
        begins = message.role in ("system", "user") or not turns
        if begins or turns[-1][0].role == "system":
            turns.append([message])
        else:
            turns[-1].append(message)
    return [tuple(turn) for turn in turns]


def _is_old(turn: Turn, last: Turn) -> bool:
    has_images = any(message.images for message in turn)
    return turn is not last and turn[0].role != "system" and not has_images


def _drop(turns: list[Turn], lay_out: LayOut, n_max: int) -> tuple[list[Turn], list[Turn]]:
    """Leave out the oldest turns until the rest has `n_max` tokens, or nothing more can go."""
    kept, dropped = list(turns), list[Turn]()
    for turn in turns:
        if not _is_old(turn, turns[-1]):
            continue
        del kept[_index(kept, turn)]
        dropped.append(turn)
        if lay_out(_joined(kept)).n_tokens <= n_max:
            break
    return kept, dropped


def _index(turns: list[Turn], wanted: Turn) -> int:
    # By identity: messages hold arrays, which have no equality of their own.
    return next(number for number, turn in enumerate(turns) if turn is wanted)


def _with_summary(turns: list[Turn], dropped: list[Turn], summary: str) -> list[Message]:
    """Put the summary in front of the first message that follows what was dropped."""
    messages: list[Message] = []
    last = _index(turns, dropped[-1])
    for number, turn in enumerate(turns):
        if any(turn is one for one in dropped):
            continue
        first, *rest = turn
        if number > last and summary and first.role != "system":
            text = _SUMMARY.format(summary)
            first = Message(role=first.role, content=(text, *first.content))
            summary = ""
        messages += [first, *rest]
    return messages


def _request(transcript: str, lay_out: LayOut, n_max: int) -> Layout | None:
    """Lay out the request for a summary; of what is too long, the beginning is cut off."""
    while transcript:
        message = Message(role="user", content=(_REQUEST + transcript,))
        layout = lay_out([message])
        if layout.n_tokens <= n_max:
            return layout
        n_over = layout.n_tokens - n_max
        n_cut = max(1, len(transcript) * n_over // layout.n_tokens)
        transcript = transcript[n_cut:]
    return None


def _joined(turns: Sequence[Turn]) -> list[Message]:
    return [message for turn in turns for message in turn]


def _text_of(message: Message) -> str:
    return "".join(part for part in message.content if isinstance(part, str))


def _count(turns: Sequence[Turn]) -> str:
    return "1 old turn was" if len(turns) == 1 else f"{len(turns)} old turns were"
