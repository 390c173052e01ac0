"""Run a 16-bit model over images and prompts, and collect what goes through its matrices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgevlm.calibrate.matrix import (
    Progressed,
    check_writable,
    identify,
    read_progress,
    write_matrix,
)
from edgevlm.errors import (
    ContextOverflowError,
    EdgeVLMError,
    ImageError,
    ModelLoadError,
    QuantizationError,
    SourceNotFoundError,
)
from edgevlm.files import sha256_file
from edgevlm.gguf_file import GGUFFile
from edgevlm.gguf_shards import read_model
from edgevlm.native.channel_sums import ChannelSums
from edgevlm.native.devices import devices
from edgevlm.native.library import interrupts_deferred
from edgevlm.progress import SILENT, Progress
from edgevlm.quantize.run import quantized_type
from edgevlm.runtime.image import load_image
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.sampling import SamplingParams
from edgevlm.runtime.vlm import VLM, open_vlm

# Between two of these a kill loses what was collected; each costs a few milliseconds.
_SAVE_EVERY = 32


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the model is shown and asked.

    Attributes:
        image: path of the image.
        prompt: the question.
        answer: what it is led along; None: its own greedy answer.
    """

    image: Path
    prompt: str
    answer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is calibrated.

    Attributes:
        image_weight: weight of image rows against text rows, 0 to 1.
        max_tokens: of an answer of its own.
        resume: go on where an earlier run into the same file stopped.
        n_threads: None for as many as the model is worth.
    """

    image_weight: float
    max_tokens: int = 64
    resume: bool = False
    n_threads: int | None = None


@dataclass
class Calibrated:
    """What a run collected.

    Attributes:
        n_run: prompts that were run now.
        n_before: prompts that an earlier run had run.
        skipped: images that cannot be read, each with its reason.
        n_rows: rows that were summed, by kind.
        n_matrices: matrices with a sum.
        unseen: experts that no row was given to, `name[index]`.
    """

    n_run: int = 0
    n_before: int = 0
    skipped: list[str] = field(default_factory=list[str])
    n_rows: dict[str, int] = field(default_factory=dict[str, int])
    n_matrices: int = 0
    unseen: list[str] = field(default_factory=list[str])


def calibrate(
    text: Path,
    mmproj: Path,
    samples: Sequence[Sample],
    *,
    out: Path,
    options: Options,
    progress: Progress = SILENT,
    note: Callable[[str], None] = lambda _: None,
) -> Calibrated:
    """Collect an importance matrix and write it to `out`.

    On Ctrl-C or an error what was collected is written first; `Options.resume` goes on from there.

    Args:
        text: the 16-bit text model.
        mmproj: its 16-bit projector.
        samples: what to run, in order.
        out: the file to write.
        options: see there.
        progress: told each prompt.
        note: told each image that is left out, and what else a user should know.

    Raises:
        QuantizationError: a file is quantized, or the file to go on from belongs to another model.
        ImageError: no image could be read.
        ModelLoadError: tensors of the installed llama.cpp cannot be read.
        OutputError: `out` cannot be written.
    """
    running = ChannelSums(leaves_out_steps=True)
    _check(text, mmproj, running)
    check_writable(out)
    cards = [one.name for one in devices() if one.kind in ("gpu", "igpu")]
    if cards:
        # Each product would be copied back, and kernels that join several could not be used.
        note(f"calibrating on the CPU, though there is {', '.join(cards)}")
    state = _State(out=out, model=_identity(text, mmproj), running=running, options=options)
    if options.resume:
        state.go_on()
    result = Calibrated(n_before=len(state.done))
    images = _Images()
    with (
        open_vlm(
            model=text, mmproj=mmproj, n_threads=options.n_threads, device="cpu", sums=running
        ) as vlm,
        progress.task("Calibrating", total=len(samples), unit="items") as advance,
    ):
        try:
            for sample in samples:
                _run(vlm, sample, state, images, result, note)
                advance(1)
        except (KeyboardInterrupt, EdgeVLMError):
            state.write(samples)
            note(
                f"kept what {len(state.done)} prompts gave in `{out}`: --resume goes on"
                if state.done
                else "no prompt was through yet: nothing is kept"
            )
            raise
    if not state.done:
        raise ImageError(
            f"none of the {len(samples)} prompts has an image that can be read",
            hint=result.skipped[0] if result.skipped else "give a folder of images",
        )
    state.write(samples)
    _describe(state.sums, result)
    return result


@dataclass
class _State:
    """What is written, and where: `running` has the prompt that runs, `sums` those before it."""

    out: Path
    model: str
    running: ChannelSums
    options: Options
    sums: ChannelSums = field(default_factory=ChannelSums)
    done: list[str] = field(default_factory=list[str])

    def go_on(self) -> None:
        if not self.out.exists():
            raise SourceNotFoundError(
                f"there is no `{self.out}` to go on from", hint="leave out --resume"
            )
        before = read_progress(self.out)
        if before.model != self.model:
            raise QuantizationError(
                f"`{self.out}` was collected from another model ({before.model})",
                hint="leave out --resume, or write to another file with --out",
            )
        self.sums.merged(before.sums)
        self.done = list(before.done)

    def add(self, digest: str) -> None:
        # A prompt that was interrupted must not be counted in parts.
        with interrupts_deferred():
            self.sums.merged(self.running.sums)
            self.running.sums.clear()
            self.done.append(digest)

    def write(self, samples: Sequence[Sample]) -> None:
        if not self.done:
            return
        with interrupts_deferred():
            write_matrix(
                self.out,
                Progressed(model=self.model, done=tuple(self.done), sums=self.sums.sums),
                datasets=sorted({sample.image.parent.resolve().name for sample in samples}),
                image_weight=self.options.image_weight,
            )


class _Images:
    """The last image: several prompts ask about it in a row."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._pixels: Pixels | None = None

    def load(self, path: Path) -> Pixels:
        if self._pixels is None or path != self._path:
            self._path, self._pixels = path, load_image(path)
        return self._pixels


