"""Numbers of a header that llama.cpp takes for granted: of another type or size, they end it.

libmtmd reads the keys of a projector by functions that assert their type (gguf_get_val_u32 of
ggml/src/gguf.cpp), and divides its width by its heads; ggml asserts that the sections of a rotary
embedding fit into a head (ggml/src/ggml-cpu/ops.cpp, ggml_mrope_cache_init). Facts: tools/mtmd/
clip.cpp and clip-impl.h as vendored in llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import math

from edgevlm.errors import GGUFError
from edgevlm.gguf_file import GGUFFile
from edgevlm.runtime.header import number, numbers

_HINT = "convert the model again"
# LLAMA_MAX_LAYERS of src/llama-hparams.h.
_MAX_BLOCKS = 512
_COUNTS = (
    *("embedding_length", "feed_forward_length", "block_count", "projection_dim"),
    *("attention.head_count", "attention.head_count_kv", "attention.head_dim", "image_size"),
    *("image_min_pixels", "image_max_pixels", "preproc_min_tiles", "preproc_max_tiles"),
    *("preproc_image_size", "patch_size", "projector.scale_factor", "projector.query_side"),
    *("projector.window_side", "spatial_merge_size", "n_wa_pattern", "window_size"),
    *("sam.head_count", "sam.block_count", "sam.embedding_length", "expert_used_count"),
)
_TYPES = {
    **{f"clip.vision.{key}": "UINT32" for key in _COUNTS},
    "clip.minicpmv_query_num": "UINT32",
    "clip.minicpmv_version": "INT32",
    "clip.vision.attention.layer_norm_epsilon": "FLOAT32",
    "clip.vision.swiglu_clamp": "FLOAT32",
    **dict.fromkeys(("clip.has_vision_encoder", "clip.has_audio_encoder"), "BOOL"),
    **dict.fromkeys(("clip.has_gen_audio_encoder", "clip.use_gelu", "clip.use_silu"), "BOOL"),
    **dict.fromkeys(("clip.projector_type", "clip.vision.projector_type"), "STRING"),
    **dict.fromkeys(("clip.vision.mm_patch_merge_type", "general.name"), "STRING"),
    "general.description": "STRING",
}


def check_projector_numbers(file: GGUFFile) -> None:
    """Check types of keys, heads, blocks and the norms' epsilon.

    Raises:
        GGUFError: one that would end the process.
    """
    for key, wanted in _TYPES.items():
        entry = file.metadata.get(key)
        if entry is not None and entry.type != wanted:
            raise GGUFError(
                f"`{file.path}` has `{key}` of type {entry.type} instead of {wanted}", hint=_HINT
            )
    width, heads = (
        number(file, f"clip.vision.{key}") for key in ("embedding_length", "attention.head_count")
    )
    if heads and "clip.vision.attention.head_dim" not in file.metadata and width % heads:
        raise GGUFError(
            f"`{file.path}` has {heads} attention heads, which do not divide its width {width}",
            hint=_HINT,
        )
    _check_epsilon(file, "clip.vision.attention.layer_norm_epsilon")
    _check_blocks(file, "clip.vision.block_count")


def check_text_numbers(file: GGUFFile) -> None:
    """Check blocks, the norms' epsilon, and that the parts of a rotary embedding fit into a head.

    Raises:
        GGUFError: one that would end the process.
    """
    for key in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        _check_epsilon(file, f"{file.architecture}.attention.{key}")
    _check_blocks(file, f"{file.architecture}.block_count")
    _check_rope_sections(file)


def _check_blocks(file: GGUFFile, key: str) -> None:
    n_blocks = number(file, key)
    if n_blocks > _MAX_BLOCKS:
        raise GGUFError(
            f"`{file.path}` has {key} = {n_blocks}, llama.cpp takes {_MAX_BLOCKS}", hint=_HINT
        )


def _check_epsilon(file: GGUFFile, key: str) -> None:
    entry = file.metadata.get(key)
    value = entry.value if entry is not None and entry.type == "FLOAT32" else 0.0
    if not isinstance(value, float) or not 0 <= value < math.inf:
        raise GGUFError(f"`{file.path}` has {key} = {value}", hint=_HINT)


def _check_rope_sections(file: GGUFFile) -> None:
    prefix = file.architecture
    if f"{prefix}.rope.dimension_sections" not in file.metadata:
        return
    sections = numbers(file, f"{prefix}.rope.dimension_sections")
    width, heads = (
        number(file, f"{prefix}.{key}") for key in ("embedding_length", "attention.head_count")
    )
    head = number(file, f"{prefix}.attention.key_length") or (width // heads if heads else 0)
    if min(sections, default=0) < 0 or not any(sections[:3]) or (head and sum(sections) > head):
        raise GGUFError(
            f"`{file.path}` has rotary sections {sections} in heads of {head}", hint=_HINT
        )
