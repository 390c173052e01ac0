"""The inputs of Idefics3 and SmolVLM as their processors make them, which need torchvision."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.goldens.files import drawn_image
from tests.goldens.recipe import Inputs

_IMAGE = "<image>"
_FAKE, _GLOBAL = "<fake_token_around_image>", "<global-img>"


def tile_inputs(kind: str, name: str, *, n_image_tokens: int) -> Callable[[Path], Inputs]:
    """Return what makes the inputs of prompts; see Recipe.

    Args:
        kind: the family's folder in transformers: "idefics3" or "smolvlm".
        name: what its classes begin with.
        n_image_tokens: of one tile, as the processor's `image_seq_len`.
    """

    def prepare(checkpoint: Path) -> Inputs:
        transformers: Any = importlib.import_module("transformers")
        # The form that needs no torchvision.
        module: Any = importlib.import_module(
            f"transformers.models.{kind}.image_processing_pil_{kind}"
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
        processor = getattr(module, f"{name}ImageProcessorPil").from_pretrained(checkpoint)
        written: Any = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")

        def inputs(prompt: str, images: tuple[str, ...]) -> tuple[list[int], dict[str, Any]]:
            content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt}]
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            tensors: dict[str, Any] = {}
            if images:
                pixels = processor(
                    images=[[drawn_image(image) for image in images]],
                    return_row_col_info=True,
                    return_tensors="pt",
                )
                for rows, columns in zip(pixels["rows"][0], pixels["cols"][0], strict=True):
                    expanded = written.get_image_prompt_string(
                        rows,
                        columns,
                        n_image_tokens,
                        fake_token_around_image=_FAKE,
                        image_token="\0",
                        global_image_token=_GLOBAL,
                    )
                    text = text.replace(_IMAGE, expanded, 1)
                tensors = {key: pixels[key] for key in ("pixel_values", "pixel_attention_mask")}
            # The template writes BOS itself; `ProcessorMixin.apply_chat_template` sees that too.
            ids = tokenizer(text.replace("\0", _IMAGE), add_special_tokens=False)["input_ids"]
            return ids, tensors

        return inputs

    return prepare
