"""A repository of the Hub -> a model directory in the user's cache.

models/
NAME-gguf-COMMIT/NAME/       links to the GGUF files in the Hub's cache, and a manifest
NAME-VERSION-COMMIT/NAME/    what this version made of the repository's checkpoint
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm import __version__
from edgevlm.build.cache import cache_lock, models_folder
from edgevlm.build.source import download_checkpoint
from edgevlm.errors import GGUFError
from edgevlm.files import write_together
from edgevlm.gguf_file import read_gguf
from edgevlm.gguf_shards import model_stem
from edgevlm.manifest import (
    MANIFEST_NAME,
    FileEntry,
    LedgerRecord,
    Manifest,
    Role,
    Source,
    describe_file,
    read_manifest,
)
from edgevlm.model_dir import open_model_dir
from edgevlm.progress import SILENT, Note, Progress, unheard

if TYPE_CHECKING:
    from edgevlm_convert import OuttypeOption

    from edgevlm.hub.fetch import HubGGUF
    from edgevlm.hub.listing import Listing
    from edgevlm.hub.name import HubName

# As llama.cpp's `-hf` has it (common/arg.cpp).
DEFAULT_LEVEL = "Q4_K_M"
# Best first: what a level is made from.
_SOURCE_LEVELS = ("BF16", "F16", "F32")
_BLOCK_LEVELS = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_0")
_OUTTYPES: Mapping[str, OuttypeOption] = {"F16": "f16", "BF16": "bf16", "F32": "f32"}


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A repository's files, as they can be loaded.

    Attributes:
        folder: a model directory in the cache.
        level: of the text model to take; None: the one written last.
    """

    folder: Path
    level: str | None


def hub_model(
    name: HubName,
    *,
    level: str | None = None,
    is_source: bool = False,
    allow_requantize: bool = False,
    progress: Progress = SILENT,
    note: Note = unheard,
) -> HubModel:
    """Make a model directory of a repository: its GGUF files, else its checkpoint converted.

    Args:
        name: the repository.
        level: of the text model; None: what the cache has, else Q4_K_M.
        is_source: another level is to be made from it: 16 bits are needed.
        allow_requantize: then a quantized file will do where there are no 16 bits.
        progress: told the bytes of the download, and of the conversion.
        note: told about waiting, what was downloaded and chosen.

    Raises:
        SourceNotFoundError: no such repository or revision; not at that level.
        HubError: the Hub refuses, or sends something else than it listed.
        EdgeVLMError: a checkpoint that cannot be converted.
    """
    from edgevlm.hub.choose import has_checkpoint, level_of, text_ggufs
    from edgevlm.hub.listing import list_repo

    listing = list_repo(name, note=note)
    found = {level_of(file) for file in text_ggufs(listing.files)}
    wanted = _SOURCE_LEVELS if is_source else (level or DEFAULT_LEVEL,)
    is_asked = is_source or level is not None
    if found and (not is_asked or found & {one.upper() for one in wanted}):
        return _downloaded(listing, wanted, is_asked=is_asked, progress=progress, note=note)
    if has_checkpoint(listing.files) or not found:
        return _converted(listing, level, is_source=is_source, progress=progress, note=note)
    if is_source and allow_requantize:
        wanted = _BLOCK_LEVELS
    # It says what there is.
    return _downloaded(listing, wanted, is_asked=True, progress=progress, note=note)


def _downloaded(
    listing: Listing, levels: Sequence[str], *, is_asked: bool, progress: Progress, note: Note
) -> HubModel:
    from edgevlm.hub.fetch import fetch_gguf

    name = listing.name.short
    folder = models_folder() / f"{name}-gguf-{listing.commit[:12]}" / name
    if not is_asked and _texts(folder):
        return HubModel(folder=folder, level=None)
    found = fetch_gguf(listing, levels=levels, or_any=not is_asked, progress=progress)
    if not is_asked:
        note(f"took {found.text[0].name}; --level chooses another")
    with cache_lock(folder.parent):
        return HubModel(folder=folder, level=_link(listing, found, folder))


def _texts(folder: Path) -> list[str]:
    """Return the levels that are there; a link whose file has left the Hub's cache is removed."""
    for path in folder.glob("*.gguf"):
        if not path.exists():
            path.unlink()
    manifest = read_manifest(folder)
    entries = manifest.files if manifest else []
    return [entry.level for entry in entries if entry.role == "text" and entry.is_there(folder)]


