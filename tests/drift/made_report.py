"""A drift report that was made up: numbers as they look, and strings as strangers write them."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from PIL import Image, ImageDraw

from edgevlm.drift.report import (
    AnswerDrift,
    Attribution,
    ChangedAnswer,
    Cost,
    DriftReport,
    Estimate,
    KindScore,
    LayerDrift,
    LevelReport,
    Machine,
    PromptSet,
    ReferenceDrift,
    Settings,
    TaskDrift,
    TokenDrift,
    Verdict,
    VisionDrift,
)

NASTY_MODEL = 'shop<script>alert(1)</script> & "co"'
NASTY_PROMPT = "What is <img src=x onerror=alert(1)> in the | picture?\n`code` **bold** {{ 7*7 }}"
RTL = "ما لون الصليب؟"
LONG_WORD = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 2
LEVELS = ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
_BITS = (16.0, 8.5, 6.6, 5.7, 4.9, 3.9, 3.2)
_KLD = (0.0, 0.0006, 0.0021, 0.0078, 0.0241, 0.112, 0.61)
_RIGHT = (183, 183, 184, 182, 181, 171, 139)
_ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_N = 200


def made_report(
    *,
    model: str = "Qwen3-VL-2B-Instruct",
    levels: tuple[str, ...] = LEVELS,
    tasks: bool = True,
    layers: bool = True,
    reference: bool = True,
    limits: bool = True,
    images: bool = True,
) -> DriftReport:
    """Return a report of `levels`, the first of which is the baseline."""
    n_images = 60 if images else 0
    return DriftReport(
        model=model,
        baseline=levels[0],
        created="2026-11-28T09:30:00+00:00",
        seconds=1234.5,
        machine=Machine(
            edgevlm="0.1.0",
            llama_cpp_python="0.3.36",
            processor="AMD EPYC 9R14",
            cpu_features=["AVX2", "AVX512", "AVX512_BF16", "FMA", "F16C"],
        ),
        settings=Settings(
            n_ctx=4096,
            n_threads=2,
            device="cpu",
            max_tokens=64,
            led_along="baseline",
            similar_edit=0.8,
            similar_f1=0.8,
            bootstrap_draws=1000,
            seed=0,
        ),
        prompts=PromptSet(
            n_prompts=_N,
            n_image_prompts=180 if images else 0,
            n_text_prompts=20 if images else _N,
            n_images=n_images,
            n_with_answer=_N if tasks else 0,
            source="photos/<b>prompts</b>.jsonl",
            skipped=[f"line 17: `{LONG_WORD}.png` is no image", "line 40: no file `a&b.png`"],
        ),
        levels=[
            _level(
                index,
                level,
                tasks=tasks,
                layers=layers and index in (4, 6),
                reference=reference,
                limits=limits,
                images=images,
            )
            for index, level in enumerate(levels)
        ],
        changed=_changed(levels) if len(levels) > 5 else [],
        notes=["2 prompts were cut at 64 tokens", "<i>threads</i> differ from the baseline's run"],
    )


def _estimate(value: float, spread: float) -> Estimate:
    return Estimate(value=value, low=max(0.0, value - spread), high=value + 1.3 * spread)


def _tokens(mean: float, n_prompts: int) -> TokenDrift:
    shares = np.linspace(0, 1, 101)
    # Log-normal, as KLD is; the last quantile is the maximum.
    z = np.array([_probit(min(max(share, 0.002), 0.9995)) for share in shares])
    quantiles = mean * np.exp(1.6 * z - 1.28)
    return TokenDrift(
        n_prompts=n_prompts,
        n_tokens=n_prompts * 23,
        mean_kld=_estimate(mean, 0.18 * mean),
        median_kld=float(quantiles[50]),
        p99_kld=float(quantiles[99]),
        p999_kld=float(quantiles[100]) * 0.8,
        max_kld=float(quantiles[100]),
        kld_error=1e-7,
        same_top_token=Estimate(
            value=math.exp(-0.6 * mean**0.5),
            low=max(0, math.exp(-0.6 * mean**0.5) - 0.01),
            high=min(1.0, math.exp(-0.6 * mean**0.5) + 0.008),
        ),
        mean_delta_p=-0.02 * mean,
        rms_delta_p=0.3 * mean**0.5,
        perplexity_ratio=_estimate(1 + mean * 0.9, mean * 0.1),
        kld_quantiles=[float(value) for value in quantiles],
    )


def _probit(share: float) -> float:
    """Return the standard normal's quantile, near enough (a logistic stands in for it)."""
    return math.log(share / (1 - share)) / 1.702


