"""What must hold before llama.cpp may see a file.

libllama and libmtmd answer much of what is wrong by ending the process (a division by zero, an
assertion, a token that is not there), so kinds, counts and the tokens looked up are checked here,
on headers that `read_gguf` has found sound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgevlm.errors import GGUFError, ModelLoadError, PromptError
from edgevlm.gguf_file import GGUFFile, read_gguf
from edgevlm.gguf_shards import read_model
from edgevlm.runtime.canvases import CANVASES, MAX_ASPECTS
from edgevlm.runtime.deepseek_projector import check_deepseek_text
from edgevlm.runtime.frame_projector import check_markers
from edgevlm.runtime.gemma3n_projector import check_gemma3n_text, gemma3n_span
from edgevlm.runtime.gemma4_projector import check_gemma4_text, gemma4_span
from edgevlm.runtime.gemma4_unified_projector import GEMMA4_UNIFIED, gemma4_unified_span
from edgevlm.runtime.glm_projector import check_glm
from edgevlm.runtime.granite4_projector import check_granite4
from edgevlm.runtime.header_numbers import check_projector_numbers, check_text_numbers
from edgevlm.runtime.hunyuan_projector import check_hunyuan
from edgevlm.runtime.janus_projector import around_image, check_janus
from edgevlm.runtime.lfm2_projector import check_short_convolution
from edgevlm.runtime.mlp_projector import check_mlp
from edgevlm.runtime.pixtral_projector import check_pixtral
from edgevlm.runtime.prompt import IMAGE_SPANS, ImageSpan
from edgevlm.runtime.qwen4_text import check_qwen4_text
from edgevlm.runtime.qwen_projector import QWEN_KINDS, check_qwen, qwen_span
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.stretch_canvas import MAX_ASPECT as MAX_STRETCH_ASPECT
from edgevlm.runtime.stretch_canvas import StretchCanvas

# Those whose file says how images are written.
_SPANS: Mapping[str, Callable[[GGUFFile, ImageSpan], ImageSpan]] = {
    "gemma3nv": gemma3n_span,
    "gemma4v": gemma4_span,
    GEMMA4_UNIFIED: gemma4_unified_span,
}
_POSITIVE_TEXT_KEYS = ("block_count", "context_length", "embedding_length", "attention.head_count")
_POSITIVE_VISION_KEYS = ("image_size", "patch_size", "embedding_length")
# Those of a tower, which one type of projector has none of.
_POSITIVE_TOWER_KEYS = ("block_count", "attention.head_count")
# Twice what transformers scales an image to at most.
_MAX_LONGEST_EDGE = 8192
_FLOATS = ("F32", "F16", "BF16")
_PAIR_HINT = "use the mmproj that was converted with this model"
# `general.sampling.*` (gguf-py constants.py, Keys.General) -> SamplingParams.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repeat_penalty",
    "penalty_last_n": "repeat_last_n",
}
_SPECIAL_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """What a text model's header says that the runtime needs.

    Attributes:
        chat_templates: jinja2 texts by name; the one without a name is "default".
        special_token_ids: token ids as templates name them, "bos_token" and so on.
        normalizer: that llama.cpp leaves to us: "NFC" or "".
        sampling: what `general.sampling.*` says, by the names of SamplingParams.
        end_token_ids: that end an answer besides those that llama.cpp knows.
    """

    chat_templates: dict[str, str]
    special_token_ids: dict[str, int]
    normalizer: str
    sampling: dict[str, float | int]
    end_token_ids: tuple[int, ...]

    def chat_template(self, name: str | None) -> str | None:
        """Return a template by name; None asks for the default, or the only one.

        Raises:
            PromptError: there is none of that name.
        """
        if name is None and len(self.chat_templates) == 1:
            return next(iter(self.chat_templates.values()))
        found = self.chat_templates.get(name or "default")
        if found is not None or (name is None and not self.chat_templates):
            return found
        known = ", ".join(self.chat_templates) or "none"
        raise PromptError(
            f"the model file has no chat template named {name or 'default'!r}",
            hint=f"it has: {known}",
        )


def check_text_model(path: Path) -> tuple[GGUFFile, TextFacts]:
    """Read the header of a text model; of a split one, the headers of all its files.

    Raises:
        SourceNotFoundError: there is no such file.
        GGUFError: broken, or no text model.
    """
    file = read_model(path)
    if file.is_projector:
        raise GGUFError(
            f"`{path}` is a projector, not a text model",
            hint="name the text model with `-m` and this file with `--mmproj`",
        )
    kind = _string(file, "general.type")
    if kind not in (None, "model"):
        raise GGUFError(f"`{path}` is of type {kind!r}, not a model", hint="name a text model")
    if not file.architecture or not file.tensors or "tokenizer.ggml.model" not in file.metadata:
        raise GGUFError(f"`{path}` holds no text model", hint="name a text model's .gguf file")
    for key in _POSITIVE_TEXT_KEYS:
        _check_positive(file, f"{file.architecture}.{key}")
    _check_deepstack(file)
    check_text_numbers(file)
    check_short_convolution(file)
    check_gemma3n_text(file)
    check_gemma4_text(file)
    check_qwen4_text(file)
    check_deepseek_text(file)
    n_tokens = _n_tokens(file)
    ids = {name: _integer(file, key) for name, key in _SPECIAL_TOKENS.items()}
    return file, TextFacts(
        chat_templates=_chat_templates(file),
        special_token_ids={
            name: token for name, token in ids.items() if token is not None and token < n_tokens
        },
        normalizer=_string(file, "edgevlm.tokenizer.normalizer") or "",
        sampling=_sampling(file),
        end_token_ids=_end_token_ids(file, n_tokens),
    )


def check_projector(path: Path, text: GGUFFile) -> ImageSpan:
    """Read the header of a projector and hold it against its text model's.

    Raises:
        SourceNotFoundError: there is no such file.
        GGUFError: broken, or no projector for images.
        ModelLoadError: of a type that is not supported, or of another model.
    """
    file = read_gguf(path)
    if not file.is_projector:
        what = f"a text model ({file.architecture})" if file.architecture else "no projector"
        raise GGUFError(
            f"`{path}` is {what}, not an mmproj", hint="the projector's name begins with mmproj-"
        )
    if (_integer(file, "split.count") or 1) > 1:
        raise GGUFError(
            f"the projector `{path}` is in several files, which llama.cpp does not load",
            hint="join them: `llama-gguf-split --merge`",
        )
    if not _flag(file, "clip.has_vision_encoder"):
        raise GGUFError(f"the projector `{path}` takes no images", hint=_PAIR_HINT)
    kind = _string(file, "clip.projector_type") or _string(file, "clip.vision.projector_type")
    has_tower = kind != GEMMA4_UNIFIED
    for key in (*_POSITIVE_VISION_KEYS, *(_POSITIVE_TOWER_KEYS if has_tower else ())):
        _check_positive(file, f"clip.vision.{key}")
    if "clip.vision.spatial_merge_size" in file.metadata:
        _check_positive(file, "clip.vision.spatial_merge_size")
    span = IMAGE_SPANS.get(kind or "")
    if span is None:
        raise ModelLoadError(
            f"the projector type {kind!r} of `{path}` is not supported",
            hint=f"supported: {', '.join(IMAGE_SPANS)}; see `edgevlm families`",
        )
    check_projector_numbers(file)
    if kind in QWEN_KINDS:
        span = _stretched(qwen_span(text, span), check_qwen(file, kind))
    check_markers(file, text)
    if kind == "mlp":
        span = replace(span, canvas=check_mlp(file))
    _check_pair(path, file, text)
    _check_runtime_tokens(text, span)
    if kind == "pixtral":
        return replace(span, row_end=check_pixtral(file))
    if kind == "idefics3":
        return replace(span, max_aspect=_check_tiles(file))
    if kind == "granite4_vision":
        check_granite4(file, text)
    if kind == "janus_pro":
        check_janus(file)
        return replace(span, around=around_image(text))
    if kind in ("glm4v", "hunyuanvl"):
        return _stretched(span, (check_glm if kind == "glm4v" else check_hunyuan)(file, text))
    if kind and kind in CANVASES:
        return replace(span, max_aspect=MAX_ASPECTS.get(kind, 0), canvas=CANVASES[kind](file))
    if kind and kind in _SPANS:
        return _SPANS[kind](file, span)
    if kind == "gemma3":
        _check_transposed(file)
        return replace(span, n_whole=_merged_side(file, usual=4, least=1) ** 2)
    return span


def _stretched(span: ImageSpan, canvas: StretchCanvas) -> ImageSpan:
    return replace(span, max_aspect=MAX_STRETCH_ASPECT, canvas=canvas, max_tokens=canvas.max_tokens)


def _check_pair(path: Path, file: GGUFFile, text: GGUFFile) -> None:
    projected = _integer(file, "clip.vision.projection_dim")
    wanted = _integer(text, f"{text.architecture}.embedding_length")
    if projected != wanted:
        raise ModelLoadError(
            f"`{path}` gives rows of {projected} values, the text model `{text.path}` takes"
            f" {wanted}: it belongs to another model",
            hint=_PAIR_HINT,
        )
    layers = file.metadata.get("clip.vision.is_deepstack_layers")
    n_deepstack = sum(map(bool, layers.value)) if layers and isinstance(layers.value, list) else 0
    n_wanted = _integer(text, f"{text.architecture}.n_deepstack_layers") or 0
    if n_deepstack != n_wanted:
        raise ModelLoadError(
            f"`{path}` gives {n_deepstack} deepstack layers, the text model `{text.path}` takes"
            f" {n_wanted}: it belongs to another model",
            hint=_PAIR_HINT,
        )


def _check_runtime_tokens(text: GGUFFile, span: ImageSpan) -> None:
    tokens = text.metadata["tokenizer.ggml.tokens"].value
    known = set(tokens) if isinstance(tokens, list) else set[object]()
    for token in span.runtime_tokens:
        # Byte-level vocabularies write a line feed as this letter.
        if token not in known and token.replace("\n", "\u010a") not in known:
            raise ModelLoadError(
                f"the vocabulary of `{text.path}` lacks {token!r}, which llama.cpp writes around"
                " every image",
                hint="convert the model again from its checkpoint",
            )


def _merged_side(file: GGUFFile, *, usual: int, least: int) -> int:
    """Return how many visual tokens a side of an encode has.

    Patches that cannot be merged are assertions of tools/mtmd, which end the process.

    Args:
        file: the projector's.
        usual: how many patches a side become one token when the file does not say.
        least: how many do at least.
    """
    vision = "clip.vision."
    size, patch = (_integer(file, f"{vision}{key}") or 1 for key in ("image_size", "patch_size"))
    key = f"{vision}projector.scale_factor"
    scale = (_integer(file, key) or 0) if key in file.metadata else usual
    n_patches = size // patch
    if scale < least or n_patches < scale or n_patches % scale:
        raise GGUFError(
            f"`{file.path}` merges {scale} x {scale} of {n_patches} x {n_patches} patches",
            hint="convert the model again",
        )
    return n_patches // scale


def _check_transposed(file: GGUFFile) -> None:
    """Check that Gemma 3's projection is of a type that ggml can transpose.

    With blocks (Q8_0) it writes beyond its buffer, which ends the process or worse.
    """
    for tensor in file.tensors:
        if tensor.name == "mm.input_projection.weight" and tensor.type not in _FLOATS:
            raise GGUFError(
                f"`{file.path}` holds `{tensor.name}` as {tensor.type}, which llama.cpp cannot"
                " transpose",
                hint="convert the model again; its F16 projector goes with every level",
            )


def _check_tiles(file: GGUFFile) -> int:
    """Check how an Idefics3 projector cuts images; return the longest edge it scales them to.

    An image of too many tiles takes all memory.
    """
    _merged_side(file, usual=1, least=2)
    longest = _integer(file, "clip.vision.preproc_image_size")
    if longest is not None and not 0 < longest <= _MAX_LONGEST_EDGE:
        raise GGUFError(
            f"`{file.path}` scales images to {longest} pixels", hint="convert the model again"
        )
    return longest or 0


def _check_deepstack(file: GGUFFile) -> None:
    """Check that deepstack ends before the last layer, as src/models/qwen3vl.cpp takes it to.

    The last layer computes only the rows that are asked for; adding a deepstack feature of every
    row to them is an assertion that ends the process.
    """
    n_layers = _integer(file, f"{file.architecture}.block_count") or 0
    n_deepstack = _integer(file, f"{file.architecture}.n_deepstack_layers") or 0
    if n_deepstack and n_deepstack >= n_layers:
        raise GGUFError(
            f"`{file.path}` has {n_deepstack} deepstack layers in {n_layers} layers: llama.cpp"
            " needs one layer more",
            hint="this model cannot run; it may be a toy or a damaged file",
        )


def _chat_templates(file: GGUFFile) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    texts = {
        key.removeprefix(prefix).removeprefix(".") or "default": _string(file, key)
        for key in file.metadata
        if key == prefix or key.startswith(f"{prefix}.")
    }
    return {name: text for name, text in texts.items() if text is not None}


def _end_token_ids(file: GGUFFile, n_tokens: int) -> tuple[int, ...]:
    entry = file.metadata.get("edgevlm.tokenizer.end_token_ids")
    values = entry.value if entry is not None else []
    ids = [value for value in values if isinstance(value, int)] if isinstance(values, list) else []
    if any(not 0 <= token < n_tokens for token in ids):
        raise GGUFError(
            f"`{file.path}` names end tokens beyond its {n_tokens} tokens",
            hint="convert the model again",
        )
    return tuple(ids)


def _sampling(file: GGUFFile) -> dict[str, float | int]:
    """Return the sampling defaults that make sense; a wrong one is no reason not to load."""
    found: dict[str, float | int] = {}
    for key, name in _SAMPLING.items():
        entry = file.metadata.get(f"general.sampling.{key}")
        value = entry.value if entry is not None and not entry.is_array else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        with suppress(PromptError, OverflowError, ValueError):
            number = int(value) if name in ("top_k", "repeat_last_n") else float(value)
            values: dict[str, Any] = {name: number}
            SamplingParams(**values)
            found[name] = number
    return found


def _n_tokens(file: GGUFFile) -> int:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if tokens is None or tokens.type != "ARRAY:STRING" or tokens.n_items == 0:
        raise GGUFError(f"`{file.path}` has no vocabulary", hint="convert the model again")
    types = file.metadata.get("tokenizer.ggml.token_type")
    if types is not None and types.n_items != tokens.n_items:
        raise GGUFError(
            f"`{file.path}` has {tokens.n_items} tokens, and types for {types.n_items}",
            hint="convert the model again",
        )
    return tokens.n_items


def _check_positive(file: GGUFFile, key: str) -> None:
    entry = file.metadata.get(key)
    # Per-layer arrays are checked by llama.cpp itself.
    if entry is not None and entry.is_array:
        return
    value = _integer(file, key)
    if value is None or not 0 < value < 1 << 31:
        raise GGUFError(f"`{file.path}` has {key} = {value}", hint="convert the model again")


def _integer(file: GGUFFile, key: str) -> int | None:
    entry = file.metadata.get(key)
    value = entry.value if entry is not None and not entry.is_array else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _string(file: GGUFFile, key: str) -> str | None:
    entry = file.metadata.get(key)
    value = entry.value if entry is not None and not entry.is_array else None
    return value if isinstance(value, str) else None


def _flag(file: GGUFFile, key: str) -> bool:
    entry = file.metadata.get(key)
    return entry is not None and not entry.is_array and entry.value is True
