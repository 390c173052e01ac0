"""Checkpoint -> model directory: text model, projector and manifest, visible together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from edgevlm_convert import ConversionPlan, OuttypeOption, plan_conversion
from edgevlm_convert.writer import GGUFPlan

from edgevlm.build.output import (
    FilePlan,
    file_name,
    profile_name,
    with_projector,
    write_files,
    write_manifest,
    write_models,
)
from edgevlm.build.source import Recipe, adapter_hashes, source_hashes
from edgevlm.build.tokenizer_proof import prove_tokenizer
from edgevlm.errors import OutputExistsError, QuantizationError
from edgevlm.ggml_types import FILE_TYPES
from edgevlm.manifest import (
    AdapterSource,
    FileEntry,
    LedgerRecord,
    Manifest,
    Source,
    TokenizerRecord,
    read_manifest,
)
from edgevlm.model_dir import FLOAT_LEVELS
from edgevlm.progress import SILENT, Progress

if TYPE_CHECKING:
    from edgevlm.build.level import ChosenLevel


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a run wrote.

    Attributes:
        folder: the model directory.
        manifest: as it stands now.
        written: the entries of the files of this run.
        kept: names of projector files that were there already, made from the same checkpoint.
    """

    folder: Path
    manifest: Manifest
    written: tuple[FileEntry, ...]
    kept: tuple[str, ...] = ()


def convert_model(
    source: Path,
    *,
    out: Path | None = None,
    name: str | None = None,
    outtype: OuttypeOption = "auto",
    level: str | None = None,
    mmproj_level: str | None = None,
    tensor_types: Sequence[str] = (),
    imatrix: Path | None = None,
    adapter: Path | None = None,
    pre: str | None = None,
    split_max_bytes: int | None = None,
    force: bool = False,
    origin: Source | None = None,
    n_threads: int | None = None,
    progress: Progress = SILENT,
) -> Built:
    """Convert a Hugging Face checkpoint folder into a model directory.

    Args:
        source: folder with config.json, tokenizer and safetensors.
        out: the model directory; None: a folder of the model's name in the current one.
        name: the model's name in file names; None: the source folder's, and the adapter's.
        outtype: "auto" (the checkpoint's own 16-bit type), "f16", "bf16" or "f32".
        level: quantize in the same pass, to a level's name or a profile's path.
        mmproj_level: "F16", "Q8_0", "Q5_K" ...; None: the level's own, or as `outtype`.
        tensor_types: `REGEX=TYPE`, before the level's own rules for the text model.
        imatrix: file of an importance matrix for the level.
        adapter: folder of a PEFT LoRA adapter to merge.
        pre: llama.cpp's name of the pre-tokenizer, where the tokenizer's own is not known.
        split_max_bytes: of tensors in one file of the text model, which becomes several; None: one.
        force: replace what exists.
        origin: repository and commit of checkpoint and adapter, where they are the Hub's.
        n_threads: encoders at work; None: one per processor.
        progress: told the bytes written.

    Raises:
        EdgeVLMError: anything wrong with the source, the options or the output; nothing is written.
    """
    recipe = Recipe(checkpoint=source, adapter=adapter, pre=pre)
    origin = origin or Source()
    name = name or _default_name(recipe, origin)
    # Hashing takes a core that planning leaves idle.
    with _hash_source(recipe, origin) as hashed:
        planned = _plan(
            recipe,
            name=name,
            outtype=outtype,
            level=_chosen(level, tensor_types=tensor_types, imatrix=imatrix),
            mmproj_level=mmproj_level,
        )
        folder = out if out is not None else _default_folder(source, planned.conversion.name)
        before = read_manifest(folder)
        same = before is not None and before.source.recipe() == hashed().recipe()
        if before is not None and not same and not force:
            raise _made_otherwise(folder, before.source, hashed())
        files, kept = _without_kept(planned.files, before if same else None, force=force)
        files = [
            replace(file, max_bytes=split_max_bytes) if file.role == "text" else file
            for file in files
        ]
        with write_models(folder, files, force=force) as output:
            proof: list[TokenizerRecord] = []

            def prove(file: FilePlan, path: Path) -> None:
                if file.role == "text":
                    proof.append(prove_tokenizer(source, path))

            written = write_files(
                output, files, n_threads=n_threads, progress=progress, when_written=prove
            )
            manifest = _manifest(planned.conversion, hashed())
            if same and before is not None:
                kept_records = {"files": before.files, "drift": before.drift}
                manifest = manifest.model_copy(update={**kept_records, "verify": before.verify})
            written = with_projector(written, files, kept)
            manifest = manifest.with_files(written).model_copy(
                update={"tokenizer": proof[0] if proof else None}
            )
            write_manifest(output, manifest)
    return Built(folder=folder, manifest=manifest, written=tuple(written), kept=kept)


