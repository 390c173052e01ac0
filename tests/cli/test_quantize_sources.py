"""What `edgevlm quantize` takes as its source: parts, blocks, a projector in the model's place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgevlm.cli.app import main
from edgevlm.files import sha256_file
from edgevlm.gguf_file import read_gguf
from edgevlm.manifest import FileEntry, read_manifest
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.profile_file import load_profile
from tests.quantize.quantizing import llama_quantize, quantize_file

TEXT, MMPROJ = "shapes-F16.gguf", "mmproj-shapes-F16.gguf"
Q8_TEXT, Q8_MMPROJ = "shapes-Q8_0.gguf", "mmproj-shapes-Q8_0.gguf"


@pytest.fixture
def folder(tmp_path: Path, shapes_dir: Path) -> Path:
    """Copies of the 16-bit files alone."""
    return copied(tmp_path / "m", shapes_dir, TEXT, MMPROJ)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path) -> Path:
    """The model in four files, without a manifest; never to be written."""
    folder = tmp_path_factory.mktemp("parts")
    source = ["convert", str(shapes_checkpoint), "--name", "shapes", "--outtype", "f16", "-q"]
    assert main([*source, "--out", str(folder), "--split-max-size", "2M"]) == 0
    (folder / "edgevlm.json").unlink()
    return folder


def copied(target: Path, source: Path, *names: str) -> Path:
    target.mkdir()
    for name in names:
        shutil.copy(source / name, target / name)
    return target


def run(*arguments: str | Path) -> None:
    assert main(["quantize", *(str(argument) for argument in arguments)]) == 0


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["quantize", *(str(argument) for argument in arguments)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "\nhint: " in err
    return err


def entry(folder: Path, name: str) -> FileEntry:
    manifest = read_manifest(folder)
    assert manifest is not None
    return next(file for file in manifest.files if file.name == name)


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    data = path.read_bytes()
    return {
        t.name: (t.type, data[t.offset : t.offset + t.n_bytes]) for t in read_gguf(path).tensors
    }


@pytest.mark.parametrize("number", [0, 1, 2, 4])
def test_any_part_or_the_folder_stands_for_the_model(
    number: int, parts: Path, shapes_dir: Path, tmp_path: Path
) -> None:
    target = shutil.copytree(parts, tmp_path / "m")
    named = target / f"shapes-F16-{number:05}-of-00004.gguf" if number else target
    run(named, "--level", "Q4_K_M", "-q")
    written = target / "shapes-Q4_K_M.gguf" if number else next(iter(target.glob("*-Q4_K_M.gguf")))
    assert sha256_file(written) == sha256_file(shapes_dir / "shapes-Q4_K_M.gguf")
    assert sha256_file(next(iter(target.glob("mmproj-*-Q8_0.gguf")))) == sha256_file(
        shapes_dir / Q8_MMPROJ
    )
    assert len(list(target.glob("shapes-F16-*.gguf"))) == 4


@pytest.mark.parametrize("missing", [1, 3])
def test_a_missing_part_is_named(
    missing: int, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = shutil.copytree(parts, tmp_path / "m")
    name = f"shapes-F16-{missing:05}-of-00004.gguf"
    (target / name).unlink()
    before = sorted(path.name for path in target.iterdir())
    for named in (target, target / "shapes-F16-00002-of-00004.gguf"):
        err = fails(capsys, named, "--level", "Q4_K_M")
        assert f"`{name}` is missing" in err
    assert sorted(path.name for path in target.iterdir()) == before


def test_a_level_from_blocks(
    tmp_path: Path, shapes_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the folder and of the file; the projector stays as it is; bytes are llama.cpp's."""
    theirs = tmp_path / "theirs.gguf"
    assert llama_quantize(shapes_dir / Q8_TEXT, theirs, "Q4_K_M", allow_requantize=True)
    for number, name in enumerate(("", Q8_TEXT)):
        folder = copied(tmp_path / f"m{number}", shapes_dir, Q8_TEXT, Q8_MMPROJ)
        named = folder / name
        for more in ((), ("--mmproj-level", "Q4_0")):
            err = fails(capsys, named, "--level", "Q4_K_M", *more)
            assert "--allow-requantize" in err
        run(named, "--level", "Q4_K_M", "--allow-requantize")
        assert "is made from Q8_0, not from 16 bits" in capsys.readouterr().err
        (ours,) = (path for path in folder.glob("*-Q4_K_M.gguf") if "mmproj" not in path.name)
        assert stored(ours) == stored(theirs)
        assert entry(folder, ours.name).requantized_from == "Q8_0"
        assert len(list(folder.glob("mmproj-*"))) == 1


