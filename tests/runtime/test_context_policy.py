"""Conversations that do not fit: an error that says by how much, or fewer and shorter turns."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from edgevlm.errors import ContextOverflowError
from edgevlm.native.sampler import Sampler
from edgevlm.native.text_context import TextContext
from edgevlm.runtime.answer import Answer, ContextPolicy
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.prompt import Message
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm

Picture = Callable[[int], Pixels]
N_CTX = 160


@pytest.fixture(scope="module")
def small(shapes_dir: Path) -> Generator[VLM]:
    with open_vlm(
        model=shapes_dir / "shapes-F16.gguf",
        mmproj=shapes_dir / "mmproj-shapes-F16.gguf",
        n_ctx=N_CTX,
        n_threads=1,
    ) as opened:
        yield opened


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return a list that grows by every prompt that is laid out and read to its end."""
    from edgevlm.runtime.layout import Layout
    from edgevlm.runtime.prefix import KVCache

    seen: list[list[int]] = []
    prefill = KVCache.prefill

    def spied(self: KVCache, layout: Layout, *arguments: object, **options: object) -> object:
        seen.append(layout.token_ids)
        return prefill(self, layout, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(KVCache, "prefill", spied)
    return seen


def talk(picture: Pixels, n_turns: int, word: str = "circle") -> list[Message]:
    messages = [
        Message(role="system", content=("Be brief.",)),
        Message(role="user", content=(picture, "What color is the cross?")),
        Message(role="assistant", content=("black",)),
    ]
    for number in range(n_turns):
        messages += [
            Message(role="user", content=(f"{number} {word}?",)),
            Message(role="assistant", content=("yes",)),
        ]
    return [*messages, Message(role="user", content=("last?",))]


def ask(
    vlm: VLM, messages: list[Message], policy: ContextPolicy, n_tokens: int = 5
) -> tuple[Answer, list[str]]:
    notes: list[str] = []
    answer = vlm.generate(
        messages,
        params=SamplingParams(max_tokens=n_tokens),
        context_policy=policy,
        on_note=notes.append,
    )
    return answer, notes


def contains(ids: list[int], part: list[int]) -> bool:
    return any(ids[at : at + len(part)] == part for at in range(len(ids)))


def test_error_says_by_how_much(small: VLM, picture: Picture) -> None:
    messages = talk(picture(0), 10)
    n_tokens = len(small.token_ids(messages))
    with pytest.raises(ContextOverflowError) as caught:
        ask(small, messages, "error")
    assert f"is {n_tokens + 1 - N_CTX} too long for the context of {N_CTX}" in caught.value.message
    assert f"--ctx {n_tokens + 1}" in caught.value.hint


@pytest.mark.parametrize("policy", ["error", "trim", "summarize"])
def test_what_fits_is_left_alone(small: VLM, picture: Picture, policy: ContextPolicy) -> None:
    messages = talk(picture(0), 1)
    answer, notes = ask(small, messages, policy)
    assert answer.n_prompt_tokens == len(small.token_ids(messages))
    assert notes == []


def test_trim_drops_the_oldest_turns(small: VLM, picture: Picture, read: list[list[int]]) -> None:
    answer, notes = ask(small, talk(picture(0), 10), "trim", n_tokens=20)
    (ids,) = read
    assert answer.n_prompt_tokens + 20 <= N_CTX
    assert contains(ids, small.tokenize("Be brief."))
    assert contains(ids, small.tokenize("last?"))
    assert contains(ids, small.tokenize("9 circle?"))
    assert not contains(ids, small.tokenize("0 circle?"))
    assert answer.n_visual_tokens == 16
    (note,) = notes
    n_dropped = int(note.split()[0])
    assert note == f"{n_dropped} old turns were left out, to fit the context of {N_CTX}"
    assert not contains(ids, small.tokenize(f"{n_dropped - 1} circle?"))
    assert contains(ids, small.tokenize(f"{n_dropped} circle?"))


@pytest.mark.parametrize("policy", ["trim", "summarize"])
def test_what_cannot_fit_even_so(small: VLM, picture: Picture, policy: ContextPolicy) -> None:
    messages = [*talk(picture(0), 3)[:-1], Message(role="user", content=("word " * 200,))]
    with pytest.raises(ContextOverflowError, match="though 3 old turns were left out"):
        ask(small, messages, policy)
    with pytest.raises(ContextOverflowError, match="too long"):
        ask(small, messages[-1:], policy)
    images = [Message(role="user", content=(picture(n % 3), "what?")) for n in range(8)]
    with pytest.raises(ContextOverflowError, match="too long"):
        ask(small, images, policy)


@pytest.fixture
def summaries(small: VLM, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Plant what the model says, answer after answer."""

    def plant(texts: list[str]) -> None:
        end = next(token for token in range(small.n_vocab) if small.is_end(token))
        following: Iterator[int] = iter(
            [token for text in texts for token in [*small.tokenize(text), end]]
        )

        def next_token(_: Sampler, context: TextContext, *, constrained: bool = True) -> int:
            return next(following)

        monkeypatch.setattr(Sampler, "next_token", next_token)

    return plant


def test_summarize(
    small: VLM, picture: Picture, read: list[list[int]], summaries: Callable[[list[str]], None]
) -> None:
    summaries(["all is blue", "yes"])
    answer, notes = ask(small, talk(picture(0), 10), "summarize")
    request, ids = read
    assert contains(request, small.tokenize("assistant: yes"))
    assert answer.text == "yes"
    assert contains(ids, small.tokenize(" all is blue"))
    assert not contains(ids, small.tokenize("0 circle?"))
    assert answer.n_visual_tokens == 16
    assert len(notes) == 1
    assert "summarized" in notes[0]
    # The picture stands before the summary: it stays in the KV cache.
    assert ids.index(-1) < len(ids) - len(small.tokenize(" all is blue"))


def test_a_summary_is_made_once(
    small: VLM, picture: Picture, read: list[list[int]], summaries: Callable[[list[str]], None]
) -> None:
    messages = talk(picture(0), 10, "triangle")
    summaries(["all is blue", "yes", "no", "still blue", "so"])
    ask(small, messages, "summarize")
    answer, _ = ask(small, messages, "summarize")
    assert answer.text == "no"
    assert len(read) == 3
    # Later turns are added to what was summarized, which is not read again.
    answer, _ = ask(small, talk(picture(0), 12, "triangle"), "summarize")
    assert answer.text == "so"
    request = read[3]
    assert contains(request, small.tokenize("all is blue"))
    assert not contains(request, small.tokenize("2 triangle?"))


def test_a_summary_that_says_nothing_leaves_turns_out(
    small: VLM, picture: Picture, summaries: Callable[[list[str]], None]
) -> None:
    summaries(["", "yes"])
    answer, notes = ask(small, talk(picture(0), 10, "square"), "summarize")
    assert answer.text == "yes"
    assert "left out" in notes[0]


def test_a_summary_without_a_plan(small: VLM, picture: Picture) -> None:
    """Whatever the model itself says: the conversation fits afterwards."""
    answer, notes = ask(small, talk(picture(0), 30), "summarize")
    assert answer.n_prompt_tokens < N_CTX
    assert len(notes) == 1
