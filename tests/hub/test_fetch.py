"""A checkpoint of the Hub arrives whole, once, and checked; whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from huggingface_hub import (
    constants,
    hf_hub_download,  # pyright: ignore[reportUnknownVariableType]
    snapshot_download,  # pyright: ignore[reportUnknownVariableType]
)

from edgevlm.errors import (
    CheckpointError,
    EdgeVLMError,
    HubError,
    HubUnreachableError,
    OutputError,
    SourceNotFoundError,
)
from edgevlm.files import folder_lock
from edgevlm.hub.fetch import HubCheckpoint, fetch_checkpoint, fetch_gguf
from edgevlm.hub.listing import list_repo
from edgevlm.hub.name import HubName
from edgevlm.progress import SILENT, Advance, Progress, Unit
from tests.hub_server import COMMIT, Fault, HubServer, Repo, git_hash

WEIGHTS = "model.safetensors"


class Bar:
    """A bar that keeps what it was told, and may raise in the middle."""

    def __init__(self, *, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.totals: list[int | None] = []
        self.done = 0
        self._fails_at = fails_at
        self._error = error

    @contextmanager
    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> Generator[Advance]:
        def advance(amount: int, /) -> None:
            self.done += amount
            if self._error and self._fails_at is not None and self.done >= self._fails_at:
                raise self._error

        self.totals.append(total)
        yield advance


class Fetch:
    """Fetches `org/name` and keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def __call__(self, *, progress: Progress = SILENT, revision: str = "main") -> HubCheckpoint:
        name = HubName(repo="org/name", revision=revision)
        listing = list_repo(name, note=self.notes.append)
        return fetch_checkpoint(listing, progress=progress)


@pytest.fixture
def fetch(slept: list[float]) -> Fetch:
    return Fetch()


@pytest.fixture
def repo(hub: HubServer, weights: bytes) -> Repo:
    hub.repos["org/name"] = Repo(
        files={
            "config.json": b"{}",
            "tokenizer.json": b'{"t": 1}' * 2000,
            "chat_template.jinja": b"",
            WEIGHTS: weights,
            "pytorch_model.bin": b"pickle" * 5000,
            "modeling_x.py": b"import os",
            "README.md": b"# x",
        }
    )
    return hub.repos["org/name"]


