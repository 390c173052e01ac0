"""A 16-bit model -> a level beside it; from its checkpoint where no 16-bit file is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.build.convert import Built, plan_files, tool_versions
from edgevlm.build.level_source import projector_source, text_source
from edgevlm.build.output import (
    FilePlan,
    file_name,
    profile_name,
    with_projector,
    write_files,
    write_manifest,
    write_models,
)
from edgevlm.build.source import Recipe
from edgevlm.ggml_types import FILE_TYPES
from edgevlm.gguf_shards import model_stem
from edgevlm.manifest import LedgerRecord, Manifest, Source, read_manifest
from edgevlm.model_dir import ModelDir
from edgevlm.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgevlm.build.level import ChosenLevel


@dataclass(frozen=True, kw_only=True)
class QuantizePlan:
    """What a run would write, and from what.

    Attributes:
        folder: the model directory.
        files: the files to write.
        kept: names of files that are there already and stay.
        sources: what is read: 16-bit files, or the checkpoint in one pass.
        notes: what the user should know about the choice, a sentence each.
    """

    folder: Path
    files: tuple[FilePlan, ...]
    kept: tuple[str, ...]
    sources: tuple[str, ...]
    notes: tuple[str, ...] = ()


def plan_quantization(
    model: ModelDir,
    *,
    level: str,
    text: Path | None = None,
    mmproj: Path | None = None,
    mmproj_level: str | None = None,
    tensor_types: Sequence[str] = (),
    imatrix: Path | None = None,
    allow_requantize: bool = False,
    force: bool = False,
) -> QuantizePlan:
    """Choose the source files and the type of every tensor.

    Args:
        model: the model directory; its 16-bit files are the source.
        level: a level's name or a profile's path.
        text: the 16-bit text model, None: the directory's own with the most bits.
        mmproj: the 16-bit projector, None: the directory's own; a directory without one is a
            text model.
        mmproj_level: "F16", "Q8_0", "Q5_K" ...; None: the profile's own.
        tensor_types: `REGEX=TYPE`, before the level's own rules for the text model.
        imatrix: file of an importance matrix.
        allow_requantize: where there are no 16 bits, quantized files are read and encoded again.
        force: write again what exists.

    Raises:
        ProfileError: no such level, or a rule of the user's own that decides no tensor.
        QuantizationError: no 16-bit file and no checkpoint, and quantized files are not allowed.
        OutputExistsError: the text model exists at this level and `force` is not set.
    """
    from edgevlm.build.level import check_rules_used, choose_level

    chosen = choose_level(level, tensor_types=tensor_types, imatrix=imatrix)
    profile = chosen.profile
    projector_level = (mmproj_level or profile.mmproj.type).upper()
    source = text_source(model, text=text, profile=profile, allow_requantize=allow_requantize)
    if isinstance(source, Recipe):
        return _plan_from_checkpoint(model, source, chosen, projector_level, force=force)
    name = _model_name(model, source.path)
    files = [_text_plan(source.path, name, chosen, source.requantized_from)]
    projector, requantized_from = projector_source(
        model, mmproj=mmproj, level=mmproj_level, allow_requantize=allow_requantize
    )
    kept: tuple[str, ...] = ()
    if projector is not None:
        file = _mmproj_plan(projector, name, projector_level, chosen, requantized_from)
        if (model.folder / file.name).exists() and not force:
            kept = (file.name,)
        else:
            files.append(file)
    check_rules_used(profile, files)
    return QuantizePlan(
        folder=model.folder,
        files=tuple(files),
        kept=kept,
        sources=tuple(str(path) for path in (source.path, projector) if path),
        notes=tuple(_requantized_note(file) for file in files if file.requantized_from),
    )


def _text_plan(
    source: Path, name: str, level: ChosenLevel, requantized_from: str | None
) -> FilePlan:
    from edgevlm.quantize.run import plan_quantize

    encoder = level.encoder()
    plan = plan_quantize(source, encoder, allow_requantize=requantized_from is not None)
    return FilePlan(
        name=file_name(name, "text", encoder.level),
        role="text",
        level=encoder.level,
        profile=encoder.level,
        plan=plan,
        encoder=encoder,
        imatrix=level.record_of(encoder, plan),
        requantized_from=requantized_from,
    )


def _mmproj_plan(
    source: Path, name: str, type_: str, level: ChosenLevel, requantized_from: str | None
) -> FilePlan:
    from edgevlm.quantize.encode import mmproj_encoder
    from edgevlm.quantize.run import plan_quantize

    importance = level.projector_importance()
    encoder = mmproj_encoder(type_, profile=level.profile, importance=importance)
    plan = plan_quantize(source, encoder, allow_requantize=requantized_from is not None)
    return FilePlan(
        name=file_name(name, "mmproj", encoder.level),
        role="mmproj",
        level=encoder.level,
        profile=profile_name(encoder),
        plan=plan,
        encoder=encoder,
        imatrix=level.record_of(encoder, plan),
        requantized_from=requantized_from,
    )


def _requantized_note(file: FilePlan) -> str:
    return (
        f"{file.name} is made from {file.requantized_from}, not from 16 bits: it drifts by the"
        " error of both"
    )


def quantize_model(
    plan: QuantizePlan,
    *,
    force: bool = False,
    n_threads: int | None = None,
    progress: Progress = SILENT,
) -> Built:
    """Write what `plan_quantization` chose; the manifest becomes visible last."""
    with write_models(plan.folder, plan.files, force=force) as output:
        written = write_files(output, plan.files, n_threads=n_threads, progress=progress)
        written = with_projector(written, plan.files, plan.kept)
        before = read_manifest(plan.folder) or _manifest_without_source(plan)
        manifest = before.with_files(written)
        write_manifest(output, manifest)
    return Built(folder=plan.folder, manifest=manifest, written=tuple(written), kept=plan.kept)


def _plan_from_checkpoint(
    model: ModelDir, recipe: Recipe, level: ChosenLevel, mmproj_level: str, *, force: bool
) -> QuantizePlan:
    name = model.manifest.name if model.manifest is not None else model.folder.resolve().name
    files = plan_files(recipe, name=name, level=level, mmproj_level=mmproj_level)
    kept = tuple(
        file.name
        for file in files
        if file.role == "mmproj" and (model.folder / file.name).exists() and not force
    )
    return QuantizePlan(
        folder=model.folder,
        files=tuple(file for file in files if file.name not in kept),
        kept=kept,
        sources=tuple(str(path) for path in (recipe.checkpoint, recipe.adapter) if path),
    )


def _model_name(model: ModelDir, text: Path) -> str:
    if model.manifest is not None:
        return model.manifest.name
    stem = model_stem(text.name)
    for level in FILE_TYPES.values():
        if stem.upper().endswith(f"-{level}"):
            return stem[: -len(level) - 1]
    return stem


def _manifest_without_source(plan: QuantizePlan) -> Manifest:
    """Return a manifest for files that came without one: their checkpoint is not known."""
    text = plan.files[0]
    name = text.name.removesuffix(f"-{text.level}.gguf")
    return Manifest(
        name=name,
        family="unknown",
        source=Source(path=", ".join(plan.sources)),
        files=[],
        ledger=LedgerRecord(n_source_tensors=0, used={}, dropped={}),
        versions=tool_versions(),
    )
