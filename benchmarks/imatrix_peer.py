"""Do llama.cpp's own tools and edgevlm read each other's importance matrices?

    python benchmarks/imatrix_peer.py --llama-quantize PATH [--llama-imatrix PATH] [--json FILE]

`edgevlm calibrate` makes a matrix of the built-in model; llama-quantize is given it with --imatrix
on the F16 text model, at levels with blocks of 256 and of 32, with and without fallbacks; every
tensor that it writes is held against what `edgevlm quantize --imatrix` writes, type and bytes.
For --llama-imatrix the tool collects one of text in its GGUF form and in the older .dat, and
edgevlm must read both to the same channels and quantize as llama-quantize does with them.

Both binaries are built from the sources that llama-cpp-python ships (vendor/llama.cpp):

    cmake -S vendor/llama.cpp -B build -DCMAKE_BUILD_TYPE=Release -DLLAMA_OPENSSL=OFF
    cmake --build build --target llama-quantize llama-imatrix

The bytes of blocks depend on the processor's kernels, so both sides must have run on this machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf

from edgevlm.build.resolve import built_in_checkpoint, built_in_folder
from edgevlm.calibrate.run import Options, Sample, calibrate
from edgevlm.drift.prompts import read_prompts
from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.imatrix_file import read_imatrix
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.run import plan_quantize

LEVELS = ("Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ3_S", "IQ4_XS", "Q4_0", "IQ2_M")
N_PROMPTS = 16


def main() -> int:
    """Print a line a level; 1 when a byte differs."""
    parser = argparse.ArgumentParser(description="Importance matrices beside llama.cpp's tools.")
    parser.add_argument("--llama-quantize", type=Path, required=True)
    parser.add_argument("--llama-imatrix", type=Path)
    parser.add_argument("--levels", nargs="+", default=LEVELS)
    parser.add_argument("--checkpoint", type=Path, default=built_in_checkpoint())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        conversion = plan_conversion(options.checkpoint, name="shapes", outtype="f16")
        text, mmproj = folder / "text.gguf", folder / "mmproj.gguf"
        write_gguf(conversion.text, text)
        write_gguf(conversion.mmproj, mmproj)
        matrices = {"edgevlm": folder / "imatrix.gguf"}
        samples = [
            Sample(image=built_in_folder() / one.paths[0], prompt=one.prompt)
            for one in read_prompts(built_in_folder() / "prompts.jsonl")[:N_PROMPTS]
        ]
        calibrate(
            text, mmproj, samples, out=matrices["edgevlm"], options=Options(image_weight=0.25)
        )
        if options.llama_imatrix:
            matrices |= collected_by_llama(options.llama_imatrix, text, folder)
        for source, matrix in matrices.items():
            found[source] = {
                level: compared(options.llama_quantize, text, matrix, level, folder)
                for level in options.levels
            }
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return int(any(row["differ"] for rows in found.values() for row in rows.values()))


def compared(binary: Path, text: Path, matrix: Path, level: str, folder: Path) -> dict[str, Any]:
    """Quantize with both, print and return how many tensors are equal, and which are not."""
    theirs, ours = folder / "theirs.gguf", folder / "ours.gguf"
    said = subprocess.run(
        [binary, "--imatrix", matrix, text, theirs, level, "1"],
        check=True,
        capture_output=True,
        text=True,
    )
    encoder = text_encoder(load_profile(level), importance=read_imatrix(matrix).importance)
    write_gguf(plan_quantize(text, encoder), ours, encoder=encoder)
    one, other = contents(ours), contents(theirs)
    equal = [name for name, content in one.items() if other.get(name) == content]
    differ = sorted((one.keys() | other.keys()) - set(equal))
    plain = contents_without(text, level, folder)
    moved = sum(plain[name] != content for name, content in one.items()) if plain else None
    loaded = [line for line in (said.stdout + said.stderr).splitlines() if "importance" in line]
    print(
        f"{matrix.name:16} {level:8} {len(equal)} of {len(one)} tensors equal, "
        f"{'?' if moved is None else moved} of them other than without the matrix"
        + (f"; NOT {', '.join(differ)}" if differ else ""),
        flush=True,
    )
    return {"equal": len(equal), "differ": differ, "moved": moved, "said": loaded[:1]}


def contents(path: Path) -> dict[str, tuple[str, bytes]]:
    """Return type and bytes of every tensor."""
    data = path.read_bytes()
    return {
        tensor.name: (tensor.type, data[tensor.offset : tensor.offset + tensor.n_bytes])
        for tensor in read_gguf(path).tensors
    }


def contents_without(text: Path, level: str, folder: Path) -> dict[str, tuple[str, bytes]]:
    """Return the tensors of the level without a matrix; nothing where it needs one."""
    if level.startswith(("IQ2", "IQ1")):
        return {}
    encoder = text_encoder(load_profile(level))
    path = folder / "plain.gguf"
    write_gguf(plan_quantize(text, encoder), path, encoder=encoder)
    return contents(path)


def collected_by_llama(binary: Path, text: Path, folder: Path) -> dict[str, Path]:
    """Let llama-imatrix collect in both of its forms, and hold what we read of them together."""
    words = folder / "words.txt"
    prompts = read_prompts(built_in_folder() / "prompts.jsonl")
    words.write_text("\n".join(f"{one.prompt} {one.answer}" for one in prompts * 8) + "\n")
    found: dict[str, Path] = {}
    for form, ending in (("gguf", "gguf"), ("dat", "dat")):
        out = folder / f"llama.{ending}"
        command = [binary, "-m", text, "-f", words, "-o", out, "-c", "128", "-t", "1"]
        command += ["--output-format", form, "--no-ppl"]
        subprocess.run(command, check=True, capture_output=True)
        found[f"llama-imatrix .{ending}"] = out
    one, other = (read_imatrix(path) for path in found.values())
    for name, channels in one.importance.channels.items():
        np.testing.assert_allclose(channels, other.importance.channels[name], rtol=1e-5)
    print(f"llama-imatrix: {len(one.importance.channels)} matrices, equal in both forms")
    return found


if __name__ == "__main__":
    sys.exit(main())
