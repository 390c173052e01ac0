"""Which files of a repository are needed: a checkpoint's, or one level of a GGUF repository's."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from edgevlm.errors import CheckpointError, EdgeVLMError, HubError, SourceNotFoundError
from edgevlm.files import human_bytes
from edgevlm.hub.file import HubFile

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Tokenizers of 250,000 tokens have 40 MB; what is beyond this the converter would not read.
MAX_SIDE_FILE_BYTES = 64_000_000

_SIDE_FILE = re.compile(
    r"([\w][\w.+-]*\.(json|jinja)|tokenizer\.model|additional_chat_templates/[\w][\w.+-]*\.jinja)",
    re.ASCII,
)
_SHARD = re.compile(r"[\w][\w.+-]*\.safetensors", re.ASCII)
_GGUF = re.compile(r"([\w][\w.+ -]*/)*[\w][\w.+ -]*\.gguf", re.ASCII)
# As llama.cpp names the files of a model in several (src/llama.cpp, `llama_split_path`).
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.ASCII)
_MAX_PARTS = 1000
_LEVEL = re.compile(
    r"(?:^|[-_.])((?:UD-)?(?:I?Q\d+(?:_\w+)*|TQ\d_\d|MXFP4(?:_\w+)*|BF16|F16|F32))\.gguf$",
    re.IGNORECASE | re.ASCII,
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def has_checkpoint(names: Collection[str]) -> bool:
    """Whether the repository holds a checkpoint in safetensors."""
    return CONFIG in names and (SINGLE_FILE in names or INDEX in names)


def check_checkpoint(repo: str, names: Collection[str]) -> None:
    """Say what is missing where the repository holds no checkpoint that can be converted.

    Raises:
        CheckpointError: no config.json, or no safetensors.
    """
    if has_checkpoint(names):
        return
    if text_ggufs(names):
        raise CheckpointError(
            f"`{repo}` holds GGUF files, which need no conversion",
            hint=f"use them: `edgevlm chat -m {repo}`",
        )
    if ADAPTER_FILES[0] in names:
        raise CheckpointError(
            f"`{repo}` holds an adapter (LoRA), not a whole model",
            hint=f"convert its base model with it: `edgevlm convert BASE --adapter {repo}`",
        )
    pickle = _first_pickle(names)
    if pickle is not None:
        raise CheckpointError(
            f"`{repo}` holds only pickle weights (`{pickle}`), "
            "which can run any code when they are loaded: refused",
            hint="look for a revision or a copy of it in safetensors",
        )
    missing = CONFIG if CONFIG not in names else f"{SINGLE_FILE} and no {INDEX}"
    raise CheckpointError(
        f"`{repo}` is not a checkpoint: it has no {missing}",
        hint="name a repository with config.json and *.safetensors at its top",
    )


def adapter_files(repo: str, files: Mapping[str, HubFile]) -> list[HubFile]:
    """Return the files of a LoRA adapter.

    Raises:
        CheckpointError: the repository holds none, or only a pickle.
    """
    missing = next((name for name in ADAPTER_FILES if name not in files), None)
    if missing == ADAPTER_FILES[1] and (pickle := _first_pickle(files)):
        raise CheckpointError(
            f"`{repo}` holds its adapter only as a pickle (`{pickle}`), "
            "which can run any code when it is loaded: refused",
            hint="look for a revision or a copy of it in safetensors",
        )
    if missing is not None:
        raise CheckpointError(
            f"`{repo}` is no adapter: it has no {missing}",
            hint="name a repository that peft's `save_pretrained` wrote",
        )
    if (files[ADAPTER_FILES[0]].n_bytes or 0) > MAX_SIDE_FILE_BYTES:
        raise too_large(files[ADAPTER_FILES[0]])
    return [files[name] for name in ADAPTER_FILES]


def _first_pickle(names: Iterable[str]) -> str | None:
    return next((name for name in sorted(names) if name.endswith(_PICKLES)), None)


def side_files(files: Mapping[str, HubFile]) -> list[HubFile]:
    """Return what stands beside the weights: config, tokenizer, chat templates."""
    return [
        file
        for file in files.values()
        if _SIDE_FILE.fullmatch(file.name) and (file.n_bytes or 0) <= MAX_SIDE_FILE_BYTES
    ]


def weight_files(repo: str, files: Mapping[str, HubFile], index: bytes | None) -> list[HubFile]:
    """Return the files of the weights: the single one, else those that the index names.

    Raises:
        CheckpointError: the index is broken, or names what is not there.
    """
    names = [SINGLE_FILE] if index is None else _shards(repo, index)
    for name in names:
        if name not in files:
            raise CheckpointError(
                f"`{repo}` has no `{name}`, which its {INDEX} names",
                hint="the upload is incomplete: try another revision",
            )
    return [files[name] for name in names]


def _shards(repo: str, index: bytes) -> list[str]:
    try:
        document: object = json.loads(index)
    except (ValueError, RecursionError):
        document = None
    fields = cast(dict[str, object], document) if isinstance(document, dict) else {}
    weight_map = fields.get("weight_map")
    files = cast(dict[str, object], weight_map).values() if isinstance(weight_map, dict) else ()
    names = {name for name in files if isinstance(name, str) and _SHARD.fullmatch(name)}
    if not names or not all(isinstance(name, str) and name in names for name in files):
        raise CheckpointError(
            f"{INDEX} of `{repo}` names no shards, or something else than shards",
            hint="the upload is broken: try another revision",
        )
    return sorted(names)


def text_ggufs(names: Iterable[str]) -> list[str]:
    """Return the text models among GGUF files: not projectors, not imatrix files."""
    return [
        name
        for name in sorted(names)
        if _GGUF.fullmatch(name) and not _is_projector(name) and "imatrix" not in name.lower()
    ]


def level_of(name: str) -> str | None:
    """Return the level that ends a GGUF file's name, None where none does."""
    found = _LEVEL.search(_SPLIT.sub(".gguf", name))
    return found[1].upper() if found else None


