"""Grammars: what libllama reads is let through, what would end or hang the process is not."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from edgevlm.errors import PromptError
from edgevlm.native.gbnf import MAX_NESTING, MAX_RULES, check_grammar
from edgevlm.native.grammar import json_schema_grammar, open_grammar
from edgevlm.native.text_model import TextModel

CHAIN = "\n".join(["root ::= r0", *(f"r{n} ::= r{n + 1}" for n in range(9000)), 'r9000 ::= "x"'])
FORK = "\n".join(
    ["root ::= r0", *(f"r{n} ::= r{n + 1} | r{n + 1}" for n in range(60)), 'r60 ::= "x"']
)
GOOD = [
    'root ::= "yes" | "no"',
    'root ::= ("a" | "b")* [0-9]+ "."? item{2,3}\nitem ::= "\\n" [^\\x00-\\x1F"\\\\]',
    'root ::= a |\n  b # said\na ::= "1"{3}\nb ::= (\n"2"\n){1,} .',
    'root ::= list\nlist ::= "[" (list ("," list)*)? "]"',
    'root ::= "" "x"',
    "root ::= [-a] [a-] [\\]] [\\[]",
    'root   ::=   "\\u00e9" "é" "\\""   ',
    'root ::= "((((" "))))"',
    "root ::= " + "(" * MAX_NESTING + '"x"' + ")" * MAX_NESTING,
    "root ::= " + "(" * 400 + '"x"' + ")?" * 400,
    'root ::= "x"{0,2000}',
    "root ::= <[5]> !<[5]>",
    CHAIN,
    '\n# a comment first\nroot ::= "x"\r\nother ::= "y"\r\n',
]


@pytest.mark.parametrize("text", GOOD, ids=lambda text: text[:30])
def test_what_libllama_reads(text_model: TextModel, text: str, capfd: Any) -> None:
    with open_grammar(text_model, text):
        pass
    assert capfd.readouterr().err == ""  # libllama prints a grammar that it cannot parse


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rule 'root'"),
        ('other ::= "x"', "no rule 'root'"),
        ("root", "`::=` is due"),
        ('root = "x"', "`::=` is due"),
        ('root ::= "x', "never ends"),
        ("root ::= [a", "never ends"),
        ('root ::= "\\q"', "unknown escape"),
        ("root ::= missing", "no rule 'missing'"),
        ('root ::= ("x"', "`)` is due"),
        ('root ::= "x")', "new line is due"),
        ("root ::= *", "nothing stands before"),
        ('root ::= ""*', "nothing stands before"),
        ('root ::= "x"{', "a repetition such as"),
        ('root ::= "x"{3,1}', "below its lower"),
        ('root ::= "x"{9999}', "repetitions"),
        ('root ::= ("x"{0,1000}){1000}', "repetitions"),
        ('root ::= "a"\n"b"', "name of a rule is due"),
        ("root ::= root", "left-recursive"),
        ('root ::= a\na ::= b "x"\nb ::= a | "y"', "left-recursive"),
        ('root ::= a root | "x"\na ::= b\nb ::= ""', "left-recursive"),
        ('root ::= ("x"*)*', "left-recursive"),
        ("root ::= \0", "no text"),
        ("root ::= " + "(" * 200_000 + '"x"' + ")" * 200_000, "open parentheses"),
        ("root ::= " + "(" * 200_000, "open parentheses"),
        ("root ::= " + "x" * 600_000, "too large"),
        ("root ::= " + '("x"){0,1900} ' * 10, f"more than {MAX_RULES:,} rules"),
        ("root ::= " + '"x"{1900} ' * 100, "unroll to too much"),
        (FORK, "too ambiguous"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_refused(text: str, words: str) -> None:
    started = time.monotonic()
    with pytest.raises(PromptError, match=words.replace("(", "\\(").replace(")", "\\)")) as caught:
        check_grammar(text)
    assert caught.value.hint
    assert len(caught.value.message) < 300
    assert time.monotonic() - started < 20  # generous; without the check the last ones take hours


SCHEMAS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "boolean"}, ["true", "false"], ["yes", '"true"']),
    ({"type": "integer"}, ["0", "-12"], ["1.5", "x"]),
    ({"enum": ['say "hi"', "back\\slash", "line\nbreak", 3, None]}, [], ["hi", '"hi"']),
    (
        {
            "type": "object",
            "properties": {"color": {"enum": ["red", "blue"]}, "n": {"type": "integer"}},
            "required": ["color", "n"],
            "additionalProperties": False,
        },
        ['{ "color": "red", "n": 3}', '{"color":"blue","n":0}'],
        ['{ "color": "green", "n": 3}', '{ "n": 3}'],
    ),
    (
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        ["[]", "[true, false]"],
        ["[1]"],
    ),
    (
        {"properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
        ["{}", '{ "next": { "next": {}}}'],
        ['{ "next": 1}'],
    ),
    ({"type": "string", "maxLength": 500}, ['"ab\\n"'], ["ab"]),
    ({"type": "string", "pattern": "^[a-c]{2,3}$"}, ['"abc"'], ['"abcd"', '"a"']),
    (
        {
            "$ref": "#/$defs/tree",
            "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
        },
        ["[[], [[]]]"],
        ["[1]"],
    ),
]


def follows(model: TextModel, grammar: str, text: str) -> bool:
    with open_grammar(model, grammar) as opened:
        for token in model.tokenize(text, parse_special=False):
            if not opened.allows(token):
                return False
            opened.accept(token)
        end = next(token for token in range(model.n_vocab) if model.is_end(token))
        return opened.allows(end)


@pytest.mark.parametrize(("schema", "good", "bad"), SCHEMAS, ids=lambda value: str(value)[:30])
def test_schemas(text_model: TextModel, schema: Any, good: list[str], bad: list[str]) -> None:
    grammar = json_schema_grammar(json.dumps(schema))
    if "enum" in schema:
        good = [json.dumps(value) for value in schema["enum"]]
    for text in good:
        assert follows(text_model, grammar, text), text
    for text in bad:
        assert not follows(text_model, grammar, text), text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("3", "no JSON object"),
        ('{"type": "unheard-of"}', "cannot be converted"),
        ('{"$ref": "https://example.org/schema.json"}', "leads out of it"),
        ('{"$ref": "file:///etc/passwd"}', "leads out of it"),
        ('{"$ref": "#/nowhere"}', "leads nowhere"),
        ('{"$ref": "#/a", "a": {"$ref": "#/a"}}', "left-recursive"),
        ('{"$ref": "#"}', "left-recursive"),
        ('{"$ref": 3}', "leads out of it"),
        ('{"type": "array", "items": {"type": "null"}, "minItems": 1000000000}', "minItems"),
        ('{"type": "string", "maxLength": 1000000000}', "maxLength"),
        ('{"type": "string", "pattern": "^((a{99}){99}){99}$"}', "repeats too much"),
        (json.dumps({"enum": ["x" * 200_000]}), "longer than"),
        ('{"allOf":[' * 60 + "{}" + "]}" * 60, "nested more than"),
        ('{"type": "object", "properties": 7}', "cannot be converted"),
    ],
    ids=lambda value: value[:40],
)
def test_schemas_that_are_refused(schema: str, words: str) -> None:
    with pytest.raises(PromptError, match=words) as caught:
        check_grammar(json_schema_grammar(schema))
    assert caught.value.hint
