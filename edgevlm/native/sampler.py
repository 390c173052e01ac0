"""A sampler chain: the next token from the logits of the last decode."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from edgevlm.errors import ModelLoadError
from edgevlm.native.handle import owned
from edgevlm.native.library import load_library
from edgevlm.native.text_model import TextContext


class Sampler:
    """Picks tokens. Made by `open_sampler`."""

    def __init__(self, handle: int) -> None:
        self._c: Any = load_library().llama
        self._handle = handle

    def next_token(self, context: TextContext) -> int:
        """Return the next token id, from the last position of the last decode."""
        return int(self._c.llama_sampler_sample(self._handle, context.handle, -1))


@contextmanager
def open_sampler(
    *, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> Generator[Sampler]:
    """Build a sampler chain; at temperature 0 it takes the most likely token, always.

    The order is llama.cpp's own: top-k, top-p, min-p, temperature, then the draw.

    Args:
        temperature: 0 or more.
        top_k: most candidates; 0 for all.
        top_p: cumulative probability kept; 1 for all.
        min_p: probability relative to the best candidate; 0 for all.
        seed: 32 bits.
    """
    c: Any = load_library().llama
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    with owned(
        chain, c.llama_sampler_free, error=lambda: ModelLoadError("llama.cpp has no sampler")
    ) as handle:
        if temperature == 0:
            links = [c.llama_sampler_init_greedy()]
        else:
            links = [
                c.llama_sampler_init_top_k(top_k),
                c.llama_sampler_init_top_p(top_p, 1),
                c.llama_sampler_init_min_p(min_p, 1),
                c.llama_sampler_init_temp(temperature),
                c.llama_sampler_init_dist(seed),
            ]
        for link in links:
            c.llama_sampler_chain_add(handle, link)  # the chain owns its links
        yield Sampler(handle)
