"""MiniCPM-V 4.7: MiniCPM-V 4.6 with images on canvases: slices in rows, in a column, and none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tests.convert.mutations import mmproj, nothing
from tests.goldens.files import read_golden_json
from tests.goldens.qwen3_checkpoints import N_TOKENS
from tests.goldens.recipe import PROMPTS
from tests.goldens.recipes.minicpmv4_6 import RECIPE as MINICPMV4_6
from tests.synthetic import write_json

# Of the tokenizer's files: tokens around images stand last, letters first.
_MARKERS: Mapping[str, int] = {
    "image_start_id": N_TOKENS,
    "image_end_id": N_TOKENS + 1,
    "slice_start_id": N_TOKENS + 2,
    "slice_end_id": N_TOKENS + 3,
    "newline_id": 10,
}


def _as_minicpmv4_6(folder: Path) -> None:
    """Give a checkpoint the names of the class that llama.cpp's converter knows."""
    config = read_golden_json(folder / "config.json")
    config |= {key: MINICPMV4_6.config[key] for key in ("architectures", "model_type")}
    config["vision_config"]["model_type"] = "minicpmv4_6_vision"
    write_json(folder / "config.json", config)


RECIPE = replace(
    MINICPMV4_6,
    name="minicpmv4_7",
    config={
        **{key: MINICPMV4_6.config[key] for key in MINICPMV4_6.config if key[:4] != "drop"},
        **_MARKERS,
        "architectures": ["MiniCPMV4_7ForConditionalGeneration"],
        "model_type": "minicpmv4_7",
        "vision_config": {
            **MINICPMV4_6.config["vision_config"],
            "model_type": "minicpmv4_7_vision",
        },
    },
    model_class="MiniCPMV4_7ForConditionalGeneration",
    prompts=(
        *PROMPTS[:1],
        # Four slices in two rows; two in one column, and none, with a line feed behind.
        ("one image", "What is in the image?", ("48x48-1",)),
        ("another image", "What is in the image?", ("48x48-2",)),
        ("two images", "\nIs the circle in one or in the other?", ("48x24-2", "24x24-3")),
    ),
    adapt=_as_minicpmv4_6,
    outtypes=("auto",),
    # Ids of tokens are held against the tokenizer.
    free_numbers=MINICPMV4_6.free_numbers,
    mutations={
        # What llama.cpp gives by itself: the control.
        "places as libmtmd has them": mmproj(nothing, {"edgevlm.canvas_markers": None}),
    },
)
