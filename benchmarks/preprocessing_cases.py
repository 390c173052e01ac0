"""What preprocessing.py compares: an entry a family, with the settings that its models publish.

The tower is a golden's, small and random, with the published sizes of image and patch; tokenizer
and text model are the golden's as they are. A new family is a new entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
# As many grids as there are of up to six tiles a side.
SQUARES = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
QWEN_PROCESSOR = "qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family, with the settings of one of its published models.

    Attributes:
        name: in the results and on the command line.
        family: what `edgevlm families` calls it.
        published: whose settings they are.
        recipe: the golden that gives config.json, tokenizer and seed.
        vision: keys of vision_config that the published model has.
        config: keys of config.json itself.
        preprocessor: the published preprocessor_config.json, what matters of it.
        processor: transformers' image processor without torchvision, below transformers.models.
        options: of each call of it.
        pixels: what its `pixel_values` are: "patches" of Qwen-VL, in the order that merges them,
            "lines" of patches, or whole "tiles".
        grid: rows and columns of tiles that become of the photo, where the processor does not say.
    """

    name: str
    family: str
    published: str
    recipe: str
    vision: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    preprocessor: Mapping[str, Any]
    processor: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pixels: Literal["patches", "lines", "tiles"] = "tiles"
    grid: tuple[int, int] = (1, 1)


def qwen(name: str, published: str, *, patch_size: int, **vision: int) -> Case:
    """Return a Qwen-VL family's case; each generation has its own normalisation and bounds."""
    old = patch_size == 14
    return Case(
        name=name,
        family=name,
        published=published,
        recipe=name,
        vision={"patch_size": patch_size, **vision},
        preprocessor={
            **(CLIP if old else HALF),
            "image_processor_type": "Qwen2VLImageProcessor",
            "merge_size": 2,
            "patch_size": patch_size,
            "size": {
                "shortest_edge": 3_136 if old else 65_536,
                "longest_edge": 12_845_056 if old else 16_777_216,
            },
            "temporal_patch_size": 2,
        },
        processor="qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil",
        pixels="patches",
    )


def tiled(kind: str, class_name: str, published: str, *, tile: int, patch: int, scale: int) -> Case:
    """Return a case of Idefics3 or SmolVLM: four tiles along the longest edge."""
    return Case(
        name=kind,
        family="idefics3",
        published=published,
        recipe=kind,
        vision={"image_size": tile, "patch_size": patch},
        config={"scale_factor": scale},
        preprocessor={
            **HALF,
            "do_image_splitting": True,
            "image_processor_type": f"{class_name}ImageProcessor",
            "max_image_size": {"longest_edge": tile},
            "resample": 1,
            "size": {"longest_edge": 4 * tile},
        },
        processor=f"{kind}.image_processing_pil_{kind}.{class_name}ImageProcessorPil",
        options={"return_row_col_info": True},
    )


def pixtral(name: str, published: str, *, longest: int, patch: int, merged: int) -> Case:
    """Return a case of Pixtral's tower; its processor is told the side of a visual token."""
    return Case(
        name=name,
        family=name,
        published=published,
        recipe=name,
        vision={"image_size": longest, "patch_size": patch},
        config={"spatial_merge_size": merged} if merged > 1 else {},
        preprocessor={
            **CLIP,
            "image_processor_type": "PixtralImageProcessor",
            "patch_size": {"height": patch, "width": patch},
            "resample": 3,
            "size": {"longest_edge": longest},
        },
        processor="pixtral.image_processing_pil_pixtral.PixtralImageProcessorPil",
        options={"patch_size": patch * merged},
    )


def glm(name: str, published: str) -> Case:
    """Return a case of GLM-4.1V's tower."""
    return Case(
        name=name,
        family=name,
        published=published,
        recipe=name,
        vision={"image_size": 336, "patch_size": 14},
        preprocessor={
            **CLIP,
            "image_processor_type": "Glm46VImageProcessor",
            "merge_size": 2,
            "patch_size": 14,
            "size": {"shortest_edge": 12_544, "longest_edge": 9_633_792},
            "temporal_patch_size": 2,
        },
        processor="glm4v.image_processing_pil_glm4v.Glm4vImageProcessorPil",
        pixels="patches",
    )


def internvl(name: str, published: str) -> Case:
    """Return a case of InternVL's images: tiles of 448 pixels, then the whole image."""
    return Case(
        name=name,
        family=name,
        published=published,
        recipe=name,
        vision={"image_size": [448, 448], "patch_size": [14, 14]},
        config={"image_seq_length": 256},
        preprocessor={
            **IMAGENET,
            "crop_to_patches": True,
            "image_processor_type": "GotOcr2ImageProcessor",
            "max_patches": 12,
            "min_patches": 1,
            "resample": 3,
            "size": {"height": 448, "width": 448},
        },
        processor="got_ocr2.image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil",
        grid=(3, 4),
    )


