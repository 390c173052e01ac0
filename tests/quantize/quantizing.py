"""A 16-bit GGUF file becomes a quantized one, ours or llama.cpp's, with no model directory."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from edgevlm_convert.writer import GGUFPlan, write_gguf
from numpy.typing import NDArray

from edgevlm.ggml_types import FILE_TYPES, TENSOR_TYPES
from edgevlm.native.library import load_library
from edgevlm.quantize.encode import LevelEncoder
from edgevlm.quantize.importance import Importance
from edgevlm.quantize.run import plan_quantize

_FILE_TYPE_IDS = {name: id_ for id_, name in FILE_TYPES.items()}


def quantize_file(
    source: Path,
    target: Path,
    encoder: LevelEncoder,
    *,
    n_threads: int | None = None,
    allow_requantize: bool = False,
) -> GGUFPlan:
    plan = plan_quantize(source, encoder, allow_requantize=allow_requantize)
    write_gguf(plan, target, encoder=encoder, n_threads=n_threads)
    return plan


def llama_quantize(
    source: Path,
    target: Path,
    level: str,
    *,
    importance: Importance | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    allow_requantize: bool = False,
) -> bool:
    """Write what the field means by a level: with the installed llama.cpp's own quantizer.

    Returns:
        Whether it did; it refuses what needs an importance matrix, and a quantized source.
    """
    llama: Any = load_library().llama
    params = llama.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPE_IDS[level]
    params.nthread = 2
    params.allow_requantize = allow_requantize
    channels: Mapping[str, NDArray[np.float32]] = importance.channels if importance else {}
    entries = (_ImatrixData * (len(channels) + 1))()
    for entry, (name, values) in zip(entries, channels.items(), strict=False):
        entry.name, entry.data, entry.size = name.encode(), values.ctypes.data, values.size
    if importance is not None:
        params.imatrix = ctypes.cast(entries, _type_of(params.imatrix))
    types = (_TensorType * (len(overrides) + 1))()
    for item, (pattern, type_) in zip(types, overrides, strict=False):
        item.pattern, item.type = pattern.encode(), TENSOR_TYPES[type_].id
    if overrides:
        params.tt_overrides = ctypes.cast(types, _type_of(params.tt_overrides))
    return llama.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0


def _type_of(pointer: Any) -> Any:
    return cast(Any, type(pointer))


# llama.h, of llama-cpp-python 0.3.36.
class _ImatrixData(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
    ]


class _TensorType(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("type", ctypes.c_int)]
