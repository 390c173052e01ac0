"""Embeddings of n-grams, which Qwen4-Exp adds before one layer: hashes, table, gates.

Facts: names from transformers' modeling_qwen4_exp.py (`Qwen4ExpTextPLELayer`) and gguf-py; what the
graph and its loader take for granted from llama.cpp src/models/qwen4exp.cpp and
src/llama-hparams.h (`LLAMA_MAX_PLE_NGRAM`, `LLAMA_MAX_PLE_HEADS`); keys and their order from
conversion/qwen4exp.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm_convert.config import MAX_VOCABULARY, Section
from edgevlm_convert.family import Source
from edgevlm_convert.metadata import Value, array, u32
from edgevlm_convert.row_rules import Joined
from edgevlm_convert.rules import Drop, Rename, Rule, Transform
from edgevlm_convert.shape_rules import Reshaped
from edgevlm_convert.transforms import plus_one

_MAX_NGRAM, _MAX_HEADS, _MAX_KERNEL, _MAX_SHARDS = 8, 64, 64, 65536
_MAX_ROW = (1 << 31) - 1
_CONSTANTS = {
    "layer_multipliers": "layer_multipliers",
    "ngram_heads_offsets": "head_offsets",
    "ngram_heads_vocab_sizes": "head_vocab_sizes",
}
_IN_KEYS = "stands in the file's keys: a tensor would not hold its 64 bits"


@dataclass(frozen=True, kw_only=True)
class Ngrams:
    """The numbers of the layer's embeddings.

    Attributes:
        layer: which, from 0.
        size: tokens of the longest n-gram.
        heads_per_size: hashes of the n-grams of one length.
        width: values of a row of the table.
        kernel: tokens that the convolution sees.
        eos: token that ends what an n-gram may reach back to.
        constants: multipliers, offsets, and sizes of the heads' parts of the table, by key.
    """

    layer: int
    size: int
    heads_per_size: int
    width: int
    kernel: int
    eos: int
    constants: dict[str, list[int]]

    @property
    def n_heads(self) -> int:
        """Rows of the table that a token takes."""
        return (self.size - 1) * self.heads_per_size


def read_ngrams(source: Source, n_embd: int, is_linear: Sequence[bool]) -> Ngrams | None:
    """Return the numbers; None for a model without such a layer.

    Args:
        source: of the model.
        n_embd: width of one stream.
        is_linear: which layers have linear attention: the others have no place for it.

    Raises:
        CheckpointError: a key is missing, absurd, or one that llama.cpp does not compute.
        ConversionError: the checkpoint's constants are missing, or do not go with the table.
    """
    text, key = source.text, "ple_layer_ids"
    if not text.has(key) or text.raw(key) == []:
        return None
    n_layers = len(is_linear)
    layers = text.integers(key, low=1, high=n_layers, max_length=n_layers)
    if len(set(layers)) != 1 or not is_linear[layers[0] - 1]:
        text.fail(key, "one layer, of linear attention: llama.cpp knows no other")
    size = text.integer("ngram_size", low=2, high=_MAX_NGRAM)
    per_size = text.integer("heads_per_ngram", low=1, high=_MAX_HEADS)
    n_heads = (size - 1) * per_size
    if n_heads > _MAX_HEADS:
        text.fail("heads_per_ngram", f"at most {_MAX_HEADS} heads in all: llama.cpp has no more")
    if text.integer("ple_embed_dim", low=1, high=1 << 20, default=n_embd) != n_embd:
        text.fail("ple_embed_dim", f"the hidden size {n_embd}, as llama.cpp takes it to be")
    if n_embd % n_heads:
        text.fail("heads_per_ngram", f"heads that share out {n_embd} values, not {n_heads}")
    prefix = f"{source.prefixes.text}layers.{layers[0] - 1}.ple.ple_embedding."
    constants = {to: source.integers(f"{prefix}{name}") for name, to in _CONSTANTS.items()}
    _check_constants(text, constants, size, n_heads)
    return Ngrams(
        layer=layers[0] - 1,
        size=size,
        heads_per_size=per_size,
        width=n_embd // n_heads,
        kernel=text.integer("ple_conv_kernel_size", low=1, high=_MAX_KERNEL),
        eos=_first_eos(text),
        constants=constants,
    )


def _check_constants(
    text: Section, constants: dict[str, list[int]], size: int, n_heads: int
) -> None:
    counts = {"layer_multipliers": size, "head_offsets": n_heads, "head_vocab_sizes": n_heads}
    for name, count in counts.items():
        values = constants[name]
        low = 1 if name == "head_vocab_sizes" else 0
        high = _MAX_ROW if name != "layer_multipliers" else (1 << 63) - 1
        if len(values) != count or not all(low <= value <= high for value in values):
            text.fail("ngram_size", f"{count} {name} in the checkpoint, none of them absurd")


def _first_eos(text: Section) -> int:
    key = "eos_token_id"
    if isinstance(text.raw(key), list):
        return text.integers(key, low=0, high=MAX_VOCABULARY, max_length=64)[0]
    return text.integer(key, low=0, high=MAX_VOCABULARY)


def ngram_rules(source: Source, ngrams: Ngrams, n_embd: int, n_streams: int) -> list[Rule]:
    """Return the rules of the layer's embeddings.

    Args:
        source: of the model.
        ngrams: the numbers.
        n_embd: width of one stream.
        n_streams: of the residual.
    """
    ple = f"{source.prefixes.text}layers.{ngrams.layer}.ple."
    target, wide = f"blk.{ngrams.layer}.", n_embd * n_streams
    convolution = Rename(
        source=f"{ple}conv1d.weight",
        target=f"{target}ple_conv1d.weight",
        shape=(wide, 1, ngrams.kernel),
    )
    norms = [
        Transform(
            source=f"{ple}norm_{name}.weight",
            target=f"{target}ple_norm_{name}.weight",
            shape=(wide,),
            rows=plus_one,
        )
        for name in ("key", "query", "conv")
    ]
    return [
        *(Drop(source=f"{ple}ple_embedding.{name}", reason=_IN_KEYS) for name in _CONSTANTS),
        _table_rule(source, f"{ple}ple_embedding.ngram_embedding.", ngrams),
        *norms,
        Reshaped(rule=convolution, shape=(wide, ngrams.kernel)),
        Rename(
            source=f"{ple}key_proj.weight",
            target=f"{target}ple_key.weight",
            shape=(wide, n_embd),
        ),
        Rename(
            source=f"{ple}value_proj.weight",
            target=f"{target}ple_value.weight",
            shape=(n_embd, n_embd),
        ),
    ]


def _table_rule(source: Source, prefix: str, ngrams: Ngrams) -> Rule:
    """Return the rule of the table, in shards or whole; it has a row for every hash."""
    n_shards = source.text.integer("split_ngram_parts", low=1, high=_MAX_SHARDS)
    names = [f"{prefix}shard_{number}.weight" for number in range(n_shards)]
    if names[0] not in source.shapes:
        names = [f"{prefix}weight"]
    rows = {name: (source.shapes.get(name) or (1,))[0] for name in names}
    ends = zip(ngrams.constants["head_offsets"], ngrams.constants["head_vocab_sizes"], strict=True)
    if not max(map(sum, ends)) <= sum(rows.values()) <= _MAX_ROW:
        source.text.fail("ngram_vocab_size_base", f"a table of {sum(rows.values())} rows")
    return Joined(sources=rows, width=ngrams.width, target="per_layer_token_embd.weight")


def ngram_metadata(name: str, source: Source, ngrams: Ngrams) -> dict[str, Value]:
    """Return the keys of the layer's embeddings, in llama.cpp's order."""
    image = source.config.integer("image_token_id", low=0, high=MAX_VOCABULARY)
    constants: Sequence[str] = tuple(_CONSTANTS.values())
    return {
        f"{name}.ple.layers": array("INT32", [ngrams.layer]),
        f"{name}.ple.ngram_size": u32(ngrams.size),
        f"{name}.ple.heads_per_ngram": u32(ngrams.heads_per_size),
        f"{name}.ple.conv_kernel": u32(ngrams.kernel),
        f"{name}.ple.eos_token_id": u32(ngrams.eos),
        f"{name}.ple.image_token_id": u32(image),
        f"{name}.embedding_length_per_layer_input": u32(ngrams.width),
        **{f"{name}.ple.{key}": array("UINT64", ngrams.constants[key]) for key in constants},
    }
