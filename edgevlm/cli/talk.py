"""One conversation with one loaded model: a question in, an answer shown and kept."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from edgevlm.cli import chat_show, console
from edgevlm.cli.chat_options import sampling_params
from edgevlm.cli.conversation import Conversation, Picture, Turn

if TYPE_CHECKING:
    from edgevlm.build.resolve import ResolvedModel
    from edgevlm.runtime.answer import Answer, ContextPolicy, ImageCost
    from edgevlm.runtime.sampling import SamplingParams
    from edgevlm.runtime.worker import Worker


class Talk:
    """A conversation, its engine, and how it is asked.

    Args:
        worker: the engine.
        found: the model's files.
        conversation: so far.
        asked: how to sample, of `asked_sampling`.
        think: None: as the chat template has it.
        context_policy: for a conversation that does not fit.
        pictures: to show with the next question.
        quiet: no notes.
    """

    def __init__(
        self,
        *,
        worker: Worker,
        found: ResolvedModel,
        conversation: Conversation,
        asked: Mapping[str, object],
        think: bool | None,
        context_policy: ContextPolicy,
        pictures: Sequence[Picture],
        quiet: bool,
    ) -> None:
        self.worker = worker
        self.found = found
        self.conversation = conversation
        self.pictures = list(pictures)
        self.last: Answer | None = None
        self._asked = asked
        self._think = think
        self._context_policy: ContextPolicy = context_policy
        self._quiet = quiet

    def ask_once(self, question: str, *, as_json: bool, reading_ms: float, load_ms: float) -> None:
        """Ask one question; show the answer, or print it as a JSON document."""
        names = [picture.name for picture in self.pictures]
        params = self._params()
        with chat_show.Stream(silent=as_json, quiet=self._quiet) as stream:
            answer = self._generate(question, params, stream, lambda: False)
        answer = replace(answer, timings=answer.timings.with_loading(reading_ms))
        if as_json:
            found = self.found
            console.print_json(chat_show.document(found, names, answer, params, load_ms=load_ms))
        else:
            console.note(chat_show.summary(answer, params), quiet=self._quiet)

    def ask(self, question: str) -> None:
        """Ask the next question of the conversation; Ctrl-C ends the answer and keeps it.

        Raises:
            EdgeVLMError: the question and its pictures are not kept, the pictures stay pending.
            KeyboardInterrupt: a second Ctrl-C; nothing is kept.
        """
        if self.worker.pid is None:
            console.note("loading the model again", quiet=self._quiet)
        params = self._params()
        turn = Turn(role="user", text=question, pictures=tuple(self.pictures))
        with chat_show.Stream(quiet=self._quiet) as stream, _interrupts() as interrupted:
            answer = self._generate(question, params, stream, interrupted)
        if answer.text or answer.stop_reason != "cancelled":
            self.conversation.add(turn, answer)
            self.pictures.clear()
            self.last = answer
        console.note(chat_show.summary(answer, params), quiet=self._quiet)

    def reset(self) -> None:
        """Forget what was said, and the pictures; the system prompt stays."""
        self.conversation = Conversation(system=self.conversation.system)
        self.pictures.clear()
        self.last = None

    def _params(self) -> SamplingParams:
        return sampling_params(self._asked, self.worker.sampling_defaults)

    def _generate(
        self,
        question: str,
        params: SamplingParams,
        stream: chat_show.Stream,
        should_stop: Callable[[], bool],
    ) -> Answer:
        pictures = tuple(self.pictures)
        names = [picture.name for picture in pictures]

        def show_costs(costs: Sequence[ImageCost]) -> None:
            stream.end_line()
            # Those shown earlier were said then.
            chat_show.show_costs(names, costs[len(costs) - len(names) :], quiet=self._quiet)

        def note(text: str) -> None:
            stream.end_line()
            console.note(text, quiet=self._quiet)

        return self.worker.generate(
            self.conversation.messages(Turn(role="user", text=question, pictures=pictures)),
            params=params,
            think=self._think,
            context_policy=self._context_policy,
            should_stop=should_stop,
            on_images=show_costs,
            on_text=stream.write,
            on_reasoning=stream.write_reasoning,
            on_note=note,
        )


@contextmanager
def _interrupts() -> Generator[Callable[[], bool]]:
    """Yield whether Ctrl-C was pressed; the second one raises KeyboardInterrupt."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
