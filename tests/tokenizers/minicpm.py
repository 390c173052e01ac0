"""Byte-level BPE as MiniCPM-V 4.6 has it: Qwen3.5's, and tokens around images and their slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.synthetic_tokenizer import CHAT_TEMPLATE
from tests.tokenizers.byte_level import write_tokenizer_qwen35
from tests.tokenizers.parts import Config, added_token, write_json

MINICPM_LAST = ("<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")


def write_tokenizer_minicpm(folder: Path, *, n_tokens: int = 306, declare: bool = True) -> None:
    """Write MiniCPM-V 4.6's files."""
    first = n_tokens - len(MINICPM_LAST)
    write_tokenizer_qwen35(folder, n_tokens=first, declare=declare)
    added = [added_token(first + number, name) for number, name in enumerate(MINICPM_LAST)]
    tokenizer = _read(folder / "tokenizer.json")
    tokenizer["added_tokens"] += added
    write_json(folder / "tokenizer.json", tokenizer)
    settings = _read(folder / "tokenizer_config.json")
    if declare:
        settings["added_tokens_decoder"] |= {
            str(token["id"]): {key: token[key] for key in token if key != "id"} for token in added
        }
    settings["processor_class"] = "MiniCPMV4_6Processor"
    write_json(folder / "tokenizer_config.json", settings)
    template = CHAT_TEMPLATE.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _read(path: Path) -> Config:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
