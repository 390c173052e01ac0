"""`edgevlm inspect`: what is in a GGUF file."""

from __future__ import annotations

import json as json_module
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from edgevlm.ggml_types import TypeCount
    from edgevlm.gguf_file import GGUFFile, GGUFTensor
    from edgevlm.gguf_value import GGUFValue, Scalar

# Items of an array that JSON shows; a vocabulary would be megabytes.
_JSON_ITEMS = 64
_TEXT_ITEMS = 8
_MAX_LOSSES = 32
_MIN_VALUE_WIDTH = 24
_MAX_VALUE_WIDTH = 100
_COLUMN_GAP = 3
_SHORT_TYPES = {
    "UINT8": "u8",
    "INT8": "i8",
    "UINT16": "u16",
    "INT16": "i16",
    "UINT32": "u32",
    "INT32": "i32",
    "UINT64": "u64",
    "INT64": "i64",
    "FLOAT32": "f32",
    "FLOAT64": "f64",
    "BOOL": "bool",
    "STRING": "str",
}


def inspect(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .gguf file, the first one of a model in several."),
    ],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json: options.JsonOption = False,
) -> None:
    """Show a GGUF file's metadata, tensor types and true bits per weight."""
    from edgevlm.cli import console
    from edgevlm.gguf_shards import read_model

    content = read_model(_only_model(file) if file.is_dir() else file)
    if json:
        console.print_json(_document(content))
        return
    _print_summary(content)
    _print_metadata(content)
    if tensors:
        _print_tensors(content.tensors)
    else:
        console.note(f"\n{len(content.tensors)} tensors: `--tensors` lists them")


def _only_model(folder: Path) -> Path:
    """Return the model of a folder that has one.

    Raises:
        GGUFError: it has several; the hint names them.
    """
    from edgevlm.errors import GGUFError
    from edgevlm.model_dir import open_model_dir

    paths = [file.path for file in open_model_dir(folder).files]
    if len(paths) == 1:
        return paths[0]
    raise GGUFError(
        f"`{folder}` holds {len(paths)} models",
        hint=f"name one of them: {', '.join(f'`{path}`' for path in sorted(paths)[:6])}",
    )


def _print_summary(content: GGUFFile) -> None:
    from edgevlm.cli import console
    from edgevlm.files import human_bytes
    from edgevlm.gguf_shards import paths_of

    n_files = len(paths_of(content))
    in_files = f" in {n_files} files" if n_files > 1 else ""
    facts = (
        ("architecture", content.architecture or "(none)"),
        ("name", content.name or "(none)"),
        ("file type", content.file_type or "(not stated)"),
        ("bits per weight", f"{content.bits_per_weight:.3f}"),
        ("weights", f"{content.n_weights:,} in {len(content.tensors)} tensors"),
        ("size", f"{human_bytes(content.n_bytes)}{in_files}, GGUF version {content.version}"),
    )
    out = console.out()
    out.print(console.printable(str(content.path)), markup=False, style="bold", soft_wrap=True)
    for label, value in facts:
        shown = _cut(console.printable(value), out.width - 20)
        out.print(f"  {label:<16}  {shown}", markup=False)
    losses = content.metadata.get("edgevlm.losses")
    for loss in losses.head(_MAX_LOSSES) if losses is not None else ():
        shown = console.printable(str(loss))
        out.print(f"  {'known loss':<16}  {shown}", markup=False, soft_wrap=True)
    out.print()
    _print_histogram(content.type_histogram(), content.n_data_bytes)


def _print_histogram(histogram: dict[str, TypeCount], n_data_bytes: int) -> None:
    from edgevlm.cli import console
    from edgevlm.files import human_bytes

    rows = [
        (
            name,
            str(count.n_tensors),
            human_bytes(count.n_bytes),
            f"{100 * count.n_bytes / n_data_bytes:.1f} %",
        )
        for name, count in histogram.items()
    ]
    console.table(("type", "tensors", "bytes", "share"), rows, right=(1, 2, 3))
    console.out().print()


