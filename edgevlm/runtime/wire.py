"""What the terminal's process and the engine's say to each other: frames over two pipes.

A frame is a JSON object and the bytes that belong to it (pixels): two lengths, little-endian, the
object's as uint32 and the bytes' as uint64, then both. JSON and raw bytes can say nothing but
values, unlike a pickle, and a length beyond the bounds ends the reading before memory is taken.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

from edgevlm import errors
from edgevlm.errors import EdgeVLMError, ImageError
from edgevlm.runtime.answer import Answer, ImageCost, Timings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgevlm.runtime.prompt import Message

MAX_OBJECT_BYTES = 64 << 20
MAX_BODY_BYTES = 4 << 30
_LENGTHS = struct.Struct("<IQ")
_CHUNK_BYTES = 1 << 20


class FrameError(RuntimeError):
    """The other side sent what is no frame: a bug, or another version of edgevlm."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One message.

    Attributes:
        kind: what it is.
        values: what it says.
        body: pixels that belong to it.
    """

    kind: str
    values: dict[str, Any]
    body: bytes = b""


def send(
    descriptor: int, kind: str, values: dict[str, Any], bodies: Sequence[memoryview] = ()
) -> None:
    """Write one frame; the bodies become one, in order.

    Raises:
        OSError: nobody reads the pipe any more.
        ValueError: beyond the bounds.
    """
    text = json.dumps({"kind": kind, "values": values}).encode()
    n_body_bytes = sum(body.nbytes for body in bodies)
    if len(text) > MAX_OBJECT_BYTES or n_body_bytes > MAX_BODY_BYTES:
        raise ValueError(f"a frame of {len(text)} + {n_body_bytes} bytes is too long")
    _write(descriptor, memoryview(_LENGTHS.pack(len(text), n_body_bytes) + text))
    for body in bodies:
        _write(descriptor, body)


def frames(descriptor: int) -> Generator[Frame]:
    """Yield frames until the other side closes its end; half a frame at the end is dropped.

    Raises:
        FrameError: what comes is no frame.
    """
    while True:
        lengths = _read(descriptor, _LENGTHS.size)
        if lengths is None:
            return
        n_text_bytes, n_body_bytes = _LENGTHS.unpack(lengths)
        if n_text_bytes > MAX_OBJECT_BYTES or n_body_bytes > MAX_BODY_BYTES:
            raise FrameError(f"a frame claims {n_text_bytes} + {n_body_bytes} bytes")
        text = _read(descriptor, n_text_bytes)
        body = _read(descriptor, n_body_bytes)
        if text is None or body is None:
            return
        yield _frame(text, body)


def _frame(text: bytes, body: bytes) -> Frame:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a frame holds no JSON: {error}") from None
    said = cast(dict[str, Any], document) if isinstance(document, dict) else {}
    kind, values = said.get("kind"), said.get("values")
    if not isinstance(kind, str) or not isinstance(values, dict):
        raise FrameError("a frame's JSON is not an object with kind and values")
    return Frame(kind=kind, values=cast(dict[str, Any], values), body=body)


def _write(descriptor: int, data: memoryview) -> None:
    data = data.cast("B")
    while data:
        data = data[os.write(descriptor, data[:_CHUNK_BYTES]) :]


def _read(descriptor: int, n_bytes: int) -> bytes | None:
    """Return exactly `n_bytes`, None when the pipe ends before."""
    data = bytearray()  # grows with what comes: a length that lies takes no memory
    while len(data) < n_bytes:
        chunk = os.read(descriptor, min(_CHUNK_BYTES, n_bytes - len(data)))
        if not chunk:
            return None
        data += chunk
    return bytes(data)


def messages_out(messages: Sequence[Message]) -> tuple[list[dict[str, Any]], list[memoryview]]:
    """Return a conversation as JSON values, and the pixels of its images in order."""
    import numpy as np

    bodies: list[memoryview] = []
    values: list[dict[str, Any]] = []
    for message in messages:
        content: list[str | list[int]] = []
        for part in message.content:
            if isinstance(part, str):
                content.append(part)
                continue
            if part.dtype != np.uint8 or part.ndim != 3 or part.shape[2] != 3 or not part.size:
                raise ImageError(
                    f"an image is {part.dtype} {list(part.shape)}, not uint8 [height, width, 3]",
                    hint="read it with `load_image`",
                )
            content.append([part.shape[0], part.shape[1]])
            bodies.append(np.ascontiguousarray(part).data)
        values.append({"role": message.role, "content": content})
    n_bytes = sum(body.nbytes for body in bodies)
    if n_bytes > MAX_BODY_BYTES:
        raise ImageError(
            f"the images have {n_bytes:,} bytes of pixels, the limit is {MAX_BODY_BYTES:,}",
            hint="make them smaller",
        )
    return values, bodies


def messages_in(values: Sequence[dict[str, Any]], body: bytes) -> list[Message]:
    """Return the conversation that `messages_out` wrote; images are views of `body`."""
    import numpy as np

    from edgevlm.runtime.prompt import Message

    start = 0
    messages: list[Message] = []
    for value in values:
        content: list[str | NDArray[np.uint8]] = []
        for part in value["content"]:
            if isinstance(part, str):
                content.append(part)
                continue
            height, width = part
            n_bytes = height * width * 3
            pixels = np.frombuffer(body, np.uint8, count=n_bytes, offset=start)
            content.append(pixels.reshape(height, width, 3))
            start += n_bytes
        messages.append(Message(role=value["role"], content=tuple(content)))
    return messages


def answer_in(values: dict[str, Any]) -> Answer:
    """Return the answer whose `asdict` crossed the pipe."""
    timings = dict(values["timings"])
    timings["image_encode_ms"] = tuple(timings["image_encode_ms"])
    said: dict[str, Any] = {
        **values,
        "token_ids": tuple(values["token_ids"]),
        "images": costs_in(values["images"]),
        "timings": Timings(**timings),
    }
    return Answer(**said)


def costs_in(values: Sequence[dict[str, Any]]) -> tuple[ImageCost, ...]:
    """Return the costs whose `asdict` crossed the pipe."""
    return tuple(ImageCost(**value) for value in values)


def costs_out(costs: Sequence[ImageCost]) -> list[dict[str, Any]]:
    """Return what images cost as JSON values."""
    return [asdict(cost) for cost in costs]


def error_out(error: EdgeVLMError) -> dict[str, Any]:
    """Return an error as JSON values."""
    return {"name": type(error).__name__, "message": error.message, "hint": error.hint}


def error_in(values: dict[str, Any]) -> EdgeVLMError:
    """Return the error that `error_out` wrote, of the same class."""
    kind = getattr(errors, values["name"], None)
    if not (isinstance(kind, type) and issubclass(kind, EdgeVLMError)):
        kind = EdgeVLMError
    return kind(values["message"], hint=values["hint"])
