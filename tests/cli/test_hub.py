"""A repository of the Hub at the command line; huggingface_hub's variables are obeyed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgevlm.cli.app import main
from edgevlm.manifest import read_manifest
from tests.hub_server import COMMIT, Fault, HubServer, Repo

WEIGHTS = "model.safetensors"


@pytest.fixture
def repo(hub: HubServer, shapes_checkpoint: Path) -> Repo:
    files = {path.name: path.read_bytes() for path in shapes_checkpoint.iterdir()}
    hub.repos["org/shapes"] = Repo(files=files)
    return hub.repos["org/shapes"]


def run(capsys: pytest.CaptureFixture[str], status: int, *arguments: str) -> tuple[str, str]:
    capsys.readouterr()
    assert main(list(arguments)) == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out, captured.err


def test_convert(
    hub: HubServer,
    repo: Repo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = run(capsys, 0, "convert", "org/shapes", "--level", "Q4_K_M")
    assert "shapes-Q4_K_M.gguf" in out
    assert "downloaded 20.5 MB of org/shapes" in err
    manifest = read_manifest(tmp_path / "shapes")
    assert manifest is not None
    assert (manifest.source.repo, manifest.source.revision) == ("org/shapes", COMMIT)
    # The same by its address, as JSON: nothing is downloaded, nothing else is said.
    hub.requests.clear()
    address = f"{hub.endpoint}/org/shapes/tree/main"
    out, err = run(capsys, 0, "convert", address, "--level", "Q8_0", "--json")
    assert [file["name"] for file in json.loads(out)["files"]] == ["shapes-Q8_0.gguf"]
    assert err == ""
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("convert", "org/shape"), ("no such repository", "did you mean `org/shapes`")),
        (("convert", "org/shapes@nowhere"), ("revision `nowhere`",)),
        (("convert", "org/gated"), ("gated", "HF_TOKEN")),
        (("convert", "https://example.com/org/name"), ("example.com",)),
        (("chat", "-p", "x", "-m", "org/shape"), ("no such repository",)),
        (("quantize", "org/pickles", "--level", "Q8_0"), ("pickle",)),
    ],
)
def test_errors(
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    hub: HubServer,
    repo: Repo,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.repos["org/gated"] = Repo(files=repo.files, gated="no token")
    hub.repos["org/pickles"] = Repo(files={"config.json": b"{}", "model.bin": b"x"})
    _, err = run(capsys, 1, *arguments)
    assert err.startswith("error: ")
    assert "\nhint: " in err
    for word in words:
        assert word in err


def test_chat_with_a_gguf_repository(
    hub: HubServer,
    shapes_dir: Path,
    shapes_assets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))
    files = {path.name: path.read_bytes() for path in shapes_dir.glob("*.gguf")}
    hub.repos["org/shapes-GGUF"] = Repo(files=files)
    image = str(shapes_assets / "images" / "000.png")
    question = "What color is the cross?"
    out, err = run(capsys, 0, "chat", image, "-m", "org/shapes-GGUF", "-p", question)
    assert out == "black\n"
    assert "took shapes-Q4_K_M.gguf" in err


def environment(hub: HubServer, home: Path, **more: str) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "EDGEVLM_CACHE": str(home / "edgevlm"),
        "NO_PROXY": "127.0.0.1",
    }
    return {**kept, **own, **more}


def convert(home: Path, *more: str) -> list[str]:
    out = ("--out", str(home / "out"), "--json")
    return [sys.executable, "-m", "edgevlm", "convert", "org/shapes", *out, *more]


def test_the_environment_is_obeyed(hub: HubServer, repo: Repo, tmp_path: Path) -> None:
    repo.gated = "no token"
    first = environment(hub, tmp_path, HF_TOKEN="hf_good")
    subprocess.run(convert(tmp_path), env=first, check=True, capture_output=True)
    assert {one.authorization for one in hub.requests} == {"Bearer hf_good", None}
    assert (tmp_path / "hub" / "models--org--shapes").is_dir()
    hub.requests.clear()
    offline = environment(hub, tmp_path, HF_HUB_OFFLINE="1")
    subprocess.run(convert(tmp_path, "--force"), env=offline, check=True, capture_output=True)
    assert hub.requests == []


def test_ctrl_c_ends_quickly_and_the_next_run_goes_on(
    hub: HubServer, repo: Repo, tmp_path: Path
) -> None:
    hub.faults[WEIGHTS] = [Fault(bytes_per_second=4_000_000)]
    blobs = tmp_path / "hub" / "models--org--shapes" / "blobs"
    with subprocess.Popen(
        convert(tmp_path)[:-1],
        env=environment(hub, tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            partial = next(blobs.glob("*.incomplete"), None)
            if partial is not None and partial.stat().st_size > 1_000_000:
                break
            time.sleep(0.01)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - pressed < 3
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "the same command goes on from there" in err
    (partial,) = blobs.glob("*.incomplete")
    left = partial.stat().st_size
    assert 1_000_000 < left < len(repo.files[WEIGHTS])
    hub.requests.clear()
    done = subprocess.run(
        convert(tmp_path), env=environment(hub, tmp_path), check=True, capture_output=True
    )
    assert json.loads(done.stdout)["files"]
    (request,) = hub.of(WEIGHTS)
    assert (request.range, request.n_bytes) == (
        f"bytes={left}-",
        len(repo.files[WEIGHTS]) - left,
    )
