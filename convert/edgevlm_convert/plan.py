"""checkpoint -> plan -> two GGUF files: the text model and its projector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

from edgevlm.errors import CheckpointError, ConversionError
from edgevlm.progress import SILENT, Progress
from edgevlm_convert.adapter import UNTIE_HINT, Merged, merge, open_adapter
from edgevlm_convert.chat_template import with_place_for_images
from edgevlm_convert.checkpoint import Checkpoint, open_checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.dequantize import unpack
from edgevlm_convert.encoder import TensorEncoder, TensorInfo
from edgevlm_convert.families import find_family, find_text_model
from edgevlm_convert.family import Family, Part, Source
from edgevlm_convert.general import general_metadata
from edgevlm_convert.json_file import quoted
from edgevlm_convert.metadata import Value, array, u32
from edgevlm_convert.mistral_format import image_settings, mistral_name, with_mistral_names
from edgevlm_convert.prefixes import find_prefixes
from edgevlm_convert.rules import Ledger, Mapped, Outtype, map_tensors
from edgevlm_convert.safetensors import SourceTensor, whole_numbers
from edgevlm_convert.tokenizer import added_token_id, vocabulary
from edgevlm_convert.vocabulary.image_token import check_image_token
from edgevlm_convert.writer import GGUFPlan, OutputTensor, plan_gguf, write_gguf

OuttypeOption = Literal["auto", "f16", "bf16", "f32"]
# `general.file_type` (llama.h, `llama_ftype`) and the version of the block formats (ggml.h).
_FILE_TYPES: Mapping[Outtype, int] = {"F32": 0, "F16": 1, "BF16": 32}
_QUANTIZATION_VERSION = 2
_OUTTYPES: Mapping[OuttypeOption, Outtype] = {"f16": "F16", "bf16": "BF16", "f32": "F32"}


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """All that will be written, before the first byte is.

    Attributes:
        name: of the model, `general.name`.
        family: name of the VLM family.
        outtype: float type of the text model's matrices: "F32", "F16" or "BF16".
        mmproj_outtype: the same for the projector.
        text: the text model's file.
        mmproj: the projector's file.
        ledger: what becomes of every source tensor.
        losses: what the runtime cannot do with this model, one sentence each.
        adapted: names of the adapter's tensors, by that of the source tensor that they change or
            stand in for.
        dequantized: names of the weights that the checkpoint holds as 8-bit values with scales.
    """

    name: str
    family: str
    outtype: Outtype
    mmproj_outtype: Outtype
    text: GGUFPlan
    mmproj: GGUFPlan
    ledger: Ledger
    losses: tuple[str, ...] = ()
    adapted: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    dequantized: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Exact size of both files together."""
        return self.text.n_bytes + self.mmproj.n_bytes


def plan_conversion(
    folder: Path,
    *,
    name: str | None = None,
    outtype: OuttypeOption = "auto",
    text_encoder: TensorEncoder | None = None,
    mmproj_encoder: TensorEncoder | None = None,
    class_token_first: Callable[[str], bool] = lambda projector: False,
    reads_norm_epsilon: Callable[[str], bool] = lambda architecture: False,
    adapter: Path | None = None,
    pre: str | None = None,
) -> ConversionPlan:
    """Read headers, config and tokenizer of a checkpoint and plan both files.

    Args:
        folder: of a checkpoint, with config.json and safetensors.
        name: `general.name`; None: the folder's name.
        outtype: "auto" keeps the 16-bit type of each file's first matrix that has one, and makes
            F16 of a float32 checkpoint (as llama.cpp's converter does).
        text_encoder: quantizes the text model in the same pass.
        mmproj_encoder: quantizes the projector in the same pass.
        class_token_first: asked about a type of projector when the vision tower has a class token:
            whether the installed llama.cpp puts it before the patches; the pinned one does not.
        reads_norm_epsilon: asked about a text architecture whose norms' epsilon the pinned
            llama.cpp leaves unread: whether the installed one reads it.
        adapter: folder of a PEFT LoRA adapter to merge.
        pre: llama.cpp's name of the pre-tokenizer, where the tokenizer's structure is not known.

    Raises:
        SourceNotFoundError: a path does not exist.
        CheckpointError: the checkpoint is broken, hostile or incomplete.
        UnsupportedArchitectureError: no family claims it.
        ConversionError: a tensor or token that cannot be carried over.
    """
    model = _read(
        folder,
        class_token_first=class_token_first,
        reads_norm_epsilon=reads_norm_epsilon,
        adapter=adapter,
    )
    checkpoint = model.checkpoint
    # A folder's name may hold bytes that are no UTF-8; a GGUF string may not.
    name = (name or checkpoint.folder.resolve().name).encode("utf-8", "replace").decode()
    tokens = _tokens(model, pre)
    outtypes: dict[str, Outtype] = {
        file: _resolve(outtype, model.outputs[file], model.stored) for file in model.parts
    }
    plans: dict[str, GGUFPlan] = {}
    for file, (kind, architecture, closing, encoder) in {
        "text": ("model", model.architecture, tokens, text_encoder),
        "mmproj": ("mmproj", "clip", dict[str, Value](), mmproj_encoder),
    }.items():
        part = model.parts[file]
        tensors = [*part.computed, *model.outputs[file]]
        opening = general_metadata(
            checkpoint, name=name, architecture=architecture, kind=kind, tensors=tensors
        )
        plans[file] = _plan_file(opening, part, closing, tensors, outtypes[file], encoder)
    return ConversionPlan(
        name=name,
        family=model.family.name,
        outtype=outtypes["text"],
        mmproj_outtype=outtypes["mmproj"],
        text=plans["text"],
        mmproj=plans["mmproj"],
        ledger=model.ledger,
        losses=tuple(loss for part in model.parts.values() for loss in part.losses),
        adapted=model.adapted,
        dequantized=model.dequantized,
    )


