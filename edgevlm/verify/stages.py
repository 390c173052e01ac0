"""Compare a loaded model with a reference, one stage at a time.

A stage that fails explains those behind it: other token ids give another answer, other pixels give
other embeddings. So each stage is judged by itself, and the cause named is that of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm.native.projector import EncodedImage
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM
from edgevlm.verify.metrics import (
    PixelDifference,
    cosines,
    kl_divergence,
    pixel_difference,
    relative_error,
    same_top,
)
from edgevlm.verify.reference_file import Case, CaseImage
from edgevlm.verify.report import Stage, Status, worst

TOKENS, PIXELS, EMBEDDINGS = "tokenization", "preprocessed pixels", "vision embeddings"
TEXT_LOGITS, IMAGE_LOGITS = "logits, text only", "logits, with images"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What passes, and what is only worth a warning.

    Attributes:
        kld: mean KLD in nats of a whole answer, the worst answer.
        min_cosine: of the worst visual token.
        relative_error: of all visual tokens of an image.
    """

    kld: tuple[float, float]
    min_cosine: tuple[float, float]
    relative_error: tuple[float, float]


# By the coarser of both files' tensor types. F32 files leave only the order of sums; 16 bits leave
# rounding, which random small models show most; a quantized file is judged by `edgevlm compare`.
BOUNDS: Mapping[str, Bounds] = {
    "F32": Bounds(kld=(1e-5, 1e-4), min_cosine=(0.9999, 0.999), relative_error=(1e-3, 1e-2)),
    "16-bit": Bounds(kld=(1e-3, 1e-2), min_cosine=(0.999, 0.99), relative_error=(0.02, 0.1)),
    "quantized": Bounds(kld=(0.1, 0.5), min_cosine=(0.95, 0.8), relative_error=(0.3, 0.6)),
}
# Half a step of 8-bit colour after the usual deviation of 0.25: rounding while resizing.
_PIXEL_PASS, _PIXEL_WARN = 1e-3, 0.05


def judge(value: float, limits: tuple[float, float], *, rising: bool = False) -> Status:
    """Return "pass", "warn" or "fail"; with `rising`, larger is better."""
    good, tolerable = limits
    if rising:
        return "pass" if value >= good else "warn" if value >= tolerable else "fail"
    return "pass" if value <= good else "warn" if value <= tolerable else "fail"


def check_tokens(vlm: VLM, cases: Sequence[Case], images: Mapping[str, Pixels]) -> Stage:
    """Hold the token ids of every prompt against the reference's."""
    n_tokens = 0
    for case in cases:
        ours = vlm.token_ids(case.prompt, [images[image.sha256] for image in case.images])
        theirs = case.input_ids.tolist()
        n_tokens += len(theirs)
        if ours == theirs:
            continue
        where = next(
            (
                place
                for place, pair in enumerate(zip(ours, theirs, strict=False))
                if pair[0] != pair[1]
            ),
            min(len(ours), len(theirs)),
        )
        n_visual = sum(token < 0 for token in ours), sum(token < 0 for token in theirs)
        return Stage(
            name=TOKENS,
            status="fail",
            summary=f"{case.name}: token {where} differs: {_tokens(ours, where)} here,"
            f" {_tokens(theirs, where)} in transformers",
            cause=_token_cause(where, n_visual),
            numbers={"first_difference": where, "n_tokens": len(theirs)},
        )
    return Stage(
        name=TOKENS,
        status="pass",
        summary=f"{n_tokens} token ids of {len(cases)} prompts are equal",
        numbers={"n_tokens": n_tokens, "n_prompts": len(cases)},
    )


def _tokens(ids: Sequence[int], where: int) -> str:
    shown = ids[where : where + 4]
    return "[" + ", ".join("visual" if token < 0 else str(token) for token in shown) + "]"


def _token_cause(where: int, n_visual: tuple[int, int]) -> str:
    if n_visual[0] != n_visual[1]:
        return (
            f"the image becomes {n_visual[0]} visual tokens here and {n_visual[1]} in transformers:"
            " it is resized or cut differently"
        )
    if where == 0:
        return "the text begins differently: BOS or the chat template is another"
    return "the vocabulary, its pre-tokenizer or the chat template is another"


