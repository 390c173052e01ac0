from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import pytest
from edgevlm_convert.encoder import TensorInfo

from edgevlm.errors import QuantizationError
from edgevlm.quantize.plan import plan_text as plan_text_types
from edgevlm.quantize.profile import Budget, ProjectorProfile, QuantProfile, Rule
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.projector_plan import plan_projector as plan_projector_types
from edgevlm.quantize.tensors import uses_more_bits


@dataclass(frozen=True)
class _Value:
    value: object


def plan_text(
    profile: QuantProfile,
    tensors: list[TensorInfo],
    metadata: dict[str, object],
    *,
    has_imatrix: bool = False,
) -> dict[str, str]:
    return dict(plan_text_types(profile, tensors, metadata, has_imatrix=has_imatrix).types)


def plan_projector(
    type: str,
    tensors: list[TensorInfo],
    metadata: dict[str, object],
    *,
    profile: QuantProfile | None = None,
) -> dict[str, str]:
    return dict(plan_projector_types(type, tensors, metadata, profile=profile).types)


def _metadata(**values: object) -> dict[str, object]:
    named: dict[str, object] = {
        "block_count": 16,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        **values,
    }
    typed = {f"toy.{key}": _Value(value) for key, value in named.items()}
    return {"general.architecture": _Value("toy"), **typed}


def _tensor(name: str, shape: tuple[int, ...] = (4, 256), type: str = "F16") -> TensorInfo:
    return TensorInfo(name=name, shape=shape, type=type)


def _profile(
    *rules: Rule, type: str = "Q4_0", mmproj: ProjectorProfile | None = None
) -> QuantProfile:
    return QuantProfile(
        name="test",
        description="Test.",
        file_type="Q4_0",
        type=type,
        rules=rules,
        fallback=MappingProxyType({"Q6_K": "Q8_0"}),
        mmproj=mmproj or ProjectorProfile(),
        budget=Budget(),
    )


def test_more_bits_go_to_both_ends_and_every_third_between() -> None:
    # 32 layers: 0-3 and 28-31 at the ends; 6, 9, ... 27 between.
    expected = {*range(4), *range(6, 28, 3), *range(28, 32)}
    assert {layer for layer in range(32) if uses_more_bits(layer, 32)} == expected


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", set(range(16))),
        ("first_8th", {0, 1}),
        ("first_16th", {0}),
        ("first_3", {0, 1, 2}),
    ],
)
def test_layers_of_a_rule(layers: str, expected: set[int]) -> None:
    tensors = [_tensor(f"blk.{i}.attn_q.weight") for i in range(16)]
    types = plan_text(
        _profile(Rule(role="attn_q", layers=layers, type="Q6_K")), tensors, _metadata()
    )
    assert {i for i in range(16) if types[f"blk.{i}.attn_q.weight"] == "Q6_K"} == expected


def test_the_first_rule_that_matches_wins() -> None:
    profile = _profile(
        Rule(role="attn_q", layers="first_1", type="Q6_K"), Rule(role="attn_q", type="Q5_K")
    )
    tensors = [_tensor("blk.0.attn_q.weight"), _tensor("blk.1.attn_q.weight")]
    assert list(plan_text(profile, tensors, _metadata()).values()) == ["Q6_K", "Q5_K"]


@pytest.mark.parametrize(
    ("rule", "metadata", "has_imatrix", "matches"),
    [
        (Rule(role="attn_v", type="Q6_K", gqa_min=4), _metadata(), False, True),
        (Rule(role="attn_v", type="Q6_K", gqa_min=5), _metadata(), False, False),
        (
            Rule(role="attn_v", type="Q6_K", gqa_min=4),
            _metadata(**{"attention.head_count_kv": [2, 8]}),
            False,
            True,
        ),
        (Rule(role="attn_v", type="Q6_K", experts=8), _metadata(expert_count=8), False, True),
        (Rule(role="attn_v", type="Q6_K", experts=8), _metadata(), False, False),
        (Rule(role="attn_v", type="Q6_K", imatrix="with"), _metadata(), False, False),
        (Rule(role="attn_v", type="Q6_K", imatrix="with"), _metadata(), True, True),
        (Rule(role="attn_v", type="Q6_K", imatrix="without"), _metadata(), True, False),
    ],
)
def test_conditions_of_a_rule(
    rule: Rule, metadata: dict[str, object], has_imatrix: bool, matches: bool
) -> None:
    types = plan_text(
        _profile(rule), [_tensor("blk.0.attn_v.weight")], metadata, has_imatrix=has_imatrix
    )
    assert types["blk.0.attn_v.weight"] == ("Q6_K" if matches else "Q4_0")