@dataclass(frozen=True, kw_only=True)
class _Model:
    """A checkpoint that a family has claimed.

    Attributes:
        checkpoint: its tensors as the rules want them.
        stored: its tensors as they are stored.
        family: which one.
        architecture: llama.cpp's name of the text model.
        source: what the parts were built from.
        parts: by output file, "text" and "mmproj".
        outputs: tensors by output file.
        ledger: what becomes of every source tensor.
        adapted: see ConversionPlan.
        dequantized: see ConversionPlan.
    """

    checkpoint: Checkpoint
    stored: Mapping[str, SourceTensor]
    family: Family
    architecture: str
    source: Source
    parts: Mapping[str, Part]
    outputs: Mapping[str, list[Mapped]]
    ledger: Ledger
    adapted: Mapping[str, tuple[str, ...]]
    dequantized: tuple[str, ...]


def _tokens(model: _Model, pre: str | None) -> dict[str, Value]:
    """Return the vocabulary's keys, chat templates among them."""
    family = model.family
    tokens = vocabulary(
        model.checkpoint,
        n_rows=model.source.n_vocab,
        runtime_tokens=family.runtime_tokens,
        pre=pre,
    )
    check_image_token(
        model.checkpoint.config,
        cast(Sequence[str], tokens["tokenizer.ggml.tokens"].value),
        text=family.placeholder,
        named=family.named_tokens,
    )
    return with_place_for_images(
        tokens,
        span=family.image_span,
        template=family.chat_template,
        written=family.template_image,
    )


def _read(
    folder: Path,
    *,
    class_token_first: Callable[[str], bool],
    reads_norm_epsilon: Callable[[str], bool],
    adapter: Path | None,
) -> _Model:
    """Open a checkpoint and map its tensors."""
    opened = open_checkpoint(folder)
    unpacked = unpack(opened.config, opened.tensors)
    merged = Merged(tensors=unpacked.tensors, adapted={}, replaced={})
    if adapter is not None:
        merged = merge(open_adapter(adapter), unpacked.tensors)
    tensors = merged.tensors
    checkpoint = replace(opened, tensors=tensors)
    family = find_family(checkpoint.config)
    text_model, section = find_text_model(family, checkpoint.config)
    source = Source(
        config=checkpoint.config,
        text=section,
        preprocessor=_preprocessor(checkpoint),
        prefixes=find_prefixes(tensors, family.prefixes),
        generation=checkpoint.optional_json("generation_config.json")
        or Section({}, file="generation_config.json"),
        shapes={name: tensor.shape for name, tensor in tensors.items()},
        class_token_first=class_token_first,
        reads_norm_epsilon=reads_norm_epsilon,
        token_id=lambda text: added_token_id(checkpoint, text),
        rows_are_paired=checkpoint.is_mistral,
        integers=lambda name: whole_numbers(tensors, name),
    )
    parts = {"text": text_model.build(source), "mmproj": family.projector.build(source)}
    if checkpoint.is_mistral:
        parts = {file: with_mistral_names(part) for file, part in parts.items()}
    outputs, ledger = map_tensors(tensors, {file: part.rules for file, part in parts.items()})
    ends = (f"{source.prefixes.text}embed_tokens.weight", f"{source.prefixes.head}weight")
    if all(mapped.name != "output.weight" for mapped in outputs["text"]):
        _check_tied(tuple(map(mistral_name, ends)) if checkpoint.is_mistral else ends, merged)
    return _Model(
        checkpoint=checkpoint,
        stored=opened.tensors,
        family=family,
        architecture=text_model.name,
        source=source,
        parts=parts,
        outputs=outputs,
        ledger=_whole_ledger(ledger, unpacked.dropped, merged),
        adapted=merged.adapted,
        dequantized=unpacked.dequantized,
    )


