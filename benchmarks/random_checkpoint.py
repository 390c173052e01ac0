"""A random Qwen3-VL checkpoint of a given size, for benchmarks: real shapes, meaningless weights.

    python benchmarks/random_checkpoint.py FOLDER [--layers 22] [--hidden 960] ...

The defaults have 0.5 billion parameters: a text model of SmolLM2-360M's width (960, 15 heads of 64)
with Qwen3-VL's own size of vocabulary (151,936) and 22 layers, and a vision tower of SigLIP-base's
shape (12 layers of 768). The tokenizer is a byte-level BPE with the qwen2 pre-tokenizer and as many
random merges as the vocabulary has room for.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# The qwen2 pre-tokenizer's own split.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHUNK = 1 << 22


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=960)
    parser.add_argument("--ffn", type=int, default=2560)
    parser.add_argument("--heads", type=int, default=15)
    parser.add_argument("--kv-heads", type=int, default=5)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--vision-layers", type=int, default=12)
    parser.add_argument("--vision-hidden", type=int, default=768)
    parser.add_argument("--vision-ffn", type=int, default=3072)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def config(args: argparse.Namespace) -> dict[str, object]:
    # Sections of the rotary embedding: half a head's dimensions over time, height and width.
    side = args.head_dim // 2 // 3
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
        "image_token_id": 5,
        "video_token_id": 6,
        "vision_start_token_id": 3,
        "vision_end_token_id": 4,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": False,
            "dtype": "bfloat16",
            "head_dim": args.head_dim,
            "hidden_act": "silu",
            "hidden_size": args.hidden,
            "intermediate_size": args.ffn,
            "max_position_embeddings": 8192,
            "num_attention_heads": args.heads,
            "num_hidden_layers": args.layers,
            "num_key_value_heads": args.kv_heads,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "mrope_interleaved": True,
                "mrope_section": [args.head_dim // 2 - 2 * side, side, side],
                "rope_theta": 5_000_000.0,
                "rope_type": "default",
            },
            "vocab_size": args.vocabulary,
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            "deepstack_visual_indexes": [args.vision_layers * part // 4 - 1 for part in (1, 2, 3)],
            "depth": args.vision_layers,
            "dtype": "bfloat16",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": args.vision_hidden,
            "in_channels": 3,
            "intermediate_size": args.vision_ffn,
            "num_heads": args.vision_hidden // 64,
            "num_position_embeddings": 2304,
            "out_hidden_size": args.hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def tensors(args: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head = args.hidden, args.head_dim
    text = "model.language_model."
    yield f"{text}embed_tokens.weight", (args.vocabulary, hidden)
    yield f"{text}norm.weight", (hidden,)
    for index in range(args.layers):
        layer = f"{text}layers.{index}."
        yield f"{layer}input_layernorm.weight", (hidden,)
        yield f"{layer}post_attention_layernorm.weight", (hidden,)
        yield f"{layer}self_attn.q_norm.weight", (head,)
        yield f"{layer}self_attn.k_norm.weight", (head,)
        yield f"{layer}self_attn.q_proj.weight", (args.heads * head, hidden)
        yield f"{layer}self_attn.k_proj.weight", (args.kv_heads * head, hidden)
        yield f"{layer}self_attn.v_proj.weight", (args.kv_heads * head, hidden)
        yield f"{layer}self_attn.o_proj.weight", (hidden, args.heads * head)
        yield f"{layer}mlp.gate_proj.weight", (args.ffn, hidden)
        yield f"{layer}mlp.up_proj.weight", (args.ffn, hidden)
        yield f"{layer}mlp.down_proj.weight", (hidden, args.ffn)
    yield from vision_tensors(args)


def vision_tensors(args: argparse.Namespace) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn, merged = args.vision_hidden, args.vision_ffn, 4 * args.vision_hidden
    visual = "model.visual."
    yield f"{visual}patch_embed.proj.weight", (hidden, 3, 2, 16, 16)
    yield f"{visual}patch_embed.proj.bias", (hidden,)
    yield f"{visual}pos_embed.weight", (2304, hidden)
    for index in range(args.vision_layers):
        block = f"{visual}blocks.{index}."
        for norm in ("norm1", "norm2"):
            yield f"{block}{norm}.weight", (hidden,)
            yield f"{block}{norm}.bias", (hidden,)
        yield from linear(f"{block}attn.qkv", 3 * hidden, hidden)
        yield from linear(f"{block}attn.proj", hidden, hidden)
        yield from linear(f"{block}mlp.linear_fc1", ffn, hidden)
        yield from linear(f"{block}mlp.linear_fc2", hidden, ffn)
    mergers = [("merger", hidden), *((f"deepstack_merger_list.{i}", merged) for i in range(3))]
    for name, norm_size in mergers:
        yield f"{visual}{name}.norm.weight", (norm_size,)
        yield f"{visual}{name}.norm.bias", (norm_size,)
        yield from linear(f"{visual}{name}.linear_fc1", merged, merged)
        yield from linear(f"{visual}{name}.linear_fc2", args.hidden, merged)


def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
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


def byte_characters() -> list[str]:
    """The 256 characters by which byte-level BPE writes bytes (the table of GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (chr(256 + index) for index in range(256 - len(printable)))
    return [chr(byte) if byte in set(printable) else next(others) for byte in range(256)]


def tokenizer(vocabulary: int, seed: int) -> dict[str, object]:
    ids = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *byte_characters()))}
    tokens = list(ids)[len(SPECIAL_TOKENS) :]
    random = np.random.default_rng(seed)
    merges: list[tuple[str, str]] = []
    while len(ids) < vocabulary:
        left, right = (tokens[index] for index in random.integers(len(tokens), size=2))
        if left + right not in ids and len(left + right) <= 12:
            ids[left + right] = len(ids)
            tokens.append(left + right)
            merges.append((left, right))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated"}
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **dict.fromkeys(flags, False), "special": True}
            for i, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {**byte_level, "use_regex": False}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges,
        },
    }


def main() -> None:
    args = arguments()
    folder: Path = args.folder
    folder.mkdir(parents=True, exist_ok=True)
    documents: dict[str, object] = {
        "config.json": config(args),
        "tokenizer.json": tokenizer(args.vocabulary, args.seed),
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
        },
        "generation_config.json": {"eos_token_id": 2, "pad_token_id": 0},
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessorFast",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "patch_size": 16,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216},
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    shapes = dict(tensors(args))
    write_weights(folder / "model.safetensors", shapes, args.seed)
    print(sum(math.prod(shape) for shape in shapes.values()))


if __name__ == "__main__":
    main()
