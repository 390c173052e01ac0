"""An answer's bytes, as they come, become text: reasoning split off, stop strings cut off.

Nothing is handed on before it is known what it is: a beginning of `<think>`, or of a stop string,
waits for the tokens that decide.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

# How thinking models mark what they say to themselves.
REASONING_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


def opened_tag(prompt_end: str) -> tuple[str, str] | None:
    """Return the tags of a reasoning that the chat template itself has opened."""
    end = prompt_end.rstrip()
    return next((tags for tags in REASONING_TAGS if end.endswith(tags[0])), None)


class AnswerStream:
    """Takes the pieces of tokens, hands on text and reasoning.

    Args:
        stop: texts that end the answer; searched in the answer, not in the reasoning.
        tags: of a reasoning that the prompt has opened, see `opened_tag`.
        on_text: told each piece of the answer.
        on_reasoning: told each piece of the reasoning.
    """

    def __init__(
        self,
        *,
        stop: Sequence[str] = (),
        tags: tuple[str, str] | None = None,
        on_text: Callable[[str], None] = lambda _: None,
        on_reasoning: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._stop = stop
        self._on_text = on_text
        self._on_reasoning = on_reasoning
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._waiting = ""
        self._close = tags[1] if tags else ""
        # "start" may become either: a reasoning opens an answer or is none.
        self._state = "reasoning" if tags else "start"
        self._trims = bool(tags)  # white space after a tag is the template's habit, not content
        self._has_stopped = False

    @property
    def text(self) -> str:
        """The answer so far, as far as it was handed on."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The reasoning so far, as far as it was handed on."""
        return "".join(self._reasoning).rstrip()

    @property
    def is_reasoning(self) -> bool:
        """Whether a reasoning is open."""
        return self._state == "reasoning"

    def feed(self, data: bytes) -> bool:
        """Take the bytes of one token; return whether a stop string has ended the answer."""
        self._take(self._decoder.decode(data), is_final=False)
        return self._has_stopped

    def finish(self) -> None:
        """Hand on what still waits: nothing more will come."""
        self._take(self._decoder.decode(b"", final=True), is_final=True)

    def _take(self, text: str, *, is_final: bool) -> None:
        self._waiting += text
        if self._has_stopped:
            self._waiting = ""
        if self._state == "start":
            self._open(is_final=is_final)
        if self._state == "reasoning":
            self._reason(is_final=is_final)
        if self._state == "answer":
            self._answer(is_final=is_final)

    def _open(self, *, is_final: bool) -> None:
        begun = self._waiting.lstrip()
        for tag, close in REASONING_TAGS:
            if begun.startswith(tag):
                self._state, self._close, self._trims = "reasoning", close, True
                self._waiting = begun[len(tag) :]
                return
        if is_final or not any(tag.startswith(begun) for tag, _ in REASONING_TAGS):
            self._state = "answer"

    def _reason(self, *, is_final: bool) -> None:
        reasoning, found, rest = self._waiting.partition(self._close)
        n_held = 0 if found or is_final else _n_held(reasoning, [self._close])
        ready = self._trimmed(reasoning[: len(reasoning) - n_held])
        self._waiting = rest if found else reasoning[len(reasoning) - n_held :]
        if ready:
            self._reasoning.append(ready)
            self._on_reasoning(ready)
        if found:
            self._state, self._trims = "answer", True

    def _answer(self, *, is_final: bool) -> None:
        text = self._trimmed(self._waiting)
        places = [(text.find(stop), stop) for stop in self._stop]
        at = min((place for place, _ in places if place >= 0), default=None)
        if at is not None:
            self._has_stopped = True
            text, self._waiting = text[:at], ""
        else:
            n_held = 0 if is_final else _n_held(text, self._stop)
            text, self._waiting = text[: len(text) - n_held], text[len(text) - n_held :]
        if text:
            self._text.append(text)
            self._on_text(text)

    def _trimmed(self, text: str) -> str:
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        return text


def _n_held(text: str, wanted: Sequence[str]) -> int:
    """Return how many letters at the end of `text` may begin one of `wanted`."""
    longest = min(len(text), max((len(one) for one in wanted), default=1) - 1)
    for n_held in range(longest, 0, -1):
        if any(one.startswith(text[-n_held:]) for one in wanted):
            return n_held
    return 0
