"""DeepSeek-OCR 2: two blocks with windows and one without, four of an encoder, one dense layer.

llama.cpp fixes the sizes of images, so that each encode has 4096 patches; widths are tiny.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, f32

from tests.convert.mutations import mmproj, nothing, swap, text, values
from tests.goldens.files import read_golden_json
from tests.goldens.recipe import Config, Recipe
from tests.synthetic import write_json
from tests.tokenizers.deepseek import write_tokenizer_deepseek_ocr

_N_TOKENS = 300
_IMAGE_TOKEN = _N_TOKENS - 1
_N_FF, _N_EMBD = 48, 40
_TEXT: Config = {
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 2048,
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    "model_type": "deepseek_ocr2_text",
    "moe_intermediate_size": 24,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "num_attention_heads": 2,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "routed_scaling_factor": 1.5,
    "topk_method": "greedy",
    "vocab_size": _N_TOKENS + 20,
}
_CONFIG: Config = {
    "architectures": ["DeepseekOcr2ForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_id": _IMAGE_TOKEN,
    "model_type": "deepseek_ocr2",
    "text_config": _TEXT,
    "tie_word_embeddings": False,
    "vision_config": {
        "encoder_config": {
            "hidden_act": "silu",
            "hidden_size": _N_EMBD,
            "intermediate_size": _N_FF,
            "model_type": "deepseek_ocr2_encoder",
            "num_attention_heads": 4,
            # llama.cpp's converter takes the number of a part of the neck for a block's.
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        },
        "model_type": "deepseek_ocr2_vision",
        "sam_config": {
            "downsample_channels": [24, _N_EMBD],
            "global_attn_indexes": [2],
            "hidden_size": 32,
            "image_size": 1024,
            "mlp_ratio": 2.0,
            "model_type": "deepseek_ocr2_sam_vision_model",
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
    sam, encoder = vision["sam_config"], vision["encoder_config"]
    n_dense = text.pop("mlp_layer_types").count("dense")
    write_json(
        folder / "config.json",
        {
            "architectures": ["DeepseekOCR2ForCausalLM"],
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
                "intermediate_size": encoder["intermediate_size"],
                "layers": encoder["num_hidden_layers"],
                "model_type": "vision",
                "num_attention_heads": encoder["num_attention_heads"],
                "width": {
                    "qwen2-0-5b": {"dim": encoder["hidden_size"]},
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
    name="deepseek_ocr2",
    config=_CONFIG,
    preprocessor={
        "crop_to_patches": True,
        "image_mean": [0.5, 0.45, 0.4],
        "image_processor_type": "DeepseekOcr2ImageProcessor",
        "image_std": [0.5, 0.25, 0.3],
        "max_patches": 6,
        "min_patches": 2,
        "resample": 3,
        "size": {"height": 1024, "width": 1024},
        "tile_size": 768,
    },
    write_tokenizer=lambda folder: write_tokenizer_deepseek_ocr(folder, n_tokens=_N_TOKENS),
    model_class="DeepseekOcr2ForConditionalGeneration",
    image_token=_IMAGE_TOKEN,
    prompts=(
        ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
        # Two tiles, one above the other; the other image is not cut.
        ("one image", "What is in the image?", ("776x390-1",)),
        ("another image", "What is in the image?", ("48x64-2",)),
        ("two images", "Is the circle in one or in the other?", ("48x64-2", "776x390-1")),
    ),
    pre="deepseek-llm",
    adapt=_as_deepseek_has_it,
    outtypes=("auto",),
    mended_keys={
        "tokenizer.chat_template": "llama.cpp's converter writes one of its own, without images"
    },
    free_numbers=("num_experts_per_tok",),
    # Where a patch stands, and what is asked of the patches, are heard in the answer.
    gains={"pos_embed": 200.0, "query_": 5.0},
    mutations={
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "relative rows and columns exchanged": mmproj(swap("attn.pos_h.", "attn.pos_w.")),
        "norms of a block exchanged": mmproj(swap(".pre_ln.", ".post_ln.")),
        "positions column by column": mmproj(
            values("v.sam.pos_embd", lambda table: table.swapaxes(1, 2))
        ),
        "queries backwards": mmproj(values("v.resample_query", lambda rows: rows[::-1])),
        "encoder's norms exchanged": mmproj(swap("v.blk.0.ln1.", "v.blk.0.ln2.")),
        "encoder's gate and up exchanged": mmproj(swap("ffn_gate", "ffn_up")),
        "no separator": mmproj(values("v.view_seperator", np.zeros_like)),
        "no bias of the projection": mmproj(values("mm.model.fc.bias", np.zeros_like)),
        "experts in another order": text(values("ffn_down_exps", lambda one: one[::-1])),
        "gate and up of experts exchanged": text(swap("ffn_gate_exps", "ffn_up_exps")),
        "shared gate and up exchanged": text(swap("ffn_gate_shexp", "ffn_up_shexp")),
        "router in another order": text(values("ffn_gate_inp", lambda one: one[::-1])),
        "experts as they are": text(nothing, {"deepseek2-ocr.expert_weights_scale": f32(1.0)}),
        "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "another epsilon": text(
            nothing, {"deepseek2-ocr.attention.layer_norm_rms_epsilon": f32(1e-2)}
        ),
    },
)
