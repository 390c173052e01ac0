"""Real vocabularies through the converter and the proof. Run by hand, it takes some minutes:

    python -m tests.tokenizers.real_vocabularies SDIST/vendor/llama.cpp/models [NAME ...]

SDIST is the unpacked source distribution of the llama-cpp-python that constraints.txt pins; its
ggml-vocab-NAME.gguf hold published vocabularies, the .inp and .out beside them texts and the ids
that transformers gave for them. From each a checkpoint's tokenizer files are made again (the
pre-tokenizer from our table), converted, proved, and compared with those ids.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm_convert.checkpoint import Checkpoint
from edgevlm_convert.config import Section
from edgevlm_convert.metadata import string
from edgevlm_convert.tokenizer import vocabulary
from edgevlm_convert.vocabulary.pre_tokenizer_table import BY_NAME, GPT2
from edgevlm_convert.writer import plan_gguf, write_gguf

from edgevlm.build.tokenizer_proof import prove_tokenizer
from edgevlm.errors import EdgeVLMError
from edgevlm.gguf_file import read_gguf
from edgevlm.native.vocabulary import open_vocabulary
from tests.synthetic_tokenizer import write_json
from tests.tokenizers.parts import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Config,
    Piece,
    added_token,
    merges_of,
    sentencepiece_model,
)
from tests.tokenizers.unigram import metaspace, precompiled

SEPARATOR = "\n__ggml_vocab_test__\n"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def byte_level_json(values: dict[str, Any]) -> Config:
    """Return the tokenizer.json that a byte-level vocabulary was made from."""
    # Files from before there were pre-tokenizers are of GPT-2's.
    known = BY_NAME[values.get("pre", "gpt-2")]
    expressions = list(known.expressions)
    use_regex = expressions[-1] == GPT2
    steps: list[Config] = [
        {"type": "Split", "pattern": {"Regex": one}, "behavior": "Isolated", "invert": False}
        for one in (expressions[:-1] if use_regex else expressions)
    ]
    return {
        "version": "1.0",
        "added_tokens": _added(values),
        "normalizer": {"type": "NFC"} if known.name.startswith("qwen") else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*steps, BYTE_LEVEL | {"use_regex": use_regex}],
        },
        "decoder": BYTE_LEVEL | {"use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": known.ignore_merges,
            "vocab": _model_tokens(values),
            "merges": values["merges"],
        },
    }


def sentencepiece_json(values: dict[str, Any], merges: list[Any], *, prefix: bool) -> Config:
    """Return the tokenizer.json of a SentencePiece vocabulary."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    return {
        "version": "1.0",
        "added_tokens": _added(values),
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": _model_tokens(values),
            "merges": merges,
        },
    }


def unigram_json(values: dict[str, Any]) -> Config:
    """Return the tokenizer.json of a unigram vocabulary, as XLM-RoBERTa's is published."""
    rows = zip(values["tokens"], values["scores"], values["token_type"], strict=True)
    return {
        "version": "1.0",
        "added_tokens": _added(values),
        "normalizer": precompiled(bytes(values["precompiled_charsmap"])),
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always", split=True)],
        },
        "decoder": metaspace("always", split=True),
        "model": {
            "type": "Unigram",
            "unk_id": values["unknown_token_id"],
            "vocab": [[text, score] for text, score, kind in rows if kind != UNUSED],
        },
    }


def _added(values: dict[str, Any]) -> list[Config]:
    kinds = (CONTROL, USER_DEFINED, UNKNOWN)
    return [
        added_token(row, text, special=kind != USER_DEFINED)
        for row, (text, kind) in enumerate(zip(values["tokens"], values["token_type"], strict=True))
        if kind in kinds
    ]


def _model_tokens(values: dict[str, Any]) -> dict[str, int]:
    rows = enumerate(zip(values["tokens"], values["token_type"], strict=True))
    return {text: row for row, (text, kind) in rows if kind != UNUSED}


