"""What a VLM family and a text architecture are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgevlm_convert.config import Section
from edgevlm_convert.metadata import Value
from edgevlm_convert.rules import Rule


def _no_metadata() -> dict[str, Value]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one output file (text model or projector) takes from the checkpoint.

    Attributes:
        rules: for its tensors, listed from the config.
        metadata: its keys, in order, before `general.file_type`.
        late_metadata: its keys after `general.file_type` (llama.cpp's order).
    """

    rules: tuple[Rule, ...]
    metadata: Mapping[str, Value] = field(default_factory=_no_metadata)
    late_metadata: Mapping[str, Value] = field(default_factory=_no_metadata)


@dataclass(frozen=True, kw_only=True)
class TextArchitecture:
    """One kind of language model inside a VLM.

    Attributes:
        name: llama.cpp's `general.architecture`.
        model_type: `text_config.model_type` that chooses it.
        build: (config.json, prefix of its tensors) -> its rules and metadata.
        n_vocab: config.json -> rows of the token embedding.
    """

    name: str
    model_type: str
    build: Callable[[Section, str], Part]
    n_vocab: Callable[[Section], int]


@dataclass(frozen=True, kw_only=True)
class Projector:
    """The vision tower and what joins it to the text model: one mmproj file.

    Attributes:
        type: llama.cpp's `clip.projector_type`.
        build: (config.json, preprocessor settings, prefix of its tensors) -> rules and metadata.
    """

    type: str
    build: Callable[[Section, Section, str], Part]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One VLM family; each has a file of its own in `families/`.

    Attributes:
        name: ours, shown by `edgevlm families`.
        architectures: names in config.json's `architectures` that it claims.
        vision_models: `vision_config.model_type` values that it claims.
        text_models: the text architectures that it goes with.
        text_prefix: of the text model's tensors.
        vision_prefix: of the vision tower's and the projector's tensors.
        projector: the mmproj file.
        image_span: what a chat template prints for an image.
        runtime_tokens: tokens that libmtmd looks up for this projector.
        status: one line on what has been checked.
    """

    name: str
    architectures: tuple[str, ...]
    vision_models: tuple[str, ...]
    text_models: tuple[TextArchitecture, ...]
    text_prefix: str
    vision_prefix: str
    projector: Projector
    image_span: str
    runtime_tokens: tuple[str, ...]
    status: str

    def matches(self, config: Section) -> bool:
        """Return whether a checkpoint's config.json is of this family."""
        if not set(config.texts("architectures")) & set(self.architectures):
            return False
        return config.section("vision_config").raw("model_type") in self.vision_models
