"""One file per VLM family; this one lists them and finds the one that claims a checkpoint."""

from __future__ import annotations

from edgevlm.errors import ConversionError, UnsupportedArchitectureError
from edgevlm_convert.config import Section
from edgevlm_convert.families.qwen3_vl import FAMILY as QWEN3_VL
from edgevlm_convert.family import Family, TextArchitecture
from edgevlm_convert.json_file import quoted

FAMILIES: tuple[Family, ...] = (QWEN3_VL,)


def find_family(config: Section) -> Family:
    """Return the one family that claims a config.json.

    Raises:
        UnsupportedArchitectureError: none does.
        ConversionError: two do, which is a fault of ours.
    """
    claims = [family for family in FAMILIES if family.matches(config)]
    if not claims:
        names = ", ".join(config.texts("architectures")) or "no architecture"
        known = ", ".join(
            f"{family.name} ({', '.join(family.architectures)})" for family in FAMILIES
        )
        raise UnsupportedArchitectureError(
            f"no family knows the architecture {quoted(names)}",
            hint=f"families: {known}; see `edgevlm families`",
        )
    if len(claims) > 1:
        raise ConversionError(f"families {claims[0].name} and {claims[1].name} both claim it")
    return claims[0]


def find_text_model(family: Family, config: Section) -> TextArchitecture:
    """Return the family's text architecture that `text_config.model_type` names.

    Raises:
        UnsupportedArchitectureError: the family does not go with it.
    """
    model_type = config.section("text_config").text("model_type")
    for text in family.text_models:
        if text.model_type == model_type:
            return text
    known = ", ".join(text.model_type for text in family.text_models)
    raise UnsupportedArchitectureError(
        f"{family.name} with the text model {quoted(model_type)} is not supported",
        hint=f"text models of {family.name}: {known}",
    )