def folders(values: dict[str, Any], scratch: Path) -> Iterator[tuple[str, Path]]:
    """Write the tokenizer files in every form that a checkpoint may have them."""

    def folder(form: str) -> Path:
        (scratch / form).mkdir()
        return scratch / form

    if values["model"] == "gpt2":
        path = folder("json")
        write_json(path / "tokenizer.json", byte_level_json(values))
        yield "tokenizer.json", path
        return
    if values["model"] == "gemma4":
        path = folder("json")
        write_json(
            path / "tokenizer.json", sentencepiece_json(values, values["merges"], prefix=False)
        )
        yield "tokenizer.json", path
        return
    if values["model"] == "t5":
        path = folder("json")
        write_json(path / "tokenizer.json", unigram_json(values))
        yield "tokenizer.json", path
        path = folder("model")
        pieces = [
            Piece(text=text, score=score, type=kind)
            for text, score, kind in zip(
                values["tokens"], values["scores"], values["token_type"], strict=True
            )
            if kind != UNUSED
        ]
        model = sentencepiece_model(
            pieces,
            unk_id=values["unknown_token_id"],
            add_dummy_prefix=True,
            model_type=1,
            charsmap=bytes(values["precompiled_charsmap"]),
            remove_extra_whitespaces=True,
        )
        (path / "tokenizer.model").write_bytes(model)
        yield "tokenizer.model", path
        return
    pieces = [
        Piece(text=text, score=score, type=NORMAL if kind == USER_DEFINED else kind)
        for text, score, kind in zip(
            values["tokens"], values["scores"], values["token_type"], strict=True
        )
    ]
    model = sentencepiece_model(pieces, unk_id=0, add_dummy_prefix=True)
    tokenizer = sentencepiece_json(values, merges_of(pieces), prefix=True)
    for form in ("tokenizer.model", "tokenizer.json", "both"):
        path = folder(form)
        if form != "tokenizer.json":
            (path / "tokenizer.model").write_bytes(model)
        if form != "tokenizer.model":
            write_json(path / "tokenizer.json", tokenizer)
        yield form, path


def run(path: Path) -> None:
    """Convert and prove one vocabulary, in every form."""
    metadata = read_gguf(path).metadata
    prefix = "tokenizer.ggml."
    values: dict[str, Any] = {
        key.removeprefix(prefix): value.value for key, value in metadata.items()
    }
    with tempfile.TemporaryDirectory() as scratch:
        for form, folder in folders(values, Path(scratch)):
            begin = time.perf_counter()
            settings = {
                "text_config": {"model_type": "llama"},
                "eos_token_id": values["eos_token_id"],
            }
            config = Section(settings, file="config.json")
            checkpoint = Checkpoint(folder=folder, config=config, tensors={})
            keys = vocabulary(checkpoint, n_rows=len(values["tokens"]), runtime_tokens=())  # pyright: ignore
            same = {
                name: list(keys[prefix + name].value) == list(values[name])  # pyright: ignore
                for name in ("tokens", "token_type", "merges")
                if prefix + name in keys and name in values
            }
            written = folder / "vocabulary.gguf"
            opening = {"general.architecture": string("llama")}
            write_gguf(plan_gguf(metadata=opening | keys, tensors=[]), written)
            middle = time.perf_counter()
            try:
                record = prove_tokenizer(folder, written)
                limits = [(limit.name, limit.n_probes, limit.first) for limit in record.limits]
                proof = f"{record.n_different} of {record.n_probes} differ {limits}"
            except EdgeVLMError as error:
                proof = f"REFUSED: {error.message}"
            end = time.perf_counter()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            times = f"{middle - begin:.1f} s + {end - middle:.1f} s, peak {peak:.0f} MB"
            published = _published(path, written)
            print(f"{path.name} from {form}: {same}; {proof}; {published}; {times}")


def _published(path: Path, written: Path) -> str:
    texts = path.with_name(path.name + ".inp")
    if not texts.exists():
        return "no texts beside it"
    with texts.open(encoding="utf-8", newline="") as file:
        inputs = file.read().split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    expected = [[int(number) for number in line.split()] for line in lines]
    with open_vocabulary(written) as ours:
        n_same = sum(
            ours.tokenize(text) == ids for text, ids in zip(inputs, expected, strict=False)
        )
    return f"{n_same} of {len(expected)} published texts alike"


def main() -> None:
    """Run over the vocabularies that are named, all without a name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    for path in sorted(arguments.models.glob("ggml-vocab-*.gguf")):
        name = path.stem.removeprefix("ggml-vocab-")
        if arguments.names and name not in arguments.names:
            continue
        metadata = read_gguf(path).metadata
        kind = metadata["tokenizer.ggml.model"].value
        pre = metadata.get("tokenizer.ggml.pre")
        known = pre is None or str(pre.value) in BY_NAME
        if kind in ("llama", "gemma4", "t5") or (kind == "gpt2" and known):
            run(path)
        else:
            print(f"{path.name}: {kind}, left out")


if __name__ == "__main__":
    main()
