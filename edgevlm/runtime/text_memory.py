"""What a text model takes beside its weights: KV cache, recurrent states, compute buffer.

What was found by looking at llama-cpp-python 0.3.36 at work, part by part:

- The KV cache is cleared when it is made, so all of it is resident from the start: n_ctx, rounded
  up to 256 tokens, times the K and V rows of all layers in the cache's type. Layers with a window
  (Gemma 3) keep the window and a batch, and have a mask of their own. Layers of linear attention
  (Qwen3.5) have none: they keep one state of fixed size, as F32; those of LFM2, which are short
  convolutions, one of a few kilobytes, which is left out. Layers for multi-token prediction
  have neither.
- The compute buffer holds what lives at one moment for one batch. With E the width, I the width of
  the rows that enter (E, more with deepstack), F the feed-forward width, Q and K the widths of all
  heads and all KV heads, the floats per token are at most
  max(3 F + I + 6 E, I + 6.5 E + 2 (Q + K)), and beside them a mask of n_ctx F16 values per token.
  Without flash attention: n_ctx floats per token and head, and an F32 mask. Fitted on 13 shapes
  (E 256 to 1024, F 512 to 4096, 4 to 16 heads): never below what llama.cpp reserved, and at most
  1.2 times that. For the shapes of Gemma 3 4B (n_ctx 128 to 16384): 1.08 to 1.33 times.
- With U experts of width F a token: max(3 U F + I + 4 E, 2 U E + I + 5 E), and the router's
  values. Beside an expert of all tokens, of width S: max(3 U F + U E, 2 U E, 3 S + 2 E) + I + 5 E.
- Linear attention, with J the width of query, key and value together: 3 J + I + 2 E. Attention
  whose heads have gates: 4 Q + 2 K + 2 E, or Q more than above. Fitted, with the experts, on 15
  shapes (E 512 and 1024, 2 to 8 of 4 to 128 experts, J 192 to 8192): 1.0 to 1.3 times what
  llama.cpp reserved, 1.5 times in one where feed-forward networks are tiny.
- Four streams a token (Gemma 3n), N of them, with P the values of the layers' own embeddings:
  P + max(3 F + 4 N E, (4 N + 1) E + 800, 3 P + 4 E); without flash attention P + N E more than
  above. Fitted on 6 shapes (E 256 to 2048, 1 to 30 layers): 1.0 to 1.4 times what llama.cpp
  reserved.
- Streams of Qwen4-Exp, N values in all: 6 N + 3.5 E, and for the indexer 0.3 values per token and
  cell, 4 without flash attention; its keys are a cache of their own. Fitted on 3 shapes (E 512 and
  1024, 2 and 4 streams) with n_ctx 512 to 2048: 1.0 to 1.3 times.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm.ggml_types import TENSOR_TYPES
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import n_items, numbers

N_BATCH = 512
F32_BYTES = 4
_CACHE_STEP = 256
_N_OUTPUTS = 16
# What else the streams of a token take.
_ROUTING = 800
# Layers of linear attention up to one of full attention (src/models/qwen35.cpp).
_HYBRID, _USUAL_INTERVAL = ("qwen35", "qwen35moe", "qwen4exp"), 4


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Experts in place of a feed-forward network.

    Attributes:
        n_experts: of a layer; 0: there are none.
        n_used: that a token goes through.
        ffn: width inside one.
        shared_ffn: width inside the expert of all tokens, 0 for none.
    """

    n_experts: int
    n_used: int
    ffn: int
    shared_ffn: int

    @classmethod
    def read(cls, file: GGUFFile) -> Mixture:
        """Return the experts that a header names."""
        name = file.architecture
        ffn = max(numbers(file, f"{name}.expert_feed_forward_length"), default=0)
        # GLM-4.5 names how many there are, each as wide as another.
        n_shared = max(numbers(file, f"{name}.expert_shared_count"), default=0)
        wide = numbers(file, f"{name}.expert_shared_feed_forward_length")
        return cls(
            n_experts=max(numbers(file, f"{name}.expert_count"), default=0),
            n_used=max(numbers(file, f"{name}.expert_used_count"), default=0),
            ffn=ffn,
            shared_ffn=max(wide, default=n_shared * ffn),
        )


