"""The libraries: which version, what importing costs, where the logs go."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgevlm.errors import ModelLoadError
from edgevlm.native import library


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("version", ["0.3.36", "0.3.40", "0.3.36+cu124"])
def test_tested_versions(version: str) -> None:
    library.check_version(version)


@pytest.mark.parametrize("version", ["0.3.35", "0.2.90", "0.4.0", "1.0", ""])
def test_untested_versions_are_refused(version: str) -> None:
    with pytest.raises(ModelLoadError, match="works with") as caught:
        library.check_version(version)
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize(
    ("missing", "what_to_do"),
    [
        ("libcuda.so.1", "NVIDIA's driver"),
        ("libcudart.so.13", "LD_LIBRARY_PATH"),
        ("libcublas.so.12", "LD_LIBRARY_PATH"),
        ("libgomp.so.1", "reinstall it"),
    ],
)
def test_a_library_that_is_missing_says_what_to_install(
    missing: str, what_to_do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str) -> None:
        reason = f"{missing}: cannot open shared object file: No such file or directory"
        raise RuntimeError(f"Failed to load shared library 'libllama.so': {reason}")

    monkeypatch.setattr(library, "_low_level", fails)
    with pytest.raises(ModelLoadError, match=missing) as caught:
        library.load_library.__wrapped__()
    assert what_to_do in caught.value.hint


def test_loading_leaves_the_high_level_package_alone() -> None:
    code = """
import sys
from edgevlm.native.library import load_library
load_library()
print([name for name in ("jinja2", "diskcache", "llama_cpp.llama") if name in sys.modules])
"""
    assert run(code) == "[]"


def test_llama_cpp_can_still_be_imported_afterwards() -> None:
    code = """
from edgevlm.native.library import load_library
low = load_library().llama
import llama_cpp
from llama_cpp import Llama, llama_cpp as again
print(Llama.__name__, again is low, llama_cpp.llama_decode is low.llama_decode)
"""
    assert run(code) == "Llama True True"


def test_logs_go_to_logging_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    c = library.load_library().llama
    with caplog.at_level(logging.DEBUG, "edgevlm.native"), library.complaints() as lines:
        missing = str(tmp_path / "missing.gguf").encode()
        assert not c.llama_model_load_from_file(missing, c.llama_model_default_params())
    assert "missing.gguf" in library.because(lines)
    assert any("missing.gguf" in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")


def test_complaints_survive_another_log_callback(tmp_path: Path) -> None:
    code = f"""
from edgevlm.native import library
library.load_library()
import llama_cpp, llama_cpp.llama  # takes the log callback for itself
c = library.load_library().llama
with library.complaints() as lines:
    path = {str(tmp_path / "no.gguf")!r}.encode()
    c.llama_model_load_from_file(path, c.llama_model_default_params())
print("no.gguf" in library.because(lines))
"""
    assert run(code) == "True"


def test_ctrl_c_waits_for_the_end_of_a_call_that_logs() -> None:
    """Inside it would be raised in the log callback, where ctypes drops it."""
    steps: list[str] = []

    def call() -> None:
        with library.complaints():
            signal.raise_signal(signal.SIGINT)
            steps.append("the call goes on")
        steps.append("never reached")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert steps == ["the call goes on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
