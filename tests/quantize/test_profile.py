from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from edgevlm.errors import ProfileError
from edgevlm.ggml_types import FILE_TYPES, TENSOR_TYPES
from edgevlm.quantize.profile import Budget, ProjectorProfile, Rule
from edgevlm.quantize.profile_file import load_profile, profile_names, with_tensor_types

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


OWN = ("balanced", "quality", "small", "pi")


def test_our_own_profiles_have_budgets_and_fall_back_once() -> None:
    for name in OWN:
        profile = load_profile(name)
        budget = profile.budget
        assert None not in (budget.mean_kld, budget.p99_kld, budget.same_top_token)
        assert profile.expected == ()
        # No way out of a 256-block type may be another one.
        fallbacks = {*profile.fallback.values(), *(rule.fallback for rule in profile.rules)}
        assert all(TENSOR_TYPES[type_].block_size == 32 for type_ in fallbacks if type_)


EXTENDING = """
name = "mine"
description = "More where it matters."
extends = "Q4_K_M"
rules = [{ tensor = "blk\\\\.0\\\\.ffn_down", type = "Q8_0" }]
[fallback]
Q6_K = "Q5_1"
[mmproj]
rules = [{ role = "ffn_down", type = "BF16" }]
[budget]
mean_kld = 0.5
"""


def test_a_profile_that_extends_puts_its_rules_first(tmp_path: Path) -> None:
    path, base = tmp_path / "mine.toml", load_profile("Q4_K_M")
    path.write_text(EXTENDING)
    profile = load_profile(str(path))
    assert (profile.name, profile.type, profile.file_type) == ("mine", base.type, base.file_type)
    assert profile.rules == (Rule(tensor=r"blk\.0\.ffn_down", type="Q8_0"), *base.rules)
    assert dict(profile.fallback) == {**base.fallback, "Q6_K": "Q5_1"}
    assert profile.mmproj.type == base.mmproj.type
    assert profile.mmproj.rules[0] == Rule(role="ffn_down", type="BF16")
    assert profile.budget.mean_kld == 0.5
    # What the user wrote must decide something; what was inherited need not.
    assert profile.expected == (profile.rules[0], profile.mmproj.rules[0])


def test_a_file_beside_it_can_be_extended_and_circles_end(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(EXTENDING)
    second.write_text('name = "b"\ndescription = "B."\nextends = "a.toml"\ntype = "Q5_K"\n')
    assert load_profile(str(second)).type == "Q5_K"
    assert load_profile(str(second)).expected == ()
    first.write_text('name = "a"\ndescription = "A."\nextends = "b.toml"\n')
    with pytest.raises(ProfileError, match=r"`extends` goes on after 8 files"):
        load_profile(str(second))
    second.write_text('name = "b"\ndescription = "B."\nextends = "nothing"\n')
    with pytest.raises(ProfileError, match=r"`extends` is `nothing`, which is not there"):
        load_profile(str(second))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ffn_down", "is not REGEX=TYPE"),
        ("=Q6_K", "is not REGEX=TYPE"),
        ("ffn_down=Q9", "`Q9` is no tensor type"),
        ("ffn_(=Q6_K", "the expression is broken"),
        ("a" * 2000 + "=Q6_K", "has 2000 characters"),
    ],
)
def test_a_broken_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        with_tensor_types(load_profile("Q4_K_M"), [override])


def test_overrides_go_first_and_change_the_name() -> None:
    profile = load_profile("Q4_K_M")
    changed = with_tensor_types(profile, ["attn_q=q8_0", "a=b=F16"])
    added = (Rule(tensor="attn_q", type="Q8_0"), Rule(tensor="a=b", type="F16"))
    assert changed.rules == (*added, *profile.rules)
    assert (changed.name, changed.expected) == ("Q4_K_M-custom", added)
    assert with_tensor_types(profile, []) is profile


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
    "broken expression": ('role = "attn_v"', 'tensor = "("', r"`rules\[0\].tensor` is broken"),
    "rule for nothing": ('role = "experts", ', "", r"`rules\[1\].role` is missing"),
    "unknown own fallback": ("experts = 8", 'fallback = "Q9"', r"`rules\[1\].fallback` is `Q9`"),
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
