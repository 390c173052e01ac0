"""A model directory: GGUF files under the Hub's custom names, and `edgevlm.json`, its manifest.

    shapes/
      shapes-F16.gguf   shapes-Q4_K_M.gguf   mmproj-shapes-F16.gguf   mmproj-shapes-Q8_0.gguf
      edgevlm.json

A model may be split over several files, `NAME-00001-of-0000N.gguf`: the first one stands for it. A
file that the manifest does not know is used, and said. Size and mtime are checked on load, SHA-256
on demand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import GGUFError, SourceNotFoundError
from edgevlm.gguf_shards import first_shard, read_model, shard_number
from edgevlm.manifest import FileEntry, Manifest, Role, read_manifest

FLOAT_LEVELS = ("F32", "BF16", "F16")


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
                    first_shard(path)
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
