"""The drift report as a document: what `edgevlm compare --json` prints, and every view shows.

The document is versioned; its JSON Schema stands in docs/compare.schema.json. Where a number could
not be measured, it is null, never 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["exact", "similar", "different"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(_Record):
    """A number with its 95 % interval, from a bootstrap over images."""

    value: float
    low: float
    high: float


class TokenDrift(_Record):
    """Drift of the distributions along the same answers, over all scored positions.

    KLD is KL(baseline || level) in nats; delta-p the change of the probability of the answer's own
    token; `perplexity_ratio` the level's perplexity of those tokens over the baseline's.
    `kld_error` is the most that storing the baseline in part can have changed `mean_kld`.
    """

    n_prompts: int
    n_tokens: int
    mean_kld: Estimate
    median_kld: float
    p99_kld: float
    p999_kld: float
    max_kld: float
    kld_error: float
    same_top_token: Estimate
    mean_delta_p: float
    rms_delta_p: float
    perplexity_ratio: Estimate
    kld_quantiles: list[float] = Field(description="of the shares 0, 0.01 ... 1 of positions")


class VisionDrift(_Record):
    """How far the projector's output is from the baseline's, visual token by visual token."""

    n_images: int
    n_tokens: int
    mean_cosine: float
    min_cosine: float
    mean_relative_error: float
    worst_image: str


class AnswerDrift(_Record):
    """How the greedy answers changed.

    `exact` + `similar` + `different` = `n`. Similar: of up to nine words, the same words; of more,
    the normalised edit similarity and the token F1 are both at least as in `Settings`.
    `first_differing_token` is the median over the answers that are not the same, `length_ratio` the
    mean of the lengths in tokens over the baseline's.
    """

    n: int
    exact: int
    similar: int
    different: int
    share_different: Estimate
    first_differing_token: float | None
    length_ratio: float | None
    n_loops: int


class KindScore(_Record):
    """Right answers to one kind of question."""

    kind: str
    n: int
    n_right: int


class TaskDrift(_Record):
    """Questions with a known answer.

    `lost` were right at the baseline and are wrong now, `gained` the other way round; `p_value` is
    of McNemar's exact test of the two.
    """

    n: int
    n_right: int
    accuracy: Estimate
    by_kind: list[KindScore]
    lost: int
    gained: int
    p_value: float
    within_noise: bool


class Attribution(_Record):
    """Mean KLD over the image prompts, by what is quantized; null: there is nothing to quantize."""

    text_alone: Estimate | None
    mmproj_alone: Estimate | None
    both: Estimate | None


class LayerDrift(_Record):
    """Mean KLD over some prompts when one part of the text model alone is quantized.

    A part is a block as a whole (`role` "all"), or a role as profiles name them wherever it stands
    (`block` null), or one role of one block.
    """

    block: int | None
    role: str
    mean_kld: float


class ReferenceDrift(_Record):
    """The two stages along the reference's answers, mean KLD in nats."""

    n_prompts: int
    n_tokens: int
    reference_to_baseline: Estimate
    baseline_to_level: Estimate
    reference_to_level: Estimate
    same_top_token: Estimate


class Cost(_Record):
    """What a level costs; times are of this run on this machine."""

    text_n_bytes: int
    mmproj_n_bytes: int | None
    bits_per_weight: float
    mmproj_bits_per_weight: float | None
    peak_memory_n_bytes: int | None
    encode_ms: float | None
    prefill_tok_per_sec: float | None
    decode_tok_per_sec: float | None


class Verdict(_Record):
    """Whether a level stays within what is acceptable; each breach in words."""

    within: bool
    breaches: list[str]
    max_mean_kld: float | None
    max_p99_kld: float | None
    min_same_top_token: float | None
    max_share_different: float | None
    source: str = Field(description="where the limits come from, in words")


class LevelReport(_Record):
    """All about one level; `image` or `text` is null where no prompt is of that kind.

    `mean_kld` is the number that a level is known by, that of `image`, else of `text`.
    """

    level: str
    mean_kld: Estimate | None
    text_file: str
    mmproj_file: str | None
    mmproj_level: str | None
    is_baseline: bool
    image: TokenDrift | None
    text: TokenDrift | None
    vision: VisionDrift | None
    answers: AnswerDrift
    tasks: TaskDrift | None
    attribution: Attribution | None
    layers: list[LayerDrift] | None
    reference: ReferenceDrift | None
    cost: Cost
    verdict: Verdict

    @property
    def tokens(self) -> TokenDrift:
        """The drift that the level is judged by: of image prompts, else of text prompts."""
        found = self.image or self.text
        if found is None:
            raise ValueError("a level without a scored prompt")
        return found


class ChangedAnswer(_Record):
    """A prompt with the baseline's answer and a level's; the most changed ones are in the report.

    `image` is the path as the prompts name it; `thumbnail` a data URL of a small JPEG.
    """

    level: str
    prompt: str
    image: str | None
    thumbnail: str | None
    baseline_answer: str
    answer: str
    expected: str | None
    kind: Kind
    similarity: Share
    mean_kld: float
    first_differing_token: int | None


class Settings(_Record):
    """How it was measured."""

    n_ctx: int
    n_threads: int
    device: str
    max_tokens: int
    led_along: Literal["baseline", "expected"]
    similar_edit: Share
    similar_f1: Share
    bootstrap_draws: int
    seed: int


class Machine(_Record):
    """What it was measured on."""

    edgevlm: str
    llama_cpp_python: str
    processor: str
    cpu_features: list[str]


class PromptSet(_Record):
    """What was asked."""

    n_prompts: int
    n_image_prompts: int
    n_text_prompts: int
    n_images: int
    n_with_answer: int
    source: str
    skipped: list[str]


class DriftReport(_Record):
    """The whole report; `levels[0]` is the baseline itself."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    baseline: str
    created: str = Field(description="ISO 8601, UTC")
    seconds: float
    machine: Machine
    settings: Settings
    prompts: PromptSet
    levels: list[LevelReport]
    changed: list[ChangedAnswer]
    notes: list[str]

    @property
    def exceeds(self) -> bool:
        """Whether a level is beyond its limits."""
        return any(not level.verdict.within for level in self.levels)
