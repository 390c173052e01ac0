"""The checkpoint that a model is made from: where it is, and whether its bytes have changed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from edgevlm.files import sha256_file
from edgevlm.manifest import AdapterSource, Manifest, Source
from edgevlm.progress import SILENT, Note, Progress, unheard

if TYPE_CHECKING:
    from edgevlm.hub.listing import Listing

_WEIGHTS = ".safetensors"
# The files of a checkpoint that decide what comes out of a conversion.
_SOURCE_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "additional_chat_templates/*.jinja",
)
_ADAPTER_PATTERNS = ("adapter_config.json", "adapter_model.safetensors")
# As the converter itself reads config.json.
_MAX_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class NamedCheckpoint:
    """A checkpoint as a user named it.

    Attributes:
        folder: where it is; it may not exist.
        origin: repository and commit, where it comes from the Hub.
    """

    folder: Path
    origin: Source | None = None


@dataclass(frozen=True, kw_only=True)
class NamedAdapter:
    """A LoRA adapter as a user named it.

    Attributes:
        folder: where it is.
        origin: repository and commit, where it comes from the Hub.
    """

    folder: Path
    origin: AdapterSource


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a model was made from, as its manifest says, and as it still is.

    Attributes:
        checkpoint: its folder.
        adapter: folder of the adapter that was merged, None for none.
        pre: the pre-tokenizer that was chosen, None for the tokenizer's own.
    """

    checkpoint: Path
    adapter: Path | None
    pre: str | None


def find_checkpoint(
    named: str, *, progress: Progress = SILENT, note: Note = unheard
) -> NamedCheckpoint:
    """Return the checkpoint that `named` stands for; one of the Hub is downloaded.

    Args:
        named: a path, which wins, or `org/name`, `org/name@revision`, an address of the Hub.
        progress: told the bytes of a download.
        note: told about waiting, and what was downloaded.

    Raises:
        SourceNotFoundError: no such repository or revision.
        HubError: the Hub refuses, or sends something else than it listed.
    """
    if path_exists(named):
        return NamedCheckpoint(folder=Path(named))
    from edgevlm.hub.name import parse_hub_name

    hub_name = parse_hub_name(named)
    if hub_name is None:
        return NamedCheckpoint(folder=Path(named))
    from edgevlm.hub.listing import list_repo

    return download_checkpoint(list_repo(hub_name, note=note), progress=progress)


def download_checkpoint(listing: Listing, *, progress: Progress = SILENT) -> NamedCheckpoint:
    """Return the checkpoint of a repository; its weights come when its config can be converted."""
    from edgevlm.hub.fetch import fetch_checkpoint

    found = fetch_checkpoint(listing, progress=progress, before_weights=_check_config)
    return NamedCheckpoint(
        folder=found.folder,
        origin=Source(repo=found.repo, revision=found.commit),
    )


def find_adapter(named: str, *, progress: Progress = SILENT, note: Note = unheard) -> NamedAdapter:
    """Return the LoRA adapter that `named` stands for, found sound; one of the Hub is downloaded.

    Args:
        named: a path, which wins, or `org/name`, `org/name@revision`, an address of the Hub.
        progress: told the bytes of a download.
        note: told about waiting, and what was downloaded.

    Raises:
        SourceNotFoundError: no such folder, repository or revision.
        CheckpointError: no adapter that can be merged.
        HubError: the Hub refuses, or sends something else than it listed.
    """
    from edgevlm_convert.adapter import open_adapter

    from edgevlm.hub.name import parse_hub_name

    hub_name = None if path_exists(named) else parse_hub_name(named)
    if hub_name is None:
        found = NamedAdapter(folder=Path(named), origin=AdapterSource())
    else:
        from edgevlm.hub.fetch import fetch_adapter
        from edgevlm.hub.listing import list_repo

        listing = list_repo(hub_name, note=note)
        found = NamedAdapter(
            folder=fetch_adapter(listing, progress=progress),
            origin=AdapterSource(repo=listing.name.repo, revision=listing.commit),
        )
    # Before a checkpoint of gigabytes is downloaded for it.
    open_adapter(found.folder)
    return found


def path_exists(named: str) -> bool:
    """Whether `named` is a path; no path where the system cannot even look for it."""
    with suppress(OSError, ValueError):
        return Path(named).exists()
    return False


def _check_config(folder: Path) -> None:
    """Refuse what cannot be converted by its config, before gigabytes are downloaded."""
    from edgevlm_convert.config import Section
    from edgevlm_convert.dequantize import check_quantization
    from edgevlm_convert.families import find_family, find_text_model
    from edgevlm_convert.json_file import read_json
    from edgevlm_convert.omni import thinker_of

    fields = read_json(folder / "config.json", max_bytes=_MAX_CONFIG_BYTES)
    config = thinker_of(Section(fields, file="config.json"))
    find_text_model(find_family(config), config)
    check_quantization(config)


def source_hashes(
    source: Path, stopped: Event | None = None, *, weights: bool = True
) -> dict[str, str]:
    """Return the SHA-256 of every file of a checkpoint that decides what comes out of it.

    A caller that has set `stopped` no longer wants the hashes: they are then incomplete.
    """
    paths = sorted(path for pattern in _SOURCE_PATTERNS for path in source.glob(pattern))
    # Opening a pipe would wait for a writer.
    files = [
        path for path in paths if path.is_file() and (weights or not path.name.endswith(_WEIGHTS))
    ]
    return {
        path.relative_to(source).as_posix(): sha256_file(path, stopped=stopped) for path in files
    }


def adapter_hashes(adapter: Path, stopped: Event | None = None) -> dict[str, str]:
    """Return the SHA-256 of the files of an adapter that are read; see `source_hashes`."""
    files = [adapter / name for name in _ADAPTER_PATTERNS if (adapter / name).is_file()]
    return {path.name: sha256_file(path, stopped=stopped) for path in files}


def recipe_of(manifest: Manifest | None) -> Recipe | None:
    """Return what the manifest's model was made from; None when it is gone or has changed."""
    source = manifest.source if manifest else Source()
    path = Path(source.path) if source.path else None
    if path is None or not path.is_dir() or source_hashes(path) != source.sha256:
        return None
    if source.adapter is None:
        return Recipe(checkpoint=path, adapter=None, pre=source.pre)
    adapter = Path(source.adapter.path) if source.adapter.path else None
    if adapter is None or adapter_hashes(adapter) != source.adapter.sha256:
        return None
    return Recipe(checkpoint=path, adapter=adapter, pre=source.pre)


def tokenizer_of(manifest: Manifest | None) -> Path | None:
    """Return the manifest's checkpoint folder, None when it is gone or more than weights changed.

    The weights, gigabytes, are not read.
    """
    path = Path(manifest.source.path) if manifest and manifest.source.path else None
    if manifest is None or path is None or not path.is_dir():
        return None
    stored = {
        name: sha256
        for name, sha256 in manifest.source.sha256.items()
        if not name.endswith(_WEIGHTS)
    }
    return path if stored and source_hashes(path, weights=False) == stored else None
