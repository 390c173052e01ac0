"""`edgevlm tune`: its table, its document, its profile; what it refuses; Ctrl-C leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgevlm.cli.app import main
from edgevlm.model_dir import open_model_dir
from edgevlm.quantize.profile_file import load_profile

FAST = ("--threads", "1", "--mmproj-levels", "F16,q5_k", "--levels", "Q8_0", "--device", "cpu")


def test_a_profile_is_written_and_quantize_takes_it(
    shapes_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", str(shapes_dir), *FAST, "--level", "Q4_0"]) == 0
    captured = capsys.readouterr()
    for expected in ("F16", "Q5_K", "1.00000", "Q8_0", "--threads 1"):
        assert expected in captured.out
    assert "next: edgevlm quantize" in captured.err
    profile = load_profile("shapes-tuned.toml")
    assert profile.name == "tuned"
    assert profile.type == "Q4_0"
    assert profile.mmproj.type in ("F16", "Q5_K")

    # Not a second time, and nothing is measured before that is said.
    assert main(["tune", str(shapes_dir), *FAST]) == 1
    assert "--force" in capsys.readouterr().err

    arguments = ["convert", str(_checkpoint()), "--out", "m", "--name", "shapes", "--quiet"]
    assert main([*arguments, "--level", "shapes-tuned.toml"]) == 0
    names = {path.name for path in Path("m").glob("*.gguf")}
    mmproj = f"mmproj-shapes-{profile.mmproj.type}.gguf"
    assert names == {"shapes-tuned.gguf", mmproj}
    file = open_model_dir(Path("m")).find("text", "tuned")
    assert file is not None
    assert file.mmproj == mmproj


def _checkpoint() -> Path:
    from edgevlm.build.resolve import built_in_checkpoint

    return built_in_checkpoint()


def test_json_is_one_document(
    shapes_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.toml"
    assert main(["tune", str(shapes_dir), *FAST, "--out", str(out), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    document = json.loads(captured.out)
    assert document["model"] == "shapes"
    assert document["n_threads"] == 1
    assert document["profile"] == str(out)
    assert [row["level"] for row in document["projectors"]] == ["F16", "Q5_K"]
    assert document["projectors"][1]["min_cosine"] > 0.99
    assert document["texts"][0]["decode_tok_per_sec"]["1"] > 0
    assert load_profile(str(out)).name == "x"
    # The newest quantized level of that folder.
    assert document["extends"] == "Q4_K_M"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--threads", "0"), 2, "numbers from 1"),
        (("--threads", "two"), 2, "numbers from 1"),
        (("--mmproj-levels", "Q9_0"), 1, "`Q9_0`"),
        (("--levels", "Q9_0"), 1, "`Q9_0`"),
        (("--level", "Q9_0"), 1, "`Q9_0`"),
        (("--images", "/nonexistent"), 1, "no folder"),
        (("--min-cosine", "2"), 2, "--min-cosine"),
        (("--out", "x.txt"), 2, ".toml"),
    ],
)
def test_what_cannot_be_tuned_is_said(
    shapes_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", str(shapes_dir), *arguments]) == status
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing_behind(shapes_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "edgevlm", "tune", str(shapes_dir), "--threads", "1"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "EDGEVLM_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        deadline = time.monotonic() + 60
        while not list(cache.glob("models/tune-*/*.gguf")) and time.monotonic() < deadline:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert not list(cache.glob("models/tune-*"))
    assert not list(tmp_path.glob("*.toml"))