@dataclass(frozen=True, kw_only=True)
class GGUFChoice:
    """The files of one level.

    Attributes:
        text: the text model, all its files in order.
        level: as its name says; None: it does not.
        mmproj: the projector, None where the repository has none.
    """

    text: tuple[HubFile, ...]
    level: str | None
    mmproj: HubFile | None


def choose_gguf(
    repo: str, files: Mapping[str, HubFile], *, levels: Sequence[str], or_any: bool = False
) -> GGUFChoice:
    """Choose a text model and its projector.

    Args:
        repo: to be named in errors.
        files: of the repository, a text model in GGUF among them.
        levels: of the text model, the best first.
        or_any: take the first by name where there is none of these.

    Raises:
        SourceNotFoundError: none of these levels.
        HubError: several at that level, or one that is not there in all its files.
    """
    there = {name: level_of(name) for name in text_ggufs(files)}
    wanted = next((level.upper() for level in levels if level.upper() in there.values()), None)
    if wanted is None and not or_any:
        named = ", ".join(sorted({level for level in there.values() if level}))
        raise SourceNotFoundError(
            f"`{repo}` has no GGUF file at level {' or '.join(levels)} (it has: {named or 'none'})",
            hint="choose a level that it has, or the repository of the checkpoint it was made from",
        )
    names = [name for name, level in there.items() if level == wanted]
    if wanted is None:
        names = [name for name in there if not _SPLIT.search(name)][:1] or list(there)
    text = _only(repo, names)
    return GGUFChoice(
        text=tuple(files[name] for name in text),
        level=there[text[0]],
        mmproj=_projector(files, there[text[0]]),
    )


def _only(repo: str, names: Sequence[str]) -> list[str]:
    """Return the files of the one model among `names`, all of a level."""
    models = {_SPLIT.sub("", name) for name in names}
    if len(models) > 1:
        shown = ", ".join(f"`{name}`" for name in names[:4])
        raise HubError(
            f"`{repo}` holds several text models of one level: {shown}",
            hint=f"choose with --level, or download one: `hf download {repo} FILE`",
        )
    split = _SPLIT.search(names[0])
    if split is None:
        return [names[0]]
    count = min(int(split[1]), _MAX_PARTS)
    stem = models.pop()
    parts = [f"{stem}-{number:05}-of-{split[1]}.gguf" for number in range(1, count + 1)]
    missing = next((name for name in parts if name not in names), None)
    if missing is not None or len(parts) != len(names):
        raise HubError(
            f"`{repo}` holds `{names[0]}`, and not `{missing or parts[-1]}`",
            hint="the upload is incomplete: choose another level with --level, or a revision",
        )
    return parts


def _is_projector(name: str) -> bool:
    return "mmproj" in name.rpartition("/")[2].lower()


def _projector(files: Mapping[str, HubFile], level: str | None) -> HubFile | None:
    """Choose a projector: of the text model's float type, else Q8_0, else 16 bits."""
    found = {
        level_of(name) or "": file
        for name, file in sorted(files.items(), reverse=True)
        if _GGUF.fullmatch(name) and _is_projector(name)
    }
    order = ("F16", "BF16", "F32") if level in ("F16", "BF16", "F32") else ("Q8_0", "F16", "BF16")
    for wanted in (level or "", *order):
        if wanted in found:
            return found[wanted]
    return next(iter(found.values()), None)


def too_large(file: HubFile) -> EdgeVLMError:
    """Return the error of a config or tokenizer file of absurd size."""
    return HubError(
        f"`{file.name}` has {human_bytes(file.n_bytes or 0)}: more than any file of its kind",
        hint="do not trust this repository",
    )
