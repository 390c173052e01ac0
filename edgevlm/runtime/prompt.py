"""A chat template and messages become parts for libmtmd.

Who wrote a text decides what it may be. Control tokens (`<|im_end|>`) are parsed only in what the
template wrote: the template is rendered with unguessable placeholders where a person's texts
belong, and the texts are put back as plain text afterwards. A plain text is then handed over in
one piece with the template's plain text around it, up to the nearest control token, so that merges
across the border come out as they do in the checkpoint's own tokenizer.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import PromptError
from edgevlm.native.projector import TextPart
from edgevlm.runtime.any_canvas import AnyCanvas
from edgevlm.runtime.template import BoundedTemplate


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: texts and images in order; an image is RGB uint8 [height, width, 3].
    """

    role: str
    content: tuple[str | NDArray[np.uint8], ...]

    @property
    def images(self) -> tuple[NDArray[np.uint8], ...]:
        """The images of this turn, in order."""
        return tuple(part for part in self.content if not isinstance(part, str))


@dataclass(frozen=True, kw_only=True)
class ImageSlot:
    """The place of an image in a prompt.

    Attributes:
        index: which image, counted over all messages.
    """

    index: int


PromptPart = TextPart | ImageSlot


@dataclass(frozen=True, kw_only=True)
class ImageSpan:
    """How a family writes an image.

    Attributes:
        template: what the chat template prints for one image.
        runtime_tokens: control tokens that libmtmd writes around the image itself; a vocabulary
            without one gives wrong prompts, or ends the process.
        spelled: a token that libmtmd writes too; where the vocabulary lacks it libmtmd leaves a
            gap, and the checkpoint was trained on its text.
        max_aspect: how many times longer one side of an image may be than the other; 0: any.
        around: text that the checkpoint's own processor writes before and after an image, and
            libmtmd does not; `{number}` in it becomes the image's, from 0.
        n_whole: visual tokens that see each other both ways, so that one batch must hold them all;
            0: they do not.
        max_tokens: visual tokens of the largest image, which libmtmd is told; 0: it knows.
        row_end: float32 values that the projector puts between the rows of an image; b"": none.
        plain_scale: llama.cpp smooths the tower's position table, which was trained without that.
        smooth_table: llama.cpp does not smooth that table, which was trained with it.
        frame: what libmtmd writes around an image and the checkpoint does not know: taken out.
        canvas: what images are stretched to before libmtmd cuts them; None: they are not.
    """

    template: str
    runtime_tokens: tuple[str, ...]
    spelled: str = ""
    max_aspect: int = 0
    around: tuple[str, str] = ("", "")
    n_whole: int = 0
    max_tokens: int = 0
    row_end: bytes = b""
    plain_scale: bool = False
    smooth_table: bool = False
    frame: tuple[str, str] = ("", "")
    canvas: AnyCanvas | None = None


