from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ROOT / "benchmarks" / "shapes"
ASSETS = ROOT / "edgevlm" / "assets" / "shapes"

PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)


@pytest.fixture(scope="module")
def scenes() -> Any:
    # The scripts of a benchmark import each other by name, as when they are run.
    sys.path.insert(0, str(SHAPES))
    try:
        return importlib.import_module("scenes")
    finally:
        sys.path.remove(str(SHAPES))


def draw(scenes: Any, rng: random.Random) -> Any:
    return scenes.draw_scene(rng)


def test_a_seed_gives_the_same_scene_and_questions(scenes: Any) -> None:
    def once() -> list[Any]:
        rng = scenes.training_rng(3)
        drawn = [draw(scenes, rng) for _ in range(20)]
        return [(s, [scenes.ask(rng, s, kind) for kind in scenes.KINDS]) for s in drawn]

    assert once() == once()
    assert draw(scenes, scenes.training_rng(3)) != draw(scenes, scenes.training_rng(4))


def test_training_validation_and_held_out_seeds_never_meet(scenes: Any) -> None:
    families = (scenes.training_rng, scenes.validation_rng, scenes.held_out_rng)
    first = {(f.__name__, i): f(i).getrandbits(128) for f in families for i in range(500)}
    assert len(set(first.values())) == len(first)


def test_kinds_are_balanced_and_so_are_yes_and_no(scenes: Any) -> None:
    questions = [scenes.held_out(index)[1] for index in range(800)]
    assert [q.kind for q in questions] == list(scenes.KINDS) * 100
    for kind in ("existence", "relation"):
        yes = sum(q.answer == "yes" for q in questions if q.kind == kind)
        assert 35 <= yes <= 65


def things_said(text: str, scene: Any) -> list[Any]:
    """Return the things of `scene` that `text` names, in the order of their names."""
    found = [(text.find(f"{t.colour} {t.shape}"), t) for t in scene.things]
    return [thing for at, thing in sorted(found, key=lambda pair: pair[0]) if at >= 0]


@pytest.mark.parametrize("seed", range(60))
def test_answers_follow_from_what_was_drawn(scenes: Any, seed: int) -> None:
    rng = scenes.validation_rng(seed)
    scene = draw(scenes, rng)
    things = scene.things
    asked = {kind: scenes.ask(rng, scene, kind) for kind in scenes.KINDS}
    assert asked["count"].answer == str(len(things))
    assert (asked["reading"] is None) == (scene.number is None)
    if scene.number is not None:
        assert asked["reading"].answer == scene.number.digits
    if asked["colour"] is not None:
        shape = asked["colour"].text.removeprefix("What color is the ").removesuffix("?")
        assert [t.colour for t in things if t.shape == shape] == [asked["colour"].answer]
    if asked["shape"] is not None:
        colour = asked["shape"].text.removeprefix("What shape is ").removesuffix("?")
        assert [t.shape for t in things if t.colour == colour] == [asked["shape"].answer]
    existence = asked["existence"]
    assert existence.answer == ("yes" if things_said(existence.text, scene) else "no")
    noun = asked["count by kind"].text.removeprefix("How many ").removesuffix(" are there?")
    same = [
        t for t in things if f"{t.colour} shapes" == noun or noun in (f"{t.shape}s", f"{t.shape}es")
    ]
    assert asked["count by kind"].answer == str(len(same))
    if asked["position"] is not None:
        (thing,) = things_said(asked["position"].text, scene)
        column = min(2, int(thing.x / 128 * 3))
        row = min(2, int(thing.y / 128 * 3))
        assert asked["position"].answer == PLACES[row][column]


@pytest.mark.parametrize("seed", range(60))
def test_a_relation_is_judged_by_the_cells(scenes: Any, seed: int) -> None:
    rng = scenes.validation_rng(1000 + seed)
    scene = draw(scenes, rng)
    while (question := scenes.ask(rng, scene, "relation")) is None:
        scene = draw(scenes, rng)
    first, second = things_said(question.text, scene)
    gap = {
        "left of": second.column - first.column,
        "right of": first.column - second.column,
        "above": second.row - first.row,
        "below": first.row - second.row,
    }
    (relation,) = [word for word in gap if f" {word} " in question.text]
    assert question.answer == ("yes" if gap[relation] > 0 else "no")


def test_a_thing_is_painted_in_its_colour_at_its_place(scenes: Any) -> None:
    for index in range(40):
        scene, _ = scenes.held_out(index)
        pixels = np.asarray(scenes.render(scene))
        for thing in scene.things:
            assert tuple(pixels[round(thing.y), round(thing.x)]) == scenes.COLOURS[thing.colour]


def test_the_command_regenerates_the_committed_examples(scenes: Any, tmp_path: Path) -> None:
    command = [sys.executable, str(SHAPES / "scenes.py"), "--held-out", "64"]
    subprocess.run([*command, "--out", str(tmp_path)], check=True)
    prompts = (ASSETS / "prompts.jsonl").read_text(encoding="utf-8")
    assert (tmp_path / "prompts.jsonl").read_text(encoding="utf-8") == prompts
    lines = [json.loads(line) for line in prompts.splitlines()]
    assert len(lines) == 64
    assert len(list((ASSETS / "images").iterdir())) == 64
    for index, line in enumerate(lines):
        with Image.open(ASSETS / line["image"]) as a, Image.open(tmp_path / line["image"]) as b:
            committed, drawn = np.asarray(a, np.int16), np.asarray(b, np.int16)
        assert committed.shape == (128, 128, 3)
        if scenes.held_out(index)[0].number is None:
            np.testing.assert_array_equal(committed, drawn)
        else:
            # Another FreeType may shade the edges of digits otherwise, and nothing else.
            assert (np.abs(committed - drawn).max(axis=2) > 8).mean() < 0.01


def test_the_readme_shows_the_table_of_the_committed_numbers() -> None:
    command = [sys.executable, str(SHAPES / "plot.py"), "--table"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert shown.count("\n") == 11
    assert shown in (SHAPES / "README.md").read_text(encoding="utf-8")


def test_the_built_in_weights_meet_every_bar_on_both_paths() -> None:
    result = json.loads((SHAPES / "result.json").read_text(encoding="utf-8"))
    assert result["n"] == 2000
    for row in result["kinds"].values():
        assert min(row["transformers"], row["gguf"]) >= row["bar"]
    assert result["agreement"] == 1.0


def test_the_assets_stay_small() -> None:
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) <= 22_000_000
