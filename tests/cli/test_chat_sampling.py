"""How an answer is sampled: what the command line says becomes SamplingParams, and is obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgevlm.cli.app import main
from edgevlm.cli.chat_options import asked_sampling, defaults_note, sampling_params
from edgevlm.runtime.sampling import SamplingParams

QUESTION = "What color is the cross?"


@pytest.fixture
def chat(capsys: pytest.CaptureFixture[str], shapes_dir: Path, shapes_assets: Path) -> Any:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        image = shapes_assets / "images" / "000.png"
        common = (image, "-m", shapes_dir, "--level", "F16", "-p", QUESTION, "--threads", "1")
        status = main(["chat", *map(str, (*common, *arguments))])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def asked(**values: Any) -> dict[str, object]:
    return asked_sampling(**{"grammar": None, "json_schema": None, "logit_bias": None, **values})


def test_the_flag_wins_then_the_file_then_greedy() -> None:
    defaults = {"temperature": 0.7, "top_k": 20}
    assert sampling_params(asked(), {}) == SamplingParams()
    from_file = sampling_params(asked(), defaults)
    assert (from_file.temperature, from_file.top_k) == (0.7, 20)
    flag = sampling_params(asked(temperature=0.2, top_p=0.5), defaults)
    assert (flag.temperature, flag.top_k, flag.top_p) == (0.2, 20, 0.5)
    assert sampling_params(asked(temperature=0.0), defaults).temperature == 0


def test_a_seed_is_drawn_only_where_there_is_chance() -> None:
    hot = asked(temperature=1.0)
    assert len({sampling_params(hot, {}).seed for _ in range(8)}) == 8
    assert sampling_params(asked(temperature=1.0, seed=5), {}).seed == 5
    assert sampling_params(asked(), {}).seed == 0


def test_what_the_file_says_is_said() -> None:
    note = defaults_note(asked(top_k=3), {"temperature": 0.7, "top_k": 20})
    assert note is not None
    assert "temperature 0.7" in note
    assert "top_k" not in note
    assert defaults_note(asked(temperature=0.0), {"temperature": 0.7}) is None
    assert defaults_note(asked(), {"top_k": 20}) is None


def test_every_flag_arrives(tmp_path: Path) -> None:
    grammar = tmp_path / "colour.gbnf"
    grammar.write_text('root ::= "red"')
    values = {
        "max_tokens": 9,
        "max_seconds": 2.5,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.8,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": 0.3,
        "dry_multiplier": 0.8,
        "seed": 4,
        "stop": ["a", "b"],
    }
    params = sampling_params(
        asked(**values, grammar=grammar, logit_bias=["5=-1.5", "7=2"]), {"top_k": 1}
    )
    expected = SamplingParams(
        **{**values, "stop": ("a", "b")},  # type: ignore[arg-type]
        grammar='root ::= "red"',
        logit_bias=((5, -1.5), (7, 2.0)),
    )
    assert params == expected


def test_stop(chat: Any) -> None:
    status, out, err = chat("--stop", "ac", "--stop", "never")
    assert (status, out) == (0, "bl\n")
    assert "; ended at a text given with --stop" in err


def test_grammar_and_schema(chat: Any, tmp_path: Path) -> None:
    grammar = tmp_path / "colour.gbnf"
    grammar.write_text('root ::= "red" | "green"')
    _, out, _ = chat("--grammar", grammar)
    assert out in ("red\n", "green\n")
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}},'
        ' "required": ["n"], "additionalProperties": false}'
    )
    _, out, _ = chat("--json-schema", schema, "--json", "--max-tokens", "200")
    document = json.loads(out)
    if document["stop_reason"] == "end":
        assert set(json.loads(document["answer"])) == {"n"}
    assert document["answer"].lstrip().startswith("{")


def test_logit_bias(chat: Any) -> None:
    _, out, _ = chat("--json")
    first = json.loads(out)["answer"]
    _, out, _ = chat("--logit-bias", "72=-1000", "--json")  # 72 begins "black"
    assert json.loads(out)["answer"] != first


def test_max_seconds(chat: Any) -> None:
    status, _, err = chat("--max-seconds", "0.000001")
    assert status == 0
    assert "; ended after --max-seconds 1e-06" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", "-1"), "temperature cannot be -1"),
        (("--top-k", "-1"), "top_k cannot be -1"),
        (("--top-p", "0"), "top_p cannot be 0"),
        (("--repeat-penalty", "0"), "repeat_penalty cannot be 0"),
        (("--max-seconds", "0"), "max_seconds cannot be 0"),
        (("--max-seconds", "nan"), "max_seconds cannot be nan"),
        (("--stop", ""), "stop cannot be"),
        (("--grammar", "missing.gbnf"), "cannot read `missing.gbnf`: No such file"),
        (("--grammar", "{empty}"), "is empty"),
        (("--json-schema", "{binary}"), "it is not UTF-8 text"),
        (("--grammar", "{large}"), "more than 1,000,000 bytes"),
        (("--grammar", "{good}", "--json-schema", "{good}"), "use one"),
        (("--grammar", "{broken}"), "grammar"),
        (("--logit-bias", "100000=1"), "100000"),
    ],
)
def test_bad_values(chat: Any, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    files = {
        "empty": b" \n",
        "binary": b"\xff\xfe\x00",
        "large": b"x" * 1_000_001,
        "good": b'root ::= "a"',
        "broken": b"root ::= (",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = {name: str(tmp_path / name) for name in files}
    status, out, err = chat(*(argument.format(**paths) for argument in arguments))
    assert (status, out) == (1, "")
    assert words in err
    assert "\nhint: " in err
    assert "Traceback" not in err


def test_a_chat_template_that_is_not_there(chat: Any) -> None:
    status, out, err = chat("--chat-template", "tool_use")
    assert (status, out) == (1, "")
    assert "tool_use" in err
    assert "default" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--logit-bias", "5"),
        ("--logit-bias", "a=1"),
        ("--think", "maybe"),
        ("--context-policy", "forget"),
        ("--max-pixels", "0"),
    ],
)
def test_bad_usage(chat: Any, arguments: tuple[str, ...]) -> None:
    status, out, err = chat(*arguments)
    assert (status, out) == (2, "")
    assert arguments[0] in err
