"""A kill at any moment leaves the old files or none; the next run cleans up and finishes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("kill_child.py")


@pytest.mark.parametrize("verb", ["convert", "quantize", "split"])
def test_kill_leaves_no_plausible_half(verb: str, shapes_checkpoint: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(CHILD), verb, str(shapes_checkpoint), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, *kills = [json.loads(line) for line in done.stdout.splitlines()]
    whole, before = first["whole"], first["before"]
    assert len(kills) == 20 + first["n_renames"]
    assert first["n_renames"] == (6 if verb == "split" else 3)
    half_seen = 0
    for kill in kills:
        assert kill["died"], kill["kill"]
        final = {name: digest for name, digest in kill["left"].items() if name[0] != "."}
        for name, digest in final.items():
            # Whole under its final name: the old file or the new one, never a part of it.
            assert digest in (before.get(name), whole.get(name)), (kill["kill"], name)
        parts = [name for name in final if "-of-" in name]
        if any("-00001-of-" in name for name in parts):
            # What can be loaded is the old model or the new one: no part of the other.
            assert len(parts) == 4
            assert {final[name] == whole[name] for name in parts} in ({True}, {False})
        half_seen += len(final) < len(kill["left"])
        assert kill["next"] == whole, kill["kill"]
    assert half_seen == len(kills), "every kill must have come while temporaries were there"
