"""One file per VLM family; this one lists them and finds the one that claims a checkpoint."""

from __future__ import annotations

from edgevlm.errors import ConversionError, UnsupportedArchitectureError
from edgevlm_convert.config import Section
from edgevlm_convert.families.cosmos3_omni import FAMILY as COSMOS3_OMNI
from edgevlm_convert.families.deepseek_ocr import FAMILY as DEEPSEEK_OCR
from edgevlm_convert.families.deepseek_ocr2 import FAMILY as DEEPSEEK_OCR2
from edgevlm_convert.families.deepseek_vl import FAMILY as DEEPSEEK_VL
from edgevlm_convert.families.gemma3 import FAMILY as GEMMA3
from edgevlm_convert.families.gemma3n import FAMILY as GEMMA3N
from edgevlm_convert.families.gemma4 import FAMILY as GEMMA4
from edgevlm_convert.families.gemma4_unified import FAMILY as GEMMA4_UNIFIED
from edgevlm_convert.families.glm4v import FAMILY as GLM4V
from edgevlm_convert.families.glm_ocr import FAMILY as GLM_OCR
from edgevlm_convert.families.granite4_vision import FAMILY as GRANITE4_VISION
from edgevlm_convert.families.hunyuan_vl import FAMILY as HUNYUAN_VL
from edgevlm_convert.families.idefics3 import FAMILY as IDEFICS3
from edgevlm_convert.families.internvl import FAMILY as INTERNVL
from edgevlm_convert.families.janus import FAMILY as JANUS
from edgevlm_convert.families.lfm2_vl import FAMILY as LFM2_VL
from edgevlm_convert.families.lighton_ocr import FAMILY as LIGHTON_OCR
from edgevlm_convert.families.llava import FAMILY as LLAVA
from edgevlm_convert.families.llava_next import FAMILY as LLAVA_NEXT
from edgevlm_convert.families.llava_onevision import FAMILY as LLAVA_ONEVISION
from edgevlm_convert.families.minicpmv4_6 import FAMILY as MINICPMV4_6
from edgevlm_convert.families.minicpmv4_7 import FAMILY as MINICPMV4_7
from edgevlm_convert.families.mistral3 import FAMILY as MISTRAL3
from edgevlm_convert.families.paddleocr_vl import FAMILY as PADDLEOCR_VL
from edgevlm_convert.families.pixtral import FAMILY as PIXTRAL
from edgevlm_convert.families.qianfan_ocr import FAMILY as QIANFAN_OCR
from edgevlm_convert.families.qwen2_5_omni import FAMILY as QWEN2_5_OMNI
from edgevlm_convert.families.qwen2_5_vl import FAMILY as QWEN2_5_VL
from edgevlm_convert.families.qwen2_vl import FAMILY as QWEN2_VL
from edgevlm_convert.families.qwen3_5 import FAMILY as QWEN3_5
from edgevlm_convert.families.qwen3_5_moe import FAMILY as QWEN3_5_MOE
from edgevlm_convert.families.qwen3_omni_moe import FAMILY as QWEN3_OMNI_MOE
from edgevlm_convert.families.qwen3_vl import FAMILY as QWEN3_VL
from edgevlm_convert.families.qwen3_vl_moe import FAMILY as QWEN3_VL_MOE
from edgevlm_convert.families.qwen4_exp import FAMILY as QWEN4_EXP
from edgevlm_convert.families.video_llava import FAMILY as VIDEO_LLAVA
from edgevlm_convert.family import Family, TextArchitecture
from edgevlm_convert.json_file import quoted

FAMILIES: tuple[Family, ...] = (
    QWEN3_VL,
    QWEN3_VL_MOE,
    QWEN3_OMNI_MOE,
    COSMOS3_OMNI,
    QWEN3_5,
    QWEN3_5_MOE,
    QWEN4_EXP,
    QWEN2_5_VL,
    QWEN2_5_OMNI,
    QWEN2_VL,
    GEMMA3,
    GEMMA3N,
    GEMMA4,
    GEMMA4_UNIFIED,
    IDEFICS3,
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    VIDEO_LLAVA,
    PIXTRAL,
    MISTRAL3,
    INTERNVL,
    GRANITE4_VISION,
    LFM2_VL,
    MINICPMV4_6,
    MINICPMV4_7,
    QIANFAN_OCR,
    JANUS,
    DEEPSEEK_VL,
    DEEPSEEK_OCR,
    DEEPSEEK_OCR2,
    GLM4V,
    GLM_OCR,
    PADDLEOCR_VL,
    HUNYUAN_VL,
    LIGHTON_OCR,
)


def find_family(config: Section) -> Family:
    """Return the one family that claims a config.json.

    Raises:
        UnsupportedArchitectureError: none does.
        ConversionError: two do, which is a fault of ours.
    """
    claims = [family for family in FAMILIES if family.matches(config)]
    if not claims:
        _refuse_tower(config)
        names = ", ".join(config.texts("architectures")) or "no architecture"
        known = ", ".join(family.name for family in FAMILIES)
        raise UnsupportedArchitectureError(
            f"no family knows the architecture {quoted(names)}",
            hint=f"families: {known}; `edgevlm families` lists their classes",
        )
    if len(claims) > 1:
        raise ConversionError(f"families {claims[0].name} and {claims[1].name} both claim it")
    return claims[0]


def _refuse_tower(config: Section) -> None:
    """Say that it is the vision tower, where a family knows the architecture's name.

    Raises:
        UnsupportedArchitectureError: it is.
    """
    names = set(config.texts("architectures"))
    known = [family for family in FAMILIES if names & set(family.architectures)]
    if not known:
        return
    tower = config.section("vision_config").text("model_type", default="")
    towers = ", ".join(name for family in known for name in family.vision_models)
    raise UnsupportedArchitectureError(
        f"{known[0].name} with the vision tower {quoted(tower)} is not supported yet",
        hint=f"vision towers of {known[0].name}: {towers}",
    )


def find_text_model(family: Family, config: Section) -> tuple[TextArchitecture, Section]:
    """Return the family's text architecture and its section of config.json, with defaults.

    Published configurations of transformers 4 may have no `text_config`: their keys stand at the
    root, where `model_type` is the family's own.

    Raises:
        UnsupportedArchitectureError: the family does not go with it.
    """
    nested = config.has("text_config")
    section = config.section("text_config") if nested else config
    model_type = section.text("model_type", default="") if nested else ""
    for text in family.text_models:
        if not model_type or model_type in text.model_types:
            return text, section.with_defaults(text.defaults)
    known = ", ".join(name for text in family.text_models for name in text.model_types)
    reason = family.refused_texts.get(model_type, "")
    raise UnsupportedArchitectureError(
        f"{family.name} with the text model {quoted(model_type)} is not supported"
        + (f": {reason}" if reason else ""),
        hint=f"text models of {family.name}: {known}",
    )
