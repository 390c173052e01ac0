"""LightOnOCR: Pixtral's tower and Mistral 3's merger of patches over Qwen3, rows without ends.

Facts: see towers/pixtral.py; llama.cpp conversion/lighton_ocr.py, and tools/mtmd/clip.cpp
(`PROJECTOR_TYPE_LIGHTONOCR`) for what is done with images; config keys and defaults from
transformers' `LightOnOcrConfig`.
"""

from __future__ import annotations

from dataclasses import replace

from edgevlm_convert.config import Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.text.qwen3 import QWEN3, build_qwen3
from edgevlm_convert.towers.pixtral import Joint, build_pixtral, read_longest_edge, read_n_merged
from edgevlm_convert.towers.vision import read_image_size, read_patch_size

_PROJECTOR_TYPE = "lightonocr"
_VISION_DEFAULTS = {"image_size": 1540, "patch_size": 14, "hidden_act": "silu"}
_TEXT_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "vocab_size": 151936,
}
_LONGEST = 1540
_LONGEST_KEY = "clip.vision.preproc_image_size"
# Visual tokens a side: libmtmd takes 4096 of an image.
_MAX_SIDE = 64
_MAX_STEP = 256


def build_text(source: Source) -> Part:
    """Return rules and metadata of the text model, whose output is tied unless a key says not.

    Raises:
        CheckpointError: as of Qwen3.
    """
    config = source.config.with_defaults({"tie_word_embeddings": True})
    return build_qwen3(replace(source, config=config))


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    preprocessor, vision = source.preprocessor, source.vision.with_defaults(_VISION_DEFAULTS)
    n_merged, patch = read_n_merged(source.config), read_patch_size(vision)
    cell = n_merged * patch
    longest = read_longest_edge(preprocessor, default=_LONGEST)
    if longest > _MAX_SIDE * cell:
        preprocessor.fail("size", f"a longest edge of {_MAX_SIDE * cell} pixels at most")
    given = {key: vision.raw(key) for key in [*vision.keys()]}
    part = build_pixtral(
        replace(source, config=source.config.with_values({"vision_config": given})),
        Joint(
            projector_type=_PROJECTOR_TYPE,
            n_merged=n_merged,
            merges=True,
            bias=False,
            breaks_rows=False,
            losses=_image_losses(longest, cell, _read_step(preprocessor, patch)),
        ),
    )
    # libmtmd scales every image to this; whole cells, so that it leaves one of that size alone.
    whole = -(-longest // cell) * cell
    keys = {} if whole == read_image_size(vision) else {_LONGEST_KEY: u32(whole)}
    return replace(part, late_metadata={**part.late_metadata, **keys})


def _read_step(preprocessor: Section, default: int) -> int:
    """Return the pixels of which transformers makes the sides of an image a multiple."""
    key = "patch_size"
    if isinstance(preprocessor.raw(key), dict):
        return preprocessor.section(key).integer("height", low=1, high=_MAX_STEP)
    return preprocessor.integer(key, low=1, high=_MAX_STEP, default=default)


def _image_losses(longest: int, cell: int, step: int) -> tuple[str, ...]:
    """Say what llama.cpp does otherwise with images than `PixtralImageProcessor`."""
    losses = [
        f"images whose longer side is below {longest} pixels: llama.cpp makes them as large as"
        " that, transformers leaves them small"
    ]
    if step % cell:
        losses.append(
            f"images whose sides are no multiples of {cell} pixels: they are stretched to one,"
            f" transformers stretches to multiples of {step} and leaves out the patches that rest"
        )
    return tuple(losses)


FAMILY = Family(
    name="lighton_ocr",
    # As published, and as transformers writes it.
    architectures=("LightOnOCRForConditionalGeneration", "LightOnOcrForConditionalGeneration"),
    vision_models=("pixtral",),
    text_models=(replace(QWEN3, defaults=_TEXT_DEFAULTS, build=build_text),),
    prefixes=Prefixes(
        text="model.language_model.",
        vision="model.vision_encoder.",
        projector="model.vision_projection.",
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<|image_pad|>",
    runtime_tokens=("<|im_start|>", "<|im_end|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5 for images whose longer"
    " side is the model's; smaller ones are made as large",
)
