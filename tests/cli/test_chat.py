"""`edgevlm chat` through `main([...])`: an answer, one JSON document, or a clear error."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.cli.app import main
from edgevlm.runtime.worker import Worker
from tests.cli.terminal import ABORT, ENDLESS, program

QUESTION = "What color is the cross?"


class Run:
    """One run of the command line and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str | Path | int) -> None:
        capsys.readouterr()
        self.status = main(["chat", *map(str, arguments)])
        self.out, self.err = capsys.readouterr()


@pytest.fixture
def image(shapes_assets: Path) -> Path:
    return shapes_assets / "images" / "000.png"


def test_an_answer(capsys: pytest.CaptureFixture[str], shapes_dir: Path, image: Path) -> None:
    run = Run(capsys, image, "-m", shapes_dir, "--level", "F16", "-p", QUESTION, "--threads", "1")
    assert (run.status, run.out) == (0, "black\n")
    before, after = run.err.strip().splitlines()[-2:]
    assert before == f"{image}: 128x128 -> 16 visual tokens"
    assert after.startswith("TTFT ")
    for word in (" ms (preprocess ", " + encode ", " + prefill ", " tok/s"):
        assert word in after


def test_quiet(capsys: pytest.CaptureFixture[str], shapes_dir: Path, image: Path) -> None:
    run = Run(
        capsys, image, "-m", shapes_dir, "--level", "F16", "-p", QUESTION, "-q", "--threads", "1"
    )
    assert (run.status, run.out, run.err) == (0, "black\n", "")


def test_json(capsys: pytest.CaptureFixture[str], shapes_dir: Path, image: Path) -> None:
    run = Run(
        capsys, image, "-m", shapes_dir, "--level", "Q8_0", "-p", QUESTION, "--json", "--threads", 1
    )
    document: dict[str, Any] = json.loads(run.out)
    expected = {
        "model": "shapes",
        "level": "Q8_0",
        "answer": "black",
        "stop_reason": "end",
        "n_prompt_tokens": 41,
        "n_visual_tokens": 16,
        "temperature": 0.0,
    }
    assert {key: document[key] for key in expected} == expected
    assert document["images"][0]["n_visual_tokens"] == 16
    assert document["n_answer_tokens"] > 0
    parts = document["preprocess_ms"] + document["encode_ms"] + document["prefill_ms"]
    assert document["ttft_ms"] == pytest.approx(parts, rel=0.2, abs=50)


def test_two_images(capsys: pytest.CaptureFixture[str], shapes_dir: Path, image: Path) -> None:
    run = Run(capsys, image, image, "-m", shapes_dir, "-p", "Same?", "--json", "--threads", "1")
    assert json.loads(run.out)["n_visual_tokens"] == 32
    assert run.err.count("-> 16 visual tokens") == 2


def test_the_built_in_model_by_name(capsys: pytest.CaptureFixture[str], image: Path) -> None:
    run = Run(capsys, image, "-m", "shapes", "-p", QUESTION, "--threads", "1")
    assert (run.status, run.out) == (0, "black\n")


