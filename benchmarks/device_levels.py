"""The built-in model on this machine's GPU beside the CPU: every level, and what a chat rests on.

    python benchmarks/device_levels.py [--device auto] [--json FILE] [LEVEL ...]

Each level answers the 64 questions on both. A line has the right answers, the largest and the mean
KL divergence between both sides' distributions along the expected answers (nats), how often both
find the same token most likely, and decode tokens per second. Then, on the device, for each type of
KV cache and number of layers there: whether a second question about an image, which reuses the KV
cache, is answered as a cold one is, and whether two cold runs agree to the bit. Last, what
`verify` rests on: the input of the vision tower, read in the middle of its graph, is the same on
both, to the bit.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.build.convert import convert_model
from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.build.resolve import built_in_checkpoint, built_in_folder
from edgevlm.drift.prompts import read_prompts
from edgevlm.drift.tasks import score_answers
from edgevlm.errors import EdgeVLMError
from edgevlm.model_dir import open_model_dir
from edgevlm.native.devices import devices
from edgevlm.native.text_context import KVType
from edgevlm.quantize.profile_file import profile_names
from edgevlm.runtime.image import load_image
from edgevlm.runtime.vlm import open_vlm
from edgevlm.vectors import log_softmax

PROMPTS = read_prompts(built_in_folder() / "prompts.jsonl")
KV_TYPES: tuple[KVType, ...] = ("F16", "Q8_0", "F32")
LAYERS = (None, 0, 2)


def main() -> int:
    parser = argparse.ArgumentParser(description="The built-in model on this GPU.")
    parser.add_argument("levels", nargs="*", metavar="LEVEL")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [f"{one.name}: {one.description}" for one in devices()]
    print("\n".join(found))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "shapes"
        convert_model(built_in_checkpoint(), out=folder, name="shapes", outtype="f16")
        document: dict[str, Any] = {"devices": found, "levels": {}}
        for level in options.levels or ["F16", *(one for one in profile_names() if one != "F16")]:
            try:
                row: dict[str, Any] = beside(folder, level, options.device)
            except EdgeVLMError as error:
                row = {"error": error.message}
            document["levels"][level] = row
            print(
                f"{level:8}", *(f"{key} {shown(value)}" for key, value in row.items()), flush=True
            )
        document["reuse"] = [
            reuse(folder, kv_type, layers, options.device)
            for kv_type in KV_TYPES
            for layers in LAYERS
        ]
        document["tower_input_equal"] = same_input(folder, options.device)
    print(*document["reuse"], f"tower's input equal: {document['tower_input_equal']}", sep="\n")
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def files(folder: Path, level: str) -> tuple[Path, Path]:
    """Return text model and projector of a level."""
    names = {(one.role, one.level): one.name for one in open_model_dir(folder).manifest.files}
    mmproj = names.get(("mmproj", level)) or names.get(("mmproj", "Q8_0"))
    return folder / names["text", level], folder / (mmproj or names["mmproj", "F16"])


def beside(folder: Path, level: str, device: str) -> dict[str, Any]:
    """Ask one level on the CPU and on the device."""
    if level != "F16":
        quantize_model(plan_quantization(open_model_dir(folder), level=level))
    text, mmproj = files(folder, level)
    row: dict[str, Any] = {"mmproj": mmproj.name}
    sides: list[NDArray[np.float64]] = []
    for side, where in (("cpu", "cpu"), ("device", device)):
        with open_vlm(model=text, mmproj=mmproj, device=where) as vlm:
            score = score_answers(vlm, PROMPTS, folder=built_in_folder())
            logits = [
                vlm.answer_logits(
                    one.prompt,
                    [load_image(built_in_folder() / one.paths[0])],
                    answer=vlm.tokenize(one.answer or ""),
                )
                for one in PROMPTS[::4]
            ]
        sides.append(log_softmax(np.concatenate(logits)))
        row[f"right_{side}"] = score.n_right
        row[f"decode_tok_per_sec_{side}"] = score.decode_tok_per_sec
    cpu, gpu = sides
    klds = (np.exp(cpu) * (cpu - gpu)).sum(axis=1)
    row |= {"max_kld": float(klds.max()), "mean_kld": float(klds.mean())}
    row["same_top"] = float((cpu.argmax(axis=1) == gpu.argmax(axis=1)).mean())
    return row


def reuse(folder: Path, kv_type: KVType, layers: int | None, device: str) -> dict[str, Any]:
    """Ask twice about an image, then once more from nothing."""
    text, mmproj = files(folder, "F16")
    image = [load_image(built_in_folder() / PROMPTS[0].paths[0])]
    first, second = (next(one.prompt for one in PROMPTS if one.kind == kind) for kind in kinds())
    with open_vlm(
        model=text, mmproj=mmproj, device=device, kv_type=kv_type, gpu_layers=layers
    ) as vlm:
        cold = [vlm.first_logits(first, image) for _ in range(2)]
        vlm.forget()
        vlm.generate(first, image)
        warm = vlm.generate(second, image)
        vlm.forget()
        again = vlm.generate(second, image)
    return {
        "kv_type": kv_type,
        "gpu_layers": layers,
        "cold_runs_equal": bool((cold[0] == cold[1]).all()),
        "n_reused_tokens": warm.n_reused_tokens,
        "answer_as_cold": warm.token_ids == again.token_ids,
    }


def kinds() -> tuple[str, str]:
    """Return two kinds of question."""
    first, second, *_ = dict.fromkeys(one.kind for one in PROMPTS)
    return first, second


def same_input(folder: Path, device: str) -> bool:
    """Return whether the tower is given the same pixels on both, as it is observed."""
    text, mmproj = files(folder, "F16")
    seen: list[NDArray[np.float32]] = []
    for where in ("cpu", device):
        with open_vlm(model=text, mmproj=mmproj, device=where, strict=True) as vlm:
            image = load_image(built_in_folder() / PROMPTS[0].paths[0])
            graph_input = vlm.encode(image).graph_input
        if graph_input is None or graph_input.not_seen:
            return False
        seen.append(graph_input.tiles[0])
    return bool((seen[0] == seen[1]).all())


if __name__ == "__main__":
    sys.exit(main())
