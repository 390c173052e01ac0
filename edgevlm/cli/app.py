"""The `edgevlm` command: one line registers a verb; `main` is the only `except EdgeVLMError`."""

from __future__ import annotations

import sys

import typer

from edgevlm.cli import options
from edgevlm.errors import EdgeVLMError

_HELP = (
    "Put a vision-language model (VLM) on a small machine, and know what it cost.\n\n"
    "Converts Hugging Face checkpoints to GGUF without torch, quantizes in one pass, and talks "
    "about images through llama.cpp. The model `shapes` is built in: try `edgevlm demo`."
)


def _build() -> typer.Typer:
    from edgevlm.cli.cache import cache_app
    from edgevlm.cli.calibrate import calibrate
    from edgevlm.cli.card import card
    from edgevlm.cli.chat import chat
    from edgevlm.cli.compare import compare
    from edgevlm.cli.convert import convert
    from edgevlm.cli.demo import demo
    from edgevlm.cli.doctor import doctor
    from edgevlm.cli.families import families
    from edgevlm.cli.inspect import inspect
    from edgevlm.cli.profiles import profiles
    from edgevlm.cli.quantize import quantize
    from edgevlm.cli.reference import reference
    from edgevlm.cli.tune import tune
    from edgevlm.cli.verify import verify

    app = typer.Typer(
        name="edgevlm",
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    makes = (convert, quantize, calibrate, tune)
    for verb in (
        *makes,
        compare,
        verify,
        reference,
        card,
        chat,
        inspect,
        families,
        profiles,
        demo,
        doctor,
    ):
        app.command()(verb)
    app.add_typer(cache_app)
    return app


def _common(version: options.VersionOption = False) -> None:
    """Options before the verb."""


_common.__doc__ = _HELP


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status.

    0 done; 1 a user's error; 2 usage; 3 a budget exceeded or a check failed; 130 Ctrl-C. A bug
    keeps its traceback.
    """
    try:
        _build()(args=argv, prog_name="edgevlm")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 0
    except EdgeVLMError as error:
        _show(error)
        return error.exit_code
    return 0


def _show(error: EdgeVLMError) -> None:
    from edgevlm.cli.console import show_error

    sys.stdout.flush()
    show_error(error.message, error.hint)
