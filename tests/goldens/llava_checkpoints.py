"""LLaVA's checkpoints as transformers 5 writes them, and how they were published before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.convert.tricks import rename_tensors
from tests.goldens.files import read_golden_json
from tests.goldens.recipe import Config
from tests.synthetic import write_json, write_tokenizer

N_TOKENS = 300
IMAGE_TOKEN = N_TOKENS - 2
# What names begin with: as transformers 5 saves them, and elsewhere.
OF_TRANSFORMERS_4 = {"vision_tower.": "vision_tower.vision_model."}
OF_ITS_CLASSES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
_QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Every number away from what the classes have when a key is missing.
_TEXT: Config = {
    "hidden_act": "silu",
    "hidden_size": 96,
    "intermediate_size": 160,
    "max_position_embeddings": 2048,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "vocab_size": N_TOKENS + 20,
}
_CLIP: Config = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "image_size": 72,
    "intermediate_size": 48,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "patch_size": 8,
    "projection_dim": 40,
}
_SIGLIP: Config = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 40,
    # Not a multiple of the patches, as 384 is not.
    "image_size": 69,
    "intermediate_size": 72,
    "layer_norm_eps": 1e-06,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 5,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 14,
    "vision_use_head": False,
}
_PIXELS: Config = {
    "image_mean": [0.5, 0.45, 0.4],
    "image_std": [0.5, 0.25, 0.3],
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}


def clip_config(*, text: Mapping[str, Any], **outer: Any) -> Config:
    """Return config.json of a LLaVA with CLIP; `text` replaces keys of its section."""
    return _config({**_CLIP}, text, layer=-2, strategy="default", **outer)


def siglip_config(*, text: Mapping[str, Any], layer: int | list[int] = -1, **outer: Any) -> Config:
    """Return config.json of a LLaVA with SigLIP; `text` replaces keys of its section."""
    return _config({**_SIGLIP}, text, layer=layer, strategy="full", **outer)


def _config(
    vision: Config, text: Mapping[str, Any], *, layer: int | list[int], strategy: str, **outer: Any
) -> Config:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_index": IMAGE_TOKEN,
        "model_type": "llava",
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "text_config": {**_TEXT, **text},
        "tie_word_embeddings": False,
        "vision_config": vision,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        **outer,
    }


def preprocessor(config: Config) -> Config:
    """Return preprocessor_config.json for a config."""
    side = config["vision_config"]["image_size"]
    square = {"height": side, "width": side}
    if config["vision_config"]["model_type"] == "siglip_vision_model":
        return {**_PIXELS, "image_processor_type": "SiglipImageProcessor", "size": square}
    return {
        **_PIXELS,
        "crop_size": square,
        "do_center_crop": True,
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
    }


def square_prompts(config: Config) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Return prompts with images of exactly the tower's size."""
    side = config["vision_config"]["image_size"]
    first, second, third = (f"{side}x{side}-{seed}" for seed in (1, 2, 3))
    return (
        ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
        ("one image", "What is in the image?", (first,)),
        ("another image", "What is in the image?", (second,)),
        ("two images", "Is the circle in one or in the other?", (second, third)),
    )


def write_tokenizer_llava_qwen(folder: Path) -> None:
    """Write the files of llava-interleave: Qwen's tokenizer, with `<image>`."""
    write_tokenizer(folder, n_tokens=N_TOKENS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        text = path.read_text(encoding="utf-8")
        # The id is the one that IMAGE_TOKEN names: the last but one of all tokens.
        text = text.replace("<|video_pad|>", "<image>")
        path.write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_QWEN_TEMPLATE, encoding="utf-8")