def _print_metadata(content: GGUFFile) -> None:
    from edgevlm.cli import console

    keys = {key: console.printable(key) for key in content.metadata}
    types = {key: _short_type(value) for key, value in content.metadata.items()}
    taken = _longest(keys.values()) + _longest(types.values()) + 2 * _COLUMN_GAP
    width = console.out().width - taken
    width = max(_MIN_VALUE_WIDTH, min(width, _MAX_VALUE_WIDTH))
    rows = [
        (keys[key], types[key], _shown(value, width)) for key, value in content.metadata.items()
    ]
    console.table(("key", "type", "value"), rows)


def _print_tensors(tensors: Sequence[GGUFTensor]) -> None:
    from edgevlm.cli import console

    rows = [
        (
            console.printable(tensor.name),
            " x ".join(map(str, tensor.shape)),
            tensor.type,
            f"{tensor.n_bytes:,}",
        )
        for tensor in tensors
    ]
    console.out().print()
    console.table(("tensor", "shape (rows last)", "type", "bytes"), rows, right=(3,))


def _shown(value: GGUFValue, width: int) -> str:
    """One line of at most `width` characters."""
    from edgevlm.cli.console import printable

    items = value.head(_TEXT_ITEMS)
    if not value.is_array:
        text = items[0] if isinstance(items[0], str) else _number(items[0])
        return _cut(printable(text).replace("\n", "\\n").replace("\t", "\\t"), width)
    if value.n_items <= len(items):
        return _cut(f"[{', '.join(map(_item, items))}]", width)
    tail = f", ...] {value.n_items:,} items"
    shown = items
    while shown and len(", ".join(map(_item, shown))) + 1 + len(tail) > width:
        shown = shown[:-1]
    return _cut(f"[{', '.join(map(_item, shown))}{tail}".replace("[, ", "["), width)


def _item(item: Scalar) -> str:
    return json_module.dumps(item) if isinstance(item, str) else _number(item)


def _number(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _short_type(value: GGUFValue) -> str:
    short = _SHORT_TYPES[value.type.removeprefix("ARRAY:")]
    return f"[{short}]" if value.is_array else short


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 3)] + "..."


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _document(content: GGUFFile) -> dict[str, object]:
    from edgevlm.gguf_shards import paths_of

    return {
        "path": _utf8(str(content.path)),
        "files": [_utf8(path.name) for path in paths_of(content)],
        "version": content.version,
        "architecture": _utf8(content.architecture),
        "name": _utf8(content.name),
        "file_type": content.file_type,
        "n_bytes": content.n_bytes,
        "n_weights": content.n_weights,
        "bits_per_weight": content.bits_per_weight,
        "tensor_types": {
            name: {"n_tensors": count.n_tensors, "n_bytes": count.n_bytes}
            for name, count in content.type_histogram().items()
        },
        "metadata": {key: _json_value(value) for key, value in content.metadata.items()},
        "tensors": [
            {
                "name": tensor.name,
                "file": _utf8(tensor.path.name),
                "shape": list(tensor.shape),
                "type": tensor.type,
                "offset": tensor.offset,
                "n_bytes": tensor.n_bytes,
            }
            for tensor in content.tensors
        ],
    }


def _json_value(value: GGUFValue) -> dict[str, object]:
    items = [_json_scalar(item) for item in value.head(_JSON_ITEMS)]
    if not value.is_array:
        return {"type": value.type, "value": items[0]}
    if value.n_items <= len(items):
        return {"type": value.type, "value": items}
    return {"type": value.type, "n_items": value.n_items, "first_items": items}


def _json_scalar(item: Scalar) -> Scalar | None:
    """A value that JSON has: no lone surrogates; NaN and infinity become null."""
    if isinstance(item, str):
        return _utf8(item)
    return None if isinstance(item, float) and not math.isfinite(item) else item


def _utf8(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
