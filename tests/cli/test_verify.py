"""`edgevlm verify` and `edgevlm reference` as a user types them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm.build.convert import convert_model
from edgevlm.cli.app import main
from edgevlm.manifest import read_manifest
from edgevlm.reference_file import Reference, read_reference, write_reference
from edgevlm.verify.logits import TEXT_LOGITS
from edgevlm.verify.self_check import LEDGER, SIGHT, TOKENIZER
from edgevlm.verify.tokens import TOKENS
from tests.cli.test_errors import fails
from tests.goldens.files import GOLDENS, drawn_image, redraw

REFERENCE = str(GOLDENS / "qwen3_vl" / "reference.npz")
OTHER = str(GOLDENS / "gemma3" / "reference.npz")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw("qwen3_vl", tmp_path_factory.mktemp("verify") / "checkpoint")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("48x64-1", "48x64-2", "80x32-3"):
        Image.fromarray(drawn_image(name)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    convert_model(checkpoint, out=folder, name="m", outtype="f32")
    return folder


@pytest.fixture
def model(converted: Path, tmp_path: Path) -> Path:
    """A copy whose manifest may change; times are kept."""
    return shutil.copytree(converted, tmp_path / "m", copy_function=shutil.copy2)


def run(
    capsys: pytest.CaptureFixture[str], *arguments: str | Path, status: int = 0
) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["verify", *map(str, arguments)]) == status
    captured = capsys.readouterr()
    return captured.out, captured.err


def kept(model: Path) -> dict[str, object]:
    manifest = read_manifest(model)
    assert manifest is not None
    return manifest.verify


def test_a_reference_passes_and_the_verdict_is_kept(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, model, "--against", REFERENCE, "--images", images)
    for word in ("tokenization", "preprocessed pixels", "vision embeddings", "same top token"):
        assert word in out
    assert "pass: m-F32.gguf and mmproj-m-F32.gguf against" in err
    verdict = kept(model)["m-F32.gguf"]
    assert isinstance(verdict, dict)
    assert verdict["verdict"] == "pass"
    # Once more: in place of the first, and the model is still loaded without complaint.
    run(capsys, model, "--quiet")
    again = kept(model)["m-F32.gguf"]
    assert isinstance(again, dict)
    assert again["against"] == ""


def test_without_a_reference(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = run(capsys, model, "--json")
    assert err == ""
    document = json.loads(out)
    found = {stage["name"]: stage["status"] for stage in document["stages"]}
    assert found == {TOKENIZER: "pass", LEDGER: "pass", SIGHT: "pass"}
    assert document["verdict"] == "pass"


def test_without_the_checkpoint_the_record_counts(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(checkpoint, tmp_path / "source")
    convert_model(source, out=tmp_path / "m", name="m", outtype="f32")
    (source / "tokenizer.json").write_text("{}", encoding="utf-8")
    out, _ = run(capsys, tmp_path / "m")
    assert "at conversion, " in out
    (tmp_path / "m" / "m-F32.gguf").touch()
    out, _ = run(capsys, tmp_path / "m", "--json")
    proof = json.loads(out)["stages"][0]
    assert (proof["name"], proof["status"]) == (TOKENIZER, "not checked")


def test_files_without_a_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "edgevlm.json").unlink()
    out, err = run(capsys, model / "m-F32.gguf", "--mmproj", model / "mmproj-m-F32.gguf")
    assert "there is no manifest beside the files" in out
    assert "no manifest that could keep the verdict" in err


def test_a_failure_leaves_with_3(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(REFERENCE) as stored:
        arrays = dict(stored)
    key = "case0.top_logprobs"
    arrays[key] = np.roll(arrays[key], 1, axis=1)
    np.savez_compressed(tmp_path / "other.npz", **arrays)  # pyright: ignore[reportArgumentType]
    arguments = (model, "--against", tmp_path / "other.npz", "--images", images)
    out, _ = run(capsys, *arguments, "--json", status=3)
    document = json.loads(out)
    found = {stage["name"]: stage for stage in document["stages"]}
    assert document["verdict"] == found[TEXT_LOGITS]["status"] == "fail"
    assert "text model" in found[TEXT_LOGITS]["cause"]
    _, err = run(capsys, *arguments, status=3)
    assert f"{TEXT_LOGITS}: " in err
    assert "fail: m-F32.gguf" in err


def test_a_tensor_that_is_missing_fails(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "edgevlm.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["ledger"]["used"]["extra.weight"] = ["blk.9.extra.weight"]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    out, err = run(capsys, model, status=3)
    assert "blk.9.extra.weight" in out
    assert "of another conversion" in err


def test_images_that_are_not_given(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = run(capsys, model, "--against", REFERENCE)
    assert "3 prompts of the reference were left out" in err
    _, err = run(capsys, model, "--against", REFERENCE, "--image", images / "48x64-1.png")
    assert "2 prompts of the reference were left out" in err


def test_a_reference_of_another_model(
    model: Path, shapes_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a vocabulary as large: other tokens. Of a larger one: refused."""
    out, _ = run(capsys, model, "--against", OTHER, status=3)
    assert TOKENS in out
    reference = read_reference(Path(REFERENCE))
    for ids in (case.top_ids for case in reference.cases):
        ids[0, -1] = 100_000
    write_reference(tmp_path / "large.npz", reference)
    fails(
        capsys,
        *("verify", str(shapes_dir), "--against", str(tmp_path / "large.npz")),
        words=("100000", "of another model"),
    )


