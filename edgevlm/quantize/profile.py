r"""Quantization profiles: TOML files that say which tensor gets which type.

    name = "mine"                      # in file names and `--level`
    description = "one sentence for `edgevlm profiles`"
    extends = "Q4_K_M"                 # a level, or a .toml file beside this one
    file_type = "Q4_K_M"               # what `general.file_type` will say
    type = "Q4_K"                      # every matrix that no rule names
    rules = [                          # in order, the first match wins
        { role = "output", type = "Q6_K" },
        { role = "attn_v", layers = "more", type = "Q6_K" },
        { tensor = "blk\\.0\\.ffn_down", type = "Q8_0" },
    ]
    [fallback]                         # when rows do not divide by a type's block
    Q4_K = "Q5_0"
    [mmproj]                           # the projector: a type and rules of the same form
    type = "Q8_0"
    rules = [{ role = "projector", type = "F16" }]
    [budget]                           # the drift that is acceptable
    mean_kld = 0.05

A rule names tensors by `role`, by `tensor` (a regular expression, searched for in the name), or by
both. Roles: token_embd, output (also the token embedding of a tied model), attn_q, attn_k, attn_v,
attn_qkv, attn_output, ffn_gate, ffn_up, ffn_down, experts (the ffn tensors of a mixture of
experts), other; in `[mmproj]` attn_q to ffn_down, projector (the matrices that join the tower and
the text model), other. Layers: all; more (the first and the last eighth and every third between, as
llama.cpp's K_M mixtures choose); first_8th; first_16th; first_N; first_8th_counted (by the tensors
of its role that came before, as llama.cpp's IQ2 mixtures count). A rule may ask for `gqa_min`
(query heads per key head), `experts` or `experts_min` (their number) and `imatrix` (any, with,
without), and may bring a `fallback` of its own. A profile that extends another puts its rules
before the other's; its other keys take the place of the other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgevlm.ggml_types import TENSOR_TYPES

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
# Of a projector's matrices; "projector" are those that join the tower and its text model.
MMPROJ_ROLES = (
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "projector",
    "other",
)
# Types that a projector as a whole can have, the most bits first; rules may name any type.
MMPROJ_LEVELS = (
    *("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0"),
    *("Q4_K", "Q4_1", "Q4_0", "IQ4_NL"),
)
IMATRIX = ("any", "with", "without")
# Types of activations, indices and scratch rows, which no weight can have.
_NOT_FOR_WEIGHTS = frozenset({"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"})
WEIGHT_TYPES = tuple(name for name in TENSOR_TYPES if name not in _NOT_FOR_WEIGHTS)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of a profile: tensors that it names get its type.

    Attributes:
        type: tensor type, such as "Q6_K".
        role: see the module; None: any.
        tensor: regular expression, searched for in the tensor's name; None: any.
        layers: see the module.
        gqa_min: only in models with at least so many query heads per key head; None: in all.
        experts: only in models with exactly so many experts; None: in all.
        experts_min: only in models with at least so many experts; None: in all.
        imatrix: only "with" or "without" an importance matrix; "any".
        fallback: the type for rows that `type` does not divide; None: the profile's.
    """

    type: str
    role: str | None = None
    tensor: str | None = None
    layers: str = "all"
    gqa_min: int | None = None
    experts: int | None = None
    experts_min: int | None = None
    imatrix: str = "any"
    fallback: str | None = None

    @property
    def is_conditional(self) -> bool:
        """Whether it holds in some models only, whatever their tensors are called."""
        conditions = (self.gqa_min, self.experts, self.experts_min)
        return self.imatrix != "any" or any(value is not None for value in conditions)

    def __str__(self) -> str:
        """Return it as the profile's file writes it, without what is not set."""
        named = [f'{key} = "{value}"' for key, value in self._named().items()]
        return "{ " + ", ".join(named) + " }"

    def _named(self) -> dict[str, str]:
        named = {"role": self.role, "tensor": self.tensor, "type": self.type}
        if self.layers != "all":
            named["layers"] = self.layers
        return {key: value for key, value in named.items() if value is not None}


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
        expected: rules of the user's own, in either list; one that decides no tensor is a mistake.
    """

    name: str
    description: str
    file_type: str
    type: str
    rules: tuple[Rule, ...] = ()
    fallback: Mapping[str, str]
    mmproj: ProjectorProfile
    budget: Budget
    expected: tuple[Rule, ...] = ()
