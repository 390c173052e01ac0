"""Gemma 4: a tower of rotary positions in two directions, patches averaged 3 x 3.

Facts: tensor names and metadata from llama.cpp conversion/gemma.py (`Gemma4VisionAudioModel`), what
the graph computes from tools/mtmd/models/gemma4v.cpp; config keys from transformers'
`Gemma4VisionConfig` and image_processing_pil_gemma4.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm_convert.config import Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import Value, boolean, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Rename, Rule
from edgevlm_convert.shape_rules import Permuted, Reshaped
from edgevlm_convert.text.decoder import matrices
from edgevlm_convert.text.gemma4 import GEMMA4
from edgevlm_convert.towers.gemma4 import (
    IMAGE_SIZE,
    USUAL_POOL,
    most_pixels,
    sound_losses,
    sound_rules,
    with_pixels,
)
from edgevlm_convert.towers.vision import TowerSizes, read_tower, size_metadata

PROJECTOR_TYPE = "gemma4v"
_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 16,
    "num_attention_heads": 12,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "pooling_kernel_size": 3,
    "patch_size": 16,
    "position_embedding_size": 10240,
}
_THETA = 100.0
_MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {
    "input_layernorm": "ln1",
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ffn_post_norm",
}
_BOUNDS = ("input_min", "input_max", "output_min", "output_max")


@dataclass(frozen=True, kw_only=True)
class _Tower:
    """What a tower's tensors depend on.

    Attributes:
        sizes: of it.
        pool: patches a side that become one token.
        is_clipped: inputs and outputs of matrices have bounds.
        is_standardized: tokens have a mean and a scale.
    """

    sizes: TowerSizes
    pool: int
    is_clipped: bool
    is_standardized: bool


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision.with_defaults(_DEFAULTS)
    tower = _read_tower(vision)
    n_text = source.text.integer("hidden_size", low=1, high=1 << 20)
    prefix, sizes = source.prefixes.vision, tower.sizes
    rules = _embedding_rules(prefix, vision, tower)
    for layer in range(sizes.n_layers):
        rules += _block_rules(f"{prefix}encoder.layers.{layer}.", f"v.blk.{layer}.", tower)
    rules.append(
        Rename(
            source=f"{source.prefixes.projector}embedding_projection.weight",
            target="mm.input_projection.weight",
            shape=(n_text, sizes.n_embd),
        )
    )
    sound = sound_rules(source)
    rules += sound
    epsilon = vision.number("rms_norm_eps", low=1e-12, high=1.0)
    late: dict[str, Value] = {
        **size_metadata(with_pixels(source), sizes),
        "clip.vision.projector_type": string(PROJECTOR_TYPE),
        "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
        "clip.use_gelu": boolean(True),
        "clip.vision.image_max_pixels": u32(
            most_pixels(source.preprocessor, patch=sizes.patch_size, pool=tower.pool)
        ),
    }
    if tower.pool != USUAL_POOL:
        late["clip.vision.projector.scale_factor"] = u32(tower.pool)
    return Part(rules=tuple(rules), late_metadata=late, losses=sound_losses(sound))


def _read_tower(vision: Section) -> _Tower:
    vision.require("hidden_activation", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh")
    vision.require("attention_bias", (False,), default=False)
    sizes = read_tower(
        vision, layers="num_hidden_layers", heads="num_attention_heads", image_size=IMAGE_SIZE
    )
    head = sizes.n_embd // sizes.n_head
    vision.require("head_dim", (head,), default=head)
    vision.require("num_key_value_heads", (sizes.n_head,), default=sizes.n_head)
    if head % 4:
        vision.fail("head_dim", "a multiple of 4: rotary positions turn pairs in two directions")
    key = "rope_parameters"
    rope = vision.section(key) if vision.has(key) else vision.empty(key)
    rope.require("rope_theta", (_THETA, int(_THETA)), default=_THETA)
    # transformers 5.0 called it "default".
    rope.require("rope_type", ("axial", "default"), default="axial")
    return _Tower(
        sizes=sizes,
        pool=vision.integer("pooling_kernel_size", low=1, high=64),
        is_clipped=vision.boolean("use_clipped_linears", default=False),
        is_standardized=vision.boolean("standardize", default=False),
    )


def _embedding_rules(prefix: str, vision: Section, tower: _Tower) -> list[Rule]:
    """Return the rules of patches, whose pixels have channels last, and of positions."""
    n_embd, side = tower.sizes.n_embd, tower.sizes.patch_size
    n_positions = vision.integer("position_embedding_size", low=1, high=1 << 20)
    rules: list[Rule] = [
        Permuted(
            source=f"{prefix}patch_embedder.input_proj.weight",
            shape=(n_embd, side * side * 3),
            view=(n_embd, side, side, 3),
            axes=(0, 3, 1, 2),
            target="v.patch_embd.weight",
            precision="f16 or f32",
        ),
        Rename(
            source=f"{prefix}patch_embedder.position_embedding_table",
            target="v.position_embd.weight",
            shape=(2, n_positions, n_embd),
            precision="f32",
        ),
    ]
    if tower.is_standardized:
        rules += [
            Rename(source=f"{prefix}{name}", target=f"v.{name}", shape=(n_embd,))
            for name in ("std_bias", "std_scale")
        ]
    return rules


def _block_rules(source: str, target: str, tower: _Tower) -> list[Rule]:
    n_embd, n_ff = tower.sizes.n_embd, tower.sizes.n_ff
    head = (n_embd // tower.sizes.n_head,)
    shapes = {f"{one}.weight": (f"{to}.weight", (n_embd,)) for one, to in _NORMS.items()}
    for letter in "qk":
        shapes[f"self_attn.{letter}_norm.weight"] = (f"attn_{letter}_norm.weight", head)
    widths = {"ffn_gate": (n_ff, n_embd), "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff)}
    rules = matrices(source, target, shapes)
    for one, to in _MATRICES.items():
        shape = widths.get(to, (n_embd, n_embd))
        rules.append(
            Rename(
                source=f"{source}{one}.linear.weight", target=f"{target}{to}.weight", shape=shape
            )
        )
        if tower.is_clipped:
            rules += [
                Reshaped(
                    rule=Rename(
                        source=f"{source}{one}.{bound}", target=f"{target}{to}.{bound}", shape=()
                    ),
                    shape=(1,),
                )
                for bound in _BOUNDS
            ]
    return rules


FAMILY = Family(
    name="gemma4",
    architectures=("Gemma4ForConditionalGeneration",),
    vision_models=("gemma4_vision",),
    text_models=(GEMMA4,),
    prefixes=Prefixes(
        text="model.language_model.",
        vision="model.vision_tower.",
        projector="model.embed_vision.",
    ),
    projector=Projector(type=PROJECTOR_TYPE, build=build_vision),
    image_span="<|image|>",
    runtime_tokens=("<|image>", "<image|>"),
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5",
)
