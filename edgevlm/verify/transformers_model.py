"""What transformers computes with a checkpoint: float32, eager attention, on the CPU.

Needs the extra `edgevlm[verify]`. Visual embeddings are taken where the language model gets them,
so that every family is read in the same way; pixels are those of the image processor.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.families import find_family
from numpy.typing import NDArray

from edgevlm.errors import CheckpointError, MissingExtraError
from edgevlm.progress import SILENT, Progress
from edgevlm.reference_file import (
    VISUAL_TOKEN,
    Case,
    CaseImage,
    Reference,
    image_sha256,
    without_repeats,
)
from edgevlm.verify.hunyuan_inputs import CLASS as HUNYUAN
from edgevlm.verify.hunyuan_inputs import with_own_positions
from edgevlm.verify.inputs import Inputs, Pixels, open_inputs
from edgevlm.verify.processed_pixels import SHAPE_KEYS, pixels_of

N_POSITIONS = 16
# Most likely tokens that are kept of each position; all of a small vocabulary.
_MAX_TOP = 4096
# Of images that a token which is not visual ends: sizes (Pixtral), numbers of tiles (DeepSeek-OCR).
_EDGE_KEYS = {"image_sizes", "num_local_patches"}
# Classes of checkpoints that also speak -> that of the part which answers in text.
_THINKERS = {
    "Qwen2_5OmniModel": "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration": "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration": "Qwen3OmniMoeThinkerForConditionalGeneration",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt to compute.

    Attributes:
        name: of the case.
        prompt: the question.
        images: (name, RGB uint8 [height, width, 3]) in order.
    """

    name: str
    prompt: str
    images: tuple[tuple[str, Pixels], ...] = ()


def make_reference(
    checkpoint: Path,
    questions: Sequence[Question],
    *,
    n_positions: int = N_POSITIONS,
    progress: Progress = SILENT,
) -> Reference:
    """Return transformers' token ids, embeddings and log-probabilities.

    Args:
        checkpoint: folder of a Hugging Face checkpoint.
        questions: prompts.
        n_positions: tokens of each greedy answer.
        progress: told the questions answered.

    Raises:
        MissingExtraError: torch or transformers are not installed.
        CheckpointError: transformers cannot load it, or finds other tensors than it wants.
        UnsupportedArchitectureError: no family of ours claims it.
    """
    model = load_model(checkpoint)
    family = find_family(open_checkpoint(checkpoint).config)
    inputs = open_inputs(checkpoint, family=family.name)
    with_images = [question for question in questions if question.images]
    if with_images:
        # Before the first answer, which may take minutes.
        _prepare(inputs, with_images[0])
    cases: list[Case] = []
    with progress.task("Asking transformers", total=len(questions), unit="items") as advance:
        for question in questions:
            cases.append(answer(model, inputs, question, n_positions=n_positions))
            advance(1)
    return Reference(made_by=versions(), cases=without_repeats(cases))


def load_model(checkpoint: Path) -> Any:
    """Load a checkpoint in float32 with eager attention.

    Raises:
        MissingExtraError: torch or transformers are not installed.
        CheckpointError: transformers cannot load it, or finds other tensors than it wants.
    """
    torch, transformers = _libraries()
    config = open_checkpoint(checkpoint).config
    name = config.texts("architectures")[0]
    name = _THINKERS.get(name, name)
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise CheckpointError(
            f"transformers {transformers.__version__} has no class `{name}`",
            hint="install a newer transformers",
        )
    try:
        model, loading = model_class.from_pretrained(
            checkpoint,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"transformers cannot load `{checkpoint}`: {str(error)[:300]}",
            hint="the checkpoint is broken, or needs another transformers",
        ) from error
    for key in ("missing_keys", "mismatched_keys"):
        if loading[key]:
            raise CheckpointError(
                f"transformers finds {key.replace('_', ' ')} in `{checkpoint}`:"
                f" {sorted(map(str, loading[key]))[0]}",
                hint="a reference of such a checkpoint would be of other weights",
            )
    return with_own_positions(model.eval()) if name == HUNYUAN else model.eval()


