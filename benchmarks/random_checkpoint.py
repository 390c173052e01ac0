"""A random checkpoint of a published model's shape, for benchmarks: the weights mean nothing.

    python benchmarks/random_checkpoint.py FOLDER [--shape qwen3-vl-0.5b]

Shapes: `qwen3-vl-0.5b` (Qwen3-VL's architecture and vocabulary with SmolLM2-360M's width and
SigLIP-base's tower: 0.5 billion parameters), `smolvlm2-500m`, `qwen3-vl-2b`, `gemma-3-4b`. Tensor
names and shapes are those that our converter asks for, under the prefixes of the published files:
llama.cpp's converter takes them too. Vocabularies have the published size and made-up merges.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Source
from edgevlm_convert.prefixes import Prefixes

from tests.synthetic_tokenizer import write_tokenizer
from tests.tokenizers.byte_level import write_tokenizer_smollm
from tests.tokenizers.gemma import write_tokenizer_gemma

CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A published model's shape.

    Attributes:
        config: config.json.
        preprocessor: preprocessor_config.json.
        prefixes: of the published files.
        n_tokens: of the tokenizer; the embedding may have more rows.
        write_tokenizer: writes the tokenizer's files.
    """

    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    prefixes: Prefixes
    n_tokens: int
    write_tokenizer: Callable[..., object]


HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
QWEN_PREFIXES = Prefixes(
    text="model.language_model.", vision="model.visual.", projector="model.visual."
)


def qwen3_vl(text: Mapping[str, Any], vision: Mapping[str, Any]) -> Shape:
    """Return a Qwen3-VL shape; its sections share what is the same at all sizes."""
    head_dim = text["head_dim"]
    side = head_dim // 2 // 3
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
        "image_token_id": 151_933,
        "video_token_id": 151_934,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": False,
            "hidden_act": "silu",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [head_dim // 2 - 2 * side, side, side],
                "rope_theta": 5_000_000.0,
                "rope_type": "default",
            },
            "vocab_size": 151_936,
            **text,
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "deepstack_visual_indexes": [vision["depth"] * part // 4 - 1 for part in (1, 2, 3)],
            "hidden_act": "gelu_pytorch_tanh",
            "in_channels": 3,
            "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
    }
    preprocessor = {
        **HALF,
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": 16,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
    }
    return Shape(
        config=config,
        preprocessor=preprocessor,
        prefixes=QWEN_PREFIXES,
        n_tokens=151_936,
        write_tokenizer=write_tokenizer,
    )


def sizes(
    hidden: int, layers: int, ffn: int, heads: int, kv_heads: int, head_dim: int
) -> dict[str, int]:
    """Return the keys of a text model's sizes."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def tower(hidden: int, depth: int, ffn: int, heads: int) -> dict[str, int]:
    """Return the keys of a Qwen tower's sizes."""
    return {"hidden_size": hidden, "depth": depth, "intermediate_size": ffn, "num_heads": heads}


SMOLVLM2_500M = Shape(
    config={
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "dtype": "bfloat16",
        "image_token_id": 49_268,
        "scale_factor": 4,
        "tie_word_embeddings": False,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "model_type": "llama",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-05,
            "rope_theta": 100_000.0,
            "vocab_size": 49_280,
            **sizes(960, 32, 2560, 15, 5, 64),
        },
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": 768,
            "image_size": 512,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "patch_size": 16,
        },
    },
    preprocessor={
        **HALF,
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": True,
        "size": {"longest_edge": 2048},
        "max_image_size": {"longest_edge": 512},
    },
    prefixes=Prefixes(
        text="model.text_model.", vision="model.vision_model.", projector="model.connector."
    ),
    n_tokens=49_280,
    write_tokenizer=write_tokenizer_smollm,
)
GEMMA_3_4B = Shape(
    config={
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "dtype": "bfloat16",
        "image_token_index": 262_144,
        "mm_tokens_per_image": 256,
        "text_config": {
            "model_type": "gemma3_text",
            "max_position_embeddings": 131_072,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            "vocab_size": 262_208,
            **sizes(2560, 34, 10_240, 8, 4, 256),
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    preprocessor={
        **HALF,
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": 256,
        "size": {"height": 896, "width": 896},
    },
    prefixes=Prefixes(
        text="language_model.model.",
        head="language_model.lm_head.",
        vision="vision_tower.vision_model.",
        projector="multi_modal_projector.",
    ),
    n_tokens=262_145,
    write_tokenizer=write_tokenizer_gemma,
)
SHAPES: Mapping[str, Shape] = {
    "qwen3-vl-0.5b": qwen3_vl(sizes(960, 22, 2560, 15, 5, 64), tower(768, 12, 3072, 12)),
    "smolvlm2-500m": SMOLVLM2_500M,
    "qwen3-vl-2b": qwen3_vl(sizes(2048, 28, 6144, 16, 8, 128), tower(1024, 24, 4096, 16)),
    "gemma-3-4b": GEMMA_3_4B,
}


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the tensors that the converter asks for, by name."""
    config = Section(shape.config, file="config.json")
    family = find_family(config)
    architecture, text = find_text_model(family, config)
    source = Source(
        config=config,
        text=text,
        preprocessor=Section(shape.preprocessor, file="preprocessor_config.json"),
        prefixes=shape.prefixes,
    )
    parts = architecture.build(source), family.projector.build(source)
    return {
        name: wanted
        for part in parts
        for rule in part.rules
        if rule.required
        for name, wanted in rule.shapes.items()
        if wanted is not None
    }


def write_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Write BF16 weights of deviation 0.02."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    random = np.random.default_rng(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for shape in shapes.values():
            left = math.prod(shape)
            while left:
                count = min(left, CHUNK)
                values = 0.02 * random.standard_normal(count, np.float32)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-vl-0.5b")
    args = parser.parse_args()
    shape, folder = SHAPES[args.shape], Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape.write_tokenizer(folder, n_tokens=shape.n_tokens)
    documents = {
        "config.json": shape.config,
        "preprocessor_config.json": shape.preprocessor,
        "generation_config.json": {"do_sample": False},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    shapes = tensors(shape)
    write_weights(folder / "model.safetensors", shapes, seed=1)
    print(sum(math.prod(sizes) for sizes in shapes.values()))


if __name__ == "__main__":
    main()
