"""What the user named -> files that can be loaded."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgevlm.build.cache import last_model, remember_model
from edgevlm.build.convert import convert_model
from edgevlm.build.resolve import resolve_model
from edgevlm.errors import GGUFError, SourceNotFoundError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEVLM_CACHE", str(folder))
    return folder


def test_directory_takes_the_newest_level_and_its_projector(shapes_dir: Path) -> None:
    model = resolve_model(str(shapes_dir))
    assert (model.name, model.level) == ("shapes", "Q4_K_M")
    assert model.text == shapes_dir / "shapes-Q4_K_M.gguf"
    assert model.mmproj == shapes_dir / "mmproj-shapes-Q8_0.gguf"
    assert model.notes == ()


def test_a_choice_among_projectors_is_said(shapes_dir: Path, tmp_path: Path) -> None:
    for name in ("shapes-Q8_0.gguf", "mmproj-shapes-F16.gguf"):
        shutil.copy2(shapes_dir / name, tmp_path)
    shutil.copy(shapes_dir / "mmproj-shapes-F16.gguf", tmp_path / "mmproj-other.gguf")
    model = resolve_model(str(tmp_path))
    assert model.mmproj == tmp_path / "mmproj-other.gguf"
    assert any("mmproj-other.gguf" in note for note in model.notes)


def test_level_is_asked_for_in_any_case(shapes_dir: Path) -> None:
    model = resolve_model(str(shapes_dir), level="f16")
    assert model.text.name == "shapes-F16.gguf"
    assert model.mmproj == shapes_dir / "mmproj-shapes-F16.gguf"


def test_file_and_explicit_projector(shapes_dir: Path) -> None:
    projector = shapes_dir / "mmproj-shapes-F16.gguf"
    model = resolve_model(str(shapes_dir / "shapes-Q8_0.gguf"), mmproj=projector)
    assert (model.level, model.mmproj) == ("Q8_0", projector)


def test_file_alone_finds_the_only_projector_beside_it(shapes_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for name in ("shapes-Q8_0.gguf", "mmproj-shapes-F16.gguf"):
        shutil.copy(shapes_dir / name, folder)
    model = resolve_model(str(folder / "shapes-Q8_0.gguf"))
    assert model.mmproj == folder / "mmproj-shapes-F16.gguf"


def test_text_model_without_projector(shapes_dir: Path, tmp_path: Path) -> None:
    shutil.copy(shapes_dir / "shapes-Q8_0.gguf", tmp_path / "text.gguf")
    assert resolve_model(str(tmp_path / "text.gguf")).mmproj is None


def test_projector_is_no_model(shapes_dir: Path) -> None:
    with pytest.raises(GGUFError, match="projector"):
        resolve_model(str(shapes_dir / "mmproj-shapes-F16.gguf"))


def test_built_in_is_built_once_and_rebuilt_at_a_level(empty_cache: Path) -> None:
    first = resolve_model("shapes")
    assert first.level == "F16"
    assert first.text.is_relative_to(empty_cache)
    written = first.text.stat().st_mtime_ns
    assert resolve_model("shapes", level="F16").text.stat().st_mtime_ns == written
    level = resolve_model("shapes", level="Q4_K_M")
    assert level.text.name == "shapes-Q4_K_M.gguf"
    assert level.text.parent == first.text.parent
    assert level.mmproj is not None
    assert level.mmproj.name == "mmproj-shapes-Q8_0.gguf"


def test_missing_level_is_rebuilt_in_the_cache(
    shapes_checkpoint: Path, tmp_path: Path, empty_cache: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(shapes_checkpoint, source)
    convert_model(source, out=tmp_path / "model", name="mine")
    model = resolve_model(str(tmp_path / "model"), level="Q8_0")
    assert model.text.is_relative_to(empty_cache)
    assert not (tmp_path / "model" / "mine-Q8_0.gguf").exists()
    # The same, once its checkpoint has changed: refused, with the command that makes it.
    (source / "generation_config.json").write_text("{}")
    with pytest.raises(SourceNotFoundError) as caught:
        resolve_model(str(tmp_path / "model"), level="Q5_K_M")
    assert "edgevlm quantize" in caught.value.hint


def test_left_out_is_the_model_used_last(shapes_dir: Path, tmp_path: Path) -> None:
    assert resolve_model(None).name == "shapes"  # nothing used yet: the built-in one
    resolve_model(str(shapes_dir))
    assert resolve_model(None).text == shapes_dir / "shapes-Q4_K_M.gguf"
    remember_model(str(tmp_path / "gone"))
    assert last_model() is None


def test_checkpoint_is_not_a_model_directory(shapes_checkpoint: Path) -> None:
    with pytest.raises(SourceNotFoundError) as caught:
        resolve_model(str(shapes_checkpoint))
    assert "edgevlm convert" in caught.value.hint


@pytest.mark.parametrize("name", ["nothing/here", "no-such-model"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(SourceNotFoundError, match=name):
        resolve_model(name)


def test_missing_mmproj(shapes_dir: Path) -> None:
    with pytest.raises(SourceNotFoundError, match=r"none\.gguf"):
        resolve_model(str(shapes_dir), mmproj=Path("none.gguf"))