def read_as_it_is(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what writes a tokenizer that transformers reads as it is.

    For LLaVA and LLaVA-NeXT it does so whatever the files say; for the classes that also read
    videos it would build a tokenizer anew that puts no space behind an image.
    """

    def write_both(folder: Path) -> None:
        write(folder)
        path = folder / "tokenizer_config.json"
        write_json(path, {**read_golden_json(path), "tokenizer_class": "TokenizersBackend"})

    return write_both


def as_published(class_name: str) -> Callable[[Path], None]:
    """Return what gives a checkpoint its old names, and its text model its own class."""

    def adapt(folder: Path) -> None:
        config = read_golden_json(folder / "config.json")
        config["text_config"]["architectures"] = [class_name]
        write_json(folder / "config.json", config)
        rename_tensors(folder, lambda name: renamed(name, OF_TRANSFORMERS_4))

    return adapt


def renamed(name: str, prefixes: Mapping[str, str]) -> str:
    """Return a tensor's name with what it begins with exchanged."""
    for prefix, other in prefixes.items():
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return every tensor that transformers saves, by name, and its shape.

    Args:
        config: config.json with every size in it.
    """
    text, vision = config["text_config"], config["vision_config"]
    layer: int | list[int] = config["vision_feature_layer"]
    width, n_states = text["hidden_size"], len(layer) if isinstance(layer, list) else 1
    shapes = _text_shapes(text, tied=config["tie_word_embeddings"])
    shapes |= vision_shapes(vision)
    bias = config.get("multimodal_projector_bias", True)
    for name, n_in in (("linear_1", vision["hidden_size"] * n_states), ("linear_2", width)):
        _add(shapes, f"multi_modal_projector.{name}", width, n_in, bias=bias)
    return shapes


def _text_shapes(text: Config, *, tied: bool) -> dict[str, tuple[int, ...]]:
    width, inner = text["hidden_size"], text["intermediate_size"]
    head = text.get("head_dim", width // text["num_attention_heads"])
    n_query, n_key = (head * text[f"num_{key}_heads"] for key in ("attention", "key_value"))
    is_qwen2, attention_bias = text["model_type"] == "qwen2", text.get("attention_bias", False)
    shapes: dict[str, tuple[int, ...]] = {}
    names = ("language_model.model.embed_tokens", "language_model.lm_head")
    for name in names[: 1 if tied else 2]:
        _add(shapes, name, text["vocab_size"], width, bias=False)
    _add(shapes, "language_model.model.norm", width, bias=False)
    for layer in range(text["num_hidden_layers"]):
        prefix = f"language_model.model.layers.{layer}."
        attention = f"{prefix}self_attn."
        for letter, n_out in (("q", n_query), ("k", n_key), ("v", n_key)):
            _add(shapes, f"{attention}{letter}_proj", n_out, width, bias=attention_bias or is_qwen2)
        _add(shapes, f"{attention}o_proj", width, n_query, bias=attention_bias)
        for letter in "qk" if text["model_type"] == "qwen3" else "":
            _add(shapes, f"{attention}{letter}_norm", head, bias=False)
        for name in ("gate", "up"):
            _add(shapes, f"{prefix}mlp.{name}_proj", inner, width, bias=text.get("mlp_bias", False))
        _add(shapes, f"{prefix}mlp.down_proj", width, inner, bias=text.get("mlp_bias", False))
        for name in ("input_layernorm", "post_attention_layernorm"):
            _add(shapes, f"{prefix}{name}", width, bias=False)
    return shapes


def vision_shapes(vision: Config) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a tower of CLIP or SigLIP, as transformers 5 saves it."""
    width, inner, patch = (
        vision[key] for key in ("hidden_size", "intermediate_size", "patch_size")
    )
    is_clip = vision["model_type"] == "clip_vision_model"
    n_positions = (vision["image_size"] // patch) ** 2 + is_clip
    shapes: dict[str, tuple[int, ...]] = {}
    embeddings = "vision_tower.embeddings."
    _add(shapes, f"{embeddings}patch_embedding", width, 3, patch, patch, bias=not is_clip)
    _add(shapes, f"{embeddings}position_embedding", n_positions, width, bias=False)
    if is_clip:
        shapes[f"{embeddings}class_embedding"] = (width,)
        _add(shapes, "vision_tower.pre_layrnorm", width)
    for layer in range(vision["num_hidden_layers"]):
        prefix = f"vision_tower.encoder.layers.{layer}."
        for name in ("q", "k", "v", "out"):
            _add(shapes, f"{prefix}self_attn.{name}_proj", width, width)
        _add(shapes, f"{prefix}mlp.fc1", inner, width)
        _add(shapes, f"{prefix}mlp.fc2", width, inner)
        for name in ("layer_norm1", "layer_norm2"):
            _add(shapes, f"{prefix}{name}", width)
    _add(shapes, "vision_tower.post_layernorm", width)
    return shapes


def _add(shapes: dict[str, tuple[int, ...]], name: str, *shape: int, bias: bool = True) -> None:
    shapes[f"{name}.weight"] = shape
    if bias:
        shapes[f"{name}.bias"] = shape[:1]
