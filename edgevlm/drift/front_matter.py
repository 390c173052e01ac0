"""The head of a model card: YAML that the Hub reads (huggingface.co/docs/hub/model-cards).

Values come from strangers' files, so every one is written as a YAML scalar that reads back as
itself (yaml.org/spec/1.2.2, double-quoted style).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgevlm.drift.wording import clean
from edgevlm.gguf_file import GGUFFile
from edgevlm.manifest import Manifest
from edgevlm.runtime import header

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
# What YAML 1.1, which the Hub's library reads, takes for something else than text.
_WORDS = frozenset(("true", "false", "yes", "no", "on", "off", "null", "y", "n"))
_UNPRINTABLE = re.compile("[\ufeff\ufffe\uffff]")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_HUB = "https://huggingface.co/"
_LICENSE_KEYS = ("license", "license_name", "license_link")
_MAX_README_BYTES = 1 << 20


def front_matter(values: Mapping[str, str | Sequence[str]]) -> str:
    """Return `values` between two lines of dashes; empty ones are left out."""
    lines = ["---"]
    for key, value in values.items():
        if isinstance(value, str):
            lines += [f"{key}: {scalar(value)}"] if value else []
        elif value:
            lines += [f"{key}:", *(f"- {scalar(one)}" for one in value)]
    return "\n".join([*lines, "---"]) + "\n"


def scalar(text: str) -> str:
    """Return `text`, on one line, as a YAML scalar that is read as a string."""
    one_line = " ".join(clean(text).split())
    if _PLAIN.fullmatch(one_line) and one_line.lower() not in _WORDS:
        return one_line
    visible = _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", one_line)
    escaped = visible.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def base_models(manifest: Manifest | None, text: GGUFFile) -> list[str]:
    """Return the repositories that the model was made from, as far as its files say."""
    if manifest is not None:
        adapter = manifest.source.adapter
        repos = (manifest.source.repo, adapter.repo if adapter else None)
        return [repo for repo in repos if repo and _REPO.fullmatch(repo)]
    url = header.text(text, "general.base_model.0.repo_url")
    repo = url.removeprefix(_HUB)
    return [repo] if url.startswith(_HUB) and _REPO.fullmatch(repo) else []


def license_of(manifest: Manifest | None, text: GGUFFile) -> dict[str, str]:
    """Return the licence's keys, from the file's metadata or the checkpoint's own card.

    Empty where neither says: a licence is never guessed.
    """
    named = {key: header.text(text, f"general.{key.replace('_', '.')}") for key in _LICENSE_KEYS}
    if named["license"]:
        return named
    path = manifest.source.path if manifest is not None else None
    return _license_in(Path(path) / "README.md") if path else {}


def _license_in(readme: Path) -> dict[str, str]:
    """Read the plain `license` lines of a card's head; what is more complicated is not guessed."""
    if not readme.is_file():
        return {}
    try:
        with readme.open(encoding="utf-8") as file:
            content = file.read(_MAX_README_BYTES)
    except (OSError, UnicodeDecodeError):
        return {}
    head = re.match(r"---\r?\n(.*?)\n---", content, re.DOTALL)
    if head is None:
        return {}
    found: dict[str, str] = {}
    for key in _LICENSE_KEYS:
        line = re.search(rf"^{key}:[ \t]*(['\"]?)([\w.:/+ -]+?)\1[ \t]*$", head[1], re.MULTILINE)
        if line:
            found[key] = line[2]
    return found if "license" in found else {}
