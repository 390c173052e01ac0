"""Gemma 3n: MobileNetV5 makes 256 tokens of an image, joined to Gemma 3n.

Facts: tensor names and metadata from llama.cpp conversion/gemma.py (`Gemma3nVisionAudioModel`),
what the graph computes from tools/mtmd/models/mobilenetv5.cpp; config keys from transformers'
`Gemma3nConfig` and `Gemma3nVisionConfig`, what tokens beyond the text's own become from
`Gemma3nModel.forward` and `Gemma3nMultimodalEmbedder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm_convert.config import MAX_VOCABULARY, MAX_WIDTH
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import Value, f32, string
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Mapped, Rename, Row, Rule
from edgevlm_convert.safetensors import SourceTensor, widen
from edgevlm_convert.text.gemma3n import GEMMA3N
from edgevlm_convert.towers.gemma4 import sound_losses, sound_rules, with_pixels
from edgevlm_convert.towers.mobilenetv5 import tower_rules
from edgevlm_convert.towers.vision import TowerSizes, size_metadata

PROJECTOR_TYPE = "gemma3nv"
_DEFAULTS = {"hidden_size": 2048, "vocab_size": 128, "vocab_offset": 262144}
_END_OF_IMAGE, _END_TOKEN = 262144, "<end_of_image>"
# The graph's own; also what it makes of any image whose side is a multiple of as many pixels.
_EPSILON, _N_TOKENS, _USUAL_SIDE, _MAX_SIDE, _BILINEAR = 1e-6, 256, 768, 2048, 2
# Numbers that llama.cpp writes for this tower, whose graph reads none of them.
_N_FF, _N_BLOCKS, _N_HEADS = 8192, 128, 8


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    n_embd = vision.integer("hidden_size", low=1, high=MAX_WIDTH)
    if n_embd != n_text:
        vision.fail(
            "hidden_size",
            f"{n_text}, that of the text model: llama.cpp takes the one for the other here",
        )
    vision.require("rms_norm_eps", (_EPSILON,), default=_EPSILON)
    source.config.require("vision_soft_tokens_per_image", (_N_TOKENS,), default=_N_TOKENS)
    side = _read_side(source)
    sizes = TowerSizes(
        n_layers=_N_BLOCKS,
        n_embd=n_embd,
        n_ff=_N_FF,
        n_head=_N_HEADS,
        patch_size=side // _N_TOKENS,
        image_size=side,
    )
    sound = sound_rules(source)
    late: dict[str, Value] = {
        **size_metadata(with_pixels(source), sizes),
        "clip.vision.projector_type": string(PROJECTOR_TYPE),
        "clip.vision.attention.layer_norm_epsilon": f32(_EPSILON),
    }
    return Part(
        rules=(
            *tower_rules(vision, source.prefixes.vision, n_embd),
            *_joining_rules(source, n_embd),
            *sound,
        ),
        late_metadata=late,
        losses=sound_losses(sound),
    )


def _read_side(source: Source) -> int:
    """Return the side of the square that images are stretched to, in pixels."""
    preprocessor = source.preprocessor
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("resample", (_BILINEAR,), default=_BILINEAR)
    preprocessor.require("image_seq_length", (_N_TOKENS,), default=_N_TOKENS)
    if not preprocessor.has("size"):
        return _USUAL_SIDE
    size = preprocessor.section("size")
    side = size.integer("height", low=_N_TOKENS, high=_MAX_SIDE)
    size.require("width", (side,), default=side)
    if side % _N_TOKENS:
        size.fail("height", f"a multiple of {_N_TOKENS}: llama.cpp's pools divide no other picture")
    return side


def _joining_rules(source: Source, n_embd: int) -> list[Rule]:
    """Return the rules of what makes the tower's tokens, and the tower's own ids, the text's."""
    vision, prefix = source.vision.with_defaults(_DEFAULTS), source.prefixes.projector
    n_ids = vision.integer("vocab_size", low=1, high=MAX_VOCABULARY)
    offset = vision.integer("vocab_offset", low=0, high=MAX_VOCABULARY)
    end = source.config.integer("eoi_token_id", low=0, high=1 << 31, default=_END_OF_IMAGE)
    known = source.token_id(_END_TOKEN)
    if known not in (None, end):
        source.config.fail("eoi_token_id", f"{known}, the id of {_END_TOKEN}")
    if not offset <= end < offset + n_ids:
        source.config.fail("eoi_token_id", f"an id from {offset} to {offset + n_ids - 1}")
    embedding, norm = f"{prefix}embedding.weight", f"{prefix}hard_embedding_norm.weight"
    projection = f"{prefix}embedding_projection.weight"
    return [
        Rename(source=embedding, target="mm.embedding.weight", shape=(n_ids, n_embd)),
        Rename(source=norm, target="mm.hard_emb_norm.weight", shape=(n_embd,)),
        Rename(
            source=f"{prefix}soft_embedding_norm.weight",
            target="mm.soft_emb_norm.weight",
            shape=(n_embd,),
        ),
        Rename(source=projection, target="mm.input_projection.weight", shape=(n_embd, n_embd)),
        _ProjectedRow(
            source=embedding,
            row=end - offset,
            target="v.token_embd.img_end",
            norm=norm,
            projection=projection,
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class _ProjectedRow(Row):
    """The token behind an image as the text model gets it, which its own embedding lacks.

    Attributes:
        norm: name of the norm of such tokens.
        projection: name of the matrix that makes rows of the text model of them.
    """

    norm: str
    projection: str

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        (plain,) = super().apply(tensors)
        projection = tensors[self.projection]

        def read(start: int, stop: int) -> NDArray[np.float32]:
            row = _normalized(plain.read(0, 1)[0]) * _whole(tensors[self.norm])
            matrix = _whole(projection).reshape(projection.shape)
            values = _normalized(np.asarray(matrix @ row, dtype=np.float32))
            return values.reshape(1, -1)[start:stop]

        sources = (*plain.sources, *tensors[self.norm].parts, *projection.parts)
        shape = projection.shape[:1]
        return [Mapped(name=self.target, shape=shape, sources=sources, precision="f32", read=read)]


def _whole(tensor: SourceTensor) -> NDArray[np.float32]:
    """Return all values of a tensor, flattened."""
    return widen(tensor.bits(0, int(np.prod(tensor.shape))), tensor.dtype)


def _normalized(row: NDArray[np.float32]) -> NDArray[np.float32]:
    return row / np.sqrt(np.mean(row * row, dtype=np.float32) + np.float32(_EPSILON))


FAMILY = Family(
    name="gemma3n",
    architectures=("Gemma3nForConditionalGeneration",),
    vision_models=("gemma3n_vision",),
    text_models=(GEMMA3N,),
    prefixes=Prefixes(
        text="model.language_model.",
        vision="model.vision_tower.timm_model.",
        projector="model.embed_vision.",
    ),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    image_span="<image_soft_token>",
    runtime_tokens=("<start_of_image>", _END_TOKEN),
    status="KLD to transformers <= 1e-5",
)
