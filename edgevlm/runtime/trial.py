"""Does what is installed run a model at all? A tiny one is made, loaded and asked.

Libraries that load may still end the process at the first model: another compiler's libstdc++
linked in, a card for which the build has no kernels, a processor without its instructions. The
model's weights are zeros save for an embedding in which "b" stands where "a" points, so the answer
to "a" is "b" on a device that computes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import EdgeVLMError, EngineError
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.worker import open_worker

# Heads of 64, for which every backend has flash attention.
_N_EMBD, _N_FF, _N_CTX = 64, 64, 256
_TOKENS, _NORMAL, _CONTROL = ("a", "b", "<end>"), 1, 3
_END = 2


def try_device(device: str) -> EdgeVLMError | None:
    """Load the tiny model on a device, in a process of its own, and ask it.

    Args:
        device: as `open_vlm` takes it.

    Returns:
        What went wrong, None when it answered as it must.
    """
    with tempfile.TemporaryDirectory(prefix="edgevlm-") as folder:
        path = Path(folder) / "tiny.gguf"
        write_tiny_model(path)
        try:
            with open_worker(model=path, n_ctx=_N_CTX, n_threads=1, device=device) as worker:
                answer = worker.generate("a", params=SamplingParams(max_tokens=1)).text
        except EdgeVLMError as error:
            return error
    if answer != "b":
        return EngineError(
            f'llama.cpp computes wrong numbers: a model that must say "b" says {answer!r}',
            hint="build llama-cpp-python from source on this machine",
        )
    return None


def write_tiny_model(path: Path) -> None:
    """Write a text model of one layer, in the architecture of llama, with three tokens."""
    from edgevlm_convert.encoder import TensorInfo
    from edgevlm_convert.metadata import Value, array, f32, string, u32
    from edgevlm_convert.writer import OutputTensor, plan_gguf, write_gguf

    metadata: dict[str, Value] = {
        "general.architecture": string("llama"),
        "general.type": string("model"),
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": array("STRING", _TOKENS),
        "tokenizer.ggml.token_type": array("INT32", [_NORMAL, _NORMAL, _CONTROL]),
        "tokenizer.ggml.merges": array("STRING", ["a b"]),
        "tokenizer.ggml.eos_token_id": u32(_END),
        "tokenizer.chat_template": string("{{ messages[0]['content'] }}"),
        "llama.context_length": u32(_N_CTX),
        "llama.embedding_length": u32(_N_EMBD),
        "llama.block_count": u32(1),
        "llama.feed_forward_length": u32(_N_FF),
        "llama.attention.head_count": u32(1),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
    }

    def tensor(name: str, values: NDArray[np.float32], kind: str) -> OutputTensor:
        rows = values.reshape(-1, values.shape[-1])
        return OutputTensor(
            info=TensorInfo(name=name, shape=values.shape, type=kind),
            read=lambda start, stop: rows[start:stop],
        )

    tensors = [
        tensor(f"{name}.weight", values, "F16" if values.ndim > 1 else "F32")
        for name, values in _weights().items()
    ]
    write_gguf(plan_gguf(metadata=metadata, tensors=tensors), path, n_threads=1)


def _weights() -> dict[str, NDArray[np.float32]]:
    embedding = np.zeros((len(_TOKENS), _N_EMBD), dtype=np.float32)
    embedding[:2, 0] = 1, 2
    matrices = {
        **{f"attn_{name}": (_N_EMBD, _N_EMBD) for name in ("q", "k", "v", "output")},
        **{f"ffn_{name}": (_N_FF, _N_EMBD) for name in ("gate", "up")},
        "ffn_down": (_N_EMBD, _N_FF),
        **{f"{name}_norm": (_N_EMBD,) for name in ("attn", "ffn")},
    }
    return {
        "token_embd": embedding,
        "output_norm": np.ones(_N_EMBD, dtype=np.float32),
        **{f"blk.0.{name}": np.zeros(shape, np.float32) for name, shape in matrices.items()},
    }
