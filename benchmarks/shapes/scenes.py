"""Draw the scenes of the built-in `shapes` model and ask questions about them.

Scene, question and answer are a function of a seed, and the answer follows from what was drawn:
nothing is labelled by hand. Three families of seeds are apart by construction, for each seeds
from strings with another first word, so that no training run, whatever its number, can draw a
held-out example: `training_rng`, `validation_rng` (watched while training) and `held_out_rng`
(scored once the weights are chosen).

Run `python benchmarks/shapes/scenes.py --held-out 64 --out FOLDER` to write the first 64 held-out
examples: `images/000.png` and so on, and `prompts.jsonl` with one line per image.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drawing import COLOURS, RELATIONS, SHAPES, Scene, Thing, draw_scene, render

#: The kinds of questions that have a bar of accuracy; a caption has none and is trained along.
KINDS = (
    "colour",
    "shape",
    "existence",
    "count",
    "position",
    "relation",
    "count by kind",
    "reading",
)
CAPTION = "caption"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about a scene with the exact answer expected, and the things it mentions."""

    kind: str
    text: str
    answer: str
    mentions: tuple[Thing, ...] = ()


def training_rng(run: int) -> random.Random:
    """Return the random source of training run number `run`."""
    return random.Random(f"training/{run}")


def validation_rng(index: int) -> random.Random:
    """Return the random source of validation scene number `index`."""
    return random.Random(f"validation/{index}")


def held_out_rng(index: int) -> random.Random:
    """Return the random source of held-out example number `index`."""
    return random.Random(f"held-out/{index}")


def plural(noun: str) -> str:
    """Return the plural of a shape's name."""
    return noun + ("es" if noun.endswith("s") else "s")


def holds(first: Thing, relation: str, second: Thing) -> bool:
    """Tell whether `first` is `relation` (such as `left of`) `second`, judged by their cells."""
    rows, columns = first.row - second.row, first.column - second.column
    return {
        "left of": columns < 0,
        "right of": columns > 0,
        "above": rows < 0,
        "below": rows > 0,
    }[relation]


def ask(rng: random.Random, scene: Scene, kind: str) -> Question | None:
    """Draw one question of `kind` about `scene`; None where the scene allows none of that kind.

    "Yes" and "no" are equally likely, so that guessing has one half right.
    """
    return _ASKERS[kind](rng, scene)


def _ask_colour(rng: random.Random, scene: Scene) -> Question | None:
    shapes = [thing.shape for thing in scene.things]
    unique = [thing for thing in scene.things if shapes.count(thing.shape) == 1]
    if not unique:
        return None
    thing = rng.choice(unique)
    text = f"What color is the {thing.shape}?"
    return Question(kind="colour", text=text, answer=thing.colour)


def _ask_shape(rng: random.Random, scene: Scene) -> Question | None:
    colours = [thing.colour for thing in scene.things]
    unique = [thing for thing in scene.things if colours.count(thing.colour) == 1]
    if not unique:
        return None
    thing = rng.choice(unique)
    return Question(kind="shape", text=f"What shape is {thing.colour}?", answer=thing.shape)


def _ask_existence(rng: random.Random, scene: Scene) -> Question:
    thing = rng.choice(scene.things)
    if rng.random() < 0.5:
        name, answer, mentions = thing.name, "yes", scene.named(thing.name)[:1]
        if len(scene.named(name)) > 1:
            mentions = ()
    else:
        name, answer, mentions = _absent_name(rng, scene, thing), "no", ()
    text = f"Is there a {name} in the image?"
    return Question(kind="existence", text=text, answer=answer, mentions=mentions)


def _absent_name(rng: random.Random, scene: Scene, thing: Thing) -> str:
    """Name something that is not there: mostly half right, for that is the harder question."""
    while True:
        lure = rng.random()
        colour = thing.colour if lure < 0.4 else rng.choice(tuple(COLOURS))
        shape = thing.shape if 0.4 <= lure < 0.8 else rng.choice(SHAPES)
        if not scene.named(f"{colour} {shape}"):
            return f"{colour} {shape}"


