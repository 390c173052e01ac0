"""Questions, a JSON document a line: `{"image"|"images"?, "prompt", "answer"?, "kind"?, ...}`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgevlm.build.resolve import BUILT_IN, built_in_folder
from edgevlm.errors import PromptError, SourceNotFoundError

_MAX_LINES = 1_000_000


# Asked of every image of a folder that comes without questions.
STOCK_PROMPTS = (
    "Describe the image.",
    "What is the main subject of this image, and what is around it?",
    "Which text, numbers or signs can be read in this image?",
)
_Text = Annotated[str, Field(min_length=1)]


class Prompt(BaseModel):
    """One question, about one image, several or none.

    Attributes:
        image: path of the image, as the file says it (relative to the file's folder).
        images: the same for several.
        prompt: the question.
        answer: the right answer, where there is one.
        keywords: words that a right answer holds, where it can be said in many ways.
        kind: what the question asks for, such as "colour".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: _Text | None = None
    images: tuple[_Text, ...] = ()
    prompt: _Text
    answer: _Text | None = None
    keywords: tuple[_Text, ...] = ()
    kind: str = ""

    @model_validator(mode="after")
    def _one_way_to_name_images(self) -> Self:
        if self.image is not None and self.images:
            raise ValueError("has both `image` and `images`")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of all images, in order."""
        return self.images if self.image is None else (self.image,)


def built_in_prompts(name: str, *, purpose: str) -> Path:
    """Return the built-in questions, which suit the built-in model alone.

    Args:
        name: of the model.
        purpose: the verb that asks.

    Raises:
        SourceNotFoundError: it is another model.
    """
    if name != BUILT_IN:
        raise SourceNotFoundError(
            f"no images to {purpose} `{name}` with",
            hint="--images DIR with some dozens of images like yours, or --prompts FILE.jsonl;"
            " the built-in images suit `shapes` alone",
        )
    return built_in_folder() / "prompts.jsonl"


def read_prompts(path: Path) -> list[Prompt]:
    """Read a JSONL file of prompts; empty lines are skipped.

    Raises:
        SourceNotFoundError: no such file.
        PromptError: a line that is not a prompt; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise SourceNotFoundError(f"no file `{path}`", hint="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read `{path}`: {error}", hint="give a JSONL file") from error
    if len(lines) > _MAX_LINES:
        raise PromptError(f"`{path}` has more than {_MAX_LINES} lines", hint="split the file")
    prompts: list[Prompt] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompts.append(Prompt.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise PromptError(
                f"`{path}` line {number}: {where + ': ' if where else ''}{first['msg']}",
                hint='a line is {"image": "a.png", "prompt": "...", "answer": "..."}',
            ) from error
    return prompts
