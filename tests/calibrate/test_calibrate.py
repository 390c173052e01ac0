"""An importance matrix from runs of the model: what is summed, kept, refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf
from PIL import Image

from edgevlm.calibrate.matrix import balanced, read_progress
from edgevlm.calibrate.run import Options, Sample, calibrate
from edgevlm.cli.app import main
from edgevlm.errors import (
    ContextOverflowError,
    ImageError,
    ModelLoadError,
    OutputError,
    QuantizationError,
)
from edgevlm.gguf_file import GGUFTensor, read_gguf
from edgevlm.native.channel_sums import ChannelSums, MatrixSums
from edgevlm.native.devices import Device
from edgevlm.progress import Advance, Unit
from edgevlm.quantize.encode import text_encoder
from edgevlm.quantize.imatrix_file import read_imatrix
from edgevlm.quantize.profile_file import load_profile
from edgevlm.runtime.answer import Answer
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.goldens.files import drawn_image
from tests.quantize.quantizing import llama_quantize, quantize_file

OPTIONS = Options(image_weight=0.5, max_tokens=4, n_threads=1)
Files = tuple[Path, Path]


@pytest.fixture(scope="session")
def sixteen_bits(
    tmp_path_factory: pytest.TempPathFactory, golden: Callable[[str], Path], shapes_checkpoint: Path
) -> Callable[[str], Files]:
    """16-bit text model and projector of `shapes` or a golden."""

    def converted(name: str) -> Files:
        folder = tmp_path_factory.mktemp(name)
        checkpoint = shapes_checkpoint if name == "shapes" else golden(name)
        plan = plan_conversion(checkpoint, outtype="f16")
        write_gguf(plan.text, folder / "text.gguf")
        write_gguf(plan.mmproj, folder / "mmproj.gguf")
        return folder / "text.gguf", folder / "mmproj.gguf"

    return converted


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Two images, two prompts each."""
    found: list[Sample] = []
    for index in (1, 2):
        path = tmp_path / f"{index}.png"
        Image.fromarray(drawn_image(f"64x96-{index}")).save(path)
        found += [Sample(image=path, prompt=prompt) for prompt in ("What is it?", "How many?")]
    return found


def values(path: Path, name: str) -> np.ndarray:
    """Return a tensor of a GGUF file as float32."""
    tensor: GGUFTensor = next(one for one in read_gguf(path).tensors if one.name == name)
    data = path.read_bytes()[tensor.offset : tensor.offset + tensor.n_bytes]
    dtype = "<f2" if tensor.type == "F16" else "<f4"
    return np.frombuffer(data, dtype).astype(np.float32).reshape(tensor.shape)


def test_sums_are_those_of_the_first_blocks_input(sixteen_bits: Callable[[str], Files]) -> None:
    text, mmproj = sixteen_bits("shapes")
    sums = ChannelSums()
    with open_vlm(model=text, mmproj=mmproj, n_ctx=256, device="cpu", sums=sums) as vlm:
        tokens = vlm.token_ids("What is it?")
        vlm.first_logits("What is it?")
    rows = values(text, "token_embd.weight")[tokens]
    rows /= np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-6)
    expected = ((rows * values(text, "blk.0.attn_norm.weight")) ** 2).sum(axis=0)
    found = sums.sums["text"]
    for part in ("attn_q", "attn_k", "attn_v"):
        one = found[f"blk.0.{part}.weight"]
        assert one.counts.tolist() == [len(tokens)]
        np.testing.assert_allclose(one.sum2[0], expected, rtol=1e-3)
    # The last block's feed-forward is computed for every fourth position and the last.
    last = found["blk.3.ffn_down.weight"].counts[0]
    assert 0 < last < len(tokens)


