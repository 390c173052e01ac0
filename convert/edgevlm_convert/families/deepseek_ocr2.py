"""DeepSeek-OCR 2: SAM, a small Qwen2 as an encoder with learned queries, a mixture of experts.

Facts: metadata from llama.cpp conversion/deepseek.py (`DeepseekOCR2VisionModel`), what its graph
fixes from tools/mtmd/models/deepseekocr2.cpp and clip.cpp; config keys and defaults from
transformers' `DeepseekOcr2Config`, both namings of tensors from its conversion_mapping.py. What
DeepSeek's own class (`DeepseekOCR2ForCausalLM`, remote code) fixes is as llama.cpp's converter
has it.
"""

from __future__ import annotations

from edgevlm_convert.config import MAX_HEADS, MAX_WIDTH, Section
from edgevlm_convert.family import Family, Part, Projector, Source
from edgevlm_convert.metadata import Value, boolean, f32, string, u32
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Drop, Rename, Rule
from edgevlm_convert.text.deepseek_ocr import DEEPSEEK_OCR_TEXT
from edgevlm_convert.text.rope import rope_section
from edgevlm_convert.towers.sam import (
    IMAGE_SIZE,
    PATCH,
    SamSizes,
    read_old_sam,
    read_sam,
    sam_metadata,
    sam_rules,
    separator_rule,
    uses_new_names,
)
from edgevlm_convert.towers.vision import TowerSizes, pair, read_tower, size_metadata

_PROJECTOR_TYPE = "deepseekocr2"
_BICUBIC = 3
_MAX_TILES = 256
_TILE = 768
_GREY = [127, 127, 127]
# One query a visual token: of a tile, and of the whole image.
_QUERIES = {768: 144, 1024: 256}
_THETA = 1_000_000.0
_EPSILON = 1e-6
# Of transformers' class, and of DeepSeek's own, which its code fixes.
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": _EPSILON,
}
_OLD_DEFAULTS = {"layers": 24, "num_attention_heads": 14, "intermediate_size": 4864}
_OLD_HEADS_KV = 2
# Its own class writes prompts in code: texts one after the other, a line feed behind an image.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def build_vision(source: Source) -> Part:
    """Return rules and metadata of the mmproj file.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that the graph ignores.
    """
    vision = source.vision
    is_old = vision.has("width")
    sizes, n_head_kv, epsilon = _old_encoder(vision) if is_old else _encoder(vision)
    if is_old:
        width = vision.section("width")
        sam = read_old_sam(source, width.section("sam_vit_b"), sizes.n_embd)
    else:
        sam = read_sam(given(vision, "sam_config"), sizes.n_embd)
    n_text = source.text.integer("hidden_size", low=1, high=MAX_WIDTH)
    return Part(
        rules=(
            *sam_rules(source, sam),
            *_encoder_rules(source, sizes, n_head_kv),
            *pair(source.prefixes.projector.rstrip("."), "mm.model.fc", (n_text, sizes.n_embd)),
            separator_rule(source, n_text),
            Drop(source="model.image_newline", reason="no row of this model's images ends in it"),
        ),
        late_metadata=_metadata(source, sizes, sam, n_head_kv=n_head_kv, epsilon=epsilon),
    )


def given(section: Section, key: str) -> Section:
    """Return a nested section, empty where there is none."""
    return section.section(key) if section.has(key) else section.empty(key)


def _encoder(vision: Section) -> tuple[TowerSizes, int, float]:
    """Return sizes, key heads and epsilon of the encoder as transformers has them."""
    vision = given(vision, "encoder_config").with_defaults(_DEFAULTS)
    vision.require("hidden_act", ("silu",), default="silu")
    vision.require("use_sliding_window", (False,), default=False)
    rope = rope_section(vision)
    rope.require("rope_type", ("default",), default="default")
    rope.require("rope_theta", (_THETA, int(_THETA)), default=0)
    sizes = _sizes(vision, layers="num_hidden_layers")
    n_kv = vision.integer("num_key_value_heads", low=1, high=sizes.n_head)
    if sizes.n_head % n_kv:
        vision.fail("num_key_value_heads", f"a divisor of the {sizes.n_head} attention heads")
    return sizes, n_kv, vision.number("rms_norm_eps", low=1e-12, high=1.0)


def _old_encoder(vision: Section) -> tuple[TowerSizes, int, float]:
    """Return the same as DeepSeek's own class has them."""
    named = vision.section("width").section("qwen2-0-5b")
    n_embd = named.integer("dim", low=1, high=MAX_WIDTH)
    vision.require("image_size", (IMAGE_SIZE,), default=IMAGE_SIZE)
    vision.require("patch_size", (PATCH,), default=PATCH)
    vision = vision.with_defaults(_OLD_DEFAULTS).with_values({"hidden_size": n_embd})
    sizes = _sizes(vision, layers="layers")
    if sizes.n_head % _OLD_HEADS_KV:
        vision.fail("num_attention_heads", f"a multiple of the {_OLD_HEADS_KV} key heads")
    return sizes, _OLD_HEADS_KV, _EPSILON


