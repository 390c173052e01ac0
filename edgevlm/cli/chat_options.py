"""The options of `edgevlm chat` that say how an answer is sampled, and what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from edgevlm.runtime.sampling import SamplingParams

DEFAULT_MAX_TOKENS = 512
_MAX_GRAMMAR_BYTES = 1_000_000

ThinkName = Literal["on", "off"]
ContextPolicyName = Literal["error", "trim", "summarize"]

MaxTokensOption = Annotated[
    int, typer.Option("--max-tokens", min=1, help="Most tokens of the answer.")
]
MaxSecondsOption = Annotated[
    float | None,
    typer.Option(
        "--max-seconds",
        metavar="S",
        help="End the answer after this many seconds, with what there is.",
        show_default=False,
    ),
]
TemperatureOption = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        metavar="T",
        help="0 takes the most likely token: the same text every time "
        "(default: what the model file says, else 0).",
        show_default=False,
    ),
]
TopKOption = Annotated[
    int | None,
    typer.Option(
        "--top-k", metavar="N", help="Draw among the N best; 0 for all.", show_default=False
    ),
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Draw among the best that hold this probability together.",
        show_default=False,
    ),
]
MinPOption = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        metavar="P",
        help="Draw among those at least this likely beside the best.",
        show_default=False,
    ),
]
RepeatPenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--repeat-penalty",
        metavar="X",
        help="Divide the logits of recent tokens; 1 for off.",
        show_default=False,
    ),
]
FrequencyPenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--frequency-penalty",
        metavar="X",
        help="Taken from a recent token's logit as often as it occurred.",
        show_default=False,
    ),
]
PresencePenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty",
        metavar="X",
        help="Taken from a recent token's logit once.",
        show_default=False,
    ),
]
DryMultiplierOption = Annotated[
    float | None,
    typer.Option(
        "--dry-multiplier",
        metavar="X",
        help="Strength of DRY against repeated phrases; 0 for off.",
        show_default=False,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=(1 << 32) - 1,
        help="Of the draw, above temperature 0 (default: another every time).",
        show_default=False,
    ),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the answer before this text; may be repeated.",
        show_default=False,
    ),
]
LogitBiasOption = Annotated[
    list[str] | None,
    typer.Option(
        "--logit-bias",
        metavar="TOKEN_ID=BIAS",
        help="Add to one token's logit; may be repeated.",
        show_default=False,
    ),
]
GrammarOption = Annotated[
    Path | None,
    typer.Option(
        "--grammar",
        metavar="FILE",
        help="Answer in this grammar (GBNF).",
        show_default=False,
    ),
]
JsonSchemaOption = Annotated[
    Path | None,
    typer.Option(
        "--json-schema",
        metavar="FILE",
        help="Answer in JSON that follows this schema.",
        show_default=False,
    ),
]
ThinkOption = Annotated[
    ThinkName | None,
    typer.Option(
        "--think",
        metavar="on|off",
        help="Let a thinking model reason first, or not (default: its own).",
        show_default=False,
    ),
]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        "--chat-template",
        metavar="NAME",
        help="One of the chat templates in the model file (default: its default).",
        show_default=False,
    ),
]
ContextPolicyOption = Annotated[
    ContextPolicyName,
    typer.Option(
        "--context-policy",
        metavar="error|trim|summarize",
        help="What to do with a conversation that does not fit the context.",
    ),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option(
        "--max-pixels", metavar="N", min=1, help="Refuse larger images, before decoding them."
    ),
]


def asked_sampling(
    *,
    grammar: Path | None,
    json_schema: Path | None,
    logit_bias: Sequence[str] | None,
    **values: object,
) -> dict[str, object]:
    """Return what the command line asks for, by the names of SamplingParams.

    Raises:
        PromptError: a value that means nothing, or a file that cannot be read.
    """
    asked = {
        **values,
        "grammar": _text_of(grammar, "--grammar"),
        "json_schema": _text_of(json_schema, "--json-schema"),
        "logit_bias": [_bias(text) for text in logit_bias or ()],
    }
    asked = {name: value for name, value in asked.items() if value not in (None, [])}
    sampling_params(asked, {})  # wrong values are said before a model is loaded
    return asked


def sampling_params(
    asked: Mapping[str, object], defaults: Mapping[str, float | int]
) -> SamplingParams:
    """Return how to sample: as asked, else as the model file says, else greedy.

    Args:
        asked: of `asked_sampling`.
        defaults: `general.sampling.*` of the model file, by the names of SamplingParams.
    """
    import secrets
    from typing import Any

    from edgevlm.runtime.sampling import SamplingParams

    values: dict[str, Any] = {**defaults, **asked}
    if values.get("temperature") and "seed" not in values:
        values["seed"] = secrets.randbits(32)
    return SamplingParams(**values)


def defaults_note(asked: Mapping[str, object], defaults: Mapping[str, float | int]) -> str | None:
    """Return what to say of the model file's own sampling, None when it changes nothing."""
    used = {name: value for name, value in defaults.items() if name not in asked}
    if not used.get("temperature"):
        return None
    listed = ", ".join(f"{name} {value:g}" for name, value in used.items())
    return f"sampled as the model file says: {listed} (the same text every time: --temperature 0)"


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition("=")
    try:
        return int(token), float(value)
    except ValueError:
        raise typer.BadParameter(
            f"`{text}` is not TOKEN_ID=BIAS, such as 151643=-5", param_hint="--logit-bias"
        ) from None


def _text_of(path: Path | None, option: str) -> str | None:
    if path is None:
        return None
    from edgevlm.errors import PromptError

    hint = f"name a text file with {option}"
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_GRAMMAR_BYTES + 1)
        text = data.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise PromptError(f"cannot read `{path}`: {reason}", hint=hint) from None
    if len(data) > _MAX_GRAMMAR_BYTES:
        raise PromptError(f"`{path}` has more than {_MAX_GRAMMAR_BYTES:,} bytes", hint=hint)
    if not text.strip():
        raise PromptError(f"`{path}` is empty", hint=hint)
    return text