def _libraries() -> tuple[Any, Any]:
    try:
        return importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtraError(
            f"a reference needs torch and transformers: {error}",
            hint="install them: `pip install 'edgevlm[verify]'`; or use a reference file that was"
            " made elsewhere with `edgevlm reference`",
        ) from error


def versions() -> str:
    """Return what computes, in words."""
    torch, transformers = _libraries()
    return f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager"


def answer(
    model: Any,
    inputs: Inputs,
    question: Question,
    *,
    n_positions: int = N_POSITIONS,
) -> Case:
    """Return one case: greedy answer, distributions along it, embeddings.

    Args:
        model: of transformers.
        inputs: of its checkpoint.
        question: the prompt.
        n_positions: tokens of the answer.

    Raises:
        CheckpointError: no token stands for the image.
    """
    torch, _ = _libraries()
    ids, tensors = _prepare(inputs, question)

    def call(tokens: Any) -> Any:
        visual = (tokens == inputs.image_token).int()
        kinds = {inputs.kinds: visual} if inputs.kinds else {}
        ones = torch.ones_like(tokens)
        return model(
            input_ids=tokens,
            attention_mask=inputs.masks(model, tokens, visual) if inputs.masks else ones,
            use_cache=False,
            **tensors,
            **kinds,
        )

    visual = (inputs.image_token, inputs.break_token)
    with torch.no_grad(), _visual_rows(model, visual) as rows_of:
        found, logprobs = _along(call, ids, n_positions, visual)
    top = np.argsort(-logprobs, axis=1, kind="stable")[:, :_MAX_TOP].astype(np.int32)
    top_logprobs = np.take_along_axis(logprobs, top, axis=1)
    is_visual = np.isin(ids, visual)
    return Case(
        name=question.name,
        prompt=question.prompt,
        images=_images(
            question, tensors, rows_of[0] if rows_of else None, is_visual, inputs.stacks_tiles
        ),
        input_ids=np.where(is_visual, VISUAL_TOKEN, ids).astype(np.int32),
        answer=np.asarray(found, dtype=np.int32),
        top_ids=top,
        top_logprobs=top_logprobs.astype(np.float32),
        tail_mass=np.maximum(0.0, 1.0 - np.exp(top_logprobs).sum(axis=1)).astype(np.float32),
    )


def _prepare(inputs: Inputs, question: Question) -> tuple[list[int], dict[str, Any]]:
    """Return the token ids and tensors of a question.

    Raises:
        CheckpointError: no token stands for the image: the model would never see it.
    """
    ids, tensors = inputs.prepare(question.prompt, [pixels for _, pixels in question.images])
    if question.images and inputs.image_token not in ids:
        raise CheckpointError(
            f"no token of the prompt stands for the image: config.json says that it is"
            f" {inputs.image_token}, and the tokenizer never writes that",
            hint="image_token_id (or image_token_index) of config.json, the tokenizer and the chat"
            " template must be of the same model",
        )
    return ids, tensors


def _along(
    call: Callable[[Any], Any], ids: list[int], n_positions: int, visual: Sequence[int]
) -> tuple[list[int], NDArray[np.float64]]:
    """Return greedy tokens and the log-probabilities that chose each of them.

    A visual token is never chosen: transformers would look for one more image.
    """
    torch, _ = _libraries()
    found: list[int] = []
    while True:
        logits = call(torch.tensor([ids + found])).logits[0]
        rows = torch.log_softmax(logits.double(), dim=-1)[len(ids) - 1 :].numpy()
        last = rows[-1].copy()
        last[[token for token in visual if token >= 0]] = -np.inf
        found.append(int(last.argmax()))
        if len(found) == n_positions:
            return found, rows


