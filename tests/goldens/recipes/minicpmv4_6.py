"""MiniCPM-V 4.6: merged between two of four blocks and behind them; images whole and in slices.

MiniCPM-OCR is the same, merged behind the blocks alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32, u32
from numpy.typing import NDArray

from tests.convert.mutations import mmproj, nothing, swap, text, values, without
from tests.goldens.files import read_golden_json
from tests.goldens.qwen3_checkpoints import N_TOKENS, hybrid_config
from tests.goldens.recipe import PROMPTS, Config, Recipe
from tests.goldens.recipes.qwen3_5 import GAINS, rope
from tests.synthetic import write_json
from tests.tokenizers.minicpm import MINICPM_LAST, write_tokenizer_minicpm

_PATCH, _SIDE, _N_EMBD = 2, 24, 48


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_minicpm(folder, n_tokens=N_TOKENS + len(MINICPM_LAST))


def _config() -> Config:
    hybrid = hybrid_config(
        text={
            "full_attention_interval": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "layer_types": None,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
            "num_attention_heads": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 2,
            "rope_parameters": rope([2, 1, 1], 0.25),
        },
        vision={},
        tied=True,
    )
    kept = ("dtype", "image_token_id", "text_config", "tie_word_embeddings", "video_token_id")
    return {
        **{key: hybrid[key] for key in kept if key in hybrid},
        "architectures": ["MiniCPMV4_6ForConditionalGeneration"],
        "downsample_mode": "16x",
        "drop_vision_last_layer": False,
        "insert_layer_id": 1,
        "merge_kernel_size": [2, 2],
        "merger_times": 1,
        "model_type": "minicpmv4_6",
        "vision_config": {
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": _N_EMBD,
            "image_size": 70 * _PATCH,
            "intermediate_size": 80,
            "layer_norm_eps": 1e-6,
            "model_type": "minicpmv4_6_vision",
            "num_attention_heads": 6,
            "num_hidden_layers": 4,
            "patch_size": _PATCH,
            "window_kernel_size": [2, 2],
        },
    }


def _transposed(table: NDArray[np.float32]) -> NDArray[np.float32]:
    return table.reshape(70, 70, -1).swapaxes(0, 1).reshape(table.shape)


def _merged_otherwise(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows.reshape(len(rows), 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


RECIPE = Recipe(
    name="minicpmv4_6",
    config=_config(),
    preprocessor={
        "downsample_mode": "16x",
        "image_mean": [0.5, 0.45, 0.4],
        "image_processor_type": "MiniCPMV4_6ImageProcessor",
        "image_std": [0.5, 0.25, 0.3],
        "max_slice_nums": 9,
        "patch_size": _PATCH,
        "resample": 3,
        "scale_resolution": _SIDE,
        "slice_mode": True,
        "use_image_id": True,
    },
    write_tokenizer=_write_tokenizer,
    model_class="MiniCPMV4_6ForConditionalGeneration",
    image_token=_config()["image_token_id"],
    prompts=(
        *PROMPTS[:1],
        # Two slices one above the other, two side by side, and a square that is not cut.
        ("one image", "What is in the image?", ("48x24-1",)),
        ("another image", "What is in the image?", ("48x24-2",)),
        ("two images", "Is the circle in one or in the other?", ("24x48-2", "24x24-3")),
    ),
    pre="qwen35",
    options=("--no-mtp",),
    mended_keys={
        "qwen35.full_attention_interval": "llama.cpp's converter writes 4 where transformers has"
        " turned the interval into a list of layers; its runtime reads the list"
    },
    outtypes=("auto", "f16"),
    free_numbers=("image_size", "insert_layer_id"),
    gains={**GAINS, "merger.mlp.0.linear_2": 2.0},
    # One of the seeds whose decay rates torch rounds correctly: bytes are compared.
    seed=20261132,
    mutations={
        "pixels normalized as usual": mmproj(
            nothing,
            {
                "clip.vision.image_mean": array("FLOAT32", [0.5] * 3),
                "clip.vision.image_std": array("FLOAT32", [0.5] * 3),
            },
        ),
        "merged behind another block": mmproj(
            nothing, {"clip.vision.wa_layer_indexes": array("INT32", [2])}
        ),
        "patches merged once": mmproj(nothing, {"clip.vision.projector.scale_factor": u32(2)}),
        "positions column by column": mmproj(values("v.position_embd.weight", _transposed)),
        "no bias of the patch kernel": mmproj(without("v.patch_embd.bias")),
        "vision norms exchanged": mmproj(swap("v.blk.0.ln1.", "v.blk.0.ln2.")),
        "a block's norm behind the last block": mmproj(swap("v.blk.3.ln1.", "v.post_ln.")),
        "vision query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "merging query and value exchanged": mmproj(
            swap("v.vit_merger.attn_q.", "v.vit_merger.attn_v.")
        ),
        "norms of both mergers exchanged": mmproj(swap("v.vit_merger.ds_ln.", "mm.input_norm.")),
        "inner patches merged column by column": mmproj(
            values("v.vit_merger.ds_ffn_up.weight", _merged_otherwise)
        ),
        "outer patches merged column by column": mmproj(values("mm.up.weight", _merged_otherwise)),
        "the CLIP towers' activation": mmproj(nothing, {"clip.use_gelu": boolean(False)}),
        "another vision epsilon": mmproj(
            nothing, {"clip.vision.attention.layer_norm_epsilon": f32(0.1)}
        ),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
    },
)


def _as_minicpmv(folder: Path) -> None:
    """Give a checkpoint of MiniCPM-OCR the names of the class that llama.cpp's converter knows."""
    config = read_golden_json(folder / "config.json")
    config |= {key: RECIPE.config[key] for key in ("architectures", "model_type")}
    # What the class means without the key.
    config["downsample_mode"] = "4x"
    config["vision_config"]["model_type"] = "minicpmv4_6_vision"
    write_json(folder / "config.json", config)


_OCR_CONFIG: Config = {
    **{
        key: value
        for key, value in RECIPE.config.items()
        if key not in ("downsample_mode", "drop_vision_last_layer")
    },
    "architectures": ["MiniCPMOcrForConditionalGeneration"],
    "model_type": "minicpm_ocr",
    "vision_config": {**RECIPE.config["vision_config"], "model_type": "minicpm_ocr_vision"},
}
OCR = replace(
    RECIPE,
    name="minicpm_ocr",
    config=_OCR_CONFIG,
    preprocessor={
        **RECIPE.preprocessor,
        "downsample_mode": "4x",
        "image_processor_type": "MiniCPMOcrImageProcessor",
        "small_image_upsize": "always",
    },
    model_class="MiniCPMOcrForConditionalGeneration",
    adapt=_as_minicpmv,
    outtypes=("auto",),
    mutations={
        name: mutation
        for name, mutation in RECIPE.mutations.items()
        # What the tower merges between two blocks is left out.
        if not any(
            word in name for word in ("inner", "merging", "mergers", "another block", "once")
        )
    },
)
