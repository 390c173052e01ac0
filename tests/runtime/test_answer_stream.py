"""Text, reasoning and stop strings out of pieces of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgevlm.runtime.answer_stream import AnswerStream, opened_tag


def run(
    pieces: Sequence[str | bytes],
    *,
    stop: Sequence[str] = (),
    tags: tuple[str, str] | None = None,
) -> tuple[list[str], list[str], bool]:
    texts: list[str] = []
    thoughts: list[str] = []
    stream = AnswerStream(stop=stop, tags=tags, on_text=texts.append, on_reasoning=thoughts.append)
    stopped = False
    for piece in pieces:
        stopped = stream.feed(piece.encode() if isinstance(piece, str) else piece)
        if stopped:
            break
    stream.finish()
    assert stream.text == "".join(texts)
    assert stream.reasoning == "".join(thoughts).rstrip()
    return texts, thoughts, stopped


def test_plain_text_is_handed_on_at_once() -> None:
    assert run(["a", " b", "<", "c"]) == (["a", " b", "<", "c"], [], False)


def test_letters_cut_into_bytes() -> None:
    assert run([b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80"])[0] == ["é", "😀"]
    assert run([b"a", b"\xc3"])[0] == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["one END two"], "one "),
        (["one E", "N", "D two"], "one "),
        (["EN", "D"], ""),
        (["one EN", "d"], "one ENd"),
        (["EEN", "D"], "E"),
        (["one EN"], "one EN"),
        (["a\n", "\n", "b"], "a"),
    ],
)
def test_stop_strings_across_tokens(pieces: list[str], expected: str) -> None:
    texts, _, stopped = run(pieces, stop=["END", "\n\n"])
    assert "".join(texts) == expected
    assert stopped == ("END" in "".join(pieces) or "\n\n" in "".join(pieces))


def test_no_part_of_a_stop_string_is_ever_streamed() -> None:
    texts: list[str] = []
    stream = AnswerStream(stop=["</answer>"], on_text=texts.append)
    for piece in ["yes", "<", "/ans", "wer", ">"]:
        stream.feed(piece.encode())
    assert texts == ["yes"]


def test_the_first_of_several_stop_strings_counts() -> None:
    assert run(["a long text"], stop=["text", "long", "ng t"])[0] == ["a "]


def test_reasoning_of_the_models_own() -> None:
    texts, thoughts, _ = run(["<th", "ink>", "\nhm", "m </", "think", ">\n\n", "yes", " no"])
    assert "".join(texts) == "yes no"
    assert "".join(thoughts) == "hmm "
    assert not any("<" in piece for piece in texts + thoughts)


def test_reasoning_that_the_template_opened() -> None:
    tags = opened_tag("<|im_start|>assistant\n<think>\n")
    assert tags == ("<think>", "</think>")
    texts, thoughts, _ = run(["so", "...</think>", "done"], tags=tags)
    assert ("".join(texts), "".join(thoughts)) == ("done", "so...")


def test_reasoning_that_the_template_closed() -> None:
    assert opened_tag("assistant\n<think>\n\n</think>\n\n") is None
    assert opened_tag("assistant\n") is None


def test_reasoning_that_never_ends() -> None:
    texts, thoughts, _ = run(["<think>", "on and on </thi"])
    assert texts == []
    assert "".join(thoughts) == "on and on </thi"


def test_a_tag_in_the_midst_is_text() -> None:
    assert "".join(run(["Say ", "<think>", " now"])[0]) == "Say <think> now"
    assert "".join(run(["<thi", "s>"])[0]) == "<this>"
    assert "".join(run(["  ", "x"])[0]) == "  x"


def test_stop_strings_do_not_count_in_reasoning() -> None:
    texts, thoughts, stopped = run(["<think>a\n\nb</think>c\n\nd"], stop=["\n\n"])
    assert ("".join(texts), "".join(thoughts), stopped) == ("c", "a\n\nb", True)


def test_other_tags() -> None:
    texts, thoughts, _ = run(["[THINK]", "why", "[/THINK]", "so"])
    assert ("".join(texts), "".join(thoughts)) == ("so", "why")
