"""Templates are programs from a download: they end, stay small, and know transformers' words."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from edgevlm.errors import PromptError
from edgevlm.runtime.template import BoundedTemplate

NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
)


def render(source: str, seconds: float = 0.5, **values: Any) -> str:
    return BoundedTemplate(source, max_seconds=seconds).render(values)


@pytest.mark.parametrize(
    "source",
    [
        NESTED,
        "{% macro m() %}{% for a in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
        "{% call m() %}{% for b in range(99999) %}{% endfor %}{% endcall %}",
        "{% for a in range(99999) %}"
        "{% if range(99999) | map('string') | join | length %}{% endif %}{% endfor %}",
    ],
    ids=["nested loops", "loops through a macro", "loops inside filters"],
)
def test_endless_templates_end(source: str) -> None:
    started = time.monotonic()
    with pytest.raises(PromptError, match="may loop for ever") as caught:
        render(source)
    assert time.monotonic() - started < 10  # generous: the machine may be busy
    assert caught.value.hint
    assert sys.gettrace() is None or "pytest_cov" in sys.modules


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ 10**10 * 'a' }}",
        "{{ [0] * 10**10 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '%*d' % (9999999999, 1) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ 'a'.ljust(10 ** 10) }}",
        "{{ {} | tojson(indent=10 ** 10) }}",
        DOUBLED + "{{ n.x | length }}",
        DOUBLED.replace("~", "+") + "{{ n.x | length }}",
        "{% for i in range(90000) %}{{ x }}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ " + "-" * 30000 + "1 }}",
        "{{ 1" + " + 1" * 30000 + " }}",
        "{% if x %}" * 1000 + "{% endif %}" * 1000,
        "{{ lipsum(n=99999) }}",
        "{{ x | urlize }}",
        "{{ '{:9999999999}'.format(1) }}",
    ],
    ids=lambda source: source[:30],
)
def test_templates_that_would_fill_the_memory(source: str) -> None:
    with pytest.raises(PromptError, match="chat template") as caught:
        render(source, seconds=5.0, x="y" * 1000)
    assert len(caught.value.message) < 700


def test_memory_bound_is_lifted_again() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(PromptError):
        render(DOUBLED)
    render("ok")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_too_long_a_source() -> None:
    with pytest.raises(PromptError, match="too long"):
        BoundedTemplate("x" * 2_000_000)


def test_real_work_is_no_offence() -> None:
    source = (
        "{% for m in messages %}{{ m.role | upper | center(20) }}{{ '%05.2f' % loop.index }}"
        "{{ m.content | replace('a', 'b') | indent(4) }}{{ '=' * 40 }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "a" * 5000}] * 200
    assert len(render(source, seconds=5.0, messages=messages)) > 1_000_000


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% generation %}said{% endgeneration %}!", "said!"),
        (
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{{ {'a': 'é'} | tojson(ensure_ascii=true) }}", '{"a": "\\u00e9"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ messages | map(attribute='role') | join(',') }}", "user"),
        ("{{ 'a,b'.split(',')[-1] }}{{ ' x '.strip() }}{{ messages[0]['content'][1:] }}", "bxi"),
        ("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "1"),
        (
            "{%- if enable_thinking is defined and not enable_thinking %}off{% else %}on"
            "{% endif %}",
            "on",
        ),
        ("{%- for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
        (
            "{% macro m(x, context=1) %}{{ x }}{{ context }}{% endmacro %}{{ m('a', context=2) }}",
            "a2",
        ),
    ],
)
def test_what_transformers_templates_use(source: str, expected: str) -> None:
    assert render(source, messages=[{"role": "user", "content": "hi"}]) == expected


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for m in %}", "invalid"),
        ("{% generation %}", "invalid"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "fails"),
        ("{% set x = messages.append(1) %}", "fails"),
    ],
)
def test_broken_templates(source: str, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        render(source, messages=[])