def test_question_from_stdin(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shapes_dir: Path,
    image: Path,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n"))
    run = Run(capsys, image, "-m", shapes_dir, "--level", "F16", "--threads", "1")
    assert (run.status, run.out) == (0, "black\n")


@pytest.mark.parametrize(
    ("stdin", "words"),
    [
        (io.TextIOWrapper(io.BytesIO(b"caf\xe9")), "not UTF-8"),
        (io.StringIO("x" * 4_000_001), "longer than 4,000,000"),
        (io.StringIO(""), "no question"),
        (None, "no question"),
    ],
)
def test_bad_stdin(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stdin: io.TextIOBase | None,
    words: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    run = Run(capsys, "-m", "shapes")
    assert run.status == 1
    assert words in run.err


def test_text_alone(capsys: pytest.CaptureFixture[str], shapes_dir: Path) -> None:
    run = Run(
        capsys, "-m", shapes_dir, "-p", "Hello", "--system", "Be kind.", "--json", "--threads", 1
    )
    assert run.status == 0
    document = json.loads(run.out)
    assert (document["images"], document["n_visual_tokens"], document["encode_ms"]) == ([], 0, 0)


def test_pieces_are_streamed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shapes_dir: Path,
    image: Path,
) -> None:
    pieces: list[str] = []

    class Recorder(io.StringIO):
        def write(self, text: str, /) -> int:
            pieces.append(text)
            return len(text)

    monkeypatch.setattr(sys, "stdout", Recorder())
    Run(capsys, image, "-m", shapes_dir, "--level", "F16", "-p", QUESTION, "--threads", "1")
    assert len(pieces) > 2
    assert "".join(pieces) == "black\n"


def test_escape_sequences_do_not_reach_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevlm.cli.chat_show import Stream

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with Stream() as stream:
        stream.write("red \x1b[31mtext")
    assert capsys.readouterr().out == "red \\x1b[31mtext\n"


def test_limits_of_the_answer_are_said(
    capsys: pytest.CaptureFixture[str], shapes_dir: Path, image: Path
) -> None:
    common = (image, "-m", shapes_dir, "--level", "F16", "-p", QUESTION, "--threads", "1")
    assert "ended after 1 tokens, see --max-tokens" in Run(capsys, *common, "--max-tokens", "1").err
    assert "the context is full" in Run(capsys, *common, "--ctx", "42").err


def test_seed_is_reported_and_repeats(
    capsys: pytest.CaptureFixture[str], shapes_dir: Path, image: Path
) -> None:
    common = (image, "-m", shapes_dir, "-p", "?", "--threads", "1", "--json", "--temperature", "5")
    common += ("--top-k", "0", "--top-p", "1", "--min-p", "0")
    drawn = [json.loads(Run(capsys, *common).out) for _ in range(8)]
    assert len({document["seed"] for document in drawn}) == 8
    assert len({document["answer"] for document in drawn}) > 1
    again = json.loads(Run(capsys, *common, "--seed", str(drawn[0]["seed"])).out)
    assert again["answer"] == drawn[0]["answer"]


def broken_image(folder: Path) -> Path:
    path = folder / "broken.png"
    path.write_text("no image")
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.png", "-p", "hi"], ["there is no image", "check the path"]),
        (["-m", "no-such-model", "-p", "hi"], ["no-such-model"]),
        (["-m", "{shapes}", "-p", "  "], ["there is no question"]),
        (["-m", "{shapes}", "--level", "Q9_X", "-p", "hi"], ["Q9_X"]),
        (["-m", "{shapes}", "-p", "hi", "--ctx", "5000"], ["trained for 4096"]),
        (["-m", "{shapes}", "-p", "hi", "--ctx", "3"], ["too long for the context of 3"]),
        (["-m", "{shapes}", "-p", "hi", "--device", "toaster"], ["toaster", "vulkan"]),
        (["{broken}", "-m", "{shapes}", "-p", "hi"], ["no image that can be read"]),
        (
            ["{image}", "-m", "{shapes}", "--mmproj", "{text}", "-p", "hi"],
            ["is a text model (qwen3vl), not an mmproj", "mmproj-"],
        ),
        (["-m", "{mmproj}", "-p", "hi"], ["is a projector", "--mmproj"]),
        (["{image}", "-m", "{shapes}", "--mmproj", "{random}", "-p", "hi"], ["not a GGUF file"]),
        (["{image}", "-m", "{shapes}", "--mmproj", "missing.gguf", "-p", "hi"], ["missing.gguf"]),
        (["{image}", "-m", "{lonely}", "-p", "hi"], ["has no projector", "--mmproj FILE"]),
        (["-m", "{truncated}", "-p", "hi"], ["truncated.gguf"]),
    ],
)
def test_errors(
    capsys: pytest.CaptureFixture[str],
    shapes_dir: Path,
    image: Path,
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
) -> None:
    text = shapes_dir / "shapes-F16.gguf"
    for folder in ("lonely", "cut", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lonely" / text.name).symlink_to(text)
    (tmp_path / "cut" / "truncated.gguf").write_bytes(text.read_bytes()[:70_000])
    (tmp_path / "other" / "random.gguf").write_bytes(np.random.default_rng(1).bytes(5000))
    names = {
        "shapes": shapes_dir,
        "image": image,
        "broken": broken_image(tmp_path),
        "text": text,
        "mmproj": shapes_dir / "mmproj-shapes-F16.gguf",
        "random": tmp_path / "other" / "random.gguf",
        "lonely": tmp_path / "lonely" / text.name,
        "truncated": tmp_path / "cut" / "truncated.gguf",
    }
    run = Run(capsys, *(argument.format(**names) for argument in arguments))
    assert (run.status, run.out) == (1, "")
    message, _, hint = run.err.partition("\n\nhint: ")
    assert message.splitlines()[-1].startswith("error: ")
    assert hint
    assert "Traceback" not in run.err
    for word in words:
        assert word in run.err


def test_a_bad_image_is_said_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shapes_dir: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("edgevlm.runtime.worker.open_worker", fail)
    assert Run(capsys, "missing.png", "-m", shapes_dir, "-p", "hi").status == 1


def test_interrupt_leaves_the_line_ended(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shapes_dir: Path,
    image: Path,
) -> None:
    generate = Worker.generate

    def interrupted(self: Worker, *arguments: Any, **options: Any) -> object:
        generate(self, *arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Worker, "generate", interrupted)
    run = Run(capsys, image, "-m", shapes_dir, "--level", "F16", "-p", QUESTION, "--threads", "1")
    assert run.status == 130
    assert run.out.startswith("black\n")


@pytest.mark.parametrize("how", ["interrupt", "closed pipe"])
def test_leaving_in_the_middle(shapes_dir: Path, how: str) -> None:
    # The engine's model never ends its answer, so that it is at work when it is left.
    command = program(ENDLESS, "chat", "-m", shapes_dir, "-p", "?", "--max-tokens", "4000")
    command += ["--temperature", "3", "--seed", "1", "--threads", "1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(4)) == 4
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
            assert process.stdout.read().endswith(b"\n")
        process.stdout.close()
        error = process.stderr.read().decode()
        assert process.wait(60) in ({130} if how == "interrupt" else {0, 1, 141})
    assert "Traceback" not in error
    assert "BrokenPipe" not in error
    assert "TTFT" not in error


def test_an_abort_is_an_error(shapes_dir: Path) -> None:
    command = program(ABORT, "chat", "-m", shapes_dir, "-p", "abort", "--threads", "1")
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: llama.cpp ended its process while answering (SIGABRT)" in done.stderr
    assert "planted.c:42: GGML_ASSERT(planted) failed" in done.stderr
    assert "\n\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_on_stdin(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shapes_dir: Path,
    image: Path,
) -> None:
    def pipe() -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(image.read_bytes())))

    common = ("-m", shapes_dir, "--level", "F16", "--threads", "1")
    pipe()
    run = Run(capsys, "-", *common, "-p", QUESTION)
    assert (run.status, run.out) == (0, "black\n")
    assert "-: 128x128 -> 16 visual tokens" in run.err
    for arguments in (("-",), ("-", "-", "-p", QUESTION)):  # one stdin holds one thing
        pipe()
        run = Run(capsys, *arguments, *common)
        assert run.status == 1
        assert "stdin holds one image, or the question" in run.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    run = Run(capsys, "-", *common, "-p", QUESTION)
    assert run.status == 1
    assert "is empty" in run.err


