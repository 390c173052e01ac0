"""DeepSeek-OCR: SAM, then CLIP over what SAM made of the image, a mixture of experts.

Facts: metadata from llama.cpp conversion/deepseek.py (`DeepseekOCRVisionModel`), what its graph
fixes from tools/mtmd/models/deepseekocr.cpp and clip.cpp. transformers has no such class; the one
of Unlimited-OCR (`UnlimitedOcrForConditionalGeneration`) has the same towers, tensors and layout of
images, and a text model that looks back less far while it answers.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.families.deepseek_ocr2 import CHAT_TEMPLATE, check_images, given
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import Value, boolean, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Drop, Rename, Rule
from edgevlm_convert.text.deepseek_ocr import DEEPSEEK_OCR_TEXT, UNLIMITED_OCR_TEXT
from edgevlm_convert.towers.sam import (
    SamSizes,
    read_old_sam,
    read_sam,
    sam_metadata,
    sam_rules,
    separator_rule,
)
from edgevlm_convert.towers.vision import TowerSizes, pair, read_tower, size_metadata

_PROJECTOR_TYPE = "deepseekocr"
_UNLIMITED = ("UnlimitedOcrForConditionalGeneration", "UnlimitedOCRForCausalLM")
_TILE = 640
_DEFAULTS = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Of CLIP's norms; the graph has it built in.
_EPSILON = 1e-5
_CLIP_SIDE, _CLIP_PATCH = 224, 14


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision
    is_old = vision.has("width")
    sizes = _read_clip(source, _old_clip(vision) if is_old else given(vision, "encoder_config"))
    if is_old:
        sam = read_old_sam(source, vision.section("width").section("sam_vit_b"), sizes.n_embd)
    else:
        sam = read_sam(given(vision, "sam_config"), sizes.n_embd)
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    is_unlimited = bool(set(source.config.texts("architectures")) & set(_UNLIMITED))
    return Part(
        rules=(
            *sam_rules(source, sam),
            *_clip_rules(sizes),
            *pair("model.projector.layers", "mm.model.fc", (n_text, 2 * sizes.n_embd)),
            separator_rule(source, n_text),
            Rename(source="model.image_newline", target="v.image_newline", shape=(n_text,)),
        ),
        late_metadata=_metadata(source, sizes, sam, max_tiles=32 if is_unlimited else 9),
    )


def _old_clip(vision: Section) -> Section:
    """Return DeepSeek's own section of CLIP under transformers' names."""
    clip = vision.section("width").section("clip-l-14-224")
    names = {
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "layers": "num_hidden_layers",
        "image_size": "image_size",
        "patch_size": "patch_size",
    }
    return clip.with_values({new: clip.raw(old) for old, new in names.items() if clip.has(old)})


def _read_clip(source: Source, clip: Section) -> TowerSizes:
    clip = clip.with_defaults(_DEFAULTS)
    clip.require("hidden_act", ("quick_gelu",), default="quick_gelu")
    clip.require("layer_norm_eps", (_EPSILON,), default=_EPSILON)
    clip.require("image_size", (_CLIP_SIDE,), default=_CLIP_SIDE)
    clip.require("patch_size", (_CLIP_PATCH,), default=_CLIP_PATCH)
    if not clip.has("intermediate_size") or source.vision.has("width"):
        # DeepSeek's own configuration does not say it.
        first = source.shapes.get(f"{_clip_block(0)}mlp.fc1.weight", (4096,))
        clip = clip.with_values({"intermediate_size": first[0]})
    sizes = read_tower(
        clip, layers="num_hidden_layers", heads="num_attention_heads", image_size=_CLIP_SIDE
    )
    if sizes.n_ff == sizes.n_embd:
        # tools/mtmd/clip.cpp tells old files, with both names exchanged, by their shapes.
        clip.fail("intermediate_size", f"another number than the hidden size {sizes.n_embd}")
    return sizes


def _clip_block(layer: int) -> str:
    return f"model.vision_model.transformer.layers.{layer}."


def _clip_rules(sizes: TowerSizes) -> list[Rule]:
    stem, n_embd, n_ff = "model.vision_model.", sizes.n_embd, sizes.n_ff
    rules: list[Rule] = [
        Rename(source=f"{stem}embeddings.class_embedding", target="v.class_embd", shape=(n_embd,)),
        Rename(
            source=f"{stem}embeddings.position_embedding.weight",
            target="v.position_embd.weight",
            shape=(sizes.n_patches + 1, n_embd),
            precision="f32",
        ),
        Drop(
            source=f"{stem}embeddings.patch_embedding.weight",
            reason="what SAM makes of the image stands in the place of patches",
        ),
        Drop(source=f"{stem}embeddings.position_ids", reason="numbers the positions 0, 1, 2 ..."),
        *pair(f"{stem}pre_layrnorm", "v.pre_ln", (n_embd,)),
    ]
    for layer in range(sizes.n_layers):
        for name, (to, shape) in {
            "layer_norm1": ("ln1", (n_embd,)),
            "layer_norm2": ("ln2", (n_embd,)),
            "self_attn.qkv_proj": ("attn_qkv", (3 * n_embd, n_embd)),
            "self_attn.out_proj": ("attn_out", (n_embd, n_embd)),
            "mlp.fc1": ("ffn_up", (n_ff, n_embd)),
            "mlp.fc2": ("ffn_down", (n_embd, n_ff)),
        }.items():
            rules += pair(f"{_clip_block(layer)}{name}", f"v.blk.{layer}.{to}", shape)
    return rules


def _metadata(
    source: Source, sizes: TowerSizes, sam: SamSizes, *, max_tiles: int
) -> dict[str, Value]:
    return {
        **size_metadata(source, sizes),
        "clip.projector_type": string(_PROJECTOR_TYPE),
        "clip.vision.attention.layer_norm_epsilon": f32(_EPSILON),
        "clip.use_gelu": boolean(True),
        "clip.vision.projector.scale_factor": u32(1),
        "clip.vision.window_size": u32(sam.window),
        "clip.vision.preproc_min_tiles": u32(2),
        "clip.vision.preproc_max_tiles": u32(
            check_images(source.preprocessor, tile=_TILE, max_tiles=max_tiles)
        ),
        **sam_metadata(sam),
    }


FAMILY = Family(
    name="deepseek_ocr",
    architectures=("DeepseekOCRForCausalLM", *_UNLIMITED),
    vision_models=("unlimited_ocr_vision", "vision"),
    text_models=(DEEPSEEK_OCR_TEXT, UNLIMITED_OCR_TEXT),
    prefixes=Prefixes(
        text="model.", vision="model.sam_model.", projector="model.projector.layers."
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<image>",
    runtime_tokens=(),
    chat_template=CHAT_TEMPLATE,
    status="equal to llama.cpp's converter, KLD to transformers' class of Unlimited-OCR <= 1e-5,"
    " images of any size",
)
