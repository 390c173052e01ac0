"""`edgevlm families`: what can be converted."""

from __future__ import annotations

from edgevlm.cli import options


def families(json: options.JsonOption = False) -> None:
    """List the VLM families that `edgevlm convert` takes, and what each was checked against."""
    from edgevlm_convert.families import FAMILIES

    from edgevlm.cli import console

    if json:
        console.print_json(
            [
                {
                    "name": family.name,
                    "architectures": list(family.architectures),
                    "text_models": [text.name for text in family.text_models],
                    "projector": family.projector.type,
                    "status": family.status,
                }
                for family in FAMILIES
            ]
        )
        return
    console.table(
        ("family", "architectures in config.json", "checked"),
        [(family.name, "\n".join(family.architectures), family.status) for family in FAMILIES],
    )
