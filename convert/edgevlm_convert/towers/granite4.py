"""Granite 4 Vision's projectors: each a window Q-Former over one layer of a SigLIP tower.

Their outputs are streams of visual features, added before several layers of the text model. Facts:
names from llama.cpp conversion/granite.py and gguf-py tensor_mapping.py; what the graph computes
from tools/mtmd/models/granite4-vision.cpp; config keys from transformers' `Granite4VisionConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from edgevlm_convert.config import MAX_LAYERS, MAX_WIDTH, Section
from edgevlm_convert.family import Source
from edgevlm_convert.rules import Drop, Rename, Rule
from edgevlm_convert.towers.vision import TowerSizes, pair

_SPATIAL_LAYERS = [12, 15, 18, 21]
_N_SPATIAL = 4
# Of the Q-Former's heads; the graph knows no other.
_HEAD_DIM = 64
_QFORMER_FF = 3072
_LAYER = "qformer.encoder.layer.0."
_SQUARE = {
    "attention.attention.query": "self_attn_q",
    "attention.attention.key": "self_attn_k",
    "attention.attention.value": "self_attn_v",
    "attention.output.dense": "self_attn_out",
    "crossattention.attention.query": "cross_attn_q",
    "crossattention.attention.key": "cross_attn_k",
    "crossattention.attention.value": "cross_attn_v",
    "crossattention.output.dense": "cross_attn_out",
}
_NORMS = {
    "norm": "norm",
    "qformer.layernorm": "post_norm",
    f"{_LAYER}attention.output.LayerNorm": "self_attn_norm",
    f"{_LAYER}crossattention.output.LayerNorm": "cross_attn_norm",
    f"{_LAYER}output_query.LayerNorm": "ffn_norm",
}


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One projector.

    Attributes:
        tower_layer: block of the tower whose output it reads, from 0.
        text_layer: layer of the text model that its features are added before.
        source: what its tensors' names begin with, behind the model's prefix.
        offset: corner of each 2 x 2 patches that it samples; -1: it takes their mean.
    """

    tower_layer: int
    text_layer: int
    source: str
    offset: int


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How many patches a window's side has, and how many visual tokens become of them."""

    patches: int
    tokens: int


def read_streams(source: Source) -> list[Stream]:
    """Return the projectors by the layer of the text model that they go to.

    Raises:
        CheckpointError: a layer that there is not, two for one, or none for the first.
    """
    config = source.config
    n_tower = source.vision.integer("num_hidden_layers", low=1, high=MAX_LAYERS, default=12)
    n_text = source.text.integer("num_hidden_layers", low=1, high=MAX_LAYERS)
    streams = [
        Stream(
            tower_layer=tower,
            text_layer=text % n_text,
            source=f"layerwise_projectors.{number}.",
            offset=-1,
        )
        for number, (tower, text) in enumerate(_read_map(config, n_tower, n_text))
    ]
    targets = "spatial_target_layers"
    layers = (
        config.integers(targets, low=-n_text, high=n_text - 1, max_length=_N_SPATIAL)
        if config.has(targets)
        else _SPATIAL_LAYERS
    )
    key = "spatial_vision_layer"
    number = config.integer(key, low=-n_tower, high=n_tower, default=-1)
    streams += [
        Stream(
            tower_layer=_block(config, key, number, n_tower),
            text_layer=layer % n_text,
            source=f"spatial_projectors.{offset}.",
            offset=offset,
        )
        for offset, layer in enumerate(layers)
    ]
    streams.sort(key=lambda stream: stream.text_layer)
    reached = [stream.text_layer for stream in streams]
    if reached[:1] != [0] or len(set(reached)) != len(reached):
        config.fail(
            "deepstack_layer_map",
            "another layer of the text model in each pair, the first one among them",
        )
    return streams


def _read_map(config: Section, n_tower: int, n_text: int) -> list[tuple[int, int]]:
    """Return blocks of the tower and layers of the text model, in the order of the projectors."""
    key = "deepstack_layer_map"
    expected = "a list of pairs: a layer of the tower, a layer of the text model"
    found = config.raw(key)
    if not isinstance(found, list) or len(cast(list[object], found)) > n_text:
        config.fail(key, expected)
    pairs: list[tuple[int, int]] = []
    for entry in cast(list[object], found):
        numbers = cast(list[object], entry) if isinstance(entry, list) else []
        if len(numbers) != 2 or not all(type(number) is int for number in numbers):
            config.fail(key, expected)
        tower, text = cast(list[int], numbers)
        if not -n_text <= text < n_text:
            config.fail(key, f"layers of the text model's {n_text}")
        pairs.append((_block(config, key, tower, n_tower), text))
    return pairs


