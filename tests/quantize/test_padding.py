"""Feed-forward rows that no block divides grow by zeros: exact, and in no 16-bit file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.writer import write_gguf

from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import mmproj_encoder
from edgevlm.runtime.footprint import predict_footprint
from tests.goldens.recipes import RECIPES
from tests.quantize.projectors import cosines, embeddings, growing, with_hidden
from tests.quantize.quantizing import quantize_file
from tests.quantize.wide_towers import N_HIDDEN, redraw_wide

Golden = Callable[[str], Path]


@dataclass(frozen=True)
class _Value:
    value: object


def _tower(
    width: int, n_hidden: int, *, is_gated: bool = False, names: tuple[str, str] = ("up", "down")
) -> list[TensorInfo]:
    """Return the tensors of a tower of two blocks, F16 and F32 as the converter writes them."""
    tensors: list[TensorInfo] = []
    up, down = names
    for block in ("v.blk.0.", "v.blk.1."):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q.weight": (width, width),
            f"ffn_{up}.weight": (n_hidden, width),
            f"ffn_{up}.bias": (n_hidden,),
            f"ffn_{down}.weight": (width, n_hidden),
            f"ffn_{down}.bias": (width,),
        }
        if is_gated:
            shapes |= {"ffn_gate.weight": (n_hidden, width), "ffn_gate.bias": (n_hidden,)}
        tensors += [
            TensorInfo(name=block + name, shape=shape, type="F16" if len(shape) > 1 else "F32")
            for name, shape in shapes.items()
        ]
    return tensors


def _metadata(width: int, n_hidden: int) -> dict[str, object]:
    return {
        "clip.vision.embedding_length": _Value(width),
        "clip.vision.feed_forward_length": _Value(n_hidden),
        "clip.vision.block_count": _Value(2),
    }


def _grown(tensors: list[TensorInfo], level: str, n_hidden: int) -> Mapping[str, tuple[int, ...]]:
    width = tensors[0].shape[0]
    return mmproj_encoder(level).shapes(tensors, _metadata(width, n_hidden))


@pytest.mark.parametrize("level", ["Q8_0", "Q6_K", "Q5_K", "Q5_0", "Q4_K", "Q4_0", "IQ4_NL"])
@pytest.mark.parametrize(
    ("width", "n_hidden", "is_gated", "n_padded"),
    [(1152, 4304, False, 4352), (1280, 3420, True, 3584)],
    ids=["so400m", "Qwen2.5-VL"],
)
def test_rows_biases_and_columns_grow_together(
    width: int, n_hidden: int, is_gated: bool, n_padded: int, level: str
) -> None:
    tensors = _tower(width, n_hidden, is_gated=is_gated)
    shapes = _grown(tensors, level, n_hidden)
    assert set(shapes) == {
        tensor.name
        for tensor in tensors
        if "ffn_" in tensor.name and "ffn_down.bias" not in tensor.name
    }
    for name, shape in shapes.items():
        assert shape in ((n_padded, width), (n_padded,), (width, n_padded))
        assert shape[-1] == n_padded or "ffn_down" not in name


@pytest.mark.parametrize("level", ["F32", "F16", "BF16"])
def test_floats_never_grow(level: str) -> None:
    assert not _grown(_tower(1152, 4304), level, 4304)


def test_rows_that_divide_never_grow() -> None:
    assert not _grown(_tower(768, 3072), "Q4_K", 3072)
    # 2752 is 86 blocks of 32: only blocks of 256 leave a rest.
    assert not _grown(_tower(1024, 2752), "Q8_0", 2752)
    assert _grown(_tower(1024, 2752), "Q6_K", 2752)


def test_where_the_file_would_become_larger_nothing_grows() -> None:
    assert not _grown(_tower(64, 80), "Q8_0", 80)
    assert not _grown(_tower(256, 320), "Q6_K", 320)


def test_embedding_widths_and_heads_never_grow() -> None:
    # 1152 is 4.5 blocks of 256: the matrices fall back to blocks of 32.
    tensors = _tower(1152, 4304)
    encoder = mmproj_encoder("Q6_K")
    assert "v.blk.0.attn_q.weight" not in encoder.shapes(tensors, _metadata(1152, 4304))
    types, _ = encoder.plan(tensors, _metadata(1152, 4304))
    assert types["v.blk.0.attn_q.weight"] == types["v.blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize("level", ["Q8_0", "Q4_K"])
def test_names_swapped_as_in_old_files_are_seen(level: str) -> None:
    tensors = _tower(1152, 4304, names=("down", "up"))
    assert not mmproj_encoder(level).shapes(tensors, _metadata(1152, 4304))


def test_rows_never_become_as_long_as_the_tower_is_wide() -> None:
    # llama.cpp takes such an `ffn_down` for an `ffn_up` of an old file.
    shapes = _grown(_tower(1280, 1270), "Q8_0", 1270)
    assert shapes["v.blk.0.ffn_down.weight"] == (1280, 1536)


def test_a_network_with_a_tensor_of_another_size_never_grows() -> None:
    tensors = _tower(1152, 4304)
    odd = TensorInfo(name="v.blk.1.ffn_up.weight", shape=(4300, 1152), type="F16")
    shapes = _grown([odd if t.name == odd.name else t for t in tensors], "Q8_0", 4304)
    assert not any(name.startswith("v.blk.1.") for name in shapes)


# The length of the rows, the same in blocks of 32 or the next such length, and what is written.
@pytest.mark.parametrize(
    ("name", "n_hidden", "n_same", "n_padded"),
    [
        ("idefics3", 4304, 4304, 4352),
        ("gemma3", 4304, 4304, 4352),
        ("minicpmv4_6", 4304, 4304, 4352),
        # 3420 is no multiple of 16: ggml adds the last of a row one by one, in another order, and
        # rounds differently. A multiple of 32 is the same to the last bit, whatever follows.
        ("qwen2_5_vl", 3420, 3424, 3584),
    ],
)
def test_in_f16_embeddings_are_equal_to_the_last_bit(
    golden: Golden, tmp_path: Path, name: str, n_hidden: int, n_same: int, n_padded: int
) -> None:
    conversion = plan_conversion(golden(name), outtype="f16")
    text, source = tmp_path / "text.gguf", tmp_path / "source.gguf"
    write_gguf(conversion.text, text)
    write_gguf(with_hidden(conversion.mmproj, n_hidden), source)
    image = next(name for _, _, images in RECIPES[name].prompts for name in images)
    found: dict[int, np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = {}
    for length in (n_same, n_padded):
        target = tmp_path / f"{length}.gguf"
        quantize_file(source, target, growing("F16", n_hidden, length))
        found[length] = embeddings(text, target, image)
    assert np.array_equal(found[n_same], found[n_padded])
    unpadded = embeddings(text, source, image)
    assert (n_same == n_hidden) == np.array_equal(unpadded, found[n_padded])
    np.testing.assert_allclose(found[n_padded], unpadded, atol=5e-3 * np.abs(unpadded).max())


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("idefics3", ("Q8_0", "Q6_K", "Q4_K")),
        ("qwen2_5_vl", ("Q8_0", "Q6_K", "Q4_K")),
        ("minicpmv4_6", ("Q6_K",)),
    ],
)
def test_padded_files_load_encode_and_are_described_rightly(
    tmp_path: Path, name: str, levels: Sequence[str]
) -> None:
    checkpoint = redraw_wide(name, tmp_path / "checkpoint")
    conversion = plan_conversion(checkpoint)
    text, source = tmp_path / "text.gguf", tmp_path / "source.gguf"
    write_gguf(conversion.text, text)
    write_gguf(conversion.mmproj, source)
    image = next(name for _, _, images in RECIPES[name].prompts for name in images)
    exact = embeddings(text, source, image)
    for level in levels:
        one_pass, target = tmp_path / "one_pass.gguf", tmp_path / f"{level}.gguf"
        encoder = mmproj_encoder(level)
        plan = plan_conversion(checkpoint, mmproj_encoder=encoder).mmproj
        write_gguf(plan, one_pass, encoder=encoder)
        quantize_file(source, target, encoder)
        assert one_pass.read_bytes() == target.read_bytes()

        file = read_gguf(target)
        assert file.metadata["clip.vision.feed_forward_length"].value == 1280
        down = {t.type for t in file.tensors if t.name.endswith("ffn_down.weight")}
        assert down == {level}
        prediction = predict_footprint(read_gguf(text), file, n_ctx=512)
        before = predict_footprint(read_gguf(text), read_gguf(source), n_ctx=512)
        assert prediction.mmproj == file.n_data_bytes
        assert before.vision_compute <= prediction.vision_compute < 1.3 * before.vision_compute
        least = {"Q8_0": 0.998, "Q6_K": 0.99, "Q4_K": 0.9}[level]
        assert cosines(embeddings(text, target, image), exact).min() > least
    assert N_HIDDEN < 1280


def test_what_grew_is_zero(tmp_path: Path, golden: Golden) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    plan = plan_conversion(golden("qwen2_5_vl"), outtype="f16")
    write_gguf(with_hidden(plan.mmproj, 3420), source)
    quantize_file(source, target, mmproj_encoder("Q4_0"))
    before, after = ({t.name: t for t in read_gguf(path).tensors} for path in (source, target))
    data, old = target.read_bytes(), source.read_bytes()
    bias = after["v.blk.0.ffn_up.bias"]
    values = np.frombuffer(data, np.float32, 3584, bias.offset)
    first = before["v.blk.0.ffn_up.bias"]
    assert np.array_equal(values[:3420], np.frombuffer(old, np.float32, 3420, first.offset))
    assert not values[3420:].any()
    # The tower's own 48 channels have no block: their matrix stays F16.
    up = after["v.blk.0.ffn_up.weight"]
    assert (up.type, up.shape) == ("F16", (3584, 48))
    rows = np.frombuffer(data, np.float16, 3584 * 48, up.offset).reshape(3584, 48)
    assert not rows[3420:].any()