@dataclass(frozen=True, kw_only=True)
class LinearAttention:
    """Layers that keep a state instead of keys and values.

    Attributes:
        layers: their places; (): there are none.
        width: of query, key and value together.
        n_heads: of value.
        state: values of one layer's state.
    """

    layers: tuple[int, ...]
    width: int
    n_heads: int
    state: int

    @classmethod
    def read(cls, file: GGUFFile, n_layers: int) -> LinearAttention:
        """Return the layers that a header names (src/llama-hparams.cpp: n_embd_r, n_embd_s)."""
        name = file.architecture
        kernel, inner, groups, size, n_heads = (
            max(numbers(file, f"{name}.ssm.{key}"), default=0)
            for key in ("conv_kernel", "inner_size", "group_count", "state_size", "time_step_rank")
        )
        width = inner + 2 * groups * size
        return cls(
            layers=_linear_layers(file, n_layers) if name in _HYBRID else (),
            width=width,
            n_heads=n_heads,
            state=max(0, kernel - 1) * width + size * inner,
        )


def _linear_layers(file: GGUFFile, n_layers: int) -> tuple[int, ...]:
    name = file.architecture
    named = numbers(file, f"{name}.attention.recurrent_layers")
    if named:
        return tuple(layer for layer, linear in enumerate(named[:n_layers]) if linear)
    key = f"{name}.full_attention_interval"
    interval = max(numbers(file, key), default=_USUAL_INTERVAL) or 1
    # A header may claim any number of layers; no list is as long as that.
    return tuple(layer for layer in range(min(n_layers, 1 << 16)) if (layer + 1) % interval)


