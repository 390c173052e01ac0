"""Quantization profiles: TOML files that say which tensor gets which type.

    name = "Q4_K_M"
    description = "one sentence for `edgevlm profiles`"
    file_type = "Q4_K_M"               # what `general.file_type` will say
    type = "Q4_K"                      # every matrix that no rule names
    rules = [                          # in order, the first match wins
        { role = "output", type = "Q6_K" },
        { role = "attn_v", layers = "more", type = "Q6_K" },
    ]
    [fallback]                         # when rows do not divide by a type's block
    Q4_K = "Q5_0"
    [mmproj]                           # the projector: a type and rules of the same form
    type = "Q8_0"
    [budget]                           # the drift that is acceptable
    mean_kld = 0.05

Roles: token_embd, output (also the token embedding of a tied model), attn_q, attn_k, attn_v,
attn_qkv, attn_output, ffn_gate, ffn_up, ffn_down, experts (the ffn tensors of a mixture of
experts), other. Layers: all; more (the first and the last eighth and every third between, as
llama.cpp's K_M mixtures choose); first_8th; first_16th; first_N. A rule may ask for `gqa_min`
(query heads per key head), `experts` (their number) and `imatrix` (any, with, without).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import cast

from edgevlm.errors import ProfileError
from edgevlm.ggml_types import FILE_TYPES, TENSOR_TYPES

ROLES = (
    "token_embd",
    "output",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "experts",
    "other",
)
IMATRIX = ("any", "with", "without")
FLOAT_LEVELS = ("F32", "F16", "BF16")
_LAYERS = re.compile(r"all|more|first_8th|first_16th|first_[1-9]\d{0,3}")
# Types of activations, indices and scratch rows, which no weight can have.
_NOT_FOR_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
WEIGHT_TYPES = tuple(name for name in TENSOR_TYPES if name not in _NOT_FOR_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a profile: tensors that it names get its type.

    Attributes:
        role: see the module.
        type: tensor type, such as "Q6_K".
        layers: see the module.
        gqa_min: only in models with at least so many query heads per key head; None: in all.
        experts: only in models with exactly so many experts; None: in all.
        imatrix: only "with" or "without" an importance matrix; "any".
    """

    role: str
    type: str
    layers: str = "all"
    gqa_min: int | None = None
    experts: int | None = None
    imatrix: str = "any"


@dataclass(frozen=True, kw_only=True)
class ProjectorProfile:
    """How the projector (mmproj) is stored: matrices as `type` where no rule says otherwise."""

    type: str = "Q8_0"
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The drift from the 16-bit model that is acceptable; None: no limit.

    Attributes:
        mean_kld: largest mean KL divergence, in nats.
        p99_kld: largest 99th-percentile KL divergence, in nats.
        same_top_token: smallest share of positions with the same top token, 0 to 1.
    """

    mean_kld: float | None = None
    p99_kld: float | None = None
    same_top_token: float | None = None


@dataclass(frozen=True, kw_only=True)
class QuantProfile:
    """A level: which tensor type each tensor gets.

    Attributes:
        name: in file names and `--level`.
        description: what it means, one or two sentences.
        file_type: the llama.cpp file type that comes nearest, such as "Q4_K_M".
        type: of every matrix that no rule names.
        rules: in order, the first match wins.
        fallback: another type for rows that a type's block does not divide.
        mmproj: the projector's rules.
        budget: the drift that is acceptable.
    """

    name: str
    description: str
    file_type: str
    type: str
    rules: tuple[Rule, ...] = ()
    fallback: Mapping[str, str]
    mmproj: ProjectorProfile
    budget: Budget


def profile_names() -> list[str]:
    """Return the names of the profiles that edgevlm brings, the fewest bits first."""
    profiles = [_read(path) for path in profile_folder().glob("*.toml")]
    return [profile.name for profile in sorted(profiles, key=_default_bits)]


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
    for path in profile_folder().glob("*.toml"):
        if path.stem.upper() == level.upper():
            return _read(path)
    names = profile_names()
    if level.upper() in FLOAT_LEVELS:
        raise ProfileError(
            f"{level.upper()} is not a level of quantization",
            hint=f"`edgevlm convert --outtype {level.lower()}` writes it",
        )
    near = get_close_matches(level.upper(), names, n=1)
    raise ProfileError(
        f"there is no level `{level}`",
        hint=(f"did you mean {near[0]}? " if near else "") + f"known levels: {', '.join(names)}",
    )


def _default_bits(profile: QuantProfile) -> float:
    type_ = TENSOR_TYPES[profile.type]
    return type_.block_bytes / type_.block_size


def _read(path: Path) -> QuantProfile:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"`{path}` is not TOML: {error}", hint="mend its syntax") from None
    except OSError as error:
        raise ProfileError(f"cannot read `{path}`: {error.strerror}") from None
    return _profile(_Table(document, path))


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


_FORM_HINT = "`edgevlm profiles` lists complete profiles to start from"


def _profile(table: _Table) -> QuantProfile:
    name = table.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise table.error("name", f"is `{name}`", "letters, digits, `.`, `_` and `-`")
    fallback = table.table("fallback")
    types = {key: fallback.text(key, WEIGHT_TYPES) for key in list(fallback.left)}
    for key in types:
        if key not in WEIGHT_TYPES:
            raise fallback.error(key, "is an unknown tensor type")
    mmproj = table.table("mmproj")
    profile = QuantProfile(
        name=name,
        description=table.text("description"),
        file_type=table.text("file_type", tuple(FILE_TYPES.values())),
        type=table.text("type", WEIGHT_TYPES),
        rules=_rules(table),
        fallback=MappingProxyType(types),
        mmproj=ProjectorProfile(
            type=mmproj.text("type", WEIGHT_TYPES, default="Q8_0"), rules=_rules(mmproj)
        ),
        budget=_budget(table.table("budget")),
    )
    mmproj.end()
    table.end()
    return profile


def _rules(table: _Table) -> tuple[Rule, ...]:
    rules = table.take("rules")
    if rules is None:
        return ()
    if not isinstance(rules, list):
        raise table.error("rules", "is not a list")
    items = cast(list[object], rules)
    return tuple(
        _rule(_Table(item, table.path, f"{table.where}rules[{index}]."))
        for index, item in enumerate(items)
    )


def _rule(table: _Table) -> Rule:
    layers = table.text("layers", default="all")
    if not _LAYERS.fullmatch(layers):
        choices = "one of: all, more, first_8th, first_16th, first_N"
        raise table.error("layers", f"is `{layers}`", choices)
    rule = Rule(
        role=table.text("role", ROLES),
        type=table.text("type", WEIGHT_TYPES),
        layers=layers,
        gqa_min=table.whole("gqa_min"),
        experts=table.whole("experts"),
        imatrix=table.text("imatrix", IMATRIX, default="any"),
    )
    table.end()
    return rule


def _budget(table: _Table) -> Budget:
    budget = Budget(**{field.name: table.number(field.name) for field in fields(Budget)})
    if budget.same_top_token is not None and budget.same_top_token > 1:
        raise table.error("same_top_token", f"is {budget.same_top_token}", "a share from 0 to 1")
    table.end()
    return budget
