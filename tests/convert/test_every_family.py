"""What holds for every golden: total mapping, equal bytes, errors that name what is wrong."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from edgevlm_convert.families import FAMILIES

from edgevlm.errors import CheckpointError, ConversionError, UnsupportedArchitectureError
from tests.convert.tricks import Header, split_safetensors
from tests.goldens.files import GOLDENS, read_golden_json
from tests.goldens.recipes import RECIPES

N_MUTATIONS = 12
Golden = Callable[[str], Path]
every_golden = pytest.mark.parametrize("name", RECIPES)
# Whole numbers that no shape depends on, and that no graph refuses: any value is a model's own.
FREE_NUMBERS = {
    "bos_token_id",
    "eos_token_id",
    "image_token_id",
    "image_token_index",
    "initializer_factor",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "pad_token_id",
    "video_token_id",
    "vision_end_token_id",
    "vision_start_token_id",
}


@every_golden
def test_every_tensor_is_used_or_dropped_with_a_reason(golden: Golden, name: str) -> None:
    plan = plan_conversion(golden(name))
    stored = set(read_golden_json(GOLDENS / name / "weights.json")["tensors"])
    assert set(plan.ledger.used) | set(plan.ledger.dropped) == stored
    assert not set(plan.ledger.used) & set(plan.ledger.dropped)
    assert all(plan.ledger.dropped.values())
    made = Counter(target for targets in plan.ledger.used.values() for target in targets)
    written = {tensor.info.name for part in (plan.text, plan.mmproj) for tensor in part.tensors}
    computed = written - set(made)
    assert set(made) <= written
    assert all(target.startswith("rope_f") or target.endswith(".bias") for target in computed)


@every_golden
def test_two_runs_and_any_number_of_threads_give_the_same_bytes(
    golden: Golden, tmp_path: Path, name: str
) -> None:
    written: list[bytes] = []
    for n_threads in (1, 4):
        plan = plan_conversion(golden(name))
        paths = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
        convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1], n_threads=n_threads)
        written.append(b"".join(path.read_bytes() for path in paths))
    assert written[0] == written[1]


def _rename(header: Header, victim: str) -> str:
    header[f"{victim}x"] = header.pop(victim)
    return f"{victim}x"


def _drop(header: Header, victim: str) -> str:
    header.pop(victim)
    return victim


def _add(header: Header, victim: str) -> str:
    entry = header[victim]
    begin = entry["data_offsets"][0]
    header[f"{victim}.more"] = {**entry, "shape": [0], "data_offsets": [begin, begin]}
    return f"{victim}.more"


@every_golden
@pytest.mark.parametrize("change", [_rename, _drop, _add], ids=lambda change: change.__name__)
def test_a_tensor_renamed_dropped_or_added_is_named(
    golden: Golden, tmp_path: Path, name: str, change: Callable[[Header, str], str]
) -> None:
    optional = set(plan_conversion(golden(name)).ledger.dropped)
    picked = random.Random(f"{name} {change.__name__}")
    shards = sorted(golden(name).glob("*.safetensors"))
    for number in range(N_MUTATIONS):
        folder = Path(shutil.copytree(golden(name), tmp_path / str(number)))
        shard = folder / picked.choice(shards).name
        header, data = split_safetensors(shard)
        victims = sorted(set(header) - optional - {"__metadata__"})
        victim = picked.choice(victims)
        blamed = change(header, victim)
        _write_header(shard, header, data)
        _write_index(folder, {path.name: split_safetensors(path)[0] for path in _shards(folder)})
        with pytest.raises((ConversionError, CheckpointError)) as caught:
            plan_conversion(folder)
        assert blamed in caught.value.message, f"{change.__name__} {victim}: {caught.value}"


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _write_header(path: Path, header: Header, data: bytes) -> None:
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    # A dropped tensor leaves a hole in the data, which safetensors forbids: close it.
    packed = bytearray()
    for entry in sorted(entries.values(), key=lambda entry: entry["data_offsets"]):
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = [len(packed), len(packed) + end - begin]
        packed += data[begin:end]
    raw = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + packed)


def _write_index(folder: Path, headers: dict[str, Header]) -> None:
    weight_map = {
        name: file for file, header in headers.items() for name in header if name[0] != "_"
    }
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _numbers(config: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(config, dict):
        items: list[tuple[Any, object]] = list(cast(dict[Any, object], config).items())
    else:
        items = list(enumerate(cast(list[object], config)))
    for key, value in items:
        if isinstance(value, dict | list):
            yield from _numbers(cast(object, value), (*path, key))
        elif isinstance(value, int) and not isinstance(value, bool) and value:
            yield (*path, key)


@every_golden
def test_a_number_of_another_model_is_named(golden: Golden, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(golden(name), tmp_path / "checkpoint"))
    config = read_golden_json(folder / "config.json")
    silent: list[str] = []
    for path in _numbers(config):
        keys = [key for key in path if isinstance(key, str)]
        # A recipe may name a section too.
        if keys[-1] in FREE_NUMBERS or set(keys) & set(RECIPES[name].free_numbers):
            continue
        changed = json.loads(json.dumps(config))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] += 1
        (folder / "config.json").write_text(json.dumps(changed), encoding="utf-8")
        message = _refusal(folder)
        if "tensor `" not in message and "config.json: `" not in message:
            silent.append(f"{'.'.join(map(str, path))}: {message}")
    assert silent == []


def _refusal(folder: Path) -> str:
    try:
        plan_conversion(folder)
    except (ConversionError, CheckpointError) as error:
        return error.message
    return "accepted"


@every_golden
def test_one_family_claims_it_and_no_other(golden: Golden, name: str) -> None:
    config = read_golden_json(golden(name) / "config.json")
    claims = [
        family.name
        for family in FAMILIES
        if set(config["architectures"]) & set(family.architectures)
    ]
    assert claims, "some family knows the class"
    assert plan_conversion(golden(name)).family in claims


@every_golden
def test_another_class_is_told_what_there_is(golden: Golden, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(golden(name), tmp_path / "checkpoint"))
    config = read_golden_json(folder / "config.json")
    config["architectures"] = ["GPT9ForEverything"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UnsupportedArchitectureError) as caught:
        plan_conversion(folder)
    assert all(family.name in caught.value.hint for family in FAMILIES)
