"""Janus-Pro, its understanding alone: a SigLIP tower, two layers, Llama.

What draws images (a VQ-VAE, an embedding and a head of its codes) is left out by name: llama.cpp
answers in text. Facts: config keys and defaults from transformers' `JanusVisionConfig`, what its
processor writes around an image from `JanusProcessor`; the rest in towers/janus.py.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Drop, Rule
from edgevlm_convert.text.llama import LLAMA
from edgevlm_convert.towers.janus import PROJECTOR_TYPE, build_janus_tower
from edgevlm_convert.towers.vision import TowerSizes
from edgevlm_convert.towers.vit import SIGLIP_DEFAULTS, block_rules, read_vit

_DEFAULTS = {
    **SIGLIP_DEFAULTS,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "hidden_act": "gelu",
    "mlp_ratio": 4.0,
    "projection_dim": 2048,
    "num_image_tokens": 576,
}
_DRAWING = ("vqmodel.", "generation_embeddings.", "generation_aligner.", "generation_head.")
_NO_DRAWING = "draws images: llama.cpp answers in text"


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    sizes = _read_sizes(vision)
    vision.require("use_qk_norm", (False,), default=False)
    vision.require("depth", (2,), default=2)
    vision.require("num_image_tokens", (sizes.n_patches,), default=sizes.n_patches)
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    vision.require("projection_dim", (n_text,), default=n_text)
    blocks = block_rules(
        source.prefixes.vision,
        sizes,
        output="projection_layer",
        qkv_bias=vision.boolean("attention_bias", default=True),
    )
    return build_janus_tower(
        source,
        vision,
        sizes,
        blocks=[*blocks, *_dropped(source)],
        layers=("fc1", "hidden_layers.0"),
    )


def _read_sizes(vision: Section) -> TowerSizes:
    n_embd = vision.integer("hidden_size", low=1, high=MAX_WIDTH)
    return read_vit(vision, n_ff=int(n_embd * vision.number("mlp_ratio", low=1 / n_embd, high=64)))


def _dropped(source: Source) -> list[Rule]:
    """Return the rules of what draws images, under either prefix."""
    starts = tuple(f"{outer}{part}" for outer in ("model.", "") for part in _DRAWING)
    return [
        Drop(source=name, reason=_NO_DRAWING) for name in source.shapes if name.startswith(starts)
    ]


FAMILY = Family(
    name="janus",
    architectures=("JanusForConditionalGeneration",),
    vision_models=("janus_vision_model",),
    text_models=(LLAMA,),
    prefixes=Prefixes(
        text="model.language_model.", vision="model.vision_model.", projector="model.aligner."
    ),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    image_span="<image_placeholder>",
    runtime_tokens=(),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5; answers in text alone",
)
