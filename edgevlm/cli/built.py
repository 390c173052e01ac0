"""How a written model is shown: the ledger, then a line a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgevlm.build.convert import Built
    from edgevlm.build.output import FilePlan
    from edgevlm.manifest import FileEntry, Manifest
    from edgevlm.verify.report import VerifyReport

_HEADERS = ("file", "level", "size", "bits/weight", "tensor types")
_COLUMN_GAP = 3
# Tensors that are left out for one reason and still named one by one; whole towers have hundreds.
_MAX_NAMED = 12


def show_built(
    built: Built,
    *,
    json: bool,
    quiet: bool,
    seconds: float,
    ledger: bool,
    peak_bytes: int | None = None,
    report: VerifyReport | None = None,
) -> None:
    """Print what a run wrote: a table on stdout, the rest on stderr; or one JSON document.

    Args:
        built: the run.
        json: one document, with the report.
        quiet: no notes.
        seconds: that it took.
        ledger: show what became of the checkpoint's tensors.
        peak_bytes: memory that it took; None: the process until now.
        report: what verification found; shown elsewhere but in the document.
    """
    from edgevlm.cli import console
    from edgevlm.files import human_bytes
    from edgevlm.native.peak_memory import peak_memory_n_bytes

    peak = peak_memory_n_bytes() if peak_bytes is None else peak_bytes
    tokenizer = built.manifest.tokenizer
    if json:
        console.print_json(
            {
                "folder": str(built.folder),
                "name": built.manifest.name,
                "family": built.manifest.family,
                "files": [entry.model_dump() for entry in built.written],
                "kept": list(built.kept),
                "ledger": built.manifest.ledger.model_dump() if ledger else None,
                "losses": list(built.manifest.losses),
                "pre": built.manifest.source.pre,
                "tokenizer": tokenizer.model_dump() if tokenizer and ledger else None,
                "seconds": round(seconds, 3),
                "peak_rss_bytes": peak,
                **({"verify": report.to_dict()} if report is not None else {}),
            }
        )
        return
    if ledger:
        _show_ledger(built.manifest)
    _show_files([_row(entry) for entry in built.written])
    for name in built.kept:
        console.note(f"kept {name}: made from the same weights", quiet=quiet)
    for entry in built.written:
        if entry.imatrix is not None and entry.imatrix.n_without:
            console.note(
                f"{entry.name}: the importance matrix knows nothing of {entry.imatrix.n_without}"
                " tensors, whose channels count evenly",
                quiet=quiet,
            )
    n_bytes = sum(entry.n_bytes for entry in built.written)
    console.note(
        f"wrote {human_bytes(n_bytes)} into {built.folder} in {seconds:.1f} s, "
        f"peak memory {human_bytes(peak)}",
        quiet=quiet,
    )


def show_plan(files: tuple[FilePlan, ...], *, json: bool) -> None:
    """Print what a run would write."""
    from edgevlm.cli import console
    from edgevlm.files import human_bytes

    rows = [(file, *_weights(file)) for file in files]
    if json:
        console.print_json(
            {
                "files": [
                    {
                        "name": file.name,
                        "level": file.level,
                        "n_bytes": file.plan.n_bytes,
                        "bits_per_weight": round(bits, 4),
                        "tensor_types": counts,
                    }
                    for file, bits, counts in rows
                ]
            }
        )
        return
    _show_files(
        [
            (file.name, file.level, human_bytes(file.plan.n_bytes), f"{bits:.2f}", _types(counts))
            for file, bits, counts in rows
        ]
    )


def _show_ledger(manifest: Manifest) -> None:
    from edgevlm.cli import console

    ledger, tokenizer = manifest.ledger, manifest.tokenizer
    n_own = ledger.n_source_tensors - ledger.n_adapter_tensors
    beside = f", {ledger.n_adapter_tensors} in the adapter" if ledger.adapted else ""
    console.out().print(
        f"{n_own} tensors in the checkpoint{beside}: {len(ledger.used)} used, "
        f"{len(ledger.dropped)} dropped"
    )
    if ledger.adapted:
        console.out().print(f"  {len(ledger.adapted)} tensors changed by the adapter")
    if ledger.n_dequantized:
        console.out().print(f"  {ledger.n_dequantized} weights of 8 bits read as floats")
    for line in dropped_lines(ledger.dropped):
        console.out().print(line, markup=False, soft_wrap=True)
    for loss in manifest.losses:
        console.out().print(f"  known loss: {loss}", markup=False, soft_wrap=True)
    if manifest.source.pre is not None:
        console.out().print(f"pre-tokenizer {manifest.source.pre}, chosen with --pre", markup=False)
    if tokenizer is not None:
        n_alike = tokenizer.n_probes - tokenizer.n_different
        console.out().print(
            f"{n_alike} of {tokenizer.n_probes} texts become the same tokens in llama.cpp"
        )
        for limit in tokenizer.limits:
            line = f"  known limit: {limit.reason} ({limit.n_probes} texts, first '{limit.first}')"
            console.out().print(line, markup=False, soft_wrap=True)
    console.out().print()


def dropped_lines(dropped: Mapping[str, str]) -> list[str]:
    """Return what to say of tensors that were left out: each by name, many of one reason in one.

    Args:
        dropped: reasons by name.
    """
    from edgevlm.cli import console

    by_reason: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        by_reason.setdefault(reason, []).append(console.printable(name))
    lines: list[str] = []
    for reason, names in by_reason.items():
        if len(names) <= _MAX_NAMED:
            lines += [f"  dropped {name}: {reason}" for name in names]
        else:
            rest = f"{names[0]} and {len(names) - 1} more (edgevlm.json names them)"
            lines.append(f"  dropped {rest}: {reason}")
    return lines


def _show_files(rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table; two lines a file where it is wider than the terminal: names are copied."""
    from edgevlm.cli import console

    widths = [max(map(len, column)) for column in zip(_HEADERS, *rows, strict=True)]
    if sum(widths) + _COLUMN_GAP * (len(widths) - 1) <= console.out().width:
        console.table(_HEADERS, rows, right=(2, 3))
        return
    for name, level, size, bits, types in rows:
        console.out().print(console.printable(name), markup=False, style="bold", soft_wrap=True)
        console.out().print(f"  {level}, {size}, {bits} bits per weight", markup=False)
        console.out().print(f"  {types}", markup=False)


def _row(entry: FileEntry) -> tuple[str, ...]:
    from edgevlm.files import human_bytes

    counts = {name: count.n_tensors for name, count in entry.tensor_types.items()}
    return (
        _shown_name(entry),
        entry.level,
        human_bytes(entry.n_bytes),
        f"{entry.bits_per_weight:.2f}",
        _types(counts),
    )


def _shown_name(entry: FileEntry) -> str:
    """Return a pattern that matches every file of a model in several."""
    from edgevlm.gguf_shards import model_stem

    if not entry.parts:
        return entry.name
    return f"{model_stem(entry.name)}-*-of-{len(entry.parts):05}.gguf"


def _types(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))


def _weights(file: FilePlan) -> tuple[float, dict[str, int]]:
    from collections import Counter
    from math import prod

    n_weights = sum(prod(tensor.info.shape) for tensor in file.plan.tensors)
    counts = Counter(file.plan.types[tensor.info.name] for tensor in file.plan.tensors)
    return 8 * file.plan.n_data_bytes / n_weights, dict(counts)
