"""GGUF files of one run: planned, written under temporary names, described for the manifest."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm_convert.encoder import TensorEncoder
from edgevlm_convert.shards import split_plan
from edgevlm_convert.writer import GGUFPlan, write_gguf

from edgevlm.build.written import WrittenFile
from edgevlm.errors import ConversionError
from edgevlm.files import WriteTogether, write_together
from edgevlm.gguf_shards import model_stem, shard_name, shard_number
from edgevlm.manifest import (
    MANIFEST_NAME,
    FileEntry,
    ImatrixRecord,
    Manifest,
    Role,
    describe_file,
)
from edgevlm.progress import Advance, Progress, Unit

if TYPE_CHECKING:
    from edgevlm.quantize.encode import LevelEncoder

# A manifest's size is not known before it is written; this is more than any.
MANIFEST_ALLOWANCE_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """One GGUF model to write, in one file or in several.

    Attributes:
        name: final name of the one file.
        role: text model or projector.
        level: of it.
        profile: name of the profile that made the level, None for none.
        plan: of the one file.
        encoder: that the plan was made with.
        imatrix: record of the importance matrix that the encoder has, None for none.
        max_bytes: of tensors in one file; None: all in one.
        requantized_from: type of the blocks that it is made from; None: from floats.
    """

    name: str
    role: Role
    level: str
    profile: str | None
    plan: GGUFPlan
    encoder: TensorEncoder | None
    imatrix: ImatrixRecord | None = None
    max_bytes: int | None = None
    requantized_from: str | None = None

    def parts(self) -> dict[str, GGUFPlan]:
        """Return the plan of every file by its final name, in order.

        Raises:
            ConversionError: more files than llama.cpp can count.
        """
        if self.max_bytes is None:
            return {self.name: self.plan}
        plans = split_plan(self.plan, max_bytes=self.max_bytes)
        if len(plans) == 1:
            return {self.name: self.plan}
        stem = model_stem(self.name)
        numbered = enumerate(plans, start=1)
        return {shard_name(stem, number, len(plans)): plan for number, plan in numbered}


def file_name(name: str, role: Role, level: str) -> str:
    """Return the Hub's custom name of a model's file.

    Raises:
        ConversionError: the model's name or its level's cannot stand in a file name.
    """
    for part in (name, level):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._ -]*", part):
            raise ConversionError(
                f"`{part}` cannot stand in a file name",
                hint="use letters, digits, `.`, `_` and `-`: --name names the model",
            )
    return f"{name}-{level}.gguf" if role == "text" else f"mmproj-{name}-{level}.gguf"


def profile_name(encoder: LevelEncoder | None) -> str | None:
    """Return the name of the profile whose rules an encoder follows, None for none."""
    return encoder.profile.name if encoder is not None and encoder.profile is not None else None


def with_projector(
    written: Sequence[FileEntry], files: Sequence[FilePlan], kept: Sequence[str]
) -> list[FileEntry]:
    """Return the entries of a run, a text model's with the projector that it was made with.

    Args:
        written: entries of the files that were written.
        files: all that were written.
        kept: names of projectors that were there already.
    """
    names = [file.name for file in files if file.role == "mmproj"]
    projector = next(iter([*names, *kept]), None)
    return [
        entry.model_copy(update={"mmproj": projector}) if entry.role == "text" else entry
        for entry in written
    ]


@contextmanager
def write_models(
    folder: Path, files: Sequence[FilePlan], *, force: bool
) -> Generator[WriteTogether]:
    """Begin to write models, see `write_together`; each takes the place of its like in `folder`.

    The same model in one file, or in another number of files, goes when the new ones are complete.

    Raises:
        OutputExistsError: a model is there already and `force` is not set.
        OutputError: the folder cannot be written, or the disk is too small.
    """
    visible: list[str] = []
    leaving: list[str] = []
    n_bytes = MANIFEST_ALLOWANCE_BYTES
    for file in files:
        parts = file.parts()
        n_bytes += sum(plan.n_bytes for plan in parts.values())
        there = _divisions(folder, file.name)
        # Later files without their first one are what a killed run left.
        visible += [name for name in there if shard_number(name) <= 1]
        if len(parts) > 1 or there != [file.name]:
            leaving += there
    with write_together(folder, names=visible, n_bytes=n_bytes, force=force) as output:
        for name in leaving:
            output.remove(name)
        yield output


def _divisions(folder: Path, name: str) -> list[str]:
    """Return the files of `folder` that hold the model `name`, or a part of it."""
    stem = model_stem(name)
    # A glob would read brackets in a stranger's name as a pattern.
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(one for one in names if one.endswith(".gguf") and model_stem(one) == stem)


def write_files(
    output: WriteTogether,
    files: Sequence[FilePlan],
    *,
    n_threads: int | None,
    progress: Progress,
    when_written: Callable[[FilePlan, Path], None] | None = None,
) -> list[FileEntry]:
    """Write every planned file to its temporary name and return the entries for the manifest.

    `when_written` is called with each model that is complete and the path of its first file; what
    it raises ends the run.
    """
    # One file is finished and proved beside the encoding of the next.
    with ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="edgevlm-finish"))
        entries: list[Future[FileEntry]] = []
        proofs: list[Future[None]] = []
        for file in files:
            parts = file.parts()
            # The first file makes the others a model: it is the last to become visible.
            temporaries = [output.create(name) for name in reversed(parts)][::-1]
            hashes: list[Future[str]] = []
            total = sum(plan.n_data_bytes for plan in parts.values())
            with progress.task(file.name, total=total) as advance:
                for plan, temporary in zip(parts.values(), temporaries, strict=True):
                    following = stack.enter_context(WrittenFile(temporary))
                    write_gguf(
                        plan,
                        temporary,
                        encoder=file.encoder,
                        n_threads=n_threads,
                        progress=_OneBar(advance),
                        observer=following.follow,
                    )
                    hashes.append(executor.submit(following.complete))
            first = next(iter(parts))
            entries.append(executor.submit(_finish, file, first, temporaries[0], hashes))
            if when_written is not None:
                proofs.append(executor.submit(when_written, file, temporaries[0]))
        for proof in proofs:
            proof.result()
        return [entry.result() for entry in entries]


class _OneBar:
    """The progress of a part, told to the bar of the whole."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    @contextmanager
    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> Generator[Advance]:
        """See Progress."""
        yield self._advance


def _finish(file: FilePlan, name: str, temporary: Path, hashes: Sequence[Future[str]]) -> FileEntry:
    # They were handed in before this: whoever waits here waits for the other thread.
    sha256 = [future.result() for future in hashes]
    entry = describe_file(
        temporary,
        name=name,
        role=file.role,
        level=file.level,
        profile=file.profile,
        sha256=sha256,
    )
    return entry.model_copy(
        update={"imatrix": file.imatrix, "requantized_from": file.requantized_from}
    )


def write_manifest(output: WriteTogether, manifest: Manifest) -> None:
    """Write the manifest, the last file to become visible."""
    output.create(MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
