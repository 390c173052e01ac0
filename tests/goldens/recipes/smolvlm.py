"""SmolVLM as transformers 5 saves it: untied, tiles of 6 x 6 patches, keys left to defaults."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, f32, u32
from numpy.typing import NDArray

from tests.convert.mutations import (
    both,
    mmproj,
    nothing,
    swap,
    text,
    unpaired,
    values,
    without,
)
from tests.goldens.recipe import Config, Recipe
from tests.synthetic import write_json
from tests.tokenizers.byte_level import write_tokenizer_smollm

_N_TOKENS = 300
_TILE, _LONGEST = 48, 96
_N_LAYERS = 3


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_smollm(folder, n_tokens=_N_TOKENS)


_IMAGE_TOKEN = 288
_CONFIG: Config = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_token_id": _IMAGE_TOKEN,
    "model_type": "smolvlm",
    # As published, beyond the vocabulary.
    "pad_token_id": 128002,
    "scale_factor": 2,
    "text_config": {
        "head_dim": 24,
        "hidden_size": 96,
        "intermediate_size": 160,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 0.02,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "vocab_size": 320,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 48,
        "image_size": _TILE,
        "intermediate_size": 80,
        "model_type": "smolvlm_vision",
        "num_attention_heads": 6,
        "num_hidden_layers": _N_LAYERS,
        "patch_size": 8,
    },
}


def _as_transformers_4(folder: Path) -> None:
    """Write config.json as published, with `architectures` in its text part."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text_config = config["text_config"]
    text_config |= {"architectures": ["VLlama3ForCausalLM"]}
    text_config["rope_theta"] = text_config.pop("rope_parameters")["rope_theta"]
    write_json(folder / "config.json", config)


def _transposed(table: NDArray[np.float32]) -> NDArray[np.float32]:
    side = math.isqrt(len(table))
    return table.reshape(side, side, -1).swapaxes(0, 1).reshape(table.shape)


def _merged_otherwise(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return rows.reshape(len(rows), 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


RECIPE = Recipe(
    name="smolvlm",
    config=_CONFIG,
    preprocessor={
        "do_image_splitting": True,
        "image_mean": [0.5, 0.45, 0.4],
        "image_processor_type": "SmolVLMImageProcessor",
        "image_std": [0.5, 0.25, 0.3],
        "max_image_size": {"longest_edge": _TILE},
        "resample": 1,
        "size": {"longest_edge": _LONGEST},
    },
    write_tokenizer=_write_tokenizer,
    model_class="SmolVLMForConditionalGeneration",
    image_token=_IMAGE_TOKEN,
    prompts=(
        ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
        ("one image", "What is in the image?", ("96x96-1",)),
        ("another image", "What is in the image?", ("96x96-2",)),
        ("two images", "Is the circle in one or in the other?", ("48x96-2", "96x48-3")),
        ("another size", "What is in the image?", ("50x70-4",)),
    ),
    pre="smollm",
    adapt=_as_transformers_4,
    shards=2,
    # The image and the tower's activation are heard in the answer.
    gains={"k_proj.weight": 2.0, "self_attn.o_proj": 2.0, "mlp.fc1": 1.3, "mlp.fc2": 4.0},
    mutations={
        "pixels normalized as usual": mmproj(
            nothing,
            {
                "clip.vision.image_mean": array("FLOAT32", [0.5] * 3),
                "clip.vision.image_std": array("FLOAT32", [0.5] * 3),
            },
        ),
        "images scaled to one tile": mmproj(
            nothing, {"clip.vision.preproc_image_size": u32(_TILE)}
        ),
        "the CLIP towers' activation": mmproj(nothing, {"clip.use_gelu": None}),
        "positions column by column": mmproj(values("v.position_embd.weight", _transposed)),
        "no bias of the patch kernel": mmproj(without("v.patch_embd.bias")),
        "vision norms exchanged": mmproj(swap(".ln1.", ".ln2.")),
        "a block's norm behind the last block": mmproj(
            swap(f"v.blk.{_N_LAYERS - 1}.ln1.", "v.post_ln.")
        ),
        "vision query and key exchanged": mmproj(swap("attn_q.", "attn_k.")),
        "patches merged column by column": mmproj(values("mm.model.fc.weight", _merged_otherwise)),
        "rotary rows as transformers has them": text(
            both(values("attn_q.weight", unpaired(6)), values("attn_k.weight", unpaired(2)))
        ),
        "tied though it is not": text(without("output.weight")),
        "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
        "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
        "the usual rotary base": text(nothing, {"llama.rope.freq_base": f32(10000.0)}),
        "the usual epsilon": text(nothing, {"llama.attention.layer_norm_rms_epsilon": f32(1e-5)}),
    },
)
