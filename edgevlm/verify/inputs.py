"""A prompt as transformers' processor makes it, with image processors that need no torchvision.

Each family expands an image in its own way; the functions here use the pieces of its processor
that Pillow can run (`image_processing_pil_*`), and build the rest as the processor's `__call__`
does. The token ids that they give are held against the runtime's in tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevlm_convert.checkpoint import Checkpoint, open_checkpoint

from edgevlm.errors import UnsupportedArchitectureError
from edgevlm.verify.anyres_processor import OnevisionImages, anyres_processor
from edgevlm.verify.deepseek_inputs import deepseek_ocr2_inputs, deepseek_ocr_inputs
from edgevlm.verify.gemma3n_inputs import gemma3n_inputs
from edgevlm.verify.gemma4_unified_inputs import gemma4_unified_inputs
from edgevlm.verify.hunyuan_inputs import hunyuan_inputs
from edgevlm.verify.input_parts import (
    MARK,
    Inputs,
    Pixels,
    image_token,
    load_tokenizer,
    templated,
    transformers_module,
)
from edgevlm.verify.lfm2_images import Lfm2Images
from edgevlm.verify.lighton_inputs import lighton_inputs
from edgevlm.verify.patch_inputs import rows_of
from edgevlm.verify.video_llava_inputs import video_llava_inputs

_QWEN_PAD = "<|image_pad|>"
_QWEN = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "cosmos3_omni",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen4_exp",
)
_TILE, _FAKE, _GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
_PIXTRAL, _BREAK, _END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
_CONTEXT, _TILES_BEGIN, _TILES_END = "<IMG_CONTEXT>", "<img>", "</img>"
_PLACEHOLDER, _JANUS_AROUND = "<image_placeholder>", ("<begin_of_image>", "<end_of_image>")
_GEMMA4_PAD = "<|image|>"


def open_inputs(folder: Path, *, family: str) -> Inputs:
    """Return the inputs of a checkpoint of one of our families.

    Raises:
        UnsupportedArchitectureError: no inputs are known for the family.
    """
    makers: Mapping[str, Callable[[Path, Checkpoint], Inputs]] = {
        **dict.fromkeys(_QWEN, _qwen),
        "qwen2_5_omni": _qwen2_5_omni,
        "qwen3_omni_moe": _qwen3_omni,
        "idefics3": _tiles,
        "llava": _llava,
        "llava_next": _anyres,
        "llava_onevision": _onevision,
        "video_llava": video_llava_inputs,
        "lfm2_vl": _lfm2,
        "minicpmv4_6": _minicpm,
        "minicpmv4_7": _minicpm,
        "glm4v": _glm,
        "glm_ocr": _glm,
        "paddleocr_vl": _paddleocr,
        "hunyuan_vl": hunyuan_inputs,
        "lighton_ocr": lighton_inputs,
        "gemma3": _gemma,
        "gemma3n": gemma3n_inputs,
        "gemma4": _gemma4,
        "gemma4_unified": gemma4_unified_inputs,
        "internvl": _internvl,
        "qianfan_ocr": _internvl,
        "granite4_vision": _anyres,
        "janus": _janus,
        "deepseek_vl": _janus,
        "deepseek_ocr": deepseek_ocr_inputs,
        "deepseek_ocr2": deepseek_ocr2_inputs,
        "pixtral": _pixtral,
        "mistral3": _pixtral,
    }
    if family not in makers:
        raise UnsupportedArchitectureError(
            f"transformers' inputs of {family} are not known here",
            hint=f"families: {', '.join(makers)}",
        )
    return makers[family](folder, open_checkpoint(folder))


_qwen = rows_of("qwen2_vl", "Qwen2VL", _QWEN_PAD)
_qwen3_omni = rows_of("qwen2_vl", "Qwen2VL", _QWEN_PAD, kinds="")
_qwen2_5_omni = rows_of("qwen2_vl", "Qwen2VL", "<|IMAGE|>", kinds="")
_glm = rows_of("glm4v", "Glm4v", "<|image|>")
_paddleocr = rows_of("paddleocr_vl", "PaddleOCRVL", "<|IMAGE_PLACEHOLDER|>")


def _tiles(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Idefics3 and SmolVLM: tiles, then the whole image, each framed by tokens of its own."""
    config = checkpoint.config
    kind = config.text("model_type", default="idefics3")
    name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[kind]
    tokenizer = load_tokenizer(folder)
    module = transformers_module(f"{kind}.image_processing_pil_{kind}")
    processor = getattr(module, f"{name}ImageProcessorPil").from_pretrained(folder)
    written = transformers_module("smolvlm.processing_smolvlm")
    vision = config.section("vision_config")
    side = vision.integer("image_size", low=1, high=8192, default=224)
    side //= vision.integer("patch_size", low=1, high=8192, default=32)
    n_tokens = (side // config.integer("scale_factor", low=1, high=64, default=2)) ** 2

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        tensors: dict[str, Any] = {}
        if images:
            made = processor(images=[list(images)], return_row_col_info=True, return_tensors="pt")
            for rows, columns in zip(made["rows"][0], made["cols"][0], strict=True):
                expanded = written.get_image_prompt_string(
                    rows,
                    columns,
                    n_tokens,
                    fake_token_around_image=_FAKE,
                    image_token=MARK,
                    global_image_token=_GLOBAL,
                )
                text = text.replace(_TILE, expanded, 1)
            tensors = {key: made[key] for key in ("pixel_values", "pixel_attention_mask")}
        # The template writes BOS itself.
        ids = tokenizer(text.replace(MARK, _TILE), add_special_tokens=False)["input_ids"]
        return ids, tensors

    return Inputs(prepare=prepare, image_token=image_token(config))


def _llava(folder: Path, checkpoint: Checkpoint) -> Inputs:
    config = checkpoint.config
    vision = config.section("vision_config")
    kind = (
        "clip" if vision.text("model_type", default="clip_vision_model")[:4] == "clip" else "siglip"
    )
    module = transformers_module(f"{kind}.image_processing_pil_{kind}")
    name = {"clip": "CLIP", "siglip": "Siglip"}[kind]
    images_of = getattr(module, f"{name}ImageProcessorPil").from_pretrained(folder)
    transformers: Any = importlib.import_module("transformers")
    tokenizer = load_tokenizer(folder)
    strategy = config.text("vision_feature_select_strategy", default="default")
    processor = transformers.LlavaProcessor(
        image_processor=images_of,
        tokenizer=tokenizer,
        patch_size=vision.integer("patch_size", low=1, high=8192, default=32),
        vision_feature_select_strategy=strategy,
        chat_template=tokenizer.chat_template,
        # CLIP's class token is taken away again by the strategy.
        num_additional_image_tokens=int(strategy == "default"),
    )

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(processor, prompt, images)
        made = processor(text=[text], images=list(images) or None, return_tensors="pt")
        ids = made["input_ids"][0].tolist()
        return ids, {"pixel_values": made["pixel_values"]} if images else {}

    return Inputs(prepare=prepare, image_token=image_token(config))


def _lfm2(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """LFM2-VL: an image whole, or tiles with a token before each."""
    torch: Any = importlib.import_module("torch")
    tokenizer = load_tokenizer(folder)
    images_of = Lfm2Images(checkpoint)

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        for image in images:
            text = text.replace(_TILE, images_of.text(image, MARK), 1)
        # The template writes BOS itself.
        ids = tokenizer(text.replace(MARK, _TILE), add_special_tokens=False)["input_ids"]
        return ids, images_of.tensors(images, torch) if images else {}

    return Inputs(prepare=prepare, image_token=image_token(checkpoint.config))


def _internvl(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Tiles, then the whole image, between two tokens."""
    config = checkpoint.config
    tokenizer = load_tokenizer(folder)
    module = transformers_module("got_ocr2.image_processing_pil_got_ocr2")
    processor = module.GotOcr2ImageProcessorPil.from_pretrained(folder)
    transformers: Any = importlib.import_module("transformers")
    settings = transformers.AutoConfig.from_pretrained(folder)
    vision = settings.vision_config
    n_tokens = int(vision.image_size[0] // vision.patch_size[0] * settings.downsample_ratio) ** 2

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        tensors: dict[str, Any] = {}
        if images:
            # What Qianfan-OCR's templates print, and its processor replaces.
            text = text.replace(_TILE, _CONTEXT)
            # The processor cuts whatever the image processor's settings say.
            made = processor(images=list(images), crop_to_patches=True, return_tensors="pt")
            for n_tiles in made["num_patches"].tolist():
                tokens = MARK * (n_tokens * n_tiles)
                text = text.replace(_CONTEXT, f"{_TILES_BEGIN}{tokens}{_TILES_END}", 1)
            tensors = {"pixel_values": made["pixel_values"]}
        return tokenizer(text.replace(MARK, _CONTEXT))["input_ids"], tensors

    return Inputs(prepare=prepare, image_token=image_token(config))


def _anyres(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """LLaVA-NeXT, Granite 4 Vision: the whole image, then tiles that are joined to one picture."""
    config = checkpoint.config
    processor = anyres_processor(folder, config, load_tokenizer(folder))
    is_granite = config.text("model_type", default="") == "granite4_vision"

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(processor, prompt, images)
        made = processor(text=[text], images=list(images) or None, return_tensors="pt")
        keys = ("pixel_values", "image_sizes") if images else ()
        return made["input_ids"][0].tolist(), {key: made[key] for key in keys}

    return Inputs(prepare=prepare, image_token=image_token(config), stacks_tiles=is_granite)


def _onevision(folder: Path, checkpoint: Checkpoint) -> Inputs:
    tokenizer = load_tokenizer(folder)
    images_of = OnevisionImages(folder, checkpoint.config)

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        for image in images:
            text = text.replace(_TILE, MARK * images_of.n_tokens(image), 1)
        ids = tokenizer(text.replace(MARK, _TILE))["input_ids"]
        return ids, images_of.tensors(images) if images else {}

    return Inputs(prepare=prepare, image_token=image_token(checkpoint.config))


def _minicpm(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """MiniCPM-V: a number, the whole image, then rows of slices."""
    tokenizer = load_tokenizer(folder)
    module = transformers_module("minicpmv4_6.image_processing_pil_minicpmv4_6")
    processor = module.MiniCPMV4_6ImageProcessorPil.from_pretrained(folder)
    n_merged = 4 if processor.downsample_mode == "4x" else 16

    def written(number: int, grid: Sequence[int], counts: Sequence[int]) -> str:
        name = f"<image_id>{number}</image_id>" if processor.use_image_id else ""
        slices = [f"<slice>{MARK * count}</slice>" for count in counts[1:]]
        rows = ["".join(slices[row * grid[1] : (row + 1) * grid[1]]) for row in range(grid[0])]
        return f"{name}<image>{MARK * counts[0]}</image>" + "\n".join(rows)

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        if not images:
            return tokenizer(text)["input_ids"], {}
        made = processor(images=list(images), return_tensors="pt")
        counts = (made["target_sizes"].prod(dim=1) // n_merged).tolist()
        for number, grid in enumerate(made["grids"]):
            n_encodes = made["num_patches_per_image"][number]
            span = written(number, grid, counts[:n_encodes])
            text, counts = text.replace(_QWEN_PAD, span, 1), counts[n_encodes:]
        ids = tokenizer(text.replace(MARK, _QWEN_PAD))["input_ids"]
        return ids, {key: made[key] for key in ("pixel_values", "target_sizes")}

    # 4.7 places visual tokens by what they are.
    is_placed = checkpoint.config.text("model_type", default="") == "minicpmv4_7"
    token = image_token(checkpoint.config)
    return Inputs(prepare=prepare, image_token=token, kinds="mm_token_type_ids" * is_placed)


def _gemma(folder: Path, checkpoint: Checkpoint) -> Inputs:
    config = checkpoint.config
    images_of = transformers_module("gemma3.image_processing_pil_gemma3").Gemma3ImageProcessorPil
    tokenizer = load_tokenizer(folder)
    processor = transformers_module("gemma3.processing_gemma3").Gemma3Processor(
        image_processor=images_of.from_pretrained(folder),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=config.integer("mm_tokens_per_image", low=1, high=1 << 20, default=256),
    )

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(processor, prompt, images)
        # The template writes BOS itself.
        made = processor(
            text=text, images=list(images) or None, add_special_tokens=False, return_tensors="pt"
        )
        ids = made["input_ids"][0].tolist()
        return ids, {"pixel_values": made["pixel_values"]} if images else {}

    token = image_token(config)
    return Inputs(prepare=prepare, image_token=token, kinds="token_type_ids")


def _gemma4(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Gemma 4: visual tokens between two tokens, as many as an image's size gives."""
    tokenizer = load_tokenizer(folder)
    module = transformers_module("gemma4.image_processing_pil_gemma4")
    processor = module.Gemma4ImageProcessorPil.from_pretrained(folder)

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        tensors: dict[str, Any] = {}
        if images:
            made = processor(images=list(images), return_tensors="pt")
            for n_tokens in made["num_soft_tokens_per_image"]:
                text = text.replace(_GEMMA4_PAD, f"<|image>{MARK * int(n_tokens)}<image|>", 1)
            tensors = {key: made[key] for key in ("pixel_values", "image_position_ids")}
        # The template writes BOS itself.
        ids = tokenizer(text.replace(MARK, _GEMMA4_PAD), add_special_tokens=False)["input_ids"]
        return ids, tensors

    token = image_token(checkpoint.config)
    return Inputs(prepare=prepare, image_token=token, kinds="mm_token_type_ids")


def _janus(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Janus-Pro: visual tokens between two tokens; DeepSeek-VL: visual tokens alone."""
    config = checkpoint.config
    kind = config.text("model_type", default="janus")
    name = {"janus": "Janus", "deepseek_vl": "DeepseekVL"}[kind]
    tokenizer = load_tokenizer(folder)
    module = transformers_module(f"{kind}.image_processing_pil_{kind}")
    processor = getattr(module, f"{name}ImageProcessorPil").from_pretrained(folder)
    vision = config.section("vision_config")
    side = vision.integer("image_size", low=1, high=8192, default=384)
    side //= vision.integer("patch_size", low=1, high=8192, default=16)
    before, after = _JANUS_AROUND if kind == "janus" else ("", "")

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        span = f"{before}{_PLACEHOLDER * side**2}{after}"
        ids = tokenizer(text.replace(_PLACEHOLDER, span))["input_ids"]
        if not images:
            return ids, {}
        made = processor(images=list(images), return_tensors="pt")
        return ids, {"pixel_values": made["pixel_values"]}

    return Inputs(prepare=prepare, image_token=image_token(config))


def _pixtral(folder: Path, checkpoint: Checkpoint) -> Inputs:
    """Pixtral and Mistral 3: rows of an image end with a token each, the last with another."""
    config = checkpoint.config
    tokenizer = load_tokenizer(folder)
    module = transformers_module("pixtral.image_processing_pil_pixtral")
    processor = module.PixtralImageProcessorPil.from_pretrained(folder)
    cell = config.section("vision_config").integer("patch_size", low=1, high=8192, default=16)
    if checkpoint.config.text("model_type", default="llava") == "mistral3":
        cell *= config.integer("spatial_merge_size", low=1, high=64, default=2)

    def prepare(prompt: str, images: Sequence[Pixels]) -> tuple[list[int], dict[str, Any]]:
        text = templated(tokenizer, prompt, images)
        tensors: dict[str, Any] = {}
        if images:
            made = processor(images=list(images), patch_size=cell, return_tensors="pt")
            for height, width in made["image_sizes"].tolist():
                row = MARK * (width // cell)
                rows = _BREAK.join([row] * (height // cell))
                text = text.replace(_PIXTRAL, f"{rows}{_END}", 1)
            tensors = {key: made[key] for key in ("pixel_values", "image_sizes")}
        # The template writes BOS itself.
        text = text.replace(MARK, _PIXTRAL)
        return tokenizer(text, add_special_tokens=False)["input_ids"], tensors

    return Inputs(
        prepare=prepare,
        image_token=image_token(config),
        break_token=tokenizer.convert_tokens_to_ids(_BREAK),
    )