def plan_files(
    recipe: Recipe, *, name: str, level: ChosenLevel, mmproj_level: str | None
) -> tuple[FilePlan, ...]:
    """Return what one pass from `recipe` to `level` would write, without writing it."""
    return _plan(recipe, name=name, outtype="auto", level=level, mmproj_level=mmproj_level).files


def _chosen(
    level: str | None, *, tensor_types: Sequence[str], imatrix: Path | None
) -> ChosenLevel | None:
    from edgevlm.build.level import choose_level

    if level is not None:
        return choose_level(level, tensor_types=tensor_types, imatrix=imatrix)
    if tensor_types or imatrix is not None:
        option = "--tensor-type" if tensor_types else "--imatrix"
        raise QuantizationError(f"{option} goes with a level", hint="add `--level LEVEL`")
    return None


@dataclass(frozen=True, kw_only=True)
class _Planned:
    conversion: ConversionPlan
    files: tuple[FilePlan, ...]


def _plan(
    recipe: Recipe,
    *,
    name: str,
    outtype: OuttypeOption,
    level: ChosenLevel | None,
    mmproj_level: str | None,
) -> _Planned:
    from edgevlm.build.level import check_rules_used
    from edgevlm.quantize.encode import mmproj_encoder

    profile = level.profile if level else None
    wanted_mmproj = mmproj_level or (profile.mmproj.type if profile else None)
    encoder = level.encoder() if level else None
    importance = level.projector_importance() if level else None
    projector_encoder = (
        mmproj_encoder(wanted_mmproj, profile=profile, importance=importance)
        if wanted_mmproj
        else None
    )
    conversion = plan_conversion(
        recipe.checkpoint,
        name=name,
        outtype=outtype,
        text_encoder=encoder,
        mmproj_encoder=projector_encoder,
        class_token_first=_class_token_first,
        reads_norm_epsilon=_reads_norm_epsilon,
        adapter=recipe.adapter,
        pre=recipe.pre,
    )
    text_level = profile.name if profile else _float_level(conversion.text)
    projector_level = (
        projector_encoder.level if projector_encoder else _float_level(conversion.mmproj)
    )
    files = (
        FilePlan(
            name=file_name(conversion.name, "text", text_level),
            role="text",
            level=text_level,
            profile=profile.name if profile else None,
            plan=conversion.text,
            encoder=encoder,
            imatrix=level.record_of(encoder, conversion.text) if level else None,
        ),
        FilePlan(
            name=file_name(conversion.name, "mmproj", projector_level),
            role="mmproj",
            level=projector_level,
            profile=profile_name(projector_encoder),
            plan=conversion.mmproj,
            encoder=projector_encoder,
            imatrix=level.record_of(projector_encoder, conversion.mmproj) if level else None,
        ),
    )
    if profile is not None:
        check_rules_used(profile, files)
    return _Planned(conversion=conversion, files=files)


def _class_token_first(projector: str) -> bool:
    # Asked for towers with a class token alone: llama.cpp's libraries are loaded for it.
    from edgevlm.runtime.class_token import class_token_first

    return class_token_first(projector)


def _reads_norm_epsilon(architecture: str) -> bool:
    from edgevlm.runtime.norm_epsilon import reads_norm_epsilon

    return reads_norm_epsilon(architecture)


