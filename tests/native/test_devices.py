from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.errors import ModelLoadError
from edgevlm.native import devices as module
from edgevlm.native.devices import (
    devices,
    ggml_version,
    gpu_libraries,
    lacks_card_memory,
    offload_handles,
)


def test_the_processor_is_always_there() -> None:
    cpu = [one for one in devices() if one.kind == "cpu"]
    assert len(cpu) == 1
    assert cpu[0].backend == "CPU"
    assert cpu[0].total_n_bytes > 0


def test_auto_leaves_the_choice_and_cpu_takes_no_device() -> None:
    assert offload_handles("auto") is None
    assert offload_handles("cpu") == []


def test_a_device_that_the_build_lacks_is_an_error_that_says_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = next(one for one in devices() if one.kind == "cpu")

    def describe(handle: int) -> module.Device:
        return cpu

    monkeypatch.setattr(module, "_describe", describe)
    with pytest.raises(ModelLoadError, match=r"has no vulkan device \(it has: CPU\)") as error:
        offload_handles("vulkan")
    assert "--device auto" in error.value.hint


def test_a_card_that_a_build_with_cuda_does_not_see_is_said_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "gpu_libraries", lambda: ("cuda",))
    monkeypatch.setattr(module, "_handles", list[int])
    with pytest.raises(ModelLoadError, match=r"is built with cuda, and sees no such") as error:
        offload_handles("cuda")
    assert "CUDA_VISIBLE_DEVICES" in error.value.hint
    assert "install" not in error.value.hint


@pytest.mark.parametrize(
    ("line", "is_full"),
    [
        (
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 3281.64 MiB on device 0:"
            " cudaMalloc failed: out of memory",
            True,
        ),
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", True),
        ("alloc_tensor_range: failed to allocate Vulkan0 buffer of size 3441033216", True),
        ("alloc_tensor_range: failed to allocate CPU buffer of size 3441033216", False),
        ("llama_model_load: error loading model: unknown model architecture: 'x'", False),
    ],
)
def test_a_full_card_is_told_from_other_faults(line: str, is_full: bool) -> None:
    assert lacks_card_memory([line]) is is_full


def test_an_unknown_device_is_an_error_that_names_the_known() -> None:
    with pytest.raises(ModelLoadError, match="'npu' is unknown") as error:
        offload_handles("npu")
    assert "auto, cpu, cuda, metal, vulkan" in error.value.hint


def test_gpu_backends_are_found_by_their_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    def find_spec(name: str) -> Spec:
        assert name == "llama_cpp"
        return Spec()

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libggml-cpu.so").touch()
    assert gpu_libraries() == ()
    (tmp_path / "lib" / "libggml-cuda.so").touch()
    (tmp_path / "lib" / "ggml-vulkan.dll").touch()
    assert gpu_libraries() == ("cuda", "vulkan")


def test_ggml_has_a_version() -> None:
    assert ggml_version().count(".") == 2
