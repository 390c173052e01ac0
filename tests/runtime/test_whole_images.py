"""Images whose tokens see each other both ways, in a text model with windows (Gemma 3)."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from edgevlm_convert import convert_checkpoint, plan_conversion
from numpy.typing import NDArray

from edgevlm.errors import ContextOverflowError, GGUFError, ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.library import load_library
from edgevlm.native.text_context import ContextOptions, TextContext
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.prompt import ImageSpan, Message
from edgevlm.runtime.vlm import VLM, open_vlm
from tests.goldens.files import drawn_image, redraw
from tests.runtime.test_preflight import write

TEXT: dict[str, Any] = {
    "gemma3.block_count": 2,
    "gemma3.context_length": 2048,
    "gemma3.embedding_length": 32,
    "gemma3.attention.head_count": 2,
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["a", "<start_of_image>", "<end_of_image>"],
}
PROJECTOR: dict[str, Any] = {
    "clip.has_vision_encoder": True,
    "clip.projector_type": "gemma3",
    "clip.vision.projection_dim": 32,
    "clip.vision.image_size": 64,
    "clip.vision.patch_size": 8,
    "clip.vision.embedding_length": 16,
    "clip.vision.block_count": 2,
    "clip.vision.attention.head_count": 2,
}
BOUND = 1e-4
# The window of the golden is 12 tokens, an image has 16.
FIRST, SECOND = "What is in the image?", "Is the circle in one or in the other?"
LONG = "The circle is one, the other is not. " * 40
IMAGE, OTHER = drawn_image("64x64-1"), drawn_image("64x64-2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gemma3")
    text, mmproj = folder / "text.gguf", folder / "mmproj.gguf"
    plan = plan_conversion(redraw("gemma3", folder / "checkpoint"), outtype="f32")
    convert_checkpoint(plan, text_path=text, mmproj_path=mmproj)
    return text, mmproj


@pytest.fixture(scope="module")
def gemma(files: tuple[Path, Path]) -> Generator[VLM]:
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=1536, n_threads=1, strict=True) as opened:
        yield opened


def logits_after(vlm: VLM, messages: list[Message], *, reuse: bool) -> NDArray[np.float32]:
    vlm.cache.prefill(vlm.layouter.lay_out(messages), vlm.layouter.projector, reuse=reuse)
    return vlm.cache.context.logits(1)[0]


def talk(*texts: str, images: tuple[NDArray[np.uint8], ...] = (IMAGE,)) -> list[Message]:
    """Return turns of user and model, the images in the first."""
    roles = ("user", "assistant") * len(texts)
    contents = [(*images, texts[0]), *((text,) for text in texts[1:])]
    return [
        Message(role=role, content=content) for role, content in zip(roles, contents, strict=False)
    ]


@pytest.mark.parametrize(
    ("before", "is_kept"),
    [
        (talk(FIRST), True),
        (talk(SECOND), True),
        (talk(FIRST, images=(IMAGE, OTHER)), True),
        # What the window of the kept beginning held was written over meanwhile.
        (talk(FIRST, "no", LONG), False),
        (talk(LONG), False),
    ],
    ids=["goes on", "cut behind the image", "cut in images", "cut far back", "cut in the middle"],
)
@pytest.mark.parametrize(
    "then", [talk(FIRST, "A circle.", SECOND), talk(FIRST, "", LONG)], ids=["short", "long"]
)
def test_a_second_question_gets_the_logits_of_a_cold_run(
    gemma: VLM, before: list[Message], then: list[Message], is_kept: bool
) -> None:
    cold = logits_after(gemma, then, reuse=False)
    gemma.forget()
    logits_after(gemma, before, reuse=True)
    n_before = gemma.cache.n_used
    reused = gemma.cache.prefill(gemma.layouter.lay_out(then), gemma.layouter.projector)
    np.testing.assert_allclose(gemma.cache.context.logits(1)[0], cold, atol=BOUND)
    assert bool(reused.n_reused_tokens) == is_kept
    assert reused.n_reused_tokens <= n_before


def test_a_long_conversation_goes_on_though_the_window_has_moved(gemma: VLM) -> None:
    """Cut near its end, as when the model's answer is written otherwise; all the rest stays."""
    turns = talk(LONG, "Yes, it is.", SECOND, "no", FIRST)
    cold = logits_after(gemma, turns, reuse=False)
    gemma.forget()
    logits_after(gemma, talk(LONG, "Yes, it may be.", FIRST), reuse=True)
    assert gemma.cache.n_used > 800
    reused = gemma.cache.prefill(gemma.layouter.lay_out(turns), gemma.layouter.projector)
    np.testing.assert_allclose(gemma.cache.context.logits(1)[0], cold, atol=BOUND)
    assert reused.n_reused_tokens > 800


