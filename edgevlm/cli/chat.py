"""`edgevlm chat`: a question about images, or about nothing in particular."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    import numpy as np
    from numpy.typing import NDArray

    from edgevlm.build.resolve import ResolvedModel
    from edgevlm.runtime.answer import Answer, ImageCost
    from edgevlm.runtime.sampling import SamplingParams

_MAX_QUESTION = 4_000_000


def chat(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE...]",
            help="Image files or data URLs, asked about in this order.",
            show_default=False,
        ),
    ] = None,
    model: options.ModelOption = None,
    level: options.LevelOption = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="The question; left out: read from stdin.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="A system prompt.", show_default=False),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Most tokens of the answer.")
    ] = 512,
    temperature: Annotated[
        float,
        typer.Option(
            "--temperature", min=0, help="0 takes the most likely token: the same text every time."
        ),
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            min=0,
            max=(1 << 32) - 1,
            help="Of the draw, above temperature 0 (default: another every time).",
            show_default=False,
        ),
    ] = None,
    mmproj: options.MmprojOption = None,
    ctx: options.CtxOption = None,
    threads: options.ThreadsOption = None,
    device: options.DeviceOption = "auto",
    gpu_layers: options.GpuLayersOption = None,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Ask a question about images; the answer is streamed on stdout."""
    from dataclasses import replace
    from time import perf_counter

    from edgevlm.build.resolve import resolve_model
    from edgevlm.cli import console
    from edgevlm.runtime.layout import no_projector
    from edgevlm.runtime.prompt import conversation
    from edgevlm.runtime.vlm import open_vlm

    names = images or []
    # What can be wrong with the question is said before a model is loaded.
    pictures, reading_ms = _read_images(names)
    params = _sampling(temperature=temperature, seed=seed, max_tokens=max_tokens)
    messages = conversation(_question(prompt), pictures, system=system)
    found = resolve_model(
        model, level=level, mmproj=mmproj, progress=console.progress_for(json=json, quiet=quiet)
    )
    for text in found.notes:
        console.note(text, quiet=quiet)
    if names and found.mmproj is None:
        raise no_projector(f"`{found.name}`")
    stream = _Stream(silent=json)
    started = perf_counter()
    with (
        stream,
        open_vlm(
            model=found.text,
            # Without an image there is nothing for a projector to do; one that was named is opened.
            mmproj=found.mmproj if names or mmproj else None,
            n_ctx=ctx,
            n_threads=threads,
            device=device,
            gpu_layers=gpu_layers,
        ) as vlm,
    ):
        load_ms = (perf_counter() - started) * 1e3
        answer = vlm.generate(
            messages,
            params=params,
            on_images=lambda costs: _show_costs(names, costs, quiet=quiet),
            on_text=stream.write,
        )
    answer = replace(answer, timings=answer.timings.with_loading(reading_ms))
    if json:
        console.print_json(_document(found, names, answer, params, load_ms=load_ms))
    else:
        console.note(_summary(answer), quiet=quiet)


def _read_images(names: Sequence[str]) -> tuple[list[NDArray[np.uint8]], float]:
    """Decode the images; return them and the milliseconds it took."""
    if not names:
        return [], 0.0
    from time import perf_counter

    from edgevlm.runtime.image import load_image

    started = perf_counter()
    return [load_image(name) for name in names], (perf_counter() - started) * 1e3


class _Stream:
    """The answer on stdout, piece by piece; an unfinished line is ended whatever happens."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._line_open = False

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        import sys

        if kind is not None and issubclass(kind, BrokenPipeError):
            return
        if self._line_open:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def write(self, text: str) -> None:
        import sys

        from edgevlm.cli.console import printable

        if self._silent:
            return
        # A terminal obeys escape sequences, and who knows what a model was taught.
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
        sys.stdout.flush()
        self._line_open = not text.endswith("\n")


def _question(prompt: str | None) -> str:
    from edgevlm.errors import PromptError

    question = prompt if prompt is not None else _from_stdin()
    if not question.strip():
        raise PromptError("there is no question", hint='ask one: `-p "What is this?"`, or on stdin')
    return question


def _from_stdin() -> str:
    """Read one line from a terminal, all there is from a pipe."""
    import sys

    from edgevlm.errors import PromptError

    stdin: TextIO | None = sys.stdin
    if stdin is None:  # the shell closed it: `<&-`
        return ""
    try:
        if stdin.isatty():
            sys.stderr.write("question: ")
            sys.stderr.flush()
            return stdin.readline().strip()
        text = stdin.read(_MAX_QUESTION + 1).strip()
    except UnicodeDecodeError:
        raise PromptError("stdin is not UTF-8 text", hint="pass the question with `-p`") from None
    if len(text) > _MAX_QUESTION:
        raise PromptError(
            f"the question on stdin is longer than {_MAX_QUESTION:,} characters",
            hint="shorten it: no context holds that much",
        )
    return text


def _sampling(*, temperature: float, seed: int | None, max_tokens: int) -> SamplingParams:
    import secrets

    from edgevlm.runtime.sampling import SamplingParams

    if seed is None:
        seed = secrets.randbits(32) if temperature else 0
    return SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens)


def _show_costs(names: Sequence[str], costs: Sequence[ImageCost], *, quiet: bool) -> None:
    from edgevlm.cli.console import note

    for name, cost in zip(names, costs, strict=True):
        size = f"{cost.width}x{cost.height}"
        note(f"{_short(name)}: {size} -> {cost.n_visual_tokens} visual tokens", quiet=quiet)


def _short(name: str) -> str:
    return f"{name[:24]}..." if name.startswith("data:") else name


def _summary(answer: Answer) -> str:
    times = answer.timings
    text = (
        f"TTFT {times.ttft_ms:.0f} ms (preprocess {times.preprocess_ms:.0f}"
        f" + encode {times.encode_ms:.0f} + prefill {times.prefill_ms:.0f})"
    )
    if times.tok_per_sec is not None:
        text += f", {times.tok_per_sec:.0f} tok/s"
    if answer.stop_reason == "max_tokens":
        text += f"; ended after --max-tokens {len(answer.token_ids)}"
    if answer.stop_reason == "context_full":
        text += "; ended because the context is full, see --ctx"
    return text


def _document(
    found: ResolvedModel,
    names: Sequence[str],
    answer: Answer,
    params: SamplingParams,
    *,
    load_ms: float,
) -> dict[str, object]:
    times = answer.timings
    images = [
        {
            "source": _short(name),
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
