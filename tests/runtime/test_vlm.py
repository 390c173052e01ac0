"""The built-in model end to end: token ids, determinism, eyes, limits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import ContextOverflowError, GGUFError, ModelLoadError, PromptError
from edgevlm.runtime.answer import ImageCost
from edgevlm.runtime.layout import VISUAL_TOKEN, Pixels
from edgevlm.runtime.prompt import Message, conversation
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.threads import default_threads
from edgevlm.runtime.vlm import VLM, open_vlm

Picture = Callable[[int], Pixels]
GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("token_ids.json").read_text())
CONTROL_IDS = set(range(7))


def kld(first: np.ndarray, second: np.ndarray) -> float:
    def log_probs(logits: np.ndarray) -> np.ndarray:
        logits = logits.astype(np.float64) - logits.max()
        return logits - np.log(np.exp(logits).sum())

    left, right = log_probs(first), log_probs(second)
    return float((np.exp(left) * (left - right)).sum())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["question"].strip()[:12])
def test_token_ids_equal_those_of_transformers(vlm: VLM, case: dict[str, Any]) -> None:
    images = [np.zeros((height, width, 3), dtype=np.uint8) for width, height in case["sizes"]]
    messages = conversation(case["question"], images, system=case["system"])
    ids = [
        GOLDEN["image_token"] if token == VISUAL_TOKEN else token
        for token in vlm.token_ids(messages)
    ]
    assert ids == case["ids"]


@pytest.mark.parametrize(
    "typed",
    ["<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>", "<__media__>", "<|im_start|>"],
)
def test_what_a_person_types_is_never_a_control_token(
    vlm: VLM, picture: Picture, typed: str
) -> None:
    harmless = vlm.token_ids("is this red?", [picture(0)])
    hostile = vlm.token_ids(f"is {typed} red?", [picture(0)])

    def control(ids: list[int]) -> list[int]:
        return [token for token in ids if token in CONTROL_IDS]

    assert control(hostile) == control(harmless) == [1, 3, 4, 2, 1]
    assert hostile.count(VISUAL_TOKEN) == harmless.count(VISUAL_TOKEN) == 16
    assert len(hostile) > len(harmless)


def test_answers_of_the_built_in_questions(vlm: VLM, shapes_assets: Path, picture: Picture) -> None:
    lines = (shapes_assets / "prompts.jsonl").read_text().splitlines()[:8]
    questions = [json.loads(line) for line in lines]
    right = [
        vlm.generate(entry["prompt"], [picture(number)]).text == entry["answer"]
        for number, entry in enumerate(questions)
    ]
    assert sum(right) >= 6


def test_greedy_is_deterministic(vlm: VLM, noise: Pixels) -> None:
    params = SamplingParams(max_tokens=40)
    answers = [vlm.generate("What is this?", [noise], params=params) for _ in range(5)]
    assert len({answer.token_ids for answer in answers}) == 1
    assert len({answer.text for answer in answers}) == 1


def test_a_seed_repeats_and_another_differs(vlm: VLM, noise: Pixels) -> None:
    def sample(seed: int) -> tuple[int, ...]:
        params = SamplingParams(temperature=2.0, min_p=0.0, seed=seed, max_tokens=20)
        return vlm.generate("What is this?", [noise], params=params).token_ids

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(6)}) > 1


def test_logits_repeat_exactly_and_the_image_counts(vlm: VLM, picture: Picture) -> None:
    question = "What color is the cross?"
    first = vlm.first_logits(question, [picture(0)])
    assert first.shape == (vlm.n_vocab,)
    assert first.dtype == np.float32
    assert kld(first, vlm.first_logits(question, [picture(0)])) == 0
    assert kld(first, vlm.first_logits(question, [255 - picture(0)])) > 1e-2
    assert kld(first, vlm.first_logits(question)) > 1e-2


def test_logits_along_an_answer(vlm: VLM, picture: Picture) -> None:
    question, image = "What color is the cross?", picture(0)
    answer = vlm.generate(question, [image])
    rows = vlm.answer_logits(question, [image], answer=[*answer.token_ids, 2])
    assert rows.shape == (len(answer.token_ids) + 1, vlm.n_vocab)
    assert rows.argmax(axis=1).tolist() == [*answer.token_ids, 2]
    np.testing.assert_array_equal(rows[0], vlm.first_logits(question, [image]))
    long = vlm.answer_logits(question, [image], answer=[10] * 50)
    assert long.shape == (50, vlm.n_vocab)


def test_what_an_answer_tells(vlm: VLM, picture: Picture) -> None:
    pieces: list[str] = []
    costs: list[ImageCost] = []
    vlm.forget()
    answer = vlm.generate(
        "What color is the cross?", [picture(0)], on_text=pieces.append, on_images=costs.extend
    )
    assert "".join(pieces) == answer.text
    assert len(pieces) == len(answer.token_ids) > 1
    assert costs == list(answer.images) == [ImageCost(width=128, height=128, n_visual_tokens=16)]
    assert answer.stop_reason == "end"
    assert (answer.n_prompt_tokens, answer.n_visual_tokens) == (41, 16)
    times = answer.timings
    assert times.n_decoded == len(answer.token_ids)
    assert times.encode_ms > 0
    assert times.tok_per_sec is not None
    spent = times.preprocess_ms + times.encode_ms + times.prefill_ms
    assert times.ttft_ms == pytest.approx(spent, rel=0.2, abs=50)


def test_max_tokens(vlm: VLM, noise: Pixels) -> None:
    answer = vlm.generate("Read it.", [noise], params=SamplingParams(max_tokens=1))
    assert len(answer.token_ids) == 1
    assert answer.stop_reason == "max_tokens"
    assert answer.timings.tok_per_sec is None


def test_several_turns_and_several_images(vlm: VLM, picture: Picture) -> None:
    messages = [
        Message(role="user", content=(picture(0), "What color is the cross?")),
        Message(role="assistant", content=("black",)),
        Message(role="user", content=(picture(1), "What shape is black?")),
    ]
    answer = vlm.generate(messages)
    assert answer.n_visual_tokens == 32
    assert answer.text == vlm.generate(messages).text


def test_visual_tokens_are_counted_without_encoding(vlm: VLM) -> None:
    assert vlm.count_visual_tokens(128, 128) == 16
    assert vlm.count_visual_tokens(640, 480) == 300


@pytest.mark.parametrize(
    ("n_ctx", "is_exact"), [(41, False), (42, True)], ids=["one too few", "just enough"]
)
def test_room_for_one_token(shapes_dir: Path, picture: Picture, n_ctx: int, is_exact: bool) -> None:
    with open_vlm(
        model=shapes_dir / "shapes-F16.gguf",
        mmproj=shapes_dir / "mmproj-shapes-F16.gguf",
        n_ctx=n_ctx,
        n_threads=1,
    ) as vlm:
        if is_exact:
            answer = vlm.generate("What color is the cross?", [picture(0)])
            assert answer.stop_reason == "context_full"
            assert len(answer.token_ids) == 2  # one that fits, one that is only said
            return
        with pytest.raises(ContextOverflowError) as caught:
            vlm.generate("What color is the cross?", [picture(0)])
    assert "41 tokens (16 of them visual)" in caught.value.message
    assert "is 1 too long for the context of 41" in caught.value.message
    assert "--ctx 42" in caught.value.hint


def test_prompt_beyond_the_models_own_limit(vlm: VLM) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        vlm.generate("word " * 5000)
    assert "this model's limit is 4096" in caught.value.hint


@pytest.mark.parametrize("n_ctx", [0, -1, 4097])
def test_context_lengths_that_no_model_has(shapes_dir: Path, n_ctx: int) -> None:
    opening = open_vlm(model=shapes_dir / "shapes-F16.gguf", n_ctx=n_ctx)
    with pytest.raises(ModelLoadError, match="trained for 4096"), opening:
        pytest.fail("it was opened")


def test_text_alone_and_an_image_without_a_projector(vlm: VLM, shapes_dir: Path) -> None:
    with open_vlm(model=shapes_dir / "shapes-F16.gguf", n_ctx=256, n_threads=1) as blind:
        assert blind.token_ids("Hello <|im_end|>") == vlm.token_ids("Hello <|im_end|>")
        assert blind.generate("Hello").n_visual_tokens == 0
        with pytest.raises(PromptError, match="sees no images") as caught:
            blind.generate("Hello", [np.zeros((8, 8, 3), dtype=np.uint8)])
        assert "--mmproj" in caught.value.hint


@pytest.mark.parametrize("level", ["Q8_0", "Q5_K_M", "Q4_K_M"])
def test_quantized_levels_answer(shapes_dir: Path, picture: Picture, level: str) -> None:
    with open_vlm(
        model=shapes_dir / f"shapes-{level}.gguf",
        mmproj=shapes_dir / "mmproj-shapes-Q8_0.gguf",
        n_threads=1,
    ) as vlm:
        assert vlm.generate("What color is the cross?", [picture(0)]).text == "black"


@pytest.mark.parametrize("n_bytes", [0, 30, 4_000, 2_000_000])
@pytest.mark.parametrize("which", ["shapes-F16.gguf", "mmproj-shapes-F16.gguf"])
def test_truncated_files(shapes_dir: Path, tmp_path: Path, which: str, n_bytes: int) -> None:
    broken = tmp_path / which
    broken.write_bytes((shapes_dir / which).read_bytes()[:n_bytes])
    is_text = which.startswith("shapes")
    opening = open_vlm(
        model=broken if is_text else shapes_dir / "shapes-F16.gguf",
        mmproj=shapes_dir / "mmproj-shapes-F16.gguf" if is_text else broken,
    )
    with pytest.raises(GGUFError) as caught, opening:
        pytest.fail("it was opened")
    assert caught.value.hint


def test_tiny_models_get_one_thread_and_large_ones_all(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with path.open("wb") as file:
        file.truncate(6 << 20)
        assert default_threads(path) == 1
        file.truncate(64 << 30)  # a hole: no byte of it is stored
        assert default_threads(path) == len(os.sched_getaffinity(0))
