"""Recognise a pre-tokenizer by its structure, never by the hash of what it does.

llama.cpp implements each pre-tokenizer in C++ under a name; a file says which. What tokenizer.json
holds is turned into the regular expressions that its steps split at, one after another, and these
are looked up in the table of what llama.cpp implements.
"""

from __future__ import annotations

import difflib
import re

from edgevlm.errors import ConversionError
from edgevlm_convert.json_file import quoted
from edgevlm_convert.vocabulary.pre_tokenizer_table import (
    BY_NAME,
    CONTRACTION,
    DIGIT,
    DIGITS,
    GPT2,
    TABLE,
    PreTokenizer,
)
from edgevlm_convert.vocabulary.structure import describe, fields_of, shown, steps_of

# Other spellings of one expression, as files have them.
_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("\t", r"\t"),
    ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", CONTRACTION),
    ("(?i:'s|'t|'re|'ve|'m|'d|'ll)", CONTRACTION),
    (r"\p{N}{1}", r"\p{N}"),
    (r"[\p{L}]", r"\p{L}"),
    (r"\p{N}{1,}", r"\p{N}+"),
)


def choose_pre_tokenizer(
    node: object, *, ignore_merges: bool, name: str | None = None
) -> PreTokenizer:
    """Return llama.cpp's implementation of a pre-tokenizer.

    Args:
        node: `pre_tokenizer` of tokenizer.json.
        ignore_merges: the model's option of this name.
        name: the one that a user chose, whatever the structure says.

    Raises:
        ConversionError: a name or a structure that is not known; the message shows the structure,
            the hint the nearest known one.
    """
    if name is not None:
        if name not in BY_NAME:
            close = difflib.get_close_matches(name, BY_NAME, n=3, cutoff=0.3)
            raise ConversionError(
                f"llama.cpp has no pre-tokenizer {quoted(name)}",
                hint=f"names close to it: {', '.join(close or list(BY_NAME)[:3])}",
            )
        return BY_NAME[name]
    expressions = _expressions(node)
    for known in TABLE if expressions else ():
        if (known.expressions, known.ignore_merges) == (expressions, ignore_merges):
            return known
    raise _unknown(node, expressions, ignore_merges)


def canonical(expression: str) -> str:
    """Return an expression as the table spells it."""
    for found, meant in _SPELLINGS:
        expression = expression.replace(found, meant)
    return GPT2 if expression == GPT2 + r"|\s+" else expression


def _expressions(node: object) -> tuple[str, ...] | None:
    """Return what the steps split at; None when a step does anything else.

    The last step turns bytes into letters; nothing may stand behind it.
    """
    steps = steps_of(node)
    last = steps.pop() if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True) is not False:
        return None
    found = [_expression(step) for step in steps]
    if last.get("use_regex", True) is not False:
        found.append(GPT2)
    known = [expression for expression in found if expression is not None]
    return tuple(known) if len(known) == len(found) else None


def _expression(step: dict[str, object]) -> str | None:
    """Return what one step splits at, when every match becomes a piece of its own."""
    if step.get("type") == "Digits":
        return DIGIT if step.get("individual_digits") is True else DIGITS
    pattern = fields_of(step.get("pattern"))
    isolated = step.get("behavior") == "Isolated" and step.get("invert", False) is False
    if step.get("type") != "Split" or not isolated:
        return None
    if isinstance(text := pattern.get("String"), str):
        return canonical(re.escape(text))
    expression = pattern.get("Regex")
    return canonical(expression) if isinstance(expression, str) else None


def _unknown(
    node: object, expressions: tuple[str, ...] | None, ignore_merges: bool
) -> ConversionError:
    structure = describe(node)
    # Steps that are not expressions count with their description.
    text = "\n".join(expressions or (canonical(line) for line in structure))[:2000]
    nearest = max(
        TABLE,
        key=lambda known: (
            difflib.SequenceMatcher(None, "\n".join(known.expressions), text, False).ratio(),
            known.ignore_merges == ignore_merges,
        ),
    )
    merging = " with `ignore_merges`" if ignore_merges else ""
    return ConversionError(
        f"unknown pre-tokenizer{merging}: {shown(structure)}",
        hint=f"the nearest known one is {nearest.name}, which splits at "
        f"{' and then '.join(nearest.expressions)[:600]}; "
        f"to use it nevertheless give `--pre {nearest.name}`",
    )


def recognise_normalizer(node: object) -> str:
    """Return "NFC", or "" for none.

    Raises:
        ConversionError: any other normalizer: llama.cpp applies none to a BPE vocabulary.
    """
    steps = describe(node)
    if steps in ((), ("NFC",)):
        return steps[0] if steps else ""
    raise ConversionError(
        f"unknown normalizer {quoted(str(fields_of(node).get('type')))} in tokenizer.json",
        hint="byte-level BPE vocabularies with NFC or no normalizer can be converted",
    )
