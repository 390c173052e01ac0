"""A prompt looked into: rows depend on nothing asked before, and answers go on from them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from edgevlm.build.resolve import built_in_folder, open_model
from edgevlm.errors import ContextOverflowError
from edgevlm.native.projector import EncodedImage
from edgevlm.runtime.embedding_cache import EmbeddingCache
from edgevlm.runtime.image import load_image
from edgevlm.runtime.probe import Probe
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm

QUESTION = "Describe the image."


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    model = open_model("shapes")
    text, mmproj = model.baseline("text"), model.baseline("mmproj")
    assert text is not None
    assert mmproj is not None
    with open_vlm(model=text.path, mmproj=mmproj.path, n_ctx=256, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return load_image(sorted((built_in_folder() / "images").glob("*.png"))[0])


def rows(probe: Probe, tokens: tuple[int, ...]) -> np.ndarray:
    return np.concatenate(list(probe.forced(tokens)))


def test_greedy_answers_as_the_model_answers(vlm: VLM, pixels: np.ndarray) -> None:
    answer = vlm.generate(QUESTION, [pixels], params=SamplingParams(max_tokens=60))
    ours = vlm.probe(QUESTION, [pixels]).greedy(max_tokens=60)
    assert ours.tokens == answer.token_ids
    assert ours.text == answer.text
    assert ours.stop_reason == answer.stop_reason == "end"
    assert ours.end_token is not None
    assert vlm.is_end(ours.end_token)


def test_rows_do_not_depend_on_what_was_asked_before(vlm: VLM, pixels: np.ndarray) -> None:
    probe = vlm.probe(QUESTION, [pixels])
    answer = probe.greedy(max_tokens=60).tokens
    after_answer = rows(probe, answer)
    vlm.generate("What is this?", [pixels])
    cold = rows(vlm.probe(QUESTION, [pixels]), answer)
    assert len(cold) == len(answer) + 1
    assert np.array_equal(after_answer, cold)
    assert np.array_equal(cold[:-1], vlm.answer_logits(QUESTION, [pixels], answer=answer))


def test_the_row_behind_an_answer_predicts_its_end(vlm: VLM, pixels: np.ndarray) -> None:
    probe = vlm.probe(QUESTION, [pixels])
    answer = probe.greedy(max_tokens=60)
    assert rows(probe, answer.tokens)[-1].argmax() == answer.end_token


def test_an_answer_goes_on_from_what_is_begun(vlm: VLM, pixels: np.ndarray) -> None:
    probe = vlm.probe(QUESTION, [pixels])
    whole = probe.greedy(max_tokens=60)
    rows(probe, whole.tokens)
    again = probe.greedy(max_tokens=60, begun=whole.tokens[:3])
    assert again == whole
    other = (whole.tokens[0] + 1) % vlm.n_vocab
    turned = vlm.probe(QUESTION, [pixels]).greedy(max_tokens=8, begun=(other,))
    assert turned.tokens[0] == other
    assert len(turned.tokens) <= 8
    assert whole.end_token is not None
    ended = probe.greedy(max_tokens=60, begun=(*whole.tokens[:2], whole.end_token))
    assert (ended.tokens, ended.stop_reason) == (whole.tokens[:2], "end")


def test_a_limit_cuts_the_answer(vlm: VLM, pixels: np.ndarray) -> None:
    cut = vlm.probe(QUESTION, [pixels]).greedy(max_tokens=2)
    assert (len(cut.tokens), cut.stop_reason, cut.end_token) == (2, "max_tokens", None)


def test_known_embeddings_are_not_encoded_again(vlm: VLM, pixels: np.ndarray) -> None:
    known, encoded = EmbeddingCache(), list[bytes]()

    class Watched:
        def get(self, digest: bytes) -> EncodedImage | None:
            return known.get(digest)

        def put(self, digest: bytes, image: EncodedImage) -> None:
            encoded.append(digest)
            known.put(digest, image)

    first = rows(vlm.probe(QUESTION, [pixels], known=Watched()), ())
    second = rows(vlm.probe("What is this?", [pixels], known=Watched()), ())
    assert len(encoded) == 1
    assert not np.array_equal(first, second)
    assert np.array_equal(first, rows(vlm.probe(QUESTION, [pixels], known=Watched()), ()))


def test_an_answer_beyond_the_context_is_refused(vlm: VLM, pixels: np.ndarray) -> None:
    with pytest.raises(ContextOverflowError, match="room for 300 more"):
        next(vlm.probe(QUESTION, [pixels]).forced([5] * 300))
