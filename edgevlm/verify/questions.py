"""The prompts of a reference: a few stock ones, so that every stage has something to compare."""

from __future__ import annotations

from collections.abc import Sequence

from edgevlm.runtime.layout import Pixels
from edgevlm.verify.transformers_model import Question

_TEXT = (
    "Write one sentence about a lighthouse.",
    "List three fruits, with a price such as 4.20 \u20ac each.",
)
_ABOUT_IMAGE = "Describe the image."
_ABOUT_TWO = "What is different between the two images?"


def stock_questions(images: Sequence[tuple[str, Pixels]]) -> list[Question]:
    """Return text-only questions, one about each image, one about the first two.

    Args:
        images: (name, RGB uint8 [height, width, 3]).
    """
    questions = [
        Question(name=f"text {number}", prompt=prompt) for number, prompt in enumerate(_TEXT, 1)
    ]
    questions += [
        Question(name=name, prompt=_ABOUT_IMAGE, images=((name, pixels),))
        for name, pixels in images
    ]
    if len(images) > 1:
        questions.append(
            Question(name="two images", prompt=_ABOUT_TWO, images=(images[0], images[1]))
        )
    return questions
