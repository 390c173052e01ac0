"""The options that several verbs share, each with one meaning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from edgevlm.native.text_context import KVType

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
# As the command line spells them; `kv_type_of` gives the type's own name.
KVTypeName = Literal["f16", "f32", "q8_0"]
FlashAttentionName = Literal["auto", "on", "off"]


def kv_type_of(name: KVTypeName) -> KVType:
    """Return the tensor type of the KV cache that `--kv-type` names."""
    types: dict[KVTypeName, KVType] = {"f16": "F16", "f32": "F32", "q8_0": "Q8_0"}
    return types[name]


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 500MB, 2G, 1.5GiB or 0."""
    import re

    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no size; write it as 500M, 2G or 1.5GiB")
    number, unit, binary = match.groups()
    power = "KMGT".find(unit.upper()) + 1 if unit else 0
    return int(float(number) * (1024**power if binary else _UNITS[unit.upper()]))


def _show_version(asked: bool) -> None:
    if asked:
        from edgevlm import __version__

        typer.echo(f"edgevlm {__version__}")
        raise typer.Exit


def _set_verbose(asked: bool) -> bool:
    if asked:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
        for name in ("asyncio", "PIL"):
            logging.getLogger(name).setLevel(logging.WARNING)
    return asked


VersionOption = Annotated[
    bool,
    typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no notes on stderr.")
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=_set_verbose, help="Show what llama.cpp and edgevlm log."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace output that exists.")]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A model directory, a .gguf file, `shapes` (built in), or ORG/NAME of the Hub; "
        "left out: the model written or used last.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model directory, a .gguf file, `shapes` (built in), or ORG/NAME of the Hub; "
        "left out: the model written or used last.",
        show_default=False,
    ),
]
LevelOption = Annotated[
    str | None,
    typer.Option(
        "--level",
        metavar="LEVEL|FILE.toml",
        help="Level of the text model, such as Q4_K_M; `edgevlm profiles` lists them.",
        show_default=False,
    ),
]
MmprojLevelOption = Annotated[
    str | None,
    typer.Option(
        "--mmproj-level",
        metavar="LEVEL",
        help="Level of the projector: F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, "
        "Q4_0 or IQ4_NL (default: the level's own, Q8_0 with a quantized text model).",
        show_default=False,
    ),
]
TensorTypeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type",
        metavar="REGEX=TYPE",
        help="Tensors of the text model whose name REGEX matches become TYPE, before the level's "
        "own rules; may be given several times, the first match wins.",
        show_default=False,
    ),
]
ImatrixOption = Annotated[
    Path | None,
    typer.Option(
        "--imatrix",
        metavar="FILE",
        help="Importance matrix of `edgevlm calibrate`, or of llama-imatrix (.gguf or .dat).",
        show_default=False,
    ),
]
MmprojOption = Annotated[
    Path | None,
    typer.Option(
        "--mmproj",
        metavar="FILE.gguf",
        help="The projector's file; left out: the one beside the model.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        min=1,
        max=1024,
        help="Threads (default: all cores; fewer for tiny models).",
        show_default=False,
    ),
]
CtxOption = Annotated[
    int | None,
    typer.Option(
        "--ctx",
        min=1,
        help="Context length n_ctx in tokens (default: 4096 or the model's own, "
        "whichever is smaller).",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option("--device", metavar="auto|cpu|cuda|metal|vulkan", help="Where the model runs."),
]
GpuLayersOption = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        min=0,
        help="Layers on the GPU (default: all that have room there).",
        show_default=False,
    ),
]
KVTypeOption = Annotated[
    KVTypeName,
    typer.Option(
        "--kv-type",
        metavar="f16|f32|q8_0",
        case_sensitive=False,
        help="Type of the KV cache: q8_0 takes half the memory of f16.",
    ),
]
FlashAttentionOption = Annotated[
    FlashAttentionName,
    typer.Option(
        "--flash-attention",
        metavar="auto|on|off",
        case_sensitive=False,
        help="Attention without its large intermediate table; auto asks the device.",
    ),
]
YesOption = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Go on where edgevlm would refuse or ask."),
]
