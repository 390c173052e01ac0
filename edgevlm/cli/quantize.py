"""`edgevlm quantize`: a 16-bit model gets a smaller level beside it."""

from __future__ import annotations

from typing import Annotated

import typer

from edgevlm.cli import options


def quantize(
    level: Annotated[
        str,
        typer.Option(
            "--level",
            metavar="LEVEL|FILE.toml",
            help="Level to make, such as Q4_K_M; `edgevlm profiles` lists them.",
            show_default=False,
        ),
    ],
    model: options.ModelArgument = None,
    mmproj_level: options.MmprojLevelOption = None,
    tensor_type: options.TensorTypeOption = None,
    imatrix: options.ImatrixOption = None,
    mmproj: options.MmprojOption = None,
    allow_requantize: Annotated[
        bool,
        typer.Option(
            "--allow-requantize",
            help="Make the level from a quantized file where there is no 16-bit one and no "
            "checkpoint: the error of both adds up.",
        ),
    ] = False,
    threads: options.ThreadsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be written; write nothing.")
    ] = False,
    force: options.ForceOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Make a smaller level of a 16-bit model.

    The text model gets LEVEL, the projector Q8_0 or what --mmproj-level says; both are written
    beside the source.
    """
    from functools import partial
    from time import perf_counter

    from edgevlm.build.cache import remember_model
    from edgevlm.build.quantize import plan_quantization, quantize_model
    from edgevlm.build.resolve import open_source
    from edgevlm.cli import console
    from edgevlm.cli.built import show_built, show_plan

    start = perf_counter()
    progress = console.progress_for(json=json, quiet=quiet)
    note = partial(console.note, quiet=quiet or json)
    directory, text = open_source(
        model, allow_requantize=allow_requantize, progress=progress, note=note
    )
    plan = plan_quantization(
        directory,
        level=level,
        text=text,
        mmproj=mmproj,
        mmproj_level=mmproj_level,
        tensor_types=tensor_type or (),
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        force=force,
    )
    for sentence in (*directory.skipped, *plan.notes):
        note(sentence)
    if dry_run:
        show_plan(plan.files, json=json)
        return
    built = quantize_model(
        plan,
        force=force,
        n_threads=threads,
        progress=progress,
    )
    if model is not None:
        named = text or directory.folder.absolute()
        remember_model(model if model == "shapes" else str(named))
    show_built(built, json=json, quiet=quiet, seconds=perf_counter() - start, ledger=False)
