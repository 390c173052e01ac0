"""A projector in each type: how large, how fast, how near to the original.

    python benchmarks/projector_types.py [CASE ...] [--threads N ...]
    python benchmarks/projector_types.py --table

The claim: a projector keeps its embeddings in fewer bits, and which type is fastest is a matter of
the machine. Cases: `shapes` with its trained weights; `shapes` with each matrix drawn anew at its
own deviation, to see what random weights say; towers with the sizes of SigLIP-base, SigLIP-so400m
and Qwen3-VL-2B, random. All are converted to F32, quantized from that, and encode two pictures
(shapes: eight of its own) with two threads.

- bytes: of the file; where rows of 4304 are padded, with the zeros.
- seconds: per image, tower and projector, with one thread and with two, the median of three runs or
  more; types take turns, so that a busy minute meets all of them. The machine is shared, and two
  threads that wait for each other are at its mercy: read ratios, those of one thread first.
- cosine: of each visual token with that of the F32 file, mean and lowest.

Numbers are kept in `results/projector_types.json` by case; the table in docs/quantization.md is
made from that file. stderr tells how it goes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgevlm_convert import plan_conversion
from edgevlm_convert.config import Section
from edgevlm_convert.families import find_family
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.writer import GGUFPlan, OutputTensor, plan_gguf, write_gguf
from page import markdown, with_table
from photo import photo
from random_checkpoint import Shape, tensors

from edgevlm.build.resolve import built_in_checkpoint, built_in_folder
from edgevlm.files import human_bytes
from edgevlm.native.system import read_processor
from edgevlm.quantize.encode import mmproj_encoder
from edgevlm.quantize.run import plan_quantize
from edgevlm.runtime.image import load_image
from edgevlm.runtime.vlm import open_vlm
from edgevlm.vectors import cosines
from tests.goldens.files import GOLDENS, drawn_image, read_golden_json
from tests.synthetic import draw, encode, write_safetensors

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "projector_types.json"
PAGE = HERE.parent / "docs" / "quantization.md"
TYPES = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")
THREADS, N_CTX = (1, 2), 2048
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One tower.

    Attributes:
        title: in the table.
        golden: whose config, tokenizer and text model it has; None: `shapes`.
        vision: keys of vision_config with the published sizes.
        text: keys of text_config.
        preprocessor: keys of preprocessor_config.json.
        side: of the pictures, in pixels.
        drawn_anew: draw every matrix again at its own deviation.
        n_rounds: how many encodes are timed.
    """

    title: str
    golden: str | None = None
    vision: Mapping[str, Any] = field(default_factory=dict[str, Any])
    text: Mapping[str, Any] = field(default_factory=dict[str, Any])
    preprocessor: Mapping[str, Any] = field(default_factory=dict[str, Any])
    side: int = 0
    drawn_anew: bool = False
    n_rounds: int = 3


def siglip(title: str, *, width: int, n_hidden: int, layers: int, heads: int, patch: int) -> Case:
    """Return a SigLIP tower with LLaVA's projector, at 384 pixels."""
    return Case(
        title=title,
        golden="llava_siglip_qwen2",
        vision={
            "hidden_size": width,
            "intermediate_size": n_hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "patch_size": patch,
            "image_size": 384,
        },
        preprocessor={"size": {"height": 384, "width": 384}},
        side=384,
    )


CASES = {
    "shapes": Case(title="`shapes` (256/768, 4 layers), trained", n_rounds=9),
    "shapes drawn anew": Case(
        title="`shapes`, matrices drawn anew", drawn_anew=True, n_rounds=9
    ),
    "siglip-base": siglip(
        "SigLIP-base (768/3072, 12 layers), random",
        width=768, n_hidden=3072, layers=12, heads=12, patch=16,
    ),
    "siglip-so400m": siglip(
        "SigLIP-so400m's (1152/4304, 9 of 27 layers), random",
        width=1152, n_hidden=4304, layers=9, heads=16, patch=14,
    ),
    "qwen3-vl": Case(
        title="Qwen3-VL-2B's (1024/4096, 8 of 24 layers), random",
        golden="qwen3_vl",
        vision={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "depth": 8,
            "num_heads": 16,
            "patch_size": 16,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [1, 3, 5],
        },
        text={"num_hidden_layers": 5},
        preprocessor={"patch_size": 16},
        side=384,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", help="all when none is named")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=THREADS, help="other numbers stay as they were"
    )
    parser.add_argument("--table", action="store_true", help="only make the page's table anew")
    args = parser.parse_args()
    document = read_results()
    if unknown := set(args.cases) - set(CASES):
        sys.exit(f"error: no entry for {', '.join(sorted(unknown))}")
    for name, case in () if args.table else CASES.items():
        if args.cases and name not in args.cases:
            continue
        measured = measure(name, case, args.threads)
        for type_, old in document["cases"].get(name, {"types": {}})["types"].items():
            both = old["seconds"] | measured["types"][type_]["seconds"]
            measured["types"][type_]["seconds"] = dict(sorted(both.items()))
        found = {**document["cases"], name: measured}
        document["cases"] = {name: found[name] for name in CASES if name in found}
        document["machine"] = f"{read_processor().name}, shared"
        RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, "projector types", table(document)), encoding="utf-8")


def read_results() -> dict[str, Any]:
    if not RESULTS.exists():
        return {"benchmark": "projector_types", "machine": "", "cases": {}}
    return json.loads(RESULTS.read_text(encoding="utf-8"))


