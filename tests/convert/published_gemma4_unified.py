"""The configuration of Gemma 4 12B, as far as it is known here.

That it has no towers and its width are in transformers' `Gemma4UnifiedVisionConfig`, whose defaults
are said to be those of google/gemma-4-12B-it; layers and heads are Gemma 3 12B's, put in their
place because the file could not be read; what is not named are transformers' defaults.
"""

from __future__ import annotations

from tests.goldens.recipe import Config

PUBLISHED: Config = {
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "audio_config": {"model_type": "gemma4_unified_audio"},
    "image_token_id": 258880,
    "model_type": "gemma4_unified",
    "text_config": {
        "attention_k_eq_v": True,
        "final_logit_softcapping": 30.0,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "model_type": "gemma4_unified_text",
        "num_attention_heads": 16,
        "num_global_key_value_heads": 1,
        "num_hidden_layers": 48,
        "num_key_value_heads": 8,
    },
    "vision_config": {"model_type": "gemma4_unified_vision"},
}
# Tensors of transformers' class without what hears, and their values, built on its `meta` device
# from the configuration above.
N_PARAMETERS = (676, 11_957_272_624)
