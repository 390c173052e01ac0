"""`edgevlm convert --split-max-size`, and every verb that takes a model in several files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edgevlm.build.convert import convert_model
from edgevlm.build.resolve import resolve_model
from edgevlm.cli.app import main
from edgevlm.errors import GGUFError
from edgevlm.files import sha256_file
from edgevlm.gguf_shards import read_model
from edgevlm.manifest import Manifest, read_manifest
from edgevlm.model_dir import open_model_dir
from edgevlm.progress import Advance, Unit
from edgevlm.runtime.image import load_image
from edgevlm.runtime.memory import check_memory
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import open_vlm

QUESTIONS = ("What color is the cross?", "How many shapes are there?", "Describe the image.")
FIRST = "s-F16-00001-of-00004.gguf"
PARTS = [f"s-F16-{number:05}-of-00004.gguf" for number in range(1, 5)]
MMPROJ = "mmproj-s-F16.gguf"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path) -> tuple[Path, Path]:
    """The same model in one file and in four; never to be written."""
    folder = tmp_path_factory.mktemp("split")
    source = ["convert", str(shapes_checkpoint), "--name", "s", "--outtype", "f16", "--quiet"]
    assert main([*source, "--out", str(folder / "whole")]) == 0
    assert main([*source, "--out", str(folder / "split"), "--split-max-size", "2M"]) == 0
    return folder / "whole", folder / "split"


@pytest.fixture
def split(folders: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the split model to break."""
    return shutil.copytree(folders[1], tmp_path / "split")


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[str, str]:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "\nhint: " in err
    return err


