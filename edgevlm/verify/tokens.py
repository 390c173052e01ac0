"""The first stage: a prompt's token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgevlm.reference_file import Case
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM
from edgevlm.verify.report import Stage

TOKENS = "tokenization"
_N_SHOWN = 4


def check_tokens(
    vlm: VLM, cases: Sequence[Case], images: Mapping[str, Pixels]
) -> tuple[Stage, list[Case]]:
    """Hold the token ids of every prompt against the reference's.

    Returns:
        The stage, and the prompts whose ids are equal: only these can be compared further.
    """
    equal: list[Case] = []
    first: tuple[Case, list[int]] | None = None
    for case in cases:
        ours = vlm.token_ids(case.prompt, [images[image.sha256] for image in case.images])
        if ours == case.input_ids.tolist():
            equal.append(case)
        elif first is None:
            first = case, ours
    if first is None:
        n_tokens = sum(len(case.input_ids) for case in cases)
        return Stage(
            name=TOKENS,
            status="pass",
            summary=f"{n_tokens} token ids of {len(cases)} prompts are equal",
            numbers={"n_tokens": n_tokens, "n_prompts": len(cases)},
        ), equal
    case, ours = first
    theirs = [int(token) for token in case.input_ids]
    where = _first_difference(ours, theirs)
    return Stage(
        name=TOKENS,
        status="fail",
        summary=f"{len(cases) - len(equal)} of {len(cases)} prompts differ; {case.name}: token"
        f" {where} is {_shown(vlm, ours, where)} here, {_shown(vlm, theirs, where)} in"
        " transformers",
        cause=_cause(vlm, ours, theirs, where),
        numbers={"n_prompts": len(cases), "n_equal": len(equal), "first_difference": where},
    ), equal


def _first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next(
        (place for place, (one, other) in pairs if one != other), min(len(ours), len(theirs))
    )


def _shown(vlm: VLM, ids: Sequence[int], where: int) -> str:
    """Return some ids from a place on, and what they spell."""
    some = ids[where : where + _N_SHOWN]
    numbers = ", ".join("visual" if token < 0 else str(token) for token in some)
    return f"[{numbers}] {vlm.spelled(some)!a}"


def _cause(vlm: VLM, ours: Sequence[int], theirs: Sequence[int], where: int) -> str:
    n_ours, n_theirs = (sum(token < 0 for token in ids) for ids in (ours, theirs))
    if n_ours != n_theirs:
        return (
            f"the image becomes {n_ours} visual tokens here and {n_theirs} in transformers: it is"
            " resized or cut differently"
        )
    if vlm.spelled(ours) == vlm.spelled(theirs):
        return (
            "the same text is cut in another way: merges or scores of the vocabulary, its"
            " pre-tokenizer, or a normalizer that the runtime lacks"
        )
    if where == 0:
        return "the text begins differently: BOS or the chat template is another"
    return (
        "another text is tokenized: the chat template, or special tokens that are not taken as such"
    )
