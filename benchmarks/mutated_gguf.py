"""What becomes of damaged GGUF files: read, inspected, planned and quantized; or loaded.

    python benchmarks/mutated_gguf.py --count 20000
    python benchmarks/mutated_gguf.py --count 300 --load

The claim: whatever the damage, edgevlm says what is wrong or makes a sound file; it never crashes,
never hangs, never shows a traceback. Damage is drawn from a seed by tests/gguf_mutations.py: bytes
flipped, numbers replaced by extremes, cuts, pieces swapped, repeated, left out, inserted. Each file
has a forked process of its own with a limit of time and memory, so that a crash is seen and named.

With --load, files of the built-in model whose header is found sound are opened as `edgevlm chat`
opens them, prefilled with an image, and asked for a token: there llama.cpp reads them, and
a crash is one that no check of ours has foreseen. `--count` is then the number of sound ones.

stderr names what is bad, by the number that makes it again; stdout has one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgevlm.errors import EdgeVLMError, GGUFError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.library import load_library
from edgevlm.runtime.image import load_image
from edgevlm.runtime.vlm import open_vlm
from tests.gguf_mutations import Anatomy, Subject, dissect, examine, mutate, write_subjects

MAX_SECONDS = 2.0
MAX_LOADING_SECONDS = 30.0
MAX_BYTES = 4 << 30
ENDS = ("ok", "refused", "traceback")


@dataclass(frozen=True, kw_only=True)
class End:
    """How a process ended: one of ENDS, "hang", or "crash", and what it said last."""

    kind: str
    said: str = ""


def isolated(work: Callable[[], str], *, seconds: float) -> End:
    """Run `work` in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(work, writing)
    os.close(writing)
    said = b""
    deadline = time.monotonic() + seconds
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(reading, 65_536) if ready else b""
        said += piece
        if not piece:
            break
    if not ready:
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    text = said.decode("utf-8", "replace").strip()
    if not ready:
        return End(kind="hang", said=text)
    if os.WIFSIGNALED(status):
        told = [line.rpartition("/")[2] for line in text.splitlines() if "ASSERT" in line]
        lines = [signal.Signals(os.WTERMSIG(status)).name, *(told or text.splitlines()[-3:])]
        return End(kind="crash", said=" | ".join(lines))
    return End(kind=ENDS[os.WEXITSTATUS(status)], said=text)


def _child(work: Callable[[], str], writing: int) -> None:
    os.environ["GGML_NO_BACKTRACE"] = "1"
    # llama.cpp's last words go to the descriptor, Python's own through it too.
    os.dup2(writing, 2)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        end = ENDS.index(work())
    except BaseException:  # whatever it is, it is a bug to report
        os.write(2, traceback.format_exc(limit=-6).encode())
        end = ENDS.index("traceback")
    os._exit(end)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound file, and where its numbers stand."""

    path: Path
    data: bytes
    anatomy: Anatomy


def sound(path: Path) -> Sound:
    """Read a sound file."""
    data = path.read_bytes()
    return Sound(path=path, data=data, anatomy=dissect(data))


def quantize_all(folder: Path, count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Examine `count` damaged small files."""
    subjects = write_subjects(folder)
    files = {path: sound(path) for subject in subjects for path in subject.paths}
    warm = random.Random(0)
    for index in range(100):  # what is imported here need not be in every process
        subject = subjects[index % len(subjects)]
        examine(subject.paths[0], folder / "out.gguf", warm, is_projector=subject.is_projector)
    ends: Counter[str] = Counter()
    bad: list[str] = []
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        subject = rng.choice(subjects)
        file = files[rng.choice(subject.paths)]
        file.path.write_bytes(mutate(rng, file.data, file.anatomy))
        work = _examination(subject, folder / "out.gguf", rng)
        end = isolated(work, seconds=MAX_SECONDS)
        if end.kind == "hang":  # once more: the machine is shared
            end = isolated(work, seconds=5 * MAX_SECONDS)
        file.path.write_bytes(file.data)
        _count(ends, bad, number, file.path.name, end)
    return ends, bad


def _examination(subject: Subject, target: Path, rng: random.Random) -> Callable[[], str]:
    state = rng.getstate()

    def work() -> str:
        rng.setstate(state)
        return examine(subject.paths[0], target, rng, is_projector=subject.is_projector)

    return work


def load_all(folder: Path, count: int, seed: int, built: Path) -> tuple[Counter[str], list[str]]:
    """Open damaged files of a model until `count` of them had sound headers."""
    files: list[Sound] = []
    for name in ("shapes-Q8_0.gguf", "mmproj-shapes-Q8_0.gguf"):
        shutil.copy(built / name, folder / name)
        with (folder / name).open("ab") as file:
            file.write(bytes(64))
        files.append(sound(folder / name))
    text, mmproj = (file.path for file in files)
    ends: Counter[str] = Counter()
    bad: list[str] = []
    number = 0
    while ends.total() < count:
        rng = random.Random(f"{seed}-{number}")
        file = rng.choice(files)
        file.path.write_bytes(mutate(rng, file.data, file.anatomy))
        if _has_sound_header(file.path):
            end = isolated(lambda: _answer(text, mmproj), seconds=MAX_LOADING_SECONDS)
            _count(ends, bad, number, file.path.name, end)
        file.path.write_bytes(file.data)
        number += 1
    return ends, bad


def _has_sound_header(path: Path) -> bool:
    try:
        read_gguf(path)
    except GGUFError:
        return False
    return True


def _answer(text: Path, mmproj: Path) -> str:
    from edgevlm.build.resolve import built_in_folder

    pixels = load_image(built_in_folder() / "images" / "000.png")
    try:
        with open_vlm(model=text, mmproj=mmproj, n_ctx=256, n_threads=1, device="cpu") as vlm:
            vlm.first_logits("What color is the cross?", [pixels])
    except EdgeVLMError:
        return "refused"
    return "ok"


def _count(ends: Counter[str], bad: list[str], number: int, name: str, end: End) -> None:
    ends[end.kind] += 1
    if end.kind not in ("ok", "refused"):
        bad.append(f"{number} {name}: {end.kind}: {end.said}")
        print(bad[-1], file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description="Damaged GGUF files.")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--load", action="store_true")
    options = parser.parse_args()
    load_library()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.load:
            built = _built(folder / "built")
            ends, bad = load_all(folder, options.count, options.seed, built)
        else:
            ends, bad = quantize_all(folder, options.count, options.seed)
    document = {
        "what": "loaded" if options.load else "read, inspected, planned, quantized",
        "seed": options.seed,
        "count": ends.total(),
        **{kind: ends[kind] for kind in (*ENDS, "crash", "hang")},
        "seconds": round(time.monotonic() - start, 1),
        "bad": bad,
    }
    print(json.dumps(document, indent=1))


def _built(folder: Path) -> Path:
    """Convert the built-in model; in a process of its own, which may have threads."""

    def work() -> str:
        from edgevlm.build.convert import convert_model
        from edgevlm.build.resolve import built_in_checkpoint

        convert_model(built_in_checkpoint(), out=folder, name="shapes", level="Q8_0")
        return "ok"

    end = isolated(work, seconds=300)
    if end.kind != "ok":
        raise SystemExit(end.said)
    return folder


if __name__ == "__main__":
    main()
