"""`edgevlm convert --adapter` as a user types it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm.build.resolve import resolve_model
from edgevlm.cli.app import main
from edgevlm.files import sha256_file
from edgevlm.manifest import Manifest, read_manifest
from edgevlm.runtime.vlm import open_vlm
from tests.convert.test_adapter import drawn, write_adapter
from tests.convert.test_reference import STRICT_BOUND, kld
from tests.convert.tricks import split_safetensors
from tests.goldens.files import ADAPTER, golden_cases, redraw, redraw_adapter
from tests.hub_server import COMMIT, HubServer, Repo

QUERY = "model.language_model.layers.0.self_attn.q_proj"
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden's checkpoint; never to be written."""
    return redraw("qwen3_vl", tmp_path_factory.mktemp("golden") / "base")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return redraw_adapter(tmp_path / "tuned")


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


def other_adapter(folder: Path) -> Path:
    pair = {"A": drawn(2, 96), "B": drawn(192, 2)}
    return write_adapter(folder, {f"{QUERY}.lora_{letter}.weight": pair[letter] for letter in "AB"})


def test_answers_are_pefts_and_every_tensor_is_accounted_for(
    base: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out, _ = run(capsys, "convert", base, "--adapter", adapter, "--outtype", "f32")
    folder = tmp_path / "base-tuned"
    text, mmproj = folder / "base-tuned-F32.gguf", folder / "mmproj-base-tuned-F32.gguf"
    with open_vlm(model=text, mmproj=mmproj, n_ctx=256, device="cpu", strict=True) as vlm:
        assert max(float(kld(vlm, case).max()) for case in golden_cases(ADAPTER)) <= STRICT_BOUND
    header, _ = split_safetensors(adapter / WEIGHTS)
    names = set(header) - {"__metadata__"}
    manifest = manifest_of(folder)
    ledger = manifest.ledger
    assert ledger.n_adapter_tensors == len(names)
    assert {name for some in ledger.adapted.values() for name in some} == names <= set(ledger.used)
    assert f"{QUERY}.weight" in ledger.adapted
    assert (
        f"{ledger.n_source_tensors - len(names)} tensors in the checkpoint, {len(names)} in" in out
    )
    assert f"{len(ledger.adapted)} tensors changed by the adapter" in out
    source = manifest.source.adapter
    assert source is not None
    assert source.path == str(adapter)
    assert source.sha256 == {name: sha256_file(adapter / name) for name in (CONFIG, WEIGHTS)}


def test_the_bare_checkpoint_is_no_reference_of_a_merged_model(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    run(capsys, "convert", base, "--adapter", adapter, "--out", out)
    assert main(["verify", str(out), "--against", str(base)]) == 1
    err = capsys.readouterr().err
    assert "an adapter was merged into this model" in err
    assert "merge_and_unload" in err


def test_one_pass_equals_two_and_a_level_of_later_has_the_adapter_too(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, later = (tmp_path / name for name in ("one", "two", "later"))
    source = ("convert", base, "--adapter", adapter, "--name", "m", "--json")
    document = json.loads(run(capsys, *source, "--out", one, "--level", "Q8_0")[0])
    assert document["ledger"]["n_adapter_tensors"] == 94
    run(capsys, *source, "--out", two, "--outtype", "f32")
    run(capsys, "quantize", two, "--level", "Q8_0")
    assert sha256_file(one / "m-Q8_0.gguf") == sha256_file(two / "m-Q8_0.gguf")
    # Neither has 16 bits to start from: both go back to checkpoint and adapter.
    run(capsys, *source, "--out", later, "--level", "Q5_K_M")
    run(capsys, "quantize", later, "--level", "Q8_0")
    assert sha256_file(one / "m-Q8_0.gguf") == sha256_file(later / "m-Q8_0.gguf")
    shutil.rmtree(later)
    run(capsys, *source, "--out", later, "--level", "Q5_K_M")
    rebuilt = resolve_model(str(later), level="Q8_0").text
    assert not rebuilt.is_relative_to(later)
    assert sha256_file(one / "m-Q8_0.gguf") == sha256_file(rebuilt)
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-1] + b"\0")
    assert "has no 16-bit text model" in fails(capsys, "quantize", later, "--level", "Q4_K_M")


def test_the_same_adapter_is_recognised_another_is_not(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    source = ("convert", base, "--name", "m", "--out", folder)
    run(capsys, *source, "--adapter", adapter, "--level", "Q8_0")
    before = sha256_file(folder / "m-Q8_0.gguf")
    _, err = run(capsys, *source, "--adapter", adapter, "--level", "Q5_K_M")
    assert "kept mmproj-m-Q8_0.gguf" in err
    assert len(manifest_of(folder).files) == 3
    other = other_adapter(tmp_path / "other")
    for more in ((), ("--adapter", other)):
        err = fails(capsys, *source, *more, "--level", "Q8_0")
        assert f"holds this checkpoint with the adapter `{adapter}`" in err
    run(capsys, *source, "--adapter", other, "--level", "Q8_0", "--force")
    assert sha256_file(folder / "m-Q8_0.gguf") != before
    manifest = manifest_of(folder)
    assert manifest.source.adapter is not None
    assert manifest.source.adapter.path == str(other)
    assert [entry.name for entry in manifest.files] == ["m-Q8_0.gguf", "mmproj-m-Q8_0.gguf"]
    run(capsys, *source, "--level", "Q8_0", "--force")
    err = fails(capsys, *source, "--adapter", other, "--level", "Q8_0")
    assert "holds this checkpoint without an adapter" in err


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def _cut(folder: Path) -> None:
    raw = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(raw[: len(raw) // 2])


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "gone": (shutil.rmtree, ("there is no such folder",)),
    "no config": (lambda folder: (folder / CONFIG).unlink(), (f"it has no {CONFIG}",)),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), (WEIGHTS, "incomplete")),
    "a pickle": (_pickle, (WEIGHTS, "pickles are not read")),
    "cut": (_cut, (WEIGHTS, "beyond its")),
    "no JSON": (lambda folder: (folder / CONFIG).write_bytes(b"\xff{"), (CONFIG,)),
    "another method": (
        lambda folder: (folder / CONFIG).write_text('{"peft_type": "IA3"}'),
        ("peft_type",),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_adapters(
    name: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, words = BROKEN[name]
    break_it(adapter)
    # Refused before the checkpoint is looked at.
    out = tmp_path / "out"
    err = fails(capsys, "convert", tmp_path / "nowhere", "--adapter", adapter, "--out", out)
    assert all(word in err for word in words), err
    assert not out.exists()


def test_an_adapter_of_another_model(
    base: Path,
    adapter: Path,
    shapes_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = ("--out", tmp_path / "out")
    err = fails(capsys, "convert", shapes_checkpoint, "--adapter", adapter, *out)
    assert "of different models" in err
    nowhere = {f"model.nowhere.lora_{letter}.weight": drawn(2, 2) for letter in "AB"}
    lost = write_adapter(tmp_path / "lost", nowhere)
    err = fails(capsys, "convert", base, "--adapter", lost, *out)
    assert "finds no `model.nowhere.weight` in the checkpoint" in err
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_no_checkpoint(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"edgevlm convert BASE --adapter {adapter}" in fails(capsys, "convert", adapter)


def test_an_adapter_of_the_hub(
    hub: HubServer,
    base: Path,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {path.name: path.read_bytes() for path in adapter.iterdir()}
    hub.repos["org/tuned"] = Repo(files={**files, "optimizer.pt": b"x", "README.md": b"x"})
    _, err = run(capsys, "convert", base, "--adapter", "org/tuned", "--level", "Q8_0")
    assert "of org/tuned" in err
    assert not any("optimizer" in one.path for one in hub.requests)
    source = manifest_of(tmp_path / "base-tuned").source.adapter
    assert source is not None
    assert (source.repo, source.revision) == ("org/tuned", COMMIT)
    local = ("--adapter", adapter, "--out", tmp_path / "local", "--level", "Q8_0")
    run(capsys, "convert", base, *local)
    pair = [tmp_path / name / "base-tuned-Q8_0.gguf" for name in ("base-tuned", "local")]
    assert sha256_file(pair[0]) == sha256_file(pair[1])
    # What is no adapter, or only a pickle, costs no download.
    hub.repos["org/base"] = Repo(files={"config.json": b"{}", "model.safetensors": b"x"})
    hub.repos["org/pickle"] = Repo(files={CONFIG: files[CONFIG], "adapter_model.bin": b"x"})
    hub.requests.clear()
    assert "is no adapter" in fails(capsys, "convert", base, "--adapter", "org/base")
    assert "only as a pickle" in fails(capsys, "convert", base, "--adapter", "org/pickle")
    assert len(hub.requests) == 2
    assert "--adapter org/tuned" in fails(capsys, "convert", "org/tuned")
