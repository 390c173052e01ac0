"""Mixtures of experts in place of a feed-forward network: sizes, metadata, rules.

Facts: names and shapes from llama.cpp src/models/qwen3vlmoe.cpp, qwen3moe.cpp and qwen35moe.cpp;
keys from conversion/base.py (`TextModel.set_gguf_parameters`) and conversion/qwen.py
(`Qwen2MoeModel`); how checkpoints store experts from transformers' conversion_mapping.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgevlm_convert.config import MAX_WIDTH, Section
from edgevlm_convert.family import Source
from edgevlm_convert.metadata import Value, u32
from edgevlm_convert.rules import Rename, Rule, Split
from edgevlm_convert.shape_rules import Stack, Transposed, TransposedMatrices
from edgevlm_convert.text.decoder import matrices

# LLAMAMAX_EXPERTS, src/llama-hparams.h.
MAX_EXPERTS = 1024


@dataclass(frozen=True, kw_only=True)
class Experts:
    """The numbers of a mixture that shapes and metadata depend on.

    Attributes:
        n_experts: experts of a layer.
        n_used: experts that one token goes through.
        n_ff: width inside an expert.
        n_ff_shared: width inside the expert of all tokens; 0: there is none.
        transposed: keeps matrices that are read more than once.
    """

    n_experts: int
    n_used: int
    n_ff: int
    n_ff_shared: int = 0
    transposed: TransposedMatrices = field(default_factory=TransposedMatrices)


def read_experts(text: Section, *, shared: bool = False) -> Experts:
    """Return the numbers of a mixture that stands in every layer.

    Args:
        text: the text model's configuration, with the architecture's defaults.
        shared: whether there is an expert for all tokens.

    Raises:
        CheckpointError: a number is missing or absurd, or some layers have no experts.
    """
    # transformers writes either name for the same number.
    key = "num_local_experts" if text.has("num_local_experts") else "num_experts"
    n_experts = text.integer(key, low=1, high=MAX_EXPERTS)
    text.require("decoder_sparse_step", (1,), default=1)
    if text.has("mlp_only_layers") and text.raw("mlp_only_layers") != []:
        text.fail("mlp_only_layers", "[]: llama.cpp takes every layer to have experts")
    return Experts(
        n_experts=n_experts,
        n_used=text.integer("num_experts_per_tok", low=1, high=n_experts),
        n_ff=text.integer("moe_intermediate_size", low=1, high=MAX_WIDTH),
        n_ff_shared=text.integer("shared_expert_intermediate_size", low=1, high=MAX_WIDTH)
        if shared
        else 0,
    )


def count_metadata(name: str, experts: Experts) -> dict[str, Value]:
    """Return the keys of how many experts there are, which stand before a head's sizes."""
    return {
        f"{name}.expert_count": u32(experts.n_experts),
        f"{name}.expert_used_count": u32(experts.n_used),
    }


def width_metadata(name: str, experts: Experts) -> dict[str, Value]:
    """Return the keys of how wide experts are, which stand behind the file type."""
    widths = {f"{name}.expert_feed_forward_length": u32(experts.n_ff)}
    if experts.n_ff_shared:
        widths[f"{name}.expert_shared_feed_forward_length"] = u32(experts.n_ff_shared)
    return widths


def expert_rules(
    source: Source, prefix: str, target: str, n_embd: int, experts: Experts
) -> list[Rule]:
    """Return the rules of one layer's mixture.

    Args:
        source: of the model; which tensors it has decides how its experts are read.
        prefix: of the layer's tensors in the checkpoint.
        target: of the layer's tensors in the file.
        n_embd: width of the residual stream.
        experts: numbers of the mixture.
    """
    mlp = f"{prefix}mlp."
    rules: list[Rule] = [
        # The router's logits decide; llama.cpp keeps them exact.
        Rename(
            source=f"{mlp}gate.weight",
            target=f"{target}ffn_gate_inp.weight",
            shape=(experts.n_experts, n_embd),
            precision="f32",
        ),
        *routed_rules(source, f"{mlp}experts.", target, n_embd, experts),
    ]
    if experts.n_ff_shared:
        n_ff = experts.n_ff_shared
        rules += matrices(
            f"{mlp}shared_expert.",
            target,
            {
                "gate_proj.weight": ("ffn_gate_shexp.weight", (n_ff, n_embd)),
                "up_proj.weight": ("ffn_up_shexp.weight", (n_ff, n_embd)),
                "down_proj.weight": ("ffn_down_shexp.weight", (n_embd, n_ff)),
            },
        )
        rules.append(
            Rename(
                source=f"{mlp}shared_expert_gate.weight",
                target=f"{target}ffn_gate_inp_shexp.weight",
                shape=(1, n_embd),
                precision="f32",
            )
        )
    return rules


def routed_rules(
    source: Source, prefix: str, target: str, n_embd: int, experts: Experts
) -> list[Rule]:
    """Return the rules of the experts that a router chooses from, however they are stored.

    Args:
        source: of the model; which tensors it has decides how its experts are read.
        prefix: of the experts' tensors in the checkpoint.
        target: of the layer's tensors in the file.
        n_embd: width of the residual stream.
        experts: numbers of the mixture.
    """
    n, n_ff = experts.n_experts, experts.n_ff
    gate_up, down = (f"{prefix}{name}_proj" for name in ("gate_up", "down"))
    halves = (f"{target}ffn_gate_exps.weight", f"{target}ffn_up_exps.weight")
    whole = f"{target}ffn_down_exps.weight"
    if not source.shapes.keys() & {gate_up, down}:
        return _one_by_one(prefix, (*halves, whole), n_embd, experts)
    # Published Qwen3-VL checkpoints have these; one shape alone may be a square.
    transposed = {gate_up: (n, n_embd, 2 * n_ff), down: (n, n_ff, n_embd)}
    if all(source.shapes.get(name) == shape for name, shape in transposed.items()):
        return [
            Transposed(
                source=name,
                shape=transposed[name],
                targets=targets,
                matrices=experts.transposed,
            )
            for name, targets in ((gate_up, halves), (down, (whole,)))
        ]
    return [
        Split(source=gate_up, targets=halves, shape=(n, 2 * n_ff, n_embd), axis=1),
        Rename(source=down, target=whole, shape=(n, n_embd, n_ff)),
    ]


def _one_by_one(prefix: str, targets: Sequence[str], n_embd: int, experts: Experts) -> list[Rule]:
    shapes = {
        "gate": (experts.n_ff, n_embd),
        "up": (experts.n_ff, n_embd),
        "down": (n_embd, experts.n_ff),
    }
    return [
        Stack(
            sources=[f"{prefix}{number}.{name}_proj.weight" for number in range(experts.n_experts)],
            shape=shape,
            target=target,
        )
        for (name, shape), target in zip(shapes.items(), targets, strict=True)
    ]
