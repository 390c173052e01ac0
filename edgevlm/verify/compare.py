"""A loaded model beside a reference: the stages in order, each judged by what agreed so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from edgevlm.gguf_file import GGUFFile
from edgevlm.reference_file import Case, CaseImage
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM
from edgevlm.verify.bounds import BOUNDS, coarser, precision
from edgevlm.verify.embeddings import check_embeddings
from edgevlm.verify.logits import IMAGE_LOGITS, TEXT_LOGITS, check_logits
from edgevlm.verify.pixels import Seen, check_pixels, look
from edgevlm.verify.report import Stage
from edgevlm.verify.tokens import check_tokens

# Of a stranger's file.
_MAX_LOSSES = 100
N_STAGES = 5


def stated_losses(file: GGUFFile) -> tuple[str, ...]:
    """Return what a file itself says that the runtime does otherwise."""
    value = file.metadata.get("edgevlm.losses")
    return tuple(str(loss) for loss in value.head(_MAX_LOSSES)) if value is not None else ()


def compare(
    vlm: VLM,
    cases: Sequence[Case],
    images: Mapping[str, Pixels],
    *,
    text: GGUFFile,
    mmproj: GGUFFile | None,
) -> Iterator[Stage]:
    """Yield the stages in the order of the data's way.

    A fault shows at its own stage: what stands behind it is compared where everything before
    agreed, and where nothing did, names the stage that it follows from.

    Args:
        vlm: loaded `strict`.
        cases: prompts of the reference.
        images: theirs, by hash.
        text: header of the text model's file.
        mmproj: header of the projector's, or None.
    """
    tokens, equal = check_tokens(vlm, cases, images)
    yield tokens
    alike: Mapping[str, Seen] = {}
    earlier: list[Stage] = []
    excused = False
    if mmproj is not None:
        losses = stated_losses(mmproj)
        seen = {key: look(one, vlm.encode(images[key])) for key, one in _by_hash(cases).items()}
        pixels = check_pixels(list(seen.values()), losses)
        yield pixels
        alike, excused = _alike(seen)
        embeddings = check_embeddings(list(alike.values()), BOUNDS[precision(mmproj)], losses)
        if excused:
            embeddings = _behind(embeddings, [pixels], excused=True)
        yield embeddings
        earlier = [pixels, embeddings] if excused else [embeddings]
        excused = excused or (bool(embeddings.numbers.get("rows_early")) and bool(losses))
    bounds = precision(text)
    without = [case for case in equal if not case.images]
    stage = check_logits(
        vlm, without, images, BOUNDS[bounds], name=TEXT_LOGITS, losses=stated_losses(text)
    )
    yield stage
    if mmproj is None:
        return
    bounds = coarser(bounds, precision(mmproj))
    behind = [
        case
        for case in equal
        if case.images and all(image.sha256 in alike for image in case.images)
    ]
    last = check_logits(vlm, behind, images, BOUNDS[bounds], name=IMAGE_LOGITS)
    yield _behind(last, [stage, *earlier], excused=excused)


def _by_hash(cases: Sequence[Case]) -> dict[str, CaseImage]:
    """Return the images by hash, each with what any of its prompts keeps of it."""
    found: dict[str, CaseImage] = {}
    for image in (image for case in cases for image in case.images):
        known = found.setdefault(image.sha256, image)
        found[image.sha256] = replace(
            known,
            pixels=known.pixels or image.pixels,
            embeddings=known.embeddings if known.embeddings is not None else image.embeddings,
        )
    return found


def _alike(seen: Mapping[str, Seen]) -> tuple[Mapping[str, Seen], bool]:
    """Return the images to go on with, and whether their pixels differ a little."""
    unknown = {
        key: one for key, one in seen.items() if one.status in ("not checked", "not observable")
    }
    equal = {key: one for key, one in seen.items() if one.status == "pass"}
    if len(unknown) + len(equal) == len(seen):
        return seen, False
    if equal:
        return equal, False
    near = {key: one for key, one in seen.items() if one.status == "warn" and one.is_near}
    return near, bool(near)


def _behind(stage: Stage, earlier: Sequence[Stage], *, excused: bool) -> Stage:
    """Return a stage that did not pass with the name of the first one that explains it.

    Args:
        stage: the later one.
        earlier: those that it depends on, in order.
        excused: what it follows from cannot be helped: it warns at most.
    """
    first = next((one for one in earlier if one.status in ("warn", "fail")), None)
    if first is None or stage.status not in ("warn", "fail"):
        return stage
    return replace(
        stage,
        status="warn" if excused else stage.status,
        cause=f"follows from `{first.name}`, which does not agree either: see there first",
    )
