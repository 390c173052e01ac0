"""What llama.cpp alone makes of a LLaVA's images, beside what edgevlm hands to the text model.

    python benchmarks/assembly.py

The claim: LLaVA-NeXT's tiles must be joined (rows interleaved, black left out, a vector at each end
of a row), and a CLIP tower's rows must be those of its patches; llama.cpp does neither, edgevlm's
engine does both from the same files. The golden checkpoints of tests/ (random weights, made to
listen to their images) are converted to F32; the distributions along transformers' greedy answers
are held against transformers' with libmtmd's own layout and with ours. Without images both are
equal. KLD in nats, worst position and mean of all answers with images; beside it how far two
different images are apart. stderr has a table, stdout one JSON document.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from edgevlm_convert import convert_checkpoint, plan_conversion

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from edgevlm.native.projector import open_projector
from edgevlm.native.text_context import ContextOptions, open_context
from edgevlm.native.text_model import ModelOptions, open_text_model
from edgevlm.runtime.layout import Layouter
from edgevlm.runtime.preflight import check_projector, check_text_model
from edgevlm.runtime.vlm import VLM, open_vlm
from edgevlm.verify.metrics import kl_divergence, same_top
from tests.goldens.files import case_images, golden_cases, kld_between, redraw

GOLDENS = (
    "llava_siglip_qwen2",
    "llava_clip_llama",
    "llava_next_siglip_llama",
    "llava_next_clip_mistral",
)
CONTEXT = 512


@contextmanager
def llama_cpp_alone(model: Path, mmproj: Path) -> Generator[VLM]:
    """Open a model whose images are cut, counted and handed over by libmtmd."""
    text, facts = check_text_model(model)
    span = check_projector(mmproj, text)
    options = ContextOptions(n_ctx=CONTEXT, n_threads=1, kv_type="F32", flash_attention="off")
    with ExitStack() as stack:
        opened = stack.enter_context(open_text_model(model, ModelOptions(device="cpu")))
        context = stack.enter_context(open_context(opened, options))
        projector = stack.enter_context(
            open_projector(mmproj, opened, n_threads=1, device="cpu", flash_attention="off")
        )
        layouter = Layouter(model=opened, projector=projector, facts=facts, span=span)
        yield VLM(model=opened, context=context, layouter=layouter, sampling_defaults={})


def measure(vlm: VLM, golden: str) -> dict[str, float]:
    """Return KLD and agreement of the likeliest tokens over all answers with images."""
    parts: list[np.ndarray] = []
    tops: list[np.ndarray] = []
    n_tokens = 0
    for case in golden_cases(golden):
        if not case.images:
            continue
        images = case_images(case)
        answer = [int(token) for token in case.answer]
        logits = vlm.answer_logits(case.prompt, images, answer=answer)
        parts.append(kl_divergence(case, logits))
        tops.append(same_top(case, logits))
        n_tokens += len(vlm.token_ids(case.prompt, images)) - len(case.input_ids)
    kld = np.concatenate(parts)
    return {
        "kld_worst": float(kld.max()),
        "kld_mean": float(kld.mean()),
        "same_top": float(np.concatenate(tops).mean()),
        "n_tokens_more": n_tokens,
    }


def compare(golden: str, folder: Path) -> dict[str, object]:
    """Return the numbers of one golden, by who lays its images out."""
    plan = plan_conversion(redraw(golden, folder / "checkpoint"), outtype="f32")
    paths = folder / "text.gguf", folder / "mmproj.gguf"
    convert_checkpoint(plan, text_path=paths[0], mmproj_path=paths[1])
    found: dict[str, object] = {
        "two_images": kld_between(golden_cases(golden), "one image", "another image")
    }
    with llama_cpp_alone(*paths) as vlm:
        found["llama_cpp"] = measure(vlm, golden)
    with open_vlm(
        model=paths[0], mmproj=paths[1], n_ctx=CONTEXT, n_threads=1, device="cpu", strict=True
    ) as vlm:
        found["edgevlm"] = measure(vlm, golden)
    return found


def main() -> None:
    """Measure all goldens."""
    document: dict[str, dict[str, object]] = {}
    for golden in GOLDENS:
        with tempfile.TemporaryDirectory() as folder:
            document[golden] = compare(golden, Path(folder))
        print(golden, json.dumps(document[golden]), file=sys.stderr)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
