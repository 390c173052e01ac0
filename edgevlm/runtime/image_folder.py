"""The images of a folder: which files are taken for images, in which order."""

from __future__ import annotations

from pathlib import Path

from edgevlm.errors import SourceNotFoundError

# Of the formats that `load_image` decodes wherever Pillow runs.
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")


def image_paths(folder: Path) -> list[Path]:
    """Return the paths of a folder's images by name; folders within it are not looked at.

    Raises:
        SourceNotFoundError: no such folder, or none in it.
    """
    if not folder.is_dir():
        raise SourceNotFoundError(f"there is no folder `{folder}`", hint="check the path")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS)
    if not paths:
        raise SourceNotFoundError(
            f"`{folder}` holds no image", hint=f"images end in {', '.join(_ENDINGS)}"
        )
    return paths
