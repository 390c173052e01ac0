"""The goldens' files: where they are, how their checkpoint is drawn again, how they are read.

A golden folder holds checkpoint/ (config, tokenizer, templates: everything but weights), then
weights.json (names, shapes, dtype, seed and shard of every tensor), converter.json (what
llama.cpp's converter made of it, where it takes the class) and reference.npz (what transformers
computes with it, in the format of `edgevlm reference`). How each is made stands in recipes/.
`shapes` has converter.json alone: its checkpoint is part of the product.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.reference_file import Case, Reference, read_reference, write_reference
from tests.synthetic import draw, encode, write_json, write_safetensors

GOLDENS = Path(__file__).parent
# A LoRA adapter for the golden `qwen3_vl`, with weights and reference of its own.
ADAPTER = "adapter"


def write_golden_reference(path: Path, reference: Reference) -> None:
    """Write a reference file packed as tightly as zip allows: pixels and probabilities are noise.

    The format is the product's own; only the packing of its arrays differs (LZMA).
    """
    write_reference(path, reference)
    pack_tightly(path)


def pack_tightly(path: Path) -> None:
    """Pack the members of a zip file anew with LZMA, in their order and without their times."""
    with zipfile.ZipFile(path) as archive:
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_LZMA)


def write_weights_file(
    folder: Path,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    shards: int,
    dtype: str,
    seed: int,
    gains: Mapping[str, float],
    integers: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write weights.json: all that is needed to draw the weights again, whole numbers as they are.

    Args:
        folder: of the golden.
        shapes: by name.
        shards: files.
        dtype: of what is drawn.
        seed: of the drawing.
        gains: factors by parts of names.
        integers: values of tensors of whole numbers, by name.
    """
    names = list(shapes)
    tensors = {
        name: [list(shapes[name]), number * shards // len(names) + 1]
        for number, name in enumerate(names)
    }
    document = {
        "seed": seed,
        "dtype": dtype,
        "shards": shards,
        "gains": dict(gains),
        **({"integers": {name: list(one) for name, one in integers.items()}} if integers else {}),
        "tensors": tensors,
    }
    # A line a tensor is small, and still shows what changed.
    text = json.dumps(document).replace('], "', '],\n"')
    (folder / "weights.json").write_text(text + "\n", encoding="utf-8")


def redraw(golden: str, folder: Path, *, dtype: str | None = None) -> Path:
    """Write the checkpoint of a golden into `folder` and return it; `dtype` replaces its own."""
    source = GOLDENS / golden
    shutil.copytree(source / "checkpoint", folder, dirs_exist_ok=True)
    weights = read_golden_json(source / "weights.json")
    stored_as = dtype or str(weights["dtype"])
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, (shape, shard) in weights["tensors"].items():
        file = f"model-{shard:05}-of-{weights['shards']:05}.safetensors"
        shards.setdefault(file, {})[name] = tuple(shape)
    for file, shapes in shards.items():
        write_safetensors(
            folder / file,
            {name: drawn_tensor(weights, name, shape, stored_as) for name, shape in shapes.items()},
        )
    weight_map = {name: file for file, shapes in shards.items() for name in shapes}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    return folder


def drawn_tensor(
    weights: Mapping[str, Any], name: str, shape: tuple[int, ...], dtype: str
) -> tuple[str, tuple[int, ...], bytes]:
    """Return type, shape and bytes of a tensor that weights.json tells how to draw."""
    integers: Mapping[str, list[int]] = weights.get("integers", {})
    if name in integers:
        return "I64", shape, np.asarray(integers[name], dtype="<i8").tobytes()
    values = draw(name, shape, seed=weights["seed"], gains=weights.get("gains"))
    return dtype, shape, encode(values, dtype)


def redraw_adapter(folder: Path) -> Path:
    """Write the LoRA adapter of the golden ADAPTER into `folder` and return it."""
    source = GOLDENS / ADAPTER
    folder.mkdir(parents=True)
    shutil.copy(source / "adapter_config.json", folder)
    weights = read_golden_json(source / "weights.json")
    write_safetensors(
        folder / "adapter_model.safetensors",
        {
            name: ("F32", tuple(shape), encode(draw(name, shape, seed=weights["seed"]), "F32"))
            for name, (shape, _) in weights["tensors"].items()
        },
    )
    return folder


def read_golden_json(path: Path) -> dict[str, Any]:
    """Return one of our own JSON files."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_golden_json(path: Path, document: dict[str, Any]) -> None:
    """Write a table of llama.cpp's converter: a tensor or a metadata key a line."""
    path.write_text(_lines(document, 0) + "\n", encoding="utf-8")


def _lines(value: Any, depth: int) -> str:
    """Return JSON that is laid out down to lists of lists, and dense below."""
    inner = " " * (depth + 1)
    if isinstance(value, dict):
        some = cast(dict[str, Any], value)
        items = [f"{inner}{json.dumps(key)}: {_lines(one, depth + 1)}" for key, one in some.items()]
        opened, closed = "{}"
    elif isinstance(value, list) and any(isinstance(one, list) for one in cast(list[Any], value)):
        items = [f"{inner}{_dense(one)}" for one in cast(list[Any], value)]
        opened, closed = "[]"
    else:
        return _dense(value)
    return f"{opened}\n" + ",\n".join(items) + f"\n{' ' * depth}{closed}"


def _dense(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def drawn_image(name: str) -> NDArray[np.uint8]:
    """Return an image by its name `HEIGHTxWIDTH-SEED`: RGB uint8, smooth with some noise."""
    size, seed = name.split("-")
    height, width = (int(number) for number in size.split("x"))
    raw = np.random.PCG64([height, width, int(seed)]).random_raw(height * width * 3 + 16)
    noise = (raw[16:] % 64).reshape(height, width, 3)
    y, x = np.mgrid[0:height, 0:width]
    speed = (raw[:9] % 7).reshape(3, 3).astype(np.int64)
    ramp = [(speed[c, 0] * x + speed[c, 1] * y + 20 * speed[c, 2]) % 192 for c in range(3)]
    return (np.stack(ramp, axis=-1) + noise).astype(np.uint8)


def golden_cases(golden: str) -> tuple[Case, ...]:
    """Return the prompts of a golden, with what transformers computes for each."""
    return read_reference(GOLDENS / golden / "reference.npz").cases


def case_images(case: Case) -> list[NDArray[np.uint8]]:
    """Return the images of a golden's prompt, drawn again by their names."""
    return [drawn_image(image.name) for image in case.images]


def kld_between(cases: Sequence[Case], one: str, other: str) -> float:
    """Return the KLD between the first tokens of two cases' answers, in nats."""
    by_name = {case.name: case for case in cases}
    logprobs = np.zeros((2, by_name[one].top_ids.shape[1]))
    for row, name in zip(logprobs, (one, other), strict=True):
        row[by_name[name].top_ids[0]] = by_name[name].top_logprobs[0]
    return float((np.exp(logprobs[0]) * (logprobs[0] - logprobs[1])).sum())
