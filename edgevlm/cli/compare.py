"""`edgevlm compare`: what each level lost, where, and whether it is within what is acceptable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgevlm.drift.questions import QuestionSet
    from edgevlm.drift.report import DriftReport
    from edgevlm.model_dir import ModelDir

EXCEEDED = 3


def compare(
    model: options.ModelArgument = None,
    levels: Annotated[
        str,
        typer.Option(
            "--levels",
            metavar="LEVEL,...",
            help="Levels or profiles to compare; what is missing is made for it (default: the "
            "quantized ones that are there, else Q8_0, Q5_K_M and Q4_K_M).",
            show_default=False,
        ),
    ] = "",
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="LEVEL",
            help="What they are held against (default: the text model of 16 or 32 bits).",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            metavar="DIR",
            help="Folder of images like those the model will see; each is asked about three times.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE.jsonl",
            help='Questions in place of those, a line each: {"image": "a.png", "prompt": "...", '
            '"answer": "..."}; also "images", "keywords" and "kind".',
            show_default=False,
        ),
    ] = None,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers", help="Lead the models along the prompts' answers, not the baseline's."
        ),
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            metavar="REF.npz",
            help="What transformers computed (`edgevlm reference`): adds the drift of the "
            "conversion; its images lie in --images.",
            show_default=False,
        ),
    ] = None,
    save_baseline: Annotated[
        Path | None,
        typer.Option(
            "--save-baseline",
            metavar="FILE",
            help="Keep what the baseline says, to hold another version of the runtime against it.",
            show_default=False,
        ),
    ] = None,
    against_baseline: Annotated[
        Path | None,
        typer.Option(
            "--against-baseline",
            metavar="FILE",
            help="Compare with a saved baseline: this runtime's own 16 bits first.",
            show_default=False,
        ),
    ] = None,
    max_kld: Annotated[
        float | None,
        typer.Option(
            "--max-kld",
            min=0,
            help="Largest mean KLD in nats (default: the profile's budget).",
            show_default=False,
        ),
    ] = None,
    min_same_top: Annotated[
        float | None,
        typer.Option(
            "--min-same-top",
            min=0,
            max=1,
            help="Least share of positions with the same top token (default: the profile's).",
            show_default=False,
        ),
    ] = None,
    max_different: Annotated[
        float | None,
        typer.Option(
            "--max-different",
            min=0,
            max=1,
            help="Largest share of different answers (default: 0.1).",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of an answer at most.")
    ] = 128,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the intervals' bootstrap.")] = 0,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write the report as one page (needs edgevlm[report]).",
            show_default=False,
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table for a model card.")
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Find out which blocks and roles of the text model drift most, one by one: takes "
            "a model file and 16 prompts for each.",
        ),
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Write levels that are made into the model directory.")
    ] = False,
    mmproj: options.MmprojOption = None,
    ctx: Annotated[
        int | None,
        typer.Option(
            "--ctx",
            min=1,
            help="Context length n_ctx in tokens (default: what the prompts need).",
            show_default=False,
        ),
    ] = None,
    threads: options.ThreadsOption = None,
    device: options.DeviceOption = "auto",
    gpu_layers: options.GpuLayersOption = None,
    force: options.ForceOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Measure what levels lose against 16 bits, with images.

    Every level is led along the baseline's answers and answers by itself: how far its
    distributions are (KLD), how many answers change, how many are still right, which part is to
    blame, and what it costs. Exits with 3 when a level is beyond its limits. What was measured is
    kept in the cache: an interrupted run goes on.
    """
    from functools import partial

    from edgevlm.build.resolve import open_source
    from edgevlm.cli import console
    from edgevlm.cli.compare_show import show_report
    from edgevlm.drift.keep_report import keep_report
    from edgevlm.drift.passes import Leading
    from edgevlm.drift.run import CompareOptions
    from edgevlm.drift.run import compare as measure
    from edgevlm.drift.verdict import Limits

    if json and markdown:
        raise typer.BadParameter("--json and --markdown both print to stdout: choose one")
    if against_baseline is not None and (reference is not None or save_baseline is not None):
        raise typer.BadParameter(
            "--against-baseline takes neither --reference nor --save-baseline: it has answers alone"
        )
    if save_baseline is not None:
        _check_new(save_baseline, force=force)
    progress = console.progress_for(json=json, quiet=quiet)
    note = partial(console.note, quiet=quiet or json)
    write_page = _page_writer(html, force=force) if html is not None else None
    directory, named = open_source(model, progress=progress, note=note)
    asked = _questions(
        directory, images=images, prompts=prompts, reference=reference, answers=answers, note=note
    )
    try:
        report = measure(
            directory,
            asked,
            CompareOptions(
                levels=[part.strip() for part in levels.split(",") if part.strip()],
                baseline=baseline,
                mmproj=mmproj,
                leading=Leading(along="expected" if answers else "baseline", max_tokens=max_tokens),
                n_ctx=ctx,
                n_threads=threads,
                device=device,
                gpu_layers=gpu_layers,
                keep=keep,
                layers=layers,
                against=against_baseline,
                save=save_baseline,
                seed=seed,
                limits=Limits(
                    max_kld=max_kld, min_same_top=min_same_top, max_different=max_different
                ),
            ),
            named=named,
            progress=progress,
        )
    except KeyboardInterrupt:
        note("what was measured is kept: the same command goes on behind it")
        raise
    lost = keep_report(directory, report) if against_baseline is None else None
    if lost is not None:
        note(lost)
    if save_baseline is not None:
        note(f"wrote {save_baseline}")
    if write_page is not None:
        write_page(report)
        note(f"wrote {html}")
    if json:
        console.print_json(report.model_dump())
    elif markdown:
        from edgevlm.drift.markdown import render_markdown

        console.out().print(render_markdown(report), markup=False, soft_wrap=True)
    else:
        show_report(report)
    if report.exceeds:
        raise typer.Exit(EXCEEDED)