@dataclass(frozen=True, kw_only=True)
class HyperConnections:
    """Several residual streams, an indexer, n-grams: what Qwen4-Exp has beside a hybrid.

    Attributes:
        width: of all streams together; 0: there is one, as usual.
        index_keys: values per token of the indexer's keys, in all layers; 0: there is none.
        state: values that the convolution of n-grams keeps.
    """

    width: int
    index_keys: int
    state: int

    @classmethod
    def read(cls, file: GGUFFile, width: int, n_attended: int) -> HyperConnections:
        """Return what a header names, for a model with `n_attended` layers of attention."""
        name = file.architecture
        n_streams, key, kernel, size = (
            max(numbers(file, f"{name}.{one}"), default=0) if name in _HYBRID else 0
            for one in (
                "hyper_connection.count",
                "attention.indexer.key_length",
                "ple.conv_kernel",
                "ple.ngram_size",
            )
        )
        return cls(
            width=n_streams * width,
            index_keys=key * n_attended if n_streams else 0,
            state=max(0, kernel - 1) * size * n_streams * width,
        )


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """Widths of a text model, as the module's docstring names them."""

    width: int
    input: int
    ffn: int
    heads: int
    head_k: int
    head_v: int
    windowed_head: int
    inner: int
    streams: int
    kv_heads: int
    kv_heads_of_all_layers: int
    kv_heads_with_window: int
    window: int
    n_vocab: int
    mixture: Mixture
    linear: LinearAttention
    hyper: HyperConnections

    @classmethod
    def read(cls, file: GGUFFile) -> TextSizes:
        """Return the sizes that a header names, 0 for what it does not."""
        name = file.architecture
        width = max(numbers(file, f"{name}.embedding_length"), default=0)
        n_layers = max(numbers(file, f"{name}.block_count"), default=0)
        n_layers -= min(n_layers, max(numbers(file, f"{name}.nextn_predict_layers"), default=0))
        heads = max(numbers(file, f"{name}.attention.head_count"), default=1) or 1
        kv_heads = numbers(file, f"{name}.attention.head_count_kv") or [heads]
        # How many streams ride along with a row, or for each layer which of them it takes.
        keys = ("n_deepstack_layers", "deepstack_mapping")
        n_deepstack = max(0, *(n for key in keys for n in numbers(file, f"{name}.{key}")), 0)
        head = width // heads
        linear = LinearAttention.read(file, n_layers)
        # The last ones may read the keys of others (Gemma 4).
        n_layers -= min(
            n_layers, max(numbers(file, f"{name}.attention.shared_kv_layers"), default=0)
        )
        # One number for all layers, or one per layer.
        per_layer = dict(enumerate(kv_heads[:n_layers])) if len(kv_heads) > 1 else {}
        n_linear = sum(per_layer.get(layer, kv_heads[0]) for layer in linear.layers)
        all_layers = sum(per_layer.values()) if per_layer else kv_heads[0] * n_layers
        head_k = max(numbers(file, f"{name}.attention.key_length"), default=head)
        head_v = max(numbers(file, f"{name}.attention.value_length"), default=head)
        return cls(
            width=width,
            input=width * (1 + n_deepstack),
            ffn=max(numbers(file, f"{name}.feed_forward_length"), default=0),
            heads=heads,
            head_k=head_k,
            head_v=head_v,
            windowed_head=sum(
                max(numbers(file, f"{name}.attention.{key}_length_swa"), default=usual)
                for key, usual in (("key", head_k), ("value", head_v))
            ),
            inner=max(numbers(file, f"{name}.embedding_length_per_layer_input"), default=0)
            * max(numbers(file, f"{name}.block_count"), default=0),
            streams=max(numbers(file, f"{name}.altup.num_inputs"), default=1),
            kv_heads=max(kv_heads),
            kv_heads_of_all_layers=all_layers - n_linear,
            kv_heads_with_window=kv_heads[0] * _n_windowed(file, n_layers),
            window=max(numbers(file, f"{name}.attention.sliding_window"), default=0),
            n_vocab=n_items(file, "tokenizer.ggml.tokens"),
            mixture=Mixture.read(file),
            linear=linear,
            hyper=HyperConnections.read(file, width, max(0, n_layers - len(linear.layers))),
        )


