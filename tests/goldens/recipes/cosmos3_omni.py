"""Cosmos 3: Qwen3-VL's golden under flat names, beside tensors of its generator."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tests.goldens.files import read_golden_json
from tests.goldens.qwen3_checkpoints import Weights, rewrite
from tests.goldens.recipe import PROMPTS, Config
from tests.goldens.recipes import qwen3_vl
from tests.synthetic import write_json

_CONFIG: Config = {
    **qwen3_vl.RECIPE.config,
    "architectures": ["Cosmos3OmniForConditionalGeneration"],
    "model_type": "cosmos3_omni",
}
EXTRA: dict[str, tuple[int, ...]] = {
    "action_modality_embed": (8,),
    "audio_proj_in.weight": (8, 4),
    "layers.0.input_layernorm_moe_gen.weight": (8,),
    "layers.0.self_attn.add_q_proj.weight": (8, 8),
    "layers.0.self_attn.norm_added_k.weight": (8,),
    "layers.0.self_attn.to_add_out.weight": (8, 8),
    "proj_out.weight": (8, 8),
    "time_embedder.linear_1.weight": (8, 8),
}
_ATTENTION = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out": "o_proj",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}


def nested(name: str) -> str:
    """Return Qwen3-VL's name of a tensor."""
    if name.startswith(("layers.", "embed_tokens.", "norm.")):
        name = re.sub(r"self_attn\.(\w+)", lambda m: f"self_attn.{_ATTENTION[m[1]]}", name)
        return f"model.language_model.{name}"
    return name if name.startswith("lm_head.") else f"model.visual.{name}"


def _as_qwen3_vl(folder: Path) -> None:
    def renamed(weights: Weights) -> Weights:
        return {nested(name): one for name, one in weights.items() if name not in EXTRA}

    rewrite(folder, renamed)
    config = read_golden_json(folder / "config.json")
    config |= {key: qwen3_vl.RECIPE.config[key] for key in ("architectures", "model_type")}
    write_json(folder / "config.json", config)


RECIPE = replace(
    qwen3_vl.RECIPE,
    name="cosmos3_omni",
    config=_CONFIG,
    model_class="Cosmos3OmniForConditionalGeneration",
    extra=EXTRA,
    adapt=_as_qwen3_vl,
    outtypes=("auto",),
    prompts=PROMPTS[:3],
    shards=1,
    seed=20261124,
)
