"""A model directory: GGUF files under the Hub's custom names, and `edgevlm.json`, its manifest.

    shapes/
      shapes-F16.gguf   shapes-Q4_K_M.gguf   mmproj-shapes-F16.gguf   mmproj-shapes-Q8_0.gguf
      edgevlm.json

A model may be split over several files, `NAME-00001-of-0000N.gguf`: the first one stands for it. A
file that the manifest does not know is used, and said. Size and mtime are checked on load, SHA-256
on demand. A manifest comes from strangers: it is validated, its file names cannot leave the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import GGUFError, ManifestError, SourceNotFoundError
from edgevlm.files import sha256_file
from edgevlm.ggml_types import TypeCount
from edgevlm.gguf_shards import model_stem, paths_of, read_model, shard_number, shard_paths

MANIFEST_NAME = "edgevlm.json"
SCHEMA_VERSION = 1
Role = Literal["text", "mmproj"]
# Far above any real one (a ledger line a tensor); a stranger's folder makes us read no more.
_MAX_MANIFEST_BYTES = 64 << 20
FLOAT_LEVELS = ("F32", "BF16", "F16")


def _plain_name(name: str) -> str:
    if not name or name.startswith(".") or Path(name).name != name or "\\" in name:
        raise ValueError(f"`{name}` is not a plain file name")
    return name


PlainName = Annotated[str, AfterValidator(_plain_name)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartEntry(_Record):
    """One file of a model in several, as it was written."""

    name: PlainName
    n_bytes: int
    mtime_ns: int
    sha256: str


class FileEntry(_Record):
    """One GGUF model of the model directory, as it was written.

    Of a model in several files `parts` has each; name, mtime and hash are the first one's. `mmproj`
    names the projector that a text model was made with.
    """

    name: PlainName
    role: Role
    level: str
    profile: str | None = None
    n_bytes: int
    mtime_ns: int
    sha256: str
    bits_per_weight: float
    tensor_types: dict[str, TypeCount]
    parts: list[PartEntry] = Field(default_factory=list[PartEntry])
    mmproj: PlainName | None = None

    def files(self) -> list[tuple[str, int, int]]:
        """Return name, size and mtime of every file."""
        if self.parts:
            return [(part.name, part.n_bytes, part.mtime_ns) for part in self.parts]
        return [(self.name, self.n_bytes, self.mtime_ns)]

    def is_there(self, folder: Path) -> bool:
        """Whether every file exists in `folder`."""
        return all((folder / name).exists() for name, _, _ in self.files())

    def is_unchanged(self, folder: Path) -> bool:
        """Whether every file of `folder` has the size and mtime that it was written with."""
        status = {name: (folder / name).stat() for name, _, _ in self.files()}
        return all(
            (status[name].st_size, status[name].st_mtime_ns) == (n_bytes, mtime_ns)
            for name, n_bytes, mtime_ns in self.files()
        )


class AdapterSource(_Record):
    """A LoRA adapter that was merged into the weights."""

    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    sha256: dict[str, str] = Field(default_factory=dict)


class Source(_Record):
    """Where the weights came from; the hashes prove that a rebuild starts from the same bytes.

    `pre` is the pre-tokenizer that a user chose, where the tokenizer's own is not known.
    """

    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    sha256: dict[str, str] = Field(default_factory=dict)
    adapter: AdapterSource | None = None
    pre: str | None = None

    def recipe(self) -> dict[str, str]:
        """Return what decides values and tokens of a conversion: hashes, and what was chosen."""
        adapter = self.adapter.sha256 if self.adapter else {}
        chosen = {"--pre": self.pre} if self.pre else {}
        return {**self.sha256, **{f"--adapter {n}": h for n, h in adapter.items()}, **chosen}


class LedgerRecord(_Record):
    """What became of every tensor of the checkpoint, and of an adapter.

    `adapted` names the adapter's tensors by the checkpoint's that they change or stand in for;
    `n_dequantized` counts the weights that the checkpoint holds as 8-bit values with scales.
    """

    n_source_tensors: int
    used: dict[str, list[str]]
    dropped: dict[str, str]
    n_adapter_tensors: int = 0
    n_dequantized: int = 0
    adapted: dict[str, list[str]] = Field(default_factory=dict)


class TokenizerLimit(_Record):
    """A known limit of the runtime that makes it tokenize some texts in another way."""

    name: str
    reason: str
    n_probes: int
    first: str


class TokenizerRecord(_Record):
    """What came out when probe texts were tokenized by the checkpoint's tokenizer and by the file.

    Every difference is explained by one of `limits`.
    """

    n_probes: int
    n_different: int
    limits: list[TokenizerLimit]


class Manifest(_Record):
    """`edgevlm.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: PlainName
    family: str
    source: Source
    files: list[FileEntry]
    ledger: LedgerRecord
    versions: dict[str, str]
    tokenizer: TokenizerRecord | None = None
    losses: list[str] = Field(default_factory=list)
    drift: dict[str, object] = Field(default_factory=dict)
    verify: dict[str, object] = Field(default_factory=dict)

    def with_files(self, new: Sequence[FileEntry]) -> Manifest:
        """Return the manifest with `new` entries.

        One of the same model is replaced, and what was found out about that is dropped.
        """
        stems = {model_stem(entry.name) for entry in new}
        kept = [entry for entry in self.files if model_stem(entry.name) not in stems]
        found = {key: value for key, value in self.verify.items() if model_stem(key) not in stems}
        return self.model_copy(update={"files": [*kept, *new], "verify": found})

    def to_json(self) -> str:
        """Return the manifest as it is stored."""
        return json.dumps(self.model_dump(), indent=1) + "\n"


def describe_file(
    path: Path,
    *,
    name: str,
    role: Role,
    level: str,
    profile: str | None,
    sha256: Sequence[str] = (),
) -> FileEntry:
    """Return the entry of the GGUF model at `path` (temporary or final) under its final `name`.

    Of a model in several files `path` and `name` are the first one's. `sha256`, of every file, is
    computed where it is not known.
    """
    model = read_model(path)
    paths = paths_of(model)
    names = [one.name for one in shard_paths(Path(name))] if len(paths) > 1 else [name]
    hashes = sha256 or [sha256_file(one) for one in paths]
    parts = [
        PartEntry(
            name=own,
            n_bytes=one.stat().st_size,
            mtime_ns=one.stat().st_mtime_ns,
            sha256=digest,
        )
        for own, one, digest in zip(names, paths, hashes, strict=True)
    ]
    return FileEntry(
        name=name,
        role=role,
        level=level,
        profile=profile,
        n_bytes=model.n_bytes,
        mtime_ns=parts[0].mtime_ns,
        sha256=parts[0].sha256,
        bits_per_weight=round(model.bits_per_weight, 4),
        tensor_types=model.type_histogram(),
        parts=parts if len(parts) > 1 else [],
    )


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of `folder`, None when it has none.

    Raises:
        ManifestError: the manifest is not valid; the hint says what to do.
    """
    path = folder / MANIFEST_NAME
    hint = f"remove `{path}`: its GGUF files can be used without it"
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ManifestError(f"`{path}` is larger than any manifest", hint=hint)
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"cannot read `{path}`: {error.strerror}", hint=hint) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise ManifestError(f"`{path}` is not valid: {where}: {first['msg']}", hint=hint) from error


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """A GGUF model of a model directory.

    Attributes:
        path: the file, the first one of a model in several.
        role: text model or projector.
        level: of its manifest's entry, else of its own metadata; "unknown" where neither says.
        mtime_ns: when it was last written.
        known: the manifest describes it, and neither size nor mtime have changed since.
        mmproj: name of the projector that a text model was made with; None: not known.
    """

    path: Path
    role: Role
    level: str
    mtime_ns: int
    known: bool
    mmproj: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelDir:
    """A folder with GGUF files.

    Attributes:
        folder: where.
        manifest: None when it has none.
        files: newest first.
        skipped: why files that no manifest knows were left out.
    """

    folder: Path
    manifest: Manifest | None
    files: tuple[ModelFile, ...]
    skipped: tuple[str, ...] = ()

    def of_role(self, role: Role) -> tuple[ModelFile, ...]:
        """Return the files of one role, most recently written first."""
        return tuple(file for file in self.files if file.role == role)

    def find(self, role: Role, level: str) -> ModelFile | None:
        """Return the file of `role` at `level`, None when there is none."""
        wanted = level.upper()
        return next((file for file in self.of_role(role) if file.level.upper() == wanted), None)

    def baseline(self, role: Role) -> ModelFile | None:
        """Return the file of a float type with the most bits, from which levels are made."""
        found = (self.find(role, level) for level in FLOAT_LEVELS)
        return next((file for file in found if file is not None), None)


def open_model_dir(folder: Path) -> ModelDir:
    """List the GGUF models of `folder`; the later files of a split one are a part of it.

    Raises:
        SourceNotFoundError: it has none.
        GGUFError: a file of the manifest has another size than was written (a broken download), or
            there are files and none can be read.
        ManifestError: its manifest is not valid.
    """
    manifest = read_manifest(folder)
    entries = {entry.name: entry for entry in manifest.files} if manifest else {}
    files: list[ModelFile] = []
    broken: list[GGUFError] = []
    for path in sorted(folder.glob("*.gguf")):
        if path.name.startswith("."):
            continue
        entry = entries.get(path.name)
        try:
            if shard_number(path.name) > 1:
                if shard_number(path.name) == 2:
                    _check_first(path)
                continue
            if not path.exists():
                raise GGUFError(
                    f"`{path}` is a link to a file that is gone",
                    hint="download it again: `edgevlm chat -m "
                    f"{(manifest and manifest.source.repo) or 'ORG/NAME'}`",
                )
            files.append(_known_file(path, entry) if entry else _found_file(path))
        except GGUFError as error:
            if entry is not None:
                raise
            broken.append(error)
    if not files and broken:
        raise broken[0]
    if not files:
        raise SourceNotFoundError(
            f"`{folder}` holds no GGUF file",
            hint="convert a checkpoint first: `edgevlm convert CHECKPOINT`",
        )
    newest_first = sorted(files, key=lambda file: (file.mtime_ns, file.path.name), reverse=True)
    return ModelDir(
        folder=folder,
        manifest=manifest,
        files=tuple(newest_first),
        skipped=tuple(f"left out: {error.message}" for error in broken),
    )


