from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from edgevlm_convert import plan_conversion
from edgevlm_convert.writer import write_gguf

import edgevlm
from edgevlm.gguf_file import read_gguf
from edgevlm.quantize.encode import mmproj_encoder, text_encoder
from edgevlm.quantize.profile_file import load_profile
from tests.quantize.quantizing import quantize_file

SHAPES = Path(edgevlm.__file__).parent / "assets" / "shapes" / "checkpoint"
LEVELS = ("Q4_K_M", "Q5_K_M", "Q8_0")
TensorBytes = Callable[[Path], dict[str, tuple[str, tuple[int, ...], bytes]]]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The built-in model as `convert --outtype auto` writes it: text model and projector."""
    folder = tmp_path_factory.mktemp("baseline")
    text, mmproj = folder / "text.gguf", folder / "mmproj.gguf"
    conversion = plan_conversion(SHAPES, name="shapes", outtype="auto")
    write_gguf(conversion.text, text)
    write_gguf(conversion.mmproj, mmproj)
    return text, mmproj


@pytest.mark.parametrize("level", LEVELS)
def test_shapes_equals_llama_cpps_own_quantizer(
    tmp_path: Path,
    baseline: tuple[Path, Path],
    llama_quantize: Callable[[Path, Path, str], bool],
    tensor_bytes: TensorBytes,
    level: str,
) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    quantize_file(baseline[0], ours, text_encoder(load_profile(level)))
    assert llama_quantize(baseline[0], theirs, level)
    assert tensor_bytes(ours) == tensor_bytes(theirs)
    assert read_gguf(ours).type_histogram() == read_gguf(theirs).type_histogram()


@pytest.mark.parametrize(
    ("level", "mmproj_level"), [("Q4_K_M", "Q8_0"), ("Q5_K_M", "F16"), ("Q8_0", "BF16")]
)
def test_one_pass_equals_convert_then_quantize_byte_for_byte(
    tmp_path: Path, baseline: tuple[Path, Path], level: str, mmproj_level: str
) -> None:
    profile = load_profile(level)
    encoders = (text_encoder(profile), mmproj_encoder(mmproj_level, profile=profile))
    conversion = plan_conversion(
        SHAPES,
        name="shapes",
        outtype="auto",
        text_encoder=encoders[0],
        mmproj_encoder=encoders[1],
    )
    plans = (conversion.text, conversion.mmproj)
    for source, plan, encoder in zip(baseline, plans, encoders, strict=True):
        one_pass, two_steps = tmp_path / "one.gguf", tmp_path / "two.gguf"
        write_gguf(plan, one_pass, encoder=encoder)
        quantize_file(source, two_steps, encoder)
        assert one_pass.read_bytes() == two_steps.read_bytes()
        assert one_pass.stat().st_size == plan.n_bytes
