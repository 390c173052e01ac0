"""GGUF files that are nearly sound: a seeded mutator that knows where a file's numbers stand.

    anatomy = dissect(data)                      # of a sound file
    mutate(random.Random(7), data, anatomy)      # bytes flipped, numbers replaced by extremes, cut,
                                                 # pieces swapped, repeated, left out, inserted

and `examine`, which takes a file through everything that `inspect` and `quantize` do with it.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgevlm_convert import plan_conversion
from edgevlm_convert.shards import split_plan
from edgevlm_convert.writer import write_gguf

from edgevlm.cli.app import main
from edgevlm.cli.inspect import inspect
from edgevlm.errors import EdgeVLMError
from edgevlm.gguf_file import read_gguf
from edgevlm.gguf_shards import shard_name
from edgevlm.quantize.encode import LevelEncoder, mmproj_encoder, text_encoder
from edgevlm.quantize.profile_file import load_profile
from edgevlm.quantize.run import plan_quantize
from tests.synthetic import write_checkpoint

LEVELS = ("Q4_K_M", "Q8_0", "IQ4_NL", "F16")
MMPROJ_LEVELS = ("Q8_0", "Q4_0", "BF16")
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_EXTREMES = (
    *(0, 1, 2, 3, 5, 7, 31, 33, 255, 256, 65_535, 1 << 20),
    *((1 << power) + more for power in (31, 32, 60, 62, 63, 64) for more in (-1, 0)),
)


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Where things stand in a sound GGUF file.

    Attributes:
        n_header_bytes: up to the end of the tensor table.
        numbers: place and size of counts, lengths, types, dimensions, offsets and plain values.
        keys: (start, stop) of every metadata entry.
        tensors: (start, stop) of every entry of the tensor table.
    """

    n_header_bytes: int
    numbers: tuple[tuple[int, int], ...]
    keys: tuple[tuple[int, int], ...]
    tensors: tuple[tuple[int, int], ...]


def dissect(data: bytes) -> Anatomy:
    """Walk over a sound file."""
    walker = _Walker(data)
    walker.number(4)
    n_tensors, n_keys = walker.number(8), walker.number(8)
    keys = [walker.spanned(walker.key) for _ in range(n_keys)]
    tensors = [walker.spanned(walker.tensor) for _ in range(n_tensors)]
    return Anatomy(
        n_header_bytes=walker.position,
        numbers=tuple(walker.numbers),
        keys=tuple(keys),
        tensors=tuple(tensors),
    )


class _Walker:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 4
        self.numbers: list[tuple[int, int]] = []

    def number(self, n_bytes: int) -> int:
        start = self.position
        self.numbers.append((start, n_bytes))
        self.position += n_bytes
        return int.from_bytes(self.data[start : self.position], "little")

    def string(self) -> None:
        n_bytes = self.number(8)
        self.position += n_bytes

    def spanned(self, step: Callable[[], None]) -> tuple[int, int]:
        start = self.position
        step()
        return start, self.position

    def key(self) -> None:
        self.string()
        self.value(self.number(4))

    def value(self, type_id: int) -> None:
        if type_id == 8:
            self.string()
        elif type_id == 9:
            item_id, n_items = self.number(4), self.number(8)
            # The items of a vocabulary would outnumber all else.
            for index in range(n_items):
                n_before = len(self.numbers)
                self.value(item_id)
                if index > 2:
                    del self.numbers[n_before:]
        else:
            self.number(_SCALAR_BYTES[type_id])

    def tensor(self) -> None:
        self.string()
        for _ in range(self.number(4)):
            self.number(8)
        self.number(4)
        self.number(8)


