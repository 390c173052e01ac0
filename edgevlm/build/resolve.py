"""What the user named -> files that can be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm import __version__
from edgevlm.build.cache import cache_lock, last_model, models_folder, remember_model
from edgevlm.build.source import path_exists, recipe_of, source_hashes
from edgevlm.errors import GGUFError, SourceNotFoundError
from edgevlm.gguf_shards import first_shard, model_stem, shard_number
from edgevlm.manifest import MANIFEST_NAME
from edgevlm.model_dir import FLOAT_LEVELS, ModelDir, ModelFile, open_model_dir, role_and_level
from edgevlm.progress import SILENT, Note, Progress, unheard

if TYPE_CHECKING:
    from edgevlm.hub.name import HubName

BUILT_IN = "shapes"


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model that can be loaded.

    Attributes:
        name: as a person would name it.
        level: of the text model.
        text: the text model's GGUF file.
        mmproj: the projector's, None when there is none.
        notes: what the user should know about the choice, a sentence each.
    """

    name: str
    level: str
    text: Path
    mmproj: Path | None
    notes: tuple[str, ...] = ()


def resolve_model(
    name: str | None,
    *,
    level: str | None = None,
    mmproj: Path | None = None,
    progress: Progress = SILENT,
    note: Note = unheard,
) -> ResolvedModel:
    """Find the files of a model; build or download what is missing.

    An existing path wins, then the built-in `shapes`, then a repository of the Hub. Level: asked,
    else most recently written, for a repository new to the cache Q4_K_M. Projector: `mmproj`, else
    the one that the text model was made with, else the one at its own level, else Q8_0 with a
    quantized text model, else the newest beside the model.

    Args:
        name: path of a model directory or .gguf file, `shapes`, or `org/name@revision`; None: the
            model used last, else `shapes`.
        level: the text model's level.
        mmproj: the projector's file.
        progress: told the bytes of what is built, and downloaded.
        note: told about a download.

    Raises:
        SourceNotFoundError: nothing of that name, or not at that level.
        GGUFError: a file of the wrong kind.
        HubError: the Hub refuses, or sends something else than it listed.
    """
    if mmproj is not None and not mmproj.is_file():
        raise SourceNotFoundError(f"no file `{mmproj}`", hint="check the path given to --mmproj")
    chosen = name or last_model() or BUILT_IN
    path = Path(chosen)
    if path.is_file():
        file = _from_file(path, level=level, mmproj=mmproj)
        remember_model(str(path.absolute()))
        return file
    hub_name = _hub_name(chosen)
    if hub_name is None:
        model = open_model(chosen, progress=progress)
    else:
        from edgevlm.build.hub_model import hub_model

        found = hub_model(hub_name, level=level, progress=progress, note=note)
        model, level = open_model_dir(found.folder), found.level
    text, notes = _text_of(model, level, progress)
    projector, more = projector_of(text, mmproj)
    remember_model(BUILT_IN if chosen == BUILT_IN else str(model.folder.absolute()))
    return ResolvedModel(
        name=model.manifest.name if model.manifest else model.folder.name,
        level=text.level,
        text=text.path,
        mmproj=projector,
        notes=(*model.skipped, *notes, *more),
    )


def open_source(
    name: str | None,
    *,
    allow_requantize: bool = False,
    progress: Progress = SILENT,
    note: Note = unheard,
) -> tuple[ModelDir, Path | None]:
    """Open the model to make a level from.

    Any file of a model in several stands for it, and a projector for the text model beside it.

    Returns:
        The model directory, and the text model's file where the user named that file itself.

    Raises:
        SourceNotFoundError: nothing of that name.
        GGUFError: a file is broken or missing, or a projector has several text models beside it.
    """
    chosen = name or last_model() or BUILT_IN
    path = Path(chosen)
    if path_exists(str(path)) and shard_number(path.name) > 1:
        path = first_shard(path)
    hub_name = _hub_name(chosen)
    if hub_name is not None:
        from edgevlm.build.hub_model import hub_model

        found = hub_model(
            hub_name,
            is_source=True,
            allow_requantize=allow_requantize,
            progress=progress,
            note=note,
        )
        return open_model_dir(found.folder), None
    if not path.is_file():
        return open_model(chosen, progress=progress), None
    if role_and_level(path)[0] == "mmproj":
        return _beside_projector(path.absolute(), note), None
    return open_model_dir(path.absolute().parent), path.absolute()


