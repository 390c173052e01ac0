from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgevlm.cli.app import main
from edgevlm.gguf_file import GGUFValue

HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]x[/red] \u202e\x9b\n\ttail"


def _write(path: Path, *, name: str = "tiny", n_tokens: int = 40) -> None:
    writer = gguf.GGUFWriter(path, "qwen3vl")
    writer.add_name(name)
    writer.add_file_type(7)
    writer.add_float32("qwen3vl.rope.freq_base", float("inf"))
    writer.add_array("qwen3vl.rope.dimension_sections", [8, 8, 8, 0])
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(n_tokens)])
    writer.add_array("tokenizer.ggml.merges", [f"a{i} b{i}" for i in range(2 * n_tokens)])
    writer.add_chat_template("{% for message in messages %}\n{{ message }}\n{% endfor %}" * 20)
    writer.add_tensor("norm.weight", np.ones(32, np.float32))
    writer.add_tensor(
        "blk.0.ffn_up.weight",
        np.zeros((4, 34), np.uint8),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_shows_types_bits_and_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "m.gguf")
    assert main(["inspect", str(tmp_path / "m.gguf")]) == 0
    out = capsys.readouterr().out
    # 32 weights of 4 bytes, 128 weights in 4 blocks of 34 bytes.
    assert f"{8 * (128 + 136) / 160:.3f}" in out
    for expected in ("qwen3vl", "tiny", "Q8_0", "51.5 %", "[8, 8, 8, 0]", "40 items"):
        assert expected in out
    assert "ffn_up" not in out


def test_lists_tensors_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "m.gguf")
    assert main(["inspect", str(tmp_path / "m.gguf"), "--tensors"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "ffn_up" in x)
    assert line.split() == ["blk.0.ffn_up.weight", "4", "x", "32", "Q8_0", "136"]


def test_json_is_one_document_with_long_arrays_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "m.gguf", n_tokens=1000)
    assert main(["inspect", str(tmp_path / "m.gguf"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bits_per_weight"] == 8 * (128 + 136) / 160
    assert document["tensor_types"] == {
        "Q8_0": {"n_tensors": 1, "n_bytes": 136},
        "F32": {"n_tensors": 1, "n_bytes": 128},
    }
    assert document["metadata"]["tokenizer.ggml.tokens"]["n_items"] == 1000
    assert len(document["metadata"]["tokenizer.ggml.tokens"]["first_items"]) < 100
    assert document["metadata"]["qwen3vl.rope.freq_base"]["value"] is None
    assert [tensor["name"] for tensor in document["tensors"]] == [
        "norm.weight",
        "blk.0.ffn_up.weight",
    ]


@pytest.mark.parametrize("options", [[], ["--tensors"]])
def test_hostile_text_reaches_the_terminal_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    _write(tmp_path / "m.gguf", name=HOSTILE)
    assert main(["inspect", str(tmp_path / "m.gguf"), *options]) == 0
    out = capsys.readouterr().out
    assert "[red]x[/red]" in out
    assert all(character.isprintable() or character == "\n" for character in out)
    assert not any(line.startswith("\ttail") for line in out.splitlines())


def test_text_that_is_not_utf8_does_not_break_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _write(tmp_path / "m.gguf", name="XXXXXXXX")
    data = (tmp_path / "m.gguf").read_bytes().replace(b"XXXXXXXX", b"\xff\xfe\x80abcde")
    (tmp_path / "m.gguf").write_bytes(data)
    assert main(["inspect", str(tmp_path / "m.gguf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"].endswith("abcde")


def test_what_is_no_gguf_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "m.gguf")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:200])
    (tmp_path / "random.gguf").write_bytes(np.random.default_rng(5).bytes(4096))
    (tmp_path / "empty").mkdir()
    for name in ("cut.gguf", "random.gguf", "missing.gguf", "empty"):
        assert main(["inspect", str(tmp_path / name)]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert "\nhint: " in captured.err


def test_long_arrays_are_not_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes a vocabulary of 150,000 tokens fast; benchmarks/startup.py has the seconds."""
    _write(tmp_path / "m.gguf", n_tokens=5000)
    decoded: list[int] = []
    real = GGUFValue.head

    def head(self: GGUFValue, n: int) -> object:
        items = real(self, n)
        decoded.append(len(items))
        return items

    monkeypatch.setattr(GGUFValue, "head", head)
    assert main(["inspect", str(tmp_path / "m.gguf")]) == 0
    assert "5,000 items" in capsys.readouterr().out
    assert 0 < max(decoded) < 50
