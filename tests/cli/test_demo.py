"""`edgevlm demo`: the whole chain, its table, and commands that work when they are typed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from edgevlm.cli.app import main


def test_demo_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = json.loads(captured.out)["rows"]
    assert [row["level"] for row in rows] == ["F16", "Q8_0", "Q5_K_M", "Q4_K_M"]
    sizes = [row["text_n_bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    for row in rows:
        assert row["n_prompts"] == 64
        assert row["n_right"] >= 56, row["level"]
        assert sum(right for right, _ in row["right_by_kind"].values()) == row["n_right"]


def test_demo_ends_with_commands_that_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After `make demo` edgevlm is in .venv/bin, which is not on the PATH."""
    program = tmp_path / "bin" / "edgevlm"
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--threads", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("/64") == 4
    line = next(line for line in captured.err.splitlines() if " chat " in line and "shapes" in line)
    name, *words = shlex.split(line)
    assert name == "bin/edgevlm"
    capsys.readouterr()
    assert main(words) == 0
    assert len(capsys.readouterr().out) > 10