def _float_level(plan: GGUFPlan) -> str:
    level = FILE_TYPES[int(str(plan.metadata["general.file_type"].value))]
    if level not in FLOAT_LEVELS:
        raise ValueError(f"the converter wrote the file type {level} without an encoder")
    return level


def _default_name(recipe: Recipe, origin: Source) -> str:
    """Return the repository's name or the folder's; with an adapter the model is another."""
    name = (origin.repo or recipe.checkpoint.resolve().as_posix()).rpartition("/")[2]
    if recipe.adapter is None:
        return name
    repo = origin.adapter.repo if origin.adapter else None
    adapter = (repo or recipe.adapter.resolve().as_posix()).rpartition("/")[2]
    return f"{name}-{adapter}"


def _default_folder(source: Path, name: str) -> Path:
    folder = Path(name)
    return Path(f"{name}-gguf") if folder.absolute() == source.absolute() else folder


def _without_kept(
    files: Sequence[FilePlan], before: Manifest | None, *, force: bool
) -> tuple[list[FilePlan], tuple[str, ...]]:
    """Leave out a projector that an earlier run made from the same checkpoint."""
    known = {entry.name for entry in before.files} if before and not force else set[str]()
    kept = tuple(file.name for file in files if file.role == "mmproj" and file.name in known)
    return [file for file in files if file.name not in kept], kept


def _made_otherwise(folder: Path, before: Source, now: Source) -> OutputExistsError:
    """Return the error of a folder whose model was made from something else than is asked now."""
    with_adapter = (
        before.adapter and f"with the adapter `{before.adapter.repo or before.adapter.path}`"
    )
    if before.sha256 != now.sha256:
        what = f"a model from another checkpoint (`{before.repo or before.path}`)"
    elif (before.adapter and before.adapter.sha256) != (now.adapter and now.adapter.sha256):
        what = f"this checkpoint {with_adapter or 'without an adapter'}"
    else:
        own = "the tokenizer's own pre-tokenizer"
        what = f"this checkpoint with {f'the pre-tokenizer {before.pre}' if before.pre else own}"
    return OutputExistsError(
        f"`{folder}` holds {what}",
        hint="choose another folder with --out, or give --force to replace it",
    )


def _manifest(conversion: ConversionPlan, source: Source) -> Manifest:
    ledger = conversion.ledger
    return Manifest(
        name=conversion.name,
        family=conversion.family,
        source=source,
        files=[],
        ledger=LedgerRecord(
            n_source_tensors=ledger.n_source_tensors,
            used={name: list(targets) for name, targets in ledger.used.items()},
            dropped=dict(ledger.dropped),
            n_adapter_tensors=sum(len(names) for names in conversion.adapted.values()),
            n_dequantized=len(conversion.dequantized),
            adapted={name: list(names) for name, names in conversion.adapted.items()},
        ),
        versions=tool_versions(),
        losses=list(conversion.losses),
    )


def tool_versions() -> dict[str, str]:
    """Return the versions that decide what a conversion writes."""
    from importlib.metadata import version

    from edgevlm import __version__

    names = ("gguf", "llama-cpp-python", "numpy", "tokenizers")
    return {"edgevlm": __version__, **{name: version(name) for name in names}}


@contextmanager
def _hash_source(recipe: Recipe, origin: Source) -> Generator[Callable[[], Source]]:
    """Hash checkpoint and adapter beside the conversion; the value waits for the hashes."""
    stopped = Event()

    def described() -> Source:
        update: dict[str, object] = {
            "path": str(recipe.checkpoint.resolve()),
            "sha256": source_hashes(recipe.checkpoint, stopped),
            "adapter": None,
            "pre": recipe.pre,
        }
        if recipe.adapter is not None:
            hashes = adapter_hashes(recipe.adapter, stopped)
            update["adapter"] = (origin.adapter or AdapterSource()).model_copy(
                update={"path": str(recipe.adapter.resolve()), "sha256": hashes}
            )
        return origin.model_copy(update=update)

    with ThreadPoolExecutor(1, thread_name_prefix="edgevlm-hash") as executor:
        future: Future[Source] = executor.submit(described)
        try:
            yield future.result
        finally:
            stopped.set()