def _n_windowed(file: GGUFFile, n_layers: int) -> int:
    """Return how many layers have a window, in the architecture of ours that has them."""
    name = file.architecture
    if name not in ("gemma3", "gemma3n", "gemma4") or not any(
        numbers(file, f"{name}.attention.sliding_window")
    ):
        return 0
    key = f"{name}.attention.sliding_window_pattern"
    pattern = numbers(file, key)
    if n_items(file, key):
        return sum(map(bool, pattern[:n_layers]))
    # Every so many layers one looks at all tokens (src/models/gemma3.cpp).
    every = max(pattern, default=6)
    return n_layers - (n_layers // every if every else 0)


def kv_cache(sizes: TextSizes, n_ctx: int, kv_type: str) -> int:
    """Return the bytes of keys and values of all layers that keep them."""
    type_ = TENSOR_TYPES[kv_type]
    n_windowed = sizes.kv_heads_with_window
    parts = (
        (
            _n_cells(n_ctx),
            (sizes.kv_heads_of_all_layers - n_windowed) * (sizes.head_k + sizes.head_v),
        ),
        (_n_window_cells(sizes, n_ctx), n_windowed * sizes.windowed_head),
        (_n_cells(n_ctx), sizes.hyper.index_keys),
    )
    return sum(n * -(-width * type_.block_bytes // type_.block_size) for n, width in parts)


def recurrent_state(sizes: TextSizes) -> int:
    """Return the bytes of the states of linear attention, of one conversation."""
    return F32_BYTES * (len(sizes.linear.layers) * sizes.linear.state + sizes.hyper.state)


def text_compute(sizes: TextSizes, n_ctx: int, flash_attention: bool) -> int:
    """Return the bytes of the intermediate values of a batch."""
    n_batch = min(N_BATCH, n_ctx)
    n_cells = _n_cells(n_ctx)
    query, key = sizes.heads * sizes.head_k, sizes.kv_heads * sizes.head_k
    attention = sizes.input + int(6.5 * sizes.width) + 2 * (query + key)
    others = max(3 * sizes.ffn + sizes.input + 6 * sizes.width, _mixture(sizes), _linear(sizes))
    if sizes.linear.layers:
        others = max(others, 4 * query + 2 * key + 2 * sizes.width)
    if sizes.hyper.width:
        others = max(others, 6 * sizes.hyper.width + int(3.5 * sizes.width))
    n_indexed = n_cells if sizes.hyper.index_keys else 0
    output = n_batch * (sizes.input + sizes.width) + _N_OUTPUTS * sizes.n_vocab
    n_masked = n_cells + _n_window_cells(sizes, n_ctx)
    if flash_attention:
        each = max(others, attention) + 3 * sizes.inner if sizes.streams == 1 else _streams(sizes)
        floats = n_batch * each + n_batch * n_masked // 2 + n_batch * n_indexed * 3 // 10
    else:
        gates = query if sizes.linear.layers else 0
        if sizes.streams > 1:
            attention += sizes.inner + sizes.streams * sizes.width
        table = sizes.heads * n_cells + n_masked + 4 * n_indexed
        # Values are stored one by one, each with its place, a 64-bit number.
        places = 2 * sizes.kv_heads * sizes.head_v
        floats = n_batch * max(others + n_masked + places, attention + gates + table)
    widest = max(sizes.ffn, sizes.mixture.n_used * sizes.mixture.ffn)
    return F32_BYTES * (max(floats, output) + sizes.n_vocab) + work(widest, n_batch)


def _mixture(sizes: TextSizes) -> int:
    """Return the floats per token of experts, 0 without any."""
    mixture = sizes.mixture
    if not mixture.n_experts:
        return 0
    inside, outside = mixture.n_used * mixture.ffn, mixture.n_used * sizes.width
    floats = max(3 * inside - sizes.width, 2 * outside)
    if mixture.shared_ffn:
        shared = 3 * mixture.shared_ffn + 2 * sizes.width
        floats = max(3 * inside + outside, 2 * outside, shared)
    routed = 2 * mixture.n_experts + mixture.n_used
    return floats + sizes.input + 5 * sizes.width + routed


def _streams(sizes: TextSizes) -> int:
    """Return the floats per token of streams that are predicted and corrected layer by layer."""
    wide = 4 * sizes.streams * sizes.width
    moments = (
        3 * sizes.ffn + wide,
        wide + sizes.width + _ROUTING,
        3 * sizes.inner + 4 * sizes.width,
    )
    return sizes.inner + max(moments)


def _linear(sizes: TextSizes) -> int:
    """Return the floats per token of linear attention, 0 without any."""
    linear = sizes.linear
    if not linear.layers:
        return 0
    # The convolution begins with the tokens before the batch, fewer than an eighth of it.
    return (
        3 * linear.width + linear.width // 128 + sizes.input + 2 * sizes.width + 4 * linear.n_heads
    )


def work(width: int, n_rows: int) -> int:
    """Return the bytes of activations as the matrix kernels take them, at most F16."""
    return 2 * width * n_rows


def _n_cells(n_tokens: int) -> int:
    return -(-n_tokens // _CACHE_STEP) * _CACHE_STEP


def _n_window_cells(sizes: TextSizes, n_ctx: int) -> int:
    """Return the cells of layers with a window: that and a batch (llama-kv-cache-iswa.cpp)."""
    if not sizes.kv_heads_with_window:
        return 0
    return _n_cells(min(n_ctx, sizes.window + min(N_BATCH, n_ctx)))
