"""A baseline in a file: what a model said with one version of the runtime, to hold others to.

A zip of records and distributions, one pair a question, and meta.json with what they were made
with. It may come from a stranger: sizes are bounded, names are those that were listed, and each
member is checked as it is read from the workspace.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgevlm.drift.compare import MAX_ROWS_BYTES, Comparison
from edgevlm.drift.questions import Question
from edgevlm.drift.records import load_record
from edgevlm.drift.report import Machine
from edgevlm.drift.rows_file import load_rows
from edgevlm.drift.workspace import Workspace
from edgevlm.errors import DriftError, SourceNotFoundError
from edgevlm.files import human_bytes, write_together

_META = "meta.json"
_MAX_META_BYTES = 64 << 20
# Of the distributions that a comparison keeps, and of as many answers.
_MOST_BYTES = 2 * MAX_ROWS_BYTES
_HINT = "`edgevlm compare --save-baseline FILE` makes one"
_Number = float | int | None


class SavedQuestion(BaseModel):
    """A question that the file has an answer to; digests as of `Question`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    digests: tuple[str, ...]


class SavedBaseline(BaseModel):
    """What the file says of itself.

    `facts` are sizes and speeds of the baseline's files, as `Comparison.facts` has them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    model: str
    level: str
    machine: Machine
    n_threads: int
    max_tokens: int
    along: Literal["baseline", "expected"]
    questions: tuple[SavedQuestion, ...]
    facts: dict[str, _Number]

    def differences(self, machine: Machine, *, n_threads: int) -> list[str]:
        """Return what else is different here than the files that are compared, in words."""
        found: list[str] = []
        pairs = [
            ("edgevlm", self.machine.edgevlm, machine.edgevlm),
            ("llama-cpp-python", self.machine.llama_cpp_python, machine.llama_cpp_python),
            ("the processor", self.machine.processor, machine.processor),
            ("the number of threads", str(self.n_threads), str(n_threads)),
        ]
        for name, before, now in pairs:
            if before != now:
                found.append(f"{name} was {before} when the baseline was saved, it is {now} now")
        missing = sorted(set(self.machine.cpu_features) ^ set(machine.cpu_features))
        if missing:
            found.append(f"processor features that only one of the two has: {', '.join(missing)}")
        return found


def save_baseline(
    path: Path, comparison: Comparison, *, model: str, machine: Machine, n_threads: int
) -> None:
    """Write the baseline of a comparison that has run.

    Raises:
        OutputError: the folder cannot be written, or its disk is too small.
    """
    own = [index for index, one in enumerate(comparison.questions) if one.case is None]
    leading = comparison.leading
    meta = SavedBaseline(
        model=model,
        level=comparison.baseline.level,
        machine=machine,
        n_threads=n_threads,
        max_tokens=leading.max_tokens,
        along=leading.along,
        questions=tuple(
            SavedQuestion(prompt=one.prompt, digests=one.digests)
            for one in (comparison.questions[index] for index in own)
        ),
        facts=_numbers(comparison.facts(comparison.base_keys)),
    )
    members = [
        (f"{number:06}.{kind}.npz", source)
        for number, index in enumerate(own)
        for kind, source in zip(("record", "rows"), comparison.base_paths(index), strict=True)
    ]
    n_bytes = sum(source.stat().st_size for _, source in members)
    folder = path.absolute().parent
    with (
        write_together(folder, names=[path.name], n_bytes=n_bytes, force=True) as output,
        zipfile.ZipFile(output.create(path.name), "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr(_META, meta.model_dump_json())
        for name, source in members:
            archive.write(source, name)


def _numbers(facts: dict[str, object]) -> dict[str, _Number]:
    return {key: value for key, value in facts.items() if isinstance(value, float | int | None)}


def read_saved(path: Path) -> SavedBaseline:
    """Return what a saved baseline says of itself.

    Raises:
        SourceNotFoundError: there is no such file.
        DriftError: it is no saved baseline, or of another version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(_META)
            if entry.file_size > _MAX_META_BYTES:
                raise ValueError("its description is larger than any")
            return SavedBaseline.model_validate_json(archive.read(entry))
    except FileNotFoundError:
        raise SourceNotFoundError(f"there is no file `{path}`", hint="check the path") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DriftError(
            f"`{path}` is no saved baseline of this edgevlm: {where}: {first['msg']}", hint=_HINT
        ) from error
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise DriftError(f"`{path}` is no saved baseline: {error}", hint=_HINT) from error


def restore_baseline(
    path: Path, saved: SavedBaseline, comparison: Comparison, workspace: Workspace
) -> None:
    """Put a saved baseline where that of a comparison would be.

    Raises:
        DriftError: it lacks a question, or is damaged.
    """
    places = {(one.prompt, one.digests): place for place, one in enumerate(saved.questions)}
    _check_asked(path, comparison.questions, places)
    n_bytes = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for index, question in enumerate(comparison.questions):
                place = places[question.prompt, question.digests]
                record, rows = comparison.base_paths(index)
                for kind, target in (("record", record), ("rows", rows)):
                    entry = archive.getinfo(f"{place:06}.{kind}.npz")
                    n_bytes += entry.file_size
                    if n_bytes > _MOST_BYTES:
                        raise ValueError(f"it unpacks to more than {human_bytes(_MOST_BYTES)}")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with archive.open(entry) as source, target.open("wb") as file:
                        shutil.copyfileobj(source, file)
                if load_record(record) is None or load_rows(rows) is None:
                    record.unlink()
                    raise ValueError(f"the answer to question {place} does not hold together")
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, zlib.error) as error:
        raise DriftError(f"`{path}` is damaged: {error}", hint="save it again") from error
    workspace.add_facts(comparison.base_keys, saved.facts)


def _check_asked(
    path: Path, questions: Sequence[Question], places: dict[tuple[str, tuple[str, ...]], int]
) -> None:
    for question in questions:
        if (question.prompt, question.digests) not in places:
            about = f" about `{question.names[0]}`" if question.names else ""
            raise DriftError(
                f"`{path}` has no answer to `{question.prompt}`{about}",
                hint="compare with the prompts and images that it was saved with",
            )
