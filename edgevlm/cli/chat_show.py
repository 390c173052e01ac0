"""What `edgevlm chat` shows: the answer as it comes, what it cost, and its JSON document."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from edgevlm.cli import console

if TYPE_CHECKING:
    from edgevlm.build.resolve import ResolvedModel
    from edgevlm.runtime.answer import Answer, ImageCost, StopReason
    from edgevlm.runtime.sampling import SamplingParams

_ENDS: dict[StopReason, str] = {
    "max_tokens": "ended after {n_tokens} tokens, see --max-tokens",
    "context_full": "ended because the context is full, see --ctx",
    "stop_string": "ended at a text given with --stop",
    "max_seconds": "ended after --max-seconds {max_seconds:g}",
    "loop": "ended because it only repeated itself",
    "cancelled": "stopped",
}


class Stream:
    """The answer on stdout and the reasoning on stderr, piece by piece.

    An unfinished line is ended whatever happens.

    Args:
        silent: show nothing.
        quiet: show no reasoning.
    """

    def __init__(self, *, silent: bool = False, quiet: bool = False) -> None:
        self._silent = silent
        self._quiet = quiet
        self._open: TextIO | None = None  # where a line is unfinished
        self.text = ""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, BrokenPipeError):
            self.end_line()

    def write(self, text: str) -> None:
        """Show a piece of the answer."""
        self.text += text
        if self._silent:
            return
        if self._open is sys.stderr:
            self.end_line()
        # A terminal obeys escape sequences, and who knows what a model was taught.
        self._put(sys.stdout, console.printable(text) if sys.stdout.isatty() else text, text)

    def write_reasoning(self, text: str) -> None:
        """Show a piece of what a thinking model says to itself."""
        if self._silent or self._quiet:
            return
        shown = console.printable(text)
        terminal = console.err()
        if terminal.is_terminal and not terminal.is_dumb_terminal:
            shown = f"\x1b[2m{shown}\x1b[0m"
        self._put(sys.stderr, shown, text)

    def _put(self, stream: TextIO, shown: str, text: str) -> None:
        self._open = stream  # before: Ctrl-C may come between any two steps
        stream.write(shown)
        stream.flush()
        if text.endswith("\n"):
            self._open = None

    def end_line(self) -> None:
        """End an unfinished line, before something else is said."""
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None


def show_costs(names: Sequence[str], costs: Sequence[ImageCost], *, quiet: bool) -> None:
    """Say what the images cost, before they are encoded."""
    for name, cost in zip(names, costs, strict=False):
        size = f"{cost.width}x{cost.height}"
        console.note(f"{short(name)}: {size} -> {cost.n_visual_tokens} visual tokens", quiet=quiet)


def short(name: str) -> str:
    """Return an image's name, a data URL cut."""
    return f"{name[:24]}..." if name.startswith("data:") else name


def summary(answer: Answer, params: SamplingParams) -> str:
    """Return one line: where the time went, what was reused, and why the answer ended."""
    times = answer.timings
    text = (
        f"TTFT {times.ttft_ms:.0f} ms (preprocess {times.preprocess_ms:.0f}"
        f" + encode {times.encode_ms:.0f} + prefill {times.prefill_ms:.0f})"
    )
    if times.tok_per_sec is not None:
        text += f", {times.tok_per_sec:.0f} tok/s"
    if answer.n_reused_tokens:
        text += f", reused {answer.n_reused_tokens} tokens"
    if answer.stop_reason in _ENDS:
        how = _ENDS[answer.stop_reason]
        text += "; " + how.format(
            n_tokens=len(answer.token_ids), max_seconds=params.max_seconds or 0
        )
    return text


def document(
    found: ResolvedModel,
    names: Sequence[str],
    answer: Answer,
    params: SamplingParams,
    *,
    load_ms: float,
) -> dict[str, object]:
    """Return what `--json` prints."""
    times = answer.timings
    images = [
        {
            "source": short(name),
            "width": cost.width,
            "height": cost.height,
            "n_visual_tokens": cost.n_visual_tokens,
            "encode_ms": round(encode_ms, 3),
        }
        for name, cost, encode_ms in zip(names, answer.images, times.image_encode_ms, strict=True)
    ]
    speed = times.tok_per_sec
    return {
        "model": found.name,
        "level": found.level,
        "answer": answer.text,
        "reasoning_content": answer.reasoning or None,
        "stop_reason": answer.stop_reason,
        "images": images,
        "n_prompt_tokens": answer.n_prompt_tokens,
        "n_visual_tokens": answer.n_visual_tokens,
        "n_answer_tokens": len(answer.token_ids),
        "temperature": params.temperature,
        "seed": params.seed,
        "load_ms": round(load_ms, 3),
        "preprocess_ms": round(times.preprocess_ms, 3),
        "encode_ms": round(times.encode_ms, 3),
        "prefill_ms": round(times.prefill_ms, 3),
        "ttft_ms": round(times.ttft_ms, 3),
        "decode_ms": round(times.decode_ms, 3),
        "tok_per_sec": None if speed is None else round(speed, 3),
    }