def test_max_pixels(capsys: pytest.CaptureFixture[str], shapes_dir: Path, image: Path) -> None:
    run = Run(capsys, image, "-m", shapes_dir, "-p", QUESTION, "--max-pixels", "16383")
    assert run.status == 1
    assert "is 128x128, 16,384 pixels; the limit is 16,383" in run.err


def test_text_chat_without_projector(
    capsys: pytest.CaptureFixture[str], shapes_dir: Path, tmp_path: Path, image: Path
) -> None:
    lonely = tmp_path / "shapes-F16.gguf"
    lonely.symlink_to(shapes_dir / "shapes-F16.gguf")
    run = Run(capsys, "-m", lonely, "-p", "Hello", "--threads", "1")
    assert run.status == 0
    assert run.out.strip()
    run = Run(capsys, image, "-m", lonely, "-p", "Hello", "--threads", "1")
    assert run.status == 1
    assert "has no projector, it sees no images" in run.err


def test_memory_is_checked_before_loading(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shapes_dir: Path
) -> None:
    from dataclasses import replace

    from edgevlm.runtime import memory

    little = replace(memory.read_memory(), available_n_bytes=1_000_000)
    monkeypatch.setattr(memory, "read_memory", lambda: little)
    common = ("-m", shapes_dir, "--level", "F16", "-p", "Hello", "--threads", "1")
    run = Run(capsys, *common)
    assert (run.status, run.out) == (1, "")
    assert "needs " in run.err
    assert "1.0 MB are available" in run.err
    assert "--yes" in run.err
    assert Run(capsys, *common, "--yes").status == 0


