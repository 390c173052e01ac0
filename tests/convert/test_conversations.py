"""Every golden in conversation: a prompt longer than a batch, then what is reused of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from numpy.typing import NDArray

from edgevlm.native.text_context import ContextOptions
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.goldens.files import drawn_image
from tests.goldens.recipe import Recipe
from tests.goldens.recipes import RECIPES

LONG = "The circle is one, the other is not. " * 8
N_BATCH = 128
RECURRENT = ("qwen35", "qwen35moe", "qwen4exp", "lfm2")
BOUND = 1e-3


def talk(image: str, *texts: str) -> list[Message]:
    """Return turns of user and model, an image in the first."""
    roles = ("user", "assistant") * len(texts)
    contents = [(drawn_image(image), texts[0]), *((text,) for text in texts[1:])]
    return [
        Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)
    ]


def logits_after(vlm: VLM, messages: list[Message]) -> NDArray[np.float32]:
    vlm.cache.prefill(vlm.layouter.lay_out(messages), vlm.layouter.projector, reuse=False)
    return vlm.cache.context.logits(1)[0].copy()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_a_second_question_gets_the_logits_of_a_cold_run(
    golden: Callable[[str], Path], tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContextOptions, "n_batch", N_BATCH)
    paths = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    plan = plan_conversion(golden(recipe.name), outtype="f32")
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    image, other = [images[0] for _, _, images in recipe.prompts if len(images) == 1][:2]
    asked = talk(image, LONG, "No.", "What is the color?")
    with open_vlm(model=paths[0], mmproj=paths[1], n_ctx=768, device="cpu", strict=True) as vlm:
        cold = logits_after(vlm, asked)
        # The answer depends on the image, however long the question.
        elsewhere = logits_after(vlm, talk(other, LONG, "No.", "What is the color?"))
        assert np.abs(elsewhere - cold).max() > 50 * BOUND
        # It goes on where it was, or its end was another and is forgotten.
        for before in (talk(image, LONG), talk(image, LONG, "No.", "Is it one?")):
            logits_after(vlm, before)
            n_before = vlm.cache.n_used
            assert n_before > N_BATCH
            again = vlm.cache.prefill(vlm.layouter.lay_out(asked), vlm.layouter.projector)
            found = vlm.cache.context.logits(1)[0]
            np.testing.assert_allclose(found, cold, atol=BOUND)
            assert again.n_reused_tokens == n_before or len(before) > 1
            # What is recurrent cannot forget its end: then all is read again.
            architecture = plan.text.metadata["general.architecture"].value
            assert again.n_reused_tokens > N_BATCH or architecture in RECURRENT
