"""`edgevlm convert`: a Hugging Face checkpoint becomes GGUF, and quantized GGUF, in one pass."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgevlm.cli import options
from edgevlm.cli.verify import AgainstOption, ImagesOption


class OutType(StrEnum):
    """Float types of a conversion."""

    AUTO = "auto"
    F16 = "f16"
    BF16 = "bf16"
    F32 = "f32"


OUTTYPES: dict[OutType, Literal["auto", "f16", "bf16", "f32"]] = {
    OutType.AUTO: "auto",
    OutType.F16: "f16",
    OutType.BF16: "bf16",
    OutType.F32: "f32",
}


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Checkpoint folder (config.json, tokenizer and safetensors), or a repository of "
            "the Hub: ORG/NAME, ORG/NAME@REVISION or its address.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Model directory to write (default: NAME in the current folder).",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="The model's name in file names (default: the folder's, and the adapter's).",
            show_default=False,
        ),
    ] = None,
    outtype: Annotated[
        OutType,
        typer.Option("--outtype", help="Float type; auto keeps the checkpoint's own 16-bit type."),
    ] = OutType.AUTO,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="DIR",
            help="LoRA adapter to merge: a folder that peft saved, or a repository of the Hub.",
            show_default=False,
        ),
    ] = None,
    level: options.LevelOption = None,
    mmproj_level: options.MmprojLevelOption = None,
    tensor_type: options.TensorTypeOption = None,
    imatrix: options.ImatrixOption = None,
    pre: Annotated[
        str | None,
        typer.Option(
            "--pre",
            metavar="NAME",
            help="llama.cpp's name of the pre-tokenizer, where the tokenizer's own is not known.",
            show_default=False,
        ),
    ] = None,
    split_max_size: Annotated[
        str | None,
        typer.Option(
            "--split-max-size",
            metavar="SIZE",
            help="Split the text model into files of at most SIZE bytes of tensors, such as 2G or "
            "500M (a G is 10^9 bytes, a GiB 2^30); a tensor that is larger has a file of its own.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check what was written as `edgevlm verify` does; exit status 3 when a stage "
            "fails.",
        ),
    ] = False,
    against: AgainstOption = None,
    image: ImagesOption = None,
    threads: options.ThreadsOption = None,
    force: options.ForceOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Convert a checkpoint to GGUF; nothing lost, no torch.

    Writes the text model, the projector (mmproj) and a manifest into a model directory.
    With `--level` the quantized files are written in the same pass, with no 16-bit file between.
    With `--verify` (or `--against`) the files are loaded and checked once they are written.
    """
    from functools import partial
    from time import perf_counter

    from edgevlm_convert.vocabulary.pre_tokenizers import choose_pre_tokenizer

    from edgevlm.build.cache import remember_model
    from edgevlm.build.convert import convert_model
    from edgevlm.build.source import find_adapter, find_checkpoint
    from edgevlm.cli import console
    from edgevlm.cli.built import show_built
    from edgevlm.cli.verify import show_report, verify_built
    from edgevlm.files import human_bytes
    from edgevlm.manifest import Source
    from edgevlm.native.peak_memory import peak_memory_n_bytes

    if level is not None and outtype is not OutType.AUTO:
        raise typer.BadParameter("--outtype names a float file; with --level leave it out")
    max_bytes = options.parse_size(split_max_size) if split_max_size is not None else None
    if max_bytes == 0:
        raise typer.BadParameter("--split-max-size must be more than 0")
    if pre is not None:
        # Before anything is downloaded.
        choose_pre_tokenizer(None, ignore_merges=False, name=pre)
    progress = console.progress_for(json=json, quiet=quiet)
    note = partial(console.note, quiet=quiet or json)
    tuned = find_adapter(adapter, progress=progress, note=note) if adapter else None
    checkpoint = find_checkpoint(source, progress=progress, note=note)
    origin = checkpoint.origin or Source()
    if tuned is not None:
        origin = origin.model_copy(update={"adapter": tuned.origin})
    start = perf_counter()
    built = convert_model(
        checkpoint.folder,
        out=out,
        name=name,
        outtype=OUTTYPES[outtype],
        level=level,
        mmproj_level=mmproj_level,
        tensor_types=tensor_type or (),
        imatrix=imatrix,
        adapter=tuned and tuned.folder,
        pre=pre,
        split_max_bytes=max_bytes,
        force=force,
        origin=origin,
        n_threads=threads,
        progress=progress,
    )
    remember_model(str(built.folder.absolute()))
    seconds, peak = perf_counter() - start, peak_memory_n_bytes()
    report = None
    if verify or against is not None:
        report = verify_built(
            built, against=against, images=image, threads=threads, progress=progress, note=note
        )
    show_built(
        built,
        json=json,
        quiet=quiet,
        seconds=seconds,
        ledger=True,
        peak_bytes=peak,
        report=report,
    )
    largest = max((part.n_bytes for entry in built.written for part in entry.parts), default=0)
    if human_bytes(largest) != human_bytes(min(largest, max_bytes or largest)) and not json:
        console.note(
            f"the largest file has {human_bytes(largest)}: no tensor is divided, and metadata come "
            "on top of the tensors",
            quiet=quiet,
        )
    if report is not None and not json:
        show_report(report, quiet=quiet)
    if report is not None and report.verdict == "fail":
        raise typer.Exit(3)
    if not json:
        console.note(f"next: edgevlm chat IMAGE -m {built.folder}", quiet=quiet)
