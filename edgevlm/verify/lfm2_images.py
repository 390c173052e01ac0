"""The images of LFM2-VL as `Lfm2VlImageProcessor` makes them, whose only form needs torchvision.

Facts: transformers image_processing_lfm2_vl.py (`convert_image_to_patches`) and
processing_lfm2_vl.py (`_build_image_tokens`). Pillow's bilinear filter stands for torchvision's
with `antialias`, from which it differs by 2 of 255 at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from edgevlm_convert.checkpoint import Checkpoint
from numpy.typing import NDArray

from edgevlm.runtime.lfm2_canvas import Lfm2Canvas, Pixels
from edgevlm.verify.input_parts import image_settings

_START, _END, _THUMBNAIL = "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"


class Lfm2Images:
    """Image settings of a checkpoint, and what they make of images."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        settings = image_settings(checkpoint)

        def whole(key: str, default: int) -> int:
            return settings.integer(key, low=1, high=1 << 20, default=default)

        self._patch = whole("encoder_patch_size", 16)
        self._canvas = Lfm2Canvas(
            patch=self._patch,
            cell=self._patch * whole("downsample_factor", 2),
            min_tokens=whole("min_image_tokens", 64),
            max_tokens=whole("max_image_tokens", 256),
            tolerance=settings.number("max_pixels_tolerance", low=0, high=1e6, default=2.0),
            tile=whole("tile_size", 512),
            min_tiles=whole("min_tiles", 2),
            max_tiles=whole("max_tiles", 10),
            cuts=settings.boolean("do_image_splitting", default=True),
            has_thumbnail=settings.boolean("use_thumbnail", default=True),
        )
        numbers = [
            settings.numbers(key, length=3, low=-10, high=10) if settings.has(key) else [0.5] * 3
            for key in ("image_mean", "image_std")
        ]
        self._mean, self._deviation = (np.asarray(three, np.float32) for three in numbers)

    def encodes(self, image: Pixels) -> Sequence[Pixels]:
        """Return what is encoded of an image, RGB uint8 [height, width, 3]."""
        return self._canvas.cut(image)

    def text(self, image: Pixels, mark: str) -> str:
        """Return what a prompt holds for an image, `mark` for each visual token."""
        tokens = [mark * self._n_tokens(pixels) for pixels in self.encodes(image)]
        columns, rows = self._canvas.grid(image.shape[1], image.shape[0])
        if len(tokens) == 1:
            return f"{_START}{tokens[0]}{_END}"
        names = [
            f"<|img_row_{row + 1}_col_{column + 1}|>"
            for row in range(rows)
            for column in range(columns)
        ]
        names += [_THUMBNAIL] * (len(tokens) - len(names))
        return _START + "".join(map("".join, zip(names, tokens, strict=True))) + _END

    def tensors(self, images: Sequence[Pixels], torch: Any) -> dict[str, Any]:
        """Return the arguments of a call: rows of patches, padded to the longest encode."""
        encodes = [pixels for image in images for pixels in self.encodes(image)]
        patches = [self._patches(pixels) for pixels in encodes]
        longest = max(map(len, patches))
        values = np.zeros((len(patches), longest, patches[0].shape[1]), np.float32)
        mask = np.zeros((len(patches), longest), np.int32)
        for number, rows in enumerate(patches):
            values[number, : len(rows)] = rows
            mask[number, : len(rows)] = 1
        return {
            "pixel_values": torch.from_numpy(values),
            "pixel_attention_mask": torch.from_numpy(mask),
            "spatial_shapes": torch.tensor([self._shape(pixels) for pixels in encodes]),
        }

    def _shape(self, pixels: Pixels) -> list[int]:
        return [side // self._patch for side in pixels.shape[:2]]

    def _n_tokens(self, pixels: Pixels) -> int:
        factor = self._canvas.cell // self._patch
        n_rows, n_columns = (-(-side // factor) for side in self._shape(pixels))
        return n_rows * n_columns

    def _patches(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return [patches, side x side x 3] float32, the channels of a pixel side by side."""
        n_rows, n_columns = self._shape(pixels)
        values = (pixels.astype(np.float32) / np.float32(255) - self._mean) / self._deviation
        blocks = values.reshape(n_rows, self._patch, n_columns, self._patch, 3)
        return blocks.swapaxes(1, 2).reshape(n_rows * n_columns, -1)
