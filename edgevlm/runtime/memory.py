"""Refuse a model that does not fit into the memory that is free now, and say what would fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgevlm.errors import EdgeVLMError, ModelLoadError
from edgevlm.files import human_bytes
from edgevlm.gguf_file import GGUFFile, read_gguf
from edgevlm.gguf_shards import read_model
from edgevlm.model_dir import open_model_dir
from edgevlm.native.devices import Device, devices, gpu_libraries
from edgevlm.native.system import Memory, read_memory, read_processor
from edgevlm.runtime.card_fit import CardFit, fit_layers, own_memory, place
from edgevlm.runtime.footprint import DEFAULT_N_CTX, Footprint, predict_footprint

if TYPE_CHECKING:
    from edgevlm.native.text_context import FlashAttention, KVType

_CTX_STEP = 256
# Q4_K_M over everything but norms: what it comes to on the models that were measured.
_Q4_K_M_BITS = 5.0
_WORTH_IT_BITS = 6.0
_HINT_YES = "; `--yes` tries it anyway"


@dataclass(frozen=True, kw_only=True)
class MemoryCheck:
    """A prediction beside what there is.

    Attributes:
        footprint: the prediction.
        memory: of the machine, now.
        gpu_free_n_bytes: free memory of cards that may take layers, 0 without one.
        fit: how much of the model has room on the cards; None without one, or where the user
            said how many layers go there.
    """

    footprint: Footprint
    memory: Memory
    gpu_free_n_bytes: int
    fit: CardFit | None = None

    @property
    def available_n_bytes(self) -> int:
        """What the model may take: free memory, and that of the cards."""
        return self.memory.available_n_bytes + self.gpu_free_n_bytes

    @property
    def fits(self) -> bool:
        """Whether the prediction is within what is available."""
        return self.footprint.needed_n_bytes <= self.available_n_bytes


class _Predict(Protocol):
    def __call__(self, text: GGUFFile, *, n_ctx: int) -> Footprint: ...


def check_memory(
    text: Path,
    mmproj: Path | None,
    *,
    n_ctx: int | None,
    kv_type: KVType = "F16",
    flash_attention: FlashAttention = "auto",
    device: str = "auto",
    gpu_layers: int | None = None,
    image_sizes: Sequence[tuple[int, int]] = (),
    override: bool = False,
    memory: Memory | None = None,
    found: Sequence[Device] | None = None,
) -> MemoryCheck:
    """Predict the memory of a chat from the files' headers, and refuse what does not fit.

    Reads headers and the system's own numbers, in milliseconds; llama.cpp is loaded only where a
    GPU backend is installed, to ask the cards. Memory of a card of its own counts as available.

    Args:
        text: the text model's GGUF file; its folder is searched for a level that would fit.
        mmproj: the projector's, None for none.
        n_ctx: context length in tokens, None for the default.
        kv_type: tensor type of the KV cache.
        flash_attention: as `open_vlm` takes it; "auto" is on.
        device: as `open_vlm` takes it.
        gpu_layers: as `open_vlm` takes it.
        image_sizes: (width, height) in pixels of the images that are known already.
        override: do not refuse (`--yes`).
        memory: what the machine has; None reads it.
        found: the devices, where somebody else has asked: to ask CUDA takes some of the card's
            memory for as long as the process lives. None asks.

    Raises:
        ModelLoadError: it does not fit; the hint names the level or the `--ctx` that would.
        SourceNotFoundError: a file is missing.
        GGUFError: a header is broken.
    """
    file = read_model(text)
    projector = read_gguf(mmproj) if mmproj is not None else None
    predict: _Predict = partial(
        predict_footprint,
        mmproj=projector,
        kv_type=kv_type,
        flash_attention=flash_attention != "off",
        image_sizes=image_sizes,
        features=read_processor().features,
    )
    need = predict(file, n_ctx=_context_length(file, n_ctx))
    cards = _cards(device, found)
    fit = fit_layers(file, need, cards) if cards and gpu_layers is None else None
    if place(fit, device, gpu_layers).device == "cpu":
        cards = ()
    check = MemoryCheck(
        footprint=need,
        memory=memory if memory is not None else read_memory(),
        gpu_free_n_bytes=_gpu_free(cards, need, gpu_layers),
        fit=fit,
    )
    if not check.fits and not override:
        raise _too_large(file, check, predict, levels=_other_levels(file))
    return check


def _context_length(file: GGUFFile, asked: int | None) -> int:
    """A context beyond the model's own is `open_vlm`'s to refuse, not a matter of memory."""
    entry = file.metadata.get(f"{file.architecture}.context_length")
    own = entry.value if entry is not None else None
    wanted = DEFAULT_N_CTX if asked is None else asked
    return min(wanted, own) if isinstance(own, int) and own > 0 else wanted


def _cards(device: str, found: Sequence[Device] | None) -> tuple[Device, ...]:
    if device == "cpu" or not gpu_libraries():
        return ()
    return own_memory(devices() if found is None else found)


def _gpu_free(cards: Sequence[Device], need: Footprint, gpu_layers: int | None) -> int:
    free = sum(one.free_n_bytes for one in cards)
    # Without layers the card still takes the projector.
    return min(free, need.mmproj + need.vision_compute) if gpu_layers == 0 else free


def _too_large(
    file: GGUFFile, check: MemoryCheck, predict: _Predict, *, levels: Sequence[GGUFFile]
) -> ModelLoadError:
    need, n_ctx = check.footprint, check.footprint.n_ctx
    cards = f" and {human_bytes(check.gpu_free_n_bytes)} on the GPU"
    message = (
        f"`{file.path.name}` needs {human_bytes(need.needed_n_bytes)} of memory at --ctx {n_ctx}"
        f" (weights {human_bytes(need.weights + need.mmproj)},"
        f" KV cache {human_bytes(need.kv_cache)}),"
        f" {human_bytes(check.memory.available_n_bytes)} are available"
        f"{cards if check.gpu_free_n_bytes else ''} ({check.memory.source})"
    )
    options = _fitting_options(file, n_ctx, predict, check.available_n_bytes, levels)
    if options:
        ways = f"{' or '.join(options)} would fit"
    elif _quantizing_helps(file, need, check.available_n_bytes):
        ways = (
            f"make a smaller level: `edgevlm quantize {file.path.parent} --level Q4_K_M` (about"
            f" {human_bytes(_q4_n_bytes(file))})"
        )
    else:
        ways = "close other programs, or choose a smaller model"
    return ModelLoadError(message, hint=ways + _HINT_YES)


def _fitting_options(
    file: GGUFFile, n_ctx: int, predict: _Predict, room: int, levels: Sequence[GGUFFile]
) -> list[str]:
    """Return what would fit: the largest level, the longest context, else both smaller."""
    options: list[str] = []
    fitting = [level for level in levels if predict(level, n_ctx=n_ctx).needed_n_bytes <= room]
    if fitting:
        best = max(fitting, key=lambda level: level.n_data_bytes)
        options.append(f"`--level {best.file_type}`")
    shorter = _fitting_ctx(file, n_ctx, predict, room)
    if shorter is not None:
        options.append(f"`--ctx {shorter}`")
    if not options and levels:
        smallest = min(levels, key=lambda level: level.n_data_bytes)
        shorter = _fitting_ctx(smallest, n_ctx, predict, room)
        if shorter is not None:
            options.append(f"`--level {smallest.file_type} --ctx {shorter}`")
    return options


def _fitting_ctx(file: GGUFFile, n_ctx: int, predict: _Predict, room: int) -> int | None:
    """Return the longest context that fits, in steps of 256; None when not even the shortest."""
    low, high = 0, (n_ctx - 1) // _CTX_STEP
    while low < high:
        middle = (low + high + 1) // 2
        if predict(file, n_ctx=middle * _CTX_STEP).needed_n_bytes <= room:
            low = middle
        else:
            high = middle - 1
    return low * _CTX_STEP or None


def _q4_n_bytes(file: GGUFFile) -> int:
    return int(file.n_weights * _Q4_K_M_BITS / 8)


def _quantizing_helps(file: GGUFFile, need: Footprint, room: int) -> bool:
    saved = need.weights - _q4_n_bytes(file)
    return file.bits_per_weight > _WORTH_IT_BITS and need.needed_n_bytes - saved <= room


def _other_levels(file: GGUFFile) -> list[GGUFFile]:
    """Return the same model's smaller text files in its folder; none that cannot be read."""
    try:
        found = open_model_dir(file.path.absolute().parent).of_role("text")
        headers = [read_model(one.path) for one in found]
    except EdgeVLMError:
        return []
    return [
        header
        for header in headers
        # A folder of downloads may hold other models: the same number of weights is the same one.
        if header.n_weights == file.n_weights
        and header.file_type is not None
        and header.n_data_bytes < file.n_data_bytes
    ]
