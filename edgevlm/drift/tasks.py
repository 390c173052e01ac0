"""Questions with known answers, put to a model: how many are right, and how fast it talks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.drift.prompts import Prompt
from edgevlm.progress import SILENT, Progress
from edgevlm.runtime.image import load_image
from edgevlm.runtime.vlm import VLM


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """How a model did on a set of questions.

    Attributes:
        n_right: answers equal to the expected one, up to surrounding white space.
        n_prompts: questions that carry an answer.
        right_by_kind: kind -> (right, asked).
        decode_tok_per_sec: tokens after the first of each answer over the time they took; None
            when no
            answer had a second token.
        mean_ttft_ms: mean time to the first token, image encoding included.
    """

    n_right: int
    n_prompts: int
    right_by_kind: dict[str, tuple[int, int]]
    decode_tok_per_sec: float | None
    mean_ttft_ms: float


def score_answers(
    vlm: VLM,
    prompts: Sequence[Prompt],
    *,
    folder: Path,
    label: str = "Answering",
    progress: Progress = SILENT,
    on_answer: Callable[[Prompt, str], None] = lambda prompt, answer: None,
) -> TaskScore:
    """Answer every prompt greedily and compare with what is expected.

    Args:
        vlm: the loaded model.
        prompts: those without an answer are skipped.
        folder: where the prompts' image paths start.
        label: the task's name for `progress`.
        progress: told each answer.
        on_answer: told each prompt and its answer.
    """
    asked = [prompt for prompt in prompts if prompt.answer is not None]
    right: Counter[str] = Counter()
    n_decoded, decode_ms, ttft_ms = 0, 0.0, 0.0
    with progress.task(label, total=len(asked), unit="items") as advance:
        for prompt in asked:
            images = [load_image(folder / path) for path in prompt.paths]
            answer = vlm.generate(prompt.prompt, images)
            right[prompt.kind] += answer.text.strip() == prompt.answer
            n_decoded += answer.timings.n_decoded
            decode_ms += answer.timings.decode_ms
            ttft_ms += answer.timings.ttft_ms
            on_answer(prompt, answer.text)
            advance(1)
    kinds = Counter(prompt.kind for prompt in asked)
    return TaskScore(
        n_right=right.total(),
        n_prompts=len(asked),
        right_by_kind={kind: (right[kind], n) for kind, n in kinds.items()},
        decode_tok_per_sec=1e3 * n_decoded / decode_ms if n_decoded else None,
        mean_ttft_ms=ttft_ms / len(asked) if asked else 0.0,
    )
