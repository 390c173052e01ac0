"""Projectors for tests of their levels: other sizes, zeros at any type, embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import u32
from edgevlm_convert.writer import GGUFPlan, OutputTensor, plan_gguf
from numpy.typing import NDArray

from edgevlm.quantize.encode import LevelEncoder
from edgevlm.runtime.vlm import open_vlm
from tests.goldens.files import drawn_image


def with_hidden(plan: GGUFPlan, n_hidden: int) -> GGUFPlan:
    """Return a projector whose tower has feed-forward networks of `n_hidden` random channels."""
    random = np.random.default_rng(7)
    tensors = [
        _random(tensor, n_hidden, random)
        if tensor.info.name.startswith("v.blk.") and "ffn_" in tensor.info.name
        else tensor
        for tensor in plan.tensors
    ]
    metadata = {**plan.metadata, "clip.vision.feed_forward_length": u32(n_hidden)}
    return plan_gguf(metadata=metadata, tensors=tensors)


def _random(tensor: OutputTensor, n_hidden: int, random: np.random.Generator) -> OutputTensor:
    info = tensor.info
    shape = (n_hidden, *info.shape[1:])
    if "ffn_down" in info.name:
        shape = info.shape if len(info.shape) == 1 else (info.shape[0], n_hidden)
    scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
    values = (scale * random.standard_normal(shape)).astype(np.float32).reshape(-1, shape[-1])
    return OutputTensor(
        info=replace(info, shape=shape), read=lambda start, stop: values[start:stop]
    )


@dataclass(frozen=True, kw_only=True)
class Growing(LevelEncoder):
    """An encoder whose feed-forward networks grow from `n_hidden` channels, whatever the type."""

    n_hidden: tuple[int, int]

    def shapes(
        self, tensors: Sequence[TensorInfo], metadata: Mapping[str, object], /
    ) -> Mapping[str, tuple[int, ...]]:
        old, new = self.n_hidden
        return {
            tensor.name: tuple(new if size == old else size for size in tensor.shape)
            for tensor in tensors
            if tensor.name.startswith("v.blk.") and "ffn_" in tensor.name
        }


def growing(type: str, old: int, new: int) -> Growing:
    """Return an encoder to `type` that adds zeros."""
    return Growing(level=type, is_projector=True, profile=None, type=type, n_hidden=(old, new))


def embeddings(text: Path, mmproj: Path, image: str) -> NDArray[np.float32]:
    """Return [n_tokens, n_embd] float32 of a drawn image, with one thread."""
    with open_vlm(model=text, mmproj=mmproj, n_ctx=1024, n_threads=1, device="cpu") as vlm:
        return np.concatenate(vlm.encode(drawn_image(image)).tiles)


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosine of each row."""
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.sum(one * other, axis=-1) / lengths
