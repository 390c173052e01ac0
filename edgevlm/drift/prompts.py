"""Questions about images, a JSON document a line: `{"image", "prompt", "answer"?, "kind"?}`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import PromptError, SourceNotFoundError

_MAX_LINES = 1_000_000


class Prompt(BaseModel):
    """One question about one image.

    Attributes:
        image: path of the image, as the file says it (relative to the file's folder).
        prompt: the question.
        answer: the right answer, where there is one.
        kind: what the question asks for, such as "colour".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    answer: str | None = None
    kind: str = ""


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
