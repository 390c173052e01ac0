"""Random damage to tokenizer files: of their bytes, and of what their JSON says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, cast

# How often each file is hit.
_WEIGHTS = {
    "tokenizer.json": 6.0,
    "tokenizer.model": 6.0,
    "tekken.json": 6.0,
    "vocab.json": 4.0,
    "merges.txt": 2.0,
    "tokenizer_config.json": 2.0,
}
_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 300, 319, 320, 10**6, 2**31, 2**32, 2**63, 10**300, -(10**300),
    1.5, 1e308, "", "x", " ", "▁", "\0", "x" * 100_000, [], {}, [[]], [{}], {"a": 1}, "Regex",
    "NFC", "ByteLevel", "<s>", "<unk>", "<|im_end|>", "é", "😀", ["a", "b"], [["a", "b", "c"]],
    "<0x00>", "(a+)+$", [[[[[[[[]]]]]]]],
)  # fmt: skip
_KEYS = ("type", "x", "vocab", "▁", "")
Place = tuple[Any, ...]


def damage(folder: Path, rng: Random) -> str:
    """Damage one file of a folder and return its name."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    (name,) = rng.choices(names, [_WEIGHTS.get(name, 0.5) for name in names])
    path = folder / name
    raw = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.8:
        value = json.loads(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            _change(value, rng)
        path.write_text(json.dumps(value), encoding="utf-8")
    else:
        path.write_bytes(_damaged(raw, rng))
    return name


def _damaged(raw: bytes, rng: Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        start = rng.randrange(len(data) + 1)
        stop = min(len(data), start + rng.choice((1, 2, 8, 100)))
        kind = rng.randrange(5)
        if kind == 0:
            del data[start:]
        elif kind == 1:
            data[start:stop] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[start:stop])
        elif kind == 2:
            del data[start:stop]
        elif kind == 3:
            data[start:start] = data[start:stop]
        else:
            data[start:start] = rng.randbytes(rng.choice((1, 4)))
    return bytes(data)


def _paths(value: Any, path: Place = ()) -> Iterator[Place]:
    """Yield where every value inside of one lies."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in cast(dict[str, Any], value).items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(cast(list[Any], value)):
            yield from _paths(inner, (*path, number))


def _at(value: Any, path: Place) -> Any:
    for key in path:
        value = value[key]
    return value


def _change(value: Any, rng: Random) -> None:
    paths = list(_paths(value))
    # Few of them are not in the vocabulary.
    others = [
        path for path in paths if len(path) < 5 and path[1:2] not in (("vocab",), ("merges",))
    ]
    if not paths:
        return
    path = rng.choice(others if others and rng.random() < 0.7 else paths)
    keys = list(path)
    key = keys.pop()
    holder = _at(value, tuple(keys))
    kind = rng.randrange(6)
    if kind == 0:
        holder[key] = rng.choice(_VALUES)
    elif kind == 1:
        del holder[key]
    elif kind == 2:
        copied = json.dumps(_at(value, rng.choice(paths)))
        holder[key] = json.loads(copied) if len(copied) < 20_000 else 5
    elif kind == 3 and isinstance(key, int):
        holder.insert(key, holder[key])
    elif kind == 4 and isinstance(key, str):
        holder[rng.choice((*_KEYS, f"{key}x"))] = holder.pop(key)
    else:
        holder[key] = _beside(holder[key], rng)


def _beside(value: Any, rng: Random) -> Any:
    """Return a value a little different from one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + rng.choice((-1, 1, 1000, 0.5))
    if isinstance(value, str):
        return value[::-1] + rng.choice(("", "x", "\n", "é"))
    if isinstance(value, list):
        items = cast(list[Any], value)
        return items[: len(items) // 2]
    return [value]
