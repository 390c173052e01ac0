"""Whether the installed llama.cpp reads the epsilon of a text model's norms: asked, not looked up.

The loader of llama-cpp-python 0.3.36 leaves `attention.layer_norm_rms_epsilon` unread for
`qwen2vl` (src/models/qwen2vl.cpp), so its norms divide with no epsilon at all, a fault that a newer
one may have mended. A tiny model whose epsilon is far above its embedding is made and
asked: with the epsilon, its logits stay near the embedding.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.native.text_context import ContextOptions, open_context
from edgevlm.native.text_model import ModelOptions, open_text_model

_WIDTH = 32
_EPSILON, _EMBEDDING = 1.0, 1e-3


@cache
def reads_norm_epsilon(architecture: str) -> bool:
    """Return whether the epsilon of an architecture's norms is heard.

    Args:
        architecture: "qwen2vl", or another of the same tensors.

    Raises:
        ModelLoadError: llama-cpp-python is missing, or refuses the model.
    """
    context = ContextOptions(n_ctx=8, n_batch=8, n_outputs=1, n_threads=1)
    with tempfile.TemporaryDirectory(prefix="edgevlm-") as folder:
        path = Path(folder) / "model.gguf"
        _write_model(path, architecture)
        with (
            open_text_model(path, ModelOptions(device="cpu", n_gpu_layers=0)) as model,
            open_context(model, context) as opened,
        ):
            opened.decode_tokens([0], n_logits=1)
            logits = opened.logits(1)[0]
    return is_heard(logits)


def is_heard(logits: NDArray[np.float32]) -> bool:
    """Return whether the tiny model's logits are those of norms with their epsilon.

    Args:
        logits: [n_vocab] float32, the last norm of the first token's embedding.
    """
    # With it the embedding itself, without it the square root of the width.
    return bool(np.abs(logits).max() < 1)


def _write_model(path: Path, name: str) -> None:
    """Write a model whose only layer changes nothing, and whose logits are its last norm."""
    from edgevlm_convert.encoder import TensorInfo
    from edgevlm_convert.metadata import Value, array, f32, string, u32
    from edgevlm_convert.writer import OutputTensor, plan_gguf, write_gguf

    metadata: dict[str, Value] = {
        "general.architecture": string(name),
        "general.type": string("model"),
        "general.file_type": u32(0),
        f"{name}.block_count": u32(1),
        f"{name}.context_length": u32(8),
        f"{name}.embedding_length": u32(_WIDTH),
        f"{name}.feed_forward_length": u32(_WIDTH),
        f"{name}.attention.head_count": u32(1),
        f"{name}.attention.layer_norm_rms_epsilon": f32(_EPSILON),
        f"{name}.rope.dimension_sections": array("INT32", [4, 6, 6, 0]),
        f"{name}.vocab_size": u32(_WIDTH),
        "tokenizer.ggml.model": string("none"),
    }

    def tensor(name: str, values: NDArray[np.float32]) -> OutputTensor:
        rows = values.reshape(-1, values.shape[-1])
        return OutputTensor(
            info=TensorInfo(name=name, shape=values.shape, type="F32"),
            read=lambda start, stop: rows[start:stop],
        )

    square = np.zeros((_WIDTH, _WIDTH), dtype=np.float32)
    ones, zeros = np.ones(_WIDTH, dtype=np.float32), np.zeros(_WIDTH, dtype=np.float32)
    tensors = {
        "token_embd.weight": _EMBEDDING * np.eye(_WIDTH, dtype=np.float32),
        "output_norm.weight": ones,
        "output.weight": np.eye(_WIDTH, dtype=np.float32),
        "blk.0.attn_norm.weight": ones,
        "blk.0.ffn_norm.weight": ones,
        **{f"blk.0.attn_{name}.weight": square for name in ("q", "k", "v", "output")},
        **{f"blk.0.attn_{name}.bias": zeros for name in "qkv"},
        **{f"blk.0.ffn_{name}.weight": square for name in ("gate", "up", "down")},
    }
    planned = [tensor(name, values.astype(np.float32)) for name, values in tensors.items()]
    write_gguf(plan_gguf(metadata=metadata, tensors=planned), path, n_threads=1)
