"""Split models: written as llama.cpp reads them, seen as one, refused when they do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.shards import split_plan
from edgevlm_convert.writer import write_gguf

from edgevlm.errors import EdgeVLMError, GGUFError, SourceNotFoundError
from edgevlm.gguf_file import read_gguf
from edgevlm.gguf_shards import read_model, shard_name, shard_number, shard_paths
from edgevlm.native.text_context import ContextOptions, open_context
from edgevlm.native.text_model import ModelOptions, open_text_model
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.run import plan_quantize
from tests.synthetic import write_checkpoint

MAX_BYTES = 60_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text model in one file; never to be written."""
    folder = tmp_path_factory.mktemp("whole")
    # One layer more than deepstack takes, or llama.cpp ends the process.
    write_checkpoint(folder / "checkpoint", text={"num_hidden_layers": 3})
    write_gguf(plan_conversion(folder / "checkpoint", name="tiny").text, folder / "tiny.gguf")
    return folder / "tiny.gguf"


@pytest.fixture
def parts(whole: Path, tmp_path: Path) -> list[Path]:
    """The same model in several files."""
    plan = plan_conversion(whole.parent / "checkpoint", name="tiny").text
    plans = split_plan(plan, max_bytes=MAX_BYTES)
    paths = [
        tmp_path / shard_name("tiny", number, len(plans)) for number in range(1, len(plans) + 1)
    ]
    for one, path in zip(plans, paths, strict=True):
        write_gguf(one, path)
    return paths


def first_logits(path: Path) -> list[float]:
    with (
        open_text_model(path, ModelOptions(device="cpu")) as model,
        open_context(model, ContextOptions(n_ctx=64, n_threads=1)) as context,
    ):
        context.decode_tokens(model.tokenize("What is", parse_special=False), n_logits=1)
        return context.logits(1)[0].tolist()


def test_llama_cpp_loads_the_parts_as_the_whole(whole: Path, parts: list[Path]) -> None:
    assert len(parts) > 2
    assert first_logits(parts[0]) == first_logits(whole)


def test_parts_are_no_larger_than_asked(whole: Path, parts: list[Path]) -> None:
    for path in parts:
        file = read_gguf(path)
        largest = max(tensor.n_bytes for tensor in file.tensors)
        assert file.n_data_bytes <= max(MAX_BYTES, largest)
    names = [tensor.name for path in parts for tensor in read_gguf(path).tensors]
    assert names == [tensor.name for tensor in read_gguf(whole).tensors]


def test_a_split_model_is_seen_as_one(whole: Path, parts: list[Path]) -> None:
    one, many = read_gguf(whole), read_model(parts[0])
    described = [(tensor.name, tensor.shape, tensor.type) for tensor in many.tensors]
    assert described == [(tensor.name, tensor.shape, tensor.type) for tensor in one.tensors]
    assert {tensor.path for tensor in many.tensors} == set(parts)
    assert many.n_bytes == sum(path.stat().st_size for path in parts)
    assert many.metadata["tokenizer.ggml.tokens"].value == (
        one.metadata["tokenizer.ggml.tokens"].value
    )


def test_parts_are_quantized_as_the_whole_is(
    whole: Path, parts: list[Path], tmp_path: Path
) -> None:
    profile = load_profile("Q8_0")
    written: list[bytes] = []
    for number, source in enumerate((whole, parts[0])):
        encoder = text_encoder(profile)
        path = tmp_path / f"{number}.gguf"
        write_gguf(plan_quantize(source, encoder), path, encoder=encoder)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_a_small_model_stays_whole(whole: Path) -> None:
    plan = plan_conversion(whole.parent / "checkpoint").text
    assert split_plan(plan, max_bytes=1 << 30) == (plan,)


def test_names() -> None:
    name = shard_name("a-b", 2, 3)
    assert name == "a-b-00002-of-00003.gguf"
    assert shard_number(name) == 2
    assert shard_number("a-Q4_K_M.gguf") == 0
    assert [path.name for path in shard_paths(Path("x") / name)] == [
        shard_name("a-b", number, 3) for number in (1, 2, 3)
    ]
    # A name that claims a million files names one.
    assert len(shard_paths(Path("a-00001-of-99999.gguf"))) == 1


def test_a_missing_part(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(GGUFError, match=f"`{parts[1].name}` is missing"):
        read_model(parts[0])
    parts[0].unlink()
    with pytest.raises(SourceNotFoundError, match=parts[0].name):
        read_model(parts[0])


def test_a_later_part_is_not_the_model(parts: list[Path]) -> None:
    with pytest.raises(GGUFError, match="is part 2 of a model") as caught:
        read_model(parts[1])
    assert parts[0].name in caught.value.hint


def test_parts_in_the_wrong_order(parts: list[Path], tmp_path: Path) -> None:
    spare = tmp_path / "spare"
    for old, new in ((parts[1], spare), (parts[2], parts[1]), (spare, parts[2])):
        old.rename(new)
    with pytest.raises(GGUFError, match="is not part 2"):
        read_model(parts[0])


def test_a_part_of_another_model(parts: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write_checkpoint(folder / "checkpoint", text={"num_hidden_layers": 4})
    plans = split_plan(plan_conversion(folder / "checkpoint").text, max_bytes=MAX_BYTES)
    other = folder / "part.gguf"
    write_gguf(plans[1], other)
    shutil.copy(other, parts[1])
    with pytest.raises(GGUFError):
        read_model(parts[0])


def test_a_renamed_first_part(parts: list[Path], tmp_path: Path) -> None:
    renamed = parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(GGUFError, match="its name does not say so"):
        read_model(renamed)


def test_random_damage_is_a_typed_error(parts: list[Path]) -> None:
    raw = parts[1].read_bytes()
    random = np.random.default_rng(5)
    n_refused = 0
    for _ in range(200):
        damaged = bytearray(raw)
        for place in random.integers(0, 400, size=3):
            damaged[place] = random.integers(0, 256)
        parts[1].write_bytes(damaged)
        try:
            read_model(parts[0])
        except EdgeVLMError:
            n_refused += 1
    assert n_refused > 50
