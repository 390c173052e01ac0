"""Gemma 3n: what transformers 5 saves, sound left out, towers, refusals by name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Source

from edgevlm.errors import CheckpointError, ConversionError
from tests.convert.published_gemma3n import N_PARAMETERS, PUBLISHED
from tests.goldens.files import read_golden_json
from tests.goldens.qwen3_checkpoints import Weights, rewrite
from tests.goldens.recipe import Config

Change = Callable[[Config], object]


@pytest.fixture
def checkpoint(golden: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy of the golden to change."""
    return Path(shutil.copytree(golden("gemma3n"), tmp_path / "gemma3n"))


def changed(folder: Path, change: Change, file: str = "config.json") -> Path:
    values = read_golden_json(folder / file)
    change(values)
    (folder / file).write_text(json.dumps(values), encoding="utf-8")
    return folder


def text(**values: Any) -> Change:
    return lambda config: config["text_config"].update(values)


def vision(**values: Any) -> Change:
    return lambda config: config["vision_config"].update(values)


def outer(**values: Any) -> Change:
    return lambda config: config.update(values)


def block(stage: int, number: int, **values: Any) -> Change:
    def change(config: Config) -> None:
        config["vision_config"]["model_args"]["block_args"][stage][number].update(values)

    return change


def test_keys_that_transformers_5_does_not_save_are_zeros(checkpoint: Path) -> None:
    """llama.cpp reads them in no layer that shares keys, and loads no file without."""
    published = plan_conversion(checkpoint)

    def saved_again(weights: Weights) -> Weights:
        shared = tuple(f"model.language_model.layers.{n}.self_attn." for n in (20, 21))
        unread = ("k_proj.weight", "v_proj.weight", "k_norm.weight")
        return {
            name: values
            for name, values in weights.items()
            if not (name.startswith(shared) and name.endswith(unread))
        }

    rewrite(checkpoint, saved_again)
    saved = plan_conversion(checkpoint)
    shapes = {tensor.info.name: tensor.info.shape for tensor in saved.text.tensors}
    assert shapes == {tensor.info.name: tensor.info.shape for tensor in published.text.tensors}
    zeros = {
        tensor.info.name: tensor
        for tensor in saved.text.tensors
        if tensor.info.name.startswith(("blk.20.attn_k", "blk.20.attn_v"))
    }
    assert set(zeros) == {f"blk.20.attn_{name}.weight" for name in ("k", "v", "k_norm")}
    assert not any(tensor.read(0, 1).any() for tensor in zeros.values())


def test_one_of_them_that_is_missing_is_an_error(checkpoint: Path) -> None:
    name = "model.language_model.layers.20.self_attn.v_proj.weight"

    def without(weights: Weights) -> Weights:
        return {key: values for key, values in weights.items() if key != name}

    rewrite(checkpoint, without)
    with pytest.raises(ConversionError, match=r"layers\.20\.self_attn\.v_proj"):
        plan_conversion(checkpoint)


def test_sound_is_left_out(checkpoint: Path) -> None:
    plan = plan_conversion(checkpoint)
    assert all(".audio_tower." in name or ".embed_audio." in name for name in plan.ledger.dropped)
    assert len(plan.ledger.dropped) > 30
    assert plan.losses[0].startswith("sound: ")


def test_embeddings_of_layers_are_padded_to_the_vocabulary(checkpoint: Path) -> None:
    tensors = {tensor.info.name: tensor for tensor in plan_conversion(checkpoint).text.tensors}
    table = tensors["per_layer_token_embd.weight"]
    assert table.info.shape == (308, 22 * 256)
    rows = table.read(300, 308)
    assert rows[:4].any(axis=1).all()
    assert not rows[4:].any()


def test_what_ends_an_image_is_made_as_transformers_makes_it(checkpoint: Path) -> None:
    tensors = {tensor.info.name: tensor for tensor in plan_conversion(checkpoint).mmproj.tensors}
    row = tensors["mm.embedding.weight"].read(0, 1)[0]
    row = row / np.sqrt((row**2).mean() + 1e-6) * tensors["mm.hard_emb_norm.weight"].read(0, 1)[0]
    row = tensors["mm.input_projection.weight"].read(0, 32) @ row
    wanted = row / np.sqrt((row**2).mean() + 1e-6)
    found = tensors["v.token_embd.img_end"].read(0, 1)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16"])
