"""Frames: what is sent comes back, and what is no frame is refused before memory is taken."""

from __future__ import annotations

import os
import struct
from collections.abc import Generator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import ContextOverflowError, ImageError
from edgevlm.runtime import wire
from edgevlm.runtime.answer import Answer, ImageCost, Timings
from edgevlm.runtime.prompt import Message


@pytest.fixture
def pipe() -> Generator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        if end >= 0:
            try:
                os.close(end)
            except OSError:
                continue  # the test closed it


def test_frames_come_back(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    wire.send(writing, "a", {"text": "é\ud800\n", "number": 1.5}, [memoryview(b"12")])
    wire.send(writing, "b", {}, [memoryview(b"34"), memoryview(b"56")])
    os.close(writing)
    first, second = wire.frames(reading)
    assert (first.kind, first.values) == ("a", {"text": "é\ud800\n", "number": 1.5})
    assert (first.body, second.body) == (b"12", b"3456")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<IQ", (64 << 20) + 1, 0), "claims"),
        (struct.pack("<IQ", 2, 1 << 60), "claims"),
        (b"llama_model_loader: loaded meta data", "claims"),
        (struct.pack("<IQ", 3, 0) + b"{]}", "no JSON"),
        (struct.pack("<IQ", 2, 0) + b"[]", "not an object"),
        (struct.pack("<IQ", 12, 0) + b'{"kind": 1} ', "not an object"),
        (struct.pack("<IQ", 50_000, 0) + b"[" * 50_000, "no JSON"),
    ],
)
def test_what_is_no_frame(pipe: tuple[int, int], data: bytes, words: str) -> None:
    reading, writing = pipe
    os.write(writing, data)
    os.close(writing)
    with pytest.raises(wire.FrameError, match=words):
        list(wire.frames(reading))


@pytest.mark.parametrize("n_bytes", [1, 11, 12, 20, 40])
def test_half_a_frame_is_dropped(pipe: tuple[int, int], n_bytes: int) -> None:
    reading, writing = pipe
    whole = struct.pack("<IQ", 26, 10) + b'{"kind": "a", "values":{}}' + bytes(10)
    os.write(writing, whole[:n_bytes])
    os.close(writing)
    assert list(wire.frames(reading)) == []


def test_conversation_comes_back() -> None:
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 255, size, dtype=np.uint8) for size in ((3, 5, 3), (4, 2, 3))]
    messages = [
        Message(role="system", content=("Be kind.",)),
        Message(role="user", content=(images[0], "and", images[1][:, ::-1], "?")),
        Message(role="assistant", content=("No.",)),
    ]
    values, bodies = wire.messages_out(messages)
    again = wire.messages_in(values, b"".join(bodies))
    assert [message.role for message in again] == ["system", "user", "assistant"]
    assert [part for part in again[1].content if isinstance(part, str)] == ["and", "?"]
    for got, sent in zip(again[1].images, messages[1].images, strict=True):
        np.testing.assert_array_equal(got, sent)


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 4), (0, 2, 3)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="not uint8"):
        wire.messages_out([Message(role="user", content=(np.zeros(shape, np.uint8),))])


def test_answer_comes_back() -> None:
    import json

    answer = Answer(
        text="a",
        token_ids=(1, 2),
        n_prompt_tokens=9,
        n_visual_tokens=4,
        images=(ImageCost(width=2, height=3, n_visual_tokens=4),),
        stop_reason="loop",
        reasoning="hm",
        n_reused_tokens=5,
        timings=Timings(
            preprocess_ms=1,
            encode_ms=2,
            prefill_ms=3,
            ttft_ms=6,
            decode_ms=7,
            n_decoded=2,
            image_encode_ms=(2.0,),
        ),
    )
    crossed: dict[str, Any] = json.loads(json.dumps(asdict(answer)))
    assert wire.answer_in(crossed) == answer


def test_error_comes_back() -> None:
    error = wire.error_in(wire.error_out(ContextOverflowError("too long", hint="shorten it")))
    assert (type(error), error.message, error.hint) == (
        ContextOverflowError,
        "too long",
        "shorten it",
    )
    other = wire.error_in({"name": "annotations", "message": "m", "hint": "h"})
    assert str(other) == "m"
