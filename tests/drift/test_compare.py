"""A comparison measures what it says: held against distributions computed in full, one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgevlm.build.cache import cache_folder, models_folder
from edgevlm.drift import compare as compare_module
from edgevlm.drift.questions import QuestionSet, gather
from edgevlm.drift.verdict import Limits
from edgevlm.errors import ContextOverflowError, DriftError, PromptError, QuantizationError
from edgevlm.model_dir import open_model_dir
from edgevlm.native.projector import Projector
from edgevlm.runtime.image import load_image
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import open_vlm
from edgevlm.vectors import log_softmax
from tests.drift.compared import asked, compare, level_of, linked, write_prompts


@pytest.fixture
def model(shapes_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model directory to compare, with a cache of its own."""
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "cache"))
    return linked(shapes_dir, tmp_path / "shapes")


@pytest.fixture
def questions(shapes_assets: Path, tmp_path: Path) -> QuestionSet:
    return asked(shapes_assets, tmp_path)


def test_the_baseline_against_itself_is_exactly_nothing(
    model: Path, questions: QuestionSet
) -> None:
    own = level_of(compare(model, questions, "F16"), "F16")
    assert own.image is not None
    assert own.vision is not None
    assert not own.is_baseline
    assert (own.image.mean_kld.value, own.image.max_kld, own.image.rms_delta_p) == (0, 0, 0)
    assert (own.image.same_top_token.value, own.image.perplexity_ratio.value) == (1, 1)
    assert own.answers.exact == own.answers.n == len(questions.questions)
    assert own.vision.min_cosine == pytest.approx(1, abs=1e-12)
    assert own.vision.mean_relative_error == 0


def test_a_level_is_as_far_as_whole_distributions_say(
    model: Path, questions: QuestionSet, shapes_assets: Path
) -> None:
    report = compare(model, questions, "Q4_K_M")
    level = level_of(report, "Q4_K_M")
    assert level.image is not None
    directory = open_model_dir(model)
    klds: list[np.ndarray] = []
    same: list[np.ndarray] = []
    answers: list[bool] = []
    base_rows: list[np.ndarray] = []
    said: list[tuple[str, tuple[int, ...]]] = []
    for name, mmproj in (("F16", "F16"), ("Q4_K_M", "Q8_0")):
        text, projector = directory.find("text", name), directory.find("mmproj", mmproj)
        assert text is not None
        assert projector is not None
        with open_vlm(
            model=text.path, mmproj=projector.path, n_ctx=256, n_threads=1, device="cpu"
        ) as vlm:
            for index, question in enumerate(questions.questions):
                pixels = [load_image(path) for path in question.images]
                answer = vlm.generate(question.prompt, pixels, params=SamplingParams(max_tokens=48))
                if name == "F16":
                    said.append((answer.text, answer.token_ids))
                # The last row is what stands behind the answer: its end.
                led = (*said[index][1], 0)
                rows = log_softmax(vlm.answer_logits(question.prompt, pixels, answer=led))
                if name == "F16":
                    base_rows.append(rows)
                    continue
                base = base_rows[index]
                klds.append((np.exp(base) * (base - rows)).sum(axis=1))
                same.append(rows.argmax(axis=1) == base.argmax(axis=1))
                answers.append(answer.text == said[index][0])
    exact = np.concatenate(klds)
    drift = level.image
    assert drift.n_tokens == len(exact)
    assert drift.mean_kld.value == pytest.approx(exact.mean(), abs=drift.kld_error + 1e-9)
    assert drift.max_kld == pytest.approx(exact.max(), rel=1e-2)
    assert level.mean_kld == drift.mean_kld
    assert drift.mean_kld.low < drift.mean_kld.value < drift.mean_kld.high
    assert drift.same_top_token.value == pytest.approx(np.concatenate(same).mean())
    assert level.answers.exact == sum(answers)
    assert level.tasks is not None
    assert level.tasks.n == len(questions.questions) / 2
    assert level.cost.bits_per_weight == pytest.approx(4.88, abs=0.01)


def test_drift_rises_as_bits_fall_and_is_told_apart(model: Path, questions: QuestionSet) -> None:
    report = compare(model, questions, "Q8_0", "Q4_K_M", "Q2_K")
    found = [level.attribution for level in report.levels[1:]]
    alone = [one.text_alone.value for one in found if one is not None and one.text_alone]
    assert len(alone) == 3
    assert alone == sorted(alone)
    assert alone[2] > 10 * alone[0] > 0
    # One projector for all of them: one number.
    mmproj = {one.mmproj_alone.value for one in found if one is not None and one.mmproj_alone}
    assert len(mmproj) == 1
    assert report.levels[0].is_baseline
    assert report.levels[0].attribution is None