def measure(name: str, case: Case, threads: Sequence[int]) -> dict[str, Any]:
    """Make the tower in every type and encode the pictures with each."""
    with tempfile.TemporaryDirectory(prefix="edgevlm-types-") as folder_name:
        folder = Path(folder_name)
        checkpoint = built_in_checkpoint() if case.golden is None else write(case, folder)
        conversion = plan_conversion(checkpoint, outtype="f32")
        text, exact = folder / "text.gguf", folder / "F32.gguf"
        write_gguf(conversion.text, text)
        write_gguf(drawn_anew(conversion.mmproj) if case.drawn_anew else conversion.mmproj, exact)
        say(f"{name}: written")
        files = {type_: folder / f"{type_}.gguf" for type_ in TYPES}
        for type_, path in files.items():
            encoder = mmproj_encoder(type_)
            write_gguf(plan_quantize(exact, encoder), path, encoder=encoder, n_threads=2)
        pictures = images(case)
        reference, _ = encoded(text, exact, pictures, threads[0])
        exact.unlink()
        rows: dict[str, NDArray[np.float64]] = {}
        seconds = {(n, type_): list[float]() for n in threads for type_ in TYPES}
        for number in range(case.n_rounds):
            for (n_threads, type_), taken in seconds.items():
                some = pictures if type_ not in rows or case.golden is None else pictures[-1:]
                found, took = encoded(text, files[type_], some, n_threads)
                if type_ not in rows:
                    rows[type_] = cosines(found, reference)
                taken.append(took)
                say(f"{name}: round {number + 1}, {type_}, {n_threads} threads: {took:.3f} s")
        return {
            "image_side": case.side,
            "n_images": len(pictures),
            "n_tokens": len(reference),
            "types": {
                type_: {
                    "n_bytes": path.stat().st_size,
                    "seconds": {str(n): round(median(seconds[n, type_]), 4) for n in threads},
                    "cosine_mean": round(float(rows[type_].mean()), 6),
                    "cosine_min": round(float(rows[type_].min()), 6),
                }
                for type_, path in files.items()
            },
        }


def write(case: Case, folder: Path) -> Path:
    """Write a random checkpoint with the golden's config but for the sizes."""
    golden = GOLDENS / str(case.golden)
    checkpoint = Path(shutil.copytree(golden / "checkpoint", folder / "checkpoint"))
    config = read_golden_json(checkpoint / "config.json")
    config["vision_config"] |= case.vision
    config["text_config"] |= case.text
    preprocessor = {
        **read_golden_json(checkpoint / "preprocessor_config.json"),
        **case.preprocessor,
    }
    documents = {"config.json": config, "preprocessor_config.json": preprocessor}
    for name, document in documents.items():
        (checkpoint / name).write_text(json.dumps(document), encoding="utf-8")
    known = read_golden_json(golden / "weights.json")
    family = find_family(Section(config, file="config.json"))
    shape = Shape(
        config=config,
        preprocessor=preprocessor,
        prefixes=find_prefixes(known["tensors"], family.prefixes),
        n_tokens=0,
        write_tokenizer=lambda *_: None,
    )
    for index in checkpoint.glob("*.index.json"):
        index.unlink()
    write_safetensors(
        checkpoint / "model.safetensors",
        {
            name: ("F32", size, encode(draw(name, size, seed=known["seed"]), "F32"))
            for name, size in tensors(shape).items()
        },
    )
    return checkpoint


def drawn_anew(plan: GGUFPlan) -> GGUFPlan:
    """Return a projector whose matrices are normal numbers of the same mean and deviation."""
    random = np.random.default_rng(1)

    def redraw(tensor: OutputTensor) -> OutputTensor:
        shape = tensor.info.shape
        if len(shape) != 2 or "position" in tensor.info.name:
            return tensor
        old = tensor.read(0, shape[0])
        new = random.normal(old.mean(), old.std(), shape).astype(np.float32)

        def read(start: int, stop: int) -> NDArray[np.float32]:
            return new[start:stop]

        return replace(tensor, read=read, read_raw=None)

    return plan_gguf(metadata=plan.metadata, tensors=[redraw(t) for t in plan.tensors])


def images(case: Case) -> list[Pixels]:
    if case.golden is None:
        return [load_image(built_in_folder() / "images" / f"{n:03}.png") for n in range(8)]
    return [photo(case.side, case.side), drawn_image(f"{case.side}x{case.side}-3")]


def encoded(
    text: Path, mmproj: Path, pictures: Sequence[Pixels], n_threads: int
) -> tuple[NDArray[np.float32], float]:
    """Return all rows, and the seconds that the last image took; a first one warms up."""
    with open_vlm(model=text, mmproj=mmproj, n_ctx=N_CTX, n_threads=n_threads, device="cpu") as vlm:
        found = [vlm.encode(picture) for picture in pictures]
    rows = [tile for one in found for tile in one.tiles]
    return np.concatenate(rows), found[-1].encode_ms / 1e3


def table(document: Mapping[str, Any]) -> str:
    """Return the table of docs/quantization.md, from the results alone."""
    head = ("tower", "type", "size", "of F16", "encode", "of F16's", "cosine, mean", "lowest")
    rows: list[tuple[str, ...]] = []
    for name, found in document["cases"].items():
        base = found["types"]["F16"]
        for type_, numbers in found["types"].items():
            seconds = numbers["seconds"]
            ratios = [f"{value / base['seconds'][n]:.2f}" for n, value in seconds.items()]
            rows.append(
                (
                    CASES[name].title if type_ == TYPES[0] else "",
                    type_,
                    human_bytes(numbers["n_bytes"]),
                    f"{numbers['n_bytes'] / base['n_bytes']:.2f}",
                    ", ".join(f"{value:.3g}" for value in seconds.values()) + " s",
                    ", ".join(ratios),
                    f"{numbers['cosine_mean']:.5f}",
                    f"{numbers['cosine_min']:.5f}",
                )
            )
    return f"{markdown(head, rows)}\n\nMeasured on {document['machine']}."


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
