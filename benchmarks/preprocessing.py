"""What the vision tower is given: transformers' image processor beside libmtmd's, family by family.

    python benchmarks/preprocessing.py --peer-python PYTHON [CASE ...]
    python benchmarks/preprocessing.py --table

The claim: the vision tower computes what transformers computes, so what differs in an answer about
an image comes from how the image is resized, cut and normalised. libmtmd does that in C++, by its
own rules. For each family a random checkpoint with the published settings is converted to F32, and
one drawn photo of 640 x 488 (`photo.py`) goes through both sides:

- pixels: transformers' `pixel_values` beside the input of libmtmd's graph, in units of 1/255;
- embeddings: `get_image_features` in float32 beside libmtmd's rows, flash attention off: the cosine
  of each visual token. The weights are random: a trained tower is smoother, so read "equal or
  not", no accuracy;
- the same once more with the photo scaled beforehand as transformers scales it: what remains then
  is no matter of scaling.

PYTHON has torch and transformers; the runtime is the installed one. Numbers depend on the versions
of both, hardly on the machine: they are kept in `results/preprocessing.json`, and the table in
docs/families.md is made from that file; the list of families above it, from the converter's; that
of transformers' classes, by `image_text_classes.py`.
Cases named on the command line replace their own numbers alone. stderr tells how it goes, stdout
gets the JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from image_text_classes import forget_taken, read_data
from image_text_classes import table as class_table
from numpy.typing import NDArray
from page import PAGE, markdown, with_table
from photo import photo
from preprocessing_cases import CASES, UNMEASURED, Case

from edgevlm.vectors import cosines

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "preprocessing.json"
HEAD = (
    "family",
    "settings of",
    "transformers makes of it",
    "edgevlm makes of it",
    "pixels: mean, largest, share beyond 1/255",
    "embeddings: mean, lowest cosine",
    "scaled beforehand: largest, lowest",
)
NUMBERS = (
    "pixels_mean",
    "pixels_max",
    "pixels_share_beyond_1",
    "cosine_mean",
    "cosine_min",
    "cosine_min_one_early",
)
# A step of 1/255, and what float32 rounds on the way.
ONE_STEP = 1.001
EQUAL_COSINE = 0.99995


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help="all when none is named")
    parser.add_argument("--peer-python", type=Path, help="a Python with torch and transformers")
    parser.add_argument("--table", action="store_true", help="only make the page's tables anew")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    document = read_results()
    if not args.table:
        if args.peer_python is None:
            sys.exit("error: --peer-python is missing")
        chosen = [case for case in CASES if not args.cases or case.name in args.cases]
        if unknown := set(args.cases) - {case.name for case in chosen}:
            sys.exit(f"error: no entry for {', '.join(sorted(unknown))}")
        for case in chosen:
            document = with_case(document, case, measure(case, args.peer_python))
            RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(document, indent=1))
    forget_taken()
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), document), encoding="utf-8")


def read_results() -> dict[str, Any]:
    if not RESULTS.exists():
        return {"benchmark": "preprocessing", "cases": {}}
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def with_case(document: Mapping[str, Any], case: Case, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with one case's numbers, in the order of CASES."""
    cases = {**document["cases"], case.name: dict(found)}
    known = [case.name for case in CASES if case.name in cases]
    return {**document, "cases": {name: cases[name] for name in known}}


def measure(case: Case, peer_python: Path) -> dict[str, Any]:
    """Run both sides of one case."""
    with tempfile.TemporaryDirectory(prefix="edgevlm-preprocessing-") as name:
        folder = Path(name)
        command = [str(peer_python), str(HERE / "preprocessing_peer.py"), case.name, name]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"error: {case.name}: transformers' side failed\n{done.stderr[-2000:]}")
        with np.load(folder / "peer.npz") as peer:
            theirs = list(peer["tiles"]), peer["embeddings"]
            ours = run_ours(folder, [photo(), peer["scaled"]])
    std = np.array(case.preprocessor["image_std"], dtype=np.float64)[:, None, None]
    found = {
        "family": case.family,
        "published": case.published,
        "versions": {
            **{name: version(name) for name in ("edgevlm", "llama-cpp-python")},
            **json.loads(done.stdout),
        },
        "photo_sha256": hashlib.sha256(photo().tobytes()).hexdigest(),
        "transformers": describe(*theirs),
        "libmtmd": describe(*ours[0]),
        "photo": compare(theirs, ours[0], std),
        "scaled beforehand": compare(theirs, ours[1], std),
    }
    say(f"{case.name}: {json.dumps(found['photo'])}")
    return found


Side = tuple[Sequence[NDArray[np.float32]], NDArray[np.float32]]


def run_ours(folder: Path, images: Sequence[NDArray[np.uint8]]) -> list[Side]:
    """Convert, and return tiles and embeddings of each image; no tiles where they are not seen."""
    from edgevlm_convert import convert_checkpoint, plan_conversion

    from edgevlm.runtime.vlm import open_vlm

    text, mmproj = folder / "text.gguf", folder / "mmproj.gguf"
    plan = plan_conversion(folder / "checkpoint", outtype="f32")
    convert_checkpoint(plan, text_path=text, mmproj_path=mmproj)
    sides: list[Side] = []
    with open_vlm(model=text, mmproj=mmproj, n_threads=2, device="cpu", strict=True) as vlm:
        for image in images:
            encoded = vlm.encode(image)
            assert encoded.graph_input is not None
            sides.append((encoded.graph_input.tiles, np.concatenate(encoded.tiles)))
    return sides


