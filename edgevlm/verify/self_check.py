"""What can be proved without a reference: tokenizer, ledger, and that the model sees an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgevlm.build.tokenizer_proof import prove_tokenizer
from edgevlm.errors import ConversionError
from edgevlm.gguf_file import GGUFFile
from edgevlm.manifest import Manifest, TokenizerRecord
from edgevlm.runtime.layout import Pixels
from edgevlm.runtime.vlm import VLM
from edgevlm.vectors import log_softmax
from edgevlm.verify.report import Stage, Status

LEDGER, SIGHT, TOKENIZER = "ledger", "sees an image", "tokenizer proof"
_OTHER = "the file is of another conversion than the checkpoint, or was changed since"
_SIDE = 224
# Two images that share nothing move a model that sees by far more than rounding does.
_MIN_SEEN, _MIN_SUSPECTED = 1e-3, 1e-6


def check_tokenizer(text: Path, manifest: Manifest | None, checkpoint: Path | None) -> Stage:
    """Tokenize 500 texts with the checkpoint's tokenizer and with the file, else read the record.

    Args:
        text: the text model's file.
        manifest: of its folder, or None.
        checkpoint: with the tokenizer that the file was made from; None when it is not at hand.
    """
    if checkpoint is not None:
        try:
            return _tokenizer_stage(prove_tokenizer(checkpoint, text), "")
        except ConversionError as error:
            return Stage(
                name=TOKENIZER, status="fail", summary=error.message, cause=error.hint or _OTHER
            )
    record = manifest.tokenizer if manifest is not None else None
    if record is None:
        why = "neither the checkpoint nor a record of its conversion is at hand"
        return Stage(name=TOKENIZER, status="not checked", summary=why)
    stage = _tokenizer_stage(record, "at conversion, ")
    known = manifest is not None and _is_unchanged(text, manifest)
    return stage if known else replace(stage, status="not checked", cause=_OTHER)


def _tokenizer_stage(record: TokenizerRecord, when: str) -> Stage:
    explained = "; ".join(f"{limit.n_probes} {limit.reason}" for limit in record.limits)
    return Stage(
        name=TOKENIZER,
        status="pass",
        summary=f"{when}{record.n_probes - record.n_different} of {record.n_probes} texts become"
        " the same tokens" + (f"; explained: {explained}" if explained else ""),
        numbers={"n_probes": record.n_probes, "n_different": record.n_different},
    )


def _is_unchanged(text: Path, manifest: Manifest) -> bool:
    return any(
        entry.name == text.name and entry.is_unchanged(text.parent) for entry in manifest.files
    )


def check_ledger(manifest: Manifest | None, files: Sequence[GGUFFile]) -> Stage:
    """Hold the tensors of the files against what the manifest says became of the checkpoint's."""
    if manifest is None:
        return Stage(
            name=LEDGER, status="not checked", summary="there is no manifest beside the files"
        )
    ledger = manifest.ledger
    written = {tensor.name for file in files for tensor in file.tensors}
    promised = {name for names in ledger.used.values() for name in names}
    missing = sorted(promised - written)
    if missing:
        return Stage(
            name=LEDGER,
            status="fail",
            summary=f"{len(missing)} tensors of the ledger are in no file, such as `{missing[0]}`",
            cause="the files are of another conversion than the manifest, or were cut",
        )
    n_accounted = len(ledger.used) + len(ledger.dropped)
    if n_accounted != ledger.n_source_tensors:
        return Stage(
            name=LEDGER,
            status="fail",
            summary=f"{n_accounted} of {ledger.n_source_tensors} source tensors are accounted for",
            cause="the manifest was edited; convert the checkpoint again",
        )
    return Stage(
        name=LEDGER,
        status="pass",
        summary=f"{ledger.n_source_tensors} source tensors: {len(ledger.used)} used,"
        f" {len(ledger.dropped)} dropped by name",
        numbers={"n_used": len(ledger.used), "n_dropped": len(ledger.dropped)},
    )


def check_sight(vlm: VLM, image: Pixels | None = None) -> Stage:
    """Ask the same about two images that share nothing: the answer must change.

    Args:
        vlm: loaded, with its projector.
        image: one of the two; None for a drawn one.
    """
    one = image if image is not None else _stripes()
    prompt = "Describe the image."
    rows = [log_softmax(vlm.first_logits(prompt, [pixels])[None])[0] for pixels in (one, _blank())]
    if not all(np.isfinite(row).all() for row in rows):
        return Stage(
            name=SIGHT,
            status="fail",
            summary="the model's logits are no numbers",
            cause="a value overflows in 16 bits: convert with `--outtype bf16`",
        )
    kld = float((np.exp(rows[0]) * (rows[0] - rows[1])).sum())
    status: Status = "pass" if kld >= _MIN_SEEN else "warn" if kld >= _MIN_SUSPECTED else "fail"
    return Stage(
        name=SIGHT,
        status=status,
        summary=f"the first token's distribution moves by a KLD of {kld:.3g} with the image",
        cause=""
        if status == "pass"
        else "the image hardly reaches the answer: the projector is of another model, its tensors"
        " are broken, or the weights were never trained",
        numbers={"kld": kld},
    )


def _stripes() -> Pixels:
    """Return coloured stripes and a disc."""
    y, x = np.mgrid[0:_SIDE, 0:_SIDE]
    red = (x // 16 % 2 * 255).astype(np.uint8)
    disc = (((x - 112) ** 2 + (y - 112) ** 2 < 60**2) * 255).astype(np.uint8)
    return np.stack([red, disc, (y * 255 // _SIDE).astype(np.uint8)], axis=-1)


def _blank() -> Pixels:
    return np.full((_SIDE, _SIDE, 3), 250, dtype=np.uint8)
