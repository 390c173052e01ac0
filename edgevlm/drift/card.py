"""A model directory's README.md: what the Hub shows of it, what was lost, and how it is used."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.build.resolve import projector_of
from edgevlm.drift.front_matter import base_models, front_matter, license_of
from edgevlm.drift.markdown import escape, render_markdown
from edgevlm.drift.report import DriftReport
from edgevlm.drift.report_file import kept_report
from edgevlm.drift.wording import best_level, clean
from edgevlm.errors import OutputExistsError, SourceNotFoundError
from edgevlm.files import human_bytes, sha256_file, write_together
from edgevlm.gguf_shards import read_model, shard_paths
from edgevlm.manifest import FileEntry, Manifest, describe_file
from edgevlm.model_dir import ModelDir, ModelFile
from edgevlm.progress import SILENT, Progress

CARD_NAME = "README.md"
# The manifest's key, in `drift`, of the last report.
REPORT_KEY = "compare"
_HASH_DIGITS = 12
_USUAL_LEVEL = "Q4_K_M"


@dataclass(frozen=True, kw_only=True)
class Usable:
    """A text model with the projector to take.

    Attributes:
        entry: what is known of the text model.
        mmproj: the projector's file name; None: there is none.
    """

    entry: FileEntry
    mmproj: str | None


@dataclass(frozen=True, kw_only=True)
class WrittenCard:
    """What was written.

    Attributes:
        path: the card.
        notes: what the user should know, a sentence each.
    """

    path: Path
    notes: tuple[str, ...]


def write_card(
    model: ModelDir,
    *,
    report: DriftReport | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> WrittenCard:
    """Write README.md into a model directory.

    Args:
        model: the directory, with a manifest or without.
        report: of this model; None: the one that the manifest keeps.
        force: replace a README.md that is there.
        progress: told the bytes of files that must be hashed.

    Raises:
        SourceNotFoundError: the directory holds no text model.
        OutputExistsError: it has a README.md, and `force` is not set.
        OutputError: it cannot be written.
    """
    path = model.folder / CARD_NAME
    if path.exists() and not force:
        raise OutputExistsError(f"`{path}` exists already", hint="give --force to replace it")
    if not model.of_role("text"):
        raise SourceNotFoundError(
            f"`{model.folder}` holds no text model", hint="give a model directory"
        )
    notes = list(model.skipped)
    if report is None and model.manifest is not None:
        kept = model.manifest.drift.get(REPORT_KEY)
        report = kept_report(kept) if kept is not None else None
        if kept is not None and report is None:
            notes.append("the manifest's drift report is of another version and was left out")
    if report is not None:
        notes.extend(_strangers(report, model))
    content = render_card(model, describe(model, progress=progress), report).encode()
    with write_together(
        model.folder, names=[CARD_NAME], n_bytes=len(content), force=force
    ) as output:
        output.create(CARD_NAME).write_bytes(content)
    return WrittenCard(path=path, notes=tuple(notes))


def _strangers(report: DriftReport, model: ModelDir) -> list[str]:
    """Say which files of a report are not here: it may be of another model."""
    here = {file.path.name for file in model.files}
    gone = [level.text_file for level in report.levels if level.text_file not in here]
    if len(gone) == len(report.levels):
        return [f"the report is of `{report.model}`: none of its files is in `{model.folder}`"]
    return [f"the report also measured `{name}`, which is not here" for name in gone]


def describe(model: ModelDir, *, progress: Progress = SILENT) -> list[FileEntry]:
    """Return an entry a file; what no manifest knows, or has changed, is hashed anew."""
    known = {entry.name: entry for entry in model.manifest.files} if model.manifest else {}
    entries = [
        known[file.path.name] if file.known else _hashed(file, progress) for file in model.files
    ]
    return sorted(entries, key=lambda entry: (entry.role == "mmproj", -entry.n_bytes, entry.name))


def _hashed(file: ModelFile, progress: Progress) -> FileEntry:
    paths = shard_paths(file.path)
    hashes: list[str] = []
    total = sum(path.stat().st_size for path in paths)
    with progress.task(f"Hashing {file.path.name}", total=total) as advance:
        for path in paths:
            hashes.append(sha256_file(path))
            advance(path.stat().st_size)
    return describe_file(
        file.path,
        name=file.path.name,
        role=file.role,
        level=file.level,
        profile=None,
        sha256=hashes,
    )


def render_card(model: ModelDir, entries: Sequence[FileEntry], report: DriftReport | None) -> str:
    """Return the card's text."""
    usable = [_usable(entry, model) for entry in entries if entry.role == "text"]
    name = model.manifest.name if model.manifest else model.folder.resolve().name
    chosen = _chosen(usable, report)
    sections = [
        _head(model, chosen),
        f"# {escape(name)}",
        _introduction(model.manifest),
        _files(entries, usable),
        _drift(report),
        _losses(model.manifest),
        _usage(chosen, name),
    ]
    return "\n".join(section.rstrip() + "\n" for section in sections if section)


def _usable(entry: FileEntry, model: ModelDir) -> Usable:
    file = next(file for file in model.files if file.path.name == entry.name)
    projector = projector_of(file, None)[0]
    return Usable(entry=entry, mmproj=projector.name if projector else None)


def _chosen(usable: Sequence[Usable], report: DriftReport | None) -> Usable:
    """Return the level that the examples take: the smallest within its limits, else a usual one."""
    best = best_level(report) if report else None
    for one in usable:
        if best is not None and one.entry.name == best.text_file:
            return one
    usual = [one for one in usable if one.entry.level == _USUAL_LEVEL]
    return usual[0] if usual else min(usable, key=lambda one: one.entry.n_bytes)