def manifest_of(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None
    return manifest


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.gguf"))


def test_answers_are_those_of_the_whole(folders: tuple[Path, Path], shapes_assets: Path) -> None:
    whole, split = folders
    assert names(split) == [MMPROJ, *PARTS]
    pixels = load_image(shapes_assets / "images" / "000.png")
    found: list[list[object]] = []
    for text in (whole / "s-F16.gguf", split / FIRST):
        with open_vlm(model=text, mmproj=text.parent / MMPROJ, n_ctx=256, device="cpu") as vlm:
            params = SamplingParams(max_tokens=24)
            answers = [vlm.generate(one, [pixels], params=params) for one in QUESTIONS]
            logits = vlm.first_logits(QUESTIONS[0], [pixels])
            found.append([[answer.token_ids for answer in answers], logits.tolist()])
    assert found[0] == found[1]


def test_the_manifest_lists_every_part(folders: tuple[Path, Path]) -> None:
    whole, split = folders
    text, mmproj = manifest_of(split).files
    assert [part.name for part in text.parts] == PARTS
    for part in text.parts:
        assert part.n_bytes == (split / part.name).stat().st_size
        assert part.sha256 == sha256_file(split / part.name)
    assert (text.name, text.sha256) == (FIRST, text.parts[0].sha256)
    assert text.n_bytes == sum(part.n_bytes for part in text.parts)
    assert mmproj.parts == []
    one = manifest_of(whole).files[0]
    assert text.bits_per_weight == one.bits_per_weight
    assert text.tensor_types == one.tensor_types
    assert manifest_of(split).tokenizer == manifest_of(whole).tokenizer


def test_a_folder_has_it_once(folders: tuple[Path, Path], split: Path) -> None:
    for folder in (folders[1], split):
        (text,) = open_model_dir(folder).of_role("text")
        assert (text.path, text.level) == (folder / FIRST, "F16")
        assert open_model_dir(folder).skipped == ()
        (split / "edgevlm.json").unlink(missing_ok=True)
    for named in (split, split / FIRST):
        found = resolve_model(str(named))
        assert (found.text, found.mmproj) == (split / FIRST, split / MMPROJ)
    assert resolve_model(str(split / FIRST)).name == "s-F16"


def test_memory_counts_every_part(folders: tuple[Path, Path]) -> None:
    one, many = (
        check_memory(folder / name, None, n_ctx=256, override=True).footprint
        for folder, name in zip(folders, ("s-F16.gguf", FIRST), strict=True)
    )
    assert one.weights == many.weights


def test_chat_verify_and_inspect(
    folders: tuple[Path, Path], shapes_assets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = shapes_assets / "images" / "000.png"
    for named in (folders[1], folders[1] / FIRST):
        out, _ = run(capsys, "chat", image, "-m", named, "-p", QUESTIONS[0])
        assert out == "black\n"
    whole, _ = run(capsys, "verify", folders[0], "--json")
    many, _ = run(capsys, "verify", folders[1], "--json")
    stages = [json.loads(text)["stages"] for text in (whole, many)]
    assert [stage["status"] for stage in stages[1]] == [stage["status"] for stage in stages[0]]
    assert "in 4 files" in run(capsys, "inspect", folders[1] / FIRST)[0]
    hint = f"hint: name one of them: `{folders[1] / MMPROJ}`, `{folders[1] / FIRST}`\n"
    assert fails(capsys, "inspect", folders[1]).endswith(hint)
    document = json.loads(run(capsys, "inspect", folders[1] / FIRST, "--json")[0])
    assert document["files"] == PARTS
    assert {tensor["file"] for tensor in document["tensors"]} == set(PARTS)


def test_levels_are_those_of_the_whole(
    folders: tuple[Path, Path],
    split: Path,
    shapes_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = shutil.copytree(folders[0], tmp_path / "whole")
    run(capsys, "quantize", whole, "--level", "Q4_K_M")
    run(capsys, "quantize", split, "--level", "Q4_K_M")
    assert sha256_file(whole / "s-Q4_K_M.gguf") == sha256_file(split / "s-Q4_K_M.gguf")
    assert [entry.name for entry in manifest_of(split).files] == [
        FIRST,
        MMPROJ,
        "s-Q4_K_M.gguf",
        "mmproj-s-Q8_0.gguf",
    ]
    # In one pass, and in parts.
    source = ("convert", shapes_checkpoint, "--name", "s", "--out", tmp_path / "one")
    document = json.loads(
        run(capsys, *source, "--level", "Q4_K_M", "--split-max-size", "1M", "--json")[0]
    )
    parts = [part["name"] for part in document["files"][0]["parts"]]
    assert len(parts) > 1
    ours, theirs = read_model(tmp_path / "one" / parts[0]), read_model(whole / "s-Q4_K_M.gguf")
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (one.name, one.type, one.shape) == (other.name, other.type, other.shape)
        data = [
            np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset)
            for tensor in (one, other)
        ]
        np.testing.assert_array_equal(data[0], data[1])


def test_a_tensor_is_never_divided(
    shapes_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("convert", shapes_checkpoint, "--name", "s", "--out", tmp_path / "m")
    out, err = run(capsys, *source, "--outtype", "f16", "--split-max-size", "1")
    first = next((tmp_path / "m").glob("s-F16-00001-*"))
    n_tensors = len(read_model(first).tensors)
    assert f"s-F16-*-of-{n_tensors:05}.gguf" in out
    assert "no tensor is divided" in err
    with open_vlm(model=first, n_ctx=64, device="cpu") as vlm:
        assert vlm.n_vocab > 0


@pytest.mark.parametrize("verb", [("inspect",), ("chat", "-p", "x", "-m")])
def test_a_later_part_is_not_the_model(
    verb: tuple[str, ...], split: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = fails(capsys, *verb, split / PARTS[2])
    assert "is part 3 of a model in 4 files" in err
    assert f"name its first file: `{split / FIRST}`" in err


@pytest.mark.parametrize("keeps_manifest", [True, False])
def test_a_missing_or_foreign_part(
    keeps_manifest: bool,
    split: Path,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not keeps_manifest:
        (split / "edgevlm.json").unlink()
    kept = (split / PARTS[2]).read_bytes()
    for named in (split, split / FIRST):
        (split / PARTS[2]).unlink()
        err = fails(capsys, "chat", "-q", "-m", named, "-p", "x")
        assert PARTS[2] in err
        assert "is missing" in err
        shutil.copy(folders[1] / PARTS[1], split / PARTS[2])
        assert PARTS[2] in fails(capsys, "chat", "-q", "-m", named, "-p", "x")
        (split / PARTS[2]).write_bytes(kept[:-50_000])
        assert PARTS[2] in fails(capsys, "chat", "-q", "-m", named, "-p", "x")


def test_parts_without_the_first(split: Path) -> None:
    (split / FIRST).unlink()
    opened = open_model_dir(split)
    assert [file.path.name for file in opened.files] == [MMPROJ]
    assert opened.skipped == (f"left out: `{split / PARTS[1]}` is a part of a model, and `{FIRST}`"
                              " is missing",)  # fmt: skip
    (split / MMPROJ).unlink()
    with pytest.raises(GGUFError, match="is missing"):
        open_model_dir(split)


def test_a_model_is_there_once_whatever_its_parts(
    split: Path, shapes_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("convert", shapes_checkpoint, "--name", "s", "--outtype", "f16", "--out", split)
    for more in ((), ("--split-max-size", "2M"), ("--split-max-size", "3M")):
        assert FIRST in fails(capsys, *source, *more)
        assert names(split) == [MMPROJ, *PARTS]
    run(capsys, *source, "--split-max-size", "3M", "--force")
    three = [f"s-F16-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert names(split) == [MMPROJ, *three]
    assert [entry.name for entry in manifest_of(split).files] == [three[0], MMPROJ]
    # What a killed run left needs no --force.
    (split / three[0]).unlink()
    run(capsys, *source)
    assert names(split) == [MMPROJ, "s-F16.gguf"]
    run(capsys, *source, "--split-max-size", "1GiB", "--force")
    assert names(split) == [MMPROJ, "s-F16.gguf"]
    assert [entry.name for entry in manifest_of(split).files] == ["s-F16.gguf", MMPROJ]


class _Interrupted:
    """A bar at which somebody presses Ctrl-C, in the middle of the third part."""

    def __init__(self) -> None:
        self.n_done = 0
        self.totals: list[int | None] = []

    @contextmanager
    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> Generator[Advance]:
        self.totals.append(total)

        def advance(amount: int, /) -> None:
            self.n_done += amount
            if self.n_done > 2_500_000:
                raise KeyboardInterrupt

        yield advance


def test_ctrl_c_leaves_nothing(shapes_checkpoint: Path, tmp_path: Path) -> None:
    bar = _Interrupted()
    with pytest.raises(KeyboardInterrupt):
        convert_model(
            shapes_checkpoint, out=tmp_path / "m", split_max_bytes=1_000_000, progress=bar
        )
    # One bar for all parts.
    assert len(bar.totals) == 1
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("size", ["0", "x", "-1", "2X", ""])
def test_sizes_that_are_none(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "x", "--split-max-size", size]) == 2
    assert "size" in capsys.readouterr().err
