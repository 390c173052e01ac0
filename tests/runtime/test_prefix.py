"""What stays in the KV cache is not read again, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import ModelLoadError
from edgevlm.native.library import load_library
from edgevlm.native.projector import EncodedImage, Projector
from edgevlm.native.text_context import TextContext
from edgevlm.runtime.embedding_cache import EmbeddingCache
from edgevlm.runtime.layout import Layout, Pixels
from edgevlm.runtime.prefix import HeldImage, KVCache, n_common
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm

Picture = Callable[[int], Pixels]
FIRST = "What color is the cross?"
SECOND = "What shape is black?"
BOUND = 1e-4


@pytest.fixture
def encodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Return a list that grows by the shape of every image that is encoded."""
    seen: list[tuple[int, ...]] = []
    encode = Projector.encode

    def counted(self: Projector, pixels: Pixels) -> Any:
        seen.append(pixels.shape)
        return encode(self, pixels)

    monkeypatch.setattr(Projector, "encode", counted)
    return seen


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of tokens of every text batch."""
    seen: list[int] = []
    decode = TextContext.decode_tokens

    def counted(self: TextContext, tokens: Any, *, n_logits: int = 0) -> None:
        seen.append(len(tokens))
        decode(self, tokens, n_logits=n_logits)

    monkeypatch.setattr(TextContext, "decode_tokens", counted)
    return seen


def layout_of(vlm: VLM, messages: list[Message]) -> Layout:
    return vlm.layouter.lay_out(messages)


def logits_after(vlm: VLM, messages: list[Message], *, reuse: bool) -> np.ndarray:
    vlm.cache.prefill(layout_of(vlm, messages), vlm.layouter.projector, reuse=reuse)
    return vlm.cache.context.logits(1)[0]


def two_turns(image: Pixels, second: str = SECOND, said: str = "black") -> list[Message]:
    return [
        Message(role="user", content=(image, FIRST)),
        Message(role="assistant", content=(said,)),
        Message(role="user", content=(second,)),
    ]


def test_a_second_question_encodes_nothing(
    vlm: VLM, picture: Picture, encodes: list[tuple[int, ...]]
) -> None:
    vlm.forget()
    messages = two_turns(picture(0))
    first = vlm.generate(messages[:1])
    assert (len(encodes), first.n_reused_tokens) == (1, 0)
    second = vlm.generate(messages)
    assert len(encodes) == 1
    assert second.timings.image_encode_ms == (0.0,)
    # Everything up to the end of the first answer stood there.
    assert first.n_prompt_tokens <= second.n_reused_tokens < second.n_prompt_tokens


def test_the_same_picture_from_another_file_is_the_same(
    vlm: VLM, picture: Picture, encodes: list[tuple[int, ...]]
) -> None:
    vlm.forget()
    vlm.generate(FIRST, [picture(0)])
    vlm.generate(SECOND, [picture(0).copy()])
    assert len(encodes) == 1
    changed = picture(0).copy()
    changed[0, 0, 0] ^= 1
    answer = vlm.generate(SECOND, [changed])
    assert len(encodes) == 2
    assert answer.n_reused_tokens < 10


def test_one_picture_twice_is_encoded_once(
    vlm: VLM, picture: Picture, encodes: list[tuple[int, ...]]
) -> None:
    vlm.forget()
    answer = vlm.generate("Do they differ?", [picture(0), picture(0)])
    assert len(encodes) == 1
    assert len(answer.timings.image_encode_ms) == 2


@pytest.mark.parametrize("second", [SECOND, "?", "What " * 40])
@pytest.mark.parametrize("said", ["black", "it is white"], ids=["longer", "cut in text"])
def test_logits_equal_those_of_a_cold_run(
    exact: VLM, picture: Picture, second: str, said: str
) -> None:
    messages = two_turns(picture(0), second, said)
    cold = logits_after(exact, messages, reuse=False)
    exact.forget()
    exact.generate(two_turns(picture(0))[:1])
    warm = logits_after(exact, messages, reuse=True)
    np.testing.assert_allclose(warm, cold, atol=BOUND)
    assert len(exact.cache.held) < exact.cache.n_used  # an image is one item of many tokens


def test_positions_off_by_one_would_be_seen(
    exact: VLM, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = two_turns(picture(0), said="it is white")
    cold = logits_after(exact, messages, reuse=False)
    exact.forget()
    exact.generate(messages[:1])
    keep = TextContext.keep

    def wrong(self: TextContext, *, n_used: int, position: int) -> bool:
        kept = keep(self, n_used=n_used, position=position)
        self.position += 1
        return kept

    monkeypatch.setattr(TextContext, "keep", wrong)
    warm = logits_after(exact, messages, reuse=True)
    assert np.abs(warm - cold).max() > 10 * BOUND


def test_an_image_is_kept_whole_or_not_at_all(
    exact: VLM, picture: Picture, encodes: list[tuple[int, ...]]
) -> None:
    """A conversation that parts where the picture begins keeps nothing of the picture."""
    cold = logits_after(exact, two_turns(picture(1)), reuse=False)
    exact.forget()
    exact.generate(two_turns(picture(0)))
    warm = logits_after(exact, two_turns(picture(1)), reuse=True)
    np.testing.assert_allclose(warm, cold, atol=BOUND)
    assert len(encodes) == 3
    held = [item for item in exact.cache.held if not isinstance(item, int)]
    assert [item.n_tokens for item in held] == [16]
    assert held[0].n_positions == 4  # M-RoPE: 4 x 4 tokens share four positions


def test_the_same_question_again_reads_one_token(
    vlm: VLM, picture: Picture, decoded: list[int]
) -> None:
    vlm.forget()
    first = vlm.generate(FIRST, [picture(0)])
    decoded.clear()
    again = vlm.generate(FIRST, [picture(0)])
    assert again.n_reused_tokens == again.n_prompt_tokens - 1
    assert decoded[0] == 1
    assert again.text == first.text


def test_a_memory_that_cannot_forget_its_end_starts_over(
    vlm: VLM, picture: Picture, monkeypatch: pytest.MonkeyPatch, encodes: list[tuple[int, ...]]
) -> None:
    expected = vlm.generate(two_turns(picture(0), said="it is white")).text
    vlm.forget()
    vlm.generate(FIRST, [picture(0)])

    # As recurrent models answer: llama_memory_seq_rm of a part is false.
    def refuse(*_: object) -> bool:
        return False

    monkeypatch.setattr(load_library().llama, "llama_memory_seq_rm", refuse)
    encodes.clear()
    answer = vlm.generate(two_turns(picture(0), said="it is white"))
    assert answer.n_reused_tokens == 0
    assert len(encodes) == 0  # read again, not encoded again
    assert answer.text == expected


def test_a_failure_midway_is_forgotten(
    vlm: VLM, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm.forget()
    expected = vlm.generate(two_turns(picture(0))).text
    decode = TextContext.decode_tokens

    def failing(self: TextContext, tokens: Any, *, n_logits: int = 0) -> None:
        decode(self, tokens, n_logits=n_logits)
        raise ModelLoadError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(TextContext, "decode_tokens", failing)
        with pytest.raises(ModelLoadError, match="planted"):
            vlm.generate("Something else")
    assert vlm.cache.n_used == 0
    answer = vlm.generate(two_turns(picture(0)))
    assert (answer.n_reused_tokens, answer.text) == (0, expected)


@pytest.mark.parametrize("n_asked", [0, 1, 2, 3])
def test_cancelled_during_prefill_and_usable_afterwards(
    vlm: VLM, picture: Picture, n_asked: int
) -> None:
    vlm.forget()
    expected = vlm.generate(two_turns(picture(0)))
    vlm.forget()
    n_calls = 0

    def should_stop() -> bool:
        nonlocal n_calls
        n_calls += 1
        return n_calls > n_asked

    answer = vlm.generate(two_turns(picture(0)), should_stop=should_stop)
    assert answer.stop_reason == "cancelled"
    assert answer.token_ids == ()
    again = vlm.generate(two_turns(picture(0)))
    assert (again.text, again.stop_reason) == (expected.text, "end")


def test_the_conversation_fills_the_context_again_and_again(
    shapes_dir: Path, picture: Picture
) -> None:
    """What is removed is free again: ten answers fit where two would not stand side by side."""
    with open_vlm(
        model=shapes_dir / "shapes-F16.gguf",
        mmproj=shapes_dir / "mmproj-shapes-F16.gguf",
        n_ctx=64,
        n_threads=1,
    ) as vlm:
        for number in range(10):
            answer = vlm.generate(
                f"{number} is it?", [picture(number % 3)], params=SamplingParams(max_tokens=8)
            )
            assert answer.n_prompt_tokens + len(answer.token_ids) <= 64


def test_an_image_that_moves_is_not_encoded_again(
    exact: VLM, picture: Picture, encodes: list[tuple[int, ...]]
) -> None:
    moved = [Message(role="system", content=("Be brief.",)), *two_turns(picture(0))]
    cold = logits_after(exact, moved, reuse=False)
    exact.forget()
    exact.generate(two_turns(picture(0)))
    assert len(encodes) == 2
    warm = logits_after(exact, moved, reuse=True)
    assert len(encodes) == 2
    np.testing.assert_allclose(warm, cold, atol=BOUND)


def test_embeddings_stay_below_their_bound() -> None:
    def image(n_values: int) -> EncodedImage:
        tiles = (np.zeros((1, n_values), dtype=np.float32),)
        return EncodedImage(tiles=tiles, preprocess_ms=0.0, encode_ms=0.0)

    cache = EmbeddingCache(max_bytes=100)
    cache.put(b"a", image(10))
    cache.put(b"b", image(10))
    assert cache.get(b"a") is not None
    cache.put(b"c", image(10))
    assert (cache.get(b"b"), cache.n_bytes) == (None, 80)
    cache.put(b"d", image(100))
    assert cache.n_bytes <= 100


def test_cut_points_are_found() -> None:
    image = HeldImage(digest=b"a", tile=0, n_tokens=16, n_positions=4)
    other = HeldImage(digest=b"b", tile=0, n_tokens=16, n_positions=4)
    assert n_common([1, image, 2, 3], [1, image, 2, 4]) == 3
    assert n_common([1, image, 2], [1, other, 2]) == 1
    assert n_common([], [1]) == 0
    assert n_common([1, 2], [1, 2, 3]) == 2


def test_kv_cache_is_a_list_of_what_was_read(vlm: VLM) -> None:
    cache: KVCache = vlm.cache
    vlm.forget()
    answer = vlm.generate("Hello", params=SamplingParams(max_tokens=3))
    ids = vlm.token_ids("Hello")
    n_said = len(cache.held) - len(ids)
    assert cache.held == [*ids, *answer.token_ids[:n_said]]
    assert cache.n_used == len(cache.held)