_QWEN = ImageSpan(
    template="<|vision_start|><|image_pad|><|vision_end|>",
    runtime_tokens=("<|vision_start|>", "<|vision_end|>"),
)
_HUNYUAN = tuple(f"<\uff5chy_place\u2581holder\u2581no\u2581{n}\uff5c>" for n in (100, 102, 101))
_GEMMA4 = ImageSpan(template="<|image|>", runtime_tokens=("<|image>", "<image|>"))
_PAGES = ImageSpan(template="<image>", runtime_tokens=(), smooth_table=True)
# By `clip.projector_type`. Sources: tools/mtmd/mtmd.cpp (img_beg, img_end), chat templates.
IMAGE_SPANS: Mapping[str, ImageSpan] = {
    "qwen2vl_merger": _QWEN,
    "qwen2.5vl_merger": _QWEN,
    "qwen3vl_merger": _QWEN,
    "idefics3": ImageSpan(
        template="<image>",
        runtime_tokens=("\n\n", "<fake_token_around_image>"),
        # Not a token of Idefics3-8B and the first SmolVLM-Instruct (llama.cpp issue 27190).
        spelled="<global-img>",
    ),
    "lfm2": ImageSpan(
        template="<image>",
        runtime_tokens=("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
    ),
    "minicpmv4_6": ImageSpan(
        template="<|image_pad|>",
        runtime_tokens=("<image>", "</image>", "<slice>", "</slice>", "\n"),
        around=("<image_id>{number}</image_id>", ""),
    ),
    "mlp": ImageSpan(template="<image>", runtime_tokens=()),
    **dict.fromkeys(("deepseekocr", "deepseekocr2"), _PAGES),
    "janus_pro": ImageSpan(template="<image_placeholder>", runtime_tokens=()),
    # libmtmd ends an image with the line feed.
    "granite4_vision": ImageSpan(template="<image>\n", runtime_tokens=()),
    "internvl": ImageSpan(template="<IMG_CONTEXT>", runtime_tokens=("<img>", "</img>")),
    "gemma3": ImageSpan(
        template="<start_of_image>",
        runtime_tokens=("<start_of_image>", "<end_of_image>"),
        around=("\n\n", "\n\n"),
    ),
    "gemma3nv": ImageSpan(
        template="<image_soft_token>",
        runtime_tokens=("<start_of_image>", "<end_of_image>"),
        around=("\n\n", "\n\n"),
    ),
    "gemma4v": _GEMMA4,
    "gemma4uv": _GEMMA4,
    "glm4v": ImageSpan(
        template="<|begin_of_image|><|image|><|end_of_image|>",
        runtime_tokens=("<|begin_of_image|>", "<|end_of_image|>"),
    ),
    "hunyuanvl": ImageSpan(template="".join(_HUNYUAN), runtime_tokens=_HUNYUAN[::2]),
    "paddleocr": ImageSpan(
        template="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>",
        runtime_tokens=("<|IMAGE_START|>", "<|IMAGE_END|>"),
        plain_scale=True,
    ),
    "lightonocr": ImageSpan(
        template="<|image_pad|>",
        runtime_tokens=("<|im_start|>", "<|im_end|>"),
        frame=("<|im_start|>", "<|im_end|>"),
    ),
    # `[IMG_BREAK]` between rows comes out of the projector, with the visual tokens.
    "pixtral": ImageSpan(template="[IMG]", runtime_tokens=("[IMG_END]",)),
}


class ChatTemplate:
    """A chat template in transformers' style, rendered in a sandbox.

    Args:
        source: jinja2 text, from `tokenizer.chat_template`.
        special_tokens: such as {"bos_token": "<s>"}, as the template names them.
        control_tokens: every control token of the vocabulary, written out.
        image_span: how this family writes an image; None for a text model without projector.
        normalizer: "NFC" or ""; llama.cpp applies none to a BPE vocabulary, the checkpoint's own
            tokenizer may, so plain text is normalized here.

    Attributes:
        template: compiled.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        control_tokens: Sequence[str],
        image_span: ImageSpan | None,
        normalizer: str = "",
    ) -> None:
        if normalizer not in ("", "NFC"):
            raise PromptError(
                f"the tokenizer's normalizer {normalizer!r} is unknown",
                hint="the model file needs a newer edgevlm",
            )
        self.template = BoundedTemplate(source)
        self._special_tokens = dict(special_tokens)
        self._image_span = image_span
        self._normalizer = normalizer
        self._takes_lists = self._walks_lists()
        # Longest first: `<|im|>` must not cut `<|im|>_end` short.
        longest_first = sorted((token for token in control_tokens if token), key=len, reverse=True)
        alternatives = "|".join(re.escape(token) for token in longest_first)
        self._control = re.compile(alternatives) if longest_first else None

    def parts(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        think: bool | None = None,
    ) -> list[PromptPart]:
        """Render `messages` and return the prompt in parts.

        Args:
            messages: the conversation.
            add_generation_prompt: begin the answer's turn.
            think: passed to the template as `enable_thinking`; None leaves it undefined.

        Raises:
            PromptError: the template fails, drops a text, or does not show every image.
        """
        texts: dict[str, str] = {}
        rendered = self._render(
            [self._mask(message, texts, as_list=self._takes_lists) for message in messages],
            add_generation_prompt=add_generation_prompt,
            think=think,
        )
        if any(f"'{key}'" in rendered for key in texts):
            # The list itself was printed: some templates walk a user's content, not a system's.
            texts = {}
            rendered = self._render(
                [self._mask(message, texts, as_list=bool(message.images)) for message in messages],
                add_generation_prompt=add_generation_prompt,
                think=think,
            )
        n_images = sum(len(message.images) for message in messages)
        return self._split(rendered, texts, n_images)

    @property
    def takes_think(self) -> bool:
        """Whether the template asks for `enable_thinking`."""
        return "enable_thinking" in self.template.source

    def begins_with_bos(self, parts: Sequence[PromptPart]) -> bool:
        """Return whether the template itself wrote BOS in front."""
        bos = self._special_tokens.get("bos_token")
        first = parts[0] if parts else None
        return bool(
            bos
            and isinstance(first, TextPart)
            and first.parse_special
            and first.text.startswith(bos)
        )

    def _walks_lists(self) -> bool:
        """Try whether the template walks through a list of content parts, or prints it as it is."""
        probe = secrets.token_hex(16)
        message = {"role": "user", "content": [{"type": "text", "text": probe}]}
        try:
            rendered = self._render([message], add_generation_prompt=False)
        except PromptError:
            return False
        return probe in rendered and f"'{probe}'" not in rendered and f'"{probe}"' not in rendered

    def _mask(self, message: Message, texts: dict[str, str], *, as_list: bool) -> dict[str, Any]:
        if not as_list:
            if message.images:
                raise PromptError(
                    "this model's chat template has no place for images",
                    hint="use a vision-language model",
                )
            whole = "".join(part for part in message.content if isinstance(part, str))
            return {"role": message.role, "content": _placeholder(whole, texts)}
        content = [
            {"type": "text", "text": _placeholder(part, texts)}
            if isinstance(part, str)
            else {"type": "image"}
            for part in message.content
        ]
        return {"role": message.role, "content": content}

    def _render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        think: bool | None = None,
    ) -> str:
        values: dict[str, Any] = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self._special_tokens,
        }
        if think is not None:
            values["enable_thinking"] = think
        return self.template.render(values)

    def _split(self, rendered: str, texts: Mapping[str, str], n_images: int) -> list[PromptPart]:
        pieces: list[tuple[str, bool]] = []  # (text, whether the template wrote it)
        missing = dict(texts)
        if texts:
            pattern = re.compile("|".join(texts))
            start = 0
            for match in pattern.finditer(rendered):
                pieces += [(rendered[start : match.start()], True), (texts[match[0]], False)]
                missing.pop(match[0], None)
                start = match.end()
            rendered = rendered[start:]
        pieces.append((rendered, True))
        if missing:
            raise PromptError(
                f"the chat template drops a text: {next(iter(missing.values()))[:40]!r}",
                hint="this model may have no system prompt: leave `--system` out",
            )
        parts: list[PromptPart] = []
        for number, group in enumerate(self._at_images(pieces, n_images)):
            if number:
                parts.append(ImageSlot(index=number - 1))
            parts += self._at_control_tokens(group)
        return parts

    def _at_images(
        self, pieces: Sequence[tuple[str, bool]], n_images: int
    ) -> list[list[tuple[str, bool]]]:
        """Cut the pieces where the template wrote an image; n images make n + 1 groups."""
        groups: list[list[tuple[str, bool]]] = [[]]
        span = self._image_span.template if self._image_span else None
        before, after = self._image_span.around if self._image_span else ("", "")
        for text, trusted in pieces:
            if not trusted or span is None:
                groups[-1].append((text, trusted))
                continue
            first, *others = text.split(span)
            groups[-1].append((first, True))
            for other in others:
                number = str(len(groups) - 1)
                groups[-1].append((before.replace("{number}", number), True))
                groups.append([(after, True), (other, True)])
        n_found = len(groups) - 1
        if n_found != n_images:
            raise PromptError(
                f"the chat template shows {n_found} images, {n_images} were given",
                hint="the chat template does not belong to this mmproj"
                if span
                else "images need a projector: name one with `--mmproj FILE`",
            )
        return groups

    def _at_control_tokens(self, pieces: Sequence[tuple[str, bool]]) -> list[TextPart]:
        """Cut at the template's control tokens; what stands between them stays in one piece."""
        parts: list[TextPart] = []
        plain = ""
        for text, trusted in pieces:
            start = 0
            if trusted and self._control is not None:
                for match in self._control.finditer(text):
                    plain += text[start : match.start()]
                    parts += self._plain(plain)
                    parts.append(TextPart(text=match[0], parse_special=True))
                    plain, start = "", match.end()
            plain += text[start:]
        return parts + self._plain(plain)

    def _plain(self, text: str) -> list[TextPart]:
        if self._normalizer:
            text = unicodedata.normalize("NFC", text)
        return [TextPart(text=text, parse_special=False)] if text else []


def conversation(
    prompt: str | Sequence[Message],
    images: Sequence[NDArray[np.uint8]] = (),
    *,
    system: str | None = None,
) -> list[Message]:
    """Return `prompt` as messages: one question after its images, or messages as they are.

    Args:
        prompt: a question, or a whole conversation.
        images: RGB uint8 [height, width, 3], before the question; only with a question.
        system: put in front as a system message.
    """
    if isinstance(prompt, str):
        messages = [Message(role="user", content=(*images, prompt))]
    elif images:
        raise PromptError("images belong into the messages", hint="pass them as content")
    else:
        messages = list(prompt)
    if system is not None:
        messages.insert(0, Message(role="system", content=(system,)))
    return messages


def _placeholder(text: str, texts: dict[str, str]) -> str:
    """Stand in for `text`; its outer white space stays, for templates that trim."""
    core = text.strip()
    if not core:
        return text
    key = f"text{secrets.token_hex(16)}"
    texts[key] = core
    before, _, after = text.partition(core)
    return f"{before}{key}{after}"
