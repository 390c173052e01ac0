"""`edgevlm families`: what can be converted."""

from __future__ import annotations

from edgevlm.cli import options


def families(json: options.JsonOption = False) -> None:
    """List the VLM families that `edgevlm convert` takes."""
    from edgevlm_convert.families import FAMILIES

    from edgevlm.cli import console

    if json:
        console.print_json(
            [
                {
                    "name": family.name,
                    "architectures": list(family.architectures),
                    "projector": family.projector.type,
                }
                for family in FAMILIES
            ]
        )
        return
    console.table(
        ("family", "architectures in config.json", "projector"),
        [
            (family.name, ", ".join(family.architectures), family.projector.type)
            for family in FAMILIES
        ],
    )