def test_wrong_paths(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(capsys, "verify", str(tmp_path / "nowhere"), words=("nowhere",))
    missing = str(tmp_path / "nowhere.npz")
    fails(capsys, "verify", str(model), "--against", missing, words=("there is no file",))
    fails(capsys, "verify", str(model), "--image", missing, words=("nowhere.npz",))
    (tmp_path / "empty").mkdir()
    fails(capsys, "verify", str(model), "--image", str(tmp_path / "empty"), words=("no image",))
    (tmp_path / "broken.npz").write_bytes(Path(REFERENCE).read_bytes()[:5000])
    fails(
        capsys,
        *("verify", str(model), "--against", str(tmp_path / "broken.npz")),
        words=("is no reference file", "edgevlm reference"),
    )


def test_what_a_hostile_reference_says_is_harmless(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(REFERENCE) as stored:
        arrays = dict(stored)
    described = json.loads(str(arrays["cases"]))
    described[0]["name"] = "\x1b[2J[red]x[/red]"
    arrays["cases"] = np.asarray(json.dumps(described))
    arrays["case0.input_ids"] = np.full(40, 2**31 - 1, dtype=np.int32)
    np.savez_compressed(tmp_path / "hostile.npz", **arrays)  # pyright: ignore[reportArgumentType]
    out, _ = run(capsys, model, "--against", tmp_path / "hostile.npz", "--images", images, status=3)
    assert "\x1b" not in out
    assert "[red]x[/red]" in out


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.usefixtures("no_torch")
def test_without_transformers_there_is_a_hint(
    model: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ref.npz"
    words = ("pip install 'edgevlm[verify]'",)
    fails(capsys, "reference", str(checkpoint), "--out", str(out), words=words)
    fails(capsys, "verify", str(model), "--against", str(checkpoint), words=words)
    assert not out.exists()


def test_a_reference_is_written_whole_or_not_at_all(
    tmp_path: Path,
    images: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = read_reference(Path(REFERENCE))

    def make(*_: object, **__: object) -> Reference:
        return made

    monkeypatch.setattr("edgevlm.verify.transformers_model.make_reference", make)
    folder = tmp_path / "out"
    arguments = ["reference", "CHECKPOINT", "--images", str(images)]
    arguments += ["--out", str(folder / "ref.npz")]

    def interrupted(path: Path, _: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("edgevlm.reference_file.write_reference", interrupted)
        assert main(arguments) == 130
    assert not folder.exists()
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["prompts"] == [case.name for case in made.cases]
    assert document["positions"] == 64
    assert [one.name for one in folder.iterdir()] == ["ref.npz"]
    fails(capsys, *arguments, words=("exists", "--force"))
    assert main([*arguments, "--force", "--quiet"]) == 0


def test_help_says_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "--help"]) == 0
    assert "edgevlm[verify]" in capsys.readouterr().out


def convert(checkpoint: Path, folder: Path, *arguments: str | Path) -> int:
    options = ["--out", str(folder), "--name", "m", *map(str, arguments)]
    return main(["convert", str(checkpoint), *options])


def test_convert_verifies_what_it_wrote(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(checkpoint, tmp_path / "m", "--verify") == 0
    captured = capsys.readouterr()
    for word in ("mmproj-m-BF16.gguf", TOKENIZER, LEDGER, SIGHT):
        assert word in captured.out
    assert "pass: m-BF16.gguf and mmproj-m-BF16.gguf" in captured.err
    assert captured.err.rstrip().endswith(f"edgevlm chat IMAGE -m {tmp_path / 'm'}")
    assert list(kept(tmp_path / "m")) == ["m-BF16.gguf"]
    # A level whose projector is there already is verified with it.
    assert convert(checkpoint, tmp_path / "m", "--level", "Q8_0", "--verify", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verify"]["verdict"] == "pass"
    assert document["verify"]["mmproj_file"] == "mmproj-m-Q8_0.gguf"
    assert sorted(kept(tmp_path / "m")) == ["m-BF16.gguf", "m-Q8_0.gguf"]
    # Of a file that is written anew nothing is known.
    assert convert(checkpoint, tmp_path / "m", "--level", "Q8_0", "--force", "--quiet") == 0
    assert list(kept(tmp_path / "m")) == ["m-BF16.gguf"]


def test_convert_against_a_reference(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--outtype", "f32", "--images", images, "--json")
    assert convert(checkpoint, tmp_path / "m", *options, "--against", REFERENCE) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["verify"]["stages"]) == 8
    assert convert(checkpoint, tmp_path / "o", *options, "--against", OTHER) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["verify"]["verdict"] == "fail"
    assert (tmp_path / "o" / "m-F32.gguf").exists()


def test_convert_says_nothing_of_verification_unasked(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(checkpoint, tmp_path / "m", "--json") == 0
    assert "verify" not in json.loads(capsys.readouterr().out)
