"""What the documents tell a reader to type exists: verbs, their options, files and make targets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgevlm.cli.app import main

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")]
)


def commands(document: Path) -> Iterator[list[str]]:
    """Yield every `edgevlm ...` between backticks or on a line of its own in an indented block."""
    text = document.read_text()
    inline = re.findall(r"`(edgevlm [^`]+)`", text)
    blocks = re.findall(r"^    (?:\$ )?(edgevlm .*?)(?:  +# .*)?$", text, re.MULTILINE)
    for line in [*inline, *blocks]:
        yield shlex.split(line)


def test_documents_tell_what_to_type() -> None:
    assert sum(len(list(commands(document))) for document in DOCUMENTS) >= 10


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, *words in commands(document):
        if words[0].startswith("-"):
            assert main(["--help"]) == 0
        else:
            assert main([words[0], "--help"]) == 0, words
        shown = capsys.readouterr().out
        for word in words:
            if word.startswith("-"):
                assert re.search(rf"(^|[\s,]){re.escape(word)}\b", shown), (words, word)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"https?:", target):
            assert (document.parent / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
