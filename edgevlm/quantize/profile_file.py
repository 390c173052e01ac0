"""Read profiles: those that edgevlm brings, a user's TOML file, and what they extend."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import cast

from edgevlm.errors import ProfileError
from edgevlm.ggml_types import FILE_TYPES
from edgevlm.quantize.profile import (
    IMATRIX,
    MMPROJ_LEVELS,
    MMPROJ_ROLES,
    ROLES,
    WEIGHT_TYPES,
    Budget,
    ProjectorProfile,
    QuantProfile,
    Rule,
)
from edgevlm.quantize.stock_models import WIDE, bits_per_weight

_LAYERS = re.compile(r"all|more|first_8th|first_16th|first_8th_counted|first_[1-9]\d{0,3}")
_FORM_HINT = "`edgevlm profiles` lists complete profiles to start from"
_MAX_FILE_BYTES = 1 << 20
_MAX_EXTENDS = 8
_MAX_PATTERN = 1000


def profile_names() -> list[str]:
    """Return the names of the profiles that edgevlm brings, the fewest bits first."""
    profiles = [_read(path) for path in profile_folder().glob("*.toml")]
    return [profile.name for profile in sorted(profiles, key=_bits)]


def _bits(profile: QuantProfile) -> tuple[float, str]:
    return bits_per_weight(profile, WIDE), profile.name


def profile_folder() -> Path:
    """Return the folder of the profiles: inside the wheel, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "quant_profiles"
    return inside if inside.is_dir() else package.parent / "quant_profiles"


def load_profile(level: str) -> QuantProfile:
    """Return the profile of a level's name (any case) or of a TOML file's path.

    Raises:
        ProfileError: no such level or file, or the file has an unknown key, type, role or value.
    """
    if level.endswith(".toml"):
        path = Path(level)
        if not path.is_file():
            raise ProfileError(f"there is no profile `{level}`", hint="check the path")
        return _read(path)
    brought = _brought(level)
    if brought is not None:
        return _read(brought)
    names = profile_names()
    by_upper = {name.upper(): name for name in names}
    near = [by_upper[name] for name in get_close_matches(level.upper(), by_upper, n=1)]
    raise ProfileError(
        f"there is no level `{level}`",
        hint=(f"did you mean {near[0]}? " if near else "") + f"known levels: {', '.join(names)}",
    )


def with_tensor_types(profile: QuantProfile, overrides: Sequence[str]) -> QuantProfile:
    """Return a profile whose first rules for the text model are `REGEX=TYPE`.

    It has another name: its files are no longer what the level's name says.

    Raises:
        ProfileError: an override has another form, an unknown type or a broken expression.
    """
    if not overrides:
        return profile
    rules = tuple(_override(text) for text in overrides)
    return replace(
        profile,
        name=f"{profile.name}-custom",
        rules=(*rules, *profile.rules),
        expected=(*rules, *profile.expected),
    )


def _override(text: str) -> Rule:
    pattern, equals, type_ = text.rpartition("=")
    example = "such as --tensor-type 'ffn_down=Q6_K'"
    if not equals or not pattern:
        raise ProfileError(f"`{text}` is not REGEX=TYPE", hint=example)
    if type_.upper() not in WEIGHT_TYPES:
        known = ", ".join(WEIGHT_TYPES)
        raise ProfileError(f"`{text}`: `{type_}` is no tensor type", hint=f"one of: {known}")
    fault = _pattern_fault(pattern)
    if fault:
        raise ProfileError(f"`{text}`: the expression {fault}", hint=example)
    return Rule(tensor=pattern, type=type_.upper())


def _pattern_fault(pattern: str) -> str:
    if len(pattern) > _MAX_PATTERN:
        return f"has {len(pattern)} characters, more than {_MAX_PATTERN}"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is broken: {error}"
    return ""


def _brought(level: str) -> Path | None:
    for path in profile_folder().glob("*.toml"):
        if path.stem.upper() == level.upper():
            return path
    return None


def _read(path: Path, *, n_extended: int = 0) -> QuantProfile:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ProfileError(f"`{path}` has more than {_MAX_FILE_BYTES} bytes", hint=_FORM_HINT)
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProfileError(f"`{path}` is not TOML: {error}", hint="mend its syntax") from None
    except OSError as error:
        raise ProfileError(f"cannot read `{path}`: {error.strerror}") from None
    return _profile(_Table(document, path), n_extended=n_extended)


