"""Images to measure with: a user's folder, or the built-in ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from edgevlm.runtime.image import load_image
from edgevlm.runtime.image_folder import image_paths
from edgevlm.runtime.layout import Pixels


def read_images(folder: Path, *, n_most: int, side: int | None = None) -> list[Pixels]:
    """Return the first images of a folder by name: RGB uint8 [height, width, 3] each.

    Args:
        folder: with images.
        n_most: how many.
        side: scale each to this many pixels a side; None: as they are.

    Raises:
        SourceNotFoundError: there is none.
        ImageError: a file that is no image, or beyond the limits.
    """
    images = [load_image(path) for path in image_paths(folder)[:n_most]]
    if side is None:
        return images
    return [np.asarray(Image.fromarray(image).resize((side, side))) for image in images]