def test_a_beginning_whose_window_is_lost_would_be_seen(
    gemma: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = talk(FIRST, "A circle.", SECOND)
    cold = logits_after(gemma, then, reuse=False)
    gemma.forget()
    logits_after(gemma, talk(FIRST, "no", LONG), reuse=True)

    def at_the_beginning(*_: object) -> int:
        return 0

    monkeypatch.setattr(load_library().llama, "llama_memory_seq_pos_min", at_the_beginning)
    warm = logits_after(gemma, then, reuse=True)
    assert np.abs(warm - cold).max() > 100 * BOUND


@pytest.mark.parametrize("n_ctx", [128, 1536])
def test_layers_with_a_window_keep_no_more(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture, n_ctx: int
) -> None:
    caplog.set_level(logging.DEBUG, logger="edgevlm.native")
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=n_ctx, n_threads=1):
        pass
    found = re.findall(r" KV buffer size = +([\d.]+) MiB", caplog.text)
    predicted = predict_footprint(read_gguf(files[0]), read_gguf(files[1]), n_ctx=n_ctx)
    assert predicted.kv_cache == pytest.approx(sum(map(float, found)) * 2**20, abs=12000)
    compute = re.findall(r" compute buffer size = +([\d.]+) MiB", caplog.text)
    # Fitted on graphs that hold a little more at one moment, and the kernels' work is not in there.
    assert 1.0 <= predicted.text_compute / (float(compute[-1]) * 2**20) <= 1.4


# The text model of Gemma 3 4B; a cell of a layer is 4 KB: 4 heads, 256 channels of K and of V, F16.
GEMMA_4B: dict[str, Any] = {
    "gemma3.block_count": 34,
    "gemma3.embedding_length": 2560,
    "gemma3.feed_forward_length": 10240,
    "gemma3.attention.head_count": 8,
    "gemma3.attention.head_count_kv": 4,
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
    "gemma3.attention.sliding_window": 1024,
}
EVERY_OTHER = [layer % 2 == 0 for layer in range(34)]


@pytest.mark.parametrize(
    ("keys", "n_ctx", "n_cells"),
    [
        # Every sixth layer holds the whole context, the others 1024 tokens and a batch of 512.
        ({}, 4096, 5 * 4096 + 29 * 1536),
        ({}, 131072, 5 * 131072 + 29 * 1536),
        ({}, 1100, 34 * 1280),
        ({"gemma3.attention.sliding_window_pattern": 2}, 4096, 17 * 4096 + 17 * 1536),
        ({"gemma3.attention.sliding_window_pattern": 1}, 4096, 34 * 4096),
        ({"gemma3.attention.sliding_window_pattern": EVERY_OTHER}, 4096, 17 * 4096 + 17 * 1536),
        ({"gemma3.attention.sliding_window_pattern": [False] * 34}, 4096, 34 * 4096),
        ({"gemma3.attention.sliding_window": None}, 4096, 34 * 4096),
    ],
)
def test_memory_of_windows_is_read_from_the_header(
    tmp_path: Path, keys: dict[str, Any], n_ctx: int, n_cells: int
) -> None:
    header = {key: value for key, value in (GEMMA_4B | keys).items() if value is not None}
    file = read_gguf(write(tmp_path / "text.gguf", "gemma3", header))
    assert predict_footprint(file, None, n_ctx=n_ctx).kv_cache == n_cells * 4096
    halved = predict_footprint(file, None, n_ctx=n_ctx, kv_type="Q8_0").kv_cache
    assert halved == n_cells * 4096 * 34 // 64