def test_kernels_are_of_types_that_ggml_multiplies(checkpoint: Path, outtype: Any) -> None:
    found = {
        tensor.info.name: tensor.info.type
        for tensor in plan_conversion(checkpoint, outtype=outtype).mmproj.tensors
    }
    usual = "F32" if outtype == "f32" else "F16"
    assert found["v.blk.1.0.pw_exp.conv.weight"] == found["v.blk.0.0.conv_exp.weight"] == usual
    assert found["v.blk.1.0.dw_mid.conv.weight"] == "F16"
    assert found["v.blk.2.2.attn.key.down_conv.weight"] == "F16"
    assert found["v.conv_stem.conv.weight"] == found["v.blk.1.0.layer_scale.gamma"] == "F32"
    assert found["mm.input_projection.weight"] == outtype.upper()


REFUSED: dict[str, Change] = {
    "altup_active_idx": text(altup_active_idx=1),
    "altup_num_inputs": text(altup_num_inputs=2),
    "altup_correct_scale": text(altup_correct_scale=False),
    "laurel_rank": text(laurel_rank=32),
    "hidden_size_per_layer_input": text(hidden_size_per_layer_input=128),
    "final_logit_softcapping": text(final_logit_softcapping=20.0),
    "activation_sparsity_pattern": text(activation_sparsity_pattern=[0.9] * 10 + [0.0] * 12),
    "num_kv_shared_layers": text(num_kv_shared_layers=4),
    "layer_types": text(layer_types=["full_attention", "sliding_attention"] * 11),
    "intermediate_size": text(intermediate_size=[2048] * 21 + [4096]),
    "hidden_activation": text(hidden_activation="silu"),
    "vocab_size_per_layer_input": text(vocab_size_per_layer_input=309),
    "rope_scaling": text(rope_scaling={"rope_type": "linear", "factor": 8.0}),
    "rope_type": text(rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0}}),
    "hidden_size": vision(hidden_size=48),
    "architecture": vision(architecture="mobilenetv5_base"),
    "rms_norm_eps": vision(rms_norm_eps=1e-5),
    "channel_multiplier": vision(model_args={"channel_multiplier": 0.5}),
    "stem_size": vision(model_args={"stem_size": 12}),
    "block_args": vision(model_args={"block_args": [[]]}),
    "eoi_token_id": outer(eoi_token_id=300),
    "vision_soft_tokens_per_image": outer(vision_soft_tokens_per_image=64),
    "block_type": block(3, 0, block_type="mqa"),
    "stride": block(1, 1, stride=2),
    "dw_kernel_size_mid": block(1, 0, dw_kernel_size_mid=0),
    "dw_kernel_size_start": block(1, 1, dw_kernel_size_start=4),
    "dw_kernel_size_end": block(1, 1, dw_kernel_size_end=3),
    "noskip": block(1, 1, noskip=True),
    "exp_ratio": block(1, 1, exp_ratio=1.5),
    "value_dim": block(2, 2, value_dim=8),
    "kv_stride": block(2, 2, kv_stride=4),
    "[2][3].out_chs": block(2, 3, out_chs=12),
    "[2][2].out_chs": block(2, 2, out_chs=40),
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_graph_does_not_compute_is_refused(checkpoint: Path, key: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(changed(checkpoint, REFUSED[key]))
    assert key in caught.value.message


@pytest.mark.parametrize("size", [{"height": 500, "width": 500}, {"height": 512, "width": 256}])
def test_images_of_other_sizes_are_refused(checkpoint: Path, size: Any) -> None:
    folder = changed(
        checkpoint, lambda values: values.update(size=size), "preprocessor_config.json"
    )
    with pytest.raises(CheckpointError, match=r"size\."):
        plan_conversion(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_ask_for_the_tensors_of_transformers_class(name: str) -> None:
    config = Section(PUBLISHED[name], file="config.json")
    family = find_family(config)
    text_model, section = find_text_model(family, config)
    source = Source(
        config=config,
        text=section,
        preprocessor=Section({}, file="preprocessor_config.json"),
        prefixes=family.prefixes,
    )
    parts = text_model.build(source), family.projector.build(source)
    asked = {
        tensor: shape
        for part in parts
        for rule in part.rules
        for tensor, shape in rule.shapes.items()
        if shape is not None
    }
    assert (len(asked), sum(map(math.prod, asked.values()))) == N_PARAMETERS[name]
    keys = {**parts[0].metadata, **parts[0].late_metadata}
    n_layers = len(PUBLISHED[name]["text_config"]["layer_types"])
    assert keys["gemma3n.attention.shared_kv_layers"].value == n_layers - 20
    assert parts[1].late_metadata["clip.vision.image_size"].value == 768
    assert parts[1].late_metadata["clip.vision.patch_size"].value == 3