def _beside_projector(path: Path, note: Note) -> ModelDir:
    """Return the directory of a projector, without the other projectors.

    Raises:
        GGUFError: there is no text model, or more than one that it could belong to.
    """
    model = open_model_dir(path.parent)
    texts = model.of_role("text")
    # Levels of one model are one, whatever wrote them; files without a manifest are anybody's.
    sources = [file for file in texts if file.level in FLOAT_LEVELS and not file.known]
    if not texts or len(sources) > 1:
        raise _projector_named(path)
    note(f"`{path.name}` is a projector: its text model is the one beside it")
    files = tuple(file for file in model.files if file.role == "text" or file.path == path)
    return replace(model, files=files)


def _hub_name(name: str) -> HubName | None:
    """Return the repository that `name` stands for, None where it is something nearer."""
    if name == BUILT_IN or path_exists(name):
        return None
    from edgevlm.hub.name import parse_hub_name

    return parse_hub_name(name)


def open_model(name: str, *, progress: Progress = SILENT) -> ModelDir:
    """Open the model directory that `name` stands for; `shapes` is built when it was not yet."""
    path = Path(name)
    if path.is_dir():
        if (path / "config.json").exists() and not any(path.glob("*.gguf")):
            raise SourceNotFoundError(
                f"`{path}` is a checkpoint, not a model directory",
                hint=f"convert it first: `edgevlm convert {path}`",
            )
        return open_model_dir(path)
    if name == BUILT_IN:
        return open_model_dir(_build_built_in(progress))
    raise SourceNotFoundError(
        f"no model `{name}`",
        hint="give a model directory, a .gguf file, `shapes` (built in), or ORG/NAME of the Hub",
    )


def built_in_checkpoint() -> Path:
    """Return the folder of the checkpoint that is shipped with edgevlm."""
    return built_in_folder() / "checkpoint"


def built_in_folder() -> Path:
    """Return the folder of the built-in model: checkpoint/, images/ and prompts.jsonl."""
    from importlib.resources import files

    return Path(str(files("edgevlm") / "assets" / BUILT_IN))


def _kept_folder(name: str, hashes: Mapping[str, str]) -> Path:
    """Return where the cache keeps what this version makes of the checkpoint with these hashes."""
    digest = sha256("".join(f"{file} {value}\n" for file, value in sorted(hashes.items())).encode())
    return models_folder() / f"{name}-{__version__}-{digest.hexdigest()[:12]}" / name


def _build_built_in(progress: Progress) -> Path:
    folder = _kept_folder(BUILT_IN, source_hashes(built_in_checkpoint()))
    if (folder / MANIFEST_NAME).exists():
        return folder
    # Imported only where something is built: the converter costs a quarter of a second.
    from edgevlm.build.convert import convert_model

    with cache_lock(folder.parent):
        if not (folder / MANIFEST_NAME).exists():
            convert_model(
                built_in_checkpoint(),
                out=folder,
                name=BUILT_IN,
                outtype="f16",
                force=True,
                progress=progress,
            )
    return folder


def _from_file(path: Path, *, level: str | None, mmproj: Path | None) -> ResolvedModel:
    role, file_level = role_and_level(path)
    if role == "mmproj":
        raise _projector_named(path)
    if level is not None and level.upper() != file_level.upper():
        raise SourceNotFoundError(
            f"`{path}` is at level {file_level}, not {level}",
            hint="name the model directory to choose a level, or leave --level out",
        )
    text = ModelFile(
        path=path, role="text", level=file_level, mtime_ns=path.stat().st_mtime_ns, known=False
    )
    projector, notes = projector_of(text, mmproj)
    return ResolvedModel(
        name=model_stem(path.name), level=file_level, text=path, mmproj=projector, notes=notes
    )


