"""`edgevlm chat`: a question about images, or a conversation at the terminal."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import chat_options as sampling
from edgevlm.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

    from edgevlm.cli.conversation import Picture

_MAX_QUESTION = 4_000_000
_STDIN = "-"


def chat(
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE...]",
            help="Image files, data URLs or - for stdin, asked about in this order.",
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
            help="The question; left out: a conversation at a terminal, else read from stdin.",
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="A system prompt.", show_default=False),
    ] = None,
    max_tokens: sampling.MaxTokensOption = sampling.DEFAULT_MAX_TOKENS,
    max_seconds: sampling.MaxSecondsOption = None,
    temperature: sampling.TemperatureOption = None,
    top_k: sampling.TopKOption = None,
    top_p: sampling.TopPOption = None,
    min_p: sampling.MinPOption = None,
    repeat_penalty: sampling.RepeatPenaltyOption = None,
    frequency_penalty: sampling.FrequencyPenaltyOption = None,
    presence_penalty: sampling.PresencePenaltyOption = None,
    dry_multiplier: sampling.DryMultiplierOption = None,
    seed: sampling.SeedOption = None,
    stop: sampling.StopOption = None,
    logit_bias: sampling.LogitBiasOption = None,
    grammar: sampling.GrammarOption = None,
    json_schema: sampling.JsonSchemaOption = None,
    think: sampling.ThinkOption = None,
    chat_template: sampling.ChatTemplateOption = None,
    context_policy: sampling.ContextPolicyOption = "error",
    max_pixels: sampling.MaxPixelsOption = 50_000_000,
    mmproj: options.MmprojOption = None,
    ctx: options.CtxOption = None,
    threads: options.ThreadsOption = None,
    device: options.DeviceOption = "auto",
    gpu_layers: options.GpuLayersOption = None,
    kv_type: options.KVTypeOption = "f16",
    flash_attention: options.FlashAttentionOption = "auto",
    yes: options.YesOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Ask a question about images, or talk; the answer is streamed on stdout."""
    is_talk = prompt is None and not json and _at_terminal()
    asked = sampling.asked_sampling(
        max_tokens=max_tokens,
        max_seconds=max_seconds,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        dry_multiplier=dry_multiplier,
        seed=seed,
        stop=stop,
        logit_bias=logit_bias,
        grammar=grammar,
        json_schema=json_schema,
    )
    from edgevlm.runtime.worker import open_worker, start_worker

    names = images or []
    with ExitStack() as stack:
        # While the engine's process imports what it needs, so does this one.
        ahead = stack.enter_context(start_worker())
        from functools import partial
        from time import perf_counter

        from edgevlm.build.resolve import resolve_model
        from edgevlm.cli import console
        from edgevlm.cli.conversation import Conversation
        from edgevlm.cli.talk import Talk
        from edgevlm.native.devices import gpu_libraries
        from edgevlm.runtime.card_fit import place
        from edgevlm.runtime.layout import no_projector
        from edgevlm.runtime.memory import check_memory

        # What can be wrong with the question is said before a model is loaded.
        pictures, reading_ms = _read_images(names, max_pixels, has_prompt=prompt is not None)
        question = "" if is_talk else _question(prompt)
        found = resolve_model(
            model,
            level=level,
            mmproj=mmproj,
            progress=console.progress_for(json=json, quiet=quiet),
            note=partial(console.note, quiet=quiet),
        )
        for text in found.notes:
            console.note(text, quiet=quiet)
        if names and found.mmproj is None:
            raise no_projector(f"`{found.name}`")
        # Without an image there is nothing for a projector to do; one that was named is opened.
        projector = found.mmproj if names or mmproj or is_talk else None
        check = check_memory(
            found.text,
            projector,
            n_ctx=ctx,
            kv_type=options.kv_type_of(kv_type),
            flash_attention=flash_attention,
            device=device,
            gpu_layers=gpu_layers,
            image_sizes=[(one.pixels.shape[1], one.pixels.shape[0]) for one in pictures],
            override=yes,
            # This process needs nothing on the card.
            found=ahead.devices() if device != "cpu" and gpu_libraries() else (),
        )
        placed = place(check.fit, device, gpu_layers)
        if placed.note:
            console.note(placed.note, quiet=quiet)
        started = perf_counter()
        worker = stack.enter_context(
            open_worker(
                model=found.text,
                mmproj=projector,
                n_ctx=ctx,
                n_threads=threads,
                device=placed.device,
                gpu_layers=placed.gpu_layers,
                kv_type=options.kv_type_of(kv_type),
                flash_attention=flash_attention,
                chat_template=chat_template,
                started=ahead,
            )
        )
        load_ms = (perf_counter() - started) * 1e3
        defaults = worker.sampling_defaults
        if note := sampling.defaults_note(asked, defaults):
            console.note(note, quiet=quiet)
        talk = Talk(
            worker=worker,
            found=found,
            conversation=Conversation(system=system),
            asked=asked,
            think=None if think is None else think == "on",
            context_policy=context_policy,
            pictures=pictures,
            quiet=quiet,
        )
        if is_talk:
            from edgevlm.cli.repl import Repl

            Repl(talk, max_pixels=max_pixels).run()
        else:
            talk.ask_once(question, as_json=json, reading_ms=reading_ms, load_ms=load_ms)


def _at_terminal() -> bool:
    import sys

    stdin: TextIO | None = sys.stdin  # None: the shell closed it, `<&-`
    return stdin is not None and stdin.isatty()


def _read_images(
    names: Sequence[str], max_pixels: int, *, has_prompt: bool
) -> tuple[list[Picture], float]:
    """Decode the images; return them and the milliseconds it took."""
    if not names:
        return [], 0.0
    from time import perf_counter

    from edgevlm.cli.conversation import Picture
    from edgevlm.errors import PromptError
    from edgevlm.runtime.image import load_image

    if _STDIN in names and (not has_prompt or names.count(_STDIN) > 1):
        raise PromptError(
            "stdin holds one image, or the question",
            hint='pass the question with `-p "What is this?"`, and `-` once',
        )
    started = perf_counter()
    pictures = [
        Picture(
            name=name,
            pixels=load_image(_bytes_on_stdin() if name == _STDIN else name, max_pixels=max_pixels),
        )
        for name in names
    ]
    return pictures, (perf_counter() - started) * 1e3


def _bytes_on_stdin() -> bytes:
    import sys

    from edgevlm.errors import ImageError
    from edgevlm.runtime.image import MAX_BYTES

    stdin: TextIO | None = sys.stdin
    if stdin is None or stdin.isatty():
        raise ImageError("there is no image on stdin", hint="pipe one in: `... - < photo.jpg`")
    return stdin.buffer.read(MAX_BYTES + 1)


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
