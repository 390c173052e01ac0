"""Feed-forward rows of a projector that no block divides: zeros until one does.

SigLIP-so400m has 4304 hidden channels, Qwen2.5-VL 3420: their `ffn_down` would stay in 16 bits at
every level, a quarter of the file. A hidden channel more, whose row of `ffn_up` (and `ffn_gate`),
bias and column of `ffn_down` are all zeros, adds a zero to every sum: the result is the same,
whatever the activation makes of 0. llama.cpp takes the sizes from the tensors and only logs
`feed_forward_length` (tools/mtmd/clip.cpp, as vendored in llama-cpp-python 0.3.36). Embedding
widths and attention heads cannot grow so: norms and head sizes count every channel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgevlm_convert.encoder import TensorInfo
from edgevlm_convert.metadata import u32

from edgevlm.ggml_types import tensor_n_bytes
from edgevlm.quantize.tensors import FLOATS, integer

# The largest block, so that one file's rows suit every type.
_MULTIPLE = 256
_DOWN = "ffn_down"
_LENGTH_KEY = "clip.vision.feed_forward_length"
_TOWER_DOWN = re.compile(r"v\.blk\.\d+\.ffn_down\.weight")


@dataclass(frozen=True, kw_only=True)
class _FeedForward:
    """The tensors of one feed-forward network, `ffn_down` [width, n_hidden] among them."""

    down: TensorInfo
    inner: tuple[TensorInfo, ...]

    @property
    def n_hidden(self) -> int:
        return self.down.shape[-1]


def padded_shapes(
    tensors: Sequence[TensorInfo],
    metadata: Mapping[str, object],
    types_of: Callable[[Sequence[TensorInfo]], Mapping[str, str]],
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the feed-forward tensors that grow, by name.

    All networks of a tower grow or none, so that one number describes them, and only where the file
    becomes smaller by it: never one in 16 bits.

    Args:
        tensors: all tensors of a projector.
        metadata: of the file, each with a `.value`.
        types_of: chooses the type of every tensor by name, by its shape as well.
    """
    width = integer(metadata, "clip.vision.embedding_length") or 0
    alike: dict[str, list[_FeedForward]] = {}
    for network in _networks(tensors, width):
        alike.setdefault(re.sub(r"\d+", "N", network.down.name), []).append(network)
    shapes: dict[str, tuple[int, ...]] = {}
    types = types_of(tensors)
    for networks in alike.values():
        grown: dict[str, tuple[int, ...]] = {}
        for network in networks:
            n_hidden = _padded(network.n_hidden, width)
            grown[network.down.name] = (*network.down.shape[:-1], n_hidden)
            grown |= {tensor.name: (n_hidden, *tensor.shape[1:]) for tensor in network.inner}
        after = [replace(t, shape=grown[t.name]) for t in tensors if t.name in grown]
        before = [tensor for tensor in tensors if tensor.name in grown]
        if _n_bytes(after, types_of(after)) < _n_bytes(before, types):
            shapes |= grown
    return shapes


def _n_bytes(tensors: Sequence[TensorInfo], types: Mapping[str, str]) -> int:
    return sum(tensor_n_bytes(tensor.shape, types[tensor.name]) for tensor in tensors)


def padded_metadata(
    tensors: Sequence[TensorInfo], metadata: Mapping[str, object]
) -> dict[str, object]:
    """Return `feed_forward_length` anew where the tensors have grown."""
    before = integer(metadata, _LENGTH_KEY)
    lengths = {t.shape[-1] for t in tensors if _TOWER_DOWN.fullmatch(t.name) and t.shape}
    width = integer(metadata, "clip.vision.embedding_length") or 0
    if before is None or before in lengths or lengths != {_padded(before, width)}:
        return {}
    return {_LENGTH_KEY: u32(lengths.pop())}


def _padded(n_hidden: int, width: int) -> int:
    """Return the next length that every block divides."""
    length = -(-n_hidden // _MULTIPLE) * _MULTIPLE
    # llama.cpp takes `ffn_down` with rows of the tower's width for an `ffn_up` of old files.
    return length + _MULTIPLE if length == width else length


def _networks(tensors: Sequence[TensorInfo], width: int) -> list[_FeedForward]:
    """Return the feed-forward networks whose tensors are all there, in floats, and fit together."""
    by_name = {tensor.name: tensor for tensor in tensors}
    found: list[_FeedForward] = []
    for down in tensors:
        if not down.name.endswith(f"{_DOWN}.weight") or len(down.shape) != 2:
            continue
        names = [down.name.replace(_DOWN, part) for part in ("ffn_up", "ffn_gate")]
        names += [name.removesuffix("weight") + "bias" for name in names]
        inner = tuple(by_name[name] for name in names if name in by_name)
        network = _FeedForward(down=down, inner=inner)
        if names[0] in by_name and _fits_together(network, width):
            found.append(network)
    return found


def _fits_together(network: _FeedForward, width: int) -> bool:
    """Whether sizes are those of a network from and to the tower; old files have names swapped."""
    return network.down.shape[0] == width and all(
        tensor.type in FLOATS and len(tensor.shape) in (1, 2) and tensor.shape[0] == size
        for tensor, size in [
            (network.down, width),
            *((tensor, network.n_hidden) for tensor in network.inner),
        ]
    )
