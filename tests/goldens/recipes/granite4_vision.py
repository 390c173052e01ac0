"""Granite 4 Vision: untied, three streams of which one is sampled, tiles of 4 x 4 patches."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from edgevlm_convert.metadata import array, f32
from numpy.typing import NDArray

from tests.convert.mutations import both, mmproj, nothing, swap, text, unpaired, values
from tests.convert.tricks import split_safetensors
from tests.goldens.recipe import Config, Recipe
from tests.synthetic import write_json, write_safetensors
from tests.synthetic_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, write_tokenizer

_N_TOKENS = 300
_TILE = 16
_IMAGE_TOKEN = 297
_GRIDS = [[16, 16], [16, 32], [32, 16], [32, 32], [16, 48]]


def _write_tokenizer(folder: Path) -> None:
    """Write Qwen's tokenizer with `<image>` in place of one of its tokens."""
    write_tokenizer(folder, n_tokens=_N_TOKENS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        content = path.read_text(encoding="utf-8")
        path.write_text(content.replace(SPECIAL_TOKENS[5], "<image>"), encoding="utf-8")
    template = CHAT_TEMPLATE.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "{{ '<image>\\n' }}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


_CONFIG: Config = {
    "architectures": ["Granite4VisionForConditionalGeneration"],
    "deepstack_layer_map": [[-2, 2], [-1, 0]],
    "downsample_rate": "2/4",
    "dtype": "bfloat16",
    "image_grid_pinpoints": _GRIDS,
    "image_token_index": _IMAGE_TOKEN,
    "model_type": "granite4_vision",
    "qformer_config": {
        "cross_attention_frequency": 1,
        "intermediate_size": 48,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 2048,
        "model_type": "blip_2_qformer",
        "num_hidden_layers": 1,
        "use_qformer_text_input": False,
    },
    "spatial_target_layers": [1],
    "spatial_vision_layer": -1,
    "text_config": {
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3.0,
        "hidden_size": 64,
        "intermediate_size": 96,
        "logits_scaling": 2.0,
        "max_position_embeddings": 2048,
        "model_type": "granite4_vision_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "residual_multiplier": 0.6,
        "rms_norm_eps": 0.02,
        "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        "vocab_size": 304,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 64,
        "image_size": _TILE,
        "intermediate_size": 40,
        "layer_norm_eps": 1e-06,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        # llama.cpp's converter takes the number of a projector for a block's.
        "num_hidden_layers": 3,
        "patch_size": 2,
        "vision_use_head": False,
    },
    "vision_feature_select_strategy": "full",
}


def _as_llama_cpp_takes_it(folder: Path) -> None:
    """Name the text model's class, and leave out projectors that no layer takes.

    llama.cpp's converter gives the latter names that others have already.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["architectures"] = ["GraniteForCausalLM"]
    write_json(folder / "config.json", config)
    (path,) = folder.glob("*.safetensors")
    header, data = split_safetensors(path)
    kept = {
        name: (entry["dtype"], tuple(entry["shape"]), data[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__" and not re.search(r"spatial_projectors\.[123]\.", name)
    }
    path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    write_safetensors(folder / "model.safetensors", kept)


def _windows_otherwise(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(rows[:, ::-1])


RECIPE = Recipe(
    name="granite4_vision",
    config=_CONFIG,
    preprocessor={
        "crop_size": {"height": _TILE, "width": _TILE},
        "image_grid_pinpoints": _GRIDS,
        "image_mean": [0.5, 0.45, 0.4],
        "image_processor_type": "LlavaNextImageProcessor",
        "image_std": [0.5, 0.25, 0.3],
        "resample": 3,
        "size": {"height": _TILE, "width": _TILE},
    },
    write_tokenizer=_write_tokenizer,
    model_class="Granite4VisionForConditionalGeneration",
    image_token=_IMAGE_TOKEN,
    prompts=(
        ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
        ("one image", "What is in the image?", ("16x16-1",)),
        ("another image", "What is in the image?", ("16x16-2",)),
        ("two images", "Is the circle in one or in the other?", ("16x16-2", "32x16-3")),
        ("another size", "What is in the image?", ("10x32-4",)),
    ),
    adapt=_as_llama_cpp_takes_it,
    outtypes=("auto",),
    free_numbers=("deepstack_layer_map",),
    # The image, its windows and what is asked of them are heard in the answer.
    gains={
        "attention.attention.": 2.0,
        "embed_tokens": 0.3,
        "image_positions": 16.0,
        "lm_head": 2.0,
        "out_linear": 8.0,
        "projectors.0.query": 8.0,
        "projectors.1.query": 8.0,
    },
    mutations={
        "streams exchanged": mmproj(swap("proj_blk.1.", "proj_blk.2.")),
        "another corner sampled": mmproj(
            nothing, {"clip.vision.projector.spatial_offsets": array("INT32", [-1, 2, -1])}
        ),
        "another layer of the tower": mmproj(
            nothing, {"clip.vision.feature_layer": array("INT32", [2, 2, 2])}
        ),
        "patches of a window in another order": mmproj(values("img_pos", _windows_otherwise)),
        "no newline": mmproj(values("image_newline", np.zeros_like)),
        "query and key exchanged": mmproj(swap("self_attn_q.", "self_attn_k.")),
        "key and value exchanged": mmproj(swap("cross_attn_k.", "cross_attn_v.")),
        "norms of a Q-Former exchanged": mmproj(swap("post_norm.", "ffn_norm.")),
        "vision norms exchanged": mmproj(swap(".ln1.", ".ln2.")),
        "pixels normalized as usual": mmproj(
            nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
        ),
        "streams to other layers": text(
            nothing, {"granite.deepstack_mapping": array("INT32", [-1, 2, 1])}
        ),
        "the usual scale of attention": text(nothing, {"granite.attention.scale": None}),
        "embeddings as they are": text(nothing, {"granite.embedding_scale": None}),
        "residuals as they are": text(nothing, {"granite.residual_scale": f32(1.0)}),
        "logits as they are": text(nothing, {"granite.logit_scale": f32(1.0)}),
        "rotary rows as transformers has them": text(
            both(values("attn_q.weight", unpaired(4)), values("attn_k.weight", unpaired(2)))
        ),
        "another rotary base": text(nothing, {"granite.rope.freq_base": f32(110.0)}),
        "the usual epsilon": text(nothing, {"granite.attention.layer_norm_rms_epsilon": f32(1e-6)}),
    },
)
