"""The side of transformers in preprocessing.py, which runs it in the Python that has torch.

    python benchmarks/preprocessing_peer.py CASE FOLDER

Makes FOLDER/checkpoint, with random float32 weights, and FOLDER/peer.npz: what transformers' image
processor (its Pillow form) and `get_image_features` (float32, eager attention) make of the photo,
and the photo as that processor scales it. Prints the versions as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "convert"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from photo import photo
from preprocessing_cases import CASES, Case

from edgevlm.verify.hunyuan_inputs import CLASS as HUNYUAN
from edgevlm.verify.hunyuan_inputs import with_own_positions
from tests.goldens.make import saved_shapes
from tests.goldens.recipe import Recipe
from tests.goldens.recipes import RECIPES
from tests.synthetic import draw, encode, generation_config, write_json, write_safetensors

MODEL_INPUTS = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes")


def write_checkpoint(case: Case, recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True)
    vision = {**recipe.config["vision_config"], **case.vision}
    write_json(folder / "config.json", {**recipe.config, **case.config, "vision_config": vision})
    write_json(folder / "preprocessor_config.json", dict(case.preprocessor))
    write_json(folder / "generation_config.json", generation_config())
    recipe.write_tokenizer(folder)
    tensors = {
        name: ("F32", shape, encode(draw(name, shape, seed=recipe.seed), "F32"))
        for name, shape in saved_shapes(recipe, folder).items()
    }
    write_safetensors(folder / "model.safetensors", tensors)


def load_model(recipe: Recipe, checkpoint: Path) -> Any:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    model, loading = getattr(transformers, recipe.model_class).from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        sys.exit(f"our names or shapes are not transformers': {loading}")
    # What a reference is of, see there.
    return with_own_positions(model.eval()) if recipe.model_class == HUNYUAN else model.eval()


def process(case: Case, checkpoint: Path) -> dict[str, Any]:
    module, _, name = case.processor.rpartition(".")
    loaded: Any = importlib.import_module(f"transformers.models.{module}")
    processor = getattr(loaded, name).from_pretrained(checkpoint)
    return dict(processor(images=[photo()], return_tensors="pt", **case.options))


def tiles(case: Case, inputs: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the pixels of one image as [n, 3, height, width]."""
    values = np.asarray(inputs["pixel_values"], dtype=np.float32)
    if case.pixels == "tiles":
        return values.reshape(-1, *values.shape[-3:])
    settings = case.preprocessor
    patch, merge, frames = (
        settings[key] for key in ("patch_size", "merge_size", "temporal_patch_size")
    )
    _, rows, columns = (int(number) for number in np.asarray(inputs["image_grid_thw"])[0])
    if case.pixels == "lines":
        lines = values.reshape(rows, columns, 3, patch, patch).transpose(2, 0, 3, 1, 4)
        return lines.reshape(1, 3, rows * patch, columns * patch)
    blocks = values.reshape(rows // merge, columns // merge, merge, merge, 3, frames, patch, patch)
    picture = blocks[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6)
    return picture.reshape(1, 3, rows * patch, columns * patch)


def scaled_photo(
    case: Case, inputs: Mapping[str, Any], pixels: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Return the photo as transformers scales it before it cuts tiles, RGB [height, width, 3]."""
    mean, std = (
        np.array(case.preprocessor[key])[None, :, None, None] for key in ("image_mean", "image_std")
    )
    values = np.rint((pixels * std + mean) * 255).astype(np.uint8)
    rows, columns = case.grid
    if "rows" in inputs:
        rows, columns = (int(inputs[key][0][0]) for key in ("rows", "cols"))
    # An overview, where there is one, stands last.
    grid = values[: rows * columns].reshape(rows, columns, *values.shape[1:])
    picture = grid.transpose(0, 3, 1, 4, 2)
    return picture.reshape(rows * values.shape[2], columns * values.shape[3], 3)


def features(model: Any, inputs: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return the embeddings of one image, a row a visual token, tile after tile."""
    torch: Any = importlib.import_module("torch")
    arguments = {key: inputs[key] for key in MODEL_INPUTS if key in inputs}
    # Janus-Pro's outer class has no such method.
    owner = model if hasattr(model, "get_image_features") else model.model
    with torch.no_grad():
        found = owner.get_image_features(**arguments, return_dict=True)
    # Qwen3-VL adds to later layers too: llama.cpp puts that behind each row.
    parts = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
    rows = [torch.cat([rows.reshape(-1, rows.shape[-1]) for rows in part]) for part in parts]
    return torch.cat(rows, dim=-1).numpy()


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    case = next(case for case in CASES if case.name == name)
    recipe = RECIPES[case.recipe]
    checkpoint = folder / "checkpoint"
    write_checkpoint(case, recipe, checkpoint)
    inputs = process(case, checkpoint)
    pixels = tiles(case, inputs)
    embeddings = features(load_model(recipe, checkpoint), inputs)
    np.savez(
        folder / "peer.npz",
        tiles=pixels,
        scaled=scaled_photo(case, inputs, pixels),
        embeddings=embeddings,
    )
    print(json.dumps({name: version(name) for name in ("transformers", "torch", "pillow")}))


if __name__ == "__main__":
    main()