def _questions(
    directory: ModelDir,
    *,
    images: Path | None,
    prompts: Path | None,
    reference: Path | None,
    answers: bool,
    note: Callable[[str], None],
) -> QuestionSet:
    from edgevlm.drift.prompts import built_in_prompts
    from edgevlm.drift.questions import gather
    from edgevlm.errors import PromptError
    from edgevlm.reference_file import read_reference

    if prompts is None and images is None and reference is None:
        name = directory.manifest.name if directory.manifest else str(directory.folder)
        prompts = built_in_prompts(name, purpose="compare")
    asked = gather(
        images=images,
        prompts=prompts,
        reference=read_reference(reference) if reference is not None else None,
        note=note,
    )
    if answers and any(one.expected is None and one.case is None for one in asked.questions):
        raise PromptError(
            f"{asked.source} has prompts without an answer", hint="leave out --answers"
        )
    return asked


def _page_writer(path: Path, *, force: bool) -> Callable[[DriftReport], None]:
    """Return what writes the page, after checks that must not wait until all is measured."""
    from edgevlm.drift.canvas import require_matplotlib
    from edgevlm.drift.html import render_html

    require_matplotlib()
    _check_new(path, force=force)

    def write(report: DriftReport) -> None:
        from edgevlm.files import write_together

        page = render_html(report).encode()
        with write_together(
            path.absolute().parent, names=[path.name], n_bytes=len(page), force=True
        ) as output:
            output.create(path.name).write_bytes(page)

    return write


def _check_new(path: Path, *, force: bool) -> None:
    """Raise before minutes are spent, where a file exists or has no folder."""
    from edgevlm.errors import OutputError, OutputExistsError

    if path.exists() and not force:
        raise OutputExistsError(f"`{path}` exists already", hint="give --force to replace it")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"there is no folder `{path.absolute().parent}`", hint="make it first")
