"""Make token_ids.json: prompts as transformers' processor tokenizes them, images included.

Not run by the tests; needs torch, transformers 5.23 and pillow:

    python tests/runtime/make_token_ids.py edgevlm/assets/shapes/checkpoint
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# (image sizes as [width, height], system prompt or null, question)
CASES: list[tuple[list[list[int]], str | None, str]] = [
    ([[128, 128]], None, "What color is the cross?"),
    ([[256, 160]], None, "How many shapes are in the image?"),
    ([[96, 224]], None, "\n\n What  is\tthis: café 12345?  \n"),
    ([[200, 150]], None, "  two leading spaces, it's 42% o'clock\r\n\r\nnext"),
    ([[128, 128], [64, 200]], None, "Same?"),
    ([[128, 128]], "You are terse.\n", "図形はいくつ 🙂 ¿?"),
    ([], None, "\nNo image at all"),
    ([], "System only", "ok"),
]


def main(checkpoint: str) -> None:
    """Write token_ids.json beside this file."""
    import importlib

    transformers: Any = importlib.import_module("transformers")
    pil: Any = importlib.import_module("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    image: Any = importlib.import_module("PIL.Image")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    images = pil.Qwen2VLImageProcessorPil.from_pretrained(checkpoint)
    template = (Path(checkpoint) / "chat_template.jinja").read_text()
    cases: list[dict[str, Any]] = []
    for sizes, system, question in CASES:
        content = [{"type": "image"} for _ in sizes] + [{"type": "text", "text": question}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, tokenize=False
        )
        for size in sizes:
            grid = images(images=[image.new("RGB", tuple(size))])["image_grid_thw"][0]
            n_tokens = int(grid[0] * grid[1] * grid[2]) // 4
            text = text.replace("<|image_pad|>", "<|visual|>" * n_tokens, 1)
        text = text.replace("<|visual|>", "<|image_pad|>")
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        cases.append({"sizes": sizes, "system": system, "question": question, "ids": ids})
    document = {"transformers": transformers.__version__, "image_token": 5, "cases": cases}
    Path(__file__).with_name("token_ids.json").write_text(json.dumps(document) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
