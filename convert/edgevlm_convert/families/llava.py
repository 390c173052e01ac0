"""LLaVA: CLIP or SigLIP, joined by two layers to Llama, Mistral, Qwen2 or Qwen3.

Facts: tensor names from gguf-py constants.py; what the graph computes from
tools/mtmd/models/llava.cpp and tools/mtmd/clip.cpp; config keys from transformers' `LlavaConfig`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import array, boolean, f32, string
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Mapped, Rule, computed
from edgevlm_convert.text.llama import LLAMA, MISTRAL
from edgevlm_convert.text.qwen2 import QWEN2
from edgevlm_convert.text.qwen3 import QWEN3
from edgevlm_convert.towers.vision import TowerSizes, pair, size_metadata
from edgevlm_convert.towers.vit import (
    CLIP_DEFAULTS,
    SIGLIP_DEFAULTS,
    activation_metadata,
    block_rules,
    class_token_rules,
    dropped_head_rules,
    embedding_rules,
    first_norm_rules,
    read_vit,
    unread_rules,
)

_PROJECTOR_TYPE = "mlp"
_CLIP, _SIGLIP = "clip_vision_model", "siglip_vision_model"
_BICUBIC = 3


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    losses = _image_losses(source.preprocessor, is_clip=_is_clip(source))
    return replace(build_tower(source), losses=losses)


def _is_clip(source: Source) -> bool:
    return source.vision.text("model_type", default=_CLIP) == _CLIP


def build_tower(source: Source) -> Part:
    """Return rules and metadata of tower and projector, whatever images they get.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    is_clip = _is_clip(source)
    vision = source.vision.with_defaults(CLIP_DEFAULTS if is_clip else SIGLIP_DEFAULTS)
    prefix, sizes = source.prefixes.vision, read_vit(vision)
    layers = _feature_layers(source.config, sizes.n_layers)
    _check_tokens(source.config, is_clip=is_clip)
    source.config.require("projector_hidden_act", ("gelu", "gelu_pytorch_tanh"), default="gelu")
    source.preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    # The file of a tower whose input alone is read keeps a block: llama.cpp wants one.
    read = replace(sizes, n_layers=max(1, *layers))
    tower = _clip_tower(source, sizes) if is_clip else _siglip_tower(source, sizes)
    projector, zeros = _projector(source, len(layers) * sizes.n_embd)
    epsilon = vision.number("layer_norm_eps", low=1e-12, high=1.0)
    return Part(
        rules=(
            *tower.rules,
            *block_rules(prefix, read),
            *unread_rules(prefix, sizes, read.n_layers),
            *projector,
        ),
        computed=zeros,
        late_metadata={
            **size_metadata(source, read),
            "clip.projector_type": string(_PROJECTOR_TYPE),
            "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
            # Counted from the input of the first block; without it the graph leaves out the last.
            "clip.vision.feature_layer": array("INT32", layers),
            **activation_metadata(vision),
            **tower.metadata,
        },
    )


def _clip_tower(source: Source, sizes: TowerSizes) -> Part:
    """Return what stands before the first block; which llama.cpp it is for is kept."""
    prefix, first = source.prefixes.vision, source.class_token_first(_PROJECTOR_TYPE)
    return Part(
        rules=(
            *class_token_rules(prefix, sizes, first=first),
            *first_norm_rules(prefix, sizes.n_embd),
        ),
        metadata={"edgevlm.class_token_first": boolean(first)},
    )


def _siglip_tower(source: Source, sizes: TowerSizes) -> Part:
    prefix = source.prefixes.vision
    return Part(rules=(*embedding_rules(prefix, sizes), *dropped_head_rules(prefix)))


def _feature_layers(config: Section, n_layers: int) -> list[int]:
    """Return after how many blocks the tower's state is handed over, side by side if several.

    Raises:
        CheckpointError: a block that there is not, or another order than the graph's.
    """
    key, default = "vision_feature_layer", -2
    low, high = -n_layers - 1, n_layers
    if isinstance(config.raw(key), list):
        named = config.integers(key, low=low, high=high, max_length=n_layers + 1)
    else:
        named = [config.integer(key, low=low, high=high, default=default)]
    layers = [layer if layer >= 0 else n_layers + 1 + layer for layer in named]
    if not layers or sorted(set(layers)) != layers:
        config.fail(key, "layers in rising order, each once, as llama.cpp stacks them")
    return layers


def _check_tokens(config: Section, *, is_clip: bool) -> None:
    """Refuse a number of visual tokens other than that of the patches.

    Raises:
        CheckpointError: CLIP's class token is wanted as well, or a patch of SigLIP is left out.
    """
    key, wanted = "vision_feature_select_strategy", "default" if is_clip else "full"
    if config.text(key, default="default") != wanted:
        config.fail(key, f"{wanted!r}: llama.cpp makes as many tokens as there are patches")


def _image_losses(preprocessor: Section, *, is_clip: bool) -> tuple[str, ...]:
    if preprocessor.boolean("do_pad", default=False):
        return ()
    crops = preprocessor.boolean("do_center_crop", default=is_clip)
    does = "takes the square in their middle" if crops else "stretches them"
    return (
        f"images that are not square: llama.cpp puts grey bars beside them, transformers {does}",
    )


def _projector(source: Source, n_features: int) -> tuple[list[Rule], tuple[Mapped, ...]]:
    """Return the rules of both layers, and the zeros that stand for biases they lack."""
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    bias = source.config.boolean("multimodal_projector_bias", default=True)
    prefix = source.prefixes.projector
    rules = [
        *pair(f"{prefix}linear_1", "mm.0", (n_text, n_features), bias=bias),
        *pair(f"{prefix}linear_2", "mm.2", (n_text, n_text), bias=bias),
    ]
    zeros = np.zeros(n_text, dtype=np.float32)
    # The graph adds both without asking whether they are there.
    names = () if bias else ("mm.0.bias", "mm.2.bias")
    return rules, tuple(computed(name, zeros) for name in names)


FAMILY = Family(
    name="llava",
    architectures=("LlavaForConditionalGeneration",),
    vision_models=(_CLIP, _SIGLIP),
    text_models=(LLAMA, MISTRAL, QWEN2, QWEN3),
    prefixes=Prefixes(
        text="language_model.model.",
        vision="vision_tower.",
        projector="multi_modal_projector.",
        head="language_model.lm_head.",
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<image>",
    runtime_tokens=(),
    status="KLD to transformers <= 1e-5",
)
