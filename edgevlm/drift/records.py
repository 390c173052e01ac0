"""What one question gave at one pair of files, and its place on disk.

A comparison is long, and may be cut at any moment: every question's numbers are written as soon as
they are there, and a later run goes on behind them. A record that is torn is a record that is not
there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edgevlm.drift.kept_rows import Divergence
from edgevlm.drift.stored_arrays import BROKEN, read_arrays, write_arrays
from edgevlm.native.projector import EncodedImage
from edgevlm.runtime.answer import StopReason
from edgevlm.runtime.probe import GreedyAnswer

_WORDS = "words"


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """A question at one text model with one projector.

    Attributes:
        tokens: that the model was led along.
        logprobs: float64 [n] of each of them.
        divergence: from the baseline, [n] each; None of the baseline itself.
        answer: greedy; None where it was not asked for.
        reference: divergence from what transformers computed; None without reference.
    """

    tokens: tuple[int, ...]
    logprobs: NDArray[np.float64]
    divergence: Divergence | None = None
    answer: GreedyAnswer | None = None
    reference: Divergence | None = None


def save_record(path: Path, record: Record) -> None:
    """Write a record; it is there whole or not at all."""
    answer = record.answer
    # One table: every array of a file costs as much time as its numbers.
    rows = {"logprobs": record.logprobs}
    for name, divergence in (("base", record.divergence), ("reference", record.reference)):
        if divergence is not None:
            rows[f"{name}.kld"] = divergence.kld
            rows[f"{name}.kld_error"] = divergence.kld_error
            rows[f"{name}.same_top"] = divergence.same_top.astype(np.float64)
    words: dict[str, Any] = {"answer": None, "rows": list(rows)}
    tokens = list(record.tokens)
    if answer is not None:
        words["answer"] = {
            "text": answer.text,
            "end_token": answer.end_token,
            "stop_reason": answer.stop_reason,
        }
        tokens += answer.tokens
    arrays = {
        "tokens": np.asarray(tokens, dtype=np.int32),
        "numbers": np.stack(list(rows.values())),
    }
    save_arrays(path, words, arrays)


def load_record(path: Path) -> Record | None:
    """Read a record; None where there is none that is whole."""
    found = load_arrays(path)
    if found is None:
        return None
    words, arrays = found
    try:
        numbers = arrays["numbers"]
        rows = dict(zip(cast(list[str], words["rows"]), numbers, strict=True))
        logprobs = rows["logprobs"]
        tokens = tuple(map(int, arrays["tokens"]))
        led, said = tokens[: len(logprobs)], tokens[len(logprobs) :]
        answer = cast(dict[str, Any] | None, words["answer"])
        record = Record(
            tokens=led,
            logprobs=logprobs,
            divergence=_divergence(rows, "base"),
            reference=_divergence(rows, "reference"),
            answer=None
            if answer is None
            else GreedyAnswer(
                tokens=said,
                end_token=answer["end_token"],
                text=str(answer["text"]),
                stop_reason=cast(StopReason, answer["stop_reason"]),
            ),
        )
    except BROKEN:
        return None
    return record if len(led) == len(logprobs) and numbers.dtype == np.float64 else None


def _divergence(rows: Mapping[str, NDArray[np.float64]], name: str) -> Divergence | None:
    if f"{name}.kld" not in rows:
        return None
    return Divergence(
        kld=rows[f"{name}.kld"],
        kld_error=rows[f"{name}.kld_error"],
        same_top=rows[f"{name}.same_top"] != 0,
    )


class StoredImages:
    """Embeddings of one projector, in files; the image used last stays in memory.

    Attributes:
        folder: one file an image, named by the digest of its pixels.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: tuple[bytes, EncodedImage] | None = None

    def get(self, digest: bytes) -> EncodedImage | None:
        """Return an image's embeddings, None when they are not there."""
        if self._last is None or self._last[0] != digest:
            found = load_arrays(self._path(digest))
            if found is None:
                return None
            self._last = digest, _image(*found)
        return self._last[1]

    def put(self, digest: bytes, image: EncodedImage) -> None:
        """Keep an image's embeddings, float32 as they came."""
        times = {"preprocess_ms": image.preprocess_ms, "encode_ms": image.encode_ms}
        arrays = {str(number): tile for number, tile in enumerate(image.tiles)}
        save_arrays(self._path(digest), times, arrays)
        self._last = digest, image

    def rows(self, digest: bytes) -> NDArray[np.float32] | None:
        """Return all visual tokens of an image, [n_tokens, n_embd_inp] float32."""
        image = self.get(digest)
        return None if image is None else np.concatenate(image.tiles)

    def _path(self, digest: bytes) -> Path:
        return self.folder / f"{digest.hex()}.npz"


def _image(words: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> EncodedImage:
    return EncodedImage(
        tiles=tuple(arrays[str(number)] for number in range(len(arrays))),
        preprocess_ms=float(words["preprocess_ms"]),
        encode_ms=float(words["encode_ms"]),
    )


def save_arrays(path: Path, words: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays and a JSON document as one file, which appears whole."""
    text = np.frombuffer(json.dumps(words).encode(), dtype=np.uint8)
    write_arrays(
        path, {_WORDS: text, **{name: np.ascontiguousarray(a) for name, a in arrays.items()}}
    )


def load_arrays(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """Read what `save_arrays` wrote; None where it is not there, or torn."""
    arrays = read_arrays(path)
    if arrays is None:
        return None
    try:
        words = json.loads(arrays.pop(_WORDS).tobytes())
    except BROKEN:
        return None
    return (cast(dict[str, Any], words), arrays) if isinstance(words, dict) else None
