"""How source tensors become GGUF tensors: Rename, Split, Transform, Drop and Row.

A family lists its rules from the config, name by name, so that the list is also what the checkpoint
must hold. Conversion is total: a source tensor that no rule or two rules name, a required one that
is missing, and one of another shape than the config says are each a ConversionError that names it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ConversionError
from edgevlm_convert.json_file import quoted
from edgevlm_convert.safetensors import Bits, SourceTensor, widen

Shape = tuple[int, ...]
Outtype = Literal["F32", "F16", "BF16"]
# "matrix" follows --outtype; "f32" and "f16" never do; "f16 or f32" is F16 for F16 and else F32,
# because ggml's kernels have no BF16 form (llama.cpp does the same); "kernel" is F16 for BF16 too.
Precision = Literal["matrix", "f32", "f16", "f16 or f32", "kernel"]
ReadRows = Callable[[int, int], NDArray[np.float32]]
SUPPORTED_DTYPES = ("F32", "F16", "BF16")
# Below this many contiguous elements one read that spans several pieces is faster than one each.
_SMALL_PIECE = 1 << 14
_MAX_SUGGESTION_NAMES = 20_000


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A tensor of the GGUF file and how its rows come from the checkpoint.

    Attributes:
        name: GGUF name.
        shape: outermost dimension first.
        sources: names of the source tensors it is made of.
        precision: which float type it is stored in.
        read: (start, stop) -> float32 rows of the 2-D view.
        dtype: type of `read_bits`, empty when there is none.
        read_bits: (start, stop) -> the same rows as the source stores them, when no value changes.
    """

    name: str
    shape: Shape
    sources: tuple[str, ...]
    precision: Precision
    read: ReadRows
    dtype: str = ""
    read_bits: Callable[[int, int], Bits] | None = None

    def stored_type(self, outtype: Outtype) -> str:
        """Return "F32", "F16" or "BF16": the type llama.cpp's converter stores it in.

        One-dimensional tensors, norms and whatever is not called `.weight` stay F32: ggml's kernels
        for them know nothing else (conversion/base.py, `prepare_tensors`).
        """
        if len(self.shape) <= 1 or self.name.endswith("_norm.weight") or self.precision == "f32":
            return "F32"
        if self.precision == "f16" or (self.precision == "kernel" and outtype != "F32"):
            return "F16"
        if self.precision in ("f16 or f32", "kernel"):
            return "F16" if outtype == "F16" else "F32"
        return outtype if self.name.endswith(".weight") else "F32"


class Rule(Protocol):
    """What every rule answers."""

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """Source names and the shapes that the config asks for; None: any."""
        ...

    @property
    def required(self) -> bool:
        """Whether the checkpoint must hold its sources."""
        ...

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """Return what becomes of the sources."""
        ...


@dataclass(frozen=True, kw_only=True)
class _OneSource:
    """A rule for one source tensor, whose shape the config knows."""

    source: str
    shape: Shape
    precision: Precision = "matrix"
    required: bool = True

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return {self.source: self.shape}


@dataclass(frozen=True, kw_only=True)
class Rename(_OneSource):
    """One source tensor, stored as it is under another name."""

    target: str

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        tensor = tensors[self.source]
        return [_mapped(self.target, self.shape, tensor, self.precision, tensor.bits)]


@dataclass(frozen=True, kw_only=True)
class Split(_OneSource):
    """One source tensor, cut into equal parts along an axis.

    With `squeeze` the axis, of one element in each part, is left out of the parts' shapes.
    """

    targets: tuple[str, ...]
    axis: int
    squeeze: bool = False

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        tensor = tensors[self.source]
        n_parts = len(self.targets)
        width = self.shape[self.axis] // n_parts
        middle = () if self.squeeze else (width,)
        shape = (*self.shape[: self.axis], *middle, *self.shape[self.axis + 1 :])
        inner = width * math.prod(self.shape[self.axis + 1 :])
        return [
            _mapped(target, shape, tensor, self.precision, _part(tensor, part, n_parts, inner))
            for part, target in enumerate(self.targets)
        ]


