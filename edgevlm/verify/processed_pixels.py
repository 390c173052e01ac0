"""What an image processor of transformers made of images, put together again as pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of the number of patches of each encode, rows and columns: LFM2-VL's, MiniCPM-V 4.6's.
SHAPE_KEYS = ("spatial_shapes", "target_sizes")
_FRAMES = 2


def pixels_of(tensors: Mapping[str, Any], n_images: int) -> list[tuple[NDArray[np.float32], ...]]:
    """Return what each image became, [3, height, width] an encode; empty when it is not known.

    Args:
        tensors: of the processor.
        n_images: that it was given.
    """
    values = tensors.get("pixel_values")
    if values is None:
        return []
    if "image_grid_thw" in tensors:
        return _from_patches(values.numpy(), tensors["image_grid_thw"].numpy())
    shape_key = next((key for key in SHAPE_KEYS if key in tensors), "")
    if shape_key:
        shapes = tensors[shape_key].tolist()
        from_values = _from_rows if shape_key == "spatial_shapes" else _from_strip
        encodes = from_values(values.float().numpy(), shapes)
        if n_images == 1:
            return [tuple(encodes)]
        # Of tiles it is not known whose they are.
        return [(image,) for image in encodes] if len(encodes) == n_images else []
    if "num_local_patches" in tensors:
        return _behind_tiles(tensors)
    if values.ndim == 4 and len(values) == n_images:
        whole = [image.float().numpy() for image in values]
        # Smaller ones are padded to the size of the largest.
        sizes = tensors["image_sizes"].tolist() if "image_sizes" in tensors else [()] * n_images
        return [
            (image[:, : size[0], : size[1]] if size else image,)
            for image, size in zip(whole, sizes, strict=True)
        ]
    if n_images == 1 and values.ndim in (4, 5):
        # Tiles of one image; they stand behind a dimension of their own, or do not.
        return [tuple((values[0] if values.ndim == 5 else values).float().numpy())]
    return []


def _behind_tiles(tensors: Mapping[str, Any]) -> list[tuple[NDArray[np.float32], ...]]:
    """Return DeepSeek-OCR's images: the tiles of each, then the whole.

    llama.cpp encodes a row of the first generation's tiles at once, one below the other.
    """
    images: list[tuple[NDArray[np.float32], ...]] = []
    start = 0
    grids = tensors.get("patches_grid", [[1, 1]] * len(tensors["pixel_values"]))
    for whole, n_tiles, (n_columns, _) in zip(
        tensors["pixel_values"], list(tensors["num_local_patches"]), grids, strict=True
    ):
        tiles = [
            tensors["pixel_values_local"][number].float().numpy()
            for number in range(start, start + int(n_tiles))
        ]
        rows = [
            np.concatenate(tiles[first : first + n_columns], axis=1)
            for first in range(0, len(tiles), n_columns)
        ]
        start += int(n_tiles)
        images.append((*rows, whole.float().numpy()))
    return images


def _from_rows(
    values: NDArray[np.float32], shapes: Sequence[Sequence[int]]
) -> list[NDArray[np.float32]]:
    """Put images of NaFlex together again, rows of patches [side, side, 3] each."""
    side = round((values.shape[2] / 3) ** 0.5)
    images: list[NDArray[np.float32]] = []
    for patches, (n_rows, n_columns) in zip(values, shapes, strict=True):
        blocks = patches[: n_rows * n_columns].reshape(n_rows, n_columns, side, side, 3)
        whole = blocks.transpose(4, 0, 2, 1, 3).reshape(3, n_rows * side, n_columns * side)
        images.append(np.ascontiguousarray(whole))
    return images


def _from_strip(
    values: NDArray[np.float32], shapes: Sequence[Sequence[int]]
) -> list[NDArray[np.float32]]:
    """Put images together again that are one strip of patches, [1, 3, side, side x patches]."""
    side = values.shape[2]
    images: list[NDArray[np.float32]] = []
    start = 0
    for n_rows, n_columns in shapes:
        stop = start + n_rows * n_columns * side
        blocks = values[0, :, :, start:stop].reshape(3, side, n_rows, n_columns, side)
        whole = blocks.transpose(0, 2, 1, 3, 4).reshape(3, n_rows * side, n_columns * side)
        images.append(np.ascontiguousarray(whole))
        start = stop
    return images


def _from_patches(
    patches: NDArray[np.float32], grids: NDArray[np.int64]
) -> list[tuple[NDArray[np.float32], ...]]:
    """Put Qwen's rows of patches together again, or PaddleOCR-VL's.

    A row of Qwen's is [3, 2 frames, side, side], and rows go by blocks of 2 x 2 patches
    (transformers image_processing_qwen2_vl.py). PaddleOCR-VL's go line by line, and have dimensions
    of their own: [rows, 3, side, side] (image_processing_paddleocr_vl.py).
    """
    single = math.isqrt(patches.shape[1] // 3)
    if patches.ndim == 2 and 3 * single**2 == patches.shape[1]:
        # HunYuanVL's: lines as well, flat.
        patches = patches.reshape(len(patches), 3, single, single)
    if patches.ndim == 4:
        return _from_lines(patches, grids)
    side = round((patches.shape[1] / (3 * _FRAMES)) ** 0.5)
    images: list[tuple[NDArray[np.float32], ...]] = []
    start = 0
    for _, rows, columns in grids.tolist():
        part = patches[start : start + rows * columns]
        start += rows * columns
        blocks = part.reshape(rows // 2, columns // 2, 2, 2, 3, _FRAMES, side, side)
        # Both frames of a still image are the same.
        whole = blocks[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6)
        images.append((np.ascontiguousarray(whole.reshape(3, rows * side, columns * side)),))
    return images


def _from_lines(
    patches: NDArray[np.float32], grids: NDArray[np.int64]
) -> list[tuple[NDArray[np.float32], ...]]:
    side = patches.shape[2]
    images: list[tuple[NDArray[np.float32], ...]] = []
    start = 0
    for _, rows, columns in grids.tolist():
        blocks = patches[start : start + rows * columns].reshape(rows, columns, 3, side, side)
        start += rows * columns
        whole = blocks.transpose(2, 0, 3, 1, 4).reshape(3, rows * side, columns * side)
        images.append((np.ascontiguousarray(whole),))
    return images