def describe(tiles: Sequence[NDArray[np.float32]], embeddings: NDArray[np.float32]) -> Any:
    """Return how many tiles there are of each size, and the number of visual tokens."""
    sizes = Counter(f"{tile.shape[2]} x {tile.shape[1]}" for tile in tiles)
    return {"tiles": dict(sizes), "n_tokens": len(embeddings)}


def compare(theirs: Side, ours: Side, std: NDArray[np.float64]) -> dict[str, float | None]:
    """Return the differences of pixels and of embeddings; None where the sizes differ."""
    found: dict[str, float | None] = dict.fromkeys(NUMBERS)
    if [tile.shape for tile in theirs[0]] == [tile.shape for tile in ours[0]]:
        difference = np.abs(np.stack(theirs[0]) - np.stack(ours[0]).astype(np.float64)) * std * 255
        found["pixels_mean"] = rounded(difference.mean())
        found["pixels_max"] = rounded(difference.max())
        found["pixels_share_beyond_1"] = rounded((difference > ONE_STEP).mean())
    if theirs[1].shape == ours[1].shape:
        cosine = cosines(theirs[1], ours[1])
        found["cosine_mean"], found["cosine_min"] = rounded(cosine.mean()), rounded(cosine.min())
        # A token beside the one that transformers has in the next place.
        found["cosine_min_one_early"] = rounded(cosines(theirs[1][1:], ours[1][:-1]).min())
    return found


def rounded(value: Any) -> float:
    return round(float(value), 6)


def table(document: Mapping[str, Any]) -> str:
    """Return the table of docs/families.md, from the results alone."""
    cases = document["cases"].values()
    rows = [(f"`{case['family']}`", *cells(case)) for case in cases]
    rows += [(f"`{name}`", why, *[""] * (len(HEAD) - 2)) for name, why in UNMEASURED.items()]
    packages = ("transformers", "pillow", "llama-cpp-python")
    measured = dict.fromkeys(
        ", ".join(f"{name} {case['versions'][name]}" for name in packages) for case in cases
    )
    return f"{markdown(HEAD, rows)}\n\nMeasured with {'; '.join(measured)}."


def family_table() -> str:
    """Return the page's list of families, from the converter's own."""
    from edgevlm_convert.families import FAMILIES

    head = ("family", "architectures in config.json", "text models", "checked")
    rows = [
        (
            f"`{family.name}`",
            ", ".join(f"`{name}`" for name in family.architectures),
            ", ".join(dict.fromkeys(text.name for text in family.text_models)),
            family.status,
        )
        for family in FAMILIES
    ]
    return markdown(head, rows)


def cells(case: Mapping[str, Any]) -> tuple[str, ...]:
    theirs, ours = case["transformers"], case["libmtmd"]
    straight, scaled = case["photo"], case["scaled beforehand"]
    return (
        case["published"],
        size_in_words(theirs),
        size_in_words(ours),
        pixel_cell(straight, ours, "pixels_mean", "pixels_max", "pixels_share_beyond_1"),
        cosine_cell(straight, "cosine_mean", "cosine_min"),
        f"{pixel_cell(scaled, ours, 'pixels_max')}; {cosine_cell(scaled, 'cosine_min')}",
    )


def size_in_words(side: Mapping[str, Any]) -> str:
    """Return "640 x 480, 300 tokens", or "17 tiles of 512 x 512, 1088 tokens"."""
    tiles = side["tiles"]
    n_tiles = sum(tiles.values())
    count = f"{n_tiles} tiles of " if n_tiles > 1 else ""
    return f"{count}{' and '.join(tiles) or 'not observable'}, {side['n_tokens']} tokens"


def pixel_cell(numbers: Mapping[str, Any], ours: Mapping[str, Any], *keys: str) -> str:
    most = numbers["pixels_max"]
    if most is None:
        return "other sizes" if ours["tiles"] else "not observable"
    # Float32 rounds a few millionths of a step away.
    if most < 0.001:
        return "equal"
    forms = {"pixels_mean": "{:.1f}", "pixels_max": "{:.0f}", "pixels_share_beyond_1": "{:.0%}"}
    return ", ".join(forms[key].format(numbers[key]) for key in keys)


def cosine_cell(numbers: Mapping[str, Any], *keys: str) -> str:
    if numbers["cosine_min"] is None:
        return "another number of tokens"
    if numbers["cosine_min"] >= EQUAL_COSINE:
        return "equal"
    if numbers["cosine_min_one_early"] >= EQUAL_COSINE:
        return "equal, but one place early"
    return ", ".join(f"{numbers[key]:.2f}" for key in keys)


def with_tables(page: str, document: Mapping[str, Any]) -> str:
    """Return the page with its tables made anew between their marks."""
    tables = {
        "families": family_table(),
        "preprocessing": table(document),
        "classes": class_table(read_data()),
    }
    for name, text in tables.items():
        page = with_table(page, name, text)
    return page


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