@contextmanager
def _visual_rows(model: Any, visual: Sequence[int]) -> Generator[list[NDArray[np.float32]]]:
    """Collect, call by call, the rows that the language model gets for visual tokens.

    Features that ride along (Qwen3-VL's deepstack, Granite 4 Vision's streams) stand beside them,
    as in the runtime's rows.
    """
    torch, _ = _libraries()
    wanted = torch.tensor(visual)
    rows: list[NDArray[np.float32]] = []
    tokens: list[Any] = []

    def see_tokens(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        tokens[:] = [arguments["input_ids"][0]]

    def see_rows(_: Any, __: Any, arguments: dict[str, Any]) -> None:
        where = torch.isin(tokens[0], wanted)
        embedded = arguments.get("inputs_embeds")
        if embedded is None or not bool(where.any()):
            return
        parts = [embedded[0][where]]
        parts += list(arguments.get("deepstack_visual_embeds") or [])
        if streams := arguments.get("deepstack_features"):
            # Granite 4 Vision: added before layers of the text model, by their numbers.
            parts = [streams[layer] for layer in sorted(streams)]
        rows.append(np.concatenate([part.float().numpy() for part in parts], axis=1))

    language = _language_model(model)
    hooks = [
        model.register_forward_pre_hook(see_tokens, with_kwargs=True),
        language.register_forward_pre_hook(see_rows, with_kwargs=True),
    ]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def _language_model(model: Any) -> Any:
    inner = model.model
    for name in ("language_model", "text_model"):
        if hasattr(inner, name):
            return getattr(inner, name)
    raise CheckpointError(
        f"`{type(model).__name__}` has no language model that could be read",
        hint="this class is not known to `edgevlm reference`",
    )


def _images(
    question: Question,
    tensors: dict[str, Any],
    rows: NDArray[np.float32] | None,
    is_visual: NDArray[np.bool_],
    stacks_tiles: bool,
) -> tuple[CaseImage, ...]:
    """Return the images with their pixels and embeddings, where these can be told apart."""
    pixels = pixels_of(tensors, len(question.images))
    if stacks_tiles:
        pixels = [(np.concatenate(tiles, axis=1),) for tiles in pixels]
    parts = _rows_by_image(question, tensors, rows, is_visual)
    return tuple(
        CaseImage(
            name=name,
            sha256=image_sha256(image),
            pixels=pixels[number] if pixels else (),
            embeddings=parts[number] if parts else None,
        )
        for number, (name, image) in enumerate(question.images)
    )


def _rows_by_image(
    question: Question,
    tensors: dict[str, Any],
    rows: NDArray[np.float32] | None,
    is_visual: NDArray[np.bool_],
) -> list[NDArray[np.float32]]:
    """Share out the visual rows: a run an image, else by grids, else evenly over all encodes."""
    n_images = len(question.images)
    if rows is None or not n_images or len(rows) != int(is_visual.sum()):
        return []
    if len(runs := _runs(is_visual)) == n_images:
        counts = runs
    elif "image_grid_thw" in tensors:
        patches = [int(grid.prod()) for grid in tensors["image_grid_thw"]]
        counts = [len(rows) * count // sum(patches) for count in patches]
    elif n_images == 1:
        counts = [len(rows)]
    elif shape_key := next((key for key in SHAPE_KEYS if key in tensors), ""):
        patches = tensors[shape_key].prod(dim=1).tolist()
        counts = [len(rows) * count // sum(patches) for count in patches]
        # Of tiles it is not known whose they are.
        counts = counts if len(counts) == n_images else []
    elif _EDGE_KEYS & tensors.keys() or _is_tiled(tensors, n_images):
        # A token that is not visual ends every image, and there were not as many.
        return []
    elif tensors["pixel_values"].ndim == 4:
        counts = [len(rows) // n_images] * n_images
    else:
        return []
    if sum(counts) != len(rows) or len(counts) != n_images:
        return []
    edges = np.cumsum([0, *counts])
    return [rows[low:high] for low, high in pairwise(edges)]


def _runs(is_visual: NDArray[np.bool_]) -> list[int]:
    """Return how many visual tokens follow each other, run by run: an image each, or tiles."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_visual, [0]])))
    return [int(count) for count in edges[1::2] - edges[::2]]


def _is_tiled(tensors: dict[str, Any], n_images: int) -> bool:
    """Return whether tiles of several images stand in one row (InternVL)."""
    values = tensors["pixel_values"]
    return values.ndim == 4 and len(values) != n_images
