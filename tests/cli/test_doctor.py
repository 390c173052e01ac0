from __future__ import annotations

import json
import sys

import pytest

from edgevlm.cli.app import main
from edgevlm.errors import ModelLoadError
from edgevlm.native.devices import system_info
from edgevlm.runtime import checkup, worker

NAMES = [
    *("edgevlm", "python", "numpy", "tokenizers", "pillow"),
    *("llama.cpp", "processor", "devices", "cpu run"),
    *("threads", "memory", "swap", "cache"),
]


def test_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if not line.startswith(" ")]
    assert [line[6:18].rstrip() for line in lines] == NAMES
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    assert "0 failures" in captured.err


def test_a_model_that_does_not_run_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen with libraries that had another libstdc++ linked in: they load, a model does not."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-c", code))
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "fail  cpu run     llama.cpp ended its process while loading the model (SIGSEGV)\n" in (
        captured.out
    )
    assert "-> build llama-cpp-python on this machine" in captured.out
    assert "1 failure," in captured.err


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    findings = {finding["name"]: finding for finding in document["findings"]}
    assert list(findings) == NAMES
    assert findings["llama.cpp"]["detail"] == system_info()
    assert document["state"] in ("ok", "warn")


def test_a_missing_runtime_fails_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise ModelLoadError("llama-cpp-python is not installed", hint="install it")

    monkeypatch.setattr(checkup, "load_library", missing)
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "fail  llama.cpp   llama-cpp-python is not installed" in captured.out
    assert "-> install it" in captured.out
    assert "1 failure," in captured.err


def test_a_command_to_copy_stays_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(*_: object) -> checkup.Finding:
        advice = checkup.rebuild_command("0.3.36") + " " + "x" * 300
        return checkup.Finding(name="processor", state="warn", value="slow", advice=advice)

    monkeypatch.setattr(checkup, "judge_features", slow)
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    command = next(line for line in captured.out.splitlines() if "->" in line)
    assert command.endswith("x" * 300)
    assert "warning" in captured.err
