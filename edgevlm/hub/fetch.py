"""A repository's files, wherever they are: those in the cache stay, the others are downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

from edgevlm.errors import CheckpointError, EdgeVLMError, HubError, SourceNotFoundError
from edgevlm.files import check_free_space, human_bytes
from edgevlm.hub import choose
from edgevlm.hub.access import Hub, patiently
from edgevlm.hub.cache import HOME_HINT, is_plain_etag
from edgevlm.hub.file import HubFile
from edgevlm.hub.listing import Listing
from edgevlm.hub.transfer import download
from edgevlm.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class HubCheckpoint:
    """A checkpoint of the Hub, on this machine.

    Attributes:
        folder: config, tokenizer and safetensors.
        repo: "org/name".
        commit: of the repository.
    """

    folder: Path
    repo: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class HubGGUF:
    """GGUF files of the Hub, on this machine.

    Attributes:
        text: the text model's files, in order.
        level: as its name says; None: it does not.
        mmproj: the projector's file, None where the repository has none.
        sha256: of the files, by name, as far as they are listed.
    """

    text: tuple[Path, ...]
    level: str | None
    mmproj: Path | None
    sha256: dict[str, str]


def fetch_checkpoint(
    listing: Listing,
    *,
    progress: Progress = SILENT,
    before_weights: Callable[[Path], None] = lambda folder: None,
) -> HubCheckpoint:
    """Return a repository's checkpoint: safetensors, JSON, tokenizer and chat templates, no more.

    Args:
        listing: of the repository.
        progress: told the bytes.
        before_weights: called with the folder when only config.json is there, to refuse early.

    Raises:
        CheckpointError: no safetensors, or an index that names what is not there.
        HubError: a refusal, or other bytes than were listed.
        OutputError: the disk is too small, or the cache cannot be written.
    """
    name, files = listing.name, listing.files
    if listing.hub is None and not choose.has_checkpoint(files):
        raise _only_a_part(listing)
    choose.check_checkpoint(name.repo, files)
    folder = listing.cache.snapshot(listing.commit)
    first = [choose.CONFIG] if choose.SINGLE_FILE in files else [choose.CONFIG, choose.INDEX]
    for file in (files[one] for one in first):
        if (file.n_bytes or 0) > choose.MAX_SIDE_FILE_BYTES:
            raise choose.too_large(file)
    _fetch(listing, [files[one] for one in first], progress=SILENT)
    before_weights(folder)
    index = (folder / choose.INDEX).read_bytes() if choose.INDEX in first else None
    try:
        weights = choose.weight_files(name.repo, files, index)
    except CheckpointError:
        if listing.hub is None:
            raise _only_a_part(listing) from None
        raise
    _fetch(listing, [*choose.side_files(files), *weights], progress=progress, is_told=True)
    return HubCheckpoint(folder=folder, repo=name.repo, commit=listing.commit)


def fetch_adapter(listing: Listing, *, progress: Progress = SILENT) -> Path:
    """Return the folder of a repository's LoRA adapter: its config and its safetensors, no more.

    Raises:
        CheckpointError: no adapter, or none in safetensors.
        HubError: a refusal, or other bytes than were listed.
        OutputError: the disk is too small, or the cache cannot be written.
    """
    if listing.hub is None and not set(choose.ADAPTER_FILES) <= set(listing.files):
        raise _only_a_part(listing)
    _fetch(
        listing,
        choose.adapter_files(listing.name.repo, listing.files),
        progress=progress,
        is_told=True,
    )
    return listing.cache.snapshot(listing.commit)


def fetch_gguf(
    listing: Listing, *, levels: Sequence[str], or_any: bool = False, progress: Progress = SILENT
) -> HubGGUF:
    """Return a text model in GGUF and its projector, chosen as `choose.choose_gguf` says."""
    chosen = choose.choose_gguf(listing.name.repo, listing.files, levels=levels, or_any=or_any)
    files = [file for file in (*chosen.text, chosen.mmproj) if file is not None]
    _fetch(listing, files, progress=progress, is_told=True)
    folder = listing.cache.snapshot(listing.commit)
    return HubGGUF(
        text=tuple(folder / file.name for file in chosen.text),
        level=chosen.level,
        mmproj=folder / chosen.mmproj.name if chosen.mmproj else None,
        sha256={
            Path(file.name).name: file.etag for file in files if file.etag and len(file.etag) == 64
        },
    )


def _fetch(
    listing: Listing, files: Sequence[HubFile], *, progress: Progress, is_told: bool = False
) -> None:
    """Download what the cache has not yet; all sizes are known before the first byte."""
    cache, commit, hub = listing.cache, listing.commit, listing.hub
    if not all(cache.holds(file, commit) for file in files):
        if hub is None:
            raise _only_a_part(listing)
        with cache.writing(hub.note):
            missing = [file for file in files if not cache.holds(file, commit)]
            missing = [_described(hub, file, commit) for file in missing]
            missing = [file for file in missing if not cache.take_blob(file, commit)]
            n_bytes, seconds = _fetch_missing(listing, hub, missing, progress)
        if is_told and n_bytes:
            rate = human_bytes(int(n_bytes / max(seconds, 1e-3)))
            hub.note(f"downloaded {human_bytes(n_bytes)} of {listing.name} ({rate}/s)")
    cache.remember(listing.name.revision, commit)


def _fetch_missing(
    listing: Listing, hub: Hub, missing: Sequence[HubFile], progress: Progress
) -> tuple[int, float]:
    """Download files under one bar; return the bytes that came, and the seconds it took."""
    cache = listing.cache
    total = sum(file.n_bytes or 0 for file in missing)
    n_bytes = total - sum(cache.partial_bytes(file) for file in missing)
    check_free_space(cache.folder, n_bytes, hint=f"free some space, or {HOME_HINT}")
    started = perf_counter()
    with progress.task(f"Downloading {listing.name.repo}", total=total) as advance:
        try:
            for file in missing:
                path = cache.partial(file)
                download(hub, file, listing.commit, path, advance=advance)
                cache.publish(file, listing.commit)
        except KeyboardInterrupt:
            hub.note("what was downloaded is kept: the same command goes on from there")
            raise
    return n_bytes, perf_counter() - started


def _only_a_part(listing: Listing) -> EdgeVLMError:
    return SourceNotFoundError(
        f"the Hub's cache holds only a part of `{listing.name}`, and the Hub is not asked",
        hint="unset HF_HUB_OFFLINE, or try again with a network",
    )


def _described(hub: Hub, file: HubFile, commit: str) -> HubFile:
    """Return `file` with size and etag; a Hub that does not list them says them of each file."""
    if file.n_bytes is None or file.etag is None:
        n_bytes, etag = patiently(
            hub, f"the size of `{file.name}`", lambda: hub.describe(file.name, commit)
        )
        file = replace(file, n_bytes=n_bytes, etag=etag)
    if file.n_bytes is None or file.etag is None or not is_plain_etag(file.etag):
        raise HubError(
            f"{hub.endpoint} tells neither size nor etag of `{file.name}`",
            hint="check that HF_ENDPOINT is a Hub",
        )
    return file
