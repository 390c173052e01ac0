"""Grammars of libllama: what an answer may be, as GBNF or as a JSON schema."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from edgevlm.errors import PromptError
from edgevlm.native.gbnf import GBNF_HINT, check_grammar
from edgevlm.native.handle import owned
from edgevlm.native.library import because, complaints, load_library, load_module
from edgevlm.native.text_model import TextModel


class Grammar:
    """What an answer may be, at the place it has reached. Made by `open_grammar`."""

    def __init__(self, handle: int) -> None:
        self._c: Any = load_library().llama
        self._handle = handle

    def allows(self, token: int) -> bool:
        """Return whether `token` may come next."""
        c = self._c
        data = c.llama_token_data(id=token, logit=1.0, p=0.0)
        array = c.llama_token_data_array(
            data=ctypes.pointer(data), size=1, selected=-1, sorted=False
        )
        self.apply(array)
        return data.logit == 1.0

    def apply(self, array: Any) -> None:
        """Set the logits of all tokens that may not come next to minus infinity."""
        self._c.llama_sampler_apply(self._handle, ctypes.byref(array))

    def accept(self, token: int) -> None:
        """Go on by `token`, which the grammar allows and which ends nothing."""
        self._c.llama_sampler_accept(self._handle, token)


@contextmanager
def open_grammar(model: TextModel, text: str) -> Generator[Grammar]:
    """Make a grammar of GBNF text.

    Raises:
        PromptError: a wrong, left-recursive or too large grammar.
    """
    check_grammar(text)
    c: Any = load_library().llama
    with complaints() as lines:
        handle = c.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")

    def error() -> PromptError:
        return PromptError(f"llama.cpp cannot use the grammar{because(lines)}", hint=GBNF_HINT)

    with owned(handle, c.llama_sampler_free, error=error) as grammar:
        yield Grammar(grammar)


_MAX_SCHEMA_LENGTH = 100_000
_MAX_SCHEMA_DEPTH = 50
# Each repetition of an item is one more parenthesis in the converter's grammar.
_MAX_REPETITIONS = 500
_MAX_PATTERN_LENGTH = 500
_BOUNDS = ("minItems", "maxItems", "minLength", "maxLength")
_QUANTIFIER = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
_ESCAPES = {"\r": "\\r", "\n": "\\n", '"': '\\"', "\\": "\\\\"}
_ESCAPED = re.compile('[\r\n"\\\\]')
_SCHEMA_HINT = "see https://json-schema.org; or write a grammar and use `--grammar`"


def json_schema_grammar(schema: str) -> str:
    """Return the GBNF of a JSON schema, by llama-cpp-python's own converter.

    Args:
        schema: JSON text. References must lead into the same schema, lengths and counts be at
            most 500.

    Raises:
        PromptError: no JSON, or a schema that cannot be converted.
    """
    if len(schema) > _MAX_SCHEMA_LENGTH:
        raise _bad_schema(f"it is longer than {_MAX_SCHEMA_LENGTH:,} characters")
    try:
        value = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise _bad_schema(f"it is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise _bad_schema("it is no JSON object")
    schema_object = cast(dict[str, object], value)
    targets: dict[str, object] = {}
    _check_schema(schema_object, schema_object, targets, 0)
    module: Any = load_module("llama_cpp.llama_grammar")

    class Converter(module.SchemaConverter):
        # The original leaves a backslash as it is, so that a quoted quote ends the literal.
        def _format_literal(self, literal: str) -> str:
            return '"' + _ESCAPED.sub(lambda found: _ESCAPES[found[0]], literal) + '"'

    converter: Any = Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    try:
        # Its own `resolve_refs` overlooks what stands beside or behind a reference.
        converter._refs = targets
        converter.visit(schema_object, "")
        grammar: str = converter.format_grammar()
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        NotImplementedError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        # Whatever the converter stumbles over is written in the schema.
        raise _bad_schema(f"it cannot be converted: {str(error)[:200]}") from None
    return grammar


def _check_schema(
    value: object, root: dict[str, object], targets: dict[str, object], depth: int
) -> None:
    """Refuse what would make the converter fetch, recurse or multiply without a bound.

    Args:
        value: a part of the schema.
        root: the whole schema, where references lead.
        targets: filled by reference.
        depth: of `value`.
    """
    if depth > _MAX_SCHEMA_DEPTH:
        raise _bad_schema(f"it is nested more than {_MAX_SCHEMA_DEPTH} deep")
    if isinstance(value, list):
        for item in cast(list[object], value):
            _check_schema(item, root, targets, depth + 1)
    if not isinstance(value, dict):
        return
    for key, item in cast(dict[str, object], value).items():
        if key == "$ref":
            target = _target(item if isinstance(item, str) else str(item), root)
            if item == "#":  # the converter names rules after the last step of a reference
                item = cast(dict[str, object], value)[key] = "#/whole-schema"
            targets[str(item)] = target
        if key in _BOUNDS and isinstance(item, int) and not 0 <= item <= _MAX_REPETITIONS:
            raise _bad_schema(f"`{key}` {item} is not 0 to {_MAX_REPETITIONS}")
        if key == "pattern" and isinstance(item, str):
            _check_pattern(item)
        _check_schema(item, root, targets, depth + 1)


def _target(reference: str, root: dict[str, object]) -> object:
    """Return what a reference such as `#/$defs/color` leads to (RFC 6901)."""
    if reference != "#" and not reference.startswith("#/"):
        raise _bad_schema(f"`$ref` {reference[:60]!r} leads out of it")
    target: object = root
    for step in reference.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and name in target:
            target = cast(dict[str, object], target)[name]
            continue
        items = cast(list[object], target) if isinstance(target, list) else []
        if not (name.isdecimal() and len(name) < 9 and int(name) < len(items)):
            raise _bad_schema(f"`$ref` {reference[:60]!r} leads nowhere")
        target = items[int(name)]
    return target


def _check_pattern(pattern: str) -> None:
    product = 1
    for low, high in _QUANTIFIER.findall(pattern[: _MAX_PATTERN_LENGTH + 1]):
        product *= max(int(low[:9] or 0), int(high[:9] or 0), 1)
    if len(pattern) > _MAX_PATTERN_LENGTH or product > _MAX_REPETITIONS:
        raise _bad_schema(f"the pattern {pattern[:40]!r} is too long, or repeats too much")


def _bad_schema(what: str) -> PromptError:
    return PromptError(f"the JSON schema cannot be used: {what}", hint=_SCHEMA_HINT)
