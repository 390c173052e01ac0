"""What generation_config.json and the templates' names say, from the checkpoint to the answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm.build.convert import convert_model
from edgevlm.errors import PromptError
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM, open_vlm

Picture = Callable[[int], Pixels]
QUESTION = "What color is the cross?"


@pytest.fixture(scope="module")
def changed(
    tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path, vlm: VLM, picture: Picture
) -> Path:
    """The built-in model, told to end at the second token of its own answer, and to sample."""
    folder = tmp_path_factory.mktemp("changed")
    source = folder / "checkpoint"
    shutil.copytree(shapes_checkpoint, source)
    second = vlm.generate(QUESTION, [picture(0)]).token_ids[1]
    generation = json.loads((source / "generation_config.json").read_text())
    generation |= {"eos_token_id": [2, second], "temperature": 0.5, "top_k": 7}
    (source / "generation_config.json").write_text(json.dumps(generation))
    template = (source / "chat_template.jinja").read_text()
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "loud.jinja").write_text(
        template.replace("assistant\n", "ASSISTANT\n")
    )
    convert_model(source, out=folder / "model", name="shapes", outtype="f16")
    return folder / "model"


def test_every_end_token_ends_an_answer(changed: Path, vlm: VLM, picture: Picture) -> None:
    before = vlm.generate(QUESTION, [picture(0)])
    with open_vlm(
        model=changed / "shapes-F16.gguf",
        mmproj=changed / "mmproj-shapes-F16.gguf",
        n_threads=1,
        strict=True,
    ) as opened:
        answer = opened.generate(QUESTION, [picture(0)])
        assert answer.token_ids == before.token_ids[:1]
        assert answer.stop_reason == "end"
        assert opened.sampling_defaults == {"temperature": 0.5, "top_k": 7}
    assert vlm.sampling_defaults == {}


def test_a_named_template(changed: Path) -> None:
    model = changed / "shapes-F16.gguf"
    with open_vlm(model=model, n_threads=1, chat_template="loud") as loud:
        ids = loud.token_ids("Hi")
        assert ids[-len(loud.tokenize("ASSISTANT\n")) :] == loud.tokenize("ASSISTANT\n")
    with open_vlm(model=model, n_threads=1) as plain:
        assert plain.token_ids("Hi") != ids
    missing = open_vlm(model=model, n_threads=1, chat_template="quiet")
    with pytest.raises(PromptError, match="no chat template named 'quiet'") as caught, missing:
        pytest.fail("it was opened")
    assert caught.value.hint == "it has: default, loud"


def test_a_template_that_loops_for_ever(
    tmp_path: Path, shapes_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevlm.runtime.template.MAX_SECONDS", 0.2)
    source = tmp_path / "checkpoint"
    shutil.copytree(shapes_checkpoint, source)
    (source / "chat_template.jinja").write_text(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    )
    convert_model(source, out=tmp_path / "model", name="shapes", outtype="f16")
    with (
        open_vlm(model=tmp_path / "model" / "shapes-F16.gguf", n_threads=1) as opened,
        pytest.raises(PromptError, match="may loop for ever") as caught,
    ):
        opened.generate("Hi")
    assert caught.value.hint