@dataclass(frozen=True, kw_only=True)
class Transform(_OneSource):
    """One source tensor whose float32 rows are computed anew.

    Attributes:
        rows: (read, start, stop) -> rows [start, stop) of the target, from `read(start, stop)` of
            the source; it must ask for slabs no larger than a few times its own.
    """

    target: str
    rows: Callable[[ReadRows, int, int], NDArray[np.float32]]

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        tensor = tensors[self.source]
        plain = _mapped(self.target, self.shape, tensor, self.precision, tensor.bits)
        return [
            Mapped(
                name=self.target,
                shape=self.shape,
                sources=tensor.parts,
                precision=self.precision,
                read=lambda start, stop: self.rows(plain.read, start, stop),
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Drop:
    """A source tensor that is left out, and why."""

    source: str
    reason: str
    required: bool = False

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule."""
        return {self.source: None}

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        return []


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a tensor that another rule claims: what a projector takes from the embedding.

    Attributes:
        source: name of a matrix.
        row: which of its rows.
        target: GGUF name.
    """

    source: str
    row: int
    target: str
    required: bool = True

    @property
    def shapes(self) -> Mapping[str, Shape | None]:
        """See Rule: none of its own, the other rule checks the source."""
        return {}

    def apply(self, tensors: Mapping[str, SourceTensor]) -> list[Mapped]:
        """See Rule."""
        tensor = tensors[self.source]
        width = tensor.shape[-1]
        bits = tensor.bits

        def read(start: int, stop: int) -> NDArray[np.float32]:
            first = self.row * width
            values = widen(bits(first, first + width), tensor.dtype)
            return values.reshape(1, width)[start:stop]

        return [
            Mapped(
                name=self.target,
                shape=(width,),
                sources=tensor.parts,
                precision="f32",
                read=read,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What became of every source tensor.

    Attributes:
        used: GGUF names by source name.
        dropped: reason by source name.
    """

    used: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    dropped: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def n_source_tensors(self) -> int:
        """Number of tensors in the checkpoint."""
        return len(self.used) + len(self.dropped)


def computed(name: str, values: NDArray[np.float32]) -> Mapped:
    """Return a tensor that comes from the configuration, not from the checkpoint.

    Args:
        name: GGUF name.
        values: [n] float32.
    """
    row = np.ascontiguousarray(values, dtype=np.float32)

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return row.reshape(1, -1)[start:stop]

    return Mapped(name=name, shape=row.shape, sources=(), precision="f32", read=read)


def map_tensors(
    tensors: Mapping[str, SourceTensor], files: Mapping[str, Sequence[Rule]]
) -> tuple[dict[str, list[Mapped]], Ledger]:
    """Apply the rules of every output file to the whole checkpoint.

    Args:
        tensors: the checkpoint's, in the order in which their outputs shall stand.
        files: rules by output file ("text", "mmproj").

    Returns:
        The tensors of each file in order, and the ledger.

    Raises:
        ConversionError: the mapping is not total, or a shape or dtype is not as the config says.
    """
    claims: dict[str, tuple[str, Rule]] = {}
    shared: dict[str, list[tuple[str, Row]]] = {}
    for file, rules in files.items():
        for rule in rules:
            if isinstance(rule, Row):
                shared.setdefault(rule.source, []).append((file, rule))
            for name in rule.shapes:
                if name in claims:
                    raise ConversionError(f"two rules match tensor {quoted(name)}")
                claims[name] = (file, rule)
    _check_names(tensors, claims)
    outputs: dict[str, list[Mapped]] = {file: [] for file in files}
    used: dict[str, list[str]] = {}
    dropped: dict[str, str] = {}
    done: set[int] = set()
    for tensor in tensors.values():
        file, rule = claims[tensor.name]
        if isinstance(rule, Drop):
            dropped[tensor.name] = rule.reason
            continue
        _check_tensor(tensor, rule.shapes[tensor.name])
        if id(rule) in done:
            continue
        done.add(id(rule))
        for to, one in ((file, rule), *shared.get(tensor.name, ())):
            for mapped in one.apply(tensors):
                outputs[to].append(mapped)
                for source in mapped.sources:
                    used.setdefault(source, []).append(mapped.name)
    for mapped in outputs.values():
        _check_targets(mapped)
    ledger = Ledger(used={name: tuple(names) for name, names in used.items()}, dropped=dropped)
    return outputs, ledger


def _check_names(
    tensors: Mapping[str, SourceTensor], claims: Mapping[str, tuple[str, Rule]]
) -> None:
    missing = [name for name, (_, rule) in claims.items() if rule.required and name not in tensors]
    extra = [name for name in tensors if name not in claims]
    if extra:
        close: list[str] = []
        if len(missing) <= _MAX_SUGGESTION_NAMES and len(extra[0]) < 500:
            close = difflib.get_close_matches(extra[0], missing or list(claims), n=1)
        hint = f"the nearest name this family knows is {quoted(close[0])}" if close else ""
        raise ConversionError(
            f"no rule matches tensor {quoted(extra[0])}{_and_more(extra)}",
            hint=hint or "the checkpoint holds more than its architecture; see `edgevlm families`",
        )
    if missing:
        raise ConversionError(
            f"tensor {quoted(missing[0])} is missing from the checkpoint{_and_more(missing)}",
            hint="config.json asks for it; download the checkpoint again",
        )


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _check_tensor(tensor: SourceTensor, shape: Shape | None) -> None:
    if shape is not None and tensor.shape != shape:
        raise ConversionError(
            f"tensor {quoted(tensor.name)} has shape {list(tensor.shape)}, "
            f"config.json asks for {list(shape)}",
            hint="config and weights are of different models; download the checkpoint again",
        )
    if tensor.dtype not in SUPPORTED_DTYPES:
        raise ConversionError(
            f"tensor {quoted(tensor.name)} has dtype {tensor.dtype}, "
            f"only {', '.join(SUPPORTED_DTYPES)} can be converted",
            hint="use the original 16-bit checkpoint",
        )


def _check_targets(outputs: Sequence[Mapped]) -> None:
    names = [mapped.name for mapped in outputs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConversionError(f"two source tensors become {quoted(twice)}")


def _mapped(
    name: str,
    shape: Shape,
    tensor: SourceTensor,
    precision: Precision,
    flat: Callable[[int, int], Bits],
) -> Mapped:
    """Return a tensor whose flattened bits are `flat(start, stop)`."""
    row_length = shape[-1] if shape else 1

    def bits(start: int, stop: int) -> Bits:
        return flat(start * row_length, stop * row_length)

    return Mapped(
        name=name,
        shape=shape,
        sources=tensor.parts,
        precision=precision,
        read=lambda start, stop: widen(bits(start, stop), tensor.dtype).reshape(-1, row_length),
        dtype=tensor.dtype,
        read_bits=bits,
    )


def _part(tensor: SourceTensor, part: int, n_parts: int, inner: int) -> Callable[[int, int], Bits]:
    """Return a reader of one of `n_parts` parts that alternate in pieces of `inner` elements."""

    def read(start: int, stop: int) -> Bits:
        first, last = start // inner, -(-stop // inner)
        if inner <= _SMALL_PIECE:
            both = tensor.bits(first * n_parts * inner, last * n_parts * inner)
            pieces = both.reshape(last - first, n_parts, inner)[:, part].reshape(-1)
            return pieces[start - first * inner : stop - first * inner]
        found: list[Bits] = []
        for piece in range(first, last):
            low = max(start - piece * inner, 0)
            high = min(stop - piece * inner, inner)
            base = (piece * n_parts + part) * inner
            found.append(tensor.bits(base + low, base + high))
        return np.concatenate(found)

    return read
