"""The conversation at a terminal, typed into a real pseudo-terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.terminal import ABORT, ENDLESS, HANGING, Terminal

QUESTION = "What color is the cross?"
LONG = ("--max-tokens", "4000", "--temperature", "3", "--seed", "1")


@pytest.fixture
def image(shapes_assets: Path) -> Path:
    return shapes_assets / "images" / "000.png"


@pytest.fixture
def start(shapes_dir: Path) -> Callable[..., Terminal]:
    def run(*arguments: str | Path, **options: object) -> Terminal:
        common = ("-m", shapes_dir, "--level", "F16", "--threads", "1")
        return Terminal(*arguments, *common, **options)  # type: ignore[arg-type]

    return run


def test_a_conversation(start: Callable[..., Terminal], image: Path) -> None:
    with start(image) as terminal:
        assert f"{image}: shown with your first question" in terminal.wait_for("\n> ")
        shown = terminal.ask(QUESTION)
        assert "128x128 -> 16 visual tokens" in shown
        assert "\nblack\n" in shown
        assert "TTFT " in shown
        shown = terminal.ask("Are there more?")
        assert "visual tokens" not in shown  # said once
        assert "TTFT " in shown
        assert "+ encode 0 +" in shown  # the image is still in the KV cache
        assert re.search(r", reused \d\d+ tokens", shown)
        shown = terminal.ask("/stats")
        assert re.search(r"context: \d\d+ of 4096 tokens", shown)
        assert "questions: 2, images: 1" in shown
        assert "forgotten" in terminal.ask("/reset")
        assert "context: 0 of 4096 tokens" in terminal.ask("/stats")
        shown = terminal.ask("/help")
        for command in ("/image PATH", "/reset", "/stats", "/save FILE", "Ctrl-D"):
            assert command in shown
        assert terminal.leave() == 0
    assert "Traceback" not in terminal.text


def test_an_image_later(start: Callable[..., Terminal], image: Path, tmp_path: Path) -> None:
    spaced = tmp_path / "my picture's.png"
    spaced.write_bytes(image.read_bytes())
    with start() as terminal:
        terminal.wait_for("\n> ")
        for typed in (
            str(image),
            f'"{spaced}"',
            str(spaced).replace(" ", "\\ ").replace("'", "\\'"),
        ):
            assert "shown with your next question" in terminal.ask(f"/image {typed}")
        assert "images for the next question: 3" in terminal.ask("/stats")
        assert terminal.ask(QUESTION).count("16 visual tokens") == 3
        assert "questions: 1, images: 3" in terminal.ask("/stats")
        assert terminal.leave() == 0


def test_errors_are_said_and_it_goes_on(start: Callable[..., Terminal], image: Path) -> None:
    with start("--ctx", "64") as terminal:
        terminal.wait_for("\n> ")
        for typed, words in (
            ("/nonsense", "there is no command `/nonsense`"),
            ("/image missing.png", "there is no image `missing.png`"),
            ("/image", "no image is named"),
            ("/save x.md", "there is nothing to save"),
            ("long " * 60, "too long for the context of 64"),
            ("long " * 60, "`/reset` forgets what was said"),
        ):
            shown = terminal.ask(typed)
            assert "error: " in shown
            assert words in shown
            assert "\nhint: " in shown
        assert "\nblack\n" in (terminal.ask(f"/image {image}") and terminal.ask(QUESTION))
        assert terminal.leave() == 0
    assert "Traceback" not in terminal.text


def test_ctrl_c_stops_the_answer_and_not_the_program(start: Callable[..., Terminal]) -> None:
    with start(*LONG, worker_code=ENDLESS) as terminal:
        terminal.wait_for("\n> ")
        terminal.wait_for_answer("Tell me more.")
        terminal.press("C")
        assert "; stopped" in terminal.wait_for("\n> ")
        assert "questions: 1, images: 0" in terminal.ask("/stats")  # what there was is kept
        assert terminal.leave() == 0
    assert "Traceback" not in terminal.text


def test_the_second_ctrl_c_ends_an_engine_that_does_not_listen(
    start: Callable[..., Terminal],
) -> None:
    with start(*LONG, worker_code=HANGING) as terminal:
        terminal.wait_for("\n> ")
        for _ in range(2):  # it is loaded again for the next question
            terminal.wait_for_answer("Tell me more.")
            terminal.press_until("C", "nothing of it is kept", "\n> ")
        assert "loading the model again" in terminal.text
        assert terminal.leave() == 0
    assert "Traceback" not in terminal.text


def test_ctrl_c_at_the_prompt_says_how_to_leave(start: Callable[..., Terminal]) -> None:
    with start() as terminal:
        terminal.wait_for("\n> ")
        assert "Ctrl-D leaves" in terminal.press_until("C", "\n> ")
        assert terminal.process.poll() is None
        assert terminal.leave() == 0


def test_an_abort_is_an_error_and_the_next_question_is_answered(
    start: Callable[..., Terminal], image: Path
) -> None:
    with start(image, worker_code=ABORT) as terminal:
        terminal.wait_for("\n> ")
        shown = terminal.ask("abort")
        assert "error: llama.cpp ended its process while answering (SIGABRT)" in shown
        assert "planted.c:42: GGML_ASSERT(planted) failed" in shown
        assert "\nhint: " in shown
        shown = terminal.ask(QUESTION)
        assert "loading the model again" in shown
        assert "\nblack\n" in shown
        assert terminal.leave() == 0  # and the terminal is as it was


def test_save(start: Callable[..., Terminal], image: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    with start(image, "--system", "Be kind.") as terminal:
        terminal.wait_for("\n> ")
        terminal.ask(QUESTION)
        assert f"saved in {talk}" in terminal.ask(f"/save {talk}")
        before = talk.read_bytes()
        assert "exists already" in terminal.ask(f"/save {talk}")
        assert talk.read_bytes() == before
        assert "says no form" in terminal.ask(f"/save {tmp_path / 'talk.txt'}")
        assert "there is no folder" in terminal.ask(f"/save {tmp_path / 'none' / 'talk.md'}")
        assert "saved in" in terminal.ask(f"/save {tmp_path / 'talk.md'}")
        assert terminal.leave() == 0
    document = json.loads(before)
    assert document["model"] == "shapes"
    assert [message["role"] for message in document["messages"]] == ["system", "user", "assistant"]
    assert document["messages"][1]["content"] == QUESTION
    assert document["messages"][1]["images"] == [
        {"source": str(image), "width": 128, "height": 128}
    ]
    assert (tmp_path / "talk.md").read_text().count("\n## ") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["talk.json", "talk.md"]


def test_history_is_kept(start: Callable[..., Terminal], tmp_path: Path, shapes_dir: Path) -> None:
    environment = {"EDGEVLM_CACHE": str(tmp_path)}
    with start(environment=environment) as terminal:
        terminal.wait_for("\n> ")
        terminal.ask("/stats")
        assert terminal.leave() == 0
    assert (tmp_path / "chat-history").stat().st_mode & 0o777 == 0o600
    with start(environment=environment) as terminal:
        terminal.wait_for("\n> ")
        terminal.press("up")
        terminal.wait_for("/stats")
        terminal.type("")
        assert "questions: 0" in terminal.wait_for("\n> ")
        assert terminal.leave() == 0


@pytest.mark.parametrize(
    ("environment", "forbidden"),
    [
        ({"NO_COLOR": "1"}, r"\x1b\[[0-9;]*3[0-9]"),  # foreground colours
        ({"TERM": "dumb"}, r"\x1b"),
    ],
    ids=["NO_COLOR", "dumb"],
)
def test_plain_terminals(
    start: Callable[..., Terminal], environment: dict[str, str], forbidden: str
) -> None:
    with start(environment=environment) as terminal:
        terminal.wait_for("\n> ")
        assert "hint: " in terminal.ask("/nonsense")
        assert "TTFT" in terminal.ask(QUESTION)
        assert terminal.leave() == 0
    assert not re.search(forbidden, terminal.raw)


def test_twenty_columns(start: Callable[..., Terminal], image: Path) -> None:
    with start(image, columns=20, environment={"TERM": "dumb"}) as terminal:
        terminal.wait_for("\n> ")
        assert "TTFT" in terminal.ask("Color?")
        assert "Ctrl-D leaves" in terminal.ask("/help")
        assert terminal.leave() == 0
    assert "Traceback" not in terminal.text


def test_redirected_answers(start: Callable[..., Terminal], image: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.txt"
    with start(image, stdout=out) as terminal:
        terminal.wait_for("\n> ")
        terminal.type(QUESTION)
        terminal.wait_for("TTFT", "\n> ")
        terminal.type("/stats")
        terminal.wait_for("context", "\n> ")
        assert terminal.leave() == 0
    assert out.read_text() == "black\n"