def _head(model: ModelDir, chosen: Usable) -> str:
    text = read_model(model.folder / chosen.entry.name)
    bases = base_models(model.manifest, text)
    family = model.manifest.family if model.manifest else text.architecture
    return front_matter(
        {
            **license_of(model.manifest, text),
            "library_name": "gguf",
            "pipeline_tag": "image-text-to-text" if chosen.mmproj else "text-generation",
            "base_model": bases[0] if len(bases) == 1 else bases,
            # With an adapter there are two, and the Hub itself tells how they relate.
            "base_model_relation": "quantized" if len(bases) == 1 else "",
            "tags": [tag for tag in ("gguf", "llama.cpp", "edgevlm", family) if tag],
        }
    )


def _introduction(manifest: Manifest | None) -> str:
    made = "GGUF files for llama.cpp"
    if manifest is not None:
        source, version = manifest.source, manifest.versions.get("edgevlm", "")
        if source.repo:
            revision = f", revision {escape(source.revision[:12])}" if source.revision else ""
            made += f" of {escape(source.repo)}{revision}"
        if source.adapter and (source.adapter.repo or source.adapter.path):
            adapter = source.adapter.repo or Path(source.adapter.path or "").name
            made += f", with the adapter {escape(adapter)} merged"
        made += f", converted with edgevlm {escape(version)}".rstrip()
    return (
        f"{made}. A vision-language model is two files: the text model and its projector (mmproj)."
    )


def _files(entries: Sequence[FileEntry], usable: Sequence[Usable]) -> str:
    mmprojs = {one.entry.name: one.mmproj for one in usable}
    lines = [
        "## Files",
        "",
        "| file | level | size | bits/weight | take with | sha256 |",
        "| --- | --- | ---: | ---: | --- | --- |",
    ]
    for entry in entries:
        n_files = f" ({len(entry.parts)} files)" if entry.parts else ""
        mate = mmprojs.get(entry.name)
        cells = (
            escape(entry.name) + n_files,
            escape(entry.level),
            human_bytes(entry.n_bytes),
            f"{entry.bits_per_weight:.2f}",
            escape(mate) if mate else "",
            entry.sha256[:_HASH_DIGITS],
        )
        lines.append(f"| {' | '.join(cells)} |")
    again = [entry for entry in entries if entry.requantized_from]
    lines.extend(
        f"\n{escape(entry.name)} was made from {escape(entry.requantized_from or '')} blocks, not"
        " from 16-bit weights: the error of both adds up."
        for entry in again
    )
    return "\n".join(lines)


def _drift(report: DriftReport | None) -> str:
    if report is None:
        return (
            "## Drift\n\nNot measured yet. `edgevlm compare` measures what each level lost;"
            " `edgevlm card --force` then writes it here."
        )
    return f"## Drift\n\n{render_markdown(report).rstrip()}"


def _losses(manifest: Manifest | None) -> str:
    if manifest is None or not manifest.losses:
        return ""
    return "\n".join(["## Known losses", "", *(f"- {escape(loss)}" for loss in manifest.losses)])


def _usage(chosen: Usable, name: str) -> str:
    entry, mmproj = chosen.entry, chosen.mmproj
    text = _argument(entry.name)
    projector = f" --mmproj {_argument(mmproj)}" if mmproj else ""
    tool = "llama-mtmd-cli" if mmproj else "llama-cli"
    image, question = (" --image photo.jpg", "Describe the image.") if mmproj else ("", "Hello")
    photo = "photo.jpg " if mmproj else ""
    llama = f'{tool} -m {text}{projector}{image} -p "{question}"\nllama-server -m {text}{projector}'
    edgevlm = f'edgevlm chat {photo}-m . --level {_argument(entry.level)} -p "{question}"'
    return "\n".join(
        [
            "## Use",
            "",
            "With [llama.cpp](https://github.com/ggml-org/llama.cpp):",
            "",
            _fenced(llama, "sh"),
            "",
            *_ollama(chosen, name),
            "",
            "With edgevlm, in this folder:",
            "",
            _fenced(edgevlm, "sh"),
        ]
    )


def _ollama(chosen: Usable, name: str) -> list[str]:
    """Return the lines for Ollama, whose Modelfile takes a FROM for each of the two files.

    Source: ollama/ollama, parser/parser.go (every `FROM` of a file is added to the request; a value
    goes on to the end of the line) and issue 9780.
    """
    text, before = chosen.entry.name, list[str]()
    if chosen.entry.parts:
        text = f"{name}-{chosen.entry.level}.gguf"
        join = f"llama-gguf-split --merge {_argument(chosen.entry.name)} {_argument(text)}"
        before = ["Ollama takes a text model in one file; join it first:", "", _fenced(join, "sh")]
        before.append("")
    files = [text, *([chosen.mmproj] if chosen.mmproj else [])]
    modelfile = "\n".join(f"FROM ./{_one_line(file)}" for file in files)
    called = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "model"
    return [
        *before,
        "With [Ollama](https://ollama.com): save this as `Modelfile` beside the files,",
        "",
        _fenced(modelfile, ""),
        "",
        "then",
        "",
        _fenced(f"ollama create {called} -f Modelfile\nollama run {called}", "sh"),
    ]


def _argument(text: str) -> str:
    """Return one word for a shell; what begins with a dash would be an option."""
    word = _one_line(text)
    return shlex.quote(f"./{word}" if word.startswith("-") else word)


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())


def _fenced(code: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
