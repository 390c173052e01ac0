"""Gemma 3n: four streams a token, embeddings of every layer, keys shared by the last layers.

llama.cpp's `gemma3n`. Facts: names, shapes and what the graph computes from src/models/gemma3n.cpp
and models.h, which hold many numbers fixed; which keys shared layers read from src/llama-model.cpp
(`layer_reuse_cb`); keys and their order from conversion/gemma.py; defaults from transformers'
`Gemma3nTextConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from edgevlm_convert.config import MAX_VOCABULARY, MAX_WIDTH, Section
from edgevlm_convert.family import Part, Source, TextArchitecture
from edgevlm_convert.filled_rules import PaddedRows, zeros
from edgevlm_convert.metadata import Value, array, f32, u32
from edgevlm_convert.rules import Mapped, Rename, Rule
from edgevlm_convert.shape_rules import Stack
from edgevlm_convert.text.decoder import (
    Sizes,
    attention_rules,
    head_norm_rules,
    matrices,
    mlp_rules,
    model_rules,
    norm_metadata,
    read_sizes,
)

_NAME = "gemma3n"
# What the graph holds fixed: streams, ranks, widths, layers that make keys, those that are sparse.
_N_STREAMS, _RANK, _INNER, _CAP = 4, 64, 256, 30.0
N_OWN, _N_SPARSE, _SPARSITY = 20, 10, 0.95
_SLIDING, _FULL = "sliding_attention", "full_attention"
_PATTERN = 5
_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0
_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "vocab_size": 262400,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": _INNER,
    "sliding_window": 512,
    "num_kv_shared_layers": 15,
    "final_logit_softcapping": _CAP,
}
_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "post_per_layer_input_norm": "post_norm",
    "altup.router_norm": "altup_router_norm",
    "laurel.post_laurel_norm": "laurel_post_norm",
}


def build_gemma3n(source: Source) -> Part:
    """Return rules and metadata of the text model.

    Raises:
        CheckpointError: a key is missing, of wrong type, absurd, or one that llama.cpp's graph for
            this architecture ignores.
    """
    text = _of_one_width(source.text)
    sizes = read_sizes(text)
    _check(text, sizes)
    slides = _sliding_layers(text, sizes.n_layers)
    _check_shared(text, slides)
    rules = model_rules(source, sizes.n_embd, tied_by_default=True)
    rules += _outer_rules(source, sizes)
    absent: list[Mapped] = []
    for layer in range(sizes.n_layers):
        names = f"{source.prefixes.text}layers.{layer}.", f"blk.{layer}."
        found = _layer_rules(*names, sizes)
        if layer >= N_OWN and not any(
            f"{names[0]}self_attn.{key}.weight" in source.shapes
            for key in ("k_proj", "v_proj", "k_norm")
        ):
            found, unread = _without_keys(found, names[1])
            absent += unread
        rules += found
    return Part(
        rules=tuple(rules),
        metadata=_metadata(text, sizes),
        late_metadata=_late_metadata(text, sizes, slides),
        computed=tuple(absent),
    )


def _of_one_width(text: Section) -> Section:
    """Return the configuration with one feed-forward width, where a file lists that of each layer.

    Raises:
        CheckpointError: layers differ, as in models that were sliced to a size between two.
    """
    key = "intermediate_size"
    if not isinstance(text.raw(key), list):
        return text
    widths = text.integers(key, low=1, high=MAX_WIDTH, max_length=1024)
    if not widths or len(widths) != text.raw("num_hidden_layers") or len(set(widths)) > 1:
        text.fail(key, "the same width for every layer: llama.cpp knows no other")
    return text.with_values({key: widths[0]})


def _check(text: Section, sizes: Sizes) -> None:
    """Refuse what the graph computes in one way only, when the config asks for another."""
    text.require("hidden_activation", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh")
    text.require("attention_bias", (False,), default=False)
    text.require("use_bidirectional_attention", (False,), default=False)
    text.require("altup_num_inputs", (_N_STREAMS,), default=_N_STREAMS)
    text.require("altup_active_idx", (0,), default=0)
    text.require("altup_correct_scale", (True,), default=True)
    text.require("laurel_rank", (_RANK,), default=_RANK)
    text.require("hidden_size_per_layer_input", (_INNER,), default=_INNER)
    text.require("final_logit_softcapping", (_CAP, int(_CAP)), default=_CAP)
    if sizes.head_dim % 2:
        text.fail("head_dim", "an even number: rotary positions turn pairs of channels")
    key = "activation_sparsity_pattern"
    if text.has(key) and text.raw(key) != _SPARSITY:
        shares = text.numbers(key, length=sizes.n_layers, low=0, high=1)
    else:
        one = _SPARSITY if text.has(key) or sizes.n_layers > _N_SPARSE else 0.0
        shares = _sparse_layers(sizes.n_layers, one)
    if shares != _sparse_layers(sizes.n_layers, _SPARSITY):
        text.fail(key, f"{_SPARSITY} for the first {_N_SPARSE} layers, then 0")


def _sparse_layers(n_layers: int, share: float) -> list[float]:
    return [share if layer < _N_SPARSE else 0.0 for layer in range(n_layers)]


def _sliding_layers(text: Section, n_layers: int) -> list[bool]:
    if not text.has("layer_types"):
        return [(layer + 1) % _PATTERN != 0 for layer in range(n_layers)]
    kinds = text.texts("layer_types")
    if len(kinds) != n_layers or not set(kinds) <= {_SLIDING, _FULL}:
        text.fail("layer_types", f"{n_layers} times {_SLIDING} or {_FULL}")
    if _SLIDING not in kinds:
        text.fail("layer_types", f"one {_SLIDING} at least: llama.cpp counts on it")
    return [kind == _SLIDING for kind in kinds]


def _check_shared(text: Section, slides: Sequence[bool]) -> None:
    """Refuse layers that share other keys than those of layers 18 and 19."""
    key, n_layers = "num_kv_shared_layers", len(slides)
    wanted = max(0, n_layers - N_OWN)
    text.require(key, (wanted,), default=wanted)
    if wanted and list(slides[N_OWN - 2 : N_OWN]) != [True, False]:
        text.fail(
            "layer_types",
            f"a sliding layer {N_OWN - 2} and a full layer {N_OWN - 1}, whose keys the layers"
            " behind them share in llama.cpp",
        )


def _outer_rules(source: Source, sizes: Sizes) -> list[Rule]:
    """Return the rules of streams, and of the embeddings that every layer has of its own."""
    prefix, width = source.prefixes.text, sizes.n_layers * _INNER
    n_own = source.text.integer("vocab_size_per_layer_input", low=1, high=MAX_VOCABULARY)
    if n_own > source.n_vocab:
        source.text.fail("vocab_size_per_layer_input", f"at most {source.n_vocab}, the vocabulary")
    shapes = {
        "per_layer_model_projection.weight": ("per_layer_model_proj.weight", (width, sizes.n_embd)),
        "per_layer_projection_norm.weight": ("per_layer_proj_norm.weight", (_INNER,)),
    }
    stacks = {
        "altup_projections": "altup_proj.weight",
        "altup_unembed_projections": "altup_unembd_proj.weight",
    }
    return [
        PaddedRows(
            source=f"{prefix}embed_tokens_per_layer.weight",
            shape=(n_own, width),
            n_rows=source.n_vocab,
            target="per_layer_token_embd.weight",
        ),
        *matrices(prefix, "", shapes),
        *(
            Stack(
                sources=[f"{prefix}{one}.{number}.weight" for number in range(_N_STREAMS - 1)],
                shape=(sizes.n_embd, sizes.n_embd),
                target=to,
            )
            for one, to in stacks.items()
        ),
    ]


def _layer_rules(source: str, target: str, sizes: Sizes) -> list[Rule]:
    n_embd, n = sizes.n_embd, _N_STREAMS
    shapes = {f"{one}.weight": (f"{to}.weight", (n_embd,)) for one, to in _NORMS.items()}
    shapes |= {
        "altup.correct_output_scale": ("altup_correct_scale.weight", (n_embd,)),
        "altup.modality_router.weight": ("altup_router.weight", (n, n_embd)),
        "laurel.linear_left.weight": ("laurel_l.weight", (_RANK, n_embd)),
        "laurel.linear_right.weight": ("laurel_r.weight", (n_embd, _RANK)),
        "per_layer_input_gate.weight": ("inp_gate.weight", (_INNER, n_embd)),
        "per_layer_projection.weight": ("proj.weight", (n_embd, _INNER)),
    }
    coefficients = {"correction": ("correct", (n, n)), "prediction": ("predict", (n * n, n))}
    return [
        *matrices(source, target, shapes),
        *(
            Rename(
                source=f"{source}altup.{one}_coefs.weight",
                target=f"{target}altup_{to}_coef.weight",
                shape=shape,
                precision="f32",
            )
            for one, (to, shape) in coefficients.items()
        ),
        *attention_rules(source, target, sizes),
        *head_norm_rules(source, target, sizes.head_dim),
        *mlp_rules(source, target, n_embd, sizes.n_ff),
    ]


def _without_keys(rules: Sequence[Rule], target: str) -> tuple[list[Rule], list[Mapped]]:
    """Return the rules without those of keys and values, and zeros in their place.

    transformers 5 does not save what a layer with shared keys never reads; llama.cpp never reads
    it either, and does not load a file without.
    """
    kept: list[Rule] = []
    absent: list[Mapped] = []
    for rule in rules:
        name = rule.target if isinstance(rule, Rename) else ""
        if name.removeprefix(target) in ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight"):
            absent += [zeros(name, shape) for shape in rule.shapes.values() if shape]
        else:
            kept.append(rule)
    return kept, absent


def _rope_base(text: Section, kind: str, old_key: str, default: float) -> float:
    """Return the rotary base of the layers of one kind, which nothing may scale."""
    key = "rope_parameters"
    both = text.section(key) if text.has(key) else text.empty(key)
    for flat in ("rope_type", "rope_theta", "factor"):
        if both.has(flat):
            both.fail(flat, f"no such key here, but a section {_FULL} and one {_SLIDING}")
    rope = both.section(kind) if both.has(kind) else both.empty(kind)
    rope.require("rope_type", ("default",), default="default")
    rope.require("partial_rotary_factor", (1.0, 1), default=1.0)
    given, name = (rope, "rope_theta") if rope.has("rope_theta") else (text, old_key)
    return given.number(name, low=1.0, high=1e12, default=default)


def _metadata(text: Section, sizes: Sizes) -> dict[str, Value]:
    """Return the keys before the file type."""
    if text.has("rope_scaling"):
        text.fail("rope_scaling", "null: no Gemma 3n scales its positions")
    full = _rope_base(text, _FULL, "rope_theta", _THETA)
    sliding = _rope_base(text, _SLIDING, "rope_local_base_freq", _LOCAL_THETA)
    return {
        f"{_NAME}.block_count": u32(sizes.n_layers),
        f"{_NAME}.context_length": u32(
            text.integer("max_position_embeddings", low=1, high=1 << 31)
        ),
        f"{_NAME}.embedding_length": u32(sizes.n_embd),
        f"{_NAME}.feed_forward_length": array("INT32", [sizes.n_ff] * sizes.n_layers),
        f"{_NAME}.attention.head_count": u32(sizes.n_head),
        f"{_NAME}.attention.head_count_kv": u32(sizes.n_head_kv),
        f"{_NAME}.rope.freq_base": f32(full),
        f"{_NAME}.rope.freq_base_swa": f32(sliding),
        **norm_metadata(_NAME, text),
        f"{_NAME}.attention.key_length": u32(sizes.head_dim),
        f"{_NAME}.attention.value_length": u32(sizes.head_dim),
    }


def _late_metadata(text: Section, sizes: Sizes, slides: Sequence[bool]) -> dict[str, Value]:
    """Return the keys behind the file type."""
    window = text.integer("sliding_window", low=1, high=1 << 31)
    cut = NormalDist().inv_cdf(_SPARSITY)
    scales = [cut if layer < _N_SPARSE else float("-inf") for layer in range(sizes.n_layers)]
    return {
        f"{_NAME}.final_logit_softcapping": f32(_CAP),
        f"{_NAME}.attention.sliding_window": u32(window),
        f"{_NAME}.altup.active_idx": u32(0),
        f"{_NAME}.altup.num_inputs": u32(_N_STREAMS),
        f"{_NAME}.embedding_length_per_layer_input": u32(_INNER),
        f"{_NAME}.attention.shared_kv_layers": u32(max(0, sizes.n_layers - N_OWN)),
        f"{_NAME}.activation_sparsity_scale": array("FLOAT32", scales),
        f"{_NAME}.attention.sliding_window_pattern": array("BOOL", list(slides)),
    }


GEMMA3N = TextArchitecture(
    name=_NAME, model_types=("gemma3n_text",), defaults=_DEFAULTS, build=build_gemma3n
)