def _ask_count(rng: random.Random, scene: Scene) -> Question:
    del rng
    text = "How many shapes are in the image?"
    return Question(kind="count", text=text, answer=str(len(scene.things)))


def _ask_count_by_kind(rng: random.Random, scene: Scene) -> Question:
    by_shape = rng.random() < 0.5
    if rng.random() < 0.3:
        value = rng.choice(SHAPES if by_shape else tuple(COLOURS))
    else:
        thing = rng.choice(scene.things)
        value = thing.shape if by_shape else thing.colour
    values = [thing.shape if by_shape else thing.colour for thing in scene.things]
    what = plural(value) if by_shape else f"{value} shapes"
    text = f"How many {what} are there?"
    return Question(kind="count by kind", text=text, answer=str(values.count(value)))


def _ask_position(rng: random.Random, scene: Scene) -> Question | None:
    unique = scene.unmistakable()
    if not unique:
        return None
    thing = rng.choice(unique)
    text = f"Where is the {thing.name}?"
    return Question(kind="position", text=text, answer=thing.place, mentions=(thing,))


def _ask_relation(rng: random.Random, scene: Scene) -> Question | None:
    unique = scene.unmistakable()
    if len(unique) < 2:
        return None
    first, second = rng.sample(unique, 2)
    truth = rng.random() < 0.5
    # Two cells always differ in a row or a column: one relation is true, its opposite is not.
    relation = rng.choice([word for word in RELATIONS if holds(first, word, second) == truth])
    text = f"Is the {first.name} {relation} the {second.name}?"
    answer = "yes" if truth else "no"
    return Question(kind="relation", text=text, answer=answer, mentions=(first, second))


def _ask_reading(rng: random.Random, scene: Scene) -> Question | None:
    del rng
    if scene.number is None:
        return None
    text = "What number is written in the image?"
    return Question(kind="reading", text=text, answer=scene.number.digits)


def _ask_caption(rng: random.Random, scene: Scene) -> Question:
    del rng
    parts = [
        f"a {'large' if thing.large else 'small'} {thing.name} at the {thing.place}"
        for thing in sorted(scene.things, key=lambda thing: (thing.row, thing.column))
    ]
    if scene.number is not None:
        parts.append(f"the number {scene.number.digits}")
    listed = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    answer = f"{listed[0].upper()}{listed[1:]}."
    return Question(kind=CAPTION, text="Describe the image.", answer=answer)


_ASKERS = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "existence": _ask_existence,
    "count": _ask_count,
    "position": _ask_position,
    "relation": _ask_relation,
    "count by kind": _ask_count_by_kind,
    "reading": _ask_reading,
    CAPTION: _ask_caption,
}


def held_out(index: int, kinds: Sequence[str] = KINDS) -> tuple[Scene, Question]:
    """Draw held-out example number `index`: its kind is `kinds` in turn, so they are balanced."""
    rng = held_out_rng(index)
    while True:
        scene = draw_scene(rng)
        question = ask(rng, scene, kinds[index % len(kinds)])
        if question is not None:
            return scene, question


def write_held_out(count: int, folder: Path) -> None:
    """Write the first `count` held-out examples under `folder`: PNG images and prompts.jsonl."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for index in range(count):
        scene, question = held_out(index)
        name = f"images/{index:03d}.png"
        render(scene).save(folder / name, optimize=True)
        lines.append(
            {
                "image": name,
                "prompt": question.text,
                "answer": question.answer,
                "kind": question.kind,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "prompts.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
    """Write held-out examples as the command line asks."""
    parser = argparse.ArgumentParser(description="Write held-out examples of the shapes model.")
    parser.add_argument("--held-out", type=int, default=64, metavar="N", help="how many examples")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    write_held_out(arguments.held_out, arguments.out)


if __name__ == "__main__":
    main()
