"""What a scene of the built-in `shapes` model is, and how it is painted.

A scene is one to four flat shapes in the cells of a 3 x 3 grid, in some scenes also a number, on
a pale background of 128 x 128 pixels.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 128
GRID = 3
CELL = IMAGE_SIZE / GRID

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "pink": (245, 140, 190),
    "black": (20, 20, 20),
}
BACKGROUNDS = (
    (245, 245, 245),
    (225, 230, 235),
    (250, 240, 220),
    (200, 215, 225),
    (215, 235, 215),
)
INKS = ((0, 0, 0), (60, 0, 90), (120, 0, 0))
FONT_SIZES = (22, 26, 30)
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape of a scene.

    Attributes:
        shape: one of `SHAPES`.
        colour: a key of `COLOURS`.
        large: True for a radius of 0.40 of a cell, False for 0.25.
        row: row of the cell, 0 at the top.
        column: column of the cell, 0 at the left.
        x: centre in pixels from the left.
        y: centre in pixels from the top.
    """

    shape: str
    colour: str
    large: bool
    row: int
    column: int
    x: float
    y: float

    @property
    def radius(self) -> float:
        """Radius in pixels."""
        return CELL * (0.40 if self.large else 0.25)

    @property
    def name(self) -> str:
        """What a question calls it, such as `red circle`."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """The cell in words, such as `top left`."""
        return PLACES[self.row][self.column]


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number of one or two digits, written in the middle of a cell that has no shape."""

    digits: str
    row: int
    column: int
    ink: tuple[int, int, int]
    font_size: int

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the cell in pixels, (x, y)."""
        return (self.column + 0.5) * CELL, (self.row + 0.5) * CELL


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one picture shows."""

    background: tuple[int, int, int]
    things: tuple[Thing, ...]
    number: Number | None

    def named(self, name: str) -> tuple[Thing, ...]:
        """Return every thing called `name`, such as `red circle`."""
        return tuple(thing for thing in self.things if thing.name == name)

    def unmistakable(self) -> list[Thing]:
        """Return the things whose name no other thing of the scene has."""
        return [thing for thing in self.things if len(self.named(thing.name)) == 1]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """How scenes are drawn: the choices of the number of shapes, and how often a number is in.

    The defaults are the pictures that the model is scored on; training may draw more numbers.
    """

    counts: tuple[int, ...] = (1, 2, 2, 3, 3, 4)
    number_rate: float = 0.25


def draw_scene(rng: random.Random, mixture: Mixture | None = None) -> Scene:
    """Choose the contents of one scene.

    Args:
        rng: the random source, advanced by the call.
        mixture: how many shapes, and how often a number; by default as the model is scored.

    Returns:
        A scene whose shapes and number lie in different cells.
    """
    mixture = mixture or Mixture()
    count = rng.choice(mixture.counts)
    with_number = rng.random() < mixture.number_rate
    cells = [(row, column) for row in range(GRID) for column in range(GRID)]
    chosen = rng.sample(cells, count + with_number)
    background = rng.choice(BACKGROUNDS)
    things = tuple(_draw_thing(rng, row, column) for row, column in chosen[:count])
    number = _draw_number(rng, *chosen[-1]) if with_number else None
    return Scene(background=background, things=things, number=number)


def _draw_thing(rng: random.Random, row: int, column: int) -> Thing:
    large = rng.random() < 0.5
    jitter = CELL * (0.08 if large else 0.18)
    return Thing(
        shape=rng.choice(SHAPES),
        colour=rng.choice(tuple(COLOURS)),
        large=large,
        row=row,
        column=column,
        x=(column + 0.5) * CELL + rng.uniform(-jitter, jitter),
        y=(row + 0.5) * CELL + rng.uniform(-jitter, jitter),
    )


def _draw_number(rng: random.Random, row: int, column: int) -> Number:
    n_digits = rng.choice((1, 2, 2))
    return Number(
        digits="".join(rng.choice("0123456789") for _ in range(n_digits)),
        row=row,
        column=column,
        ink=rng.choice(INKS),
        font_size=rng.choice(FONT_SIZES),
    )


def render(scene: Scene) -> Image.Image:
    """Paint `scene`: an RGB image of `IMAGE_SIZE` x `IMAGE_SIZE` pixels."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), scene.background)
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        _paint_thing(canvas, thing)
    if scene.number is not None:
        canvas.text(
            scene.number.centre,
            scene.number.digits,
            fill=scene.number.ink,
            font=_font(scene.number.font_size),
            anchor="mm",
        )
    return image


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that Pillow itself carries, so that no system font matters."""
    return ImageFont.load_default(size)


def _paint_thing(canvas: ImageDraw.ImageDraw, thing: Thing) -> None:
    x, y, radius, fill = thing.x, thing.y, thing.radius, COLOURS[thing.colour]
    if thing.shape == "circle":
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif thing.shape == "square":
        half = 0.88 * radius
        canvas.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif thing.shape == "cross":
        arm = 0.36 * radius
        canvas.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        canvas.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
    elif thing.shape == "diamond":
        tall, wide = 1.1 * radius, 0.75 * radius
        canvas.polygon([(x, y - tall), (x + wide, y), (x, y + tall), (x - wide, y)], fill=fill)
    elif thing.shape == "triangle":
        # Lowered a little, for the centre of a triangle lies above the middle of its height.
        canvas.polygon(_corners(x, y + 0.15 * radius, [1.1 * radius] * 3), fill=fill)
    else:
        outer, inner = 1.12 * radius, 0.42 * 1.12 * radius
        canvas.polygon(_corners(x, y, [outer, inner] * 5), fill=fill)


def _corners(x: float, y: float, radii: Sequence[float]) -> list[tuple[float, float]]:
    """Return one corner per radius, at equal angles clockwise, the first straight up."""
    turn = 2 * math.pi / len(radii)
    return [
        (
            x + radius * math.cos(i * turn - math.pi / 2),
            y + radius * math.sin(i * turn - math.pi / 2),
        )
        for i, radius in enumerate(radii)
    ]