@pytest.mark.parametrize("name", ["shapes", "gemma3", "qwen3_5", "qwen3_vl_moe", "idefics3"])
def test_every_matrix_of_every_kind_of_model_is_seen(
    sixteen_bits: Callable[[str], Files], tmp_path: Path, samples: list[Sample], name: str
) -> None:
    text, mmproj = sixteen_bits(name)
    out = tmp_path / "i.gguf"
    result = calibrate(text, mmproj, samples, out=out, options=OPTIONS)
    assert (result.n_run, result.skipped) == (4, [])
    assert set(result.n_rows) == {"text", "image", "vision"}
    seen = read_imatrix(out).importance.channels
    # All that the level would quantize, but for the embedding, has channels.
    encoder = text_encoder(load_profile("Q4_0"))
    plan, theirs = read_gguf(text), tmp_path / "theirs.gguf"
    types, _ = encoder.plan([_info(one) for one in plan.tensors], plan.metadata)
    wanted = {one for one, type_ in types.items() if type_.startswith("Q")} - {"token_embd.weight"}
    # A layer that predicts tokens ahead is never run.
    ahead = "blk.5." if name == "qwen3_5" else "none"
    assert all(one.startswith(ahead) for one in wanted - set(seen))
    # llama.cpp takes it, and writes what we write.
    importance = read_imatrix(out).importance
    ours = tmp_path / "ours.gguf"
    quantize_file(text, ours, text_encoder(load_profile("Q4_K_M"), importance=importance))
    assert llama_quantize(text, theirs, "Q4_K_M", importance=importance)
    assert sorted(map(_content, read_gguf(ours).tensors)) == sorted(
        map(_content, read_gguf(theirs).tensors)
    )


def _info(tensor: GGUFTensor):
    from edgevlm_convert.encoder import TensorInfo

    return TensorInfo(name=tensor.name, shape=tensor.shape, type=tensor.type)


def _content(tensor: GGUFTensor) -> tuple[str, str, bytes]:
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        return tensor.name, tensor.type, file.read(tensor.n_bytes)


def test_experts_are_counted_one_by_one(
    sixteen_bits: Callable[[str], Files], tmp_path: Path, samples: list[Sample]
) -> None:
    text, mmproj = sixteen_bits("qwen3_vl_moe")
    metadata = read_gguf(text).metadata
    n_used = metadata["qwen3vlmoe.expert_used_count"].value
    n_experts = metadata["qwen3vlmoe.expert_count"].value
    calibrate(text, mmproj, samples, out=tmp_path / "i.gguf", options=OPTIONS)
    kinds = read_progress(tmp_path / "i.gguf").sums
    for kind in ("text", "image"):
        experts = kinds[kind]["blk.0.ffn_up_exps.weight"]
        rows = kinds[kind]["blk.0.attn_q.weight"].counts[0]
        assert len(experts.counts) == n_experts
        assert isinstance(n_used, int)
        assert experts.counts.sum() == rows * n_used


