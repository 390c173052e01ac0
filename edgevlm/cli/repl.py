"""The conversation at a terminal: a prompt with history, commands, and Ctrl-C that stops an answer.

Everything but the answers goes to stderr, so that stdout holds them alone also when redirected.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.build.cache import cache_folder
from edgevlm.cli import chat_show, console
from edgevlm.cli.conversation import Picture
from edgevlm.errors import ContextOverflowError, EdgeVLMError, ImageError, PromptError

if TYPE_CHECKING:
    from edgevlm.cli.talk import Talk

_PROMPT = "> "
_HISTORY = "chat-history"
_N_HISTORY = 1000
_LEAVE = "Ctrl-D leaves"
_HELP = """\
/image PATH  show an image with the next question
/reset       forget what was said
/stats       tokens in the context, times
/save FILE   save as .json or .md
/help        this list
Ctrl-C stops an answer (twice: at once, and nothing of it is kept).
Ctrl-D leaves.
A question that begins with / needs a space before it."""


class Repl:
    """Reads lines until Ctrl-D; each is a command or a question.

    Args:
        talk: the conversation.
        max_pixels: limit for images, see `load_image`.
    """

    def __init__(self, talk: Talk, *, max_pixels: int) -> None:
        self._talk = talk
        self._max_pixels = max_pixels
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/reset": self._reset,
            "/stats": self._stats,
            "/save": self._save,
            "/help": self._help,
        }

    def run(self) -> None:
        """Talk until Ctrl-D."""
        found = self._talk.found
        _say(f"{found.name} {found.level}; /help lists the commands, {_LEAVE}", wrap=True)
        for picture in self._talk.pictures:
            _say(f"{chat_show.short(picture.name)}: shown with your first question")
        with _history():
            while (line := _read_line()) is not None:
                if line.strip():
                    self._obey(line)

    def _obey(self, line: str) -> None:
        try:
            if line.startswith("/"):
                name, _, rest = line.strip().partition(" ")
                if name not in self._commands:
                    raise PromptError(
                        f"there is no command `{name}`", hint="`/help` lists the commands"
                    )
                self._commands[name](rest.strip())
            else:
                self._talk.ask(line.strip())
        except ContextOverflowError as error:
            console.show_error(error.message, f"{error.hint}; `/reset` forgets what was said")
        except EdgeVLMError as error:
            console.show_error(error.message, error.hint)
        except KeyboardInterrupt:
            # The second Ctrl-C: the engine was ended, not asked.
            _say("stopped; nothing of it is kept")

    def _image(self, rest: str) -> None:
        from edgevlm.runtime.image import load_image
        from edgevlm.runtime.layout import no_projector

        if not rest:
            raise ImageError("no image is named", hint="`/image PATH`")
        if self._talk.found.mmproj is None:
            raise no_projector(f"`{self._talk.found.name}`")
        name = _path_as_typed(rest)
        picture = Picture(name=name, pixels=load_image(name, max_pixels=self._max_pixels))
        self._talk.pictures.append(picture)
        _say(f"{chat_show.short(name)}: shown with your next question")

    def _reset(self, _: str) -> None:
        self._talk.reset()
        _say("forgotten")

    def _stats(self, _: str) -> None:
        talk = self._talk
        last = talk.last
        used = 0 if last is None else last.n_prompt_tokens + len(last.token_ids)
        n_questions = sum(turn.role == "user" for turn in talk.conversation.turns)
        _say(f"context: {used} of {talk.worker.n_ctx} tokens")
        _say(f"questions: {n_questions}, images: {talk.conversation.n_pictures}")
        if talk.pictures:
            _say(f"images for the next question: {len(talk.pictures)}")
        if last is not None:
            times = last.timings
            _say(f"prompt: {last.n_prompt_tokens} tokens, {last.n_reused_tokens} of them reused")
            _say(
                f"TTFT {times.ttft_ms:.0f} ms: preprocess {times.preprocess_ms:.0f},"
                f" encode {times.encode_ms:.0f}, prefill {times.prefill_ms:.0f}"
            )
            speed = times.tok_per_sec
            at = "" if speed is None else f", {speed:.1f} tok/s"
            _say(f"answer: {len(last.token_ids)} tokens{at}")

    def _save(self, rest: str) -> None:
        if not self._talk.conversation.turns:
            raise PromptError("there is nothing to save", hint="ask something first")
        path = Path(_path_as_typed(rest))
        self._talk.conversation.save(path, model=self._talk.found.name)
        _say(f"saved in {path}")

    def _help(self, _: str) -> None:
        _say(_HELP, wrap=True)


def _say(text: str, *, wrap: bool = False) -> None:
    """Say something on stderr; `wrap` at words, where nobody will copy a path."""
    if wrap:
        console.err().print(text, markup=False, style="dim")
    else:
        console.note(text)


def _read_line() -> str | None:
    """Return the next line, None after Ctrl-D."""
    while True:
        try:
            return _input()
        except EOFError:
            _say("")  # the prompt's line is ended
            return None
        except KeyboardInterrupt:
            _say(f"\n{_LEAVE}")
        except UnicodeDecodeError:
            console.show_error("what was typed is not UTF-8", "set the terminal to UTF-8")


def _input() -> str:
    if sys.stdout.isatty():
        return input(_PROMPT)
    # `input` would write the prompt where the answers go.
    sys.stderr.write(_PROMPT)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def _path_as_typed(text: str) -> str:
    """Return a path as typed; a terminal quotes or escapes what is dropped on it."""
    if text.startswith("data:") or Path(text).exists():
        return text
    with suppress(ValueError):  # an open quote is a part of the name
        words = shlex.split(text)
        if len(words) == 1:
            text = words[0]
    return os.path.expanduser(text)


@contextmanager
def _history() -> Generator[None]:
    """Keep what is typed for the next time; a history that cannot be kept is no error."""
    try:
        import readline
    except ImportError:  # Windows: lines are read without history
        yield
        return
    path = cache_folder() / _HISTORY
    readline.clear_history()
    with suppress(OSError):
        readline.read_history_file(path)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    try:
        yield
    finally:
        readline.set_history_length(_N_HISTORY)
        temporary = path.with_name(f".{_HISTORY}.{os.getpid()}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(mode=0o600)  # what was asked is nobody else's business
            readline.write_history_file(temporary)
            os.replace(temporary, path)
