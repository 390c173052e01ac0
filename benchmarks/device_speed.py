"""Speed and memory of the GPU beside the CPU, on random weights of a published shape.

    python benchmarks/device_speed.py [--shape qwen3-vl-2b] [--work DIR] [--json FILE]

F16 and Q4_K_M, each case in a process of its own: milliseconds for an image of 512 x 512 pixels,
tokens per second of a prompt of about 1000 tokens and of 64 tokens of an answer (median of three,
nothing reused), on the CPU, on the card, and on the card with none and with half of the layers.
`card` is what the process takes of the card's memory once it has answered, from what was free after
CUDA's context was made; `predicted` is what `chat` counts on before it chooses the number of layers
(edgevlm/runtime/card_fit.py), without the share that it leaves for CUDA: the difference of both is
that share, and must stay below it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm.build.convert import convert_model
from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.gguf_file import read_gguf
from edgevlm.model_dir import open_model_dir
from edgevlm.native.devices import devices
from edgevlm.runtime.card_fit import card_n_bytes, own_memory
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm

HERE = Path(__file__).resolve().parent
N_CTX, N_PROMPT, N_ANSWER, SIDE = 4096, 1000, 64, 512
LEVELS = {"F16": "F16", "Q4_K_M": "Q8_0"}
MAX_SECONDS = 600


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed and memory of this GPU.")
    parser.add_argument("--shape", default="qwen3-vl-2b")
    parser.add_argument("--work", type=Path, help="folder for the models, kept when named")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one))))
        return 0
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = options.work or Path(temporary)
        folder = make_models(work, options.shape)
        for case in cases(folder):
            rows.append(in_child(case))
            print(rows[-1], flush=True)
    found = [f"{one.name}: {one.description}" for one in devices()]
    if options.json:
        document = {"shape": options.shape, "devices": found, "cases": rows}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def make_models(work: Path, shape: str) -> Path:
    """Draw a checkpoint, convert and quantize it."""
    checkpoint, folder = work / "checkpoint", work / "random"
    if not (folder / "edgevlm.json").exists():
        program = str(HERE / "random_checkpoint.py")
        command = [sys.executable, program, str(checkpoint), "--shape", shape]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        convert_model(checkpoint, out=folder, name="random", outtype="f16")
        quantize_model(plan_quantization(open_model_dir(folder), level="Q4_K_M"))
    return folder


def cases(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for level, mmproj in LEVELS.items():
        text = folder / f"random-{level}.gguf"
        entry = read_gguf(text).metadata["qwen3vl.block_count"].value
        half = int(str(entry)) // 2
        for device, layers in (("auto", None), ("auto", half), ("auto", 0), ("cpu", None)):
            found.append(
                {
                    "level": level,
                    "text": str(text),
                    "mmproj": str(folder / f"mmproj-random-{mmproj}.gguf"),
                    "device": device,
                    "gpu_layers": layers,
                }
            )
    return found


def in_child(case: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", json.dumps(case)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=MAX_SECONDS, check=False)
    told = {name: value for name, value in case.items() if name not in ("text", "mmproj")}
    if run.returncode:
        return {**told, "error": (run.stderr.strip() or f"rc {run.returncode}").splitlines()[-1]}
    return {**told, **json.loads(run.stdout.splitlines()[-1])}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    before = free()
    text, mmproj = Path(case["text"]), Path(case["mmproj"])
    need = predict_footprint(
        read_gguf(text), read_gguf(mmproj), n_ctx=N_CTX, image_sizes=[(SIDE, SIDE)]
    )
    started = time.perf_counter()
    with open_vlm(
        model=text,
        mmproj=mmproj,
        n_ctx=N_CTX,
        device=case["device"],
        gpu_layers=case["gpu_layers"],
    ) as vlm:
        load_s = time.perf_counter() - started
        speeds = ask(vlm)
        used = before - free()
    return {
        "load_s": round(load_s, 2),
        **speeds,
        "card_n_bytes": used,
        "predicted_n_bytes": card_n_bytes(read_gguf(text), need),
    }


def free() -> int:
    return sum(one.free_n_bytes for one in own_memory(devices()))


def ask(vlm: VLM) -> dict[str, float | None]:
    """Ask three times from nothing; return the medians."""
    per_ten = len(vlm.tokenize("word " * 10))
    question = "word " * (10 * N_PROMPT // per_ten)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    params = SamplingParams(max_tokens=N_ANSWER, loop_guard=False)
    encode: list[float] = []
    prefill: list[float] = []
    decode: list[float] = []
    for number in range(3):
        answer = vlm.generate(f"{question}{number}", [image], params=params)
        vlm.forget()
        times = answer.timings
        encode.append(times.encode_ms)
        prefill.append(1e3 * answer.n_prompt_tokens / times.prefill_ms)
        if times.n_decoded:
            decode.append(1e3 * times.n_decoded / times.decode_ms)
    return {
        "encode_ms": round(float(np.median(encode)), 1),
        "prefill_tok_per_sec": round(float(np.median(prefill)), 1),
        "decode_tok_per_sec": round(float(np.median(decode)), 1) if decode else None,
    }


if __name__ == "__main__":
    sys.exit(main())
