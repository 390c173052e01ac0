"""Turn scenes and questions into batches that train a Qwen3-VL model.

One row of a batch is one image with several questions. The questions share the image's tokens
but do not see each other: each attends to the image and to itself, and its positions begin right
after the image. So every answer is trained exactly as it is asked later, alone, and an image is
encoded once for all its questions.

Beside the answers a batch carries targets for supervision inside the network (see `guides.py`):
what lies under each visual token, where the things lie that a question mentions, and how the two
things of a relation lie to each other.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from drawing import COLOURS, IMAGE_SIZE, SHAPES, Number, Scene, Thing, render
from scenes import CAPTION, Question, ask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PATCH = 16
MERGE = 2
TOKEN_PIXELS = PATCH * MERGE
SIDE = IMAGE_SIZE // TOKEN_PIXELS
IGNORE = -100

#: How often each kind is drawn, and what an answer token of it weighs in the loss.
KIND_RATES = {
    "relation": 3.0,
    "count by kind": 6.0,
    "existence": 2.0,
    "position": 2.0,
    "colour": 1.0,
    "shape": 1.0,
    "count": 2.0,
    CAPTION: 0.4,
}
KIND_WEIGHTS = {"relation": 1.5, "reading": 3.0, "count by kind": 2.0, CAPTION: 0.5}


@dataclass(kw_only=True)
class Row:
    """The tokens of one image with its questions, and the targets beside them."""

    tokens: list[int] = field(default_factory=list[int])
    positions: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    segments: list[int] = field(default_factory=list[int])
    labels: list[int] = field(default_factory=list[int])
    weights: list[float] = field(default_factory=list[float])
    kinds: list[str] = field(default_factory=list[str])
    mentions: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    relations: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])

    def add(self, tokens: list[int], segment: int, positions: list[tuple[int, int, int]]) -> None:
        """Append tokens that are given, not predicted."""
        self.tokens += tokens
        self.positions += positions
        self.segments += [segment] * len(tokens)
        self.labels += [IGNORE] * len(tokens)
        self.weights += [0.0] * len(tokens)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of `n` images and their questions, rows padded to one width.

    Attributes:
        inputs: keyword arguments of `Qwen3VLModel.forward`.
        labels: int64 (n, width), the token to predict AT each place, `IGNORE` elsewhere.
        weights: float32 (n, width), what each label weighs.
        segments: int64 (n, width): 0 image and what leads to it, 1.. the questions, -1 padding.
        kinds: per row, the kind of question number 1, 2, ...
        under_tokens: int64 (n * 16, 4): colour, shape, first digit, second digit; 0 is none.
        mentions: int64 (m, 4): row of the batch, place, cell row, cell column.
        relations: int64 (r, 4): row of the batch, place, sign of rows + 1, sign of columns + 1.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    weights: torch.Tensor
    segments: torch.Tensor
    kinds: list[list[str]]
    under_tokens: torch.Tensor
    mentions: torch.Tensor
    relations: torch.Tensor


class Packer:
    """Packs scenes for one tokenizer, remembering the tokens of texts it has seen."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[str, list[int]] = {}
        self.end = self._special("<|im_end|>")
        self.image_pad = self._special("<|image_pad|>")

    def _special(self, token: str) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(token))  # pyright: ignore

    def ids(self, text: str) -> list[int]:
        """Return the token ids of `text`, control tokens parsed."""
        if text not in self._seen:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            self._seen[text] = list(ids)  # pyright: ignore
        return self._seen[text]

    @cached_property
    def _lead(self) -> tuple[list[int], list[tuple[int, int, int]], int]:
        """Tokens and positions up to the image's end, and the position after them."""
        before = self.ids("<|im_start|>user\n<|vision_start|>")
        after = self.ids("<|vision_end|>")
        start = len(before)
        positions = [(i, i, i) for i in range(start)]
        positions += [
            (start, start + row, start + column) for row in range(SIDE) for column in range(SIDE)
        ]
        following = start + SIDE
        positions += [(following + i,) * 3 for i in range(len(after))]
        return before + [self.image_pad] * SIDE**2 + after, positions, following + len(after)

    def row(self, questions: list[Question]) -> Row:
        """Pack one image's questions."""
        tokens, positions, start = self._lead
        row = Row()
        row.add(tokens, 0, positions)
        for segment, question in enumerate(questions, start=1):
            self._add_question(row, segment, start, question)
        return row

    def _add_question(self, row: Row, segment: int, start: int, question: Question) -> None:
        asked = self.ids(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
        answer = [*self.ids(question.answer), self.end]
        begin = len(row.tokens)
        places = range(start, start + len(asked) + len(answer) - 1)
        row.add(asked + answer[:-1], segment, [(place,) * 3 for place in places])
        first = begin + len(asked) - 1
        row.labels[first:] = answer
        row.weights[first:] = [KIND_WEIGHTS.get(question.kind, 1.0)] * len(answer)
        row.kinds.append(question.kind)
        for thing in question.mentions:
            upto = question.text[: question.text.index(thing.name) + len(thing.name)]
            row.mentions.append((begin + len(self.ids(upto)) - 1, thing.row, thing.column))
        if question.kind == "relation":
            one, other = question.mentions
            row.relations.append(
                (first, _order(one.row, other.row), _order(one.column, other.column))
            )

    def batch(self, examples: list[tuple[Scene, list[Question]]]) -> Batch:
        """Pack several images with their questions."""
        rows = [self.row(questions) for _, questions in examples]
        width = max(len(row.tokens) for row in rows)
        tokens = torch.zeros((len(rows), width), dtype=torch.long)
        positions = torch.zeros((len(rows), width, 3), dtype=torch.long)
        segments = torch.full((len(rows), width), -1)
        labels = torch.full((len(rows), width), IGNORE)
        weights = torch.zeros((len(rows), width))
        for i, row in enumerate(rows):
            n = len(row.tokens)
            tokens[i, :n] = torch.tensor(row.tokens)
            positions[i, :n] = torch.tensor(row.positions)
            segments[i, :n] = torch.tensor(row.segments)
            labels[i, :n] = torch.tensor(row.labels)
            weights[i, :n] = torch.tensor(row.weights)
        scenes = [scene for scene, _ in examples]
        pixels, grid = patches([np.asarray(render(scene)) for scene in scenes])
        return Batch(
            inputs={
                "input_ids": tokens,
                "position_ids": positions.permute(2, 0, 1).contiguous(),
                "attention_mask": visible(segments),
                "pixel_values": pixels,
                "image_grid_thw": grid,
            },
            labels=labels,
            weights=weights,
            segments=segments,
            kinds=[row.kinds for row in rows],
            under_tokens=torch.from_numpy(np.concatenate([under_tokens(s) for s in scenes])),
            mentions=_flat([row.mentions for row in rows]),
            relations=_flat([row.relations for row in rows]),
        )


def _order(first: int, second: int) -> int:
    """Return 0, 1 or 2 as `first` is less than, equal to or greater than `second`."""
    return (first > second) - (first < second) + 1


def _flat(rows: list[list[tuple[int, int, int]]]) -> torch.Tensor:
    flat = [(i, *target) for i, row in enumerate(rows) for target in row]
    return torch.tensor(flat, dtype=torch.long).reshape(-1, 4)


def visible(segments: torch.Tensor) -> torch.Tensor:
    """Return the attention mask, bool (n, 1, width, width): who sees whom.

    A token sees, of what is before it, the image and its own question; padding sees itself.
    """
    width = segments.shape[1]
    own = segments[:, :, None] == segments[:, None, :]
    image = (segments == 0)[:, None, :] & (segments >= 0)[:, :, None]
    before = torch.ones((width, width), dtype=torch.bool).tril()
    return ((own | image) & before)[:, None]


def patches(images: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut images into the patches that the vision tower takes.

    Args:
        images: uint8 (128, 128, 3) each.

    Returns:
        float32 (n * 64, 1536) in [-1, 1], in the order of merged tokens, each patch channel by
        channel, twice (the tower takes pairs of frames); and int64 (n, 3), the grid of each image.
    """
    n, side = len(images), IMAGE_SIZE // PATCH
    pixels = (np.stack(images).astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    blocks = pixels.reshape(n, 3, SIDE, MERGE, PATCH, SIDE, MERGE, PATCH)
    blocks = blocks.transpose(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
    frames = np.repeat(blocks, 2, axis=6).reshape(n * side * side, -1)
    return torch.from_numpy(frames), torch.tensor([[1, side, side]] * n)


def under_tokens(scene: Scene) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return what each visual token has under it, int64 (16, 4); 0 is nothing.

    The columns are the colour and the shape of a thing whose middle part reaches into the
    token's square, and the first and the second digit of a number whose box does.
    """
    targets = np.zeros((SIDE, SIDE, 4), np.int64)
    for row in range(SIDE):
        for column in range(SIDE):
            for thing in scene.things:
                if _reaches(thing, row, column):
                    colour = 1 + tuple(COLOURS).index(thing.colour)
                    targets[row, column, :2] = colour, 1 + SHAPES.index(thing.shape)
            if scene.number is not None:
                targets[row, column, 2:] = _digits_under(scene.number, row, column)
    return targets.reshape(-1, 4)


def _reaches(thing: Thing, row: int, column: int) -> bool:
    """Tell whether half the thing's radius reaches into the square of a visual token."""
    x = min(max(thing.x, column * TOKEN_PIXELS), (column + 1) * TOKEN_PIXELS)
    y = min(max(thing.y, row * TOKEN_PIXELS), (row + 1) * TOKEN_PIXELS)
    return (x - thing.x) ** 2 + (y - thing.y) ** 2 < (0.55 * thing.radius) ** 2 + 1


def _digits_under(number: Number, row: int, column: int) -> tuple[int, int]:
    """Return 1 + the digits of `number` where its middle overlaps the token, else 0."""
    x, y = number.centre
    half_width, half_height = 0.28 * number.font_size * len(number.digits), 0.36 * number.font_size
    overlap_x = min(x + half_width, (column + 1) * TOKEN_PIXELS) - max(
        x - half_width, column * TOKEN_PIXELS
    )
    overlap_y = min(y + half_height, (row + 1) * TOKEN_PIXELS) - max(
        y - half_height, row * TOKEN_PIXELS
    )
    if overlap_x < 3 or overlap_y < 3:
        return 0, 0
    first, second = number.digits[0], number.digits[1:]
    return 1 + int(first), 1 + int(second) if second else 0


def draw_questions(rng: random.Random, scene: Scene, count: int) -> list[Question]:
    """Draw up to `count` different questions: the number if there is one, else as `KIND_RATES`."""
    questions: dict[str, Question] = {}
    kinds = ["reading"] if scene.number is not None else []
    kinds += rng.choices(tuple(KIND_RATES), tuple(KIND_RATES.values()), k=count - len(kinds))
    for kind in kinds:
        question = ask(rng, scene, kind)
        if question is not None:
            questions.setdefault(question.text, question)
    return list(questions.values())
