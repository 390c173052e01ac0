"""The engine in its own process: as in this one, and whatever ends it is an error here."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from edgevlm.errors import ContextOverflowError, EdgeVLMError, ModelLoadError, SourceNotFoundError
from edgevlm.native.devices import devices
from edgevlm.runtime import worker
from edgevlm.runtime.answer import ImageCost
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm
from edgevlm.runtime.worker import Worker, open_worker, start_worker

QUESTION = "What color is the cross?"
LONG = SamplingParams(max_tokens=4000, temperature=3.0, seed=1, loop_guard=False)

ENDLESS = """
from edgevlm.native.text_model import TextModel
TextModel.is_end = lambda *_: False
"""
# What llama.cpp does when an assumption of its own is broken.
ABORT = """
import ctypes
from edgevlm.native.library import load_library
def abort(*_, **__):
    ggml_abort = load_library().ggml_base.ggml_abort
    ggml_abort.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p]
    ggml_abort(b"planted.c", 42, b"GGML_ASSERT(planted) failed")
"""
ABORT_ANSWERING = (
    ABORT
    + """
from edgevlm.runtime.vlm import VLM
VLM.generate = abort
"""
)
ABORT_LOADING = (
    ABORT
    + """
import edgevlm.runtime.vlm
edgevlm.runtime.vlm.open_vlm = abort
"""
)
BUG = """
from edgevlm.runtime.vlm import VLM
VLM.generate = lambda *_, **__: {}["planted"]
"""
NOISE = """
import os
from edgevlm.runtime.vlm import VLM
answer = VLM.generate
def generate(*arguments, **options):
    os.write(1, b"printed by C, on stdout")
    return answer(*arguments, **options)
