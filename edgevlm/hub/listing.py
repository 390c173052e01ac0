"""Which files a repository has at a revision: as the Hub says, or as the cache holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import EdgeVLMError, HubError, HubUnreachableError, SourceNotFoundError
from edgevlm.hub.access import Again, Hub, open_hub, patiently, quoted
from edgevlm.hub.cache import RepoCache, open_cache
from edgevlm.hub.file import HubFile
from edgevlm.hub.name import HubName
from edgevlm.progress import Note

if TYPE_CHECKING:
    from httpx2 import Response

# A repository of 100,000 files has some 20 MB of listing.
_MAX_LISTING_BYTES = 64 << 20
_MAX_ADVICE_BYTES = 4 << 20

Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Sha1 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _LargeFile(_Record):
    size: Count
    sha256: Sha256


class _Sibling(_Record):
    rfilename: str
    size: Count | None = None
    blob_id: Sha1 | None = Field(default=None, alias="blobId")
    lfs: _LargeFile | None = None


class _Info(_Record):
    sha: Sha1
    siblings: list[_Sibling]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a repository at a commit.

    Attributes:
        name: as it was asked for.
        commit: what its revision is today.
        files: by name.
        hub: where the files come from; None: only what the cache holds is listed.
        cache: where they go to.
    """

    name: HubName
    commit: str
    files: Mapping[str, HubFile]
    hub: Hub | None
    cache: RepoCache


def list_repo(name: HubName, *, note: Note) -> Listing:
    """Ask the Hub which files there are; without it, list what the cache holds.

    Raises:
        SourceNotFoundError: no such repository or revision; not in the cache either.
        HubError: a refusal, or an answer that makes no sense.
    """
    from huggingface_hub import constants

    cache = open_cache(name.repo)
    if constants.is_offline_mode():
        return _cached(name, cache) or _raise_offline(name)
    hub = open_hub(name, note=note)
    try:
        info = _ask(hub)
    except HubUnreachableError as error:
        held = _cached(name, cache)
        if held is None:
            raise
        note(f"{error.message}; taking commit {held.commit[:8]} from the cache")
        return held
    files = [_file(sibling) for sibling in info.siblings]
    return Listing(
        name=name,
        commit=info.sha,
        files={file.name: file for file in files},
        hub=hub,
        cache=cache,
    )


def _file(sibling: _Sibling) -> HubFile:
    large = sibling.lfs
    return HubFile(
        name=sibling.rfilename,
        n_bytes=large.size if large else sibling.size,
        etag=large.sha256 if large else sibling.blob_id,
    )


def _cached(name: HubName, cache: RepoCache) -> Listing | None:
    commit = cache.commit_of(name.revision)
    files = cache.files(commit) if commit else {}
    if commit is None or not files:
        return None
    return Listing(
        name=name,
        commit=commit,
        files={
            file: HubFile(name=file, n_bytes=n_bytes, etag=None) for file, n_bytes in files.items()
        },
        hub=None,
        cache=cache,
    )


def _raise_offline(name: HubName) -> Listing:
    raise SourceNotFoundError(
        f"no file or folder `{name.repo}`, and `{name}` is not in the Hub's cache while "
        "HF_HUB_OFFLINE is set",
        hint="unset HF_HUB_OFFLINE to download it",
    )


def _ask(hub: Hub) -> _Info:
    try:
        address = hub.api(f"/revision/{quoted(hub.name.revision)}?blobs=true")
        raw = patiently(
            hub,
            f"the list of files of `{hub.name}`",
            lambda: _read(hub, address, _MAX_LISTING_BYTES),
        )
    except SourceNotFoundError as error:
        raise _with_advice(hub, error) from None
    try:
        return _Info.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise HubError(
            f"{hub.endpoint} lists `{hub.name}` in a way that makes no sense: "
            f"{where}: {first['msg']}",
            hint="check that HF_ENDPOINT is a Hub, and that no login page stands before it",
        ) from None


def _read(hub: Hub, address: str, max_bytes: int) -> bytes:
    with hub.answer(address) as response:
        return _bounded(hub, response, max_bytes)


def _bounded(hub: Hub, response: Response, max_bytes: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > max_bytes:
            raise HubError(
                f"{hub.endpoint} sends more than {max_bytes >> 20} MiB for the list of files of "
                f"`{hub.name}`",
                hint="check that HF_ENDPOINT is a Hub",
            )
    return bytes(body)


def _with_advice(hub: Hub, error: SourceNotFoundError) -> EdgeVLMError:
    """Add the nearest name that exists to the hint."""
    owner, _, wanted = hub.name.repo.partition("/")
    if "revision" in error.message:
        near = get_close_matches(hub.name.revision, _revisions(hub), n=3)
    else:
        near = get_close_matches(wanted, _names_of(hub, owner), n=3)
        near = [f"{owner}/{name}" for name in near]
    if not near:
        return error
    named = ", ".join(f"`{name}`" for name in near)
    return SourceNotFoundError(error.message, hint=f"did you mean {named}? {error.hint}")


def _names_of(hub: Hub, owner: str) -> list[str]:
    address = f"{hub.endpoint}/api/models?author={quoted(owner)}&limit=500&sort=downloads"
    found = _advice(hub, address)
    return [str(_field(entry, "id")).rpartition("/")[2] for entry in _list(found)]


def _revisions(hub: Hub) -> list[str]:
    found = _advice(hub, hub.api("/refs"))
    kinds = (_field(found, kind) for kind in ("branches", "tags"))
    entries = [
        entry for kind in kinds if isinstance(kind, list) for entry in cast(list[object], kind)
    ]
    return [str(_field(entry, "name")) for entry in entries]


def _list(value: object) -> list[object]:
    return cast(list[object], value) if isinstance(value, list) else []


def _field(value: object, key: str) -> object:
    return cast(dict[str, object], value).get(key) if isinstance(value, dict) else None


def _advice(hub: Hub, address: str) -> object:
    """Ask once; an error on the way to an error's hint is none."""
    try:
        return json.loads(_read(hub, address, _MAX_ADVICE_BYTES))
    except (Again, EdgeVLMError, ValueError, RecursionError):
        return None