def test_a_projector_from_blocks(
    tmp_path: Path, shapes_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(tmp_path / "m", shapes_dir, TEXT, Q8_MMPROJ)
    more = ("--level", "Q8_0", "--mmproj-level", "q4_0")
    assert "mmproj-shapes-Q8_0.gguf` is quantized already" in fails(capsys, folder, *more)
    run(folder, *more, "--allow-requantize")
    assert entry(folder, "mmproj-shapes-Q4_0.gguf").requantized_from == "Q8_0"
    assert entry(folder, "shapes-Q8_0.gguf").requantized_from is None


def test_16_bits_are_preferred(
    tmp_path: Path, shapes_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A level of the directory is named, and its 16-bit file or its checkpoint is at hand."""
    folder = tmp_path / "m"
    source = ("convert", shapes_checkpoint, "--name", "shapes", "--out", folder, "-q")
    assert main([*map(str, source), "--level", "Q8_0"]) == 0
    for level in ("Q4_K_M", "Q5_K_M"):
        run(folder / Q8_TEXT, "--level", level, "--allow-requantize")
        assert "not from 16 bits" not in capsys.readouterr().err
        assert entry(folder, f"shapes-{level}.gguf").requantized_from is None
        if level == "Q4_K_M":
            assert main([*map(str, source), "--outtype", "f16"]) == 0


@pytest.mark.parametrize("level", ["F16", "BF16", "F32"])
def test_blocks_never_pass_for_16_bits(
    level: str, tmp_path: Path, shapes_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(tmp_path / "m", shapes_dir, Q8_TEXT)
    err = fails(capsys, folder, "--level", level, "--allow-requantize")
    assert f"holds Q8_0: as {level} it would be larger and no better" in err


def test_a_projector_in_the_models_place(
    folder: Path, shapes_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its text model is found beside it, and it is the projector that is taken."""
    other = folder / "mmproj-other-F16.gguf"
    shutil.copy(folder / MMPROJ, other)
    run(other, "--level", "Q4_K_M", "--json")
    written = [file["name"] for file in json.loads(capsys.readouterr().out)["files"]]
    assert written == ["shapes-Q4_K_M.gguf", Q8_MMPROJ]
    assert sha256_file(folder / Q8_MMPROJ) == sha256_file(shapes_dir / Q8_MMPROJ)
    (folder / TEXT).unlink()
    (folder / "shapes-Q4_K_M.gguf").unlink()
    (folder / "edgevlm.json").unlink()
    err = fails(capsys, folder / MMPROJ, "--level", "Q4_K_M")
    assert "is a projector (mmproj), not a text model" in err


def test_a_projector_beside_several_models(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(folder / TEXT, folder / "another-F16.gguf")
    err = fails(capsys, folder / MMPROJ, "--level", "Q4_K_M")
    assert "give the text model's .gguf, and the projector with --mmproj" in err


def test_the_model_as_the_projector(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in folder.iterdir())
    err = fails(capsys, folder, "--level", "Q8_0", "--mmproj", folder / TEXT)
    assert "is not a projector" in err
    assert sorted(path.name for path in folder.iterdir()) == before


def test_levels_in_lower_case_and_unknown_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "--level", "q4_k_m", "--mmproj-level", "q8_0", "-q")
    assert (folder / "shapes-Q4_K_M.gguf").exists()
    assert "did you mean Q4_K_M?" in fails(capsys, folder, "--level", "Q4_KM")
    assert "did you mean Q5_K?" in fails(capsys, folder, "--level", "Q8_0", "--mmproj-level", "Q5K")
    assert "there is no level `best`" in fails(capsys, folder, "--level", "best")


def test_parts_of_blocks(tmp_path: Path, shapes_checkpoint: Path, shapes_dir: Path) -> None:
    """A quantized model in several files is a source too."""
    folder = tmp_path / "m"
    source = ["convert", str(shapes_checkpoint), "--name", "shapes", "--level", "Q8_0", "-q"]
    assert main([*source, "--out", str(folder), "--split-max-size", "1M"]) == 0
    (folder / "edgevlm.json").unlink()
    last = max(folder.glob("shapes-Q8_0-*.gguf"))
    run(last, "--level", "Q4_K_M", "--allow-requantize", "-q")
    target = tmp_path / "one.gguf"
    encoder = text_encoder(load_profile("Q4_K_M"))
    quantize_file(shapes_dir / Q8_TEXT, target, encoder, allow_requantize=True)
    assert stored(folder / "shapes-Q4_K_M.gguf") == stored(target)
