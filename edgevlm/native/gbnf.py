"""GBNF text, parsed before libllama parses it: whatever would end or hang the process is refused.

libllama's parser recurses for each parenthesis (200,000 of them overflow the stack), unrolls
repetitions without a bound on their sum, prints a grammar that it cannot parse on stderr, and walks
every way through a rule's beginnings: forty rules such as `a ::= b | b` take for ever. So syntax,
names, nesting, size, left recursion and that number of ways are checked here. Syntax and unrolling
are those of src/llama-grammar.cpp, llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from edgevlm.errors import PromptError

MAX_GRAMMAR_BYTES = 500_000
MAX_NESTING = 600
MAX_RULES = 10_000  # with repetitions unrolled
MAX_WAYS = 20_000  # through the beginnings of one rule
GBNF_HINT = "see the GBNF guide: https://github.com/ggml-org/llama.cpp/tree/master/grammars"
_MAX_REPEATED = 2000  # MAX_REPETITION_THRESHOLD of llama-grammar.cpp

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_ESCAPE = r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[tnr\\"\[\]-])'
_LITERAL = re.compile(rf'"(?:{_ESCAPE}|[^\\"])*"')
_RANGE = re.compile(rf"\[\^?(?:{_ESCAPE}|[^\\\]])*\]")
_TOKEN = re.compile(r"!?<(?:\[[0-9]{1,9}\]|[^\[<>\s][^<>\s]{0,200})>")
_REPEAT = re.compile(r"\{[ \t]*([0-9]{1,6})[ \t]*(?:(,)[ \t]*([0-9]{0,6})[ \t]*)?\}")
_TERMINAL = -1  # stands for a character or a token among the numbers of rules

_Sequence = list[int]
_Alternates = list[_Sequence]


def check_grammar(text: str) -> None:
    """Check a grammar that starts at rule "root".

    Raises:
        PromptError: it cannot be parsed, is left-recursive, too large or too deep.
    """
    n_bytes = len(text.encode("utf-8", "replace"))
    if n_bytes > MAX_GRAMMAR_BYTES or "\0" in text:
        raise PromptError(
            f"the grammar of {n_bytes:,} bytes is too large, or no text",
            hint=f"use at most {MAX_GRAMMAR_BYTES:,} bytes of GBNF",
        )
    parser = _Parser(text)
    parser.run()
    _Walk(parser.rules, parser.names).run()


@dataclass(kw_only=True)
class _Group:
    """An open parenthesis, or a whole rule.

    Attributes:
        rule: its number.
        n_before: rules there were when it began.
        alternates: what it holds so far.
    """

    rule: int
    n_before: int
    alternates: _Alternates = field(default_factory=lambda: [[]])


class _Parser:
    """GBNF text into numbered rules; keeps its own stack, so that no nesting overflows it.

    Attributes:
        rules: alternates by number, repetitions unrolled as libllama does.
        names: of the rules that have one.
    """

    def __init__(self, text: str) -> None:
        self.rules: dict[int, _Alternates] = {}
        self.names: dict[int, str] = {}
        self._text = text
        self._at = 0
        self._numbers: dict[str, int] = {}
        self._first_use: dict[int, int] = {}
        self._n_rules = 0
        self._n_items = 0

    def run(self) -> None:
        self._skip(_SPACE_AND_LINES)
        while self._at < len(self._text):
            self._rule()
        for number, at in self._first_use.items():
            if number not in self.rules:
                self._at = at
                self._fail(f"there is no rule {self.names[number][:40]!r}")
        if self._numbers.get("root") not in self.rules:
            raise PromptError("the grammar has no rule 'root'", hint="begin with `root ::= ...`")

    def _rule(self) -> None:
        number = self._named()
        self._skip(_SPACE)
        if not self._text.startswith("::=", self._at):
            self._fail("`::=` is due")
        self._at += 3
        self._skip(_SPACE_AND_LINES)
        self._first_use.pop(number, None)
        self.rules[number] = self._alternates(number)
        if self._at < len(self._text) and self._text[self._at] not in "\r\n":
            self._fail("a new line is due")
        self._skip(_SPACE_AND_LINES)

    def _alternates(self, number: int) -> _Alternates:
        """Walk to the end of a rule: elements, repetitions, `|` and parentheses in any order."""
        groups = [_Group(rule=number, n_before=self._n_rules)]
        # The items of the element before and how many rules it took; none where it cannot repeat.
        last: tuple[_Sequence, int] | None = None
        while self._at < len(self._text):
            letter = self._text[self._at]
            sequence = groups[-1].alternates[-1]
            if letter == "(":
                if len(groups) > MAX_NESTING:
                    self._fail(f"more than {MAX_NESTING} open parentheses")
                groups.append(_Group(rule=self._new_rule(), n_before=self._n_rules - 1))
                self._at, last = self._at + 1, None
            elif letter == ")" and len(groups) > 1:
                closed = groups.pop()
                self.rules[closed.rule] = closed.alternates
                self._at += 1
                last = [closed.rule], max(1, self._n_rules - closed.n_before)
                groups[-1].alternates[-1].append(closed.rule)
            elif letter == "|":
                groups[-1].alternates.append([])
                self._at, last = self._at + 1, None
            elif letter in "*+?{":
                last = self._repeat(sequence, last)
            elif (items := self._element(letter)) is not None:
                sequence += items
                last = (items, 1) if items else None
            else:
                break
            # A rule goes on in the next line only inside parentheses and after `|`.
            self._skip(_SPACE_AND_LINES if len(groups) > 1 or letter == "|" else _SPACE)
        if len(groups) > 1:
            self._fail("`)` is due")
        return groups[0].alternates

    def _element(self, letter: str) -> _Sequence | None:
        """Read one element; return its items, None where none begins."""
        if letter == ".":
            self._at += 1
            return [_TERMINAL]
        if _NAME.match(letter):
            at = self._at
            number = self._named()
            self._first_use.setdefault(number, at)
            return [number]
        pattern = {'"': _LITERAL, "[": _RANGE, "<": _TOKEN, "!": _TOKEN}.get(letter)
        if pattern is None:
            return None
        found = pattern.match(self._text, self._at)
        if found is None:
            self._fail("this never ends, or holds an unknown escape")
        self._at = found.end()
        return [] if found[0] in ('""', "[]", "[^]") else [_TERMINAL]

    def _repeat(
        self, sequence: _Sequence, last: tuple[_Sequence, int] | None
    ) -> tuple[_Sequence, int]:
        """Unroll the repetition that is due: `x{m,n}` is m times x, then n - m rules `x next |`."""
        if last is None:
            self._fail("nothing stands before this repetition")
        items, size = last
        low, high = self._bounds()
        n_times = max(low, high or 0, 1)
        if size * n_times > _MAX_REPEATED:
            self._fail(f"{n_times} repetitions of {size} rules are more than {_MAX_REPEATED}")
        del sequence[len(sequence) - len(items) :]
        start = len(sequence)
        sequence += items * low
        self._n_items += len(items) * low
        if self._n_items > MAX_RULES * 10:
            self._fail("the repetitions unroll to too much")
        following: int | None = None
        for _ in range(1 if high is None else high - low):
            rule = self._new_rule()
            after = rule if high is None else following
            self.rules[rule] = [[*items, *([] if after is None else [after])], []]
            following = rule
        if following is not None:
            sequence.append(following)
        return sequence[start:], size * n_times

    def _bounds(self) -> tuple[int, int | None]:
        """Read a repetition; return its bounds, None for none above."""
        letter = self._text[self._at]
        if letter != "{":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[letter]
        found = _REPEAT.match(self._text, self._at)
        if found is None:
            self._fail("a repetition such as `{2}`, `{2,}` or `{2,5}` is due")
        low = int(found[1])
        high = low if found[2] is None else int(found[3]) if found[3] else None
        if high is not None and high < low:
            self._fail("a repetition's upper bound is below its lower one")
        self._at = found.end()
        return low, high

    def _named(self) -> int:
        found = _NAME.match(self._text, self._at)
        if found is None:
            self._fail("the name of a rule is due")
        self._at = found.end()
        number = self._numbers.get(found[0])
        if number is None:
            number = self._numbers[found[0]] = self._new_rule()
            self.names[number] = found[0]
        return number

    def _new_rule(self) -> int:
        self._n_rules += 1
        if self._n_rules > MAX_RULES:
            self._fail(f"more than {MAX_RULES:,} rules, repetitions unrolled")
        return self._n_rules

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()

    def _fail(self, what: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        near = self._text[self._at : self._at + 30].split("\n")[0]
        raise PromptError(f"grammar, line {line}, at {near!r}: {what}", hint=GBNF_HINT)


class _Walk:
    """Counts the ways through each rule's beginning; a way that leads back is left recursion."""

    def __init__(self, rules: dict[int, _Alternates], names: dict[int, str]) -> None:
        self._rules = rules
        self._names = names
        self._can_be_empty = self._find_empty()
        self._ways: dict[int, int] = {}
        self._empty_ways: dict[int, int] = {}

    def run(self) -> None:
        for rule in self._rules:
            self._visit(rule)

    def _find_empty(self) -> set[int]:
        empty: set[int] = set()
        users: dict[int, set[int]] = {}
        for rule, alternates in self._rules.items():
            for item in {item for sequence in alternates for item in sequence}:
                users.setdefault(item, set()).add(rule)
        todo = list(self._rules)
        while todo:
            rule = todo.pop()
            if rule not in empty and any(
                all(item in empty for item in sequence) for sequence in self._rules[rule]
            ):
                empty.add(rule)
                todo += users.get(rule, ())
        return empty

    def _visit(self, start: int) -> None:
        """Walk depth first over leftmost items, with a stack of its own."""
        path = [(start, self._leftmost(start))]
        on_path = {start}
        while path:
            rule, todo = path[-1]
            if not todo:
                path.pop()
                on_path.discard(rule)
                self._count(rule)
                continue
            item = todo.pop()
            if item in on_path:
                name = next((self._names[r] for r, _ in reversed(path) if r in self._names), "?")
                raise PromptError(
                    f"grammar: rule {name[:40]!r} is left-recursive: it begins with itself",
                    hint="write what comes first before the rule's own name",
                )
            if item not in self._ways:
                on_path.add(item)
                path.append((item, self._leftmost(item)))

    def _leftmost(self, rule: int) -> list[int]:
        if rule in self._ways:
            return []
        found: set[int] = set()
        for sequence in self._rules[rule]:
            for item in sequence:
                if item != _TERMINAL:
                    found.add(item)
                if item not in self._can_be_empty:
                    break
        return list(found)

    def _count(self, rule: int) -> None:
        if rule in self._ways:
            return
        ways = empty_ways = 1
        for sequence in self._rules[rule]:
            n_ways, n_empty = self._count_sequence(sequence)
            ways += n_ways
            empty_ways += n_empty
        self._ways[rule] = ways
        self._empty_ways[rule] = min(empty_ways - 1, MAX_WAYS)
        if ways > MAX_WAYS:
            raise PromptError(
                f"the grammar is too ambiguous: more than {MAX_WAYS:,} ways lead into one rule",
                hint="let alternatives begin with different letters",
            )

    def _count_sequence(self, sequence: Sequence[int]) -> tuple[int, int]:
        """Return the ways into a sequence, and those through it without a letter."""
        ways, empty_ways = 1, 1
        for item in sequence:
            if item == _TERMINAL:
                return min(ways + empty_ways, MAX_WAYS + 1), 0
            ways += empty_ways * self._ways[item]
            empty_ways = min(empty_ways * self._empty_ways[item], MAX_WAYS + 1)
            if ways > MAX_WAYS or not empty_ways:
                return min(ways, MAX_WAYS + 1), empty_ways
        return ways, empty_ways
