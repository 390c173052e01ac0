"""Every image-text class of transformers: which can be converted, which not, and why.

    python benchmarks/image_text_classes.py
    python benchmarks/image_text_classes.py --peer-python PYTHON

The claim: each class of `MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES` of the transformers named in
`image_text_classes.json` is either taken by a family of the converter, or could be run by the
pinned llama.cpp (a graph for its tower, a text model), or has a reason why it cannot. "yes" is
never written by hand: it comes from the converter's list of families, and what the file says of a
class that a family takes is struck out here. The table in docs/families.md is made from both.

PYTHON has transformers: its list of classes must be the file's. Graphs and reasons were read in
llama.cpp (tools/mtmd/clip-impl.h, tools/mtmd/models, src/llama-arch.cpp, src/models, conversion)
and in the modeling file of each class.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgevlm_convert.families import FAMILIES
from page import PAGE, markdown, with_table

DATA = Path(__file__).resolve().with_suffix(".json")
NAME = "classes"
HEAD = ("class", "`model_type`", "can be converted", "why")
# Of transformers too, which lists the part of them that answers in text.
WITH_SPEECH = (
    "Qwen2_5OmniForConditionalGeneration",
    "Qwen2_5OmniModel",
    "Qwen3OmniMoeForConditionalGeneration",
)
LIST = """
import json, transformers
from transformers.models.auto import modeling_auto
names = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
print(json.dumps([transformers.__version__, dict(names)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", type=Path, help="a Python with transformers")
    args = parser.parse_args()
    data = forget_taken()
    PAGE.write_text(
        with_table(PAGE.read_text(encoding="utf-8"), NAME, table(data)), encoding="utf-8"
    )
    if args.peer_python is not None:
        check_list(data, args.peer_python)


def read_data() -> dict[str, Any]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def forget_taken() -> dict[str, Any]:
    """Strike out what the file says of classes that a family takes by now; return the rest."""
    data = without_taken(read_data())
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    if text != DATA.read_text(encoding="utf-8"):
        DATA.write_text(text, encoding="utf-8")
    return data


def without_taken(data: Mapping[str, Any]) -> dict[str, Any]:
    taken = takers()
    kept = {
        part: {name: value for name, value in data[part].items() if name not in taken}
        for part in ("graphs", "reasons", "other classes")
    }
    return {**data, **kept}


def takers() -> dict[str, list[str]]:
    """Return the families by the classes that they take."""
    found: dict[str, list[str]] = {}
    for family in FAMILIES:
        for name in family.architectures:
            found.setdefault(name, []).append(family.name)
    return found


def table(data: Mapping[str, Any]) -> str:
    """Return the table, and a line on what it is about."""
    rows = list(rows_of(data))
    counts = {word: sum(row[2] == word for row in rows) for word in ("yes", "not yet", "no")}
    count = ", ".join(f"{word} {number}" for word, number in counts.items())
    return (
        f"{markdown(HEAD, rows)}\n\n{len(data['classes'])} model types of transformers"
        f" {data['transformers']} and {len(rows) - len(data['classes'])} classes beside them,"
        f" for the llama.cpp of llama-cpp-python {data['llama-cpp-python']}: {count}."
    )


def rows_of(data: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield the listed classes in transformers' order, then those that it does not list there."""
    taken, classes = takers(), data["classes"]
    for model_type, name in classes.items():
        yield f"`{name}`", f"`{model_type}`", *verdict(name, taken, data)
    others = {*taken, *data["other classes"]} - set(classes.values())
    for name in sorted(others):
        kind = "whole, with speech" if name in WITH_SPEECH else "remote code"
        yield f"`{name}`", kind, *verdict(name, taken, data)


def verdict(name: str, taken: Mapping[str, list[str]], data: Mapping[str, Any]) -> tuple[str, str]:
    """Return "yes", "not yet" or "no", and the reason.

    Raises:
        SystemExit: the file says nothing of the class.
    """
    if name in taken:
        return "yes", f"family {', '.join(f'`{family}`' for family in taken[name])}"
    if graph := data["graphs"].get(name) or data["other classes"].get(name):
        note = f": {graph['note']}" if graph["note"] else ""
        return "not yet", (
            f"llama.cpp has the graph `{graph['projector']}` and the text model"
            f" `{graph['text']}`{note}"
        )
    if name not in data["reasons"]:
        sys.exit(f"error: {DATA.name} has neither a graph nor a reason for {name}")
    return "no", data["reasons"][name]


def check_list(data: Mapping[str, Any], peer_python: Path) -> None:
    """Compare the file's list of classes with the one of an installed transformers.

    Raises:
        SystemExit: they differ.
    """
    done = subprocess.run(
        [str(peer_python), "-c", LIST], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"error: transformers has no such list\n{done.stderr[-2000:]}")
    version, listed = json.loads(done.stdout)
    if wrong := set(listed.items()) ^ set(data["classes"].items()):
        sys.exit(f"error: transformers {version} has other classes: {sorted(wrong)}")
    print(f"{len(listed)} model types, as in transformers {version}", file=sys.stderr)


if __name__ == "__main__":
    main()
