"""What edgevlm keeps for the user: models built on first use, and which model came last."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

from platformdirs import user_cache_path

_LAST_MODEL = "last-model.json"


def cache_folder() -> Path:
    """Return the user's cache folder for edgevlm; `EDGEVLM_CACHE` names another."""
    named = os.environ.get("EDGEVLM_CACHE")
    return Path(named) if named else user_cache_path("edgevlm", appauthor=False)


def remember_model(name: str) -> None:
    """Keep `name` (a path or `shapes`) as the model used last.

    A cache that cannot be written is no error: the next run then asks for a name.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{_LAST_MODEL}.{os.getpid()}"
        temporary.write_text(json.dumps({"model": name}))
        os.replace(temporary, folder / _LAST_MODEL)
    except OSError:
        return


def last_model() -> str | None:
    """Return the model used last, None when there is none or it is gone."""
    try:
        document = json.loads((cache_folder() / _LAST_MODEL).read_text())
    except (OSError, ValueError):
        return None
    name = cast(dict[str, object], document).get("model") if isinstance(document, dict) else None
    if not isinstance(name, str) or (name != "shapes" and not Path(name).exists()):
        return None
    return name