VLM.generate = generate
"""
MAIN = "\nfrom edgevlm.runtime.worker_process import main\nmain()\n"


def command(code: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-c", code + MAIN)


@pytest.fixture
def files(shapes_dir: Path) -> dict[str, Any]:
    return {
        "model": shapes_dir / "shapes-F16.gguf",
        "mmproj": shapes_dir / "mmproj-shapes-F16.gguf",
        "n_threads": 1,
    }


@pytest.fixture(scope="module")
def opened(shapes_dir: Path) -> Generator[Worker]:
    with open_worker(
        model=shapes_dir / "shapes-F16.gguf",
        mmproj=shapes_dir / "mmproj-shapes-F16.gguf",
        n_ctx=512,
        n_threads=1,
        strict=True,
    ) as running:
        yield running


@pytest.mark.parametrize(
    ("here", "there"), [(open_vlm, open_worker), (VLM.generate, Worker.generate)]
)
def test_it_is_called_as_in_process(
    here: Callable[..., object], there: Callable[..., object]
) -> None:
    mine = inspect.signature(there).parameters
    # What looks at the graphs of a model must live in the model's own process.
    own = {name: one for name, one in inspect.signature(here).parameters.items() if name != "sums"}
    assert list(own) == [name for name in mine if name != "started"]
    for name, parameter in own.items():
        assert callable(parameter.default) or parameter.default == mine[name].default, name


def test_it_answers_as_in_process(
    opened: Worker, vlm: VLM, picture: Callable[[int], Pixels]
) -> None:
    seen: list[ImageCost] = []
    pieces: list[str] = []
    params = SamplingParams(temperature=2.0, seed=7, stop=("zzz",), logit_bias=((5, -1.0),))
    images = [picture(0), picture(1)[:, ::-1]]
    expected = vlm.generate(QUESTION, images, params=params)
    answer = opened.generate(
        QUESTION, images, params=params, on_images=seen.extend, on_text=pieces.append
    )
    assert (answer.token_ids, answer.text) == (expected.token_ids, expected.text)
    assert (tuple(seen), "".join(pieces)) == (expected.images, expected.text)
    assert answer.n_prompt_tokens == expected.n_prompt_tokens
    assert (opened.n_ctx, opened.n_vocab) == (vlm.n_ctx, vlm.n_vocab)
    assert opened.sampling_defaults == vlm.sampling_defaults
    assert opened.count_visual_tokens(300, 200) == vlm.count_visual_tokens(300, 200)


def test_errors_keep_their_class_and_the_worker_lives(opened: Worker, vlm: VLM) -> None:
    before = opened.pid
    with pytest.raises(ContextOverflowError) as caught:
        opened.generate("word " * 2000)
    with pytest.raises(ContextOverflowError) as expected:
        vlm.generate("word " * 2000)
    assert (caught.value.message, caught.value.hint) == (
        expected.value.message,
        expected.value.hint,
    )
    assert opened.generate("hi").text == vlm.generate("hi").text
    assert opened.pid == before


def test_errors_of_loading_keep_their_class(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError), open_worker(model=tmp_path / "none.gguf"):
        pass
    with (
        pytest.raises(ModelLoadError, match="trained for") as caught,
        open_worker(**files, n_ctx=1 << 20),
    ):
        pass
    assert caught.value.hint


def test_an_abort_while_answering(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usual = worker.COMMAND
    monkeypatch.setattr(worker, "COMMAND", command(ABORT_ANSWERING))
    with open_worker(**files) as running:
        with pytest.raises(EdgeVLMError, match="while answering") as caught:
            running.generate(QUESTION)
        assert "SIGABRT" in caught.value.message
        # Nothing of what was logged while it loaded.
        assert caught.value.message.endswith(
            "last lines:\n  planted.c:42: GGML_ASSERT(planted) failed"
        )
        assert caught.value.hint
        assert running.pid is None
        monkeypatch.setattr(worker, "COMMAND", usual)
        assert running.generate("hi").text  # started again


def test_an_abort_while_loading(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "COMMAND", command(ABORT_LOADING))
    with pytest.raises(ModelLoadError, match="while loading the model") as caught:
        open_worker(**files).__enter__()
    assert "GGML_ASSERT(planted) failed" in caught.value.message


# Signals without a name of their own, where the system has them.
REAL_TIME = (
    [(signal.SIGRTMIN + 5, f"signal {signal.SIGRTMIN + 5}", "--verbose")]
    if hasattr(signal, "SIGRTMIN")
    else []
)


@pytest.mark.parametrize(
    ("how", "name", "hint"),
    [
        (signal.SIGKILL, "SIGKILL", "memory"),
        (signal.SIGSEGV, "SIGSEGV", "--verbose"),
        *REAL_TIME,
    ],
)
def test_killed_in_the_middle_of_an_answer(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch, how: int, name: str, hint: str
) -> None:
    monkeypatch.setattr(worker, "COMMAND", command(ENDLESS))
    with open_worker(**files) as running:

        def kill(_: str) -> None:
            if running.pid is not None:
                os.kill(running.pid, how)

        with pytest.raises(EdgeVLMError, match=name) as caught:
            running.generate("?", params=LONG, on_text=kill)
    assert hint in caught.value.hint


def test_python_that_does_not_start(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-m", "edgevlm.no_such_module"))
    with pytest.raises(ModelLoadError, match="no_such_module"), open_worker(**files):
        pass


def test_a_bug_keeps_its_traceback(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "COMMAND", command(BUG))
    with open_worker(**files) as running, pytest.raises(RuntimeError, match="KeyError: 'planted'"):
        running.generate("?")


def test_what_c_prints_disturbs_nothing(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker, "COMMAND", command(NOISE))
    with open_worker(**files) as running:
        assert running.generate("hi").text
    assert capfd.readouterr() == ("", "")


def test_cancel_keeps_what_there_is(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "COMMAND", command(ENDLESS))
    pieces: list[str] = []
    with open_worker(**files) as running:
        answer = running.generate(
            "?", params=LONG, on_text=pieces.append, should_stop=lambda: len(pieces) > 3
        )
        assert answer.stop_reason == "cancelled"
        assert answer.text == "".join(pieces)
        assert 3 < len(answer.token_ids) < 4000
        before = running.pid
        again = running.generate("?", params=SamplingParams(max_tokens=5))
        assert again.stop_reason == "max_tokens"  # the old cancel is not held against it
        assert running.pid == before


def test_a_callback_that_fails_leaves_nothing_behind(
    files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "COMMAND", command(ENDLESS))

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    with open_worker(**files) as running:
        first = running.pid
        with pytest.raises(KeyboardInterrupt):
            running.generate("?", params=LONG, on_text=interrupted)
        assert running.pid is None
        answer = running.generate("?", params=SamplingParams(max_tokens=5))
        assert len(answer.token_ids) == 5
        assert running.pid != first


def test_no_zombie_is_left(files: dict[str, Any]) -> None:
    with open_worker(**files) as running:
        pid = running.pid
    assert pid is not None
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_started_ahead(files: dict[str, Any]) -> None:
    with start_worker() as ahead:
        pid = ahead.pid
        assert ahead.devices() == devices()
        with open_worker(**files, started=ahead) as running:
            assert running is ahead
            assert running.pid == pid
            assert running.generate("hi").text
        assert ahead.pid is None
    with start_worker() as unused:
        pid = unused.pid
    assert pid is not None
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def test_interrupts_are_the_parents(opened: Worker) -> None:
    before = opened.pid
    assert before is not None
    os.kill(before, signal.SIGINT)
    assert opened.generate("hi").text
    assert opened.pid == before


PARENT = """
import sys
from pathlib import Path
from edgevlm.runtime import worker
from edgevlm.runtime.sampling import SamplingParams
worker.COMMAND = tuple(sys.argv[3:])
with worker.open_worker(model=Path(sys.argv[1]), n_threads=1) as running:
    print(running.pid, flush=True)
    params = SamplingParams(max_tokens=4000, temperature=3.0, loop_guard=False)
    running.generate("?", params=params, on_text=lambda text: print(text, flush=True))
"""


def is_running(pid: int) -> bool:
    """Return whether a process that is not ours computes; an orphan's zombie does not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


def test_it_dies_with_its_parent(files: dict[str, Any]) -> None:
    arguments = [sys.executable, "-c", PARENT, str(files["model"]), "-", *command(ENDLESS)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.stdout.readline()  # it is answering
        assert is_running(pid)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while is_running(pid):
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)
