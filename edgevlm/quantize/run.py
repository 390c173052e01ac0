"""A GGUF file, of 16 bits as a rule, as the source of a quantized one; read slab by slab."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.writer import GGUFPlan, OutputTensor, plan_gguf
from numpy.typing import NDArray

from edgevlm.errors import GGUFError, QuantizationError
from edgevlm.ggml_types import tensor_n_bytes
from edgevlm.gguf_file import DEFAULT_ALIGNMENT, GGUFFile, GGUFTensor, GGUFValue
from edgevlm.gguf_shards import read_model
from edgevlm.native.ggml import dequantize_rows
from edgevlm.quantize.encode import LevelEncoder

_FLOATS = ("F32", "F16", "BF16")
_INTEGERS = ("I8", "I16", "I32", "I64", "F64")


def plan_quantize(
    source: Path, encoder: LevelEncoder, *, allow_requantize: bool = False
) -> GGUFPlan:
    """Plan the file that `encoder` makes of the GGUF file `source`, exact to the byte.

    Metadata and the order of tensors are the source's; only `general.file_type` and
    `general.quantization_version` are set.

    Args:
        source: the file, the first one of a model in several.
        encoder: of the level.
        allow_requantize: blocks are read as floats and encoded again, with the error of both.

    Raises:
        SourceNotFoundError: there is no such file.
        GGUFError: it is broken, has text that is not UTF-8, is a projector where a text model is
            due or the other way round, or a later part of a split model.
        QuantizationError: it is quantized already, and `allow_requantize` is not set.
    """
    file = read_model(source)
    _check_kind(file, encoder)
    if not allow_requantize:
        _check_types(file)
    try:
        return plan_gguf(
            metadata=_metadata(file),
            tensors=[_output_tensor(tensor) for tensor in file.tensors],
            encoder=encoder,
        )
    except UnicodeEncodeError:
        raise GGUFError(
            f"`{source}` has text in its metadata that is not UTF-8",
            hint="convert the checkpoint again",
        ) from None


def _check_kind(file: GGUFFile, encoder: LevelEncoder) -> None:
    if file.is_projector and not encoder.is_projector:
        raise GGUFError(
            f"`{file.path}` is a projector, not a text model",
            hint="name the text model; the projector's level is --mmproj-level",
        )
    if encoder.is_projector and not file.is_projector:
        raise GGUFError(
            f"`{file.path}` is not a projector (its architecture is `{file.architecture}`)",
            hint="name an mmproj file with --mmproj",
        )


def quantized_type(file: GGUFFile) -> str | None:
    """Return the quantized type that holds the most bytes of a file, None where there is none."""
    types = (name for name in file.type_histogram() if name not in (*_FLOATS, *_INTEGERS))
    return next(types, None)


def _check_types(file: GGUFFile) -> None:
    for tensor in file.tensors:
        if tensor.type not in _FLOATS and tensor.type not in _INTEGERS:
            raise QuantizationError(
                f"`{file.path}` is quantized already: tensor `{tensor.name}` is {tensor.type}",
                hint="quantize the F16 or BF16 file, or convert the checkpoint with --level;"
                " --allow-requantize encodes these values again, with the error of both",
            )


def _metadata(file: GGUFFile) -> dict[str, GGUFValue]:
    """The source's metadata, without an alignment and a split that the new file does not have."""
    keep_alignment = file.alignment == DEFAULT_ALIGNMENT
    return {
        key: value
        for key, value in file.metadata.items()
        if (key != "general.alignment" or keep_alignment) and not key.startswith("split.")
    }


def _output_tensor(tensor: GGUFTensor) -> OutputTensor:
    row_n_bytes = tensor_n_bytes(tensor.shape[-1:], tensor.type)

    def read_raw(start: int, stop: int) -> bytes:
        # Opened per slab: a plan may be dropped unused, and no descriptor must stay behind.
        with tensor.path.open("rb", buffering=0) as file:
            n_bytes = (stop - start) * row_n_bytes
            data = os.pread(file.fileno(), n_bytes, tensor.offset + start * row_n_bytes)
        if len(data) != n_bytes:
            raise GGUFError(f"`{tensor.path}` has become shorter", hint="run the command again")
        return data

    return OutputTensor(
        info=TensorInfo(name=tensor.name, shape=tensor.shape, type=tensor.type),
        read=_float_reader(tensor, read_raw),
        read_raw=read_raw,
    )


def _float_reader(
    tensor: GGUFTensor, read_raw: Callable[[int, int], bytes]
) -> Callable[[int, int], NDArray[np.float32]]:
    """Return a reader of rows widened to float32 that refuses NaN and infinity by name."""
    row_length = tensor.shape[-1] if tensor.shape else 1

    def read(start: int, stop: int) -> NDArray[np.float32]:
        raw = read_raw(start, stop)
        if tensor.type == "F32":
            values = np.frombuffer(raw, "<f4").astype(np.float32, copy=False)
        else:
            # Of 16 bits too: a quarter faster than numpy's own widening.
            values = dequantize_rows(raw, tensor.type, row_length)
        # min and max carry NaN along: two passes without a temporary array.
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise QuantizationError(
                f"tensor `{tensor.name}` holds NaN or infinity",
                hint="the source's weights are broken: convert the checkpoint again",
            )
        return values.reshape(-1, row_length)

    return read
