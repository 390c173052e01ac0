"""Where the installed llama.cpp puts a vision tower's class token: asked, not looked up.

Towers are trained with that token, and its row of the position table, before the patches. The
graphs of llama-cpp-python 0.3.36 put the token behind them (tools/mtmd/models/llava.cpp and
internvl.cpp), a fault that a newer one may have mended, in one of them or in both. For each type of
projector a tiny tower whose positions, class token and patches can be told apart in what comes out
is made, opened and asked.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.projector import open_projector
from edgevlm.native.token_rows import RowOrder
from edgevlm.native.vocabulary import open_vocabulary

# Written by the converter: which of both llama.cpp a projector's position table is for.
KEY = "edgevlm.class_token_first"
_TOKEN = "v.class_embd"
_TYPE = "clip.projector_type"
# Both layers of a projector, and the norm before them.
_MATRICES = {"mlp": ("mm.0", "mm.2"), "internvl": ("mm.model.mlp.1", "mm.model.mlp.3")}
_NORMS = {"internvl": "mm.model.mlp.0"}
# Whose graph takes rows by lists that can be written anew.
_WITH_LISTS = "mlp"
_TOKENS, _CONTROL = ("<img>", "</img>"), 3
_PATCH, _SIDE = 8, 2
_N_EMBD, _N_FF, _N_OUT = 32, 64, 32
# Channels that say what a row is made of.
_CLASS, _POSITION, _BRIGHTNESS = 0, 1, 2
_SEEN = 0.5


@dataclass(frozen=True, kw_only=True)
class _TextSide:
    """Stands for the text model: a header alone.

    Without any, libmtmd leaves the kind of an image's positions unset, and what memory held decides
    how many tokens it counts (tools/mtmd/mtmd.cpp, `pos_type`).
    """

    handle: int
    n_embd_inp: int = _N_OUT
    n_positions: int = 1
    has_four_positions: bool = False


@cache
def class_token_first(projector_type: str) -> bool:
    """Return whether position tables may stay in the order in which checkpoints have them.

    Args:
        projector_type: "mlp" or "internvl", whose graphs are apart.

    Raises:
        ModelLoadError: llama-cpp-python is missing, or refuses the tower.
    """
    pixels = np.zeros((_SIDE * _PATCH, _SIDE * _PATCH, 3), dtype=np.uint8)
    pixels[:_PATCH, :_PATCH] = 255
    with tempfile.TemporaryDirectory(prefix="edgevlm-") as folder:
        tower, text = Path(folder) / "mmproj.gguf", Path(folder) / "text.gguf"
        _write_tower(tower, projector_type)
        _write_header(text)
        with (
            open_vocabulary(text) as vocabulary,
            open_projector(
                tower, _TextSide(handle=vocabulary.handle), n_threads=1, device="cpu"
            ) as projector,
        ):
            (rows,) = projector.encode(pixels).tiles
    return keeps_order(rows)


def check_class_token(mmproj: Path) -> RowOrder:
    """Check that a projector's position table is in the order of the installed llama.cpp.

    Returns:
        Which rows that llama.cpp takes otherwise than the tower was trained with.

    Raises:
        ModelLoadError: the file is for another one; every patch would get its neighbour's place.
    """
    file = read_gguf(mmproj)
    entries = (file.metadata.get(key) for key in (_TYPE, "clip.vision.projector_type"))
    kind = next((str(entry.value) for entry in entries if entry is not None), "")
    if kind not in _MATRICES or all(tensor.name != _TOKEN for tensor in file.tensors):
        return RowOrder()
    has_key = KEY in file.metadata
    if not has_key and kind != _WITH_LISTS:
        return RowOrder()
    first = class_token_first(kind)
    if not has_key or file.metadata[KEY].value is first:
        is_mended = not first and kind == _WITH_LISTS
        # Without the key it is of another converter, which leaves the table as it is.
        return RowOrder(patches=is_mended, positions=is_mended and not has_key)
    raise ModelLoadError(
        f"`{mmproj}` is for a llama.cpp that treats the vision tower's class token in another way"
        " than the installed one",
        hint="convert the model again with this installation",
    )


def keeps_order(rows: NDArray[np.float32]) -> bool:
    """Return whether the first patch came out first, with the second row of the position table.

    Args:
        rows: [n_patches, n_out] float32, of the tiny tower and a picture whose first patch is
            white.
    """
    first = rows[0] > _SEEN
    return bool(first[_POSITION] and first[_BRIGHTNESS] and not first[_CLASS])


def _write_header(path: Path) -> None:
    """Write a text model without tensors, with the tokens that libmtmd puts around an image."""
    from edgevlm_convert.metadata import array, f32, string, u32
    from edgevlm_convert.writer import plan_gguf, write_gguf

    sizes = ("context_length", "embedding_length", "block_count", "feed_forward_length")
    metadata = {
        "general.architecture": string("llama"),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array("STRING", _TOKENS),
        "tokenizer.ggml.token_type": array("INT32", [_CONTROL] * len(_TOKENS)),
        "tokenizer.ggml.merges": array("STRING", ["a a"]),
        **{f"llama.{name}": u32(1) for name in (*sizes, "attention.head_count")},
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    }
    write_gguf(plan_gguf(metadata=metadata, tensors=[]), path, n_threads=1)


def _write_tower(path: Path, projector_type: str) -> None:
    """Write a mmproj whose only block changes nothing and whose projector hands rows over.

    InternVL's normalizes them first, which leaves what is marked far above the rest.
    """
    from edgevlm_convert.encoder import TensorInfo
    from edgevlm_convert.metadata import Value, array, boolean, f32, string, u32
    from edgevlm_convert.writer import OutputTensor, plan_gguf, write_gguf

    metadata: dict[str, Value] = {
        "general.architecture": string("clip"),
        "general.type": string("mmproj"),
        "general.file_type": u32(0),
        "clip.has_vision_encoder": boolean(True),
        _TYPE: string(projector_type),
        "clip.vision.projection_dim": u32(_N_OUT),
        "clip.vision.image_size": u32(_SIDE * _PATCH),
        "clip.vision.patch_size": u32(_PATCH),
        "clip.vision.embedding_length": u32(_N_EMBD),
        "clip.vision.feed_forward_length": u32(_N_FF),
        "clip.vision.block_count": u32(1),
        "clip.vision.attention.head_count": u32(1),
        "clip.vision.attention.layer_norm_epsilon": f32(1e-5),
        "clip.vision.image_mean": array("FLOAT32", [0.0] * 3),
        "clip.vision.image_std": array("FLOAT32", [1.0] * 3),
        "clip.vision.feature_layer": array("INT32", [1]),
        "clip.vision.projector.scale_factor": u32(1),
    }

    def tensor(name: str, values: NDArray[np.float32]) -> OutputTensor:
        rows = values.reshape(-1, values.shape[-1])
        return OutputTensor(
            info=TensorInfo(name=name, shape=values.shape, type="F32"),
            read=lambda start, stop: rows[start:stop],
        )

    tensors = [tensor(name, values) for name, values in _tower(projector_type).items()]
    write_gguf(plan_gguf(metadata=metadata, tensors=tensors), path, n_threads=1)


def _tower(projector_type: str) -> Mapping[str, NDArray[np.float32]]:
    def zeros(*shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, dtype=np.float32)

    kernel = zeros(_N_EMBD, 3, _PATCH, _PATCH)
    kernel[_BRIGHTNESS] = 1 / kernel[0].size
    token, positions = zeros(_N_EMBD), zeros(_SIDE**2 + 1, _N_EMBD)
    token[_CLASS] = positions[1, _POSITION] = 1
    tensors = {
        "v.patch_embd.weight": kernel,
        _TOKEN: token,
        "v.position_embd.weight": positions,
    }
    shapes = {
        **{f"attn_{name}": (_N_EMBD, _N_EMBD) for name in ("q", "k", "v", "out")},
        "ffn_up": (_N_FF, _N_EMBD),
        "ffn_down": (_N_EMBD, _N_FF),
        "ln1": (_N_EMBD,),
        "ln2": (_N_EMBD,),
    }
    for name, shape in shapes.items():
        tensors[f"v.blk.0.{name}.weight"] = zeros(*shape)
        tensors[f"v.blk.0.{name}.bias"] = zeros(shape[0])
    if projector_type in _NORMS:
        tensors[f"{_NORMS[projector_type]}.weight"] = np.ones(_N_EMBD, dtype=np.float32)
        tensors[f"{_NORMS[projector_type]}.bias"] = zeros(_N_EMBD)
    for name in _MATRICES[projector_type]:
        tensors[f"{name}.weight"] = np.eye(_N_OUT, _N_EMBD, dtype=np.float32)
        tensors[f"{name}.bias"] = zeros(_N_OUT)
    return tensors