def _text_of(
    model: ModelDir, level: str | None, progress: Progress
) -> tuple[ModelFile, tuple[str, ...]]:
    texts = model.of_role("text")
    if level is None:
        if not texts and model.skipped:
            raise GGUFError(
                model.skipped[0].removeprefix("left out: "),
                hint="copy or convert it again: the folder's other files are projectors",
            )
        if not texts:
            raise SourceNotFoundError(
                f"`{model.folder}` holds no text model, only projectors",
                hint="name the text model's .gguf file",
            )
        return texts[0], _unknown_note(model, texts[0])
    found = model.find("text", level)
    if found is not None:
        return found, _unknown_note(model, found)
    rebuilt = _rebuild(model, level, progress)
    return rebuilt, (f"built level {rebuilt.level} into `{rebuilt.path.parent}`",)


def _rebuild(model: ModelDir, level: str, progress: Progress) -> ModelFile:
    """Make a missing level in the cache, from the manifest's checkpoint when its hashes match."""
    manifest = model.manifest
    from edgevlm.build.convert import convert_model

    recipe = recipe_of(manifest)
    if manifest is None or recipe is None:
        levels = ", ".join(file.level for file in model.of_role("text"))
        raise SourceNotFoundError(
            f"`{model.folder}` has no level {level} (it has: {levels or 'none'})",
            hint=f"make it: `{_command(model, level)}`",
        )
    folder = model.folder
    if not folder.is_relative_to(models_folder()):
        folder = _kept_folder(manifest.name, manifest.source.recipe())
    with cache_lock(folder.parent):
        if (folder / MANIFEST_NAME).exists():
            found = open_model_dir(folder).find("text", level)
            if found is not None:
                return found
        built = convert_model(
            recipe.checkpoint,
            out=folder,
            name=manifest.name,
            level=level,
            adapter=recipe.adapter,
            pre=recipe.pre,
            origin=manifest.source,
            progress=progress,
        )
    entry = next(entry for entry in built.written if entry.role == "text")
    path = folder / entry.name
    return ModelFile(path=path, role="text", level=entry.level, mtime_ns=entry.mtime_ns, known=True)


def _command(model: ModelDir, level: str) -> str:
    source = model.manifest.source if model.manifest else None
    if source is not None and source.repo and source.revision:
        return f"edgevlm chat -m {source.repo}@{source.revision} --level {level}"
    return f"edgevlm quantize {model.folder} --level {level}"


def projector_of(text: ModelFile, asked: Path | None) -> tuple[Path | None, tuple[str, ...]]:
    """Choose a text model's projector, see `resolve_model`; and say what the choice was."""
    if asked is not None:
        return asked, ()
    # Read again: building a missing level may have written a projector.
    folder = open_model_dir(text.path.absolute().parent)
    projectors = folder.of_role("mmproj")
    if len(projectors) <= 1:
        return (projectors[0].path if projectors else None), ()
    own = {file.mmproj for file in folder.of_role("text") if file.path.name == text.path.name}
    for projector in projectors:
        if projector.path.name in own:
            return projector.path, ()
    wanted = (text.level,) if text.level in FLOAT_LEVELS else (text.level, "Q8_0")
    for level in wanted:
        for projector in projectors:
            if projector.level == level:
                return projector.path, ()
    newest = projectors[0].path
    return newest, (f"took the newest of {len(projectors)} projectors: `{newest.name}`",)


def _unknown_note(model: ModelDir, file: ModelFile) -> tuple[str, ...]:
    if model.manifest is None or file.known:
        return ()
    return (f"`{file.path.name}` was copied or changed after its manifest was written",)


def _projector_named(path: Path) -> GGUFError:
    return GGUFError(
        f"`{path}` is a projector (mmproj), not a text model",
        hint="give the text model's .gguf, and the projector with --mmproj",
    )