def test_context_of_0(capsys: pytest.CaptureFixture[str], shapes_dir: Path) -> None:
    run = Run(capsys, "-m", shapes_dir, "-p", "Hello", "--ctx", "0")
    assert (run.status, run.out) == (2, "")
    assert "--ctx" in run.err


def test_no_terminal(shapes_dir: Path, image: Path) -> None:
    """As a service runs it: no terminal anywhere, not even a controlling one."""
    command = program("", "chat", image, "-m", shapes_dir, "--level", "F16", "--threads", "1")

    def run(*more: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*command, *more],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != "TERM"},
        )
        return done.returncode, done.stdout, done.stderr

    status, out, err = run("-p", QUESTION)
    assert (status, out) == (0, "black\n")
    assert "\x1b" not in err
    status, out, err = run()
    assert (status, out) == (1, "")
    assert "there is no question" in err


THINKING = """
from dataclasses import replace
from edgevlm.runtime.vlm import VLM
answer = VLM.generate
def generate(self, *arguments, think, on_reasoning, **options):
    if think is False:
        return answer(self, *arguments, **options)
    on_reasoning("A cross, ")
    on_reasoning("I see.")
    return replace(answer(self, *arguments, **options), reasoning="A cross, I see.")
VLM.generate = generate
"""


def test_reasoning_is_shown_apart(shapes_dir: Path, image: Path) -> None:
    command = program(THINKING, "chat", image, "-m", shapes_dir, "--level", "F16", "-p", QUESTION)
    command += ["--threads", "1"]

    def run(*more: str) -> tuple[str, str]:
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    out, err = run()
    assert out == "black\n"
    assert "A cross, I see.\n" in err
    assert run("--quiet") == ("black\n", "")
    document = json.loads(run("--json")[0])
    assert document["reasoning_content"] == "A cross, I see."
    assert document["answer"] == "black"
    out, err = run("--think", "off")
    assert out == "black\n"
    assert "I see" not in err


def test_several_images_are_asked_about_in_order(
    capsys: pytest.CaptureFixture[str], shapes_dir: Path, shapes_assets: Path
) -> None:
    names = [shapes_assets / "images" / f"{number:03}.png" for number in (0, 1, 2)]
    run = Run(capsys, *names, "-m", shapes_dir, "-p", "Same?", "--json", "--threads", "1")
    document = json.loads(run.out)
    assert [one["source"] for one in document["images"]] == [str(name) for name in names]
    assert document["n_visual_tokens"] == sum(one["n_visual_tokens"] for one in document["images"])
