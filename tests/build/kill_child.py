"""Run a job again and again in forked children that kill themselves; print what each one left.

Started by test_kill.py in a fresh interpreter (one thread, so that fork is safe):

    python kill_child.py convert|quantize|split SOURCE WORK

A child is killed (SIGKILL) when i/20 of the planned bytes are written, i = 1..20, and before and
after each rename; `split` writes a model of several files over one of other weights. One JSON line
per kill: what stood under final names, and what the next run left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from edgevlm.build.convert import convert_model
from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.files import sha256_file
from edgevlm.model_dir import open_model_dir
from edgevlm.progress import SILENT, Advance, Progress, Unit

N_STEPS = 20


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DiesAt:
    """Kill the process when `limit` bytes of all tasks together are done; count them otherwise."""

    def __init__(self, limit: int | None) -> None:
        self.done = 0
        self.limit = limit

    @contextmanager
    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> Generator[Advance]:
        def advance(amount: int, /) -> None:
            self.done += amount
            if self.limit is not None and self.done >= self.limit:
                die()

        yield advance


def dying_replace(survive: int) -> Callable[[object, object], None]:
    """Return an os.replace that kills the process instead of the rename after `survive` ones."""
    real = os.replace
    count = 0

    def replace(source: object, target: object) -> None:
        nonlocal count
        if count == survive:
            die()
        count += 1
        real(str(source), str(target))

    return replace


def job(verb: str, source: Path, folder: Path, progress: Progress) -> None:
    if verb != "quantize":
        convert_model(
            source,
            out=folder,
            name="m",
            outtype="f16",
            split_max_bytes=2_000_000 if verb == "split" else None,
            force=True,
            progress=progress,
        )
    else:
        plan = plan_quantization(open_model_dir(folder), level="Q4_K_M", force=True)
        quantize_model(plan, force=True, progress=progress)


def altered(source: Path, folder: Path) -> Path:
    """Return a copy of a checkpoint whose every weight is another."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    # The lowest bit of each BF16 number: nothing becomes infinite.
    raw[start::2] = bytes(byte ^ 1 for byte in raw[start::2])
    path.write_bytes(raw)
    return folder


def killed(run: Callable[[], None]) -> bool:
    """Run in a forked child; return whether it died by SIGKILL."""
    pid = os.fork()
    if pid == 0:
        run()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def listing(folder: Path) -> dict[str, str]:
    if not folder.exists():
        return {}
    return {
        path.name: "" if path.name == "edgevlm.json" else sha256_file(path)
        for path in sorted(folder.iterdir())
    }


def main(verb: str, source: Path, work: Path) -> None:
    before = work / "before"
    if verb == "quantize":
        job("convert", source, before, SILENT)
    if verb == "split":
        job("split", altered(source, work / "altered"), before, SILENT)

    def fresh() -> Path:
        folder = work / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, folder)
        return folder

    folder = fresh()
    counter = DiesAt(None)
    renamed: list[object] = []
    real = os.replace
    os.replace = lambda source, target: (renamed.append(target), real(source, target))[1]
    job(verb, source, folder, counter)
    os.replace = real
    print(
        json.dumps(
            {"whole": listing(folder), "before": listing(before), "n_renames": len(renamed)}
        ),
        flush=True,
    )
    kills: list[tuple[str, int | None, int | None]] = [
        (f"bytes {step}/{N_STEPS}", counter.done * step // N_STEPS, None)
        for step in range(1, N_STEPS + 1)
    ]
    kills += [(f"rename {count}", None, count) for count in range(len(renamed))]
    for name, limit, survive in kills:
        folder = fresh()

        def run(
            folder: Path = folder, limit: int | None = limit, survive: int | None = survive
        ) -> None:
            if survive is not None:
                os.replace = dying_replace(survive)
            job(verb, source, folder, DiesAt(limit))

        died = killed(run)
        left = listing(folder)
        # The next run is a child too: this process stays single-threaded.
        killed(lambda folder=folder: job(verb, source, folder, SILENT))
        print(
            json.dumps({"kill": name, "died": died, "left": left, "next": listing(folder)}),
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