def _level(
    index: int,
    level: str,
    *,
    tasks: bool,
    layers: bool,
    reference: bool,
    limits: bool,
    images: bool,
) -> LevelReport:
    mean, base = _KLD[index], index == 0
    bits = _BITS[index]
    different = round(_N * min(0.5, 0.9 * mean**0.75))
    similar = round(_N * min(0.3, 0.8 * mean**0.5))
    breaches = (
        [f"mean KLD {mean:.3f} is over 0.05", "31.0 % of the answers are different, over 10 %"]
        if mean > 0.05 and limits
        else []
    )
    mmproj_level = "F16" if base else "Q8_0"
    image, text = _tokens(mean, 180) if images else None, _tokens(mean * 0.7, 20)
    return LevelReport(
        level=level,
        mean_kld=(image or text).mean_kld,
        text_file=f"Qwen3-VL-2B-Instruct-{level}.gguf",
        mmproj_file=f"mmproj-Qwen3-VL-2B-Instruct-{mmproj_level}.gguf" if images else None,
        mmproj_level=mmproj_level if images else None,
        is_baseline=base,
        image=image,
        text=text,
        vision=None
        if not images
        else VisionDrift(
            n_images=60,
            n_tokens=60 * 256,
            mean_cosine=1.0 if base else 0.9994,
            min_cosine=1.0 if base else 0.971,
            mean_relative_error=0.0 if base else 0.021,
            worst_image="photos/<worst>.png",
        ),
        answers=AnswerDrift(
            n=_N,
            exact=_N - different - similar,
            similar=similar,
            different=different,
            share_different=_estimate(different / _N, 0.02),
            first_differing_token=None if base else 9.0,
            length_ratio=1.0 + mean / 10,
            n_loops=0 if index < 5 else 3 * (index - 4),
        ),
        tasks=_tasks(index) if tasks else None,
        attribution=Attribution(
            text_alone=_estimate(mean * 0.86, 0.15 * mean),
            mmproj_alone=_estimate(0.0004, 0.0001) if images else None,
            both=_estimate(mean, 0.18 * mean),
        )
        if not base
        else None,
        layers=None if not layers else _block_layers(mean) if index == 4 else _layers(mean),
        reference=None if not reference else _reference(mean),
        cost=Cost(
            text_n_bytes=round(1.72e9 * bits / 8),
            mmproj_n_bytes=(819_000_000 if base else 445_000_000) if images else None,
            bits_per_weight=bits,
            mmproj_bits_per_weight=(16.0 if base else 8.7) if images else None,
            peak_memory_n_bytes=round(1.72e9 * bits / 8 + 9e8) if index != 3 else None,
            encode_ms=812.0 if images else None,
            prefill_tok_per_sec=210.0 + 5 * index,
            decode_tok_per_sec=5.1 + 2.2 * index,
        ),
        verdict=Verdict(
            within=not breaches,
            breaches=breaches,
            max_mean_kld=0.05 if limits else None,
            max_p99_kld=None,
            min_same_top_token=0.9 if limits else None,
            max_share_different=0.1 if limits else None,
            source="the profile's budget" if limits else "none given",
        ),
    )


def _tasks(index: int) -> TaskDrift:
    right = _RIGHT[index]
    lost = max(0, _RIGHT[0] - right) + 2 * (index > 0)
    return TaskDrift(
        n=_N,
        n_right=right,
        accuracy=Estimate(
            value=right / _N, low=right / _N - 0.045, high=min(1.0, right / _N + 0.038)
        ),
        by_kind=[
            KindScore(kind="colour", n=80, n_right=min(80, right - 105)),
            KindScore(kind="count <b>", n=60, n_right=min(60, right - 130)),
            KindScore(kind="", n=60, n_right=max(0, right - 140)),
        ],
        lost=lost,
        gained=right - _RIGHT[0] + lost,
        p_value=1.0 if index < 5 else 0.004,
        within_noise=index < 5,
    )


