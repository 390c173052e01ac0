"""A conversation laid out as the text model will read it: chunks of tokens and images, counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ContextOverflowError, ImageError, PromptError
from edgevlm.native.projector import BitmapPart, ImageChunk, TextChunk, TextPart
from edgevlm.native.text_model import TextModel
from edgevlm.runtime.answer import ImageCost
from edgevlm.runtime.frame import VISUAL_TOKEN, token_ids
from edgevlm.runtime.preflight import TextFacts
from edgevlm.runtime.prompt import ChatTemplate, ImageSpan, Message, PromptPart
from edgevlm.runtime.tiled_projector import ImageEncoder

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A prompt, not yet encoded.

    Attributes:
        chunks: token ids and image places, in order; the last one is text.
        images: RGB uint8 [height, width, 3], in order.
        costs: what each image costs.
        n_tiles: how many of the chunks each image is.
        end: how the prompt ends, as the chat template wrote it.
    """

    chunks: tuple[TextChunk | ImageChunk, ...]
    images: tuple[Pixels, ...]
    costs: tuple[ImageCost, ...]
    n_tiles: tuple[int, ...]
    end: str

    @property
    def n_visual_tokens(self) -> int:
        """Tokens of all images."""
        return self.token_ids.count(VISUAL_TOKEN)

    @property
    def n_tokens(self) -> int:
        """Tokens of the whole prompt."""
        return len(self.token_ids)

    @property
    def token_ids(self) -> list[int]:
        """Token ids in order, VISUAL_TOKEN for each visual token."""
        ids: list[int] = []
        for chunk in self.chunks:
            ids += token_ids(chunk)
        return ids

    @property
    def text_tokens(self) -> list[int]:
        """Token ids in order, those of images left out."""
        return [token for token in self.token_ids if token != VISUAL_TOKEN]

    def check_room(self, n_ctx: int, *, n_more: int, n_ctx_train: int) -> None:
        """Raise ContextOverflowError unless the prompt and `n_more` tokens fit into `n_ctx`."""
        n_over = self.n_tokens + n_more - n_ctx
        if n_over <= 0:
            return
        visual = f" ({self.n_visual_tokens} of them visual)" if self.costs else ""
        n_wanted = n_ctx + n_over
        raise ContextOverflowError(
            f"the prompt of {self.n_tokens} tokens{visual} with room for {n_more} more is {n_over}"
            f" too long for the context of {n_ctx}",
            hint=f"use `--ctx {n_wanted}` or more"
            if n_wanted <= n_ctx_train
            else f"shorten the prompt or shrink the image: this model's limit is {n_ctx_train}",
        )