def _check_tied(names: Sequence[str], merged: Merged) -> None:
    """Check that an adapter changes neither embedding nor output where the two are one matrix.

    It was trained with a change in one of them.
    """
    for name in names:
        if name in merged.adapted:
            raise ConversionError(
                f"the adapter changes {quoted(name)}: output and embedding are tied in the"
                " checkpoint, and two with the adapter",
                hint=UNTIE_HINT,
            )


def _whole_ledger(ledger: Ledger, dropped: Mapping[str, str], merged: Merged) -> Ledger:
    """Return the ledger with what never came to the rules: nothing is left out in silence."""
    # Scales and an adapter's tensors go the way of the tensor that they are for.
    with_base = {
        part: reason
        for name, reason in ledger.dropped.items()
        for part in (name, *merged.tensors[name].parts)
    }
    everything = {**merged.replaced, **dropped, **with_base}
    return replace(
        ledger, dropped={n: why for n, why in everything.items() if n not in ledger.used}
    )


def _plan_file(
    opening: Mapping[str, Value],
    part: Part,
    closing: Mapping[str, Value],
    mapped: Sequence[Mapped],
    outtype: Outtype,
    encoder: TensorEncoder | None,
) -> GGUFPlan:
    """Plan one file, its keys in the order in which llama.cpp's converter writes them."""
    metadata = {
        **opening,
        **part.metadata,
        "general.file_type": u32(_FILE_TYPES[outtype]),
        **part.late_metadata,
        "general.quantization_version": u32(_QUANTIZATION_VERSION),
        **closing,
        **({"edgevlm.losses": array("STRING", part.losses)} if part.losses else {}),
    }
    tensors = [_output(tensor, outtype) for tensor in mapped]
    return plan_gguf(metadata=metadata, tensors=tensors, encoder=encoder)


def convert_checkpoint(
    plan: ConversionPlan,
    *,
    text_path: Path,
    mmproj_path: Path,
    text_encoder: TensorEncoder | None = None,
    mmproj_encoder: TensorEncoder | None = None,
    n_threads: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Write both planned files; the encoders are those that the plan was made with.

    Raises:
        CheckpointError: a shard became shorter meanwhile.
        ConversionError: a NaN, an Inf or an overflow; it names the tensor.
    """
    write_gguf(
        plan.text,
        text_path,
        encoder=text_encoder,
        n_threads=n_threads,
        progress=progress,
        label="Writing the text model",
    )
    write_gguf(
        plan.mmproj,
        mmproj_path,
        encoder=mmproj_encoder,
        n_threads=n_threads,
        progress=progress,
        label="Writing the projector",
    )


def _resolve(
    option: OuttypeOption, tensors: Sequence[Mapped], stored: Mapping[str, SourceTensor]
) -> Outtype:
    """Return the float type that an `--outtype` means for one file."""
    if option != "auto":
        return _OUTTYPES[option]
    for mapped in tensors:
        # What was merged or scaled is float32 here; its own type is that of the file.
        tensor = stored.get(mapped.sources[0])
        if tensor is None or len(tensor.shape) < 2:
            continue
        if tensor.dtype == "BF16":
            return "BF16"
        if tensor.dtype == "F16":
            return "F16"
    return "F16"


def _output(mapped: Mapped, outtype: Outtype) -> OutputTensor:
    """Return a tensor ready to be written; its bits are copied when no value changes."""
    stored = mapped.stored_type(outtype)
    bits = mapped.read_bits if mapped.dtype == stored else None
    return OutputTensor(
        info=TensorInfo(name=mapped.name, shape=mapped.shape, type=stored),
        read=mapped.read,
        read_raw=None if bits is None else lambda start, stop: bits(start, stop).tobytes(),
    )


def _preprocessor(source: Checkpoint) -> Section:
    """Return the image settings: processor_config.json's over preprocessor_config.json's.

    Raises:
        CheckpointError: the folder has neither.
    """
    processor = source.optional_json("processor_config.json")
    preprocessor = source.optional_json("preprocessor_config.json")
    if processor is not None and processor.has("image_processor"):
        newer = processor.section("image_processor")
        return newer if preprocessor is None else newer.over(preprocessor)
    if preprocessor is None and processor is not None and processor.has("image_mean"):
        return processor  # DeepSeek-OCR's own
    preprocessor = preprocessor or image_settings(source.folder)
    if preprocessor is None:
        raise CheckpointError(
            f"`{source.folder}` has no preprocessor_config.json",
            hint="download the checkpoint again: image mean and deviation are in that file",
        )
    return preprocessor
