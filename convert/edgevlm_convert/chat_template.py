"""Chat templates of a checkpoint -> `tokenizer.chat_template` and its named companions.

Where transformers keeps them, in its order: tokenizer_config.json (one text, or a list or an object
of named ones), chat_template.jinja with additional_chat_templates/*.jinja, chat_template.json.
Keys: gguf-py gguf_writer.py `add_chat_template`.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from edgevlm.errors import CheckpointError
from edgevlm_convert.config import Section
from edgevlm_convert.json_file import DAMAGED_HINT, check_regular_file, quoted, read_json
from edgevlm_convert.metadata import Value, array, string

_MAX_TEMPLATE_BYTES = 1_000_000
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
    found = settings.raw("chat_template") if settings else None
    if found is None:
        found = _from_files(folder)
    if found is None:
        return {}
    templates = _named(found)
    default = templates.pop("default", None)
    values = {_KEY: string(default)} if default else {}
    values |= {f"{_KEY}.{name}": string(text) for name, text in templates.items()}
    if templates:
        values["tokenizer.chat_templates"] = array("STRING", list(templates))
    return values


def _named(found: object) -> dict[str, str]:
    """Return texts by name, whichever form they came in; names as GGUF keys can hold them."""
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, list):
        entries = [_entry(one) for one in cast(list[object], found)]
    elif isinstance(found, dict):
        entries = list(cast(dict[str, object], found).items())
    else:
        raise _no_text("chat_template")
    if len(entries) > _MAX_TEMPLATES:
        raise CheckpointError(f"there are {len(entries)} chat templates", hint=DAMAGED_HINT)
    templates: dict[str, str] = {}
    for name, text in entries:
        if not isinstance(text, str):
            raise _no_text(f"chat_template {quoted(name)}")
        key = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)
        if not key or key in templates:
            raise CheckpointError(
                f"the chat template's name {quoted(name)} is empty, or there twice",
                hint=DAMAGED_HINT,
            )
        templates[key] = text
    return dict(sorted(templates.items()))


def _entry(one: object) -> tuple[str, object]:
    fields = cast(dict[str, object], one) if isinstance(one, dict) else dict[str, object]()
    name = fields.get("name")
    if not isinstance(name, str):
        raise _no_text("chat_template")
    return name, fields.get("template")


def _from_files(folder: Path) -> object:
    path = folder / "chat_template.jinja"
    if path.exists():
        more = sorted((folder / "additional_chat_templates").glob("*.jinja"))[: _MAX_TEMPLATES + 1]
        return {"default": _read(path), **{one.stem: _read(one) for one in more}}
    path = folder / "chat_template.json"
    if path.exists():
        return read_json(path, max_bytes=_MAX_TEMPLATE_BYTES).get("chat_template")
    return None


def _read(path: Path) -> str:
    if check_regular_file(path) > _MAX_TEMPLATE_BYTES:
        raise CheckpointError(f"`{path}` is too large for a template", hint=DAMAGED_HINT)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"`{path}` is not UTF-8 text", hint=DAMAGED_HINT) from error


def _no_text(what: str) -> CheckpointError:
    return CheckpointError(
        f"tokenizer_config.json: `{what}` is not a string, nor templates by name",
        hint=DAMAGED_HINT,
    )
