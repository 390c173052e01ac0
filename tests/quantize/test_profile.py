from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from edgevlm.errors import ProfileError
from edgevlm.ggml_types import FILE_TYPES, TENSOR_TYPES
from edgevlm.quantize.profile import Budget, ProjectorProfile, Rule
from edgevlm.quantize.profile_file import load_profile, profile_names

FIELD_LEVELS = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S"),
    *("Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "Q2_K"),
    "IQ2_M",
)
VALID = """
name = "mine"
description = "For a test."
file_type = "Q4_K_M"
type = "Q4_0"
rules = [
    { role = "attn_v", layers = "first_2", type = "Q6_K", gqa_min = 4, imatrix = "with" },
    { role = "experts", experts = 8, type = "Q5_K" },
]
[fallback]
Q6_K = "Q8_0"
[mmproj]
type = "BF16"
rules = [{ role = "ffn_down", layers = "more", type = "Q8_0" }]
[budget]
mean_kld = 0.02
same_top_token = 0.97
"""


def test_the_levels_that_come_along_are_ordered_by_bits() -> None:
    names = profile_names()
    assert set(names) >= {*FIELD_LEVELS}
    assert names.index("IQ2_M") < names.index("Q4_K_S") < names.index("Q4_K_M")
    assert names.index("Q4_K_M") < names.index("Q5_K_M") < names.index("Q8_0") < names.index("F32")


def test_every_level_is_complete() -> None:
    for name in profile_names():
        profile = load_profile(name)
        assert profile.name == name
        assert profile.file_type in FILE_TYPES.values()
        assert profile.description.endswith(".")
        # Whatever a rule asks for has a way out for rows that do not divide.
        wanted = {profile.type, *(rule.type for rule in profile.rules)}
        of_256 = {type_ for type_ in wanted if TENSOR_TYPES[type_].block_size == 256}
        assert of_256 <= set(profile.fallback)


def test_a_level_is_known_in_any_case() -> None:
    assert load_profile("q4_k_m") == load_profile("Q4_K_M")


def test_a_users_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(VALID)
    profile = load_profile(str(path))

    assert (profile.name, profile.type) == ("mine", "Q4_0")
    assert profile.rules == (
        Rule(role="attn_v", layers="first_2", type="Q6_K", gqa_min=4, imatrix="with"),
        Rule(role="experts", experts=8, type="Q5_K"),
    )
    assert dict(profile.fallback) == {"Q6_K": "Q8_0"}
    assert profile.mmproj == ProjectorProfile(
        type="BF16", rules=(Rule(role="ffn_down", layers="more", type="Q8_0"),)
    )
    assert profile.budget == Budget(mean_kld=0.02, same_top_token=0.97)
    with pytest.raises(FrozenInstanceError):
        profile.name = "other"  # type: ignore[misc]


BROKEN = {
    "unknown key": ('name = "mine"', 'name = "mine"\ncolour = "red"', "`colour` is an unknown key"),
    "unknown rule key": ("gqa_min = 4", "gqa_max = 4", r"`rules\[0\].gqa_max` is an unknown key"),
    "unknown mmproj key": ('type = "BF16"', 'type = "BF16"\nx = 1', r"`mmproj\.x` is an unknown"),
    "unknown budget key": ("mean_kld", "mean_kdl", r"`budget\.mean_kdl` is an unknown key"),
    "unknown type": ('type = "Q4_0"', 'type = "Q4_9"', "`type` is `Q4_9`"),
    "type of activations": ('type = "Q4_0"', 'type = "Q8_K"', "`type` is `Q8_K`"),
    "unknown rule type": ('type = "Q6_K", gqa', 'type = "Q6", gqa', r"`rules\[0\].type` is `Q6`"),
    "unknown role": ('role = "attn_v"', 'role = "attn_w"', r"`rules\[0\].role` is `attn_w`"),
    "unknown layers": ('"first_2"', '"last_2"', r"`rules\[0\].layers` is `last_2`"),
    "unknown imatrix": ('"with"', '"maybe"', r"`rules\[0\].imatrix` is `maybe`"),
    "unknown fallback": ("Q6_K =", "Q6_9 =", r"`fallback\.Q6_9` is an unknown tensor type"),
    "unknown fallback type": ('"Q8_0"\n[mm', '"Q9"\n[mm', r"`fallback\.Q6_K` is `Q9`"),
    "unknown file type": ('file_type = "Q4_K_M"', 'file_type = "X"', "`file_type` is `X`"),
    "missing name": ('name = "mine"', "", "`name` is missing"),
    "name for a path": ('name = "mine"', 'name = "../x"', "`name` is `../x`"),
    "gqa text": ("gqa_min = 4", 'gqa_min = "4"', r"`rules\[0\].gqa_min` is '4'"),
    "experts 0": ("experts = 8", "experts = 0", r"`rules\[1\].experts` is 0"),
    "negative budget": ("mean_kld = 0.02", "mean_kld = -1", r"`budget\.mean_kld` is -1"),
    "share above 1": ("0.97", "97", r"`budget\.same_top_token` is 97"),
    "rules no list": ("rules = [\n", "fallback2 = 1\nrules2 = [\n", "is an unknown key"),
    "rule no table": ('[{ role = "ffn_down", layers = "more", type = "Q8_0" }]', "[1]", "a table"),
    "type no string": ('type = "Q4_0"', "type = 4", "`type` is not a string"),
    "syntax": ("[fallback]", "[fallback", "is not TOML"),
}


@pytest.mark.parametrize(("old", "new", "message"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in VALID
    path = tmp_path / "mine.toml"
    path.write_text(VALID.replace(old, new, 1))
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(str(path))
    assert "mine.toml" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("level", "message", "hint"),
    [
        ("Q4_K_N", "no level `Q4_K_N`", "did you mean Q4_K_"),
        ("nonsense", "no level", "known levels: IQ2_M, "),
        ("missing.toml", "no profile `missing.toml`", "path"),
    ],
)
def test_an_unknown_level_is_an_error_that_helps(level: str, message: str, hint: str) -> None:
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(level)
    assert hint in caught.value.hint


def test_bytes_that_are_not_text_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="is not TOML"):
        load_profile(str(path))
