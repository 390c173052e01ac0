"""Make the goldens. Run by hand, in an environment with torch and transformers:

    python -m tests.goldens.make --llama-cpp SDIST/vendor/llama.cpp [qwen3_vl] [shapes]

SDIST is the unpacked source distribution of the llama-cpp-python that constraints.txt pins. Give
`shapes` alone whenever the built-in checkpoint's weights are replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.goldens.files import (
    GOLDENS,
    Case,
    drawn_image,
    redraw,
    write_reference,
    write_weights_file,
)
from tests.synthetic import Config, tensor_shapes, write_checkpoint, write_json

SHAPES_CHECKPOINT = GOLDENS.parent.parent / "edgevlm" / "assets" / "shapes" / "checkpoint"
# Far from the default of tests/synthetic.py in every number that a transform depends on.
QWEN3_VL: dict[str, Any] = {
    "text": {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_hidden_layers": 3,
        "vocab_size": 320,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [6, 5, 5],
            "rope_theta": 100.0,
            "rope_type": "default",
        },
    },
    "vision": {
        "hidden_size": 48,
        "num_heads": 3,
        "intermediate_size": 80,
        "depth": 4,
        "deepstack_visual_indexes": [3, 1],
    },
    "n_tokens": 300,
}
SEED, SHARDS = 20261123, 3
N_POSITIONS = 16
PROMPTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
    ("one image", "What is in the image?", ("48x64-1",)),
    ("another image", "What is in the image?", ("48x64-2",)),
    ("two images", "Is the circle in one or in the other?", ("48x64-2", "80x32-3")),
)
# llama.cpp knows a pre-tokenizer by the hash of what it does to a test string, which a tiny
# vocabulary never gives; everything else of its converter runs as it is.
_RUN_CONVERTER = """
import runpy, sys
root = sys.argv[1]
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
sys.argv = [root + "/convert_hf_to_gguf.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def converter_golden(checkpoint: Path, llama_cpp: Path, outtypes: tuple[str, ...]) -> Config:
    """Return what llama.cpp's converter makes of a checkpoint, by outtype and file."""
    golden: Config = {}
    for outtype in outtypes:
        golden[outtype] = {}
        for file, options in (("text", ()), ("mmproj", ("--mmproj",))):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "out.gguf"
                command = [sys.executable, "-c", _RUN_CONVERTER, str(llama_cpp), str(checkpoint)]
                command += [*options, "--outtype", outtype, "--outfile", str(path)]
                subprocess.run(command, check=True, capture_output=True)
                golden[outtype][file] = describe(path)
    return golden


def describe(path: Path) -> Config:
    """Return metadata and tensors of a GGUF file, the tensors' bytes as SHA-256."""
    gguf: Any = importlib.import_module("gguf")
    reader = gguf.GGUFReader(path)
    metadata = {
        key: [":".join(kind.name for kind in field.types), field.contents()]
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    }
    tensors = [
        [
            tensor.name,
            [int(size) for size in tensor.shape[::-1]],
            tensor.tensor_type.name,
            hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        ]
        for tensor in reader.tensors
    ]
    return {"metadata": metadata, "tensors": tensors}


def make_shapes(llama_cpp: Path) -> None:
    """Write the golden of the built-in checkpoint."""
    folder = GOLDENS / "shapes"
    folder.mkdir(exist_ok=True)
    write_json(
        folder / "converter.json", converter_golden(SHAPES_CHECKPOINT, llama_cpp, ("auto", "f16"))
    )


def make_qwen3_vl(llama_cpp: Path) -> None:
    """Write the golden of the second configuration, transformers' logits included."""
    folder = GOLDENS / "qwen3_vl"
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = folder / "checkpoint"
    config = write_checkpoint(checkpoint, **QWEN3_VL)
    (checkpoint / "model.safetensors").unlink()
    write_weights_file(folder, shapes=tensor_shapes(config), shards=SHARDS, dtype="BF16", seed=SEED)
    with tempfile.TemporaryDirectory() as scratch:
        drawn = redraw("qwen3_vl", Path(scratch) / "checkpoint")
        golden = converter_golden(drawn, llama_cpp, ("auto", "f16", "f32"))
        write_json(folder / "converter.json", golden)
        write_reference(folder / "reference.npz", reference(drawn), made_by=_versions())


def reference(checkpoint: Path) -> list[Case]:
    """Return transformers' log-probabilities: float32, eager attention."""
    # Any: neither is installed where the types are checked.
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    model, loading = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    if any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise SystemExit(f"our names or shapes are not transformers': {loading}")
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    processor = _image_processor(checkpoint)
    cases: list[Case] = []
    for name, prompt, images in PROMPTS:
        ids, extra = _inputs(tokenizer, processor, prompt, images)
        with torch.no_grad():
            logits = _logits_along(model, ids, extra)
        answer, rows = logits
        order = np.argsort(-rows, axis=1, kind="stable").astype(np.int32)
        cases.append(
            Case(
                name=name,
                prompt=prompt,
                images=images,
                input_ids=np.asarray(ids, dtype=np.int32),
                answer=np.asarray(answer, dtype=np.int32),
                top_ids=order,
                top_logprobs=np.take_along_axis(rows, order, axis=1).astype(np.float32),
                tail_mass=np.zeros(len(rows), dtype=np.float32),
            )
        )
    _check_sight(cases)
    return cases


def _logits_along(model: Any, ids: list[int], extra: dict[str, Any]) -> tuple[list[int], Any]:
    """Return 16 greedy tokens and the log-probabilities that chose each of them."""
    torch: Any = importlib.import_module("torch")
    answer: list[int] = []
    while True:
        tokens = torch.tensor([ids + answer])
        kinds = (tokens == model.config.image_token_id).int()
        out = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=kinds,
            use_cache=False,
            **extra,
        )
        rows = torch.log_softmax(out.logits[0].double(), dim=-1)[len(ids) - 1 :].numpy()
        answer.append(int(rows[-1].argmax()))
        if len(answer) == N_POSITIONS:
            return answer, rows