def test_an_expert_that_saw_no_row_is_named_and_counts_evenly(
    sixteen_bits: Callable[[str], Files],
    tmp_path: Path,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add = ChannelSums._add  # pyright: ignore[reportPrivateUsage]
    name = "blk.0.ffn_up_exps.weight"

    def passing_over(self: ChannelSums, of: str, sum2: np.ndarray, counts: np.ndarray) -> None:
        if of == name:
            sum2, counts = sum2.copy(), counts.copy()
            sum2[1], counts[1] = 0, 0
        add(self, of, sum2, counts)

    monkeypatch.setattr(ChannelSums, "_add", passing_over)
    out = tmp_path / "i.gguf"
    text, mmproj = sixteen_bits("qwen3_vl_moe")
    result = calibrate(text, mmproj, samples[:1], out=out, options=OPTIONS)
    assert f"{name}[1]" in result.unseen
    found = read_imatrix(out)
    assert set(found.unseen) == set(result.unseen)
    width = values(text, name).shape[-1]
    assert found.importance.channels[name][width : 2 * width].tolist() == [1.0] * width


class _StopsAt:
    """A progress that raises behind the prompt of that number."""

    def __init__(self, number: int, error: BaseException) -> None:
        self._number, self._error = number, error

    @contextmanager
    def task(
        self, label: str, *, total: int | None = None, unit: Unit = "bytes"
    ) -> Generator[Advance]:
        del label, total, unit
        seen: list[int] = []

        def advance(amount: int, /) -> None:
            seen.append(amount)
            if len(seen) == self._number:
                raise self._error

        yield advance


def test_ctrl_c_keeps_what_was_collected(
    sixteen_bits: Callable[[str], Files], tmp_path: Path, samples: list[Sample]
) -> None:
    text, mmproj = sixteen_bits("shapes")
    whole, parts = tmp_path / "whole.gguf", tmp_path / "parts.gguf"
    calibrate(text, mmproj, samples, out=whole, options=OPTIONS)
    notes: list[str] = []
    interrupted = _StopsAt(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        calibrate(
            text,
            mmproj,
            samples,
            out=parts,
            options=OPTIONS,
            progress=interrupted,
            note=notes.append,
        )
    assert notes == [f"kept what 2 prompts gave in `{parts}`: --resume goes on"]
    assert len(read_progress(parts).done) == 2
    resumed = Options(image_weight=0.5, max_tokens=4, n_threads=1, resume=True)
    result = calibrate(text, mmproj, samples, out=parts, options=resumed)
    assert (result.n_before, result.n_run) == (2, 2)
    one, other = (read_imatrix(path).importance.channels for path in (whole, parts))
    assert one.keys() == other.keys()
    for name, channels in one.items():
        np.testing.assert_allclose(channels, other[name], rtol=1e-4, atol=1e-7)


def test_ctrl_c_before_the_first_prompt_is_through_keeps_nothing_and_says_so(
    sixteen_bits: Callable[[str], Files],
    tmp_path: Path,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pressed(self: ChannelSums, node: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ChannelSums, "computed", pressed)
    notes: list[str] = []
    out = tmp_path / "i.gguf"
    with pytest.raises(KeyboardInterrupt):
        calibrate(*sixteen_bits("shapes"), samples, out=out, options=OPTIONS, note=notes.append)
    assert notes == ["no prompt was through yet: nothing is kept"]
    assert not out.exists()


def test_an_error_keeps_what_was_collected(
    sixteen_bits: Callable[[str], Files], tmp_path: Path, samples: list[Sample]
) -> None:
    out = tmp_path / "i.gguf"
    failing = _StopsAt(1, ModelLoadError("llama.cpp failed to decode"))
    with pytest.raises(ModelLoadError):
        calibrate(*sixteen_bits("shapes"), samples, out=out, options=OPTIONS, progress=failing)
    assert len(read_progress(out).done) == 1


def test_a_card_is_named_and_not_used(
    sixteen_bits: Callable[[str], Files],
    tmp_path: Path,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    card = Device(
        name="CUDA0",
        description="a card",
        backend="CUDA",
        kind="gpu",
        total_n_bytes=0,
        free_n_bytes=0,
    )
    monkeypatch.setattr("edgevlm.calibrate.run.devices", lambda: (card,))
    notes: list[str] = []
    calibrate(
        *sixteen_bits("shapes"),
        samples[:1],
        out=tmp_path / "i.gguf",
        options=OPTIONS,
        note=notes.append,
    )
    assert notes == ["calibrating on the CPU, though there is CUDA0"]


def test_modalities_are_balanced_by_their_means() -> None:
    def of(values: list[float], count: int) -> MatrixSums:
        return MatrixSums(sum2=np.array([values]) * count, counts=np.array([count]))

    sums = {
        "text": {"a": of([1.0, 3.0], 2), "b": of([5.0, 5.0], 2)},
        "image": {"a": of([9.0, 5.0], 100)},
        "vision": {"v": of([2.0, 2.0], 7)},
    }
    for weight, expected in ((0.0, [1.0, 3.0]), (1.0, [9.0, 5.0]), (0.25, [3.0, 3.5])):
        mixed = balanced(sums, image_weight=weight)
        assert (mixed["a"].sum2 / mixed["a"].counts)[0].tolist() == expected
        assert (mixed["b"].sum2 / mixed["b"].counts)[0].tolist() == [5.0, 5.0]
        assert mixed["v"].counts.tolist() == [7]


def test_images_that_cannot_be_read_are_named_and_left_out(
    sixteen_bits: Callable[[str], Files], tmp_path: Path, samples: list[Sample]
) -> None:
    text, mmproj = sixteen_bits("shapes")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    bad = [Sample(image=broken, prompt=prompt) for prompt in ("a", "b")]
    notes: list[str] = []
    out = tmp_path / "i.gguf"
    result = calibrate(
        text, mmproj, [*bad, samples[0]], out=out, options=OPTIONS, note=notes.append
    )
    assert result.n_run == 1
    assert [str(broken) in line for line in notes] == [True]
    assert result.skipped == notes
    with pytest.raises(ImageError, match="none of the 2 prompts"):
        calibrate(text, mmproj, bad, out=tmp_path / "none.gguf", options=OPTIONS)
    assert not (tmp_path / "none.gguf").exists()


def test_an_image_that_the_model_cannot_be_shown_is_left_out(
    sixteen_bits: Callable[[str], Files],
    tmp_path: Path,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = VLM.generate

    def refusing(self: VLM, prompt: str, *args: Any, **options: Any) -> Answer:
        if prompt == samples[1].prompt:
            raise ContextOverflowError("the prompt has 9,000 tokens")
        return encode(self, prompt, *args, **options)

    monkeypatch.setattr(VLM, "generate", refusing)
    out = tmp_path / "i.gguf"
    result = calibrate(*sixteen_bits("shapes"), samples[:3], out=out, options=OPTIONS)
    assert result.n_run == 2
    assert result.skipped == [f"left out {samples[1].image}: the prompt has 9,000 tokens"]
    # Nothing of it is counted.
    assert len(read_progress(out).done) == 2


def test_a_fault_while_a_graph_runs_fails_the_run(
    sixteen_bits: Callable[[str], Files],
    tmp_path: Path,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, mmproj = sixteen_bits("shapes")

    def broken(self: ChannelSums, node: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ChannelSums, "computed", broken)
    with pytest.raises(ZeroDivisionError):
        calibrate(text, mmproj, samples, out=tmp_path / "i.gguf", options=OPTIONS)
    monkeypatch.setattr(ChannelSums, "fault", "the fields have moved")
    with pytest.raises(ModelLoadError, match="the fields have moved"):
        calibrate(text, mmproj, samples, out=tmp_path / "i.gguf", options=OPTIONS)
    assert not (tmp_path / "i.gguf").exists()


def test_another_model_or_a_quantized_one_is_refused(
    sixteen_bits: Callable[[str], Files], tmp_path: Path, samples: list[Sample]
) -> None:
    text, mmproj = sixteen_bits("shapes")
    out = tmp_path / "i.gguf"
    calibrate(text, mmproj, samples[:1], out=out, options=OPTIONS)
    other = sixteen_bits("idefics3")
    resumed = Options(image_weight=0.5, resume=True)
    with pytest.raises(QuantizationError, match="was collected from another model"):
        calibrate(*other, samples, out=out, options=resumed)
    small = tmp_path / "small.gguf"
    quantize_file(text, small, text_encoder(load_profile("Q4_K_M")))
    with pytest.raises(QuantizationError, match="is quantized"):
        calibrate(small, mmproj, samples, out=out, options=OPTIONS)


def test_a_place_that_cannot_be_written_is_refused_before_anything_runs(
    sixteen_bits: Callable[[str], Files],
    tmp_path: Path,
    samples: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, mmproj = sixteen_bits("shapes")
    monkeypatch.delattr("edgevlm.calibrate.run.open_vlm")
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "i.gguf", tmp_path):
        with pytest.raises(OutputError, match=str(out)):
            calibrate(text, mmproj, samples, out=out, options=OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.png", "2.png", "file"]


def test_the_command_line(
    tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "i.gguf"
    folder = str(samples[0].image.parent)
    command = ["calibrate", "shapes", "--images", folder, "--out", str(out), "--max-tokens", "2"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["n_run"] == 6  # three stock prompts an image
    assert main(command) == 1
    assert "--resume goes on" in capsys.readouterr().err
    quantized = ["quantize", "shapes", "--level", "IQ2_M", "--imatrix", str(out), "--dry-run"]
    assert main(quantized) == 0
    capsys.readouterr()
    assert main(["calibrate", folder, "--out", str(out)]) == 1
    assert "holds no GGUF file" in capsys.readouterr().err


def test_the_manifest_keeps_the_hash_and_how_much_was_seen(
    sixteen_bits: Callable[[str], Files],
    tmp_path: Path,
    samples: list[Sample],
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, mmproj = sixteen_bits("shapes")
    out = tmp_path / "i.gguf"
    calibrate(text, mmproj, samples, out=out, options=OPTIONS)
    model = str(text.parent)
    assert main(["quantize", model, "--level", "Q4_K_M", "--imatrix", str(out), "--json"]) == 0
    for entry in json.loads(capsys.readouterr().out)["files"]:
        record = entry["imatrix"]
        assert record["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
        assert (record["n_images"], record["n_prompts"], record["n_without"]) == (2, 4, 0)


def test_prompts_look_for_their_images_in_the_folder_of_images(
    tmp_path: Path, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = samples[0].image.parent
    prompts = tmp_path / "elsewhere" / "prompts.jsonl"
    prompts.parent.mkdir()
    prompts.write_text(
        '{"image": "1.png", "prompt": "How many?"}\n{"prompt": "What is it?", "answer": "red"}\n'
    )
    out = ["--out", str(tmp_path / "i.gguf"), "--max-tokens", "2", "--json"]
    command = ["calibrate", "shapes", "--prompts", str(prompts)]
    # The second names no image: it is asked about both.
    assert main([*command, "--images", str(folder), *out]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["n_run"], document["skipped"]) == (3, [])
    assert main([*command, *out, "--force"]) == 1
    assert "--images DIR" in capsys.readouterr().err
    assert main([*command, "--images", str(folder), "--answers", *out, "--force"]) == 1
    assert "without an answer" in capsys.readouterr().err