def _block(config: Section, key: str, number: int, n_tower: int) -> int:
    """Return the block whose output is meant: 0 is the input of the first, -1 the last output."""
    block = number - 1 if number > 0 else n_tower + number
    if number == 0 or not 0 <= block < n_tower:
        config.fail(key, f"layers behind the {n_tower} blocks of the tower")
    return block


def read_windows(config: Section, sizes: TowerSizes) -> Windows:
    """Return how patches become tokens.

    Raises:
        CheckpointError: windows that do not fill the image, or that the graph samples otherwise.
    """
    key = "downsample_rate"
    query, _, window = config.text(key).partition("/")
    expected = "a rate of one half, such as `4/8`, whose windows fill the tower's patches"
    if not all(part.isascii() and part.isdecimal() and len(part) < 4 for part in (query, window)):
        config.fail(key, expected)
    windows = Windows(patches=int(window), tokens=int(query))
    side = sizes.image_size // sizes.patch_size
    if not windows.tokens or windows.patches != 2 * windows.tokens or side % windows.patches:
        config.fail(key, expected)
    return windows


def read_qformer(config: Section, sizes: TowerSizes) -> int:
    """Return the width inside of its feed-forward networks.

    Raises:
        CheckpointError: an option that the graph does not compute.
    """
    key = "qformer_config"
    section = config.section(key) if config.has(key) else config.empty(key)
    # The class of this section alone would have other numbers.
    for name, usual in (("num_hidden_layers", 12), ("cross_attention_frequency", 2)):
        section.require(name, (1,), default=usual if config.has(key) else 1)
    section.require("hidden_act", ("gelu",), default="gelu")
    section.require("layer_norm_eps", (1e-12,), default=1e-12)
    section.require("use_qformer_text_input", (False,), default=False)
    if sizes.n_embd % _HEAD_DIM:
        config.fail("vision_config", f"a hidden_size of whole heads of {_HEAD_DIM} channels")
    return section.integer("intermediate_size", low=1, high=MAX_WIDTH, default=_QFORMER_FF)


def stream_rules(
    prefix: str, target: str, sizes: TowerSizes, windows: Windows, *, n_ff: int, n_text: int
) -> list[Rule]:
    """Return the rules of one projector.

    Args:
        prefix: of its tensors.
        target: of its tensors in the file.
        sizes: of the tower.
        windows: of the projector.
        n_ff: width inside of its feed-forward network.
        n_text: width of the text model.
    """
    width = sizes.n_embd
    rules: list[Rule] = [
        Rename(
            source=f"{prefix}image_positions",
            target=f"{target}img_pos",
            shape=(1, windows.patches**2, width),
        ),
        Rename(
            source=f"{prefix}query", target=f"{target}query", shape=(1, windows.tokens**2, width)
        ),
        *pair(f"{prefix}out_linear", f"{target}linear", (n_text, width)),
        *pair(f"{prefix}{_LAYER}intermediate_query.dense", f"{target}ffn_up", (n_ff, width)),
        *pair(f"{prefix}{_LAYER}output_query.dense", f"{target}ffn_down", (width, n_ff)),
    ]
    for name, to in _NORMS.items():
        rules += pair(f"{prefix}{name}", f"{target}{to}", (width,))
    for name, to in _SQUARE.items():
        rules += pair(f"{prefix}{_LAYER}{name}", f"{target}{to}", (width, width))
    return rules


def unused_rules(prefix: str, n_used: int, sizes: TowerSizes, windows: Windows) -> list[Rule]:
    """Return the rules of spatial projectors that no layer takes; the class always has four."""
    rules: list[Rule] = []
    for offset in range(n_used, _N_SPATIAL):
        named = stream_rules(
            f"{prefix}spatial_projectors.{offset}.", "", sizes, windows, n_ff=1, n_text=1
        )
        rules += [
            Drop(source=name, reason="no layer of the text model takes this projector's features")
            for rule in named
            for name in rule.shapes
        ]
    return rules
