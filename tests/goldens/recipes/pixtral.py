"""Pixtral over Mistral: untied, heads that do not fill the width, gelu in the tower's gates."""

from __future__ import annotations

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32
from numpy.typing import NDArray

from tests.convert.mutations import (
    Mutation,
    mmproj,
    nothing,
    swap,
    text,
    unpaired,
    values,
    without,
)
from tests.goldens.recipe import Config, Recipe
from tests.tokenizers.byte_level import TEKKEN_FIRST, write_tokenizer_tekken

IMAGE_TOKEN = TEKKEN_FIRST.index("[IMG]")
PREPROCESSOR: Config = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "PixtralImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": {"height": 16, "width": 16},
    "processor_class": "PixtralProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"longest_edge": 256},
}
VISION: Config = {
    "head_dim": 16,
    "hidden_act": "gelu",
    "hidden_size": 48,
    "image_size": 256,
    "intermediate_size": 80,
    "model_type": "pixtral",
    "num_attention_heads": 3,
    "num_channels": 3,
    # llama.cpp's converter knows no `linear_2` of a tower of two.
    "num_hidden_layers": 3,
    "patch_size": 16,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
}
TEXT: Config = {
    "head_dim": 24,
    "hidden_act": "silu",
    "hidden_size": 96,
    "intermediate_size": 160,
    "max_position_embeddings": 2048,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "sliding_window": None,
    "vocab_size": 320,
}
# So that the image is heard beside the words, and the epsilons in front of the first blocks.
GAINS = {
    "o_proj": 2.0,
    "patch_conv": 0.01,
    "embed_tokens": 0.02,
    "down_proj": 2.0,
}

MENDED = {
    "v.token_embd.img_break": "llama.cpp's converter leaves out whatever begins with"
    " `language_model.`, and its runtime does not load a file without this"
}


def _heads_in_transformers_order(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    return unpaired(3)(rows)


TOWER: dict[str, Mutation] = {
    "query and key of the tower exchanged": mmproj(swap("attn_q.", "attn_k.")),
    "queries of the tower in transformers' order": mmproj(
        values("attn_q.weight", _heads_in_transformers_order)
    ),
    "keys of the tower in transformers' order": mmproj(
        values("attn_k.weight", _heads_in_transformers_order)
    ),
    "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
    "no norm before the first block": mmproj(without("v.pre_ln.weight")),
    "gate and up of the tower exchanged": mmproj(swap("ffn_gate", "ffn_up")),
    "pixels normalized as usual": mmproj(
        nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
    ),
    "vision norms with another epsilon": mmproj(
        nothing, {"clip.vision.attention.layer_norm_epsilon": f32(1e-6)}
    ),
    "rows without their end": mmproj(values("img_break", np.zeros_like)),
}
LANGUAGE: dict[str, Mutation] = {
    "queries in transformers' order": text(values("attn_q.weight", unpaired(6))),
    "keys in transformers' order": text(values("attn_k.weight", unpaired(2))),
    "layer norms exchanged": text(swap("attn_norm", "ffn_norm")),
    "gate and up exchanged": text(swap("ffn_gate", "ffn_up")),
    "tied though it is not": text(without("output.weight")),
}

RECIPE = Recipe(
    name="pixtral",
    config={
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_seq_length": 1,
        "image_token_index": IMAGE_TOKEN,
        "model_type": "llava",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": {
            **TEXT,
            "model_type": "mistral",
            "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"},
        },
        "tie_word_embeddings": False,
        "vision_config": VISION,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    preprocessor=PREPROCESSOR,
    write_tokenizer=write_tokenizer_tekken,
    model_class="LlavaForConditionalGeneration",
    image_token=IMAGE_TOKEN,
    pre="tekken",
    free_numbers=("image_seq_length", "image_size"),
    mended=MENDED,
    mended_keys={
        "general.size_label": "the tensor that llama.cpp's converter leaves out is counted"
    },
    gains=GAINS,
    mutations={
        **TOWER,
        **LANGUAGE,
        "silu for gelu": mmproj(nothing, {"clip.use_gelu": None, "clip.use_silu": boolean(True)}),
        "no bias in the projector": mmproj(values("mm.1.bias", np.zeros_like)),
        "another rotary base": text(nothing, {"llama.rope.freq_base": f32(110.0)}),
        "norms with another epsilon": text(
            nothing, {"llama.attention.layer_norm_rms_epsilon": f32(1e-6)}
        ),
    },
)