def _sizes(vision: Section, *, layers: str) -> TowerSizes:
    vision = vision.with_values({"patch_size": PATCH})
    sizes = read_tower(vision, layers=layers, heads="num_attention_heads", image_size=IMAGE_SIZE)
    vision.integer("num_attention_heads", low=1, high=MAX_HEADS)
    if sizes.n_embd // sizes.n_head % 2:
        vision.fail("num_attention_heads", "heads of an even number of channels, to be rotated")
    if sizes.n_ff == sizes.n_embd:
        # tools/mtmd/clip.cpp tells old files, with both names exchanged, by their shapes.
        vision.fail("intermediate_size", f"another number than the hidden size {sizes.n_embd}")
    return sizes


def _encoder_rules(source: Source, sizes: TowerSizes, n_head_kv: int) -> list[Rule]:
    is_new = uses_new_names(source)
    stem = "model.vision_tower." if is_new else "model.qwen2_model."
    inner = f"{stem}vision_encoder." if is_new else f"{stem}model.model."
    end = "_resolution.weight" if is_new else ".weight"
    n_embd, n_ff = sizes.n_embd, sizes.n_ff
    n_kv = n_embd // sizes.n_head * n_head_kv
    rules: list[Rule] = [
        Rename(
            source=f"{stem}query_{side}{end}",
            target=f"v.resample_query_{side}.weight",
            shape=(n_queries, n_embd),
        )
        for side, n_queries in _QUERIES.items()
    ]
    rules += pair(f"{inner}norm", "v.post_ln", (n_embd,), bias=False)
    for layer in range(sizes.n_layers):
        name, target = f"{inner}layers.{layer}.", f"v.blk.{layer}."
        rules += pair(f"{name}input_layernorm", f"{target}ln1", (n_embd,), bias=False)
        rules += pair(f"{name}post_attention_layernorm", f"{target}ln2", (n_embd,), bias=False)
        for letter, width in (("q", n_embd), ("k", n_kv), ("v", n_kv)):
            to = f"{target}attn_{letter}"
            rules += pair(f"{name}self_attn.{letter}_proj", to, (width, n_embd))
        shapes = {
            "self_attn.o_proj": ("attn_out", (n_embd, n_embd)),
            "mlp.gate_proj": ("ffn_gate", (n_ff, n_embd)),
            "mlp.up_proj": ("ffn_up", (n_ff, n_embd)),
            "mlp.down_proj": ("ffn_down", (n_embd, n_ff)),
        }
        for matrix, (to, shape) in shapes.items():
            rules += pair(f"{name}{matrix}", f"{target}{to}", shape, bias=False)
    return rules


def _metadata(
    source: Source, sizes: TowerSizes, sam: SamSizes, *, n_head_kv: int, epsilon: float
) -> dict[str, Value]:
    return {
        **size_metadata(source, sizes),
        "clip.projector_type": string(_PROJECTOR_TYPE),
        "clip.vision.attention.layer_norm_epsilon": f32(epsilon),
        "clip.use_gelu": boolean(True),
        "clip.vision.window_size": u32(sam.window),
        "clip.vision.preproc_min_tiles": u32(2),
        "clip.vision.preproc_max_tiles": u32(
            check_images(source.preprocessor, tile=_TILE, max_tiles=6)
        ),
        **sam_metadata(sam),
        "clip.vision.attention.head_count_kv": u32(n_head_kv),
    }


def check_images(preprocessor: Section, *, tile: int, max_tiles: int) -> int:
    """Return into how many tiles an image is cut at most.

    Args:
        preprocessor: image settings.
        tile: side of a tile in pixels that the graph is for.
        max_tiles: what the class means without the key.

    Raises:
        CheckpointError: images are laid out in another way.
    """
    preprocessor.require("resample", (_BICUBIC,), default=_BICUBIC)
    preprocessor.require("crop_to_patches", (True,), default=True)
    preprocessor.require("tile_size", (tile,), default=tile)
    preprocessor.require("background_color", (_GREY,), default=_GREY)
    preprocessor.require("min_patches", (2,), default=2)
    if preprocessor.has("size"):
        side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        preprocessor.require("size", (side,), default=side)
    return preprocessor.integer("max_patches", low=2, high=_MAX_TILES, default=max_tiles)


FAMILY = Family(
    name="deepseek_ocr2",
    architectures=("DeepseekOcr2ForConditionalGeneration", "DeepseekOCR2ForCausalLM"),
    vision_models=("deepseek_ocr2_vision", "vision"),
    text_models=(DEEPSEEK_OCR_TEXT,),
    prefixes=Prefixes(
        text="model.", vision="model.sam_model.", projector="model.projector.layers."
    ),
    projector=Projector(type=_PROJECTOR_TYPE, build=build_vision),
    image_span="<image>",
    runtime_tokens=(),
    chat_template=CHAT_TEMPLATE,
    status="equal to llama.cpp's converter, KLD to transformers <= 1e-5, images of any size",
)
