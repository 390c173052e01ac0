"""What the Hub says that there is, and what its refusals mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from edgevlm.errors import EdgeVLMError, HubError, HubUnreachableError, SourceNotFoundError
from edgevlm.hub.listing import Listing, list_repo
from edgevlm.hub.name import parse_hub_name
from edgevlm.progress import unheard
from tests.hub_server import COMMIT, Fault, HubServer, Repo, git_hash


def listed(text: str, notes: list[str] | None = None) -> Listing:
    name = parse_hub_name(text)
    assert name is not None
    return list_repo(name, note=unheard if notes is None else notes.append)


def test_names_sizes_and_hashes(hub: HubServer, weights: bytes) -> None:
    hub.repos["org/name"] = Repo(files={"config.json": b"{}", "model.safetensors": weights})
    listing = listed("org/name")
    assert listing.commit == COMMIT
    assert listing.files["config.json"].etag == git_hash(b"{}")
    assert listing.files["model.safetensors"].n_bytes == len(weights)
    assert len(listing.files["model.safetensors"].etag or "") == 64
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("asked", "token", "words", "hint"),
    [
        ("org/nama", None, "no such repository", "org/name"),
        ("nobody/x", None, "no such repository", "HF_TOKEN"),
        ("nobody/x", "hf_good", "no such repository", "account"),
        ("org/name@mian", None, "revision `mian`", "`main`"),
        ("org/name", "hf_bad", "token", "HF_TOKEN"),
        ("org/name", "hf_bäd", "token", "HF_TOKEN"),
    ],
)
def test_refusals(
    asked: str,
    token: str | None,
    words: str,
    hint: str,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.repos["org/name"] = Repo(files={"config.json": b"{}"})
    hub.bad_token = "hf_bad"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(EdgeVLMError, match=words) as caught:
        listed(asked)
    assert hint in caught.value.hint


def test_the_token_is_sent(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/name"] = Repo(files={"config.json": b"{}"})
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    listed("org/name")
    assert [one.authorization for one in hub.requests] == ["Bearer hf_good"]


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "3"}, {"RateLimit": '"api";r=0;t=2', "RateLimit-Policy": '"w";q=5;w=300'}],
)
def test_too_many_requests_are_asked_again(
    headers: dict[str, str], hub: HubServer, slept: list[float]
) -> None:
    hub.repos["org/name"] = Repo(files={"config.json": b"{}"})
    hub.faults[""] = [Fault(status=429, headers=headers)]
    notes: list[str] = []
    assert "config.json" in listed("org/name", notes).files
    assert slept == [3.0]
    assert "too many requests" in notes[0]


def test_a_wait_without_end_is_refused(hub: HubServer, slept: list[float]) -> None:
    hub.repos["org/name"] = Repo(files={"config.json": b"{}"})
    hub.faults[""] = [Fault(status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(HubUnreachableError) as caught:
        listed("org/name")
    assert "86400 s" in caught.value.hint
    assert slept == []


def test_a_hub_that_is_down(hub: HubServer, slept: list[float]) -> None:
    hub.faults[""] = [Fault(status=503)] * 10
    with pytest.raises(HubUnreachableError, match="503"):
        listed("org/name")
    assert slept == [1.0, 2.0, 4.0, 8.0]


def test_no_network(hub: HubServer, monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(HubUnreachableError, match=r"127\.0\.0\.1:1") as caught:
        listed("org/name")
    assert "network" in caught.value.hint
    assert slept == []


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceNotFoundError, match="HF_HUB_OFFLINE"):
        listed("org/name")
    assert hub.requests == []


def document(**changes: object) -> bytes:
    return json.dumps({"sha": COMMIT, "siblings": [], **changes}).encode()


def sibling(**changes: object) -> bytes:
    return document(siblings=[{"rfilename": "config.json", **changes}])


@pytest.mark.parametrize(
    "answer",
    [
        b"<!doctype html><title>Log in</title>",
        b"",
        b"[" * 100_000,
        b"\xff\xfe",
        document(sha="../../x"),
        document(sha=None),
        document(siblings={}),
        sibling(size=-1),
        sibling(size=1 << 70),
        sibling(size="1"),
        sibling(size=True),
        sibling(size=2, blobId="../../x"),
        sibling(size=2, lfs={"size": 2, "sha256": "../x"}),
        sibling(rfilename=3),
    ],
)
def test_a_listing_that_makes_no_sense(answer: bytes, hub: HubServer) -> None:
    hub.repos["org/name"] = Repo(files={}, listing=answer)
    with pytest.raises(HubError, match="makes no sense") as caught:
        listed("org/name")
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_listing_without_end(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevlm.hub.listing._MAX_LISTING_BYTES", 1 << 20)
    hub.repos["org/name"] = Repo(files={}, listing=b" " * (4 << 20))
    with pytest.raises(HubError, match="more than 1 MiB"):
        listed("org/name")


def test_without_an_answer_the_cache_is_listed(
    hub: HubServer, tmp_path: Path, slept: list[float]
) -> None:
    folder = tmp_path / "home" / "hub" / "models--org--name"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    hub.faults[""] = [Fault(status=503)] * 10
    notes: list[str] = []
    listing = listed("org/name", notes)
    assert (listing.commit, list(listing.files), listing.hub) == (COMMIT, ["config.json"], None)
    assert "from the cache" in notes[-1]
