"""The second stage: what the vision tower is given of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.native.projector import EncodedImage
from edgevlm.reference_file import CaseImage
from edgevlm.verify.metrics import PixelDifference, pixel_difference
from edgevlm.verify.report import Stage, Status, because_of, worst

PIXELS = "preprocessed pixels"
_EQUAL = 1e-3
# Mean difference up to which an image is seen alike: half a step of 8-bit colour after the usual
# deviation of 0.25 is 0.008.
_NEAR = 0.02


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One image as both sides saw it.

    Attributes:
        image: the reference's.
        encoded: ours.
        status: of its pixels.
        summary: what was found.
        cause: of what differs.
        difference: of its worst encode; None where nothing could be compared.
    """

    image: CaseImage
    encoded: EncodedImage
    status: Status
    summary: str = ""
    cause: str = ""
    difference: PixelDifference | None = None

    @property
    def is_near(self) -> bool:
        """Whether the pixels differ by no more than rounding."""
        return self.difference is not None and self.difference.mean_difference <= _NEAR


def look(image: CaseImage, encoded: EncodedImage) -> Seen:
    """Hold one image's pixels against the image processor's."""
    if not image.pixels:
        why = "the reference keeps no pixels of an image"
        return Seen(image=image, encoded=encoded, status="not checked", summary=why)
    seen = encoded.graph_input
    if seen is None or not seen.tiles:
        why = seen.not_seen if seen is not None else "the projector was not watched"
        return Seen(image=image, encoded=encoded, status="not observable", summary=why)
    here = [tile.shape[1:] for tile in seen.tiles]
    there = [tile.shape[1:] for tile in image.pixels]
    if here != there:
        return Seen(
            image=image,
            encoded=encoded,
            status="fail",
            summary=f"{image.name}: {_sizes(here)} here, {_sizes(there)} in transformers",
            cause="the image is resized or cut to other sizes: check size, patch size and limits of"
            " pixels in the file",
        )
    pairs = zip(seen.tiles, image.pixels, strict=True)
    found = max(
        (pixel_difference(ours, theirs) for ours, theirs in pairs),
        key=lambda one: one.max_difference,
    )
    # Resizing is the runtime's, whatever the file says: only mean and deviation are the file's.
    status = "pass" if found.max_difference <= _EQUAL else "warn"
    status = "fail" if found.is_rescaled else status
    return Seen(
        image=image,
        encoded=encoded,
        status=status,
        summary=f"{image.name}: largest difference {found.max_difference:.3g}, mean"
        f" {found.mean_difference:.3g} (normalised units)",
        cause="" if status == "pass" else _cause(found, there[0]),
        difference=found,
    )


def check_pixels(images: Sequence[Seen], losses: Sequence[str]) -> Stage:
    """Return the stage: the worst of all images that could be compared.

    Args:
        images: as both sides saw them.
        losses: what the projector's file says that the runtime does otherwise.
    """
    known = [one for one in images if one.status not in ("not checked", "not observable")]
    if not known:
        unseen = [one for one in images if one.status == "not observable"]
        one = (unseen or list(images) or [None])[0]
        return Stage(
            name=PIXELS,
            status=one.status if one is not None else "not checked",
            summary=one.summary if one is not None else "the reference has no image",
        )
    status = worst([one.status for one in known])
    shown = max(
        (one for one in known if one.status == status),
        key=lambda one: one.difference.max_difference if one.difference is not None else 0.0,
    )
    rescaled = shown.difference is not None and shown.difference.is_rescaled
    n_equal = sum(one.status == "pass" for one in known)
    return Stage(
        name=PIXELS,
        status=status,
        summary=f"{n_equal} of {len(known)} images are equal; {shown.summary}",
        cause="" if status == "pass" else because_of(shown.cause, () if rescaled else losses),
        numbers={
            "n_images": len(known),
            "n_equal": n_equal,
            "max_difference": shown.difference.max_difference if shown.difference else None,
            "mean_difference": shown.difference.mean_difference if shown.difference else None,
        },
    )


def _sizes(sizes: Sequence[tuple[int, ...]]) -> str:
    shown = [f"{width}x{height}" for height, width in sizes[:3]]
    more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    return ", ".join(shown) + more


def _cause(found: PixelDifference, size: tuple[int, ...]) -> str:
    if found.is_rescaled:
        channels = zip(("red", "green", "blue"), found.slope, found.offset, strict=True)
        told = ", ".join(
            f"{name} x {slope:.4g} {round(offset, 4) + 0.0:+.4g}"
            for name, slope, offset in channels
        )
        return (
            "image_mean or image_std of the file are others: our pixels are the reference's with"
            f" {told}"
        )
    height, width = size
    how = "rounds otherwise" if found.mean_difference <= _NEAR else "cuts or pads it otherwise"
    return (
        f"llama.cpp resizes this image with another filter or {how}: answers about it shift, and no"
        f" file can change that; an image of {width}x{height} needs no resizing and tells about the"
        " rest"
    )
