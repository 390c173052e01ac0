"""What every vision tower's file says: sizes, how pixels are normalized; rules in pairs.

Facts: keys and their order from llama.cpp conversion/base.py (`MmprojModel.set_gguf_parameters`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgevlm_convert.config import MAX_HEADS, MAX_LAYERS, MAX_WIDTH, Section
from edgevlm_convert.family import Source
from edgevlm_convert.metadata import Value, array, boolean, u32
from edgevlm_convert.rules import Rename, Rule

# libmtmd refuses larger ones (tools/mtmd/clip.cpp).
_MAX_IMAGE_SIZE = 8192
_MAX_PATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """The numbers that a vision tower's shapes depend on.

    Attributes:
        n_layers: blocks.
        n_embd: width.
        n_ff: width inside a feed-forward network.
        n_head: attention heads.
        patch_size: side of a patch in pixels.
        image_size: side of the image that the position table is for, in pixels.
    """

    n_layers: int
    n_embd: int
    n_ff: int
    n_head: int
    patch_size: int
    image_size: int

    @property
    def n_patches(self) -> int:
        """Patches of an image of `image_size`."""
        return (self.image_size // self.patch_size) ** 2


def read_tower(
    vision: Section,
    *,
    layers: str,
    heads: str,
    image_size: int,
    n_embd: str = "hidden_size",
    n_ff: int | None = None,
) -> TowerSizes:
    """Return the sizes of a tower.

    Args:
        vision: its configuration, with the class's defaults.
        layers: key of the number of blocks.
        heads: key of the number of heads.
        image_size: side of the image in pixels.
        n_embd: key of the width.
        n_ff: width inside a feed-forward network, None: what `intermediate_size` says.

    Raises:
        CheckpointError: a size is missing, absurd, or does not go with another.
    """
    sizes = TowerSizes(
        n_layers=vision.integer(layers, low=1, high=MAX_LAYERS),
        n_embd=vision.integer(n_embd, low=1, high=MAX_WIDTH),
        n_ff=n_ff or vision.integer("intermediate_size", low=1, high=MAX_WIDTH),
        n_head=vision.integer(heads, low=1, high=MAX_HEADS),
        patch_size=read_patch_size(vision),
        image_size=image_size,
    )
    if sizes.n_embd % sizes.n_head:
        vision.fail(heads, f"a divisor of the width {sizes.n_embd}")
    return sizes


def read_patch_size(vision: Section) -> int:
    """Return the side of a patch in pixels."""
    return vision.integer("patch_size", low=1, high=_MAX_PATCH_SIZE)


def read_image_size(vision: Section) -> int:
    """Return the side of the image in pixels."""
    return vision.integer("image_size", low=1, high=_MAX_IMAGE_SIZE)


def size_metadata(source: Source, sizes: TowerSizes) -> dict[str, Value]:
    """Return the keys that open the vision part of a projector's file."""
    n_out = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    return {
        "clip.has_vision_encoder": boolean(True),
        "clip.vision.projection_dim": u32(n_out),
        "clip.vision.image_size": u32(sizes.image_size),
        "clip.vision.patch_size": u32(sizes.patch_size),
        "clip.vision.embedding_length": u32(sizes.n_embd),
        "clip.vision.feed_forward_length": u32(sizes.n_ff),
        "clip.vision.block_count": u32(sizes.n_layers),
        "clip.vision.attention.head_count": u32(sizes.n_head),
        **_pixel_metadata(source.preprocessor),
    }


def _pixel_metadata(preprocessor: Section) -> dict[str, Value]:
    """Return mean and deviation, after refusing what llama.cpp does in one way only."""
    preprocessor.require("do_rescale", (True,), default=True)
    preprocessor.require("do_normalize", (True,), default=True)
    scale = preprocessor.number("rescale_factor", low=0, high=1, default=1 / 255)
    if not math.isclose(scale, 1 / 255, rel_tol=1e-3):
        preprocessor.fail("rescale_factor", "1/255: llama.cpp scales pixels with no other value")
    mean = preprocessor.numbers("image_mean", length=3, low=-10, high=10)
    deviation = preprocessor.numbers("image_std", length=3, low=1e-6, high=10)
    return {
        "clip.vision.image_mean": array("FLOAT32", mean),
        "clip.vision.image_std": array("FLOAT32", deviation),
    }


def pair(source: str, target: str, shape: tuple[int, ...], *, bias: bool = True) -> list[Rule]:
    """Return the rules of a weight and its bias, which has the weight's first dimension."""
    rules: list[Rule] = [Rename(source=f"{source}.weight", target=f"{target}.weight", shape=shape)]
    if bias:
        rules.append(Rename(source=f"{source}.bias", target=f"{target}.bias", shape=shape[:1]))
    return rules
