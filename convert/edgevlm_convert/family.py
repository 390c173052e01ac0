"""What a VLM family and a text architecture are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgevlm_convert.config import MAX_VOCABULARY, Section
from edgevlm_convert.metadata import Value
from edgevlm_convert.prefixes import Prefixes
from edgevlm_convert.rules import Mapped, Rule


def _no_metadata() -> dict[str, Value]:
    return {}


def _no_reasons() -> dict[str, str]:
    return {}


def _no_shapes() -> dict[str, tuple[int, ...]]:
    return {}


def _no_generation() -> Section:
    return Section({}, file="generation_config.json")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one output file (text model or projector) takes from the checkpoint.

    Attributes:
        rules: for its tensors, listed from the config.
        metadata: its keys, in order, before `general.file_type`.
        late_metadata: its keys after `general.file_type` (llama.cpp's order).
        computed: tensors that come from the config alone; they stand first in the file.
        losses: what the runtime cannot do with this model, one sentence each; they are shown and
            kept in the manifest.
    """

    rules: tuple[Rule, ...]
    metadata: Mapping[str, Value] = field(default_factory=_no_metadata)
    late_metadata: Mapping[str, Value] = field(default_factory=_no_metadata)
    computed: tuple[Mapped, ...] = ()
    losses: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the parts of a model are built from.

    Attributes:
        config: config.json.
        text: the language model's section of it, with the architecture's defaults.
        preprocessor: image settings.
        prefixes: of the checkpoint's tensors.
        generation: generation_config.json, empty where there is none.
        shapes: of the checkpoint's tensors by name, for what is stored in more than one way.
        class_token_first: asks whether the installed llama.cpp, for a type of projector, puts the
            tower's class token before the patches, as towers are trained; the pinned one puts it
            behind them.
        reads_norm_epsilon: asks whether the installed llama.cpp reads the epsilon of the norms of
            a text architecture that the pinned one does not read it for.
        token_id: the id of an added token of the tokenizer by its text, None where it has none.
        rows_are_paired: query and key rows are in the order of ggml's rotary pairs already, as
            Mistral's own files have them.
        integers: the values of a small tensor of whole numbers by its name.
    """

    config: Section
    text: Section
    preprocessor: Section
    prefixes: Prefixes
    generation: Section = field(default_factory=_no_generation)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=_no_shapes)
    class_token_first: Callable[[str], bool] = lambda projector: False
    reads_norm_epsilon: Callable[[str], bool] = lambda architecture: False
    token_id: Callable[[str], int | None] = lambda text: None
    rows_are_paired: bool = False
    integers: Callable[[str], list[int]] = lambda name: []

    @property
    def n_vocab(self) -> int:
        """Rows of the token embedding."""
        return self.text.integer("vocab_size", low=1, high=MAX_VOCABULARY)

    @property
    def vision(self) -> Section:
        """The vision tower's section of config.json."""
        return self.config.section("vision_config")


@dataclass(frozen=True, kw_only=True)
class TextArchitecture:
    """One kind of language model inside a VLM; each has a file of its own in `text/`.

    Attributes:
        name: llama.cpp's `general.architecture`.
        model_types: `text_config.model_type` values that choose it.
        defaults: of config keys, as the transformers class has them; published configurations
            leave out what equals them.
        build: its rules and metadata.
    """

    name: str
    model_types: tuple[str, ...]
    defaults: Mapping[str, object]
    build: Callable[[Source], Part]


@dataclass(frozen=True, kw_only=True)
class Projector:
    """The vision tower and what joins it to the text model: one mmproj file.

    Attributes:
        type: llama.cpp's `clip.projector_type`.
        build: its rules and metadata.
    """

    type: str
    build: Callable[[Source], Part]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One VLM family; each has a file of its own in `families/`.

    Attributes:
        name: ours, shown by `edgevlm families`.
        architectures: names in config.json's `architectures` that it claims.
        vision_models: `vision_config.model_type` values that it claims; the first is what a
            configuration without one means.
        text_models: the text architectures that it goes with; the first is what a configuration
            without `text_config.model_type` means.
        prefixes: of its tensors, as transformers 5 saves them.
        projector: the mmproj file.
        image_span: what a chat template prints for an image.
        image_token: the token that stands for an image, `image_token_id` of config.json, where it
            is not the image span without blanks at its ends; see `placeholder`.
        runtime_tokens: tokens that libmtmd looks up for this projector.
        status: one line on what has been checked.
        names_vision: whether a configuration must name its vision tower, where another family has
            the same architecture.
        chat_template: stands in for a checkpoint's that has no place for images, because its own
            class writes prompts in code; "" for none.
        template_image: what a checkpoint's own template prints for an image, where its processor
            puts the image span in its place; "" when it prints the span.
        named_tokens: texts of tokens that config.json has the ids of, by its keys, as they stand in
            the vocabulary.
        refused_texts: why it cannot go with a text model, by `text_config.model_type`.
    """

    name: str
    architectures: tuple[str, ...]
    vision_models: tuple[str, ...]
    text_models: tuple[TextArchitecture, ...]
    prefixes: Prefixes
    projector: Projector
    image_span: str
    runtime_tokens: tuple[str, ...]
    status: str
    names_vision: bool = False
    chat_template: str = ""
    template_image: str = ""
    named_tokens: Mapping[str, str] = field(default_factory=_no_reasons)
    refused_texts: Mapping[str, str] = field(default_factory=_no_reasons)
    image_token: str = ""

    @property
    def placeholder(self) -> str:
        """Text of the token that stands for an image in a prompt."""
        return self.image_token or self.image_span.strip()

    def matches(self, config: Section) -> bool:
        """Return whether a checkpoint's config.json is of this family."""
        if not set(config.texts("architectures")) & set(self.architectures):
            return False
        vision = config.section("vision_config")
        usual = "" if self.names_vision else self.vision_models[0]
        return vision.text("model_type", default=usual) in self.vision_models
