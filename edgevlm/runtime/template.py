"""A jinja2 template of a model file, rendered within bounds.

A chat template is a program that came with a download. jinja2's sandbox keeps it from the machine,
but not from looping for ever or from filling the memory. Three bounds do that:

- Time: a trace function looks at the clock at every call and every line of the template (jinja2
  compiles templates to Python), so that `{% for i in range(99999) %}` nested a few times ends.
- Size of one operation: what runs inside C sees no clock. `*`, `**` and `%` are intercepted, the
  numbers handed to filters and methods are bounded.
- Memory: while a template runs the process may grow by 256 MB (RLIMIT_AS, where the system has it),
  which ends what grows in other ways, such as a text doubled in a loop.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgevlm.errors import PromptError

TEMPLATE_HINT = "the model file's chat template is broken; convert the model again"
MAX_SECONDS = 2.0
MAX_OUTPUT = 16_000_000
_MAX_SOURCE = 1_000_000
_TEMPLATE_FILE = "<template>"  # what jinja2 calls the code that it compiles from a string
_MAX_NUMBER = 1 << 62
_MAX_WIDTH = 100_000
_MAX_GROWTH = 256 << 20
# Regular expressions over whatever a template built: they can take for ever inside C.
_REMOVED_FILTERS = ("urlize", "striptags", "wordwrap", "pprint", "random", "xmlattr")
_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class _OutOfTimeError(BaseException):
    """Not an Exception: nothing on the way up may take it for the template's own."""


class _TooLargeError(ValueError):
    """An operation whose result nobody could want."""


class BoundedTemplate:
    """A template in transformers' style.

    Args:
        source: jinja2 text.
        max_seconds: for compiling, and for each rendering; None for MAX_SECONDS.

    Raises:
        PromptError: it cannot be compiled.
    """

    def __init__(self, source: str, *, max_seconds: float | None = None) -> None:
        self._max_seconds = MAX_SECONDS if max_seconds is None else max_seconds
        self.source = source
        if len(source) > _MAX_SOURCE:
            raise PromptError(
                f"the chat template of {len(source):,} characters is too long", hint=TEMPLATE_HINT
            )
        with self._bounds("is invalid"):
            self._template: Any = _environment().from_string(source)

    def render(self, values: Mapping[str, Any]) -> str:
        """Render the template.

        Raises:
            PromptError: it fails, takes too long or grows too large.
        """
        pieces: list[str] = []
        length = 0
        with self._bounds("fails"):
            for piece in self._template.generate(values):
                length += len(piece)
                if length > MAX_OUTPUT:
                    raise _TooLargeError(f"it prints more than {MAX_OUTPUT:,} characters")
                pieces.append(piece)
        return "".join(pieces)

    @contextmanager
    def _bounds(self, what: str) -> Generator[None]:
        try:
            with _memory_bound(), _time_bound(self._max_seconds):
                yield
        except _OutOfTimeError:
            raise PromptError(
                f"the chat template takes more than {self._max_seconds:g} seconds: it may loop for"
                " ever",
                hint=TEMPLATE_HINT,
            ) from None
        except MemoryError:
            raise PromptError(
                "the chat template grows beyond all bounds", hint=TEMPLATE_HINT
            ) from None
        except _FAULTS as error:
            # A template is a program from a file: whatever it stumbles over is its own fault.
            raise PromptError(
                f"the chat template {what}: {str(error)[:500]}", hint=TEMPLATE_HINT
            ) from None


@contextmanager
def _time_bound(seconds: float) -> Generator[None]:
    """Raise _OutOfTimeError inside the block when it takes longer, in whatever thread this is."""
    deadline = time.monotonic() + seconds
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += 1
        # The clock costs more than the rest of this function.
        if count % 64 == 0 and time.monotonic() > deadline:
            raise _OutOfTimeError
        # Line by line through the template's own loops; call by call elsewhere, jinja2's compiler
        # included, which would take five times as long.
        return trace if frame.f_code.co_filename == _TEMPLATE_FILE else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


_memory_lock = threading.Lock()


@contextmanager
def _memory_bound() -> Generator[None]:
    """Let the process grow by _MAX_GROWTH inside the block, where the system can say so."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _MAX_GROWTH
    except (ImportError, OSError, ValueError):
        yield
        return
    with _memory_lock:  # one thread's end must not lift another's bound, nor keep it
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        known = [one for one in (soft, hard, limit) if one != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_AS, (min(known), hard))
        try:
            yield
        finally:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with bounded operations."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "**"):
            _check_product(operator, left, right)
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        value = super().call_binop(context, operator, left, right)
        if isinstance(value, int) and abs(value) > _MAX_NUMBER:
            raise _TooLargeError("a number is too large")
        return value

    # Positional: a template may call its own arguments anything.
    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_arguments(args, kwargs)
        return super().call(context, obj, *args, **kwargs)


class _GenerationBlock(Extension):
    """`{% generation %}`: transformers marks by it what the model itself said; here it is text."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> Any:
    environment: Any = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
    )
    environment.intercepted_binops = {"*", "**", "%", "+", "-"}
    for name in _REMOVED_FILTERS:
        environment.filters.pop(name, None)
    environment.filters = {
        name: _bounded(function) for name, function in environment.filters.items()
    }
    environment.filters["tojson"] = _tojson
    environment.globals.pop("lipsum", None)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # jinja2 marks by attributes what a filter is passed first
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_arguments(args, kwargs)
        if function.__name__ == "do_format" and args:
            _check_format(str(args[0]))
        return function(*args, **kwargs)

    return checked


def _check_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in _numbers((*args, *kwargs.values())):
        if abs(value) > _MAX_WIDTH:
            # What a filter or a method takes as a number is a width or a count; a large number
            # that is only shown is a text soon enough.
            raise _TooLargeError(f"{value} is too large an argument")


def _numbers(values: tuple[Any, ...]) -> Iterator[int | float]:
    for value in values:
        if isinstance(value, int | float):
            yield value


def _check_product(operator: str, left: Any, right: Any) -> None:
    if operator == "**":
        if isinstance(left, int) and isinstance(right, int) and right * left.bit_length() > 64:
            raise _TooLargeError(f"{str(left)[:20]} ** {str(right)[:20]} is too large")
        return
    for items, times in ((left, right), (right, left)):
        if not isinstance(times, int) or not isinstance(items, str | bytes | list | tuple):
            continue
        if len(cast(Sequence[Any], items)) * times > MAX_OUTPUT:
            raise _TooLargeError(f"a repetition {times} times is too large")


def _check_format(form: str) -> None:
    digits = 0
    for letter in form:
        digits = digits + 1 if letter.isdigit() else 0
        if digits > 5 or letter == "*":
            raise _TooLargeError("a text's format is too wide")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML, which a model never saw in training.
    _check_arguments((indent,), {})
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
