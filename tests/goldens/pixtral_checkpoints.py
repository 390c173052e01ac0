"""What transformers saves of Pixtral and Mistral 3, by names and shapes."""

from __future__ import annotations

from tests.goldens.recipe import Config

# What names begin with: as transformers saves them, and as its classes are called.
OF_ITS_CLASSES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: Config) -> Shapes:
    """Return every tensor that transformers saves, by name, and its shape.

    Args:
        config: config.json with every size in it.
    """
    text, vision = config["text_config"], config["vision_config"]
    width, n_text = vision["hidden_size"], text["hidden_size"]
    shapes = {**_text_shapes(text, tied=config["tie_word_embeddings"]), **_tower_shapes(vision)}
    joint = "multi_modal_projector."
    if "spatial_merge_size" in config:
        merged = width * config["spatial_merge_size"] ** 2
        shapes[f"{joint}norm.weight"] = (width,)
        shapes[f"{joint}patch_merger.merging_layer.weight"] = (width, merged)
    for name, n_in in (("linear_1", width), ("linear_2", n_text)):
        shapes[f"{joint}{name}.weight"] = (n_text, n_in)
        if config["multimodal_projector_bias"]:
            shapes[f"{joint}{name}.bias"] = (n_text,)
    return shapes


def _tower_shapes(vision: Config) -> Shapes:
    width, inner, side = (vision[f"{key}_size"] for key in ("hidden", "intermediate", "patch"))
    shapes: Shapes = {
        "vision_tower.patch_conv.weight": (width, 3, side, side),
        "vision_tower.ln_pre.weight": (width,),
    }
    for layer in range(vision["num_hidden_layers"]):
        block = f"vision_tower.transformer.layers.{layer}."
        for name in "qkvo":
            shapes[f"{block}attention.{name}_proj.weight"] = (width, width)
        for name in ("attention_norm", "ffn_norm"):
            shapes[f"{block}{name}.weight"] = (width,)
        shapes |= _gated(f"{block}feed_forward.", width, inner)
    return shapes


def _text_shapes(text: Config, *, tied: bool) -> Shapes:
    width, inner, head = text["hidden_size"], text["intermediate_size"], text["head_dim"]
    n_query, n_key = (head * text[f"num_{key}_heads"] for key in ("attention", "key_value"))
    prefix = "language_model.model."
    shapes: Shapes = {
        f"{prefix}embed_tokens.weight": (text["vocab_size"], width),
        f"{prefix}norm.weight": (width,),
    }
    if not tied:
        shapes["language_model.lm_head.weight"] = (text["vocab_size"], width)
    for layer in range(text["num_hidden_layers"]):
        block = f"{prefix}layers.{layer}."
        for name, n_out in (("q", n_query), ("k", n_key), ("v", n_key)):
            shapes[f"{block}self_attn.{name}_proj.weight"] = (n_out, width)
        shapes[f"{block}self_attn.o_proj.weight"] = (width, n_query)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}{name}.weight"] = (width,)
        shapes |= _gated(f"{block}mlp.", width, inner)
    return shapes


def _gated(prefix: str, width: int, inner: int) -> Shapes:
    return {
        f"{prefix}gate_proj.weight": (inner, width),
        f"{prefix}up_proj.weight": (inner, width),
        f"{prefix}down_proj.weight": (width, inner),
    }