def _run(
    vlm: VLM,
    sample: Sample,
    state: _State,
    images: _Images,
    result: Calibrated,
    note: Callable[[str], None],
) -> None:
    try:
        pixels = images.load(sample.image)
        digest = _digest(sample)
        if digest in state.done:
            return
        answer = vlm.tokenize(sample.answer) if sample.answer else []
        if not _collect(vlm, sample.prompt, pixels, answer, state):
            # A recurrent memory cannot forget its end: there every step is looked at.
            state.running.leaves_out_steps = False
            _collect(vlm, sample.prompt, pixels, answer, state)
    except (ImageError, SourceNotFoundError, ContextOverflowError) as error:
        reason = f"left out {sample.image}: {error.message}"
        if reason not in result.skipped:
            result.skipped.append(reason)
            note(reason)
        return
    state.add(digest)
    result.n_run += 1
    if result.n_run % _SAVE_EVERY == 0:
        state.write([sample])


def _collect(vlm: VLM, prompt: str, pixels: Pixels, answer: Sequence[int], state: _State) -> bool:
    """Run one prompt; False: its answer could not be read again, and nothing counts."""
    # Nothing may be spared: what is not computed is not seen.
    vlm.forget()
    state.running.sums.clear()
    if answer:
        vlm.answer_logits(prompt, [pixels], answer=answer)
        return True
    params = SamplingParams(max_tokens=state.options.max_tokens)
    n_prompt = vlm.generate(prompt, [pixels], params=params).n_prompt_tokens
    n_answer = vlm.cache.n_used - n_prompt
    if not state.running.leaves_out_steps or n_answer <= 0:
        return True
    return vlm.cache.read_again(n_answer)


def _digest(sample: Sample) -> str:
    words = f"{sample.prompt}\n{sample.answer or ''}".encode()
    return identify(sha256_file(sample.image), hashlib.sha256(words).hexdigest())


def _identity(text: Path, mmproj: Path) -> str:
    return ", ".join(
        f"{file.name or file.path.name} ({file.architecture}, {file.n_weights} weights,"
        f" {file.n_bytes} bytes)"
        for file in (read_model(text), read_model(mmproj))
    )


def _check(text: Path, mmproj: Path, running: ChannelSums) -> None:
    if running.fault:
        raise ModelLoadError(
            f"calibration reads tensors of llama.cpp, which is not possible here: {running.fault}",
            hint="install the llama-cpp-python that edgevlm names",
        )
    for file in (read_model(text), read_model(mmproj)):
        _check_floats(file)


def _check_floats(file: GGUFFile) -> None:
    blocks = quantized_type(file)
    if blocks is not None:
        raise QuantizationError(
            f"`{file.path}` is quantized: it holds {blocks}",
            hint="calibrate the 16-bit model, `edgevlm convert CHECKPOINT` writes it",
        )


def _describe(sums: ChannelSums, result: Calibrated) -> None:
    names: set[str] = set()
    counts: dict[str, list[int]] = {}
    for kind, matrices in sums.sums.items():
        names |= matrices.keys()
        result.n_rows[kind] = max(int(one.counts.sum()) for one in matrices.values())
        for name, one in matrices.items():
            before = counts.get(name, [0] * len(one.counts))
            counts[name] = [a + int(b) for a, b in zip(before, one.counts, strict=True)]
    result.n_matrices = len(names)
    result.unseen = [
        f"{name}[{index}]"
        for name, of_name in counts.items()
        for index, count in enumerate(of_name)
        if count == 0
    ]
