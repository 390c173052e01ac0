"""GLM-OCR: heads of their own size, rotated whole; biases and head norms in the tower."""

from __future__ import annotations

import numpy as np
from edgevlm_convert.metadata import array, boolean, f32, u32

from tests.convert.mutations import instead, mmproj, nothing, swap, text, values
from tests.goldens.glm_checkpoints import (
    TOKEN_IDS,
    outer_config,
    pairs_apart,
    preprocessor,
    write_glm_tokenizer,
)
from tests.goldens.recipe import Recipe

HEAD = 32
_CONFIG = outer_config(
    "GlmOcrForConditionalGeneration",
    "glm_ocr",
    text={
        "head_dim": HEAD,
        "hidden_size": 96,
        "intermediate_size": 160,
        "model_type": "glm_ocr_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "mrope_section": [4, 6, 6],
            "partial_rotary_factor": 1.0,
            "rope_theta": 100.0,
            "rope_type": "default",
        },
    },
    vision={
        "attention_bias": True,
        "depth": 3,
        "hidden_size": 48,
        "image_size": 40,
        "intermediate_size": 80,
        "model_type": "glm_ocr_vision",
        "num_heads": 3,
        "out_hidden_size": 96,
    },
)
MENDED_KEYS = {
    "tokenizer.ggml.bos_token_id": "llama.cpp's converter calls `<|endoftext|>` BOS; this"
    " tokenizer has none",
    "tokenizer.ggml.unknown_token_id": "the same",
    "tokenizer.ggml.eot_token_id": "ours stands before the vocabulary",
    "clip.vision.image_min_pixels": "what images are stretched to here",
    "clip.vision.image_max_pixels": "the same",
}
VISION_MUTATIONS = {
    "one frame of the patch kernel twice": mmproj(
        instead("v.patch_embd.weight.1", "v.patch_embd.weight")
    ),
    "no bias of the patches": mmproj(values("v.patch_embd.bias", np.zeros_like)),
    "norms of a block exchanged": mmproj(swap("ln1.", "ln2.")),
    "norm of the last block behind all": mmproj(swap("v.blk.2.ln1.", "v.post_ln.")),
    "vision gate and up exchanged": mmproj(swap("ffn_gate", "ffn_up")),
    "vision norms with another epsilon": mmproj(
        nothing, {"clip.vision.attention.layer_norm_epsilon": f32(0.1)}
    ),
    "gelu for silu": mmproj(nothing, {"clip.use_silu": None, "clip.use_gelu": boolean(True)}),
    "pixels normalized as usual": mmproj(
        nothing, {"clip.vision.image_mean": array("FLOAT32", [0.5] * 3)}
    ),
    "patches merged column by column": mmproj(
        values("mm.patch_merger.weight", lambda kernel: kernel.swapaxes(2, 3))
    ),
    "no bias of the merging kernel": mmproj(values("mm.patch_merger.bias", np.zeros_like)),
    "no bias of the merger's norm": mmproj(values("mm.post_norm.bias", np.zeros_like)),
    "merger's gate and up exchanged": mmproj(swap("mm.gate.", "mm.up.")),
}

RECIPE = Recipe(
    name="glm_ocr",
    config=_CONFIG,
    preprocessor=preprocessor(),
    write_tokenizer=write_glm_tokenizer,
    model_class="GlmOcrForConditionalGeneration",
    image_token=_CONFIG["image_token_id"],
    # By its structure; llama.cpp has the same expression under the name of glm4.
    pre="llama-bpe",
    mended_keys=MENDED_KEYS,
    # No table of positions depends on the size of the image.
    free_numbers=(*TOKEN_IDS, "num_heads", "image_size"),
    gains={"embed_tokens": 0.2},
    mutations={
        **VISION_MUTATIONS,
        "query and key norms exchanged": mmproj(swap("attn_q_norm", "attn_k_norm")),
        "no bias of queries": mmproj(values("attn_qkv.bias", np.zeros_like)),
        "no bias behind attention": mmproj(values("attn_out.bias", np.zeros_like)),
        "no bias of the gate": mmproj(values("ffn_gate.bias", np.zeros_like)),
        "rotary pairs of queries apart": text(values("attn_q.weight", pairs_apart(HEAD, HEAD))),
        "rotary pairs of keys apart": text(values("attn_k.weight", pairs_apart(HEAD, HEAD))),
        "norm behind attention before the MLP": text(swap("post_attention_norm", "ffn_norm")),
        "norm behind the MLP before it": text(swap("post_ffw_norm", "ffn_norm")),
        "gate below up": text(values("ffn_up", lambda rows: np.roll(rows, len(rows) // 2, axis=0))),
        "half of a head rotated": text(nothing, {"glm4.rope.dimension_count": u32(HEAD // 2)}),
        "rotary sections in another order": text(
            nothing, {"glm4.rope.dimension_sections": array("INT32", [6, 4, 6, 0])}
        ),
        "another rotary base": text(nothing, {"glm4.rope.freq_base": f32(110.0)}),
        "another epsilon": text(nothing, {"glm4.attention.layer_norm_rms_epsilon": f32(1e-3)}),
    },
)
