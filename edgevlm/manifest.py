"""`edgevlm.json`, the manifest of a model directory: where its files come from, and what they are.

A manifest comes from strangers: it is validated, and its file names cannot leave the folder.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from edgevlm.errors import ManifestError
from edgevlm.files import sha256_file
from edgevlm.ggml_types import TypeCount
from edgevlm.gguf_shards import model_stem, paths_of, read_model, shard_paths

MANIFEST_NAME = "edgevlm.json"
SCHEMA_VERSION = 1
Role = Literal["text", "mmproj"]
# Far above any real one (a ledger line a tensor); a stranger's folder makes us read no more.
_MAX_MANIFEST_BYTES = 64 << 20


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


class ImatrixRecord(_Record):
    """The importance matrix that a file was encoded with.

    `n_without` counts the file's matrices of which it knows nothing, `n_unseen` those (experts) of
    the whole matrix that saw no row: both count evenly. Images and prompts are None for one of
    llama-imatrix, which has chunks of text instead.
    """

    sha256: str
    datasets: list[str]
    n_chunks: int
    n_unseen: int
    n_images: int | None = None
    n_prompts: int | None = None
    n_without: int = 0


class FileEntry(_Record):
    """One GGUF model of the model directory, as it was written.

    Of a model in several files `parts` has each; name, mtime and hash are the first one's. `mmproj`
    names the projector that a text model was made with; `requantized_from` the type of the blocks
    that a level was made from, where it was not made from floats.
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
    imatrix: ImatrixRecord | None = None
    requantized_from: str | None = None

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
        # A report of drift is about all files together: one that is replaced makes it untrue.
        drift = self.drift if len(kept) == len(self.files) else {}
        return self.model_copy(
            update={"files": [*kept, *new], "verify": found, "drift": dict(drift)}
        )

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
