from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from edgevlm.cli.app import main
from edgevlm.drift.front_matter import front_matter, scalar
from edgevlm.drift.report import DriftReport
from tests.drift.made_report import LONG_WORD, NASTY_MODEL, RTL, made_report

GFM = MarkdownIt("commonmark").enable("table")


@pytest.fixture
def model(shapes_dir: Path, tmp_path: Path) -> Path:
    """A copy of the built-in model's directory, which the manifest still knows."""
    return Path(shutil.copytree(shapes_dir, tmp_path / "shapes"))


def head_of(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    head, _, _ = text.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(head)


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "edgevlm.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def report_of_shapes(**more: Any) -> DriftReport:
    report = made_report(model="shapes", levels=("F16", "Q8_0", "Q5_K_M", "Q4_K_M"), **more)
    levels = [
        level.model_copy(update={"text_file": f"shapes-{level.level}.gguf"})
        for level in report.levels
    ]
    return report.model_copy(update={"levels": levels})


def test_a_card(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(model)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"wrote {model / 'README.md'}" in shown.err
    assert head_of(model) == {
        "library_name": "gguf",
        "pipeline_tag": "image-text-to-text",
        "tags": ["gguf", "llama.cpp", "edgevlm", "qwen3_vl"],
    }
    text = (model / "README.md").read_text(encoding="utf-8")
    digest = next(
        entry["sha256"][:12]
        for entry in json.loads((model / "edgevlm.json").read_text())["files"]
        if entry["name"] == "shapes-Q4_K_M.gguf"
    )
    row = next(line for line in text.splitlines() if line.startswith("| shapes-Q4_K_M.gguf"))
    assert re.fullmatch(
        rf"\| shapes-Q4_K_M.gguf \| Q4_K_M \| 2.0 MB \| 4.88 \| mmproj-shapes-Q8_0.gguf \| {digest}"
        r" \|",
        row,
    )
    assert "| shapes-F16.gguf | F16 | 6.5 MB | 16.01 | mmproj-shapes-F16.gguf |" in text
    assert "Not measured yet. `edgevlm compare`" in text
    both = "shapes-Q4_K_M.gguf --mmproj mmproj-shapes-Q8_0.gguf"
    assert f'llama-mtmd-cli -m {both} --image photo.jpg -p "Describe the image."' in text
    assert f"llama-server -m {both}\n" in text
    assert "```\nFROM ./shapes-Q4_K_M.gguf\nFROM ./mmproj-shapes-Q8_0.gguf\n```" in text
    assert "edgevlm chat photo.jpg -m . --level Q4_K_M" in text
    assert [path.name for path in model.glob(".*")] == []


def test_a_card_that_is_there_stays(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "README.md").write_text("mine")
    assert main(["card", str(model)]) == 1
    shown = capsys.readouterr().err
    assert "exists already" in shown
    assert "hint: give --force" in shown
    assert (model / "README.md").read_text() == "mine"
    assert main(["card", str(model), "--force", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert (model / "README.md").read_text().startswith("---\n")


def test_the_drift_of_a_report(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report_of_shapes().model_dump_json())
    assert main(["card", str(model), "--report", str(path)]) == 0
    text = (model / "README.md").read_text(encoding="utf-8")
    assert "| Q4_K_M | " in text
    assert "All 3 levels stay within their limits." in text
    assert GFM.render(text).count("<table>") == 2


def test_the_drift_that_the_manifest_keeps(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(report_of_shapes().model_dump_json())
    change(model, lambda manifest: manifest["drift"].update(compare=document))
    assert main(["card", str(model)]) == 0
    assert "All 3 levels stay" in (model / "README.md").read_text(encoding="utf-8")
    change(model, lambda manifest: manifest["drift"]["compare"].update(schema_version=99))
    assert main(["card", str(model), "--force"]) == 0
    assert "of another version" in capsys.readouterr().err
    assert "Not measured yet" in (model / "README.md").read_text(encoding="utf-8")


def test_the_examples_take_the_smallest_level_within_limits(model: Path, tmp_path: Path) -> None:
    report = report_of_shapes()
    levels = list(report.levels)
    beyond = levels[3].verdict.model_copy(update={"within": False, "breaches": ["too much"]})
    levels[3] = levels[3].model_copy(update={"verdict": beyond})
    path = tmp_path / "report.json"
    path.write_text(report.model_copy(update={"levels": levels}).model_dump_json())
    assert main(["card", str(model), "--report", str(path)]) == 0
    text = (model / "README.md").read_text(encoding="utf-8")
    assert "llama-server -m shapes-Q5_K_M.gguf " in text


def test_a_report_of_another_model_is_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(made_report().model_dump_json())
    assert main(["card", str(model), "--report", str(path)]) == 0
    assert "none of its files is in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read"),
        ("{", "is no drift report"),
        ('{"schema_version": 7}', "this edgevlm reads version 1"),
        ("[]", "is no drift report"),
    ],
)
def test_a_bad_report(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    expected: str,
) -> None:
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    assert main(["card", str(model), "--report", str(path)]) == 1
    shown = capsys.readouterr().err
    assert expected in shown
    assert "hint: give what `edgevlm compare --json` printed" in shown
    assert not (model / "README.md").exists()


def test_where_the_model_comes_from(model: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "README.md").write_text(
        "---\nlicense: other\nlicense_name: 'my-own'\ntags:\n- license: x\n---\nlicense: mit\n"
    )
    source = {"repo": "Qwen/Qwen3-VL-2B-Instruct", "revision": "0123456789abcdef"}
    change(model, lambda manifest: manifest["source"].update(source, path=str(checkpoint)))
    change(model, lambda manifest: manifest.update(losses=["<b>rounded</b> norms"]))
    assert main(["card", str(model)]) == 0
    head = head_of(model)
    assert head["base_model"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert head["base_model_relation"] == "quantized"
    assert (head["license"], head["license_name"]) == ("other", "my-own")
    text = (model / "README.md").read_text(encoding="utf-8")
    assert "of Qwen/Qwen3-VL-2B-Instruct, revision 0123456789ab, converted with edgevlm" in text
    assert "- \\<b\\>rounded\\</b\\> norms" in text
    adapter = {"repo": "me/lora", "path": None, "revision": None}
    change(model, lambda manifest: manifest["source"].update(adapter=adapter))
    assert main(["card", str(model), "--force"]) == 0
    assert head_of(model)["base_model"] == ["Qwen/Qwen3-VL-2B-Instruct", "me/lora"]


def test_without_a_manifest_and_under_strange_names(shapes_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a: [b] {c} <d>"
    folder.mkdir()
    shutil.copy(shapes_dir / "shapes-Q4_K_M.gguf", folder / "it's | `mine`.gguf")
    shutil.copy(shapes_dir / "mmproj-shapes-Q8_0.gguf", folder / "-p; rm -rf.gguf")
    assert main(["card", str(folder)]) == 0
    assert head_of(folder)["tags"] == ["gguf", "llama.cpp", "edgevlm", "qwen3vl"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    page = GFM.render(text.partition("\n---\n")[2])
    assert "<h1>a: [b] {c} &lt;d&gt;</h1>" in page
    assert "<td>it's | `mine`.gguf</td>" in page
    assert page.count("<tr>") == 3
    assert "llama-server -m 'it'\"'\"'s | `mine`.gguf' --mmproj './-p; rm -rf.gguf'" in text
    assert "FROM ./-p; rm -rf.gguf\n" in text
    assert "ollama run a-b-c-d\n" in text


def test_a_split_model_is_joined_for_ollama(shapes_dir: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    from edgevlm.build.resolve import built_in_checkpoint

    shutil.copytree(built_in_checkpoint(), checkpoint)
    out = tmp_path / "split"
    words = ["convert", str(checkpoint), "--out", str(out), "--name", "shop", "--quiet"]
    assert main([*words, "--outtype", "f16", "--split-max-size", "3M"]) == 0
    assert main(["card", str(out)]) == 0
    text = (out / "README.md").read_text(encoding="utf-8")
    first = next(path.name for path in out.glob("shop-F16-00001-of-*.gguf"))
    assert re.search(rf"\| {first} \(\d files\) \| F16 \|", text)
    assert f"llama-gguf-split --merge {first} shop-F16.gguf" in text
    assert "FROM ./shop-F16.gguf\n" in text
    assert "00002-of" not in text


def test_what_is_no_model_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(tmp_path)]) == 1
    assert "holds no GGUF file" in capsys.readouterr().err
    assert main(["card", "org/name"]) == 1
    assert "no model `org/name`" in capsys.readouterr().err


def test_the_hubs_own_cache_is_left_alone(
    shapes_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "models--me--shop" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    shutil.copy(shapes_dir / "shapes-Q4_K_M.gguf", folder)
    assert main(["card", str(folder)]) == 1
    assert "belongs to the Hub's cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "mit",
        "no",
        "Yes",
        "1.0",
        "null",
        "~",
        "a: b # c",
        "- x",
        "'\"\\n",
        "{a}",
        "*x &y !z %w @v `u",
        "\u2028 \x85 \ufeff \uffff 👩\u200d🚀",
        NASTY_MODEL,
        RTL,
        LONG_WORD,
        "",
    ],
)
def test_every_scalar_reads_back(text: str) -> None:
    head = front_matter({"a": [text], "b": "x"})
    found = yaml.safe_load(head.removesuffix("---\n"))
    assert yaml.safe_load(scalar(text)) == found["a"][0]
    assert found["b"] == "x"
    plain = text.isprintable() and text == " ".join(text.split())
    if plain:
        assert found["a"][0] == text
