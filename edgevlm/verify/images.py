"""Images named by the user: files, and folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevlm.errors import ImageError
from edgevlm.runtime.image import load_image
from edgevlm.runtime.image_folder import image_paths
from edgevlm.runtime.layout import Pixels

MAX_IMAGES = 1000


def load_images(paths: Sequence[Path]) -> list[tuple[str, Pixels]]:
    """Load image files, and every image of the folders among them.

    Returns:
        (file name, RGB uint8 [height, width, 3]) in order, folders by name.

    Raises:
        SourceNotFoundError: a path that does not exist, or a folder without images.
        ImageError: a file that cannot be decoded, or more than 1000 of them.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        files += image_paths(path)
    if len(files) > MAX_IMAGES:
        raise ImageError(f"{len(files)} images are too many", hint=f"name {MAX_IMAGES} at most")
    return [(file.name, load_image(file)) for file in files]