class _Table:
    """A TOML table whose keys are taken one by one; what is left over is unknown."""

    def __init__(self, table: object, path: Path, where: str = "") -> None:
        self.path = path
        self.where = where
        if not isinstance(table, dict):
            raise ProfileError(f"`{path}`: `{where}` is not a table", hint=_FORM_HINT)
        self.left = dict(cast(dict[str, object], table))

    def error(self, key: str, problem: str, hint: str = "") -> ProfileError:
        """Return the error of one key of this file."""
        return ProfileError(
            f"`{self.path}`: `{self.where}{key}` {problem}", hint=hint or _FORM_HINT
        )

    def take(self, key: str) -> object:
        """Return the value of an optional key, None when it is absent."""
        return self.left.pop(key, None)

    def text(self, key: str, choices: tuple[str, ...] = (), default: str | None = None) -> str:
        """Return a string, one of `choices` when there are any."""
        value = self.left.pop(key, default)
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, str) or not value:
            raise self.error(key, "is not a string")
        if choices and value not in choices:
            raise self.error(key, f"is `{value}`", f"one of: {', '.join(choices)}")
        return value

    def whole(self, key: str) -> int | None:
        """Return a number of at least 1, None when it is absent."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, f"is {value!r}", "a whole number of at least 1")
        return value

    def number(self, key: str) -> float | None:
        """Return a number of at least 0, None when it is absent."""
        value = self.take(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
            raise self.error(key, f"is {value!r}", "a number of at least 0")
        return float(value)

    def table(self, key: str) -> _Table:
        """Return a sub-table, an empty one when it is absent."""
        return _Table(self.left.pop(key, {}), self.path, f"{self.where}{key}.")

    def end(self) -> None:
        """Raise for the first key that nobody took."""
        for key in self.left:
            raise self.error(key, "is an unknown key")


def _profile(table: _Table, *, n_extended: int) -> QuantProfile:
    base = _extended(table, n_extended)
    name = table.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise table.error("name", f"is `{name}`", "letters, digits, `.`, `_` and `-`")
    rules, mmproj_table = _rules(table, ROLES), table.table("mmproj")
    mmproj_type = mmproj_table.text(
        "type", MMPROJ_LEVELS, default=base.mmproj.type if base else "Q8_0"
    )
    mmproj_rules = _rules(mmproj_table, MMPROJ_ROLES)
    is_own = table.path.parent != profile_folder()
    profile = QuantProfile(
        name=name,
        description=table.text("description"),
        file_type=table.text(
            "file_type", tuple(FILE_TYPES.values()), default=base.file_type if base else None
        ),
        type=table.text("type", WEIGHT_TYPES, default=base.type if base else None),
        rules=(*rules, *(base.rules if base else ())),
        fallback=MappingProxyType({**(base.fallback if base else {}), **_fallback(table)}),
        mmproj=ProjectorProfile(
            type=mmproj_type, rules=(*mmproj_rules, *(base.mmproj.rules if base else ()))
        ),
        budget=_budget(table.table("budget"), base.budget if base else Budget()),
        expected=tuple(rule for rule in (*rules, *mmproj_rules) if not rule.is_conditional)
        if is_own
        else (),
    )
    mmproj_table.end()
    table.end()
    return profile


def _extended(table: _Table, n_extended: int) -> QuantProfile | None:
    """Return the profile that this one extends: a level, or a file beside it."""
    if "extends" not in table.left:
        return None
    extends = table.text("extends")
    if n_extended == _MAX_EXTENDS:
        raise table.error(
            "extends", f"goes on after {_MAX_EXTENDS} files", "does it go in circles?"
        )
    path = _brought(extends)
    if path is None and extends.endswith(".toml"):
        path = table.path.parent / extends
    if path is None or not path.is_file():
        hint = f"a level or a .toml file beside this one; levels: {', '.join(profile_names())}"
        raise table.error("extends", f"is `{extends}`, which is not there", hint)
    return _read(path, n_extended=n_extended + 1)


def _fallback(table: _Table) -> dict[str, str]:
    fallback = table.table("fallback")
    types = {key: fallback.text(key, WEIGHT_TYPES) for key in list(fallback.left)}
    for key in types:
        if key not in WEIGHT_TYPES:
            raise fallback.error(key, "is an unknown tensor type")
    return types


def _rules(table: _Table, roles: tuple[str, ...]) -> tuple[Rule, ...]:
    rules = table.take("rules")
    if rules is None:
        return ()
    if not isinstance(rules, list):
        raise table.error("rules", "is not a list")
    items = cast(list[object], rules)
    return tuple(
        _rule(_Table(item, table.path, f"{table.where}rules[{index}]."), roles)
        for index, item in enumerate(items)
    )


def _rule(table: _Table, roles: tuple[str, ...]) -> Rule:
    layers = table.text("layers", default="all")
    if not _LAYERS.fullmatch(layers):
        choices = "one of: all, more, first_8th, first_16th, first_N"
        raise table.error("layers", f"is `{layers}`", choices)
    if not {"role", "tensor"} & set(table.left):
        raise table.error("role", "is missing", "a rule names tensors by `role` or `tensor`")
    tensor = table.text("tensor") if "tensor" in table.left else None
    fault = _pattern_fault(tensor) if tensor is not None else ""
    if fault:
        raise table.error("tensor", f"{fault}", "a regular expression, searched for in the name")
    rule = Rule(
        role=table.text("role", roles) if "role" in table.left else None,
        tensor=tensor,
        type=table.text("type", WEIGHT_TYPES),
        layers=layers,
        gqa_min=table.whole("gqa_min"),
        experts=table.whole("experts"),
        experts_min=table.whole("experts_min"),
        imatrix=table.text("imatrix", IMATRIX, default="any"),
        fallback=table.text("fallback", WEIGHT_TYPES) if "fallback" in table.left else None,
    )
    table.end()
    return rule


def _budget(table: _Table, base: Budget) -> Budget:
    own = {field.name: table.number(field.name) for field in fields(Budget)}
    budget = replace(base, **{name: value for name, value in own.items() if value is not None})
    if budget.same_top_token is not None and budget.same_top_token > 1:
        raise table.error("same_top_token", f"is {budget.same_top_token}", "a share from 0 to 1")
    table.end()
    return budget
