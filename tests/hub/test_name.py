"""What a user types for a repository, and what is none."""

from __future__ import annotations

import pytest

from edgevlm.errors import SourceNotFoundError
from edgevlm.hub.name import parse_hub_name


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("org/name", "org/name", "main"),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("org/name@feature/x", "org/name", "feature/x"),
        ("hf://org/name@v1.0", "org/name", "v1.0"),
        ("hf.co/org/name", "org/name", "main"),
        ("https://huggingface.co/org/name", "org/name", "main"),
        ("https://huggingface.co/org/name/tree/dev", "org/name", "dev"),
    ],
)
def test_a_repository(text: str, repo: str, revision: str) -> None:
    name = parse_hub_name(text)
    assert name is not None
    assert (name.repo, name.revision, name.short) == (repo, revision, "name")


@pytest.mark.parametrize(
    "text",
    [
        "name",
        "./org/name",
        "../name",
        "/org/name",
        "a/b/c",
        "models/name",
        "models/name.gguf",
        "org/na--me",
        "C:/x",
        "",
    ],
)
def test_no_repository(text: str) -> None:
    assert parse_hub_name(text) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("https://example.com/org/name", "example.com"),
        ("https://huggingface.co/datasets/org/name", "dataset"),
        ("https://huggingface.co/org/name/blob/main/config.json", "config.json"),
        ("https://huggingface.co/org", "names no repository"),
        ("org/name@../../x", "revision"),
        ("org/name@/x", "revision"),
    ],
)
def test_an_address_that_leads_elsewhere(text: str, word: str) -> None:
    with pytest.raises(SourceNotFoundError, match=word) as caught:
        parse_hub_name(text)
    assert caught.value.hint
