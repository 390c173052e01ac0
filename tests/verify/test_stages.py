"""Every golden passes every stage; what this runtime cannot help is named and only warned about."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgevlm_convert.plan import OuttypeOption

from edgevlm.verify.embeddings import EMBEDDINGS
from edgevlm.verify.logits import IMAGE_LOGITS, TEXT_LOGITS
from edgevlm.verify.pixels import PIXELS
from edgevlm.verify.self_check import LEDGER, SIGHT, TOKENIZER
from edgevlm.verify.tokens import TOKENS
from tests.goldens.files import golden_cases
from tests.goldens.recipe import Recipe
from tests.goldens.recipes import RECIPES
from tests.verify.converted import Golden, by_name, verified

STAGES = [TOKENIZER, LEDGER, SIGHT, TOKENS, PIXELS, EMBEDDINGS, TEXT_LOGITS, IMAGE_LOGITS]


# In F16 every third: bounds of the type, which tests/convert holds for all of them.
CASES = [
    *((recipe, "f32") for recipe in RECIPES.values()),
    *((recipe, "f16") for recipe in [*RECIPES.values()][::3]),
]


@pytest.mark.parametrize(
    ("recipe", "outtype"), CASES, ids=[f"{recipe.name}-{outtype}" for recipe, outtype in CASES]
)
def test_a_golden_passes_every_stage(
    golden: Golden, tmp_path: Path, recipe: Recipe, outtype: OuttypeOption
) -> None:
    report = verified(golden(recipe.name), tmp_path, reference=recipe.name, outtype=outtype)
    stages = by_name(report)
    assert [stage.name for stage in report.stages] == STAGES
    found = {stage.name: stage.status for stage in report.stages}
    expected = dict.fromkeys(STAGES, "pass") | {LEDGER: "not checked"}
    kept = [image.pixels for case in golden_cases(recipe.name) for image in case.images]
    if found[PIXELS] == "not observable" or not any(kept):
        expected[PIXELS] = "not observable" if any(kept) else "not checked"
    if "num_experts" in recipe.config.get("text_config", {}) and outtype == "f16":
        # A router may choose another expert after rounding: one position, and the report says so.
        for name in (name for name in (TEXT_LOGITS, IMAGE_LOGITS) if found[name] == "warn"):
            assert "single positions alone" in stages[name].cause
            expected[name] = "warn"
    assert found == expected, [stage.summary for stage in report.stages]


def test_bf16_files_are_held_to_wider_bounds(golden: Golden, tmp_path: Path) -> None:
    report = verified(golden("qwen3_vl"), tmp_path, reference="qwen3_vl", outtype="bf16")
    assert report.verdict == "pass"
    error = by_name(report)[EMBEDDINGS].numbers["relative_error"]
    assert isinstance(error, float)
    assert error > 2e-3, "an F32 file would be warned about"