def janus(name: str, kind: str, published: str, **vision: int) -> Case:
    """Return a case of Janus-Pro or DeepSeek-VL: an image whole, with bars beside it."""
    return Case(
        name=name,
        family=name,
        published=published,
        recipe=name,
        vision={"image_size": 384, "patch_size": 16, **vision},
        preprocessor={
            **HALF,
            "image_processor_type": f"{kind}ImageProcessor",
            "min_size": 14,
            "resample": 3,
            "size": {"height": 384, "width": 384},
        },
        processor=f"{name}.image_processing_pil_{name}.{kind}ImageProcessorPil",
    )


CASES = (
    qwen("qwen3_vl", "Qwen3-VL-2B", patch_size=16, num_position_embeddings=2304),
    qwen("qwen3_vl_moe", "Qwen3-VL-30B-A3B", patch_size=16, num_position_embeddings=2304),
    qwen("qwen3_omni_moe", "Qwen3-Omni-30B-A3B", patch_size=16, num_position_embeddings=2304),
    qwen("cosmos3_omni", "Cosmos3-Nano", patch_size=16, num_position_embeddings=2304),
    qwen("qwen3_5", "Qwen3.5-2B", patch_size=16, num_position_embeddings=2304),
    qwen("qwen3_5_moe", "Qwen3.5-35B-A3B", patch_size=16, num_position_embeddings=2304),
    qwen("qwen2_5_vl", "Qwen2.5-VL-3B", patch_size=14),
    qwen("qwen2_5_omni", "Qwen2.5-Omni-7B", patch_size=14),
    qwen("qwen2_vl", "Qwen2-VL-2B", patch_size=14),
    Case(
        name="gemma3",
        family="gemma3",
        published="Gemma-3-4B",
        recipe="gemma3",
        vision={"image_size": 896, "patch_size": 14},
        config={"mm_tokens_per_image": 256},
        preprocessor={
            **HALF,
            "do_pan_and_scan": None,
            "image_processor_type": "Gemma3ImageProcessor",
            "image_seq_length": 256,
            "resample": 2,
            "size": {"height": 896, "width": 896},
        },
        processor="gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil",
    ),
    tiled("smolvlm", "SmolVLM", "SmolVLM2-500M", tile=512, patch=16, scale=4),
    tiled("idefics3", "Idefics3", "Idefics3-8B", tile=364, patch=14, scale=2),
    Case(
        name="llava_clip",
        family="llava",
        published="LLaVA-1.5-7B (CLIP)",
        recipe="llava_clip_llama",
        vision={"image_size": 336, "patch_size": 14},
        preprocessor={
            **CLIP,
            "crop_size": {"height": 336, "width": 336},
            "do_center_crop": True,
            "image_processor_type": "CLIPImageProcessor",
            "resample": 3,
            "size": {"shortest_edge": 336},
        },
        processor="clip.image_processing_pil_clip.CLIPImageProcessorPil",
    ),
    Case(
        name="llava_siglip",
        family="llava",
        published="LLaVA-Interleave-Qwen-0.5B (SigLIP)",
        recipe="llava_siglip_qwen2",
        vision={"image_size": 384, "patch_size": 14},
        preprocessor={
            **HALF,
            "image_processor_type": "SiglipImageProcessor",
            "resample": 3,
            "size": {"height": 384, "width": 384},
        },
        processor="siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
    ),
    Case(
        name="video_llava",
        family="video_llava",
        published="Video-LLaVA-7B",
        recipe="video_llava",
        vision={"image_size": 224, "patch_size": 14},
        preprocessor={
            **CLIP,
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "image_processor_type": "VideoLlavaImageProcessor",
            "resample": 3,
            "size": {"shortest_edge": 224},
        },
        processor="video_llava.image_processing_video_llava.VideoLlavaImageProcessor",
        options={"return_legacy_image_output": False},
    ),
    Case(
        name="llava_next",
        family="llava_next",
        published="LLaVA-1.6-Mistral-7B",
        recipe="llava_next_clip_mistral",
        vision={"image_size": 336, "patch_size": 14},
        config={"image_grid_pinpoints": GRIDS},
        preprocessor={
            **CLIP,
            "crop_size": {"height": 336, "width": 336},
            "image_grid_pinpoints": GRIDS,
            "image_processor_type": "LlavaNextImageProcessor",
            "resample": 3,
            "size": {"shortest_edge": 336},
        },
        processor="llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil",
    ),
    Case(
        name="llava_onevision",
        family="llava_onevision",
        published="LLaVA-OneVision-Qwen2-0.5B",
        recipe="llava_onevision",
        vision={"image_size": 384, "patch_size": 14},
        config={"image_grid_pinpoints": SQUARES, "vision_aspect_ratio": "anyres_max_9"},
        preprocessor={
            **HALF,
            "image_grid_pinpoints": SQUARES,
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "resample": 3,
            "size": {"height": 384, "width": 384},
        },
        processor="llava_onevision.image_processing_pil_llava_onevision."
        "LlavaOnevisionImageProcessorPil",
    ),
    internvl("internvl", "InternVL3-1B"),
    internvl("qianfan_ocr", "Qianfan-OCR"),
    pixtral("pixtral", "Pixtral-12B", longest=1024, patch=16, merged=1),
    pixtral("mistral3", "Mistral-Small-3.1-24B", longest=1540, patch=14, merged=2),
    janus("janus", "Janus", "Janus-Pro-1B", num_image_tokens=576),
    janus("deepseek_vl", "DeepseekVL", "DeepSeek-VL-1.3B"),
    glm("glm4v", "GLM-4.1V-9B"),
    glm("glm_ocr", "GLM-OCR"),
    Case(
        name="paddleocr_vl",
        family="paddleocr_vl",
        published="PaddleOCR-VL-0.9B",
        recipe="paddleocr_vl",
        vision={"image_size": 384, "patch_size": 14},
        preprocessor={
            **CLIP,
            "image_processor_type": "PaddleOCRVLImageProcessor",
            "max_pixels": 2_822_400,
            "merge_size": 2,
            "min_pixels": 147_384,
            "patch_size": 14,
            "resample": 3,
            "temporal_patch_size": 1,
        },
        processor="paddleocr_vl.image_processing_pil_paddleocr_vl.PaddleOCRVLImageProcessorPil",
        pixels="lines",
    ),
    Case(
        name="deepseek_ocr2",
        family="deepseek_ocr2",
        published="DeepSeek-OCR 2",
        recipe="deepseek_ocr2",
        vision={},
        preprocessor={
            **HALF,
            "crop_to_patches": True,
            "image_processor_type": "DeepseekOcr2ImageProcessor",
            "max_patches": 6,
            "min_patches": 2,
            "resample": 3,
            "size": {"height": 1024, "width": 1024},
            "tile_size": 768,
        },
        processor="deepseek_ocr2.image_processing_pil_deepseek_ocr2.DeepseekOcr2ImageProcessorPil",
    ),
    Case(
        name="deepseek_ocr",
        family="deepseek_ocr",
        published="DeepSeek-OCR",
        recipe="deepseek_ocr",
        vision={},
        preprocessor={
            **HALF,
            "crop_to_patches": True,
            "image_processor_type": "UnlimitedOcrImageProcessor",
            "max_patches": 9,
            "min_patches": 2,
            "resample": 3,
            "size": {"height": 1024, "width": 1024},
            "tile_size": 640,
        },
        processor="deepseek_ocr2.image_processing_pil_deepseek_ocr2.DeepseekOcr2ImageProcessorPil",
    ),
    Case(
        name="hunyuan_vl",
        family="hunyuan_vl",
        published="HunyuanOCR-1B",
        recipe="hunyuan_vl",
        vision={"max_image_size": 2048, "patch_size": 16},
        preprocessor={
            **CLIP,
            "image_processor_type": "HunYuanVLImageProcessor",
            "max_pixels": 4194304,
            "merge_size": 2,
            "min_pixels": 262144,
            "patch_size": 16,
            "resample": 1,
            "temporal_patch_size": 1,
        },
        processor="hunyuan_vl.image_processing_pil_hunyuan_vl.HunYuanVLImageProcessorPil",
        pixels="lines",
    ),
)
# Families that cannot be measured, and why.
UNMEASURED = {
    "qwen4_exp": "not measured: its tower and its images are Qwen3.5's",
    "gemma3n": "not measured: transformers' tower needs timm, and that torchvision",
    "gemma4": "not measured: transformers gives an image as a list of patches and their places",
    "gemma4_unified": "not measured: this image processor of transformers needs torchvision",
    "granite4_vision": "not measured: llama.cpp's graph takes overview and tiles as one picture",
    "lfm2_vl": "not measured: this image processor of transformers needs torchvision",
    "lighton_ocr": "not measured: llama.cpp makes the photo as large as a page",
    "minicpmv4_6": "not measured: transformers gives an image as one strip of patches",
    "minicpmv4_7": "not measured: transformers gives an image as one strip of patches",
}
