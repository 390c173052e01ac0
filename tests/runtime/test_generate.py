"""What shapes an answer and what ends it, on the built-in model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import pytest

from edgevlm.errors import PromptError
from edgevlm.native.sampler import Sampler
from edgevlm.native.text_context import TextContext
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.template import BoundedTemplate
from edgevlm.runtime.vlm import VLM

Picture = Callable[[int], Pixels]
QUESTION = "What color is the cross?"
LONG = SamplingParams(max_tokens=200, loop_guard=False)


def token_of(vlm: VLM, text: str) -> int:
    (token,) = vlm.tokenize(text)
    return token


def forced(vlm: VLM, text: str, **more: object) -> SamplingParams:
    """Return parameters that let the model say one token and nothing else."""
    bias = ((token_of(vlm, text), 1e6),)
    return replace(SamplingParams(max_tokens=200, logit_bias=bias), **more)  # type: ignore[arg-type]


@pytest.fixture
def say(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[bool]]:
    """Let the model say a given text; return what it was told about constraints at each token."""

    def plant(text: str) -> list[bool]:
        constrained_at: list[bool] = []
        end = next(token for token in range(vlm.n_vocab) if vlm.is_end(token))
        following: Iterator[int] = iter([*vlm.tokenize(text), end])

        def next_token(_: Sampler, context: TextContext, *, constrained: bool = True) -> int:
            constrained_at.append(constrained)
            return next(following)

        monkeypatch.setattr(Sampler, "next_token", next_token)
        return constrained_at

    return plant


def test_greedy_text_is_identical_over_20_runs(vlm: VLM, picture: Picture) -> None:
    params = SamplingParams(max_tokens=40, logit_bias=((2, -1e6),), loop_guard=False)
    answers: set[tuple[int, ...]] = set()
    for run in range(20):
        if run % 2:  # with and without what the question before left behind
            vlm.forget()
        answers.add(vlm.generate(QUESTION, [picture(0)], params=params).token_ids)
    assert len(answers) == 1
    assert len(answers.pop()) == 40


def test_logit_bias(vlm: VLM, picture: Picture) -> None:
    plain = vlm.generate(QUESTION, [picture(0)])
    params = SamplingParams(logit_bias=((plain.token_ids[0], -1e6),))
    biased = vlm.generate(QUESTION, [picture(0)], params=params)
    assert plain.token_ids[0] not in biased.token_ids
    with pytest.raises(PromptError, match="logit_bias names token 100000"):
        vlm.generate("?", params=SamplingParams(logit_bias=((100_000, 1.0),)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("repeat_penalty", 100.0), ("frequency_penalty", 100.0), ("presence_penalty", 100.0)],
)
def test_penalties_end_repetitions(vlm: VLM, name: str, value: float) -> None:
    token = token_of(vlm, "x")
    bias = ((token, 30.0), (2, -1e6))
    params = SamplingParams(max_tokens=12, logit_bias=bias, repeat_last_n=-1)
    assert set(vlm.generate("?", params=params).token_ids) == {token}
    changed = replace(params, **{name: value})
    assert vlm.generate("?", params=changed).token_ids.count(token) <= 1
    off = replace(changed, repeat_last_n=0)
    assert set(vlm.generate("?", params=off).token_ids) == {token}


def test_penalties_count_the_prompt(vlm: VLM) -> None:
    token = token_of(vlm, "x")
    params = SamplingParams(max_tokens=1, logit_bias=((token, 30.0),), presence_penalty=100.0)
    assert vlm.generate("?", params=params).token_ids == (token,)
    assert vlm.generate("x", params=params).token_ids != (token,)


def test_dry_ends_longer_repetitions(vlm: VLM) -> None:
    token = token_of(vlm, "x")
    bias = ((token, 30.0), (2, -1e6))
    params = SamplingParams(max_tokens=20, logit_bias=bias, dry_multiplier=10.0, repeat_last_n=-1)
    ids = vlm.generate("?", params=params).token_ids
    assert ids[:3] == (token, token, token)
    assert len(set(ids)) > 1


def test_penalties_lie_on_the_table_in_any_order(vlm: VLM, picture: Picture) -> None:
    """All at once, sampled: nothing fails, and a seed still repeats."""
    params = SamplingParams(
        temperature=1.5, repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.2,
        dry_multiplier=0.8, seed=7, max_tokens=30, logit_bias=((2, -1e6),),
    )  # fmt: skip
    first = vlm.generate(QUESTION, [picture(0)], params=params).token_ids
    assert vlm.generate(QUESTION, [picture(0)], params=params).token_ids == first


def test_a_loop_is_ended_and_named(vlm: VLM) -> None:
    answer = vlm.generate("?", params=forced(vlm, "x"))
    assert answer.stop_reason == "loop"
    assert answer.text == "x" * 64
    unguarded = vlm.generate("?", params=forced(vlm, "x", loop_guard=False))
    assert (unguarded.stop_reason, len(unguarded.token_ids)) == ("max_tokens", 200)


def test_stop_strings(vlm: VLM, say: Callable[[str], list[bool]]) -> None:
    pieces: list[str] = []
    say("red and blue and green")
    answer = vlm.generate("?", params=replace(LONG, stop=("ue an",)), on_text=pieces.append)
    assert (answer.text, answer.stop_reason) == ("red and bl", "stop_string")
    assert "".join(pieces) == answer.text
    say("red and blu")
    assert vlm.generate("?", params=replace(LONG, stop=("blue",))).text == "red and blu"


def test_cancelled_midway_and_usable_afterwards(vlm: VLM, picture: Picture) -> None:
    vlm.forget()
    expected = vlm.generate(QUESTION, [picture(0)]).text
    pieces: list[str] = []
    answer = vlm.generate(
        "?",
        params=forced(vlm, "x"),
        on_text=pieces.append,
        should_stop=lambda: len(pieces) >= 3,
    )
    assert (answer.text, answer.stop_reason) == ("xxx", "cancelled")
    assert vlm.generate(QUESTION, [picture(0)]).text == expected


def test_max_seconds(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("edgevlm.runtime.decode.time.perf_counter", lambda: now[0])

    def tick(_: str) -> None:
        now[0] += 1.0

    params = forced(vlm, "x", max_seconds=4.5)
    answer = vlm.generate("?", params=params, on_text=tick)
    assert (answer.text, answer.stop_reason) == ("xxxxx", "max_seconds")


def test_no_time_at_all(vlm: VLM, picture: Picture) -> None:
    params = SamplingParams(max_seconds=1e-9)
    vlm.forget()
    answer = vlm.generate(QUESTION, [picture(0)], params=params)
    assert (answer.text, answer.token_ids, answer.stop_reason) == ("", (), "max_seconds")
    assert answer.timings.tok_per_sec is None
    assert len(answer.timings.image_encode_ms) == 1


def test_grammar(vlm: VLM, picture: Picture) -> None:
    params = SamplingParams(grammar='root ::= "it is " ("red" | "gr" "een") "!"')
    answer = vlm.generate(QUESTION, [picture(0)], params=params)
    assert answer.text in ("it is red!", "it is green!")
    assert answer.stop_reason == "end"
    hot = replace(params, temperature=5.0, min_p=0.0, top_k=0, top_p=1.0)
    texts = {vlm.generate("?", params=replace(hot, seed=seed)).text for seed in range(12)}
    assert texts == {"it is red!", "it is green!"}


def test_a_grammar_leaves_alone_what_follows_it(vlm: VLM, picture: Picture) -> None:
    free = vlm.generate(QUESTION, [picture(0)])
    params = SamplingParams(grammar="root ::= [a-z ]+")
    assert vlm.generate(QUESTION, [picture(0)], params=params).token_ids == free.token_ids


def test_json_schema(vlm: VLM, picture: Picture) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "black"]}, "sure": {"type": "boolean"}},
        "required": ["color", "sure"],
    }
    params = SamplingParams(json_schema=json.dumps(schema), max_tokens=100)
    value = json.loads(vlm.generate(QUESTION, [picture(0)], params=params).text)
    assert value["color"] in ("red", "black")
    assert isinstance(value["sure"], bool)


@pytest.mark.parametrize(
    "params",
    [
        {"grammar": "root ::= " + "(" * 200_000 + '"x"' + ")" * 200_000},
        {"grammar": "root ::= root"},
        {"grammar": "nonsense"},
        {"json_schema": "nonsense"},
    ],
    ids=["nested", "left-recursive", "nonsense", "schema"],
)
def test_hostile_grammars_leave_the_model_usable(vlm: VLM, params: dict[str, str]) -> None:
    with pytest.raises(PromptError) as caught:
        vlm.generate("?", params=SamplingParams(**params))  # type: ignore[arg-type]
    assert caught.value.hint
    assert vlm.generate("?", params=SamplingParams(max_tokens=2)).stop_reason == "end"


def with_template(vlm: VLM, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(vlm.layouter.template, "template", BoundedTemplate(source))


THINKS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}"
    "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}"
)


def test_thinking(
    vlm: VLM, say: Callable[[str], list[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_template(vlm, monkeypatch, THINKS)
    texts: list[str] = []
    thoughts: list[str] = []
    notes: list[str] = []
    constrained_at = say("well, red\n</think>\n\nblue")
    answer = vlm.generate(
        "?", params=LONG, on_text=texts.append, on_reasoning=thoughts.append, on_note=notes.append
    )
    assert (answer.text, answer.reasoning) == ("blue", "well, red")
    assert ("".join(texts), "".join(thoughts).rstrip(), notes) == ("blue", "well, red", [])
    # A grammar binds the answer, not the reasoning.
    assert constrained_at[0] is False
    assert constrained_at[-1] is True
    say("blue")
    answer = vlm.generate("?", params=LONG, think=False)
    assert (answer.text, answer.reasoning) == ("blue", "")


def test_a_model_that_cannot_think_is_said(vlm: VLM) -> None:
    notes: list[str] = []
    vlm.generate("?", params=SamplingParams(max_tokens=1), think=True, on_note=notes.append)
    assert notes == ["this model's chat template knows no switch for thinking"]


def test_parameters_survive_json() -> None:
    params = SamplingParams(stop=("a", "b"), logit_bias=((3, -1.5),), json_schema="{}")
    assert SamplingParams(**json.loads(json.dumps(asdict(params)))) == params


def test_a_conversation_about_several_images(vlm: VLM, picture: Picture) -> None:
    messages = [
        Message(role="system", content=("Answer in one word.",)),
        Message(role="user", content=(picture(0), QUESTION)),
        Message(role="assistant", content=("black",)),
        Message(role="user", content=(picture(1), "And here?")),
    ]
    vlm.forget()
    cold = vlm.generate(messages)
    warm = vlm.generate(messages)
    assert cold.n_reused_tokens == 0
    assert warm.n_reused_tokens == warm.n_prompt_tokens - 1
    assert cold.token_ids == warm.token_ids
