"""Make the goldens. Run by hand, in an environment with torch and transformers:

    python -m tests.goldens.make --llama-cpp SDIST/vendor/llama.cpp [qwen3_vl] [shapes] ...

SDIST is the unpacked source distribution of the llama-cpp-python that constraints.txt pins;
`adapter` needs peft as well, `gemma3n` timm (no torchvision). All are made when none is named. Give
`shapes` alone whenever the built-in checkpoint's weights are replaced. A new golden begins with a
recipe in recipes/.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgevlm_convert.checkpoint import open_checkpoint
from edgevlm_convert.families import find_family

from edgevlm.reference_file import Case, Reference, without_repeats
from edgevlm.verify.inputs import open_inputs
from edgevlm.verify.transformers_model import Question, answer, load_model, versions
from tests.convert.tricks import split_safetensors
from tests.goldens.files import (
    ADAPTER,
    GOLDENS,
    drawn_image,
    kld_between,
    redraw,
    redraw_adapter,
    write_golden_json,
    write_golden_reference,
    write_weights_file,
)
from tests.goldens.recipe import Recipe
from tests.goldens.recipes import RECIPES
from tests.synthetic import Config, generation_config, write_json

SHAPES_CHECKPOINT = GOLDENS.parent.parent / "edgevlm" / "assets" / "shapes" / "checkpoint"
# Of a golden's pixels, which are noise and hardly pack: the first images' are kept.
_MAX_PIXEL_VALUES = 150_000
# llama.cpp knows a pre-tokenizer by the hash of what it does to a test string, which a tiny
# vocabulary never gives; everything else of its converter runs as it is.
_RUN_CONVERTER = """
import runpy, sys
root, pre = sys.argv[1:3]
sys.path[:0] = [root, root + "/gguf-py"]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [root + "/convert_hf_to_gguf.py", *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def converter_golden(
    checkpoint: Path,
    llama_cpp: Path,
    outtypes: tuple[str, ...],
    *,
    pre: str = "qwen2",
    text_options: tuple[str, ...] = (),
    text_alone: bool = False,
) -> Config:
    """Return what llama.cpp's converter makes of a checkpoint, by outtype and file."""
    golden: Config = {}
    files = (("text", text_options), ("mmproj", ("--mmproj",)))[: 1 if text_alone else 2]
    for outtype in outtypes:
        golden[outtype] = {}
        for file, options in files:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "out.gguf"
                command = [sys.executable, "-c", _RUN_CONVERTER, str(llama_cpp), pre]
                command += [str(checkpoint), *options, "--outtype", outtype, "--outfile", str(path)]
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(
                        f"llama.cpp's converter refuses {file}:\n{done.stderr[-3000:]}"
                    )
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


def make(recipe: Recipe, llama_cpp: Path) -> None:
    """Write one golden."""
    if recipe.prepare is not None:
        recipe.prepare()
    folder = GOLDENS / recipe.name
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "config.json", recipe.config)
    write_json(checkpoint / "preprocessor_config.json", recipe.preprocessor)
    write_json(checkpoint / "generation_config.json", generation_config())
    recipe.write_tokenizer(checkpoint)
    write_weights_file(
        folder,
        shapes={**saved_shapes(recipe, checkpoint), **recipe.extra},
        shards=recipe.shards,
        dtype=recipe.dtype,
        seed=recipe.seed,
        gains=recipe.gains,
        integers=saved_integers(recipe, checkpoint),
    )
    with tempfile.TemporaryDirectory() as scratch:
        drawn = redraw(recipe.name, Path(scratch) / "checkpoint")
        cases = reference(recipe, _load(recipe, drawn), drawn)
        write_golden_reference(folder / "reference.npz", Reference(made_by=versions(), cases=cases))
        if recipe.refused:
            return
        if recipe.adapt is not None:
            recipe.adapt(drawn)
        golden = converter_golden(
            drawn,
            llama_cpp,
            recipe.outtypes,
            pre=recipe.pre,
            text_options=recipe.options,
            text_alone=bool(recipe.refused_mmproj),
        )
        write_golden_json(folder / "converter.json", golden)


