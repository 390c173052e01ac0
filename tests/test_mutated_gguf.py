"""2,000 damaged GGUF files through reading, inspecting, planning and quantizing.

Each ends in an error that says what is wrong, or in a sound file: nothing else is raised, nothing
takes long, memory does not grow. `benchmarks/mutated_gguf.py` does it with 20,000.
"""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.gguf_mutations import Subject, dissect, examine, mutate, write_subjects

N_EACH = 500
# Of processor time: other processes of the machine do not count.
MAX_SECONDS = 2.0
MAX_GROWTH_KIB = 200_000


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> list[Subject]:
    return write_subjects(tmp_path_factory.mktemp("subjects"))


@contextmanager
def at_most(seconds: float) -> Generator[None]:
    """End what computes for longer."""

    def stop(*_: object) -> None:
        raise AssertionError(f"more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.mark.parametrize("index", range(4), ids=["text", "projector", "blocks", "parts"])
def test_a_damaged_file_is_refused_or_sound(
    index: int, subjects: list[Subject], tmp_path: Path
) -> None:
    subject, rng = subjects[index], random.Random(700 + index)
    sound = {path: path.read_bytes() for path in subject.paths}
    anatomies = {path: dissect(data) for path, data in sound.items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends = {"ok": 0, "refused": 0}
    for _ in range(N_EACH):
        path = rng.choice(subject.paths)
        path.write_bytes(mutate(rng, sound[path], anatomies[path]))
        with at_most(MAX_SECONDS):
            is_projector = subject.is_projector
            ends[examine(subject.paths[0], tmp_path / "out", rng, is_projector=is_projector)] += 1
        path.write_bytes(sound[path])
    # The mutator must not break everything: what is accepted is where bugs are.
    assert min(ends.values()) >= N_EACH // 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MAX_GROWTH_KIB