def _link(listing: Listing, found: HubGGUF, folder: Path) -> str:
    """Show the files in a model directory, with a manifest; return the text model's level."""
    from edgevlm.build.convert import tool_versions
    from edgevlm.build.output import MANIFEST_ALLOWANCE_BYTES, write_manifest

    _texts(folder)
    folder.mkdir(exist_ok=True)
    text = _entry(folder, found.text, "text", level=found.level, sha256=found.sha256)
    entries = [text]
    if found.mmproj is not None:
        entries.append(_entry(folder, (found.mmproj,), "mmproj", level=None, sha256=found.sha256))
    manifest = read_manifest(folder) or Manifest(
        name=_model_name(found) or listing.name.short,
        family="unknown",
        source=Source(repo=listing.name.repo, revision=listing.commit),
        files=[],
        ledger=LedgerRecord(n_source_tensors=0, used={}, dropped={}),
        versions=tool_versions(),
    )
    here = [entry for entry in manifest.files if entry.is_there(folder)]
    manifest = manifest.model_copy(update={"files": here}).with_files(entries)
    with write_together(folder, names=(), n_bytes=MANIFEST_ALLOWANCE_BYTES, force=True) as output:
        write_manifest(output, manifest)
    return text.level


def _model_name(found: HubGGUF) -> str:
    """Return the text model's file name without its level, as files beside it are named."""
    stem = model_stem(found.text[0].name)
    if found.level is None or not stem.upper().endswith(f"-{found.level}"):
        return ""
    return stem[: -len(found.level) - 1]


def _entry(
    folder: Path,
    paths: Sequence[Path],
    role: Role,
    *,
    level: str | None,
    sha256: Mapping[str, str],
) -> FileEntry:
    file = read_gguf(paths[0])
    if file.is_projector != (role == "mmproj"):
        kind = "a projector" if file.is_projector else "a text model"
        raise GGUFError(
            f"`{paths[0].name}` is {kind}, which its name does not say",
            hint="do not trust this repository",
        )
    for path in paths:
        if not (folder / path.name).exists():
            try:
                (folder / path.name).symlink_to(path)
            except OSError:  # Windows asks for a privilege
                shutil.copyfile(path, folder / path.name)
    names = [path.name for path in paths]
    return describe_file(
        folder / names[0],
        name=names[0],
        role=role,
        level=level or file.file_type or "unknown",
        profile=None,
        sha256=[sha256[name] for name in names] if sha256.keys() >= set(names) else (),
    )


def _converted(
    listing: Listing, level: str | None, *, is_source: bool, progress: Progress, note: Note
) -> HubModel:
    name = listing.name.short
    folder = models_folder() / f"{name}-{__version__}-{listing.commit[:12]}" / name
    target = _target(None if is_source else level or DEFAULT_LEVEL)
    wanted = target.level if level else None
    if not is_source and _is_there(folder, wanted):
        return HubModel(folder=folder, level=wanted)
    checkpoint = download_checkpoint(listing, progress=progress)
    with cache_lock(folder.parent):
        if _is_there(folder, wanted):
            return HubModel(folder=folder, level=wanted)
        # Imported only where something is built: the converter costs a quarter of a second.
        from edgevlm.build.convert import convert_model

        if not is_source and level is None:
            note(f"converting {listing.name} to {DEFAULT_LEVEL}; --level chooses another")
        convert_model(
            checkpoint.folder,
            out=folder,
            name=name,
            outtype=target.outtype,
            level=target.profile,
            force=True,
            origin=checkpoint.origin,
            progress=progress,
        )
    return HubModel(folder=folder, level=target.level)


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What a checkpoint is converted to: a float type, or a level in the same pass."""

    level: str | None = None
    profile: str | None = None
    outtype: OuttypeOption = "auto"


def _target(level: str | None) -> _Target:
    if level is None:
        return _Target()
    if level.upper() in _OUTTYPES:
        return _Target(level=level.upper(), outtype=_OUTTYPES[level.upper()])
    from edgevlm.quantize.profile_file import load_profile

    return _Target(level=load_profile(level).name, profile=level)


def _is_there(folder: Path, level: str | None) -> bool:
    if not (folder / MANIFEST_NAME).exists():
        return False
    return level is None or open_model_dir(folder).find("text", level) is not None
