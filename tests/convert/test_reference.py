"""Our files in the runtime beside transformers' log-probabilities, with and without images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.plan import ConversionPlan, OuttypeOption
from numpy.typing import NDArray

from edgevlm.reference_file import Case
from edgevlm.runtime.vlm import VLM, open_vlm
from edgevlm.verify.metrics import kl_divergence
from tests.goldens.files import case_images, golden_cases, kld_between
from tests.goldens.recipe import Recipe
from tests.goldens.recipes import RECIPES

STRICT_BOUND, RELATIVE_BOUND, DEFAULT_BOUND = 1e-5, 1e-4, 1e-3
# DeepSeek-OCR 2 sees an image as 257 tokens or more.
N_CTX = 1024
MUTATIONS = [(recipe, name) for recipe in RECIPES.values() for name in recipe.mutations]
Golden = Callable[[str], Path]
each_golden = pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)


@cache
def cases_of(recipe: Recipe) -> tuple[Case, ...]:
    return golden_cases(recipe.name)


def strict_bound(recipe: Recipe) -> float:
    """Very peaked logits are further apart: a part of what two different images differ by."""
    seen = kld_between(cases_of(recipe), "one image", "another image")
    return max(STRICT_BOUND, RELATIVE_BOUND * seen)


def kld(vlm: VLM, case: Case) -> NDArray[np.float64]:
    """Return KLD(transformers, ours) at each position of a case's answer."""
    return kl_divergence(case, _logits(vlm, case))


def _logits(vlm: VLM, case: Case) -> NDArray[np.float32]:
    answer = [int(token) for token in case.answer]
    return vlm.answer_logits(case.prompt, case_images(case), answer=answer)


def written(plan: ConversionPlan, folder: Path) -> tuple[Path, Path]:
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return paths


@each_golden
@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_logits_are_transformers(
    golden: Golden, tmp_path: Path, recipe: Recipe, outtype: OuttypeOption
) -> None:
    strict = outtype == "f32"
    model, mmproj = written(plan_conversion(golden(recipe.name), outtype=outtype), tmp_path)
    with open_vlm(model=model, mmproj=mmproj, n_ctx=N_CTX, device="cpu", strict=strict) as vlm:
        for case in cases_of(recipe):
            logits = _logits(vlm, case)
            bound = strict_bound(recipe) if strict else DEFAULT_BOUND
            assert kl_divergence(case, logits).max() <= bound, case.name
            if strict:
                assert logits.argmax(axis=1).tolist() == case.top_ids[:, 0].tolist(), case.name


@each_golden
def test_token_ids_are_those_of_transformers_processor(
    golden: Golden, tmp_path: Path, recipe: Recipe
) -> None:
    model, mmproj = written(plan_conversion(golden(recipe.name)), tmp_path)
    with open_vlm(model=model, mmproj=mmproj, n_ctx=N_CTX, device="cpu") as vlm:
        for case in cases_of(recipe):
            ours = vlm.token_ids(case.prompt, case_images(case))
            assert ours == case.input_ids.tolist(), case.name


@each_golden
def test_the_golden_can_see(recipe: Recipe) -> None:
    assert kld_between(cases_of(recipe), "one image", "another image") >= 1e-2


@pytest.mark.parametrize(
    ("recipe", "mutation"), MUTATIONS, ids=[f"{one.name}: {name}" for one, name in MUTATIONS]
)
def test_leaving_out_one_transform_breaks_the_bound_tenfold(
    golden: Golden, tmp_path: Path, recipe: Recipe, mutation: str
) -> None:
    plan = recipe.mutations[mutation](plan_conversion(golden(recipe.name), outtype="f32"))
    model, mmproj = written(plan, tmp_path)
    with open_vlm(model=model, mmproj=mmproj, n_ctx=N_CTX, device="cpu", strict=True) as vlm:
        worst = 0.0
        for case in cases_of(recipe):
            # A state that grows without end gives logits that are no numbers: seen as well.
            worst = max(worst, float(np.nan_to_num(kld(vlm, case), nan=np.inf).max()))
            if worst > 10 * strict_bound(recipe):
                break
    assert worst > 10 * strict_bound(recipe)
