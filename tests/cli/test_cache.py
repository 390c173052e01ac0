from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import typer

from edgevlm.cli.app import main
from edgevlm.cli.options import parse_size
from edgevlm.files import folder_lock


def _model(cache: Path, name: str, *, n_bytes: int, days_ago: int) -> Path:
    folder = cache / "models" / name / "m"
    folder.mkdir(parents=True)
    file = folder / "m-F16.gguf"
    file.write_bytes(bytes(n_bytes))
    when = 1_700_000_000 - days_ago * 86_400
    os.utime(file, (when, when))
    return cache / "models" / name


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    _model(folder, "old-0.1.0-aaaaaaaaaaaa", n_bytes=3000, days_ago=30)
    _model(folder, "new-0.1.0-bbbbbbbbbbbb", n_bytes=2000, days_ago=1)
    (folder / "last-model.json").write_text('{"model": "shapes"}')
    monkeypatch.setenv("EDGEVLM_CACHE", str(folder))
    return folder


def _names(capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["cache", "--json"]) == 0
    return [entry["name"] for entry in json.loads(capsys.readouterr().out)["entries"]]


def test_lists_entries_last_used_first(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        "last-model.json",
        "new-0.1.0-bbbbbbbbbbbb",
        "old-0.1.0-aaaaaaaaaaaa",
    ]
    assert "3.0 kB" in lines[4]
    assert str(cache) in captured.err
    assert main(["cache", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n_bytes"] == 5019
    assert document["entries"][2]["kind"] == "model"


def test_an_empty_cache_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "none"))
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["cache", "rm", "--all"]) == 0


def test_removes_by_entry_and_by_model(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "rm", "old", "--yes"]) == 0
    assert _names(capsys) == ["last-model.json", "new-0.1.0-bbbbbbbbbbbb"]
    assert main(["cache", "rm", "new-0.1.0-bbbbbbbbbbbb", "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "removed": ["new-0.1.0-bbbbbbbbbbbb"],
        "busy": [],
        "freed_n_bytes": 2000,
    }
    assert not list(cache.rglob("*.gguf"))


def test_removes_everything(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "rm", "--all", "--yes"]) == 0
    assert _names(capsys) == []


def test_a_size_bound_takes_the_oldest_models(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "rm", "--keep-below", "5.1kB", "--yes"]) == 0
    assert len(_names(capsys)) == 3
    assert main(["cache", "rm", "--keep-below", "2.5kB", "--yes"]) == 0
    assert _names(capsys) == ["last-model.json", "new-0.1.0-bbbbbbbbbbbb"]
    assert main(["cache", "rm", "--keep-below", "0", "--yes"]) == 0
    assert _names(capsys) == ["last-model.json"]


@pytest.mark.usefixtures("cache")
def test_without_a_terminal_it_does_not_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "rm", "--all"]) == 1
    assert "add `--yes`" in capsys.readouterr().err
    assert len(_names(capsys)) == 3


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(("answer", "n_left"), [(True, 2), (False, 3)])
def test_a_terminal_is_asked(
    answer: bool,
    n_left: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def confirm(text: str, **_: object) -> bool:
        asked.append(text)
        return answer

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(typer, "confirm", confirm)
    assert main(["cache", "rm", "old"]) == (0 if answer else 1)
    assert asked == ["remove old-0.1.0-aaaaaaaaaaaa (3.0 kB)?"]
    assert len(_names(capsys)) == n_left


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["old", "--all"],
        ["--all", "--keep-below", "1GB"],
        ["--keep-below", "many"],
        ["--keep-below", "-1"],
    ],
)
def test_unclear_requests_are_usage_errors(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "rm", "--yes", *arguments]) == 2
    assert len(_names(capsys)) == 3


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["nothing", "..", "models", "/", ""])
def test_names_that_are_not_listed_are_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "rm", "--yes", "--", name]) == 1
    assert "new-0.1.0-bbbbbbbbbbbb" in capsys.readouterr().err
    assert len(_names(capsys)) == 3


def test_links_are_removed_and_never_followed(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "thesis.txt").write_text("mine")
    (cache / "models" / "linked").symlink_to(outside)
    (cache / "models" / "old-0.1.0-aaaaaaaaaaaa" / "m" / "inner").symlink_to(outside)
    (cache / "models" / "old-0.1.0-aaaaaaaaaaaa" / "beside").symlink_to(outside)
    assert main(["cache", "rm", "--all", "--yes"]) == 0
    assert (outside / "thesis.txt").read_text() == "mine"
    assert _names(capsys) == []
    assert not (cache / "models" / "linked").exists()


def test_a_linked_folder_of_models_is_one_entry(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (cache / "models").rename(elsewhere)
    (cache / "models").symlink_to(elsewhere)
    assert main(["cache", "rm", "--all", "--yes"]) == 0
    assert len(list(elsewhere.rglob("*.gguf"))) == 2
    assert _names(capsys) == []


def test_a_model_that_is_being_written_stays(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with folder_lock(cache / "models" / "old-0.1.0-aaaaaaaaaaaa"):
        assert main(["cache", "rm", "--all", "--yes"]) == 1
    assert "another edgevlm is writing it" in capsys.readouterr().err
    assert _names(capsys) == ["old-0.1.0-aaaaaaaaaaaa"]


def test_who_waits_to_build_finds_the_folder(cache: Path) -> None:
    folder = cache / "models" / "old-0.1.0-aaaaaaaaaaaa"
    done = threading.Event()

    def build() -> None:
        with folder_lock(folder, wait=True):
            (folder / "built").write_text("x")
        done.set()

    with folder_lock(folder):
        waiting = threading.Thread(target=build)
        waiting.start()
    waiting.join()
    assert main(["cache", "rm", "old", "--yes"]) == 0
    assert done.is_set()
    assert folder.is_dir()
    assert not (folder / "built").exists()


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0),
        ("500MB", 500_000_000),
        ("2 G", 2_000_000_000),
        ("1.5GiB", 3 << 29),
        ("10kb", 10_000),
    ],
)
def test_sizes_as_people_write_them(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes
