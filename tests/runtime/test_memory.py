"""Predicted memory: parts against the runtime's own numbers, refusals and what they advise."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgevlm.errors import ModelLoadError
from edgevlm.gguf_file import GGUFFile, read_gguf
from edgevlm.native.system import Memory, read_processor
from edgevlm.native.text_context import KVType
from edgevlm.runtime import memory as memory_module
from edgevlm.runtime.context_length import context_length
from edgevlm.runtime.footprint import predict_footprint
from edgevlm.runtime.memory import check_memory
from edgevlm.runtime.vlm import open_vlm


def memory(n_bytes: int) -> Memory:
    return Memory(
        total_n_bytes=16 << 30,
        available_n_bytes=n_bytes,
        swap_n_bytes=0,
        swap_free_n_bytes=0,
        cgroup=None,
        source="MemAvailable",
    )


@pytest.fixture(scope="module")
def text(shapes_dir: Path) -> GGUFFile:
    return read_gguf(shapes_dir / "shapes-F16.gguf")


@pytest.fixture(scope="module")
def mmproj(shapes_dir: Path) -> GGUFFile:
    return read_gguf(shapes_dir / "mmproj-shapes-F16.gguf")


def reserved(caplog: pytest.LogCaptureFixture, what: str) -> float:
    """Bytes that llama.cpp logged for a buffer, the last time it said so."""
    found = re.findall(rf"{what} +buffer size = +([\d.]+) MiB", caplog.text)
    return float(found[-1]) * 2**20


@pytest.mark.parametrize(
    ("n_ctx", "kv_type", "flash"),
    [(64, "F16", "auto"), (1000, "F16", "off"), (1024, "Q8_0", "auto"), (512, "F32", "auto")],
)
def test_cache_and_buffers_are_what_llama_cpp_reserves(
    text: GGUFFile,
    n_ctx: int,
    kv_type: KVType,
    flash: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, logger="edgevlm.native")
    with open_vlm(
        model=text.path,
        n_ctx=n_ctx,
        kv_type=kv_type,
        flash_attention="off" if flash == "off" else "auto",
        n_threads=1,
    ):
        pass
    found = predict_footprint(
        text, None, n_ctx=n_ctx, kv_type=kv_type, flash_attention=flash != "off"
    )
    assert found.kv_cache == pytest.approx(reserved(caplog, "KV"), abs=6000)  # two decimals of MiB
    compute = reserved(caplog, "compute")
    assert 0.97 * compute <= found.text_compute <= 1.35 * compute


def test_the_image_costs_what_libmtmd_reserves(
    text: GGUFFile, mmproj: GGUFFile, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="edgevlm.native")
    with open_vlm(model=text.path, mmproj=mmproj.path, n_ctx=512, n_threads=1) as vlm:
        image = np.zeros((256, 256, 3), np.uint8)
        n_tokens = vlm.count_visual_tokens(256, 256)
        vlm.first_logits("What is this?", [image])
    found = predict_footprint(text, mmproj, n_ctx=512, image_sizes=[(256, 256)])
    assert n_tokens == 64
    compute = reserved(caplog, "reserve_compute_meta: +CPU compute")
    assert compute <= found.vision_compute <= 3 * compute  # pixels and embeddings come on top


def test_an_image_counts_at_most_what_the_context_holds(text: GGUFFile, mmproj: GGUFFile) -> None:
    def vision(side: int, n_ctx: int) -> int:
        sizes = [(side, side)]
        return predict_footprint(text, mmproj, n_ctx=n_ctx, image_sizes=sizes).vision_compute

    assert vision(128, 4096) < vision(256, 4096) < vision(1024, 4096)
    source = 3 * 1024 * 1024 - 3 * 512 * 512  # the picture itself, before it is made smaller
    assert vision(1024, 256) == vision(512, 256) + source


def test_repacked_matrices_count_but_are_not_needed(shapes_dir: Path) -> None:
    q4 = read_gguf(shapes_dir / "shapes-Q4_K_M.gguf")
    plain = predict_footprint(q4, None, n_ctx=256)
    avx2 = predict_footprint(q4, None, n_ctx=256, features=frozenset({"AVX2"}))
    arm = predict_footprint(q4, None, n_ctx=256, features=frozenset({"NEON", "DOTPROD"}))
    assert plain.repacked == 0 < avx2.repacked < arm.repacked
    assert avx2.peak_n_bytes - plain.peak_n_bytes == avx2.repacked
    assert avx2.needed_n_bytes == plain.needed_n_bytes


def test_the_installed_build_repacks_what_is_said(
    shapes_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="edgevlm.native")
    path = shapes_dir / "shapes-Q4_K_M.gguf"
    with open_vlm(model=path, n_ctx=64, n_threads=1):
        pass
    found = re.findall(r"CPU_REPACK model buffer size = +([\d.]+) MiB", caplog.text)
    n_bytes = float(found[-1]) * 2**20 if found else 0
    features = read_processor().features
    predicted = predict_footprint(read_gguf(path), None, n_ctx=64, features=features).repacked
    assert predicted == pytest.approx(n_bytes, abs=20_000)


def test_the_peak_is_predicted_within_ten_percent(shapes_dir: Path, shapes_assets: Path) -> None:
    text, mmproj = shapes_dir / "shapes-F16.gguf", shapes_dir / "mmproj-shapes-F16.gguf"
    script = """
import re, resource, sys
from pathlib import Path
from edgevlm.runtime.image import load_image
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import open_vlm
text, mmproj, image = sys.argv[1:]
with open_vlm(model=Path(text), mmproj=Path(mmproj), n_ctx=4096, n_threads=1) as vlm:
    vlm.generate("What is this?", [load_image(image)], params=SamplingParams(max_tokens=2))
status = Path("/proc/self/status")
if status.exists():
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) << 10)
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    image = shapes_assets / "images" / "000.png"
    command = [sys.executable, "-c", script, str(text), str(mmproj), str(image)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = int(done.stdout)
    check = check_memory(text, mmproj, n_ctx=4096, image_sizes=[(128, 128)], override=True)
    assert 0.9 <= check.footprint.peak_n_bytes / measured <= 1.1


def test_what_fits_is_let_through(text: GGUFFile) -> None:
    check = check_memory(text.path, None, n_ctx=None, memory=memory(1 << 30))
    assert check.fits
    assert check.footprint.n_ctx == 4096


def test_refuses_and_names_a_context_that_fits(text: GGUFFile) -> None:
    room = predict_footprint(text, None, n_ctx=1024).needed_n_bytes
    with pytest.raises(ModelLoadError, match=r"needs .* at --ctx 4096") as error:
        check_memory(text.path, None, n_ctx=None, memory=memory(room))
    assert "are available (MemAvailable)" in error.value.message
    found = re.search(r"`--ctx (\d+)` would fit", error.value.hint)
    assert found is not None
    assert int(found[1]) >= 1024
    assert "`--yes` tries it anyway" in error.value.hint
    assert check_memory(text.path, None, n_ctx=int(found[1]), memory=memory(room)).fits


def test_refuses_and_names_the_largest_level_that_fits(text: GGUFFile, shapes_dir: Path) -> None:
    room = predict_footprint(
        read_gguf(shapes_dir / "shapes-Q8_0.gguf"), None, n_ctx=256
    ).needed_n_bytes
    with pytest.raises(ModelLoadError) as error:
        check_memory(text.path, None, n_ctx=256, memory=memory(room))
    assert error.value.hint.startswith("`--level Q8_0` would fit")


def test_refuses_and_names_a_level_with_a_context(text: GGUFFile, shapes_dir: Path) -> None:
    q4 = read_gguf(shapes_dir / "shapes-Q4_K_M.gguf")
    room = predict_footprint(q4, None, n_ctx=256).needed_n_bytes + 100_000
    with pytest.raises(ModelLoadError) as error:
        check_memory(text.path, None, n_ctx=4096, memory=memory(room))
    found = re.match(r"`--level Q4_K_M --ctx (\d+)` would fit", error.value.hint)
    assert found is not None
    assert 256 <= int(found[1]) < 4096


def test_refuses_and_says_how_to_make_a_level(text: GGUFFile, tmp_path: Path) -> None:
    alone = tmp_path / "alone-F16.gguf"
    shutil.copyfile(text.path, alone)
    room = predict_footprint(text, None, n_ctx=256).needed_n_bytes - 1_000_000
    with pytest.raises(ModelLoadError) as error:
        check_memory(alone, None, n_ctx=256, memory=memory(room))
    assert f"`edgevlm quantize {tmp_path} --level Q4_K_M`" in error.value.hint


def test_refuses_when_nothing_fits_unless_overridden(text: GGUFFile) -> None:
    with pytest.raises(ModelLoadError) as error:
        check_memory(text.path, None, n_ctx=256, memory=memory(1 << 20))
    assert "close other programs" in error.value.hint
    check = check_memory(text.path, None, n_ctx=256, memory=memory(1 << 20), override=True)
    assert not check.fits


def test_a_gpu_library_is_asked_for_its_memory(
    text: GGUFFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgevlm.native.devices import Device

    card = Device(
        name="CUDA0",
        description="a card",
        backend="CUDA",
        kind="gpu",
        total_n_bytes=8 << 30,
        free_n_bytes=6 << 30,
    )
    monkeypatch.setattr(memory_module, "gpu_libraries", lambda: ("cuda",))
    monkeypatch.setattr(memory_module, "devices", lambda: (card,))
    assert check_memory(text.path, None, n_ctx=256, memory=memory(1 << 20)).fits
    with pytest.raises(ModelLoadError):
        check_memory(text.path, None, n_ctx=256, device="cpu", memory=memory(1 << 20))


def write(path: Path, **numbers: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, number in numbers.items():
        writer.add_uint32(f"llama.{name.replace('__', '.')}", number)
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_header_without_sizes_is_no_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    assert check_memory(path, None, n_ctx=None).footprint.kv_cache == 0


def test_absurd_sizes_are_refused_at_once(tmp_path: Path) -> None:
    huge = (1 << 32) - 1
    path = write(
        tmp_path / "m.gguf", block_count=huge, embedding_length=huge, attention__head_count=huge
    )
    with pytest.raises(ModelLoadError, match="needs"):
        check_memory(path, path, n_ctx=256)


def test_a_context_beyond_the_model_is_left_to_open_vlm(text: GGUFFile) -> None:
    assert check_memory(text.path, None, n_ctx=1 << 40).footprint.n_ctx == 4096


def test_the_default_context_is_open_vlm_s() -> None:
    assert context_length(None, 1 << 20) == memory_module.DEFAULT_N_CTX
