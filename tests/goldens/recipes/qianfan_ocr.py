"""Qianfan-OCR: InternVL's golden under another class, with an output of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.convert.tricks import rename_tensors
from tests.goldens.internvl_checkpoints import write_opengvlab_settings
from tests.goldens.recipe import Config
from tests.goldens.recipes import internvl
from tests.tokenizers.internvl import write_tokenizer_internvl

_CONFIG: Config = {
    **internvl.RECIPE.config,
    "architectures": ["QianfanOCRForConditionalGeneration"],
    "model_type": "qianfan_ocr",
    "tie_word_embeddings": False,
    "vision_config": {
        **internvl.RECIPE.config["vision_config"],
        "drop_path_rate": 0.1,
        "model_type": "qianfan_ocr_vision",
    },
}
_CONTEXT, _IMAGE = "<IMG_CONTEXT>", "<image>"


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer_internvl(folder)
    _replace_in_template(folder, _CONTEXT, _IMAGE)


def _as_opengvlab(folder: Path) -> None:
    """Turn a checkpoint into one of OpenGVLab's form: its tensors have those names already."""
    rename_tensors(
        folder, lambda name: name.replace("language_model.model.encoder.", "language_model.model.")
    )
    write_opengvlab_settings(folder)
    _replace_in_template(folder, _IMAGE, _CONTEXT)


def _replace_in_template(folder: Path, old: str, new: str) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


RECIPE = replace(
    internvl.RECIPE,
    name="qianfan_ocr",
    config=_CONFIG,
    preprocessor={**internvl.RECIPE.preprocessor, "processor_class": "QianfanOCRProcessor"},
    write_tokenizer=_write_tokenizer,
    model_class="QianfanOCRForConditionalGeneration",
    adapt=_as_opengvlab,
    outtypes=("auto",),
    prompts=internvl.RECIPE.prompts[:3],
    free_numbers=("drop_path_rate",),
    seed=20261201,
    gains={
        "class_embedding": 6.0,
        "embed_tokens": 0.25,
        "mlp.fc1": 1.3,
        "mlp.fc2": 4.0,
        "position_embedding": 26.0,
    },
)
