"""One file per golden; this one lists them."""

from __future__ import annotations

from tests.goldens.recipe import Recipe
from tests.goldens.recipes import (
    cosmos3_omni,
    gemma3,
    gemma3_variants,
    glm4v,
    glm_ocr,
    granite4_vision,
    idefics3,
    internvl,
    janus,
    lfm2_vl,
    llava,
    llava_next,
    llava_onevision,
    minicpmv4_6,
    mistral3,
    paddleocr_vl,
    pixtral,
    qianfan_ocr,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_5_moe,
    qwen3_vl_moe,
    smolvlm,
)
from tests.goldens.recipes.qwen3_vl import RECIPE as QWEN3_VL

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        QWEN3_VL,
        cosmos3_omni.RECIPE,
        qwen3_vl_moe.RECIPE,
        qwen3_5.RECIPE,
        qwen3_5.SMALL,
        qwen3_5_moe.RECIPE,
        qwen2_vl.RECIPE,
        qwen2_vl.EPSILON,
        qwen2_vl.LINEAR,
        qwen2_vl.YARN,
        qwen2_5_vl.RECIPE,
        qwen2_5_vl.YARN,
        gemma3.RECIPE,
        gemma3_variants.UNTIED,
        gemma3_variants.DEEP,
        smolvlm.RECIPE,
        idefics3.RECIPE,
        *llava.RECIPES,
        *llava_next.RECIPES,
        llava_onevision.RECIPE,
        pixtral.RECIPE,
        mistral3.RECIPE,
        internvl.RECIPE,
        qianfan_ocr.RECIPE,
        granite4_vision.RECIPE,
        lfm2_vl.RECIPE,
        janus.JANUS,
        janus.DEEPSEEK_VL,
        minicpmv4_6.RECIPE,
        minicpmv4_6.OCR,
        glm_ocr.RECIPE,
        paddleocr_vl.RECIPE,
        glm4v.RECIPE,
        glm4v.GLM46V,
        glm4v.MOE,
    )
}
