"""What a recipe says: how one golden is made, and what its tests know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.convert.mutations import Mutation

Config = dict[str, Any]
PROMPTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("text only", "What is the color of the circle? Cafe\u0301 costs 42 \u20ac.", ()),
    ("one image", "What is in the image?", ("48x64-1",)),
    ("another image", "What is in the image?", ("48x64-2",)),
    ("two images", "Is the circle in one or in the other?", ("48x64-2", "80x32-3")),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe:
    """How one golden is made.

    Attributes:
        name: of its folder.
        config: config.json, complete.
        preprocessor: preprocessor_config.json.
        write_tokenizer: writes the tokenizer's files and the chat template.
        model_class: transformers' class.
        image_token: id that stands for a visual token while transformers runs.
        prompts: (name, question, images); "one image" and "another image" must be among them.
        mutations: what would go unseen if a transform were left out; each breaks the bound tenfold.
        pre: what llama.cpp's converter is told that the pre-tokenizer is, which it knows by the
            hash of what it does, and a tiny vocabulary never has that hash.
        adapt: changes the checkpoint so that llama.cpp's converter takes it; None: as it is.
        refused: why llama.cpp's converter cannot take it at all; "" when it can.
        refused_mmproj: why it takes the text model alone; "" when it takes both.
        options: that llama.cpp's converter needs for it.
        extra: shapes of tensors that published checkpoints have and transformers leaves out.
        outtypes: that llama.cpp's converter is asked for.
        mended: tensors of our files that differ from llama.cpp's on purpose, and why.
        mended_keys: metadata keys that do, and why.
        prepare: readies the environment that the golden is made in; None: it is.
        emulate: does to transformers' model what this runtime cannot help doing, so that all the
            rest is held to the bound.
        free_numbers: whole numbers of config.json, or sections, that no shape of this family
            depends on.
        dtype, shards, seed: of the weights.
        gains: factors by parts of tensor names, so that the image is heard in the answer.
    """

    name: str
    config: Config
    preprocessor: Config
    write_tokenizer: Callable[[Path], object]
    model_class: str
    image_token: int
    prompts: tuple[tuple[str, str, tuple[str, ...]], ...] = PROMPTS
    mutations: Mapping[str, Mutation] = field(default_factory=dict[str, Mutation])
    pre: str = "qwen2"
    adapt: Callable[[Path], object] | None = None
    refused: str = ""
    refused_mmproj: str = ""
    options: tuple[str, ...] = ()
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    outtypes: tuple[str, ...] = ("auto", "f16", "f32")
    mended: Mapping[str, str] = field(default_factory=dict[str, str])
    mended_keys: Mapping[str, str] = field(default_factory=dict[str, str])
    prepare: Callable[[], object] | None = None
    emulate: Callable[[Any], object] | None = None
    free_numbers: tuple[str, ...] = ()
    dtype: str = "BF16"
    shards: int = 1
    seed: int = 20261125
    gains: Mapping[str, float] = field(default_factory=dict[str, float])
