"""A repository of the Hub -> files that can be loaded, in the user's cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from edgevlm.build.cache import last_model
from edgevlm.build.convert import convert_model
from edgevlm.build.quantize import plan_quantization, quantize_model
from edgevlm.build.resolve import open_source, resolve_model
from edgevlm.build.source import find_checkpoint
from edgevlm.errors import (
    CheckpointError,
    EdgeVLMError,
    GGUFError,
    HubError,
    ProfileError,
    SourceNotFoundError,
)
from edgevlm.files import sha256_file
from edgevlm.gguf_shards import read_model
from edgevlm.manifest import read_manifest
from edgevlm.model_dir import open_model_dir
from tests.hub_server import COMMIT, HubServer, Repo

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("EDGEVLM_CACHE", str(folder))
    return folder


def read_files(folder: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


@pytest.fixture
def checkpoint(hub: HubServer, shapes_checkpoint: Path) -> Repo:
    files = read_files(shapes_checkpoint, "*")
    hub.repos["org/shapes-hf"] = Repo(files={**files, "pytorch_model.bin": b"pickle"})
    return hub.repos["org/shapes-hf"]


@pytest.fixture
def gguf(hub: HubServer, shapes_dir: Path) -> Repo:
    hub.repos["org/shapes-GGUF"] = Repo(files=read_files(shapes_dir, "*.gguf"))
    return hub.repos["org/shapes-GGUF"]


def test_a_checkpoint_is_downloaded_with_its_origin(hub: HubServer, checkpoint: Repo) -> None:
    notes: list[str] = []
    found = find_checkpoint("org/shapes-hf", note=notes.append)
    assert found.origin is not None
    assert (found.origin.repo, found.origin.revision) == ("org/shapes-hf", COMMIT)
    assert (found.folder / WEIGHTS).read_bytes() == checkpoint.files[WEIGHTS]
    assert "downloaded 20.5 MB of org/shapes-hf" in notes[0]


def test_a_path_wins(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert find_checkpoint("org/name").folder == Path("org/name")
    with pytest.raises(SourceNotFoundError, match="no GGUF"):
        resolve_model("org/name")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("architectures", ["SomethingElse"], "SomethingElse"),
        ("quantization_config", {"quant_method": "awq"}, "quant_method `awq`"),
    ],
)
def test_what_cannot_be_converted_costs_no_weights(
    hub: HubServer, checkpoint: Repo, key: str, value: object, expected: str
) -> None:
    config = json.loads(checkpoint.files["config.json"])
    config[key] = value
    checkpoint.files["config.json"] = json.dumps(config).encode()
    with pytest.raises(CheckpointError, match=expected):
        find_checkpoint("org/shapes-hf")
    assert hub.n_bytes(WEIGHTS) == 0


def test_a_checkpoint_is_converted_once(
    hub: HubServer, checkpoint: Repo, empty_cache: Path
) -> None:
    notes: list[str] = []
    model = resolve_model("org/shapes-hf", note=notes.append)
    assert (model.name, model.level) == ("shapes-hf", "Q4_K_M")
    assert model.text.is_relative_to(empty_cache)
    assert model.mmproj is not None
    assert any("Q4_K_M; --level" in note for note in notes)
    assert last_model() == str(model.text.parent)
    manifest = read_manifest(model.text.parent)
    assert manifest is not None
    assert (manifest.source.repo, manifest.source.revision) == ("org/shapes-hf", COMMIT)
    written = model.text.stat().st_mtime_ns
    hub.requests.clear()
    assert resolve_model("org/shapes-hf").text.stat().st_mtime_ns == written
    assert len(hub.requests) == 1
    # A new commit is another model.
    checkpoint.commit = "1" * 40
    assert resolve_model("org/shapes-hf").text.parent != model.text.parent


def test_levels_of_a_checkpoint_stand_side_by_side(hub: HubServer, checkpoint: Repo) -> None:
    first = resolve_model("org/shapes-hf", level="Q8_0")
    second = resolve_model("org/shapes-hf@main", level="f16")
    assert (first.level, second.level) == ("Q8_0", "F16")
    assert first.text.parent == second.text.parent
    # Rebuilt by the folder's own name, the level goes into the same folder.
    third = resolve_model(str(first.text.parent), level="Q5_K_M")
    assert third.text.parent == first.text.parent
    manifest = read_manifest(third.text.parent)
    assert manifest is not None
    assert manifest.source.repo == "org/shapes-hf"
    with pytest.raises(ProfileError):
        resolve_model("org/shapes-hf", level="Q9_Z")


def test_gguf_files_are_downloaded(
    hub: HubServer, gguf: Repo, shapes_dir: Path, empty_cache: Path
) -> None:
    model = resolve_model("org/shapes-GGUF")
    assert (model.name, model.level) == ("shapes", "Q4_K_M")
    assert model.text.is_relative_to(empty_cache)
    assert sha256_file(model.text) == sha256_file(shapes_dir / "shapes-Q4_K_M.gguf")
    assert model.mmproj is not None
    assert model.mmproj.name == "mmproj-shapes-Q8_0.gguf"
    assert hub.n_bytes("shapes-F16.gguf") == 0
    manifest = read_manifest(model.text.parent)
    assert manifest is not None
    assert (manifest.source.repo, manifest.source.revision) == ("org/shapes-GGUF", COMMIT)
    assert manifest.files[0].sha256 == sha256_file(model.text)
    second = resolve_model("org/shapes-GGUF", level="Q8_0")
    assert second.text.parent == model.text.parent
    with pytest.raises(SourceNotFoundError, match=r"Q2_K.*F16, Q4_K_M"):
        resolve_model("org/shapes-GGUF", level="Q2_K")


def test_a_model_in_parts_is_downloaded_whole(
    hub: HubServer, shapes_checkpoint: Path, shapes_dir: Path, tmp_path: Path
) -> None:
    convert_model(
        shapes_checkpoint,
        out=tmp_path / "split",
        name="shapes",
        outtype="f16",
        split_max_bytes=2_000_000,
    )
    files = {f"F16/{n}": raw for n, raw in read_files(tmp_path / "split", "shapes-*").items()}
    parts = [Path(name).name for name in sorted(files)]
    assert len(parts) == 4
    mmproj = "mmproj-shapes-F16.gguf"
    hub.repos["org/shapes-GGUF"] = Repo(files={**files, mmproj: (shapes_dir / mmproj).read_bytes()})
    model = resolve_model("org/shapes-GGUF")
    assert model == resolve_model("org/shapes-GGUF")
    assert (model.name, model.level, model.text.name) == ("shapes", "F16", parts[0])
    assert len(read_model(model.text).tensors) == 46
    manifest = read_manifest(model.text.parent)
    assert manifest is not None
    assert [(part.name, part.sha256) for part in manifest.files[0].parts] == [
        (name, sha256_file(model.text.parent / name)) for name in parts
    ]
    # A part that has left the Hub's cache is downloaded again.
    (model.text.parent / parts[1]).resolve().unlink()
    assert len(read_model(resolve_model("org/shapes-GGUF").text).tensors) == 46
    # Its levels are made from all parts.
    made = quantize_model(plan_quantization(open_model_dir(model.text.parent), level="Q8_0"))
    name = "shapes-Q8_0.gguf"
    assert sha256_file(made.folder / name) == sha256_file(shapes_dir / name)
    del hub.repos["org/shapes-GGUF"].files[f"F16/{parts[2]}"]
    hub.repos["org/shapes-GGUF"].commit = "2" * 40
    with pytest.raises(HubError, match=f"and not `F16/{parts[2]}`"):
        resolve_model("org/shapes-GGUF")


def test_a_level_that_is_no_gguf_is_made_from_the_checkpoint(
    hub: HubServer, gguf: Repo, checkpoint: Repo
) -> None:
    gguf.files |= checkpoint.files
    del gguf.files["shapes-Q5_K_M.gguf"]
    model = resolve_model("org/shapes-GGUF", level="Q5_K_M")
    assert model.level == "Q5_K_M"
    assert hub.n_bytes("shapes-Q4_K_M.gguf") == 0


def test_links_whose_files_are_gone(hub: HubServer, gguf: Repo, tmp_path: Path) -> None:
    model = resolve_model("org/shapes-GGUF")
    shutil.rmtree(tmp_path / "home" / "hub")
    with pytest.raises(GGUFError, match="gone") as caught:
        resolve_model(str(model.text.parent))
    assert "org/shapes-GGUF" in caught.value.hint
    assert resolve_model("org/shapes-GGUF").text.exists()


def test_a_projector_under_a_text_models_name(hub: HubServer, gguf: Repo) -> None:
    gguf.files["shapes-Q4_K_M.gguf"] = gguf.files["mmproj-shapes-Q8_0.gguf"]
    with pytest.raises(GGUFError, match="projector"):
        resolve_model("org/shapes-GGUF")
    gguf.files["shapes-Q4_K_M.gguf"] = b"GGUF is what this is not" * 1000
    gguf.commit = "1" * 40
    with pytest.raises(GGUFError):
        resolve_model("org/shapes-GGUF")


def quantized(name: str, level: str) -> set[str]:
    directory, text = open_source(name)
    assert text is None
    built = quantize_model(plan_quantization(directory, level=level))
    return {entry.name for entry in built.written}


def test_quantize_starts_from_16_bits(hub: HubServer, gguf: Repo, checkpoint: Repo) -> None:
    assert "shapes-Q8_0.gguf" in quantized("org/shapes-GGUF", "Q8_0")
    assert "shapes-hf-Q8_0.gguf" in quantized("org/shapes-hf", "Q8_0")
    assert open_model_dir(open_source("org/shapes-hf")[0].folder).find("text", "BF16")
    del gguf.files["shapes-F16.gguf"]
    gguf.commit = "1" * 40
    with pytest.raises(SourceNotFoundError, match="F16"):
        open_source("org/shapes-GGUF")
    directory, _ = open_source("org/shapes-GGUF", allow_requantize=True)
    plan = plan_quantization(directory, level="Q4_0", allow_requantize=True)
    assert plan.files[0].requantized_from == "Q8_0"


def test_quantize_after_chat_goes_back_to_the_checkpoint(hub: HubServer, checkpoint: Repo) -> None:
    resolve_model("org/shapes-hf")
    assert quantized("org/shapes-hf", "Q8_0") == {"shapes-hf-Q8_0.gguf"}


def test_a_checkpoint_that_left_the_hubs_cache(
    hub: HubServer, checkpoint: Repo, tmp_path: Path
) -> None:
    model = resolve_model("org/shapes-hf")
    shutil.rmtree(tmp_path / "home" / "hub")
    with pytest.raises(SourceNotFoundError) as caught:
        resolve_model(str(model.text.parent), level="Q8_0")
    assert f"edgevlm chat -m org/shapes-hf@{COMMIT} --level Q8_0" in caught.value.hint
    assert resolve_model("org/shapes-hf", level="Q8_0").text.exists()


def test_offline(
    hub: HubServer, checkpoint: Repo, gguf: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [resolve_model(name) for name in ("org/shapes-hf", "org/shapes-GGUF")]
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert [resolve_model(name) for name in ("org/shapes-hf", "org/shapes-GGUF")] == models
    with pytest.raises(EdgeVLMError, match="HF_HUB_OFFLINE"):
        resolve_model("org/other")
    assert hub.requests == []
