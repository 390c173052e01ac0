"""`edgevlm profiles`: the levels, and what each means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.cli import options

if TYPE_CHECKING:
    from edgevlm.quantize.profile import QuantProfile


def profiles(json: options.JsonOption = False) -> None:
    """List the levels that `--level` takes, the fewest bits first.

    Bits per weight are those of a text model of 2 B parameters, whose rows divide by 256, and of
    one of 500 M, whose rows do not: there a level keeps more than its name says.
    """
    from edgevlm.cli import console
    from edgevlm.quantize.profile_file import load_profile, profile_folder, profile_names
    from edgevlm.quantize.stock_models import NARROW, WIDE, bits_per_weight

    known = [load_profile(name) for name in profile_names()]
    bits = [[bits_per_weight(profile, model) for model in (WIDE, NARROW)] for profile in known]
    if json:
        console.print_json(
            [
                {
                    **_document(profile),
                    "bits_per_weight": {
                        WIDE.name: round(both[0], 3),
                        NARROW.name: round(both[1], 3),
                    },
                }
                for profile, both in zip(known, bits, strict=True)
            ]
        )
        return
    console.table(
        ("level", f"bits, {WIDE.name}", f"bits, {NARROW.name}", "matrices", "what it means"),
        [
            (profile.name, *(f"{one:.1f}" for one in both), _types(profile), profile.description)
            for profile, both in zip(known, bits, strict=True)
        ],
    )
    console.note(
        "\nbits per weight of a model of 2 B, whose rows divide by 256, and of one of 500 M, whose"
        " rows do not;\n`edgevlm quantize MODEL --level LEVEL --dry-run` tells your model's"
        f"\nthe files, to start one of your own from: {profile_folder()}"
    )


def _types(profile: QuantProfile) -> str:
    """The main type, then those that rules add for single tensors of a dense model."""
    rules = [rule.type for rule in profile.rules if not rule.is_conditional]
    return ", ".join(dict.fromkeys([profile.type, *rules]))


def _document(profile: QuantProfile) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "name": profile.name,
        "description": profile.description,
        "file_type": profile.file_type,
        "type": profile.type,
        "rules": [asdict(rule) for rule in profile.rules],
        "fallback": dict(profile.fallback),
        "mmproj": asdict(profile.mmproj),
        "budget": asdict(profile.budget),
    }