def mutate(rng: random.Random, data: bytes, anatomy: Anatomy) -> bytes:
    """Return `data` with one to three mutations."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice((_number, _number, _number, _flip, _cut, _pieces, _noise))(
            rng, data, anatomy
        )
    return data


def _number(rng: random.Random, data: bytes, anatomy: Anatomy) -> bytes:
    place, n_bytes = rng.choice(anatomy.numbers)
    old = int.from_bytes(data[place : place + n_bytes], "little")
    near = (old + 1, old - 1, old * 2, old // 2, old + 32, old ^ 1, -old)
    new = rng.choice((*near, *_EXTREMES)) % (1 << (8 * n_bytes))
    return data[:place] + new.to_bytes(n_bytes, "little") + data[place + n_bytes :]


def _flip(rng: random.Random, data: bytes, anatomy: Anatomy) -> bytes:
    mutated = bytearray(data)
    end = rng.choice((anatomy.n_header_bytes, len(data)))
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(max(1, min(end, len(mutated))))
        if place < len(mutated):
            mutated[place] = rng.choice((0, 1, 0x7C, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(mutated)


def _cut(rng: random.Random, data: bytes, anatomy: Anatomy) -> bytes:
    end = rng.choice((anatomy.n_header_bytes, len(data)))
    return data[: rng.randrange(end)] if rng.random() < 0.7 else data[:-1]


def _pieces(rng: random.Random, data: bytes, anatomy: Anatomy) -> bytes:
    """Swap two entries, or have one twice, or leave it out; its count follows or does not."""
    place, spans = rng.choice(((8, anatomy.tensors), (16, anatomy.keys)))
    if len(spans) < 2:
        return data
    (start, stop), (start_2, stop_2) = sorted(rng.sample(spans, 2))
    first, second = data[start:stop], data[start_2:stop_2]
    between = data[stop:start_2]
    kind = rng.choice(("swap", "twice", "out"))
    if kind == "swap":
        return data[:start] + second + between + first + data[stop_2:]
    change = 1 if kind == "twice" else -1
    new = first + between + first + second if kind == "twice" else between + second
    data = data[:start] + new + data[stop_2:]
    if rng.random() < 0.3:
        return data
    count = (len(spans) + change).to_bytes(8, "little")
    return data[:place] + count + data[place + 8 :]


def _noise(rng: random.Random, data: bytes, anatomy: Anatomy) -> bytes:
    place = rng.randrange(rng.choice((anatomy.n_header_bytes, len(data))))
    noise = rng.choice(
        (rng.randbytes(rng.randrange(1, 40)), struct.pack("<Q", rng.randrange(1 << 64)), b"\0" * 32)
    )
    return data[:place] + noise + data[place:]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A sound model to be mutated.

    Attributes:
        paths: its files.
        is_projector: whether it is one.
    """

    paths: tuple[Path, ...]
    is_projector: bool = False


def write_subjects(folder: Path) -> list[Subject]:
    """Write small sound files: text model, projector, quantized text model, one in parts."""
    checkpoint = folder / "checkpoint"
    write_checkpoint(checkpoint, text={"num_hidden_layers": 3})
    plan = plan_conversion(checkpoint, name="tiny", outtype="f16")
    text, mmproj, blocks = (folder / f"{name}.gguf" for name in ("text", "mmproj", "blocks"))
    write_gguf(plan.text, text)
    write_gguf(plan.mmproj, mmproj)
    encoder = text_encoder(load_profile("Q8_0"))
    write_gguf(plan_quantize(text, encoder), blocks, encoder=encoder)
    parts = split_plan(plan.text, max_bytes=120_000)
    paths = [folder / shard_name("split", n, len(parts)) for n in range(1, len(parts) + 1)]
    for part, path in zip(parts, paths, strict=True):
        write_gguf(part, path)
    for path in (text, mmproj, blocks, *paths):
        # Room behind the data: what lengthens a header by some bytes leaves a sound file.
        with path.open("ab") as file:
            file.write(bytes(64))
    return [
        Subject(paths=(text,)),
        Subject(paths=(mmproj,), is_projector=True),
        Subject(paths=(blocks,)),
        Subject(paths=tuple(paths)),
    ]


@cache
def _encoder(level: str, *, is_projector: bool) -> LevelEncoder:
    return mmproj_encoder(level) if is_projector else text_encoder(load_profile(level))


def examine(path: Path, target: Path, rng: random.Random, *, is_projector: bool) -> str:
    """Read, inspect, plan and quantize a file; what comes out must be sound.

    Returns:
        "ok", or "refused" where an error says what is wrong; anything else is raised.
    """
    level = rng.choice(MMPROJ_LEVELS if is_projector else LEVELS)
    try:
        read_gguf(path)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            # Tables take longer than all else.
            as_table = rng.random() < 0.03
            inspect(file=path, tensors=as_table, json=not as_table)
            if as_table:
                status = main(["quantize", str(path), "--level", "Q8_0", "--dry-run"])
                assert status in (0, 1)
        encoder = _encoder(level, is_projector=is_projector)
        plan = plan_quantize(path, encoder, allow_requantize=rng.random() < 0.8)
        write_gguf(plan, target, encoder=encoder, n_threads=1)
    except EdgeVLMError as error:
        if not error.message.isprintable():
            raise ValueError(f"a terminal would obey {error.message!r}") from error
        return "refused"
    written = read_gguf(target)
    assert len(written.tensors) == len(plan.tensors)
    return "ok"
