"""DeepSeek-OCR, by transformers' class of Unlimited-OCR: SAM as of DeepSeek-OCR 2, four of CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.convert.mutations import mmproj, swap, values
from tests.goldens.files import read_golden_json
from tests.goldens.recipe import Config, Recipe
from tests.goldens.recipes.deepseek_ocr2 import RECIPE as DEEPSEEK_OCR2
from tests.synthetic import write_json

_N_EMBD = 40
_TEXT: Config = {
    **DEEPSEEK_OCR2.config["text_config"],
    "model_type": "unlimited_ocr_text",
    "sliding_window": 128,
}
_CONFIG: Config = {
    "architectures": ["UnlimitedOcrForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_id": DEEPSEEK_OCR2.image_token,
    "model_type": "unlimited_ocr",
    "text_config": _TEXT,
    "tie_word_embeddings": False,
    "vision_config": {
        "encoder_config": {
            "hidden_act": "quick_gelu",
            "hidden_size": _N_EMBD,
            "image_size": 224,
            "intermediate_size": 56,
            "layer_norm_eps": 1e-5,
            "model_type": "unlimited_ocr_vision_encoder",
            "num_attention_heads": 4,
            # llama.cpp's converter takes the number of a part of the neck for a block's.
            "num_hidden_layers": 4,
            "patch_size": 14,
        },
        "model_type": "unlimited_ocr_vision",
        "sam_config": {
            "downsample_channels": [24, _N_EMBD],
            "global_attn_indexes": [2],
            "hidden_size": 32,
            "image_size": 1024,
            "mlp_dim": 64,
            "model_type": "unlimited_ocr_sam_vision_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "output_channels": 16,
            "patch_size": 16,
            "window_size": 14,
        },
    },
}


def _as_deepseek_has_it(folder: Path) -> None:
    """Write the configuration of DeepSeek's own class, the one that llama.cpp's converter takes."""
    config = read_golden_json(folder / "config.json")
    text, vision = config["text_config"], config["vision_config"]
    sam, clip = vision["sam_config"], vision["encoder_config"]
    n_dense = text.pop("mlp_layer_types").count("dense")
    del text["sliding_window"]
    write_json(
        folder / "config.json",
        {
            "architectures": ["DeepseekOCRForCausalLM"],
            "dtype": config["dtype"],
            "language_config": {
                **text,
                "architectures": ["DeepseekV2ForCausalLM"],
                "first_k_dense_replace": n_dense,
                "model_type": "deepseek_v2",
                "qk_rope_head_dim": text["head_dim"],
                "use_mla": False,
            },
            "model_type": "deepseek_vl_v2",
            "vision_config": {
                "image_size": 1024,
                "model_type": "vision",
                "width": {
                    "clip-l-14-224": {
                        "heads": clip["num_attention_heads"],
                        "image_size": clip["image_size"],
                        "layers": clip["num_hidden_layers"],
                        "patch_size": clip["patch_size"],
                        "width": clip["hidden_size"],
                    },
                    "sam_vit_b": {
                        "global_attn_indexes": sam["global_attn_indexes"],
                        "heads": sam["num_attention_heads"],
                        "layers": sam["num_hidden_layers"],
                        "width": sam["hidden_size"],
                    },
                },
            },
        },
    )


RECIPE = Recipe(
    name="deepseek_ocr",
    config=_CONFIG,
    preprocessor={
        **DEEPSEEK_OCR2.preprocessor,
        "image_processor_type": "UnlimitedOcrImageProcessor",
        "max_patches": 9,
        "tile_size": 640,
    },
    write_tokenizer=DEEPSEEK_OCR2.write_tokenizer,
    model_class="UnlimitedOcrForConditionalGeneration",
    image_token=DEEPSEEK_OCR2.image_token,
    prompts=(
        *DEEPSEEK_OCR2.prompts[:1],
        # Two tiles side by side; the other image is not cut.
        ("one image", "What is in the image?", ("330x660-1",)),
        ("another image", "What is in the image?", ("48x64-2",)),
        ("two images", "Is the circle in one or in the other?", ("48x64-2", "330x660-1")),
    ),
    pre="deepseek-llm",
    adapt=_as_deepseek_has_it,
    outtypes=("auto",),
    mended_keys={
        **DEEPSEEK_OCR2.mended_keys,
        "clip.vision.attention.layer_norm_epsilon": "llama.cpp's converter writes SAM's; its graph"
        " has CLIP's built in",
        "clip.vision.feed_forward_length": "llama.cpp's converter writes four times the heads",
    },
    # Forty channels make five heads as well as four.
    free_numbers=("num_attention_heads", "num_experts_per_tok", "sliding_window"),
    gains={"pos_embed": 200.0},
    mutations={
        name: mutation
        for name, mutation in DEEPSEEK_OCR2.mutations.items()
        if not any(word in name for word in ("queries", "encoder"))
    }
    | {
        "norms of a block exchanged": mmproj(swap("v.sam.blk.0.pre_ln.", "v.sam.blk.0.post_ln.")),
        "no newline": mmproj(values("v.image_newline", np.zeros_like)),
        "CLIP's positions one early": mmproj(
            values("v.position_embd.weight", lambda table: np.roll(table, -1, axis=0))
        ),
        "norms of CLIP's blocks exchanged": mmproj(swap(".ln1.", ".ln2.")),
        "CLIP behind SAM in a row": mmproj(
            values("mm.model.fc.weight", lambda rows: np.roll(rows, _N_EMBD, axis=1))
        ),
    },
)