def check_pixels(encoded: Sequence[tuple[CaseImage, EncodedImage]]) -> Stage:
    """Hold the pixels that the vision tower was given against the image processor's."""
    known = [(image, one) for image, one in encoded if image.pixels]
    if not known:
        return Stage(
            name=PIXELS, status="not checked", summary="the reference keeps no pixels of an image"
        )
    largest: PixelDifference | None = None
    for image, one in known:
        seen = one.graph_input
        if seen is None or not seen.tiles:
            why = seen.not_seen if seen is not None else "the projector was not watched"
            return Stage(name=PIXELS, status="not observable", summary=why)
        here = [tile.shape[1:] for tile in seen.tiles]
        there = [tile.shape[1:] for tile in image.pixels]
        if here != there:
            return Stage(
                name=PIXELS,
                status="warn",
                summary=f"{image.name}: {_sizes(here)} here, {_sizes(there)} in transformers",
                cause="llama.cpp resizes or cuts this image differently: what follows cannot be"
                " equal; use an image of a size that both leave alone, or accept the difference",
            )
        for ours, theirs in zip(seen.tiles, image.pixels, strict=True):
            found = pixel_difference(ours, theirs)
            if largest is None or found.max_difference > largest.max_difference:
                largest = found
    if largest is None:
        return Stage(name=PIXELS, status="not checked", summary="no pixels to compare")
    status = judge(largest.max_difference, (_PIXEL_PASS, _PIXEL_WARN))
    if largest.is_rescaled:
        status = "fail"
    return Stage(
        name=PIXELS,
        status=status,
        summary=f"largest difference {largest.max_difference:.3g}, mean"
        f" {largest.mean_difference:.3g} (normalised units)",
        cause="" if status == "pass" else _pixel_cause(largest),
        numbers={
            "max_difference": largest.max_difference,
            "mean_difference": largest.mean_difference,
        },
    )


def _sizes(sizes: Sequence[tuple[int, ...]]) -> str:
    shown = [f"{width}x{height}" for height, width in sizes[:3]]
    more = f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""
    return ", ".join(shown) + more


def _pixel_cause(found: PixelDifference) -> str:
    if found.is_rescaled:
        pairs = ", ".join(
            f"{slope:.3g} x {offset:+.3g}"
            for slope, offset in zip(found.slope, found.offset, strict=True)
        )
        return (
            "image_mean or image_std of the file are others: by channel our pixels are the"
            f" reference's times and plus {pairs}"
        )
    return "the image is resized with another filter or rounding"


def check_embeddings(encoded: Sequence[tuple[CaseImage, EncodedImage]], bounds: Bounds) -> Stage:
    """Hold the projector's rows against those that transformers' language model gets."""
    known = [(image, one) for image, one in encoded if image.embeddings is not None]
    if not known:
        return Stage(
            name=EMBEDDINGS,
            status="not checked",
            summary="the reference keeps no embeddings of an image",
        )
    lowest, mean, error = 1.0, 0.0, 0.0
    for image, one in known:
        ours, theirs = np.concatenate(one.tiles), image.embeddings
        if theirs is None or ours.shape != theirs.shape:
            shape = list(theirs.shape) if theirs is not None else []
            return Stage(
                name=EMBEDDINGS,
                status="fail",
                summary=f"{image.name}: {list(ours.shape)} values here, {shape} in transformers",
                cause="the image becomes another number of visual tokens, or the projector's output"
                " has another width",
            )
        found = cosines(ours, theirs)
        lowest = min(lowest, float(found.min()))
        mean += float(found.mean()) / len(known)
        error = max(error, relative_error(ours, theirs))
    by_cosine = judge(lowest, bounds.min_cosine, rising=True)
    by_error = judge(error, bounds.relative_error)
    status = worst([by_cosine, by_error])
    return Stage(
        name=EMBEDDINGS,
        status=status,
        summary=f"cosine per token: mean {mean:.6f}, min {lowest:.6f}; relative error {error:.3g}",
        cause=""
        if status == "pass"
        else "the vision tower or the projector computes something else: order or rotation of its"
        " position table, norms and their epsilon, activation, layer that is read, or a tensor in"
        " the wrong place",
        numbers={"mean_cosine": mean, "min_cosine": lowest, "relative_error": error},
    )


def check_logits(
    vlm: VLM, cases: Sequence[Case], images: Mapping[str, Pixels], bounds: Bounds, *, name: str
) -> Stage:
    """Hold the distributions along the reference's answers against ours."""
    if not cases:
        return Stage(name=name, status="not checked", summary="the reference has no such prompt")
    highest, mean, n_same, n_positions = 0.0, 0.0, 0, 0
    for case in cases:
        logits = vlm.answer_logits(
            case.prompt,
            [images[image.sha256] for image in case.images],
            answer=[int(token) for token in case.answer],
        )
        found = kl_divergence(case, logits)
        highest = max(highest, float(found.max()))
        mean += float(found.sum())
        n_same += int(same_top(case, logits).sum())
        n_positions += len(found)
    mean /= n_positions
    status = judge(highest, bounds.kld)
    cause = ""
    if status != "pass":
        cause = (
            "the text model computes something else: order of query and key rows, rotary base or"
            " scaling, norms and their epsilon, gate and up exchanged, a tied output matrix"
            if name == TEXT_LOGITS
            else "if the text-only stage passes: the visual tokens are other ones, or stand at"
            " other positions"
        )
    return Stage(
        name=name,
        status=status,
        summary=f"KLD mean {mean:.3g}, worst position {highest:.3g}; same top token"
        f" {n_same} of {n_positions}",
        cause=cause,
        numbers={
            "mean_kld": mean,
            "max_kld": highest,
            "same_top": n_same,
            "n_positions": n_positions,
        },
    )