def test_a_tied_embedding_is_the_output() -> None:
    profile = _profile(Rule(role="output", type="Q6_K"), Rule(role="token_embd", type="Q5_K"))
    tied = plan_text(profile, [_tensor("token_embd.weight")], _metadata())
    untied = plan_text(
        profile, [_tensor("token_embd.weight"), _tensor("output.weight")], _metadata()
    )
    assert tied == {"token_embd.weight": "Q6_K"}
    assert untied == {"token_embd.weight": "Q5_K", "output.weight": "Q6_K"}


def test_rows_that_do_not_divide_fall_back_once_then_to_f16() -> None:
    profile = _profile(type="Q6_K")
    for columns, expected in ((256, "Q6_K"), (96, "Q8_0"), (100, "F16")):
        types = plan_text(profile, [_tensor("blk.0.x.weight", (4, columns), "BF16")], _metadata())
        assert types["blk.0.x.weight"] == expected


def test_what_is_no_matrix_of_weights_stays() -> None:
    kept = [
        _tensor("output_norm.weight", (256,), "F32"),
        _tensor("blk.0.attn_q.bias"),
        _tensor("blk.0.attn_q_norm.weight", (4, 256), "F32"),
        _tensor("blk.0.ffn_gate_inp.weight", (8, 256), "F32"),
        _tensor("blk.0.one_row.weight", (1, 256), "BF16"),
        _tensor("blk.0.shortconv.conv.weight", (4, 256), "F32"),
        _tensor("position_embd.weight", (4, 256), "F32"),
        _tensor("blk.0.routing.weight", (4, 256), "I32"),
    ]
    types = plan_text(_profile(), kept, _metadata())
    assert types == {tensor.name: tensor.type for tensor in kept}


def test_a_model_without_layer_count_is_an_error() -> None:
    with pytest.raises(QuantizationError, match=r"toy\.block_count"):
        plan_text(_profile(), [], {"general.architecture": _Value("toy")})


def test_projector_rules_count_real_layers() -> None:
    profile = _profile(
        mmproj=ProjectorProfile(
            type="Q8_0", rules=(Rule(role="ffn_down", layers="first_8th", type="BF16"),)
        )
    )
    tensors = [_tensor(f"v.blk.{i}.ffn_down.weight") for i in range(12)]
    metadata: dict[str, object] = {"clip.vision.block_count": _Value(12)}
    types = plan_projector("Q8_0", tensors, metadata, profile=profile)
    assert types.pop("v.blk.0.ffn_down.weight") == "BF16"
    assert set(types.values()) == {"Q8_0"}
    # A level asked for by name is not bent by the rules of another.
    asked = plan_projector("F16", tensors, metadata, profile=profile)
    assert set(asked.values()) == {"F16"}


def test_the_experts_role_names_their_tensors_only() -> None:
    profile = _profile(Rule(role="experts", type="Q6_K"))
    names = ("blk.0.ffn_up_exps.weight", "blk.0.ffn_up_shexp.weight")
    types = plan_text(profile, [_tensor(name) for name in names], _metadata(expert_count=4))
    assert list(types.values()) == ["Q6_K", "Q4_0"]


def test_q4_k_m_spends_more_on_the_layers_it_should() -> None:
    tensors = [_tensor(f"blk.{i}.ffn_down.weight") for i in range(16)]
    types = plan_text(load_profile("Q4_K_M"), tensors, _metadata())
    assert {i for i in range(16) if types[f"blk.{i}.ffn_down.weight"] == "Q6_K"} == {
        i for i in range(16) if uses_more_bits(i, 16)
    }


@pytest.mark.parametrize("level", ["Q8_0", "BF16", "F16"])
def test_what_the_graph_of_gemma_3_transposes_stays(level: str) -> None:
    tensors = [_tensor("mm.input_projection.weight"), _tensor("v.blk.0.ffn_up.weight")]
    types = plan_projector(level, tensors, {})
    assert list(types.values()) == ["F16", level]
