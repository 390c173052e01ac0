"""Chat templates of a checkpoint -> `tokenizer.chat_template` and its named companions.

Where transformers' processors look, in their order (processing_utils.py `get_processor_dict`):
processor_config.json, chat_template.json, chat_template.jinja with additional_chat_templates.
Last the tokenizer's own in tokenizer_config.json (one text, or a list or an object of named ones),
which may be the text model's and show no image. llama.cpp's converter asks that one first.
Keys: gguf-py gguf_writer.py `add_chat_template`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from edgevlm.errors import CheckpointError
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import DAMAGED_HINT, check_regular_file, quoted, read_json
from edgevlm_convert.metadata import Value, array, string

_MAX_TEMPLATE_BYTES = 1_000_000
_MAX_SETTINGS_BYTES = 16_000_000
_MAX_TEMPLATES = 100
_KEY = "tokenizer.chat_template"


def chat_templates(folder: Path, settings: Section | None) -> dict[str, Value]:
    """Return the keys of all chat templates; of several, the one named "default" has no name.

    Args:
        folder: of the checkpoint.
        settings: tokenizer_config.json, or None.

    Raises:
        CheckpointError: a template that is no text, too large, or not UTF-8.
    """
    templates = _of_processor(folder)
    own = settings.raw("chat_template") if settings else None
    if not templates and own is not None:
        templates = _named(own, "tokenizer_config.json")
    default = templates.pop("default", None)
    values = {_KEY: string(default)} if default else {}
    values |= {f"{_KEY}.{name}": string(text) for name, text in templates.items()}
    if templates:
        values["tokenizer.chat_templates"] = array("STRING", list(templates))
    return values


def with_place_for_images(
    values: Mapping[str, Value], *, span: str, template: str, written: str = ""
) -> dict[str, Value]:
    """Return vocabulary keys whose chat template shows images.

    Args:
        values: of a checkpoint.
        span: what the family's templates print for an image.
        template: to use where the checkpoint's own does not; "" to leave it as it is.
        written: what its own prints for an image instead, which becomes the span; "" for nothing.
    """
    own = values.get(_KEY)
    if written and own is not None and span not in str(own.value):
        return {**values, _KEY: string(str(own.value).replace(written, span))}
    if not template or (own is not None and span in str(own.value)):
        return dict(values)
    return {**values, _KEY: string(template)}


def _named(found: object, file: str) -> dict[str, str]:
    """Return texts by name, whichever form they came in; names as GGUF keys can hold them."""
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list):
        entries = [_entry(one, file) for one in cast(list[object], found)]
    elif isinstance(found, dict):
        entries = list(cast(dict[str, object], found).items())
    else:
        raise _no_text("chat_template", file)
    if len(entries) > _MAX_TEMPLATES:
        raise CheckpointError(f"there are {len(entries)} chat templates", hint=DAMAGED_HINT)
    templates: dict[str, str] = {}
    for name, text in entries:
        if not isinstance(text, str):
            raise _no_text(f"chat_template {quoted(name)}", file)
        key = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
        if not key or key in templates:
            raise CheckpointError(
                f"the chat template's name {quoted(name)} is empty, or there twice",
                hint=DAMAGED_HINT,
            )
        templates[key] = text
    return dict(sorted(templates.items()))


def _entry(one: object, file: str) -> tuple[str, object]:
    fields = cast(dict[str, object], one) if isinstance(one, dict) else dict[str, object]()
    name = fields.get("name")
    if not isinstance(name, str):
        raise _no_text("chat_template", file)
    return name, fields.get("template")


def _of_processor(folder: Path) -> dict[str, str]:
    """Return the templates of the first place where a processor finds any."""
    for name, max_bytes in (
        ("processor_config.json", _MAX_SETTINGS_BYTES),
        ("chat_template.json", _MAX_TEMPLATE_BYTES),
    ):
        path = folder / name
        found = read_json(path, max_bytes=max_bytes) if path.exists() else {}
        if found.get("chat_template") is not None:
            return _named(found["chat_template"], name)
    paths = sorted((folder / "additional_chat_templates").glob("*.jinja"))[: _MAX_TEMPLATES + 1]
    files = {path.stem: path for path in paths}
    if (folder / "chat_template.jinja").exists():
        files["default"] = folder / "chat_template.jinja"
    return _named({name: _read(path) for name, path in files.items()}, "chat_template.jinja")


def _read(path: Path) -> str:
    if check_regular_file(path) > _MAX_TEMPLATE_BYTES:
        raise CheckpointError(f"`{path}` is too large for a template", hint=DAMAGED_HINT)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"`{path}` is not UTF-8 text", hint=DAMAGED_HINT) from error
    except OSError as error:
        raise CheckpointError(
            f"`{path}` cannot be read: {error.strerror}", hint="download the checkpoint again"
        ) from error


def _no_text(what: str, file: str) -> CheckpointError:
    return CheckpointError(
        f"{file}: `{what}` is not a string, nor templates by name",
        hint=DAMAGED_HINT,
    )