def blobs(tmp_path: Path) -> set[str]:
    folder = tmp_path / "home" / "hub" / "models--org--name" / "blobs"
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_only_what_is_needed_under_one_bar(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    bar = Bar()
    found = fetch(progress=bar)
    wanted = {"tokenizer.json", "chat_template.jinja", WEIGHTS, "config.json"}
    assert {path.name for path in found.folder.iterdir()} == wanted
    assert all((found.folder / name).read_bytes() == repo.files[name] for name in wanted)
    assert (found.repo, found.commit) == ("org/name", COMMIT)
    # config.json is asked for first, to refuse early.
    assert bar.totals == [sum(len(repo.files[name]) for name in wanted - {"config.json"})]
    assert bar.done == bar.totals[0]
    assert not any("bin" in one.path or ".py" in one.path for one in hub.requests)


def test_what_is_here_is_not_asked_for_again(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    fetch()
    hub.requests.clear()
    bar = Bar()
    fetch(progress=bar)
    assert [one.path for one in hub.requests] == ["/api/models/org/name/revision/main?blobs=true"]
    assert bar.totals == []


def test_a_cut_inside_a_shard_is_taken_up(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    hub.faults[WEIGHTS] = [Fault(cut_after=150_000), Fault(cut_after=100_000)]
    bar = Bar()
    found = fetch(progress=bar)
    assert (found.folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]
    assert [(one.range, one.n_bytes) for one in hub.of(WEIGHTS)] == [
        (None, 150_000),
        ("bytes=150000-", 100_000),
        ("bytes=250000-", 150_000),
    ]
    assert bar.done == bar.totals[0]
    assert any("trying again" in note for note in fetch.notes)


def test_the_next_run_goes_on_where_ctrl_c_came(
    hub: HubServer, repo: Repo, fetch: Fetch, tmp_path: Path
) -> None:
    hub.faults[WEIGHTS] = [Fault(bytes_per_second=10_000_000)]
    with pytest.raises(KeyboardInterrupt):
        fetch(progress=Bar(fails_at=200_000, error=KeyboardInterrupt()))
    (partial,) = [name for name in blobs(tmp_path) if name.endswith(".incomplete")]
    assert partial == f"{sha256(repo.files[WEIGHTS]).hexdigest()}.edgevlm.incomplete"
    assert "goes on from there" in fetch.notes[-1]
    hub.requests.clear()
    bar = Bar()
    found = fetch(progress=bar)
    assert (found.folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]
    (second,) = hub.of(WEIGHTS)
    assert second.range is not None
    start = int(second.range.removeprefix("bytes=").rstrip("-"))
    assert 180_000 <= start < 400_000
    assert second.n_bytes == 400_000 - start
    assert bar.done == bar.totals[0]
    assert not any(name.endswith(".incomplete") for name in blobs(tmp_path))


def leave(tmp_path: Path, repo: Repo, data: bytes) -> Path:
    """Leave `data` as what an earlier run got of the weights."""
    folder = tmp_path / "home" / "hub" / "models--org--name" / "blobs"
    folder.mkdir(parents=True)
    path = folder / f"{sha256(repo.files[WEIGHTS]).hexdigest()}.edgevlm.incomplete"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("n_bytes", [100_000, 400_000, 500_000])
def test_a_damaged_part_is_started_again(
    n_bytes: int, hub: HubServer, repo: Repo, fetch: Fetch, tmp_path: Path
) -> None:
    leave(tmp_path, repo, bytes(n_bytes))
    bar = Bar()
    found = fetch(progress=bar)
    assert (found.folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]
    assert hub.of(WEIGHTS)[-1].range is None
    assert bar.done == bar.totals[0]


def test_a_whole_part_needs_no_byte(
    hub: HubServer, repo: Repo, fetch: Fetch, tmp_path: Path
) -> None:
    leave(tmp_path, repo, repo.files[WEIGHTS])
    fetch()
    assert hub.n_bytes(WEIGHTS) == 0


def test_a_server_that_knows_no_ranges(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    hub.faults[WEIGHTS] = [Fault(cut_after=150_000), Fault(ignore_range=True)]
    bar = Bar()
    found = fetch(progress=bar)
    assert (found.folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]
    assert bar.done == bar.totals[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(headers={"X-Linked-Etag": '"' + "0" * 64 + '"'}), "etag"),
        (Fault(body=bytes(400_000)), "hash"),
        (Fault(body=bytes(300_000)), "listed are 400000"),
        (Fault(body=bytes(600_000), no_length=True), "more than 400000"),
        (Fault(headers={"Content-Type": "text/html"}), "web page"),
    ],
)
def test_other_bytes_than_were_listed(
    fault: Fault,
    words: str,
    hub: HubServer,
    repo: Repo,
    fetch: Fetch,
    tmp_path: Path,
) -> None:
    hub.faults[WEIGHTS] = [fault]
    with pytest.raises(HubError, match=words) as caught:
        fetch()
    assert caught.value.hint
    assert not list((tmp_path / "home").rglob(WEIGHTS))
    # Nothing of it is gone on with.
    assert not any(path.stat().st_size for path in (tmp_path / "home").rglob("*.incomplete"))
    hub.faults.clear()
    found = fetch()
    assert (found.folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]


def test_a_part_from_elsewhere_in_the_file(
    hub: HubServer, repo: Repo, fetch: Fetch, tmp_path: Path
) -> None:
    leave(tmp_path, repo, repo.files[WEIGHTS][:1000])
    hub.faults[WEIGHTS] = [Fault(headers={"Content-Range": "bytes 500-399999/400000"})]
    found = fetch()
    assert any("bytes from 500 come" in note for note in fetch.notes)
    assert (found.folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]


def test_the_token_stays_with_the_hub(
    hub: HubServer, repo: Repo, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    fetch()
    at_hub = [one for one in hub.requests if one.host == hub.endpoint]
    elsewhere = [one for one in hub.requests if one.host == hub.cdn]
    assert at_hub
    assert elsewhere
    assert {one.authorization for one in at_hub} == {"Bearer hf_good"}
    assert {one.authorization for one in elsewhere} == {None}


def test_too_many_requests_and_a_server_that_stumbles(
    hub: HubServer, repo: Repo, fetch: Fetch, slept: list[float]
) -> None:
    hub.faults[WEIGHTS] = [
        Fault(status=429, headers={"Retry-After": "7"}),
        Fault(status=503),
        Fault(cut_after=0),
    ]
    fetch()
    assert slept == [7.0, 2.0, 4.0]


def test_a_connection_that_stalls(
    hub: HubServer, repo: Repo, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.faults[WEIGHTS] = [Fault(bytes_per_second=20_000)]
    found = fetch()
    assert (found.folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]
    assert hub.of(WEIGHTS)[-1].range is not None


def test_an_endpoint_that_is_no_address(
    hub: HubServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for endpoint in ("localhost:1", "ftp://127.0.0.1", "http://[::"):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        with pytest.raises(HubError) as caught:
            fetch()
        assert "HF_ENDPOINT" in caught.value.hint


def test_a_server_that_hangs_up_for_ever(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    hub.faults[WEIGHTS] = [Fault(cut_after=1)] * 100
    with pytest.raises(HubUnreachableError) as caught:
        fetch()
    assert "is kept" in caught.value.hint
    assert hub.n_bytes(WEIGHTS) == 5


@pytest.mark.parametrize(
    ("gated", "token", "hint"),
    [("no token", None, "HF_TOKEN"), ("everybody", "hf_good", "the token's account")],
)
def test_gated(
    gated: str,
    token: str | None,
    hint: str,
    hub: HubServer,
    repo: Repo,
    fetch: Fetch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repo.gated = gated
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="gated") as caught:
        fetch()
    assert hint in caught.value.hint
    assert f"{hub.endpoint}/org/name" in caught.value.hint


def test_a_file_that_is_listed_and_not_there(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    hub.faults["config.json"] = [Fault(status=404, headers={"X-Error-Code": "EntryNotFound"})]
    with pytest.raises(HubError, match="404"):
        fetch()


def test_shards_of_the_index_and_no_others(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index = json.dumps({"weight_map": shards}).encode()
    repo.files["model.safetensors.index.json"] = index
    data = repo.files.pop(WEIGHTS)
    repo.files |= {name: data + name.encode() for name in shards.values()}
    repo.files["consolidated.safetensors"] = data
    found = fetch()
    there = {path.name for path in found.folder.glob("*.safetensors")}
    assert there == set(shards.values())


def test_names_do_not_leave_the_folder(
    hub: HubServer, repo: Repo, fetch: Fetch, tmp_path: Path
) -> None:
    evil = ("../../../evil.json", "/tmp/evil.json", "a\\evil.json", "x/evil.json", "..\\evil.json")
    repo.files |= dict.fromkeys(evil, b"{}")
    fetch()
    assert not list(tmp_path.rglob("*evil*"))
    assert not any("evil" in one.path for one in hub.requests)


def test_a_refusal_comes_before_the_weights(hub: HubServer, repo: Repo) -> None:
    listing = list_repo(HubName(repo="org/name"), note=lambda text: None)

    def refuse(folder: Path) -> None:
        assert (folder / "config.json").exists()
        raise CheckpointError("no family knows it")

    with pytest.raises(CheckpointError):
        fetch_checkpoint(listing, before_weights=refuse)
    assert hub.n_bytes(WEIGHTS) == 0


def listing_with(repo: Repo, **sizes: int) -> bytes:
    siblings: list[dict[str, object]] = [
        {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
        for name, data in repo.files.items()
    ]
    for one in siblings:
        one["size"] = sizes.get(str(one["rfilename"]).replace(".", "_"), one["size"])
    return json.dumps({"sha": repo.commit, "siblings": siblings}).encode()


def test_absurd_sizes(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    fetch()
    repo.commit = "1" * 40
    repo.listing = listing_with(repo, model_safetensors=1 << 60)
    with pytest.raises(OutputError, match="disk space"):
        fetch()
    repo.listing = listing_with(repo, config_json=1 << 60)
    with pytest.raises(HubError, match=r"config\.json"):
        fetch()


def test_too_small_a_disk_is_said_before_the_first_byte(
    hub: HubServer, repo: Repo, fetch: Fetch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_300_000)

    def nearly_full(_: Path) -> object:
        return usage

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(OutputError, match=r"416\.0 kB needed, 1\.3 MB free") as caught:
        fetch()
    assert "HF_HOME" in caught.value.hint
    assert hub.n_bytes(WEIGHTS) == 0


def test_a_disk_that_fills_up(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError, match="No space left") as caught:
        fetch(progress=Bar(fails_at=200_000, error=full))
    assert "HF_HOME" in caught.value.hint
    hub.requests.clear()
    fetch()
    assert hub.n_bytes(WEIGHTS) < 400_000


def test_a_hub_that_lists_names_only(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    repo.hides_metadata = True
    found = fetch()
    assert (found.folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]
    assert {one.method for one in hub.requests} == {"GET", "HEAD"}
    hub.faults[WEIGHTS] = [Fault(body=bytes(400_000))]
    shutil.rmtree(found.folder.parent.parent)
    with pytest.raises(HubError, match="hash"):
        fetch()


def test_huggingface_hub_finds_what_was_downloaded(
    hub: HubServer, repo: Repo, fetch: Fetch
) -> None:
    found = fetch()
    assert Path(snapshot_download("org/name", local_files_only=True)) == found.folder
    hub.requests.clear()
    path = hf_hub_download("org/name", WEIGHTS, endpoint=hub.endpoint)
    assert Path(path) == found.folder / WEIGHTS
    assert hub.n_bytes(WEIGHTS) == 0


def test_what_huggingface_hub_downloaded_is_used(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        hf_hub_download("org/name", name, endpoint=hub.endpoint)
    hub.requests.clear()
    found = fetch()
    assert hub.n_bytes(WEIGHTS) == 0
    assert (found.folder / "chat_template.jinja").exists()


def test_a_file_that_was_cut_in_the_cache_is_replaced(
    hub: HubServer, repo: Repo, fetch: Fetch
) -> None:
    found = fetch()
    blob = (found.folder / WEIGHTS).resolve()
    blob.write_bytes(repo.files[WEIGHTS][:1000])
    assert (fetch().folder / WEIGHTS).read_bytes() == repo.files[WEIGHTS]


def test_bytes_of_another_revision_are_shared(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    fetch()
    hub.requests.clear()
    repo.commit = "1" * 40
    repo.files["config.json"] = b'{"new": 1}'
    found = fetch()
    assert found.commit == "1" * 40
    assert (found.folder / "config.json").read_bytes() == b'{"new": 1}'
    assert hub.n_bytes(WEIGHTS) == 0


def test_a_revision_is_a_branch_or_a_commit(hub: HubServer, repo: Repo, fetch: Fetch) -> None:
    repo.revisions = ("main", "feature/x")
    assert fetch(revision="feature/x").commit == COMMIT
    assert fetch(revision=COMMIT).commit == COMMIT


def test_offline_the_cache_is_enough(
    hub: HubServer, repo: Repo, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch()
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch() == first
    assert hub.requests == []
    (first.folder / WEIGHTS).unlink()
    with pytest.raises(EdgeVLMError):
        fetch()


def test_offline_with_a_part_of_the_shards(
    hub: HubServer, repo: Repo, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = {"weight_map": {"a": "model-1.safetensors"}}
    repo.files["model.safetensors.index.json"] = json.dumps(index).encode()
    repo.files["model-1.safetensors"] = repo.files.pop(WEIGHTS)
    found = fetch()
    (found.folder / "model-1.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SourceNotFoundError, match="part of") as caught:
        fetch()
    assert "HF_HUB_OFFLINE" in caught.value.hint


def test_without_links_the_bytes_lie_in_the_snapshot(
    hub: HubServer, repo: Repo, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    found = fetch()
    assert not any(path.is_symlink() for path in found.folder.iterdir())
    hub.requests.clear()
    fetch()
    assert len(hub.requests) == 1


def test_a_second_edgevlm_waits(hub: HubServer, repo: Repo, fetch: Fetch, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "hub" / "models--org--name"
    folder.mkdir(parents=True)
    with folder_lock(folder):
        thread = threading.Thread(target=fetch, daemon=True)
        thread.start()
        deadline = time.monotonic() + 30
        while not fetch.notes and time.monotonic() < deadline:
            time.sleep(0.005)
        assert hub.n_bytes("config.json") == 0
    thread.join(30)
    assert "waiting for another edgevlm" in fetch.notes[0]
    assert hub.n_bytes(WEIGHTS) == 400_000


def test_gguf_files_of_one_level(hub: HubServer, weights: bytes) -> None:
    names = ("x-Q4_K_M.gguf", "x-Q8_0.gguf", "mmproj-x-F16.gguf", "x-imatrix.gguf")
    hub.repos["org/name"] = Repo(files={name: weights + name.encode() for name in names})
    listing = list_repo(HubName(repo="org/name"), note=lambda text: None)
    found = fetch_gguf(listing, levels=("Q8_0",))
    (text,) = found.text
    assert (text.name, found.level) == ("x-Q8_0.gguf", "Q8_0")
    assert found.mmproj is not None
    assert {path.name for path in text.parent.iterdir()} == {
        "x-Q8_0.gguf",
        "mmproj-x-F16.gguf",
    }
    assert found.sha256["x-Q8_0.gguf"] == sha256(text.read_bytes()).hexdigest()
