"""Pixtral and Mistral 3 in Mistral's own naming: params.json, consolidated files, tekken.json."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion
from edgevlm_convert.mistral_format import mistral_name
from edgevlm_convert.vocabulary.reference import open_reference
from edgevlm_convert.vocabulary.tekken import check_merges, tekken_settings

from edgevlm.build.tokenizer_proof import prove_tokenizer
from edgevlm.errors import CheckpointError, ConversionError, UnsupportedArchitectureError
from edgevlm.runtime.vlm import open_vlm
from tests.convert.tricks import split_safetensors
from tests.goldens import mistral_naming
from tests.goldens.files import drawn_image, read_golden_json
from tests.goldens.recipe import Config
from tests.goldens.recipes import mistral3, pixtral
from tests.synthetic import write_json, write_safetensors

Golden = Callable[[str], Path]
NAMES = ("pixtral", "mistral3")
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def mistral(golden: Golden, tmp_path: Path) -> Callable[[str], Path]:
    """A golden as Mistral would publish it, to change."""

    def rewritten(name: str) -> Path:
        folder = Path(shutil.copytree(golden(name), tmp_path / f"mistral-{name}"))
        mistral_naming.as_mistral(folder)
        return folder

    return rewritten


def contents(plan: ConversionPlan, folder: Path) -> dict[str, str]:
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    return {
        tensor.name: hashlib.sha256(tensor.data.tobytes()).hexdigest()
        for path in paths
        for tensor in gguf.GGUFReader(path).tensors
    }


def edit(folder: Path, file: str, path: str, value: object) -> Path:
    """Change a value by its path; None removes it."""
    document = read_golden_json(folder / file)
    *outer, key = path.split(".")
    place: dict[str, Any] = document
    for part in outer:
        place = place[part]
    place[key] = value
    if value is None:
        del place[key]
    write_json(folder / file, document)
    return folder


@each_name
def test_both_namings_give_the_same_files(
    golden: Golden, mistral: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    found, expected = plan_conversion(mistral(name)), plan_conversion(golden(name))
    assert contents(found, tmp_path) == contents(expected, tmp_path)
    # Mistral's own towers have one activation alone, its tokenizer every way to merge.
    free = {"general.name", "clip.use_gelu", "clip.use_silu", "tokenizer.chat_template"}
    free |= {"tokenizer.ggml.merges", "tokenizer.ggml.add_sep_token"}
    for ours, theirs in ((found.text, expected.text), (found.mmproj, expected.mmproj)):
        assert {key: value for key, value in ours.metadata.items() if key not in free} == {
            key: value for key, value in theirs.metadata.items() if key not in free
        }
    assert found.family == expected.family == name


@each_name
def test_the_ledger_names_what_the_checkpoint_holds(
    mistral: Callable[[str], Path], name: str
) -> None:
    folder = mistral(name)
    header, _ = split_safetensors(folder / "consolidated.safetensors")
    plan = plan_conversion(folder)
    assert set(plan.ledger.used) == set(header) - {"__metadata__"}
    assert plan.ledger.used["tok_embeddings.weight"] == (
        "token_embd.weight",
        "v.token_embd.img_break",
    )


@pytest.mark.parametrize("recipe", [pixtral.RECIPE, mistral3.RECIPE], ids=lambda one: one.name)
def test_every_tensor_has_a_name_of_mistrals(golden: Golden, recipe: Any) -> None:
    stored = read_golden_json(golden(recipe.name) / "model.safetensors.index.json")["weight_map"]
    found = {name: mistral_name(name) for name in stored}
    assert found == {name: mistral_naming.mistral_name(name) for name in stored}
    assert len(set(found.values())) == len(stored)


@each_name
def test_it_sees_images_and_its_tokenizer_is_proved(
    mistral: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = mistral(name)
    contents(plan_conversion(folder, outtype="f32"), tmp_path)
    text, mmproj = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    record = prove_tokenizer(folder, text)
    assert record.n_probes == 500
    assert {limit.name for limit in record.limits} <= {"case", "unicode"}
    with open_vlm(model=text, mmproj=mmproj, n_ctx=512, device="cpu", strict=True) as vlm:
        one, other = (
            vlm.first_logits("What is it?", [drawn_image(f"48x64-{seed}")]) for seed in (1, 2)
        )
        ids = vlm.token_ids("a", [drawn_image("48x64-1")])
    assert np.abs(one - other).max() > 1e-2
    # <s> [INST], four tokens a row with an end between, [IMG_END], the question, [/INST]
    assert ids[:2] == [1, 3]
    assert ids[2:16] == [-1] * 14
    assert (ids[16], ids[-1], len(ids)) == (8, 4, 19)


def test_weights_of_8_bits_are_taken(mistral: Callable[[str], Path], tmp_path: Path) -> None:
    folder = mistral("mistral3")
    edit(folder, "params.json", "quantization", {"qformat_weight": "fp8_e4m3"})
    path = folder / "consolidated.safetensors"
    header, data = split_safetensors(path)
    header.pop("__metadata__", None)
    tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for tensor, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[tensor] = (entry["dtype"], tuple(entry["shape"]), data[begin:end])
    shape = tensors["layers.0.attention.wv.weight"][1]
    # 0x38 is 1.0 and 0xc0 is -2.0 as e4m3; the scale is 0.5.
    bits = np.tile(np.array([0x38, 0xC0], np.uint8), np.prod(shape) // 2)
    tensors["layers.0.attention.wv.weight"] = ("F8_E4M3", shape, bits.tobytes())
    half, one = (np.array(value, "<f4").tobytes() for value in (0.5, 1.0))
    tensors["layers.0.attention.wv.qscale_weight"] = ("F32", (), half)
    tensors["layers.0.attention.wv.qscale_act"] = ("F32", (), one)
    write_safetensors(path, dict(sorted(tensors.items())))
    plan = plan_conversion(folder, outtype="f32")
    assert "activations" in plan.ledger.dropped["layers.0.attention.wv.qscale_act"]
    (found,) = (one for one in plan.text.tensors if one.info.name == "blk.0.attn_v.weight")
    assert found.read(0, shape[0]).reshape(-1)[:4].tolist() == [0.5, -1.0, 0.5, -1.0]
    edit(folder, "params.json", "quantization.qformat_weight", "nf4")
    with pytest.raises(CheckpointError, match=r"`quantization\.qformat_weight`"):
        plan_conversion(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dim", None),
        ("hidden_dim", 0),
        ("n_layers", "two"),
        ("n_kv_heads", 7),
        ("norm_eps", None),
        ("vocab_size", -1),
        ("yarn.factor", None),
        ("yarn.original_max_position_embeddings", None),
        ("yarn.apply_scale", 1),
        ("llama_4_scaling.beta", None),
        ("llama_4_scaling.original_max_position_embeddings", 41),
        ("vision_encoder.spatial_merge_size", None),
        ("vision_encoder.mm_projector_id", "resampler"),
        ("vision_encoder.add_pre_mm_projector_layer_norm", False),
        ("vision_encoder.adapter_bias", "no"),
    ],
)
def test_a_broken_key_is_named(mistral: Callable[[str], Path], path: str, value: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(edit(mistral("mistral3"), "params.json", path, value))
    assert f"params.json: `{path}`" in caught.value.message


@pytest.mark.parametrize(
    ("path", "value", "architecture"),
    [
        ("vision_encoder", None, "MistralForCausalLM"),
        ("moe", {"num_experts": 8}, "MixtralForCausalLM"),
    ],
)
def test_what_sees_no_images_is_refused(
    mistral: Callable[[str], Path], path: str, value: object, architecture: str
) -> None:
    with pytest.raises(UnsupportedArchitectureError) as caught:
        plan_conversion(edit(mistral("mistral3"), "params.json", path, value))
    assert architecture in caught.value.message


def test_yarn_that_scales_is_carried_over(mistral: Callable[[str], Path]) -> None:
    folder = edit(mistral("mistral3"), "params.json", "yarn.apply_scale", True)
    metadata = plan_conversion(folder).text.metadata
    assert "mistral3.rope.scaling.yarn_log_multiplier" not in metadata
    assert "mistral3.rope.scaling.attn_factor" not in metadata


def test_weights_that_are_missing_are_named_as_mistral_names_them(
    mistral: Callable[[str], Path],
) -> None:
    folder = mistral("pixtral")
    (folder / "consolidated.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        plan_conversion(folder)


def test_transformers_files_come_first(golden: Golden, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden("pixtral"), tmp_path / "both"))
    write_json(folder / "params.json", {"dim": 1})
    write_json(folder / "tekken.json", {})
    assert plan_conversion(folder).family == "pixtral"


def test_a_tokenizer_of_transformers_checkpoint_may_be_tekken_alone(
    golden: Golden, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(golden("pixtral"), tmp_path / "checkpoint"))
    write_json(folder / "tekken.json", mistral_naming.tekken(folder))
    expected = plan_conversion(folder).text.metadata["tokenizer.ggml.tokens"]
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    plan = plan_conversion(folder)
    assert plan.text.metadata["tokenizer.ggml.tokens"] == expected
    assert plan.text.metadata["tokenizer.ggml.bos_token_id"].value == 1
    # The chat template that lies beside it is the checkpoint's own.
    own = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert plan.text.metadata["tokenizer.chat_template"].value == own


def _set(document: Config, path: str, value: object) -> None:
    place: Any = document
    *outer, last = path.split(".")
    for part in outer:
        place = place[int(part)] if part.isdecimal() else place[part]
    place[int(last) if last.isdecimal() else last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vocab", {}, "`vocab`"),
        ("vocab.3.rank", 4, "token 3 has another rank"),
        ("vocab.3.token_bytes", "?", "token 3 has another rank"),
        ("vocab.3.token_bytes", 7, "token 3 has another rank"),
        ("vocab.3.token_bytes", base64.b64encode(b"a").decode(), "is there twice"),
        ("config.pattern", 7, "`config.pattern`"),
        ("config.default_vocab_size", 5_000, "`vocab`"),
        ("config.default_vocab_size", 100, "`config.default_vocab_size`"),
        ("config.default_num_special_tokens", 3, "`config.default_num_special_tokens`"),
        ("special_tokens.1.rank", 5, "`special_tokens`"),
        ("special_tokens.1.token_str", "<unk>", "are not different"),
        ("special_tokens.1.token_str", "<bos>", "is not among them"),
        ("special_tokens", None, "`special_tokens` is missing"),
    ],
)
def test_a_broken_tekken_is_named(
    mistral: Callable[[str], Path], path: str, value: object, message: str
) -> None:
    folder = mistral("pixtral")
    document = read_golden_json(folder / "tekken.json")
    _set(document, path, value)
    write_json(folder / "tekken.json", document)
    with pytest.raises(CheckpointError) as caught:
        plan_conversion(folder)
    assert message in caught.value.message


def test_another_expression_is_not_known(mistral: Callable[[str], Path]) -> None:
    folder = edit(mistral("pixtral"), "tekken.json", "config.pattern", r"\w+")
    with pytest.raises(ConversionError, match="unknown pre-tokenizer"):
        plan_conversion(folder)


def test_old_versions_have_control_tokens_that_no_file_names(
    mistral: Callable[[str], Path],
) -> None:
    folder = mistral("pixtral")
    document = read_golden_json(folder / "tekken.json")
    document.pop("special_tokens")
    n_tokens = len(document["vocab"])
    document["config"] |= {
        "default_num_special_tokens": 22,
        "default_vocab_size": 22 + n_tokens,
        "version": "v3",
    }
    write_json(folder / "tekken.json", document)
    metadata = plan_conversion(folder).text.metadata
    tokens = list(metadata["tokenizer.ggml.tokens"].value)  # pyright: ignore[reportArgumentType, reportUnknownVariableType, reportUnknownArgumentType]
    assert tokens[10:14] == ["[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"]
    assert tokens[20:22] == ["<SPECIAL_20>", "<SPECIAL_21>"]
    assert metadata["tokenizer.ggml.padding_token_id"].value == 11


def test_merges_that_ranks_contradict_are_refused(mistral: Callable[[str], Path]) -> None:
    folder = mistral("pixtral")
    _, reference = open_reference(folder)
    pieces = reference.pieces("the circle")
    assert [piece for piece, _ in pieces] == [b"the", b" circle"]
    check_merges(folder, pieces)
    wrong = [(pieces[0][0], [*pieces[0][1], 20])]
    with pytest.raises(ConversionError, match="by ranks") as caught:
        check_merges(folder, wrong)
    assert "transformers' naming" in caught.value.hint


USER, IMAGE = {"role": "user"}, {"type": "image"}
# As mistral_common 1.13 writes them, an image as [IMG].
TURNS: Mapping[str, tuple[list[Config], dict[str, str]]] = {
    "system": (
        [{"role": "system", "content": "Be brief."}, USER | {"content": "Hello"}],
        {
            "v3": "<s>[INST]Be brief.\n\nHello[/INST]",
            "v7": "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hello[/INST]",
        },
    ),
    "turns": (
        [
            USER | {"content": "Hi"},
            {"role": "assistant", "content": "Yes."},
            USER | {"content": "B"},
        ],
        dict.fromkeys(("v3", "v7"), "<s>[INST]Hi[/INST]Yes.</s>[INST]B[/INST]"),
    ),
    "an image behind its question": (
        [USER | {"content": [{"type": "text", "text": "What?"}, IMAGE]}],
        dict.fromkeys(("v3", "v7"), "<s>[INST][IMG]What?[/INST]"),
    ),
    "images among texts": (
        [
            USER
            | {
                "content": [
                    IMAGE,
                    {"type": "text", "text": "A"},
                    IMAGE,
                    {"type": "text", "text": "B"},
                ]
            }
        ],
        dict.fromkeys(("v3", "v7"), "<s>[INST][IMG]A[IMG]B[/INST]"),
    ),
}


@pytest.mark.parametrize("version", ["v3", "v7"])
@pytest.mark.parametrize("case", TURNS)
def test_prompts_are_written_as_mistral_common_does(
    mistral: Callable[[str], Path], case: str, version: str
) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    folder = mistral("pixtral")
    edit(folder, "tekken.json", "config.version", version)
    settings = tekken_settings(folder)
    assert settings is not None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(settings.text("chat_template"))
    messages, expected = TURNS[case]
    found = template.render(messages=messages, bos_token="<s>", eos_token="</s>")
    assert found == expected[version]


def test_a_file_of_another_kind_is_no_tekken(mistral: Callable[[str], Path]) -> None:
    folder = mistral("pixtral")
    (folder / "tekken.json").write_text(json.dumps([1]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="no JSON object"):
        plan_conversion(folder)
