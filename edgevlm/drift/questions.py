"""What is asked in a comparison: a user's prompts, stock prompts about a folder, a reference's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgevlm.drift.prompts import STOCK_PROMPTS, Prompt, read_prompts
from edgevlm.errors import (
    EdgeVLMError,
    ImageError,
    PromptError,
    ReferenceFileError,
    SourceNotFoundError,
)
from edgevlm.reference_file import Case, Reference, image_sha256
from edgevlm.runtime.image import load_image
from edgevlm.runtime.image_folder import image_paths
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.prefix import pixels_digest


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, with images that could be read.

    Attributes:
        prompt: the question.
        images: paths of its images; their pixels are read again when they are needed.
        names: the same as the user named them.
        digests: of their pixels (`pixels_digest`), in hexadecimal.
        expected: the right answer.
        keywords: words of a right answer.
        kind: what it asks for.
        case: what transformers computed for it; None for a question of the user's own.
    """

    prompt: str
    images: tuple[Path, ...] = ()
    names: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    expected: str | None = None
    keywords: tuple[str, ...] = ()
    kind: str = ""
    case: Case | None = None

    @property
    def cluster(self) -> str:
        """What it shares with other questions whose results hang together: the image."""
        return self.digests[0] if self.digests else f"prompt {self.prompt}"

    @property
    def is_task(self) -> bool:
        """Whether it is known what a right answer is."""
        return self.expected is not None or bool(self.keywords)

    def pixels(self) -> list[Pixels]:
        """Read its images: RGB uint8 [height, width, 3] each."""
        return [load_image(path) for path in self.images]


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """All questions of a comparison.

    Attributes:
        questions: in order; those of a reference come last.
        source: where they come from, in words.
        skipped: questions that were left out, each with its reason.
    """

    questions: tuple[Question, ...]
    source: str
    skipped: tuple[str, ...] = ()


def gather(
    *,
    images: Path | None = None,
    prompts: Path | None = None,
    reference: Reference | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> QuestionSet:
    """Read questions and look at every image once.

    Args:
        images: folder; alone, each of its images is asked the stock prompts.
        prompts: JSONL file; its images lie relative to `images`, else to the file.
        reference: whose cases are asked too; their images are found in `images` by their hash.
        note: told each image that is left out.

    Raises:
        SourceNotFoundError: no such file or folder, or no image in it.
        PromptError: a bad line, or no question at all.
        ImageError: no image could be read.
        ReferenceFileError: none of the reference's images is there.
    """
    looked = _Looked(note)
    if prompts is not None:
        source = str(prompts)
        asked = _of_file(prompts, images or prompts.parent)
    elif images is not None and reference is None:
        source = f"{len(STOCK_PROMPTS)} stock prompts about `{images}`"
        asked = [
            (Prompt(image=path.name, prompt=prompt), (path,))
            for path in image_paths(images)
            for prompt in STOCK_PROMPTS
        ]
    else:
        source, asked = "the reference", []
    questions = [
        question
        for prompt, paths in asked
        if (question := looked.question(prompt, paths)) is not None
    ]
    if asked and not questions:
        raise ImageError(
            f"none of the {len(asked)} prompts has images that can be read", hint=looked.skipped[0]
        )
    if reference is not None:
        cases = _of_reference(reference, images, looked)
        if not asked:
            questions = [replace(case, case=None) for case in cases]
        questions += cases
    if not questions:
        raise PromptError(f"{source} holds no prompt", hint="there is nothing to compare with")
    return QuestionSet(questions=tuple(questions), source=source, skipped=tuple(looked.skipped))


def _of_file(path: Path, folder: Path) -> list[tuple[Prompt, tuple[Path, ...]]]:
    return [
        (prompt, tuple(folder / name for name in prompt.paths)) for prompt in read_prompts(path)
    ]


class _Looked:
    """Images by path: digest and hash of those that can be read."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.skipped: list[str] = []
        self._note = note
        self._digests: dict[Path, str | None] = {}

    def question(self, prompt: Prompt, paths: Sequence[Path]) -> Question | None:
        """Return the question, None when an image of it cannot be read."""
        digests = [self._digest(path) for path in paths]
        known = [digest for digest in digests if digest is not None]
        if len(known) < len(paths):
            return None
        return Question(
            prompt=prompt.prompt,
            images=tuple(paths),
            names=prompt.paths,
            digests=tuple(known),
            expected=prompt.answer,
            keywords=prompt.keywords,
            kind=prompt.kind,
        )

    def _digest(self, path: Path) -> str | None:
        if path not in self._digests:
            try:
                self._digests[path] = pixels_digest(load_image(path)).hex()
            except (ImageError, SourceNotFoundError) as error:
                self._digests[path] = None
                self.skip(f"left out {path}: {error.message}")
        return self._digests[path]

    def skip(self, reason: str) -> None:
        """Keep and tell why something is left out."""
        self.skipped.append(reason)
        self._note(reason)


def _of_reference(reference: Reference, folder: Path | None, looked: _Looked) -> list[Question]:
    """Return the reference's cases whose images are in the folder.

    Raises:
        ReferenceFileError: there is none.
    """
    by_hash = _by_hash(image_paths(folder) if folder is not None else ())
    questions: list[Question] = []
    for case in reference.cases:
        paths = [by_hash.get(image.sha256) for image in case.images]
        found = [path for path in paths if path is not None]
        if len(found) < len(paths):
            looked.skip(f"left out the reference's `{case.name}`: its images are not there")
            continue
        questions.append(
            Question(
                prompt=case.prompt,
                images=tuple(found),
                names=tuple(image.name for image in case.images),
                digests=tuple(pixels_digest(load_image(path)).hex() for path in found),
                case=case,
            )
        )
    if not questions:
        names = ", ".join(sorted({image.name for case in reference.cases for image in case.images}))
        raise ReferenceFileError(
            "none of the reference's images is there",
            hint=f"give their folder with --images: {names[:200]}",
        )
    return questions


def _by_hash(paths: Iterable[Path]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        try:
            found[image_sha256(load_image(path))] = path
        except EdgeVLMError:
            continue  # another file of the folder
    return found
