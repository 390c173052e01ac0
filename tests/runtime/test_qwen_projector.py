"""Shapes of Qwen's towers on which ggml would end the process: refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile, GGUFTensor, read_gguf
from edgevlm.runtime.prompt import IMAGE_SPANS, ImageSpan
from edgevlm.runtime.qwen_projector import check_qwen, qwen_span
from tests.synthetic import write_checkpoint

KIND = "qwen3vl_merger"
KINDS = {
    "qwen2_vl": "qwen2vl_merger",
    "qwen2_5_vl": "qwen2.5vl_merger",
    "qwen2_5_omni": "qwen2.5vl_merger",
    "qwen3_5": KIND,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    folder = tmp_path_factory.mktemp("qwen")
    write_checkpoint(folder / "checkpoint")
    write_gguf(plan_conversion(folder / "checkpoint").mmproj, folder / "mmproj.gguf")
    return read_gguf(folder / "mmproj.gguf")


def reshaped(file: GGUFFile, name: str, shape: tuple[int, ...]) -> GGUFFile:
    assert any(tensor.name == name for tensor in file.tensors)
    tensors = [replace(t, shape=shape) if t.name == name else t for t in file.tensors]
    return replace(file, tensors=tuple(tensors))


def test_every_tensor_is_held_against_the_header(sound: GGUFFile) -> None:
    check_qwen(sound, KIND)
    for tensor in sound.tensors:
        size = tensor.shape[-1]
        with pytest.raises(GGUFError) as caught:
            check_qwen(reshaped(sound, tensor.name, (*tensor.shape[:-1], size + 1)), KIND)
        assert caught.value.hint


def test_a_block_without_a_matrix(sound: GGUFFile) -> None:
    names = [t.name for t in sound.tensors if t.name.endswith("weight")]
    for name in names:
        if name.startswith(("v.blk.", "v.deepstack.")):
            tensors = tuple(tensor for tensor in sound.tensors if tensor.name != name)
            with pytest.raises(GGUFError, match="has no tensor"):
                check_qwen(replace(sound, tensors=tensors), KIND)


@pytest.mark.parametrize("name", KINDS)
def test_files_of_the_families_pass(
    name: str, golden: Callable[[str], Path], tmp_path: Path
) -> None:
    write_gguf(plan_conversion(golden(name)).mmproj, tmp_path / "mmproj.gguf")
    check_qwen(read_gguf(tmp_path / "mmproj.gguf"), KINDS[name])


def test_positions_that_are_no_square(sound: GGUFFile) -> None:
    (positions,) = (t for t in sound.tensors if t.name == "v.position_embd.weight")
    shape = (positions.shape[0] - 1, positions.shape[1])
    with pytest.raises(GGUFError, match="no square"):
        check_qwen(reshaped(sound, positions.name, shape), KIND)


def test_swapped_names_of_old_files_pass(sound: GGUFFile) -> None:
    swapped = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    tensors: list[GGUFTensor] = []
    for tensor in sound.tensors:
        part = next((part for part in swapped if part in tensor.name), None)
        name = tensor.name.replace(part, swapped[part]) if part else tensor.name
        tensors.append(replace(tensor, name=name))
    check_qwen(replace(sound, tensors=tuple(tensors)), KIND)


def test_an_image_is_written_as_the_vocabulary_has_it(
    golden: Callable[[str], Path], tmp_path: Path
) -> None:
    usual = IMAGE_SPANS["qwen2.5vl_merger"]
    spans: dict[str, ImageSpan] = {}
    for name in ("qwen2_5_vl", "qwen2_5_omni"):
        write_gguf(plan_conversion(golden(name)).text, tmp_path / f"{name}.gguf")
        spans[name] = qwen_span(read_gguf(tmp_path / f"{name}.gguf"), usual)
    assert spans["qwen2_5_vl"] == usual
    assert spans["qwen2_5_omni"].template == "<|vision_bos|><|IMAGE|><|vision_eos|>"
    # What libmtmd writes all the same.
    assert spans["qwen2_5_omni"].frame == usual.runtime_tokens
