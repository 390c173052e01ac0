"""`edgevlm profiles`: the levels, and what each means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevlm.cli import options

if TYPE_CHECKING:
    from edgevlm.quantize.profile import QuantProfile


def profiles(json: options.JsonOption = False) -> None:
    """List the levels that `--level` takes."""
    from edgevlm.cli import console
    from edgevlm.quantize.profile_file import load_profile, profile_folder, profile_names

    known = [load_profile(name) for name in profile_names()]
    if json:
        console.print_json([_document(profile) for profile in known])
        return
    console.table(
        ("level", "matrices", "what it means"),
        [(profile.name, _types(profile), profile.description) for profile in known],
    )
    console.note(f"\nthe files, to start one of your own from: {profile_folder()}")


def _types(profile: QuantProfile) -> str:
    """The main type, then those that rules add for single tensors of a dense model."""
    rules = [rule.type for rule in profile.rules if rule.experts is None]
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
