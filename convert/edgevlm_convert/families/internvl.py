"""InternVL 2.5, 3 and 3.5 over Qwen2 or Qwen3: InternViT over tiles, pixel shuffle, two layers.

Facts: metadata from llama.cpp conversion/internvl.py; its graph from
tools/mtmd/models/internvl.cpp, its tiles from tools/mtmd/mtmd-image.cpp; config keys and defaults
from transformers' `InternVLConfig` and `GotOcr2ImageProcessor`, and from OpenGVLab's
configuration_internvl_chat.py.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import boolean, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Rule
from edgevlm_convert.text.qwen2 import QWEN2
from edgevlm_convert.text.qwen3 import QWEN3
from edgevlm_convert.text.qwen3_moe import QWEN3_MOE
from edgevlm_convert.towers.internvit import (
    OPENGVLAB,
    TRANSFORMERS,
    Naming,
    internvit_rules,
    read_internvit,
)
from edgevlm_convert.towers.vision import TowerSizes, pair, size_metadata
from edgevlm_convert.towers.vit import activation_metadata

_PROJECTOR_TYPE = "internvl"
_OPENGVLAB = "InternVLChatModel"
_BICUBIC = 3
_MAX_TILES = 144
_RATIO = 0.5
_IMAGE = "<IMG_CONTEXT>"
# OpenGVLab's own class writes prompts itself; its tokenizers' templates know no images. This is
# what the templates of the same models in transformers' form print.
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    is_original = _OPENGVLAB in source.config.texts("architectures")
    naming = OPENGVLAB if is_original else TRANSFORMERS
    return build_internvl(source, naming, is_original=is_original, numbered=is_original)


def build_internvl(source: Source, naming: Naming, *, is_original: bool, numbered: bool) -> Part:
    """Return rules and metadata of the mmproj file of one class.

    Args:
        source: of the model.
        naming: of the tower.
        is_original: whether config.json has OpenGVLab's keys for images, or transformers'.
        numbered: whether the projector's layers have numbers, or names.

    Raises:
        CheckpointError: as `build_vision`.
    """
    config = source.config
    vision, sizes = read_internvit(source.vision, naming)
    scale = _read_scale(config, sizes)
    n_tokens = sizes.n_patches // scale**2
    max_tiles = _read_original(config, sizes) if is_original else _read_new(source, n_tokens)
    source.preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    first = source.class_token_first(_PROJECTOR_TYPE)
    epsilon = vision.number("layer_norm_eps", low=1e-12, high=1)
    return Part(
        rules=(
            *internvit_rules(
                source.prefixes.vision, vision, sizes, naming, class_token_first=first
            ),
            *_projector_rules(source, scale**2 * sizes.n_embd, numbered=numbered),
        ),
        late_metadata={
            **size_metadata(source, sizes),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
            **activation_metadata(vision),
            "clip.vision.projector.scale_factor": u32(scale),
            "clip.vision.preproc_min_tiles": u32(1),
            "clip.vision.preproc_max_tiles": u32(max_tiles),
            "edgevlm.class_token_first": boolean(first),
        },
    )


def _read_new(source: Source, n_tokens: int) -> int:
    """Return the most tiles of an image, after refusing what the graph computes in one way only."""
    config, preprocessor = source.config, source.preprocessor
    config.require("vision_feature_layer", (-1,), default=-1)
    config.require("vision_feature_select_strategy", ("default",), default="default")
    config.require("projector_hidden_act", ("gelu",), default="gelu")
    config.require("image_seq_length", (n_tokens,), default=n_tokens)
    preprocessor.require("do_resize", (True,), default=True)
    preprocessor.require("min_patches", (1,), default=1)
    # Images are cut whatever `crop_to_patches` says: the processor passes its own word.
    return preprocessor.integer("max_patches", low=1, high=_MAX_TILES, default=12)


def _read_original(config: Section, sizes: TowerSizes) -> int:
    """Return the most tiles of an image, as `_read_new`."""
    config.require("select_layer", (-1,), default=-1)
    config.require("ps_version", ("v2",), default="v1")
    config.require("pad2square", (False,), default=False)
    config.require("force_image_size", (sizes.image_size,), default=sizes.image_size)
    config.require("min_dynamic_patch", (1,), default=1)
    if not config.boolean("dynamic_image_size", default=False):
        return 1
    # llama.cpp always sends the whole image behind the tiles.
    config.require("use_thumbnail", (True,), default=False)
    return config.integer("max_dynamic_patch", low=1, high=_MAX_TILES, default=6)


def _read_scale(config: Section, sizes: TowerSizes) -> int:
    """Return how many patches a side of a visual token has."""
    key = "downsample_ratio"
    scale = int(1 / config.number(key, low=1 / 64, high=1, default=_RATIO))
    side = sizes.image_size // sizes.patch_size
    if side % scale:
        config.fail(key, f"1 / a divisor of the {side} patches of a tile's side")
    return scale


def _projector_rules(source: Source, n_merged: int, *, numbered: bool) -> list[Rule]:
    """Return the rules of a norm and two layers, which OpenGVLab numbers with what lies between."""
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    names = ("0", "1", "3") if numbered else ("layer_norm", "linear_1", "linear_2")
    shapes = ((n_merged,), (n_text, n_merged), (n_text, n_text))
    return [
        rule
        for name, number, shape in zip(names, "013", shapes, strict=True)
        for rule in pair(f"{source.prefixes.projector}{name}", f"mm.model.mlp.{number}", shape)
    ]


FAMILY = Family(
    name="internvl",
    architectures=("InternVLForConditionalGeneration", _OPENGVLAB),
    vision_models=("internvl_vision", "intern_vit_6b"),
    text_models=(QWEN2, QWEN3, QWEN3_MOE),
    prefixes=Prefixes(
        text="language_model.model.",
        vision="vision_tower.",
        projector="multi_modal_projector.",
        head="language_model.lm_head.",
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span=_IMAGE,
    runtime_tokens=("<img>", "</img>"),
    chat_template=_CHAT_TEMPLATE,
    refused_texts={
        "internlm2": "neither transformers nor its tokenizers have InternLM2's classes, so that"
        " nothing could be checked",
    },
    status="KLD to transformers <= 1e-5, images of any size; both forms give the same files",
)
