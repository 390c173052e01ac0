"""A projector's levels: what they may touch, what they are called, and that all graphs run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.writer import write_gguf

from edgevlm.build.convert import convert_model
from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.build.resolve import resolve_model
from edgevlm.errors import ProfileError, QuantizationError
from edgevlm.gguf_file import read_gguf
from edgevlm.model_dir import open_model_dir
from edgevlm.quantize.encode import mmproj_encoder
from edgevlm.quantize.profile import MMPROJ_LEVELS, ProjectorProfile, Rule
from edgevlm.quantize.profile_file import load_profile, profile_names
from edgevlm.quantize.projector_plan import plan_projector
from tests.goldens.recipes import RECIPES
from tests.quantize.projectors import cosines, embeddings
from tests.quantize.quantizing import quantize_file
from tests.quantize.wide_towers import redraw_wide

# `general.file_type` of each, where it has another name.
FILE_TYPES = {"Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}
# Never of blocks, whatever a level or a rule says: their graphs do more than multiply with them.
KEPT: dict[str, tuple[int, ...]] = {
    "v.patch_embd.weight": (256, 3, 16, 16),
    "v.patch_embd.weight.1": (256, 3, 16, 16),
    "v.position_embd.weight": (64, 256),
    "v.norm_embd.weight": (256, 256),
    "v.class_embd": (1, 1, 256),
    "v.image_newline": (1, 256),
    "v.token_embd.img_break": (256,),
    "v.blk.0.ln1.weight": (256,),
    "v.blk.0.attn_q_norm.weight": (4, 256),
    "v.blk.0.attn_q.bias": (256,),
    "v.blk.0.ffn_gate_exps.weight": (4, 256, 256),
    "v.proj_blk.0.query": (1, 4, 256),
    "v.proj_blk.0.img_pos": (1, 16, 256),
    "v.resample_query_768.weight": (4, 256),
    "v.sam.blk.0.attn.pos_h.weight": (27, 256),
    "mm.patch_merger.weight": (256, 256),
    "mm.model.mb_block.1.block.0.0.weight": (256, 1, 3, 3),
    "mm.input_projection.weight": (256, 256),
    "resampler.pos_embed_k": (64, 256),
    "resampler.query": (64, 256),
    "a.blk.0.attn_q.weight": (256, 256),
    "mm.a.fc.weight": (256, 256),
}
MATRICES = {
    "v.blk.0.attn_q.weight": "attn_q",
    "v.blk.0.attn_k.weight": "attn_k",
    "v.blk.0.attn_v.weight": "attn_v",
    "v.blk.0.attn_qkv.weight": "attn_qkv",
    "v.blk.0.attn_out.weight": "attn_output",
    "v.blk.0.ffn_up.weight": "ffn_up",
    "v.blk.0.ffn_gate.weight": "ffn_gate",
    "v.blk.0.ffn_down.weight": "ffn_down",
    "v.vit_merger.ds_ffn_down.weight": "ffn_down",
    "v.deepstack.3.fc1.weight": "projector",
    "v.proj_blk.0.self_attn_q.weight": "projector",
    "mm.0.weight": "projector",
    "mm.model.fc.weight": "projector",
    "mm.up.weight": "projector",
    "resampler.kv.weight": "projector",
}
Golden = Callable[[str], Path]


@dataclass(frozen=True)
class _Value:
    value: object


def _info(name: str, shape: tuple[int, ...] = (256, 256), type: str = "F16") -> TensorInfo:
    return TensorInfo(name=name, shape=shape, type=type)


@pytest.mark.parametrize("level", MMPROJ_LEVELS)
def test_matrices_get_the_level_and_nothing_else_does(level: str) -> None:
    tensors = [_info(name) for name in MATRICES]
    tensors += [_info(name, shape) for name, shape in KEPT.items()]
    encoder = mmproj_encoder(level.lower())
    types, keys = encoder.plan(tensors, {})
    assert encoder.level == level
    assert types == {**dict.fromkeys(MATRICES, level), **dict.fromkeys(KEPT, "F16")}
    assert set(keys) == {"general.quantization_version", "general.file_type"}


def test_a_rule_cannot_touch_them_either() -> None:
    profile = load_profile("Q8_0")
    mmproj = ProjectorProfile(rules=(Rule(tensor=".", type="Q4_K"),))
    tensors = [_info(name, shape) for name, shape in KEPT.items()]
    plan = plan_projector("Q8_0", tensors, {}, profile=replace(profile, mmproj=mmproj))
    assert set(plan.types.values()) == {"F16"}
    assert not plan.used


@pytest.mark.parametrize(("name", "role"), MATRICES.items())
def test_roles_of_a_tower(name: str, role: str) -> None:
    rule = Rule(role=role, type="Q4_1")
    profile = replace(load_profile("Q8_0"), mmproj=ProjectorProfile(rules=(rule,)))
    plan = plan_projector("Q8_0", [_info(name)], {}, profile=profile)
    assert plan.types == {name: "Q4_1"}
    assert plan.used == {rule}


def test_only_the_graph_of_gemma_3_transposes_its_projection() -> None:
    tensors = [_info("mm.input_projection.weight")]
    for kind, type_ in (("gemma3", "F16"), ("gemma4v", "Q5_K")):
        metadata: dict[str, object] = {"clip.projector_type": _Value(kind)}
        assert set(plan_projector("Q5_K", tensors, metadata).types.values()) == {type_}


@pytest.mark.parametrize(
    ("level", "columns", "expected"),
    [
        ("Q6_K", 1152, "Q8_0"),
        ("Q5_K", 1152, "Q5_1"),
        ("Q4_K", 1152, "Q5_0"),
        ("Q4_0", 1152, "Q4_0"),
        ("IQ4_NL", 1152, "IQ4_NL"),
        ("Q4_K", 1168, "F16"),
        ("Q8_0", 1168, "F16"),
    ],
)
def test_rows_that_do_not_divide_fall_back(level: str, columns: int, expected: str) -> None:
    types = plan_projector(level, [_info("mm.0.weight", (8, columns))], {}).types
    assert set(types.values()) == {expected}


def test_a_rules_own_fallback_comes_first() -> None:
    rule = Rule(role="projector", type="Q4_K", fallback="Q4_1")
    profile = replace(load_profile("Q8_0"), mmproj=ProjectorProfile(rules=(rule,)))
    tensors = [_info("mm.0.weight", (8, 1152))]
    assert plan_projector("Q8_0", tensors, {}, profile=profile).types["mm.0.weight"] == "Q4_1"


@pytest.mark.parametrize(("level", "near"), [("Q4_K_M", "Q4_K"), ("q8", "Q8_0"), ("F17", "F16")])
def test_an_unknown_level_is_an_error_that_offers_the_nearest(level: str, near: str) -> None:
    with pytest.raises(QuantizationError, match=f"`{level}`") as caught:
        mmproj_encoder(level)
    assert f"did you mean {near}?" in caught.value.hint


def _profile(tmp_path: Path, mmproj: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(f'name = "mine"\ndescription = "T."\nextends = "Q4_0"\n[mmproj]\n{mmproj}\n')
    return path


@pytest.mark.parametrize(
    ("mmproj", "key"),
    [
        ('type = "Q3_K"', "mmproj.type"),
        ('rules = [{ role = "token_embd", type = "F16" }]', r"mmproj\.rules\[0\]\.role"),
        ('rules = [{ role = "mm", type = "F16" }]', r"mmproj\.rules\[0\]\.role"),
        ('rules = [{ role = "projector", type = "Q9" }]', r"mmproj\.rules\[0\]\.type"),
    ],
)
def test_a_wrong_key_of_a_profile_is_named(tmp_path: Path, mmproj: str, key: str) -> None:
    with pytest.raises(ProfileError, match=key):
        load_profile(str(_profile(tmp_path, mmproj)))


def test_the_role_of_a_projector_is_none_of_a_text_model(tmp_path: Path) -> None:
    path = _profile(tmp_path, "")
    rule = '\nrules = [{ role = "projector", type = "F16" }]\n[mmproj]'
    path.write_text(path.read_text().replace("\n[mmproj]", rule))
    with pytest.raises(ProfileError, match=r"rules\[0\]\.role"):
        load_profile(str(path))


def test_files_are_called_by_the_profile_only_where_it_has_a_say(tmp_path: Path) -> None:
    for name in profile_names():
        profile = load_profile(name)
        if not profile.mmproj.rules:
            assert mmproj_encoder(profile.mmproj.type, profile=profile).level == profile.mmproj.type
    rules = 'type = "Q6_K"\nrules = [{ role = "projector", type = "F16" }]'
    profile = load_profile(str(_profile(tmp_path, rules)))
    assert mmproj_encoder("q6_k", profile=profile).level == "mine"
    # Another level is what its name says.
    assert mmproj_encoder("Q5_K", profile=profile).level == "Q5_K"


def _goldens() -> list[str]:
    """Return the goldens of other graphs: variants of text models are left out."""
    variants = {name for name in RECIPES for other in RECIPES if name.startswith(f"{other}_")}
    llava = [name for name in RECIPES if name.startswith("llava_")]
    # Of kernels, which no level touches: tests/runtime/test_gemma3n.py.
    return [name for name in RECIPES if name not in variants | {*llava[1:], "gemma3n"}]


@pytest.mark.parametrize("name", _goldens())
def test_every_graph_computes_with_blocks(tmp_path: Path, name: str) -> None:
    conversion = plan_conversion(redraw_wide(name, tmp_path / "checkpoint"), outtype="f16")
    text, source, target = (tmp_path / f"{part}.gguf" for part in ("text", "source", "target"))
    write_gguf(conversion.text, text)
    write_gguf(conversion.mmproj, source)
    image = next(name for _, _, images in RECIPES[name].prompts for name in images)
    exact = embeddings(text, source, image)
    for level, least in (("Q8_0", 0.98), ("Q4_K", 0.8)):
        quantize_file(source, target, mmproj_encoder(level))
        types = read_gguf(target).type_histogram()
        assert types[level].n_tensors >= 6
        assert cosines(embeddings(text, target, image), exact).min() > least


@pytest.mark.parametrize("level", MMPROJ_LEVELS)
def test_shapes_sees_at_every_level(
    tmp_path: Path, shapes_checkpoint: Path, shapes_dir: Path, level: str
) -> None:
    folder = tmp_path / "shapes"
    built = convert_model(
        shapes_checkpoint, out=folder, name="shapes", level="Q4_0", mmproj_level=level.lower()
    )
    assert {entry.name for entry in built.written} == {
        "shapes-Q4_0.gguf",
        f"mmproj-shapes-{level}.gguf",
    }
    entry = next(entry for entry in built.written if entry.role == "mmproj")
    assert (entry.level, entry.profile) == (level, None)
    path = folder / entry.name
    assert read_gguf(path).file_type == FILE_TYPES.get(level, level)
    text = shapes_dir / "shapes-F16.gguf"
    exact = embeddings(text, shapes_dir / "mmproj-shapes-F16.gguf", "128x128-1")
    found = embeddings(text, path, "128x128-1")
    assert np.isfinite(found).all()
    assert cosines(found, exact).min() > (0.8 if "4" in level else 0.97)
    assert resolve_model(str(folder)).mmproj == path


def test_a_text_model_is_opened_with_the_projector_it_was_made_with(
    tmp_path: Path, shapes_checkpoint: Path
) -> None:
    folder = tmp_path / "shapes"
    convert_model(shapes_checkpoint, out=folder, name="shapes", outtype="f16")
    levels = {"Q8_0": None, "Q4_0": "Q5_K", "Q4_K_M": "Q4_K", "Q5_0": "F16", "Q6_K": "q5_k"}
    for level, mmproj_level in levels.items():
        plan = plan_quantization(open_model_dir(folder), level=level, mmproj_level=mmproj_level)
        quantize_model(plan)
    for level, mmproj_level in {**levels, "F16": "F16"}.items():
        found = resolve_model(str(folder), level=level)
        expected = f"mmproj-shapes-{(mmproj_level or 'Q8_0').upper()}.gguf"
        assert found.mmproj is not None
        assert (found.mmproj.name, found.notes) == (expected, ())
    # Another's folder, or a file that is gone: Q8_0 with a quantized text model, as ever.
    (folder / "mmproj-shapes-Q5_K.gguf").unlink()
    found = resolve_model(str(folder), level="Q4_0").mmproj
    assert found is not None
    assert found.name == "mmproj-shapes-Q8_0.gguf"


def test_a_profile_with_rules_gives_its_name_to_both_files(
    tmp_path: Path, shapes_checkpoint: Path
) -> None:
    rules = 'type = "Q6_K"\nrules = [{ role = "projector", type = "BF16" }]'
    path = _profile(tmp_path, rules)
    folder = tmp_path / "shapes"
    convert_model(shapes_checkpoint, out=folder, name="shapes", outtype="auto")
    quantize_model(plan_quantization(open_model_dir(folder), level=str(path)))
    mmproj = folder / "mmproj-shapes-mine.gguf"
    assert resolve_model(str(folder), level="mine").mmproj == mmproj
    by_name = {tensor.name: tensor.type for tensor in read_gguf(mmproj).tensors}
    assert by_name["mm.0.weight"] == by_name["v.deepstack.1.fc1.weight"] == "BF16"
    assert by_name["v.blk.0.ffn_up.weight"] == "Q6_K"
    manifest = open_model_dir(folder).manifest
    assert manifest is not None
    assert [(e.level, e.profile) for e in manifest.files if e.name == mmproj.name] == [
        ("mine", "mine")
    ]
    # One pass makes the same bytes.
    other = convert_model(shapes_checkpoint, out=tmp_path / "o", name="shapes", level=str(path))
    assert (other.folder / mmproj.name).read_bytes() == mmproj.read_bytes()