def make_adapter() -> None:
    """Write the golden of a LoRA adapter on `qwen3_vl`: what peft computes with it."""
    peft: Any = importlib.import_module("peft")
    recipe, folder = RECIPES["qwen3_vl"], GOLDENS / ADAPTER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        drawn = redraw(recipe.name, Path(scratch) / "checkpoint")
        model = peft.get_peft_model(_load(recipe, drawn), peft.LoraConfig(**_LORA))
        model.save_pretrained(scratch)
        header, _ = split_safetensors(Path(scratch) / "adapter_model.safetensors")
        header.pop("__metadata__", None)
        shapes = {name: tuple(entry["shape"]) for name, entry in sorted(header.items())}
        write_weights_file(folder, shapes=shapes, shards=1, dtype="F32", seed=7, gains={})
        config = json.loads((Path(scratch) / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = "qwen3_vl"
        write_json(folder / "adapter_config.json", config)
        adapter = redraw_adapter(Path(scratch) / "adapter")
        adapted = peft.PeftModel.from_pretrained(_load(recipe, drawn), adapter).eval()
        write_golden_reference(
            folder / "reference.npz",
            Reference(
                made_by=f"{versions()}, peft {peft.__version__}",
                # The model itself, with the adapter's layers in place.
                cases=reference(recipe, adapted.get_base_model(), drawn),
            ),
        )


_LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 6,
    "target_modules": r".*(q_proj|v_proj|down_proj|attn\.qkv|attn\.proj|linear_fc[12])",
    "rank_pattern": {"v_proj": 2, r"blocks\.1\.attn\.qkv": 3},
    "alpha_pattern": {"down_proj": 3},
    "use_rslora": True,
    "use_dora": True,
    "modules_to_save": ["lm_head"],
}


def saved_integers(recipe: Recipe, checkpoint: Path) -> dict[str, list[int]]:
    """Return the tensors of whole numbers that transformers makes of a config, by name."""
    transformers: Any = importlib.import_module("transformers")
    model_class = getattr(transformers, recipe.model_class)
    model = model_class(model_class.config_class.from_pretrained(checkpoint))
    return {
        name: value.tolist()
        for name, value in model.state_dict().items()
        if str(value.dtype) == "torch.int64"
    }


def saved_shapes(recipe: Recipe, checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Return the tensors that transformers saves for a config, by name."""
    transformers: Any = importlib.import_module("transformers")
    model_class = getattr(transformers, recipe.model_class)
    model = model_class(model_class.config_class.from_pretrained(checkpoint))
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, max_shard_size="100GB")
        header, _ = split_safetensors(Path(scratch) / "model.safetensors")
    header.pop("__metadata__", None)
    return {name: tuple(entry["shape"]) for name, entry in sorted(header.items())}


def _load(recipe: Recipe, checkpoint: Path) -> Any:
    """Return transformers' model in float32 with eager attention."""
    model = load_model(checkpoint)
    if recipe.emulate is not None:
        recipe.emulate(model)
    return model


def reference(recipe: Recipe, model: Any, checkpoint: Path) -> tuple[Case, ...]:
    """Return what a model computes for a recipe's prompts."""
    family = find_family(open_checkpoint(checkpoint).config)
    inputs = open_inputs(checkpoint, family=family.name)
    if inputs.image_token != recipe.image_token:
        raise SystemExit(f"the image token is {inputs.image_token}, not {recipe.image_token}")
    cases = tuple(
        answer(
            model,
            inputs,
            Question(
                name=name,
                prompt=prompt,
                images=tuple((image, drawn_image(image)) for image in images),
            ),
        )
        for name, prompt, images in recipe.prompts
    )
    kld = kld_between(cases, "one image", "another image")
    print(f"{recipe.name}: KLD between two images {kld:.3g}")
    if kld < 1e-2:
        raise SystemExit("the weights do not let the model see: change the recipe's gains")
    return without_repeats(cases, n_values=_MAX_PIXEL_VALUES)


def main() -> None:
    """Make the goldens that are named, all without a name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("names", nargs="*", default=[*RECIPES, ADAPTER, "shapes"])
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.llama_cpp / "gguf-py"))
    for name in arguments.names:
        if name == "shapes":
            make_shapes(arguments.llama_cpp)
        elif name == ADAPTER:
            make_adapter()
        else:
            make(RECIPES[name], arguments.llama_cpp)


if __name__ == "__main__":
    main()
