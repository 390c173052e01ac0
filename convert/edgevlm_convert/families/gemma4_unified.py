"""Gemma 4 without towers: patches of pixels become visual tokens by one matrix and three norms.

Facts: tensor names and metadata from llama.cpp conversion/gemma.py
(`Gemma4UnifiedVisionAudioModel`), what the graph computes from tools/mtmd/models/gemma4uv.cpp;
config keys from transformers' `Gemma4UnifiedVisionConfig` and image_processing_gemma4_unified.py.
"""

from __future__ import annotations

import numpy as np

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import Value, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Rename, Rule, Transform
from edgevlm_convert.shape_rules import Reshaped
from edgevlm_convert.text.gemma4_unified import GEMMA4_UNIFIED
from edgevlm_convert.towers.gemma4 import (
    IMAGE_SIZE,
    USUAL_POOL,
    most_pixels,
    sound_losses,
    sound_rules,
    with_pixels,
)
from edgevlm_convert.towers.vision import TowerSizes, pair, read_patch_size, size_metadata
from edgevlm_convert.transforms import reordered_columns, reordered_rows

PROJECTOR_TYPE = "gemma4uv"
_DEFAULTS = {
    "patch_size": 16,
    "pooling_kernel_size": USUAL_POOL,
    "mm_embed_dim": 3840,
    "mm_posemb_size": 1120,
    "rms_norm_eps": 1e-6,
    "output_proj_dims": 3840,
}
_MASK_LOSS = (
    "visual tokens see each other both ways in layers with a window alone, as in Gemma 4 and as"
    " transformers 5.23 computes it with a static cache; with its usual cache it does so in every"
    " layer"
)


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    patch = read_patch_size(vision)
    pool = vision.integer("pooling_kernel_size", low=1, high=64)
    vision.require("model_patch_size", (patch * pool,), default=patch * pool)
    n_embd = vision.integer("mm_embed_dim", low=1, high=MAX_WIDTH)
    vision.require("output_proj_dims", (n_embd,), default=n_embd)
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    rules = _patch_rules(source.prefixes.vision, vision, side=patch * pool, n_embd=n_embd)
    rules.append(
        Rename(
            source=f"{source.prefixes.projector}embedding_projection.weight",
            target="mm.input_projection.weight",
            shape=(n_text, n_embd),
        )
    )
    sound = sound_rules(source)
    sizes = TowerSizes(
        n_layers=0, n_embd=n_embd, n_ff=0, n_head=0, patch_size=patch, image_size=IMAGE_SIZE
    )
    late: dict[str, Value] = {
        **size_metadata(with_pixels(source), sizes),
        "clip.vision.projector_type": string(PROJECTOR_TYPE),
        "clip.vision.attention.layer_norm_epsilon": f32(
            vision.number("rms_norm_eps", low=1e-12, high=1.0)
        ),
        "clip.vision.image_max_pixels": u32(
            most_pixels(source.preprocessor, patch=patch, pool=pool)
        ),
    }
    if pool != USUAL_POOL:
        late["clip.vision.projector.scale_factor"] = u32(pool)
    losses = (*sound_losses(sound), _MASK_LOSS)
    return Part(rules=(*rules, *sound), late_metadata=late, losses=losses)


def _patch_rules(prefix: str, vision: Section, *, side: int, n_embd: int) -> list[Rule]:
    """Return the rules of patches, whose pixels have channels last, and of positions.

    Args:
        prefix: of the checkpoint's tensors.
        vision: its section of config.json.
        side: of a visual token in pixels.
        n_embd: channels of a patch.
    """
    n_values = side * side * 3
    # The graph's rows hold all of a colour, then all of the next.
    by_colour = np.arange(n_values, dtype=np.int64).reshape(side, side, 3)
    by_colour = by_colour.transpose(2, 0, 1).reshape(-1)
    n_positions = vision.integer("mm_posemb_size", low=1, high=1 << 20)
    # Of columns all, then of rows; the checkpoint has both of a number side by side.
    by_axis = np.arange(2 * n_positions, dtype=np.int64).reshape(n_positions, 2).T.reshape(-1)
    rules: list[Rule] = [
        Transform(
            source=f"{prefix}patch_ln1.{kind}",
            target=f"v.patch_norm.1.{kind}",
            shape=(n_values,),
            rows=reordered_columns(by_colour),
        )
        for kind in ("weight", "bias")
    ]
    rules += [
        Transform(
            source=f"{prefix}patch_dense.weight",
            target="v.patch_embd.weight",
            shape=(n_embd, n_values),
            rows=reordered_columns(by_colour),
            precision="f16 or f32",
        ),
        Rename(source=f"{prefix}patch_dense.bias", target="v.patch_embd.bias", shape=(n_embd,)),
        *pair(f"{prefix}patch_ln2", "v.patch_norm.2", (n_embd,)),
        Reshaped(
            rule=Transform(
                source=f"{prefix}pos_embedding",
                target="v.position_embd.weight",
                shape=(n_positions, 2, n_embd),
                rows=reordered_rows(by_axis),
                precision="f32",
            ),
            shape=(2, n_positions, n_embd),
        ),
        *pair(f"{prefix}pos_norm", "v.patch_norm.3", (n_embd,)),
    ]
    return rules


FAMILY = Family(
    name="gemma4_unified",
    architectures=("Gemma4UnifiedForConditionalGeneration",),
    vision_models=("gemma4_unified_vision",),
    text_models=(GEMMA4_UNIFIED,),
    prefixes=Prefixes(
        text="model.language_model.",
        vision="model.vision_embedder.",
        projector="model.embed_vision.",
    ),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    image_span="<|image|>",
    runtime_tokens=("<|image>", "<image|>"),
    status="equal to llama.cpp's converter, KLD to transformers with a static cache <= 1e-5",
)