class Layouter:
    """Renders, tokenizes and counts prompts for one loaded model.

    Args:
        model: the text model.
        projector: None for text alone.
        facts: of the text model's header.
        chat_template: which of the file's templates; None for the default.
        span: how the family writes an image; None without projector.

    Attributes:
        template: the chat template; None for a model without.
    """

    def __init__(
        self,
        *,
        model: TextModel,
        projector: ImageEncoder | None,
        facts: TextFacts,
        span: ImageSpan | None,
        chat_template: str | None = None,
    ) -> None:
        self._model = model
        self._projector = projector
        self._span = span
        self._normalizer = facts.normalizer
        # Text where the vocabulary has no such token: libmtmd tokenizes it by itself.
        before, after = (
            len(model.tokenize(part, parse_special=True)) if part else 0
            for part in (span.frame if span else ("", ""))
        )
        self._frame_sizes = before, after
        # Made with the model: a walk over 150,000 tokens belongs to loading, not to the answer.
        source = facts.chat_template(chat_template)
        self.template = (
            None if source is None else self._make_template(source, facts.special_token_ids)
        )

    def lay_out(self, messages: Sequence[Message], *, think: bool | None = None) -> Layout:
        """Return the layout of a conversation; nothing is encoded.

        Args:
            messages: the conversation.
            think: what the chat template is told as `enable_thinking`; None: nothing.

        Raises:
            PromptError: the chat template fails, or there is no projector for the images.
            ImageError: an image that the projector cannot take.
        """
        images = tuple(chain.from_iterable(message.images for message in messages))
        places = [self._place(image.shape[1], image.shape[0]) for image in images]
        costs = tuple(
            ImageCost(width=image.shape[1], height=image.shape[0], n_visual_tokens=sum(place))
            for image, place in zip(images, places, strict=True)
        )
        if self.template is None:
            raise PromptError(
                "the model file has no chat template",
                hint="it may be a base model; use one that was trained to chat",
            )
        parts = self.template.parts(messages, think=think)
        add_special = not self.template.begins_with_bos(parts)
        chunks = self._chunks(parts, images, add_special=add_special)
        if not chunks or not isinstance(chunks[-1], TextChunk):
            raise PromptError(
                "the rendered prompt does not end with text: there is nothing to answer",
                hint="the chat template lacks its generation prompt",
            )
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        return Layout(
            chunks=tuple(chunks),
            images=images,
            costs=costs,
            n_tiles=tuple(map(len, places)),
            end="".join(texts[-4:])[-100:],
        )

    def count_visual_tokens(self, width: int, height: int) -> int:
        """Return how many tokens an image of this size costs."""
        return sum(self._place(width, height))

    def _place(self, width: int, height: int) -> list[int]:
        """Return the visual tokens of each encode of an image."""
        limit = self._span.max_aspect if self._span else 0
        if limit and max(width, height) >= limit * min(width, height):
            raise ImageError(
                f"an image of {width}x{height} is too thin: its longer side must be less than"
                f" {limit} times the other",
                hint="crop it",
            )
        chunks = self.projector().tokenize([BitmapPart(width=width, height=height)])
        images = [chunk for chunk in chunks if isinstance(chunk, ImageChunk)]
        return [token_ids(chunk).count(VISUAL_TOKEN) for chunk in images]

    @property
    def takes_think(self) -> bool:
        """Whether the chat template knows a switch for thinking."""
        return self.template is not None and self.template.takes_think

    def projector(self) -> ImageEncoder:
        """Return the projector.

        Raises:
            PromptError: there is none.
        """
        if self._projector is None:
            raise no_projector("this model")
        return self._projector

    def _chunks(
        self, parts: Sequence[PromptPart], images: Sequence[Pixels], *, add_special: bool
    ) -> Sequence[TextChunk | ImageChunk]:
        if self._projector is not None:
            native = [
                part
                if isinstance(part, TextPart)
                else BitmapPart(
                    width=images[part.index].shape[1], height=images[part.index].shape[0]
                )
                for part in parts
            ]
            chunks = self._projector.tokenize(native, add_special=add_special)
            chunks = without_frames(chunks, *self._frame_sizes)
            return [self._without_gaps(chunk) for chunk in chunks]
        texts = [part for part in parts if isinstance(part, TextPart)]
        ids = [self._model.tokenize(part.text, parse_special=part.parse_special) for part in texts]
        bos = self._model.bos if add_special and self._model.adds_bos else None
        tokens = chain([] if bos is None else [bos], chain.from_iterable(ids))
        return [TextChunk(tokens=tuple(tokens))]

    def _without_gaps(self, chunk: TextChunk | ImageChunk) -> TextChunk | ImageChunk:
        """Spell out the token that libmtmd looked up in vain."""
        if not isinstance(chunk, TextChunk) or not self._span or min(chunk.tokens, default=0) >= 0:
            return chunk
        text = self._model.tokenize(self._span.spelled, parse_special=False)
        ids = chain.from_iterable(text if token < 0 else [token] for token in chunk.tokens)
        return TextChunk(tokens=tuple(ids))

    def _make_template(self, source: str, special: Mapping[str, int]) -> ChatTemplate:
        return ChatTemplate(
            source,
            special_tokens={name: self._written_out(token) for name, token in special.items()},
            control_tokens=[
                self._written_out(token)
                for token in range(self._model.n_vocab)
                if self._model.is_control(token)
            ],
            image_span=self._span,
            normalizer=self._normalizer,
        )

    def _written_out(self, token: int) -> str:
        return self._model.piece(token, special=True).decode("utf-8", "replace")


def without_frames(
    chunks: Sequence[TextChunk | ImageChunk], n_before: int, n_after: int
) -> list[TextChunk | ImageChunk]:
    """Return a layout without so many tokens before and behind each image."""
    found: list[TextChunk | ImageChunk] = []
    for number, chunk in enumerate(chunks):
        if isinstance(chunk, TextChunk):
            follows = number > 0 and isinstance(chunks[number - 1], ImageChunk)
            leads = number + 1 < len(chunks) and isinstance(chunks[number + 1], ImageChunk)
            first = n_after if follows else 0
            tokens = chunk.tokens[first : len(chunk.tokens) - (n_before if leads else 0)]
            if tokens:
                found.append(TextChunk(tokens=tokens))
        else:
            found.append(chunk)
    return found


def no_projector(name: str) -> PromptError:
    """Return the error for an image given to a model without projector."""
    return PromptError(
        f"{name} has no projector, it sees no images",
        hint="name the model's projector with `--mmproj FILE`",
    )