def _check_first(path: Path) -> None:
    """Check that the second file of a split model stands beside the first one."""
    first = shard_paths(path)[0]
    if not first.exists():
        raise GGUFError(
            f"`{path}` is a part of a model, and `{first.name}` is missing",
            hint="copy or download it into the folder of the others",
        )


def _known_file(path: Path, entry: FileEntry) -> ModelFile:
    for name, n_bytes, _ in entry.files():
        part = path.with_name(name)
        if not part.exists():
            raise GGUFError(
                f"`{part}` is missing, a part of the model that begins with `{path.name}`",
                hint="copy or download it into the folder of the others",
            )
        if part.stat().st_size != n_bytes:
            raise GGUFError(
                f"`{part}` has {part.stat().st_size} bytes, its manifest says {n_bytes}",
                hint="the file was cut or replaced: convert or copy it again",
            )
    return ModelFile(
        path=path,
        role=entry.role,
        level=entry.level,
        mtime_ns=path.stat().st_mtime_ns,
        known=entry.is_unchanged(path.parent),
        mmproj=entry.mmproj,
    )


def _found_file(path: Path) -> ModelFile:
    role, level = role_and_level(path)
    mtime_ns = path.stat().st_mtime_ns
    return ModelFile(path=path, role=role, level=level, mtime_ns=mtime_ns, known=False)


def role_and_level(path: Path) -> tuple[Role, str]:
    """Return what a GGUF model is by its own metadata: text model or projector, and its level.

    Raises:
        SourceNotFoundError: there is no such file.
        GGUFError: broken, or a later file of a split model; the hint names the first one.
    """
    file = read_model(path)
    return ("mmproj" if file.is_projector else "text"), file.file_type or "unknown"