def _layers(mean: float) -> list[LayerDrift]:
    rng = np.random.default_rng(0)
    blocks = [
        LayerDrift(
            block=block,
            role=role,
            mean_kld=float(
                mean * 0.02 * rng.lognormal(0, 0.7) * (3 if role == "ffn_down" else 1)
                + mean * 0.1 * math.exp(-block)
            ),
        )
        for block in range(28)
        for role in _ROLES
        if not (block == 13 and role == "attn_v")
    ]
    return [
        LayerDrift(block=None, role="token_embd", mean_kld=mean * 0.05),
        LayerDrift(block=None, role="output", mean_kld=mean * 0.15),
        *blocks,
    ]


def _block_layers(mean: float) -> list[LayerDrift]:
    """Return blocks as a whole, then roles wherever they stand."""
    blocks = [
        LayerDrift(block=block, role="all", mean_kld=mean * (0.02 + 0.2 * math.exp(-block / 2)))
        for block in range(28)
    ]
    roles = [
        LayerDrift(block=None, role=role, mean_kld=mean * 0.02 * (2 + at))
        for at, role in enumerate(("token_embd", *_ROLES, "output"))
    ]
    return [*blocks, *roles]


def _reference(mean: float) -> ReferenceDrift:
    return ReferenceDrift(
        n_prompts=40,
        n_tokens=900,
        reference_to_baseline=_estimate(0.0004, 0.0001),
        baseline_to_level=_estimate(mean, 0.18 * mean),
        reference_to_level=_estimate(mean + 0.0005, 0.18 * mean + 0.0001),
        same_top_token=_estimate(0.97, 0.01),
    )


def _changed(levels: tuple[str, ...]) -> list[ChangedAnswer]:
    def one(level: str, prompt: str, baseline: str, answer: str, **more: object) -> ChangedAnswer:
        return ChangedAnswer.model_validate(
            {
                "level": level,
                "prompt": prompt,
                "image": "photos/street <3>.png",
                "thumbnail": thumbnail(len(answer)),
                "baseline_answer": baseline,
                "answer": answer,
                "expected": None,
                "kind": "different",
                "similarity": 0.31,
                "mean_kld": 1.37,
                "first_differing_token": 6,
                **more,
            }
        )

    return [
        one(
            levels[-1],
            "Describe the street in one sentence.",
            "A red delivery van is parked in front of a bakery, and two people wait at the door.",
            "A red delivery van is parked in front of a a a a a a a a a a a a a a a a a a a a a a",
        ),
        one(
            levels[-1],
            NASTY_PROMPT,
            "The sign says <script>alert('x')</script>, | and `rm -rf`.",
            "The sign says </p></article><h1>pwned</h1>",
            image="photos/\u202egnp.exe<svg onload=alert(1)>",
            thumbnail="https://evil.example/pixel.png",
            expected="a <sign>",
        ),
        one(
            levels[-2], RTL, "لون الصليب أسود على خلفية بيضاء.", "لون الصليب أحمر.", expected="أسود"
        ),
        one(levels[-1], "Read the longest word.", LONG_WORD, LONG_WORD[:90] + "x" + LONG_WORD[91:]),
        one(
            levels[-2],
            "这张图片里有多少个形状。请用中文回答。",
            "图片里有四个形状、两个圆形、一个正方形和一个三角形。",
            "图片里有三个形状、两个圆形和一个三角形。",
            kind="similar",
            similarity=0.83,
            mean_kld=0.21,
        ),
        one(
            levels[-1],
            "A question without an image?\x07",
            "Yes.",
            "Yes. It is so, because the answer goes on after the first sentence and never stops",
            image=None,
            thumbnail=None,
            first_differing_token=None,
        ),
    ]


def thumbnail(seed: int) -> str:
    """Return a small drawn JPEG as a data URL."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (160, 120), tuple(int(v) for v in rng.integers(150, 255, 3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, side = (int(v) for v in rng.integers(10, 70, 3))
        colour = tuple(int(v) for v in rng.integers(0, 200, 3))
        draw.ellipse((x, y, x + side, y + side), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
