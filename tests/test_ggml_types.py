from __future__ import annotations

from llama_cpp import llama_cpp

from edgevlm.ggml_types import FILE_TYPES, TENSOR_TYPES, tensor_n_bytes, type_histogram
from edgevlm.native.ggml import tensor_types


def test_every_tensor_type_of_the_installed_ggml_is_known_with_its_block() -> None:
    theirs = {type_.id: type_ for type_ in tensor_types().values()}
    assert {id_: (t.name, t.block_size, t.block_n_bytes) for id_, t in theirs.items()} == {
        t.id: (t.name, t.block_size, t.block_bytes) for t in TENSOR_TYPES.values()
    }


def test_every_file_type_of_the_installed_llama_cpp_is_known() -> None:
    prefix = "LLAMA_FTYPE_"
    theirs = {
        value: name.removeprefix(prefix).removeprefix("MOSTLY_").removeprefix("ALL_")
        for name, value in vars(llama_cpp).items()
        if name.startswith(prefix) and name != "LLAMA_FTYPE_GUESSED"
    }
    assert theirs.items() <= dict(FILE_TYPES).items()


def test_size_and_histogram_count_blocks() -> None:
    # 3 rows of 512 weights: 2 blocks of 144 bytes each.
    assert tensor_n_bytes((3, 512), "Q4_K") == 3 * 2 * 144
    histogram = type_histogram([("F32", 40), ("Q4_K", 864), ("F32", 8)])
    assert [(name, count.n_tensors, count.n_bytes) for name, count in histogram.items()] == [
        ("Q4_K", 1, 864),
        ("F32", 2, 48),
    ]
