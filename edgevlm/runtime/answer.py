"""What an answer is: its text, its tokens, what it cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

# Why an answer ended: the model itself; a limit; a text of `SamplingParams.stop`; the loop guard;
# whoever asked does not want more.
StopReason = Literal[
    "end", "max_tokens", "context_full", "stop_string", "max_seconds", "loop", "cancelled"
]
ContextPolicy = Literal["error", "trim", "summarize"]


@dataclass(frozen=True, kw_only=True)
class ImageCost:
    """What one image costs.

    Attributes:
        width: in pixels, as given.
        height: in pixels, as given.
        n_visual_tokens: places it takes in the context.
    """

    width: int
    height: int
    n_visual_tokens: int


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Where the time of one answer went, in milliseconds.

    Attributes:
        preprocess_ms: laying out the prompt; resizing and normalising images.
        encode_ms: vision tower and projector.
        prefill_ms: prompt through the text model, up to the first token.
        ttft_ms: time to first token: from the request to the first token, all of the above.
        decode_ms: from the first token to the last.
        n_decoded: tokens made in `decode_ms`, so without the first, with the one that ends.
        image_encode_ms: `encode_ms` image by image.
    """

    preprocess_ms: float
    encode_ms: float
    prefill_ms: float
    ttft_ms: float
    decode_ms: float
    n_decoded: int
    image_encode_ms: tuple[float, ...]

    @property
    def tok_per_sec(self) -> float | None:
        """Decode speed in tokens per second; None for an answer of one token."""
        return 1e3 * self.n_decoded / self.decode_ms if self.n_decoded else None

    def with_loading(self, ms: float) -> Timings:
        """Return the timings with `ms` of reading image files before the request put in front."""
        return replace(self, preprocess_ms=self.preprocess_ms + ms, ttft_ms=self.ttft_ms + ms)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer.

    Attributes:
        text: control tokens left out, reasoning too.
        reasoning: what a thinking model said to itself before; empty for others.
        token_ids: of reasoning and answer, without the token that ended it.
        n_prompt_tokens: tokens of the whole prompt, visual ones included.
        n_reused_tokens: those of them that were still in the KV cache from the question before.
        n_visual_tokens: those of images.
        images: what each image cost, in order.
        stop_reason: see `StopReason`.
        timings: where the time went.
    """

    text: str
    token_ids: tuple[int, ...]
    n_prompt_tokens: int
    n_visual_tokens: int
    images: tuple[ImageCost, ...]
    stop_reason: StopReason
    timings: Timings
    reasoning: str = ""
    n_reused_tokens: int = 0
