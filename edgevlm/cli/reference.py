"""`edgevlm reference`: what transformers computes, kept in a file for `edgevlm verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgevlm.cli import options


def reference(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="Folder of a Hugging Face checkpoint.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="REF.npz", help="The file to write.")],
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            "--image",
            metavar="DIR|FILE",
            help="Images to ask about, or a folder of them; may be given several times.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, max=4096, help="Tokens of each answer.")
    ] = 16,
    force: options.ForceOption = False,
    json: options.JsonOption = False,
    quiet: options.QuietOption = False,
    verbose: options.VerboseOption = False,
) -> None:
    """Run a checkpoint in transformers and keep its answers, distributions and embeddings.

    Needs `pip install 'edgevlm[verify]'` (torch and transformers), and memory for the weights in
    float32. The file can be made on a large machine and used on a small one.
    """
    from edgevlm.cli import console
    from edgevlm.errors import OutputExistsError
    from edgevlm.files import write_together
    from edgevlm.reference_file import write_reference
    from edgevlm.verify.images import load_images
    from edgevlm.verify.questions import stock_questions
    from edgevlm.verify.transformers_model import make_reference

    if out.exists() and not force:
        raise OutputExistsError(f"`{out}` exists", hint="give --force to replace it")
    loaded = load_images(images or [])
    made = make_reference(
        checkpoint,
        stock_questions(loaded),
        n_positions=tokens,
        progress=console.progress_for(json=json, quiet=quiet),
    )
    with write_together(
        out.absolute().parent, names=[out.name], n_bytes=1 << 20, force=force
    ) as output:
        write_reference(output.create(out.name), made)
    n_positions = sum(len(case.answer) for case in made.cases)
    if json:
        console.print_json(
            {
                "file": str(out),
                "made_by": made.made_by,
                "prompts": [case.name for case in made.cases],
                "positions": n_positions,
            }
        )
        return
    console.note(
        f"wrote {out}: {len(made.cases)} prompts, {len(loaded)} images, {n_positions} positions"
        f" ({made.made_by})",
        quiet=quiet,
    )
    console.note(f"next: edgevlm verify MODEL --against {out} --image ...", quiet=quiet)
