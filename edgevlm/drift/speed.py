"""How fast this machine encodes images, reads prompts and writes answers.

Each number is a median of runs after one that is not counted. What else runs on the machine is in
it: on a busy one only ratios of one run say something.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.text_context import ContextOptions, TextContext, open_context
from edgevlm.native.text_model import ModelOptions, TextModel, open_text_model
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.preflight import check_text_model
from edgevlm.runtime.vlm import VLM

N_PROMPT_TOKENS = 256
_N_DECODED_TOKENS = 16
_LEAST_RUNS, _MOST_RUNS = 3, 15
# As long as that a short run is repeated, and a long one not even _LEAST_RUNS times.
_WORTH_SECONDS, _ENOUGH_SECONDS = 0.3, 3.0
_TEXT = "A red circle stands left of a blue square, and above both is a small green triangle. "


@dataclass(frozen=True, kw_only=True)
class EncodeSpeed:
    """Encodes of images.

    Attributes:
        seconds: per image, of vision tower and projector.
        rows: embeddings of every image, [n_tokens, n_embd_inp] float32 each.
    """

    seconds: float
    rows: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, kw_only=True)
class TextSpeed:
    """Tokens per second of a text model.

    Attributes:
        prefill: of a prompt of N_PROMPT_TOKENS, or half of the model's context.
        decode: of an answer behind that prompt, without sampling.
    """

    prefill: float
    decode: float


def encode_speed(vlm: VLM, images: Sequence[Pixels]) -> EncodeSpeed:
    """Encode `images` again and again."""
    rows = [np.concatenate(vlm.encode(image).tiles) for image in images]

    def run() -> float:
        return sum(vlm.encode(image).encode_ms for image in images) / 1e3 / len(images)

    return EncodeSpeed(seconds=_median(run), rows=tuple(rows))


def text_speed(
    path: Path,
    thread_counts: Sequence[int],
    *,
    device: str = "auto",
    gpu_layers: int | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> dict[int, TextSpeed]:
    """Read a prompt and write an answer with each number of threads.

    Args:
        path: the text model, which is loaded once.
        thread_counts: numbers of threads.
        device: as `open_vlm` takes it.
        gpu_layers: as `open_vlm` takes it.
        on_done: called after each number of threads.

    Raises:
        GGUFError: broken, or no text model.
        ModelLoadError: llama.cpp refuses the file.
    """
    check_text_model(path)
    speeds: dict[int, TextSpeed] = {}
    with open_text_model(path, ModelOptions(device=device, n_gpu_layers=gpu_layers)) as model:
        n_prompt = max(1, min(N_PROMPT_TOKENS, model.n_ctx_train // 2))
        n_decoded = max(1, min(_N_DECODED_TOKENS, model.n_ctx_train - n_prompt))
        tokens = _tokens(model, n_prompt)
        for n_threads in thread_counts:
            options = ContextOptions(n_ctx=n_prompt + n_decoded, n_threads=n_threads)
            with open_context(model, options) as context:
                _seconds_of_prompt(context, tokens)
                prefill = _median(lambda c=context: _seconds_of_prompt(c, tokens))
                decode = _median(lambda c=context: _seconds_of_answer(c, tokens, n_decoded))
            speeds[n_threads] = TextSpeed(prefill=n_prompt / prefill, decode=n_decoded / decode)
            on_done()
    return speeds


def _tokens(model: TextModel, n_tokens: int) -> list[int]:
    some = model.tokenize(_TEXT, parse_special=False) or [0]
    return (some * -(-n_tokens // len(some)))[:n_tokens]


def _seconds_of_prompt(context: TextContext, tokens: Sequence[int]) -> float:
    context.clear()
    started = time.perf_counter()
    context.decode_tokens(tokens, n_logits=1)
    context.synchronize()
    return time.perf_counter() - started


def _seconds_of_answer(context: TextContext, tokens: Sequence[int], n_decoded: int) -> float:
    context.clear()
    context.decode_tokens(tokens, n_logits=1)
    context.synchronize()
    started = time.perf_counter()
    for number in range(n_decoded):
        context.decode_tokens([tokens[number % len(tokens)]], n_logits=1)
        context.synchronize()
    return time.perf_counter() - started


def _median(run: Callable[[], float]) -> float:
    """Return the median of some runs: many short ones, few long ones."""
    started, found, elapsed = time.perf_counter(), [run()], 0.0
    while elapsed < _ENOUGH_SECONDS and len(found) < _MOST_RUNS:
        elapsed = time.perf_counter() - started
        if elapsed > _WORTH_SECONDS and len(found) >= _LEAST_RUNS:
            break
        found.append(run())
    # Clocks of some boards are coarse: no speed is infinite.
    return max(median(found), 1e-9)