def _inputs(
    tokenizer: Any, processor: Any, prompt: str, images: tuple[str, ...]
) -> tuple[list[int], dict[str, Any]]:
    """Return token ids and image tensors as Qwen3VLProcessor makes them (it needs torchvision)."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    if not images:
        return tokenizer(text)["input_ids"], {}
    pixels = processor(images=[drawn_image(name) for name in images], return_tensors="pt")
    pad = "<|image_pad|>"
    for grid in pixels["image_grid_thw"]:
        n_tokens = int(grid.prod()) // 4
        text = text.replace(pad, "\0" * n_tokens, 1)
    ids = tokenizer(text.replace("\0", pad))["input_ids"]
    return ids, {key: pixels[key] for key in ("pixel_values", "image_grid_thw")}


def _image_processor(checkpoint: Path) -> Any:
    # The form that needs no torchvision.
    module: Any = importlib.import_module(
        "transformers.models.qwen2_vl.image_processing_pil_qwen2_vl"
    )
    return module.Qwen2VLImageProcessorPil.from_pretrained(checkpoint)


def _check_sight(cases: list[Case]) -> None:
    """A golden that cannot tell two images apart proves nothing."""
    by_name = {case.name: case for case in cases}
    first, other = by_name["one image"], by_name["another image"]
    logp = np.zeros((2, first.top_ids.shape[1]))
    for row, case in zip(logp, (first, other), strict=True):
        row[case.top_ids[0]] = case.top_logprobs[0]
    kld = float((np.exp(logp[0]) * (logp[0] - logp[1])).sum())
    print(f"KLD between two images: {kld:.3g}")
    if kld < 1e-2:
        raise SystemExit("the weights do not let the model see: change the gains in synthetic.py")


def _versions() -> str:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    return f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager"


def main() -> None:
    """Make the goldens that are named, all without a name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("names", nargs="*", default=["qwen3_vl", "shapes"])
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.llama_cpp / "gguf-py"))
    makers = {"qwen3_vl": make_qwen3_vl, "shapes": make_shapes}
    for name in arguments.names:
        makers[name](arguments.llama_cpp)


if __name__ == "__main__":
    main()
