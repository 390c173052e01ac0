"""The last stages: the distributions along the reference's answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgevlm.reference_file import Case
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM
from edgevlm.verify.bounds import Bounds, judge
from edgevlm.verify.metrics import kl_divergence, same_top
from edgevlm.verify.report import Stage, because_of, worst

TEXT_LOGITS, IMAGE_LOGITS = "logits, text only", "logits, with images"
# Of the mean KLD. Above it, something is in another place; below, a little off everywhere.
_SMALL_KLD = 0.02


def check_logits(
    vlm: VLM,
    cases: Sequence[Case],
    images: Mapping[str, Pixels],
    bounds: Bounds,
    *,
    name: str,
    losses: Sequence[str] = (),
) -> Stage:
    """Hold the distributions along the reference's answers against ours.

    Args:
        vlm: loaded.
        cases: prompts whose token ids are equal, and whose images are seen alike.
        images: by hash.
        bounds: of the coarser file that takes part.
        name: of the stage.
        losses: what the files say that the runtime does otherwise.
    """
    if not cases:
        why = "the reference has no such prompt with equal token ids and pixels"
        return Stage(name=name, status="not checked", summary=why)
    parts: list[np.ndarray] = []
    n_same = 0
    for case in cases:
        logits = vlm.answer_logits(
            case.prompt,
            [images[image.sha256] for image in case.images],
            answer=[int(token) for token in case.answer],
        )
        parts.append(kl_divergence(case, logits))
        n_same += int(same_top(case, logits).sum())
    found = np.concatenate(parts)
    median, mean, highest = float(np.median(found)), float(found.mean()), float(found.max())
    by_median = judge(median, bounds.median_kld)
    by_worst = judge(highest, bounds.max_kld)
    status = worst([by_median, by_worst])
    small = mean < _SMALL_KLD
    if status == "fail" and losses and small:
        status = "warn"
    return Stage(
        name=name,
        status=status,
        summary=f"KLD median {median:.3g}, mean {mean:.3g}, worst position {highest:.3g}; same top"
        f" token {n_same} of {len(found)}",
        cause=""
        if status == "pass"
        else because_of(
            _cause(name, small=small, isolated=by_median == "pass"), losses if small else ()
        ),
        numbers={
            "median_kld": median,
            "mean_kld": mean,
            "max_kld": highest,
            "same_top": n_same,
            "n_positions": len(found),
        },
    )


def _cause(name: str, *, small: bool, isolated: bool) -> str:
    if isolated:
        return (
            "single positions alone are far off: two tokens nearly equal, or a router that chooses"
            " another expert after rounding; a file of `--outtype f32` tells"
        )
    if name == IMAGE_LOGITS:
        return (
            "text alone agrees, and so do the embeddings: the visual tokens stand at other"
            " positions (M-RoPE sections, grid), see each other otherwise (attention within an"
            " image), or features of deeper layers are added elsewhere"
        )
    if small:
        return (
            "the text model is a little off everywhere: epsilon of its norms, rotary scaling or its"
            " attention factor, the form of its activation, or weights that were rounded"
        )
    return (
        "the text model computes something else: order of query and key rows, rotary base or"
        " scaling, gate and up exchanged, norms exchanged, a tied output matrix"
    )