def test_an_image_read_token_after_token_would_be_seen(
    gemma: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits_after(gemma, talk(FIRST), reuse=False)
    decode = TextContext.decode_embeddings

    def causal(self: TextContext, *args: Any, **options: Any) -> None:
        decode(self, *args, **{**options, "causal": True})

    monkeypatch.setattr(TextContext, "decode_embeddings", causal)
    assert np.abs(logits_after(gemma, talk(FIRST), reuse=False) - expected).max() > 100 * BOUND


def test_a_batch_grows_to_hold_an_image(
    gemma: VLM, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits_after(gemma, talk(FIRST), reuse=False)
    # The decode of fewer tokens than an image has is an assertion that ends the process.
    monkeypatch.setattr(ContextOptions, "n_batch", 4)
    with open_vlm(model=files[0], mmproj=files[1], n_ctx=256, n_threads=1, strict=True) as vlm:
        assert vlm.cache.context.n_batch == 16
        found = logits_after(vlm, talk(FIRST), reuse=False)
    np.testing.assert_allclose(found, expected, atol=BOUND)


def test_an_image_that_does_not_fit_is_refused(files: tuple[Path, Path]) -> None:
    with (
        open_vlm(model=files[0], mmproj=files[1], n_ctx=8, n_threads=1) as vlm,
        pytest.raises(ContextOverflowError, match="16 of them visual"),
    ):
        vlm.generate(FIRST, [IMAGE])


def checked(tmp_path: Path, *, tokens: list[str], **projector: int) -> ImageSpan:
    text = TEXT | {"tokenizer.ggml.tokens": tokens}
    file, _ = check_text_model(write(tmp_path / "text.gguf", "gemma3", text))
    changed = PROJECTOR | {f"clip.vision.{key}": value for key, value in projector.items()}
    return check_projector(write(tmp_path / "mmproj.gguf", "clip", changed), file)


def test_what_must_be_decoded_whole_is_counted(tmp_path: Path) -> None:
    tokens = TEXT["tokenizer.ggml.tokens"]
    assert checked(tmp_path, tokens=tokens).n_whole == 4
    assert checked(tmp_path, tokens=tokens, image_size=896, patch_size=14).n_whole == 256


@pytest.mark.parametrize("number", [1, 2])
def test_a_vocabulary_without_a_token_that_libmtmd_writes(tmp_path: Path, number: int) -> None:
    tokens = [*TEXT["tokenizer.ggml.tokens"]]
    lost = tokens[number]
    tokens[number] = "b"
    with pytest.raises(ModelLoadError, match=lost):
        checked(tmp_path, tokens=tokens)


@pytest.mark.parametrize("scale", [0, 3, 16])
def test_patches_that_cannot_be_averaged_would_end_the_process(tmp_path: Path, scale: int) -> None:
    values = {"projector.scale_factor": scale}
    with pytest.raises(GGUFError, match=f"merges {scale} x {scale} of 8 x 8 patches"):
        checked(tmp_path, tokens=TEXT["tokenizer.ggml.tokens"], **values)


@pytest.mark.parametrize(("type_", "is_taken"), [("F16", True), ("BF16", True), ("Q8_0", False)])
def test_a_projection_of_blocks_would_corrupt_memory(
    tmp_path: Path, type_: str, is_taken: bool
) -> None:
    """llama.cpp transposes it; a quantizer that does not know makes such files."""
    writer = gguf.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    for key, value in PROJECTOR.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(key, value)
    kind = gguf.GGMLQuantizationType[type_]
    data = gguf.quants.quantize(np.ones((4, 32), dtype=np.float32), kind)
    writer.add_tensor("mm.input_projection.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    text, _ = check_text_model(write(tmp_path / "text.gguf", "gemma3", TEXT))
    if is_taken:
        assert check_projector(tmp_path / "mmproj.gguf", text).n_whole == 4
        return
    with pytest.raises(GGUFError, match="as Q8_0, which") as caught:
        check_projector(tmp_path / "mmproj.gguf", text)
    assert caught.value.hint