def test_images_are_encoded_once_for_each_projector(
    model: Path, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_encoded = 0
    encode = Projector.encode

    def counted(self: Projector, *arguments: object, **options: object) -> object:
        nonlocal n_encoded
        n_encoded += 1
        return encode(self, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Projector, "encode", counted)
    compare(model, questions, "Q8_0", "Q4_K_M")
    n_images = len({question.digests for question in questions.questions})
    assert n_encoded == 2 * n_images


def test_a_second_run_asks_no_model_and_says_the_same(
    model: Path, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare(model, questions, "Q4_K_M", "Q3_K_M", layers=True)
    # What was made for it is gone again.
    assert not list(models_folder().glob("compare-*"))

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(compare_module, "open_vlm", refused)
    monkeypatch.setattr(compare_module, "text_speed", refused)
    second = compare(model, questions, "Q4_K_M", "Q3_K_M", layers=True)
    assert second.levels == first.levels
    assert second.changed == first.changed


def test_an_interrupted_run_goes_on(
    model: Path, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_level, n_asked = compare_module.run_level, 0

    def interrupted(*arguments: object, **options: object) -> object:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 9:
            raise KeyboardInterrupt
        return run_level(*arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(compare_module, "run_level", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(model, questions, "Q8_0", "Q4_K_M")
    assert n_asked == 9
    compare(model, questions, "Q8_0", "Q4_K_M")
    # Two levels with both projectors, the baseline with theirs; eight were there.
    assert n_asked == 9 + 5 * len(questions.questions) - 8


def test_a_torn_record_is_made_again(model: Path, questions: QuestionSet) -> None:
    first = compare(model, questions, "Q4_K_M")
    for path in (cache_folder() / "compare").rglob("000001.npz"):
        path.write_bytes(path.read_bytes()[:200])
    assert compare(model, questions, "Q4_K_M").levels[1].image == first.levels[1].image


def test_each_part_alone_drifts_less_than_the_whole(model: Path, questions: QuestionSet) -> None:
    level = level_of(compare(model, questions, "Q2_K", layers=True), "Q2_K")
    assert level.layers is not None
    assert level.attribution is not None
    assert level.attribution.text_alone is not None
    blocks = [part for part in level.layers if part.block is not None]
    roles = {part.role for part in level.layers if part.block is None}
    assert [part.block for part in blocks] == list(range(4))
    assert {part.role for part in blocks} == {"all"}
    assert {"attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"} <= roles
    assert all(part.mean_kld > 0 for part in level.layers)
    assert max(part.mean_kld for part in blocks) < level.attribution.text_alone.value


def test_parts_need_no_folder_that_another_run_made(model: Path, questions: QuestionSet) -> None:
    assert not models_folder().exists()
    level = level_of(compare(model, questions, "Q4_K_M", layers=True), "Q4_K_M")
    assert level.layers
    assert not list(models_folder().glob("compare-*"))


def test_levels_that_are_made_can_be_kept(model: Path, questions: QuestionSet) -> None:
    compare(model, questions, "Q3_K_M", keep=True)
    assert (model / "shapes-Q3_K_M.gguf").is_file()
    assert open_model_dir(model).find("text", "Q3_K_M") is not None


def test_limits_of_the_user_come_before_the_profiles(model: Path, questions: QuestionSet) -> None:
    assert not compare(model, questions, "Q4_K_M").exceeds
    report = compare(model, questions, "Q4_K_M", limits=Limits(max_kld=1e-9))
    assert report.exceeds
    assert level_of(report, "Q4_K_M").verdict.breaches[0].startswith("mean KLD")
    assert level_of(report, "Q4_K_M").verdict.max_mean_kld == 1e-9


def test_prompts_without_images_stand_apart(
    model: Path, questions: QuestionSet, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path / "text.jsonl", [{"prompt": "What is a circle?"}])
    text = gather(prompts=prompts).questions
    both = QuestionSet(questions=(*questions.questions, *text), source="both")
    level = level_of(compare(model, both, "Q4_K_M"), "Q4_K_M")
    assert level.text is not None
    assert level.image is not None
    assert (level.text.n_prompts, level.image.n_prompts) == (1, len(questions.questions))
    alone = compare(model, QuestionSet(questions=text, source="text"), "Q4_K_M")
    level = level_of(alone, "Q4_K_M")
    assert (level.image, level.vision, level.attribution) == (None, None, None)
    assert level.tokens is level.text


def test_expected_answers_can_lead(model: Path, questions: QuestionSet) -> None:
    from edgevlm.drift.passes import Leading
    from edgevlm.drift.run import CompareOptions
    from edgevlm.drift.run import compare as run_compare

    known = [question for question in questions.questions if question.expected is not None]
    options = CompareOptions(
        levels=("Q2_K",),
        leading=Leading(along="expected", max_tokens=48),
        n_threads=1,
        device="cpu",
    )
    report = run_compare(
        open_model_dir(model), QuestionSet(questions=tuple(known), source=""), options
    )
    level = level_of(report, "Q2_K")
    assert level.image is not None
    assert level.image.n_tokens >= len(known)
    assert report.settings.led_along == "expected"
    assert level.answers.n == len(known)


def test_a_context_too_small_says_how_much_is_needed(model: Path, questions: QuestionSet) -> None:
    with pytest.raises(ContextOverflowError, match="too long") as caught:
        compare(model, questions, "Q4_K_M", n_ctx=32)
    assert "--ctx" in caught.value.hint


def test_a_projector_of_another_model_is_refused(
    model: Path, questions: QuestionSet, tmp_path: Path
) -> None:
    from edgevlm.errors import EdgeVLMError

    with pytest.raises(EdgeVLMError):
        compare(model, questions, "Q4_K_M", mmproj=model / "shapes-F16.gguf")


def test_images_need_a_projector(model: Path, questions: QuestionSet) -> None:
    for path in model.glob("mmproj-*"):
        path.unlink()
    (model / "edgevlm.json").unlink()
    with pytest.raises(PromptError, match="has no projector"):
        compare(model, questions, "Q4_K_M")


def test_a_quantized_file_is_a_baseline_only_when_asked(
    model: Path, questions: QuestionSet
) -> None:
    (model / "edgevlm.json").unlink()
    (model / "shapes-F16.gguf").unlink()
    with pytest.raises(QuantizationError, match="no 16-bit baseline"):
        compare(model, questions, "Q4_K_M")
    report = compare(model, questions, "Q4_K_M", baseline="Q8_0")
    assert report.baseline == "Q8_0"
    with pytest.raises(QuantizationError, match="--layers"):
        compare(model, questions, "Q4_K_M", baseline="Q8_0", layers=True)


def test_a_saved_baseline_holds_another_run_to_it(
    model: Path, questions: QuestionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "base.zip"
    first = compare(model, questions, "Q4_K_M", save=saved)
    monkeypatch.setenv("EDGEVLM_CACHE", str(tmp_path / "other"))
    again = compare(model, questions, "Q4_K_M", against=saved)
    now, level = again.levels[1:]
    assert (now.level, level.level) == ("F16", "Q4_K_M")
    assert now.image is not None
    assert now.image.max_kld == 0
    assert level.image == first.levels[1].image
    assert again.notes == []
    other = asked(Path(questions.questions[0].images[0]).parent.parent, tmp_path, n=4)
    with pytest.raises(DriftError, match="has no answer to"):
        compare(model, other, against=saved)


@pytest.mark.parametrize("damage", ["cut", "text", "swapped"])
def test_a_damaged_saved_baseline_is_refused(
    model: Path, questions: QuestionSet, tmp_path: Path, damage: str
) -> None:
    import zipfile

    saved = tmp_path / "base.zip"
    compare(model, questions, "Q4_K_M", save=saved)
    if damage == "cut":
        saved.write_bytes(saved.read_bytes()[:-100])
    elif damage == "text":
        saved.write_text("not a zip")
    else:
        with zipfile.ZipFile(saved) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["000001.rows.npz"] = members["000001.record.npz"]
        with zipfile.ZipFile(saved, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    with pytest.raises(DriftError, match=r"no saved baseline|is damaged"):
        compare(model, questions, against=saved)


def test_the_baselines_distributions_are_bounded(
    model: Path, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "MAX_ROWS_BYTES", 2000)
    with pytest.raises(DriftError, match=r"more than 2\.0 kB"):
        compare(model, questions, "Q4_K_M")


def test_a_baseline_that_is_gone_is_made_once_from_the_checkpoint(
    model: Path, questions: QuestionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = compare(model, questions, "Q8_0", "Q4_K_M")
    (model / "shapes-F16.gguf").unlink()
    made: list[str] = []
    write_level = compare_module.write_level

    def counted(*arguments: object, **options: object) -> object:
        written = write_level(*arguments, **options)  # pyright: ignore[reportArgumentType]
        made.append(written.text.name)
        return written

    monkeypatch.setattr(compare_module, "write_level", counted)
    again = compare(model, questions, "Q8_0", "Q4_K_M")
    assert made == ["shapes-F16.gguf"]
    assert [level.image for level in again.levels] == [level.image for level in there.levels]
    assert not list(models_folder().glob("compare-*"))
