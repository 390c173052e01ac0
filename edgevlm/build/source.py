"""The checkpoint that a model was made from: is it still there, with the same bytes?"""

from __future__ import annotations

from pathlib import Path
from threading import Event

from edgevlm.files import sha256_file
from edgevlm.model_dir import Manifest

# The files of a checkpoint that decide what comes out of a conversion.
_SOURCE_PATTERNS = ("*.safetensors", "*.json", "*.jinja")


def source_hashes(source: Path, stopped: Event | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint that decides what comes out of it.

    A caller that has set `stopped` no longer wants the hashes: they are then incomplete.
    """
    paths = sorted(path for pattern in _SOURCE_PATTERNS for path in source.glob(pattern))
    # Opening a pipe would wait for a writer.
    files = [path for path in paths if path.is_file()]
    return {path.name: sha256_file(path, stopped=stopped) for path in files}


def checkpoint_of(manifest: Manifest | None) -> Path | None:
    """Return the manifest's checkpoint folder, None when it is gone or its bytes have changed."""
    path = Path(manifest.source.path) if manifest and manifest.source.path else None
    if manifest is None or path is None or not path.is_dir():
        return None
    return path if source_hashes(path) == manifest.source.sha256 else None
