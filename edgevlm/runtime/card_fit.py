"""How many layers go on a card that has no room for all of them.

llama.cpp puts every layer there unless it is told how many, and a card that is full ends the
loading. `--gpu-layers N` takes the output and the last N - 1 layers (src/llama-model.cpp,
`i_gpu_start`); keys and values of a layer lie where the layer does. The projector, its largest
image, and one batch of the text model are on the card in any case. A matrix that stayed in RAM is
copied to the card when many tokens are read at once, so there must be room for the largest.

The numbers are those of footprint.py, which were measured in RAM. What CUDA itself takes (a
context, its kernels, cuBLAS's workspace) was measured nowhere yet: the share left for it is a guess
on the safe side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgevlm.gguf_file import GGUFFile
from edgevlm.native.devices import Device
from edgevlm.runtime.footprint import Footprint
from edgevlm.runtime.header import numbers

# Per card, besides what is counted.
_OVERHEAD_BYTES = 512 << 20
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class CardFit:
    """Where a model goes.

    Attributes:
        n_gpu_layers: layers on the card, the output counted as one; None: all.
        n_layers: that there are, the output counted as one.
        is_usable: whether the card has room for anything at all.
    """

    n_gpu_layers: int | None
    n_layers: int
    is_usable: bool = True


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What `open_vlm` is told.

    Attributes:
        device: as it takes it.
        gpu_layers: as it takes it.
        note: what to tell the user; "" when nothing was changed.
    """

    device: str
    gpu_layers: int | None
    note: str = ""


def place(fit: CardFit | None, device: str, gpu_layers: int | None) -> Placement:
    """Return where a model is put that was asked for on `device`.

    Args:
        fit: of `fit_layers`; None leaves everything as it was asked.
        device: as the user said.
        gpu_layers: as the user said.
    """
    if fit is None or fit.n_gpu_layers is None:
        return Placement(device=device, gpu_layers=gpu_layers)
    if device == "auto" and not fit.is_usable:
        return Placement(
            device="cpu", gpu_layers=None, note="the card has no room for the model: it runs on CPU"
        )
    return Placement(
        device=device,
        gpu_layers=fit.n_gpu_layers,
        note=f"{fit.n_gpu_layers} of {fit.n_layers} layers have room on the card"
        " (another number: --gpu-layers)",
    )


def own_memory(found: Sequence[Device]) -> tuple[Device, ...]:
    """Return the cards with memory of their own; Apple's GPU shares the machine's."""
    return tuple(one for one in found if one.kind == "gpu" and one.backend != "MTL")


def fit_layers(text: GGUFFile, need: Footprint, cards: Sequence[Device]) -> CardFit:
    """Return how many layers have room on the cards.

    Args:
        text: header of the text model.
        need: the prediction for it and its projector.
        cards: of `own_memory`, at least one.
    """
    layers = _layer_bytes(text, need)
    room = sum(card.free_n_bytes - _OVERHEAD_BYTES - need.text_compute for card in cards)
    room -= need.mmproj + need.vision_compute
    if sum(layers) <= room:
        return CardFit(n_gpu_layers=None, n_layers=len(layers))
    room -= max((tensor.n_bytes for tensor in text.tensors), default=0)
    n_fitting = 0
    for n_bytes in reversed(layers):
        room -= n_bytes
        if room < 0:
            break
        n_fitting += 1
    return CardFit(n_gpu_layers=n_fitting, n_layers=len(layers), is_usable=n_fitting > 0)


def card_n_bytes(text: GGUFFile, need: Footprint) -> int:
    """Return what a model takes of one card that has all its layers, besides CUDA's own share."""
    computing = need.text_compute + need.vision_compute
    return sum(_layer_bytes(text, need)) + need.mmproj + computing


def _layer_bytes(text: GGUFFile, need: Footprint) -> list[int]:
    """Return the bytes of each layer with its part of the KV cache, and last of the output."""
    named = {int(match[1]) for tensor in text.tensors if (match := _LAYER.match(tensor.name))}
    # The header's count may be absurd, or leave out layers that are never loaded.
    n_counted = max(numbers(text, f"{text.architecture}.block_count"), default=0)
    n_layers = min(n_counted, max(named, default=-1) + 1)
    layers = [0] * (n_layers + 1)
    embedding = 0
    for tensor in text.tensors:
        match = _LAYER.match(tensor.name)
        if match:
            layers[min(int(match[1]), n_layers)] += tensor.n_bytes
        elif tensor.name.startswith("token_embd."):
            embedding += tensor.n_bytes
        else:
            layers[-1] += tensor.n_bytes
    if all(tensor.name != "output.weight" for tensor in text.tensors):
        layers[-1] += embedding  # tied: a copy of it is the output
    kept = need.kv_cache + need.recurrent_state
    return [*(n_bytes + kept // max(1, n_layers) for n_bytes in layers[:-1]), layers[-1]]
