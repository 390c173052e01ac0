"""A conversation at the terminal: what was said, with which images, and how it is saved."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgevlm.cli.chat_show import short
from edgevlm.errors import OutputError, OutputExistsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgevlm.runtime.answer import Answer
    from edgevlm.runtime.prompt import Message

_SAVE_HINT = "name a file that ends in .json or .md: `/save talk.md`"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image and where it came from.

    Attributes:
        name: a path, or a data URL.
        pixels: RGB uint8 [height, width, 3].
    """

    name: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side said.

    Attributes:
        role: who.
        text: what.
        pictures: shown with it, before the text.
        reasoning: of a thinking model; not part of what it is told later.
        stop_reason: of an answer, "" of a question.
    """

    role: Literal["user", "assistant"]
    text: str
    pictures: tuple[Picture, ...] = ()
    reasoning: str = ""
    stop_reason: str = ""


@dataclass(kw_only=True)
class Conversation:
    """Questions and answers so far.

    Attributes:
        system: the system prompt, or None.
        turns: in order.
    """

    system: str | None = None
    turns: list[Turn] = field(default_factory=list[Turn])

    def messages(self, *more: Turn) -> list[Message]:
        """Return all turns, and `more` after them, as the engine takes them."""
        from edgevlm.runtime.prompt import Message

        messages = [
            Message(role=turn.role, content=(*(one.pixels for one in turn.pictures), turn.text))
            for turn in (*self.turns, *more)
        ]
        if self.system is not None:
            messages.insert(0, Message(role="system", content=(self.system,)))
        return messages

    def add(self, question: Turn, answer: Answer) -> None:
        """Keep a question and its answer."""
        said = Turn(
            role="assistant",
            text=answer.text,
            reasoning=answer.reasoning,
            stop_reason=answer.stop_reason,
        )
        self.turns += [question, said]

    @property
    def n_pictures(self) -> int:
        """Images shown so far."""
        return sum(len(turn.pictures) for turn in self.turns)

    def save(self, path: Path, *, model: str) -> None:
        """Write the conversation as JSON or Markdown, by the name's suffix.

        Raises:
            OutputExistsError: there is such a file; nothing is replaced.
            OutputError: another suffix, or the file cannot be written.
        """
        from edgevlm.files import write_together

        form = path.suffix.lower()
        if form not in (".json", ".md"):
            raise OutputError(f"`{path}` says no form to save in", hint=_SAVE_HINT)
        # Also a link into nowhere counts: writing would follow it.
        if path.exists() or path.is_symlink():
            raise OutputExistsError(f"`{path}` exists already", hint="name another file")
        if not path.parent.is_dir():
            raise OutputError(f"there is no folder `{path.parent}`", hint="name another file")
        data = (self._json(model) if form == ".json" else self._markdown(model)).encode()
        with write_together(path.parent, names=[path.name], n_bytes=len(data), force=False) as out:
            out.create(path.name).write_bytes(data)

    def _json(self, model: str) -> str:
        messages: list[dict[str, object]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            message: dict[str, object] = {"role": turn.role, "content": turn.text}
            if turn.pictures:
                message["images"] = [_described(one) for one in turn.pictures]
            if turn.reasoning:
                message["reasoning_content"] = turn.reasoning
            if turn.stop_reason:
                message["stop_reason"] = turn.stop_reason
            messages.append(message)
        document = {"model": model, "messages": messages}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def _markdown(self, model: str) -> str:
        parts = [f"# A conversation with {model}"]
        if self.system is not None:
            parts += ["## system", self.system]
        for turn in self.turns:
            parts.append(f"## {turn.role}")
            parts += [f"Image: `{short(one.name)}`" for one in turn.pictures]
            if turn.reasoning:
                parts.append("\n".join(f"> {line}" for line in turn.reasoning.splitlines()))
            parts.append(turn.text)
            if turn.stop_reason not in ("", "end"):
                parts.append(f"(the answer ended early: {turn.stop_reason})")
        return "\n\n".join(parts) + "\n"


def _described(picture: Picture) -> dict[str, object]:
    height, width = picture.pixels.shape[:2]
    return {"source": short(picture.name), "width": width, "height": height}
