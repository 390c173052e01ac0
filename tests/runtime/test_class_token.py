"""Where llama.cpp puts a class token: what the installed one does, what a mended one changes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgevlm_convert import ConversionPlan, convert_checkpoint, plan_conversion

from edgevlm.build.convert import convert_model
from edgevlm.errors import ModelLoadError
from edgevlm.gguf_file import read_gguf
from edgevlm.native import token_rows
from edgevlm.native.projector import Projector, TextSide
from edgevlm.native.token_rows import RowOrder
from edgevlm.runtime import class_token
from edgevlm.runtime.class_token import check_class_token, class_token_first, keeps_order
from edgevlm.runtime.vlm import open_vlm
from tests.convert.mutations import mmproj, values
from tests.goldens.files import drawn_image, redraw

CLASS, POSITION, BRIGHT = (np.eye(4, dtype=np.float32)[channel] for channel in range(3))
NOTHING = np.zeros(4, dtype=np.float32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw("llava_clip_llama", tmp_path_factory.mktemp("clip") / "checkpoint")


def puts_it_first(projector_type: str) -> bool:
    return bool(projector_type)


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_token, "class_token_first", puts_it_first)


def positions(plan: ConversionPlan) -> np.ndarray:
    tensors = {tensor.info.name: tensor for tensor in plan.mmproj.tensors}
    table = tensors["v.position_embd.weight"]
    return table.read(0, table.info.shape[0])


@pytest.mark.parametrize("projector_type", ["mlp", "internvl"])
def test_the_installed_one_puts_it_last(projector_type: str) -> None:
    assert class_token_first(projector_type) is False


def test_the_tower_is_asked_beside_a_text_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one libmtmd counts an image's tokens by what memory held, and ends the process."""
    handles: list[int] = []
    opened = class_token.open_projector

    def watched(path: Path, model: TextSide, **options: Any) -> AbstractContextManager[Projector]:
        handles.append(model.handle)
        return opened(path, model, **options)

    monkeypatch.setattr(class_token, "open_projector", watched)
    assert class_token_first.__wrapped__("mlp") is False
    assert handles
    assert all(handles)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Behind the patches: the second patch has the row of the first, the first is left out.
        ([POSITION, NOTHING, NOTHING, CLASS], False),
        # Before the patches, and left out.
        ([POSITION + BRIGHT, NOTHING, NOTHING, NOTHING], True),
        # Before the patches, and handed over as the first of them.
        ([CLASS, POSITION + BRIGHT, NOTHING, NOTHING], False),
        # Behind the patches, whose rows are in order, and left out.
        ([BRIGHT, POSITION, NOTHING, NOTHING], False),
    ],
)
def test_what_comes_out_of_the_tiny_tower_tells(rows: list[np.ndarray], expected: bool) -> None:
    assert keeps_order(np.stack(rows)) is expected


def test_a_mended_one_gets_the_checkpoints_order(clip: Path) -> None:
    pinned = plan_conversion(clip)
    mended = plan_conversion(clip, class_token_first=puts_it_first)
    assert np.array_equal(np.roll(positions(pinned), 1, axis=0), positions(mended))
    assert not np.array_equal(positions(pinned), positions(mended))


def test_towers_without_the_token_ask_nobody(tmp_path: Path) -> None:
    def fail(projector: str) -> bool:
        raise AssertionError(projector)

    plan = plan_conversion(redraw("llava_siglip_qwen2", tmp_path), class_token_first=fail)
    assert class_token.KEY not in plan.mmproj.metadata


@pytest.mark.usefixtures("mended")
def test_convert_asks_the_installed_one(clip: Path, tmp_path: Path) -> None:
    convert_model(clip, out=tmp_path / "model", name="clip")
    header = read_gguf(next((tmp_path / "model").glob("mmproj-*.gguf")))
    assert header.metadata[class_token.KEY].value is True


def test_a_file_for_the_other_one_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_model(clip, out=tmp_path / "model", name="clip")
    text, projector = (
        next((tmp_path / "model").glob(f"{name}*.gguf")) for name in ("clip", "mmproj")
    )
    assert check_class_token(projector) == RowOrder(patches=True)
    monkeypatch.setattr(class_token, "class_token_first", puts_it_first)
    with (
        pytest.raises(ModelLoadError, match="treats the vision tower's class token"),
        open_vlm(model=text, mmproj=projector, n_ctx=128, n_threads=1, device="cpu"),
    ):
        pass


def test_other_files_are_not_asked(
    shapes_dir: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    def fail(projector: str) -> bool:
        raise AssertionError(projector)

    monkeypatch.setattr(class_token, "class_token_first", fail)
    assert check_class_token(shapes_dir / "mmproj-shapes-F16.gguf") == RowOrder()


def _rotated_back(table: np.ndarray) -> np.ndarray:
    return np.roll(table, 1, axis=0)


def test_a_file_of_another_converter_gives_the_same_rows(clip: Path, tmp_path: Path) -> None:
    """Its table is in the checkpoint's order, for a llama.cpp that there is not."""
    plan = plan_conversion(clip, outtype="f32")
    other = mmproj(values("position_embd", _rotated_back), {class_token.KEY: None})(plan)
    image = drawn_image("72x72-1")
    rows: list[np.ndarray] = []
    for number, one in enumerate((plan, other)):
        paths = tmp_path / f"text{number}.gguf", tmp_path / f"mmproj{number}.gguf"
        convert_checkpoint(one, text_path=paths[0], mmproj_path=paths[1])
        with open_vlm(model=paths[0], mmproj=paths[1], n_ctx=128, device="cpu") as vlm:
            rows.append(np.concatenate(vlm.encode(image).tiles))
    order = check_class_token(tmp_path / "mmproj1.gguf")
    assert order == RowOrder(patches=True, positions=True)
    # The tables are added row by row: not one bit differs.
    np.testing.assert_array_equal(rows[0], rows[1])


def test_a_tower_whose_rows_cannot_be_put_in_order_is_refused(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_model(clip, out=tmp_path / "model", name="clip")
    text, projector = (
        next((tmp_path / "model").glob(f"{name}*.gguf")) for name in ("clip", "mmproj")
    )
    monkeypatch.setattr(token_rows, "layout_fault", lambda: "takes 400 bytes")
    with (
        pytest.raises(ModelLoadError, match="cannot be mended: takes 400 bytes") as caught,
        open_vlm(model=text, mmproj=projector, n_ctx=128, n_threads=1, device="cpu"),
    ):
        pass
    assert caught.value.hint


def test_a_graph_without_the_list_is_an_error(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_model(clip, out=tmp_path / "model", name="clip")
    text, projector = (
        next((tmp_path / "model").glob(f"{name}*.gguf")) for name in ("clip", "mmproj")
    )
    monkeypatch.setattr(token_rows, "_PATCHES", "another")
    with (
        open_vlm(model=text, mmproj=projector, n_ctx=128, n_threads=1, device="cpu") as vlm,
        pytest.raises(RuntimeError, match="no node of the graph reads"),
    ):
        vlm.encode(np.zeros((72, 72, 3), dtype=np.uint8))
