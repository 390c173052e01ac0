"""Ways to break the built-in checkpoint: what a hostile or careless source looks like."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
NORM = "model.language_model.norm.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


def read_weights(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_weights(folder: Path, header: dict[str, Any] | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_json(folder: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads((folder / name).read_text())
    edit(document)
    (folder / name).write_text(json.dumps(document))


def edit_header(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        header, data = read_weights(folder)
        edit(header)
        write_weights(folder, header, data)

    return apply


def edit_config(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder, "config.json", edit)


def edit_tokenizer(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder, "tokenizer.json", edit)


def text_config(**changes: Any) -> Callable[[Path], None]:
    return edit_config(lambda config: config["text_config"].update(changes))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def only_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def truncated(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[: len(raw) // 2])


def empty_weights(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def header_beyond_file(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw) * 2) + raw[8:])


def json_bomb(folder: Path) -> None:
    _, data = read_weights(folder)
    write_weights(folder, b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", data)


def config_bomb(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' + "[" * 200_000 + "]" * 200_000 + "}")


def binary_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00garbage")


def nan_weights(folder: Path) -> None:
    header, data = read_weights(folder)
    start, _ = header[NORM]["data_offsets"]
    write_weights(folder, header, data[:start] + b"\xc0\x7f" + data[start + 2 :])


def index(weight_map: dict[str, str]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
        document = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(document))

    return apply


def _overlap(header: dict[str, Any]) -> None:
    names = sorted(name for name in header if name != "__metadata__")
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]


def _shift(amount: int) -> Callable[[dict[str, Any]], None]:
    def edit(header: dict[str, Any]) -> None:
        start, stop = header[NORM]["data_offsets"]
        header[NORM]["data_offsets"] = [start + amount, stop + amount]

    return edit


def _drop_runtime_token(tokenizer: dict[str, Any]) -> None:
    for token in tokenizer["added_tokens"]:
        if token["content"] == "<|vision_start|>":
            token["content"] = "<|other|>"
    vocabulary = tokenizer["model"]["vocab"]
    if "<|vision_start|>" in vocabulary:
        vocabulary["<|other|>"] = vocabulary.pop("<|vision_start|>")


def _grow_vocabulary(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    top = max(*vocabulary.values(), *(token["id"] for token in tokenizer["added_tokens"]))
    for number in range(1, 8):
        vocabulary[f"newtoken{number}"] = top + number


def _unknown_pre_tokenizer(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}


# name -> (how to break a copy of the built-in checkpoint, words that the error must contain)
BROKEN: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no config.json": (no_config, ("config.json",)),
    "only a pickle": (only_pickle, ("pytorch_model.bin", "safetensors")),
    "no weights": (no_weights, ("safetensors",)),
    "no tokenizer": (no_tokenizer, ("tokenizer.json",)),
    "unknown architecture": (
        edit_config(lambda config: config.update(architectures=["NoSuchModel"])),
        ("NoSuchModel", "qwen3_vl"),
    ),
    "truncated": (truncated, (WEIGHTS,)),
    "empty weights": (empty_weights, (WEIGHTS,)),
    "header beyond the file": (header_beyond_file, (WEIGHTS,)),
    "JSON bomb in the header": (json_bomb, (WEIGHTS,)),
    "JSON bomb as config": (config_bomb, ("config.json",)),
    "binary config": (binary_config, ("config.json",)),
    "overlapping offsets": (edit_header(_overlap), (WEIGHTS,)),
    "negative offsets": (edit_header(_shift(-(1 << 30))), (NORM,)),
    "offsets out of range": (edit_header(_shift(1 << 40)), (NORM,)),
    "shape contradicts bytes": (
        edit_header(lambda header: header[NORM].update(shape=[257])),
        (NORM,),
    ),
    "tensor missing": (edit_header(lambda header: header.pop(NORM)), ()),
    "tensor renamed": (
        edit_header(lambda header: header.update({"model.odd.weight": header.pop(NORM)})),
        ("model.odd.weight",),
    ),
    "wrong shape": (
        edit_header(lambda header: header[NORM].update(shape=[2, 128])),
        (NORM,),
    ),
    "unsupported dtype": (
        edit_header(lambda header: header[NORM].update(dtype="I16")),
        (NORM, "I16"),
    ),
    "NaN": (nan_weights, (NORM,)),
    "shard missing": (
        index({NORM: "model-00002-of-00002.safetensors"}),
        ("model-00002-of-00002.safetensors",),
    ),
    "index out of the folder": (index({NORM: "../../etc/passwd"}), ("../../etc/passwd",)),
    "config key missing": (
        edit_config(lambda config: config.pop("vision_config")),
        ("`vision_config` is missing",),
    ),
    "config of wrong type": (text_config(num_attention_heads="four"), ("num_attention_heads",)),
    "0 heads": (text_config(num_attention_heads=0), ("num_attention_heads",)),
    "10^9 layers": (text_config(num_hidden_layers=10**9), ("num_hidden_layers",)),
    "vocabulary larger than the embedding": (edit_tokenizer(_grow_vocabulary), ()),
    "runtime token missing": (edit_tokenizer(_drop_runtime_token), ("<|vision_start|>",)),
    "unknown pre-tokenizer": (edit_tokenizer(_unknown_pre_tokenizer), ("Whitespace",)),
}
