"""Kept rows: what they keep, the KLD that they give, and the bound of its error."""

from __future__ import annotations

import io
import math
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.drift.kept_rows import (
    KeptRows,
    concatenate,
    diverge,
    keep_rows,
    logprob_of,
    token_logprobs,
    top_tokens,
)
from edgevlm.drift.rows_file import load_rows, save_rows
from edgevlm.errors import DriftError, OutputError
from tests.drift import by_scipy

Logits = NDArray[np.float32]
BASE = np.log(np.asarray([[0.5, 0.25, 0.15, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=np.float32))
LEVEL = np.log(np.asarray([[0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.3, 0.1]], dtype=np.float32)) + 7


def flat(random: np.random.Generator, n: int, n_vocab: int) -> tuple[Logits, Logits]:
    base = random.normal(0, 0.3, (n, n_vocab))
    return base.astype(np.float32), (base + random.normal(0, 0.1, base.shape)).astype(np.float32)


def usual(random: np.random.Generator, n: int, n_vocab: int) -> tuple[Logits, Logits]:
    base = random.normal(0, 3, (n, n_vocab))
    return base.astype(np.float32), (base + random.normal(0, 0.2, base.shape)).astype(np.float32)


def peaked(random: np.random.Generator, n: int, n_vocab: int) -> tuple[Logits, Logits]:
    base = random.normal(0, 1, (n, n_vocab))
    base[np.arange(n), random.integers(n_vocab, size=n)] += random.uniform(15, 60, n)
    return base.astype(np.float32), (base + random.normal(0, 0.3, base.shape)).astype(np.float32)


def against(random: np.random.Generator, n: int, n_vocab: int) -> tuple[Logits, Logits]:
    """What the baseline finds unlikely the level finds likely."""
    base = random.normal(0, 4, (n, n_vocab)).astype(np.float32)
    return base, -base


def blind(random: np.random.Generator, n: int, n_vocab: int) -> tuple[Logits, Logits]:
    """The level rules out most of what the baseline leaves over, and trusts one such token."""
    base = random.normal(0, 4, (n, n_vocab)).astype(np.float32)
    level = np.where(base < 8, base - 60, base).astype(np.float32)
    level[:, base.argmin(axis=1)] = 20
    return base, level


def ruled_out(random: np.random.Generator, n: int, n_vocab: int) -> tuple[Logits, Logits]:
    base = random.normal(0, 4, (n, n_vocab)).astype(np.float32)
    base[:, ::3] = -np.inf
    level = base + random.normal(0, 0.3, base.shape).astype(np.float32)
    return base, level


CASES = (flat, usual, peaked, against, blind, ruled_out)


def test_all_tokens_give_the_divergence() -> None:
    found = diverge(keep_rows(BASE), LEVEL)
    expected = [0.5 * math.log(0.5 / 0.4) + 0.25 * math.log(0.25 / 0.3) + 0.15 * math.log(0.75)]
    expected += [0.1 * math.log(1 / 3) + 0.2 * math.log(2 / 3) + 0.4 * math.log(4)]
    np.testing.assert_allclose(found.kld, expected, atol=1e-6)
    assert found.same_top.tolist() == [True, False]
    assert (found.kld_error < 2e-6).all()


def test_tokens_left_over_count_as_one() -> None:
    """{0.5, 0.25, rest} beside {0.4, 0.3, rest}, and the width written out."""
    kept = keep_rows(BASE[:1], max_tail=0.26, most=3)
    assert kept.ids.tolist() == [0, 1]
    assert kept.tail[0] == pytest.approx(0.25)
    found = diverge(kept, LEVEL[:1])
    rest = 0.25 * math.log(0.25 / 0.3)
    expected = 0.5 * math.log(0.5 / 0.4) + 0.25 * math.log(0.25 / 0.3) + rest
    assert found.kld[0] == pytest.approx(expected, abs=1e-6)
    assert found.kld_error[0] == pytest.approx(0.25 * math.log(0.25 / 0.1) - rest, abs=2e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_the_bound_holds(
    case: Callable[[np.random.Generator, int, int], tuple[Logits, Logits]], seed: int
) -> None:
    random = np.random.default_rng(seed)
    for n_vocab in (3, 300, 5000):
        base, level = case(random, 20, n_vocab)
        exact = by_scipy.kld(base, level)
        finite = [np.abs(side[np.isfinite(side)]).max() for side in (base, level)]
        rounding = 2.0**-23 * (4 + 2 * sum(finite))
        for max_tail, most in ((1e-7, 4096), (1e-3, 64), (0.3, 10)):
            kept = keep_rows(base, max_tail=max_tail, most=most)
            found = diverge(kept, level)
            assert (exact <= found.kld + found.kld_error).all()
            assert (found.kld <= exact + rounding).all()
            assert (found.same_top == (base.argmax(axis=1) == level.argmax(axis=1))).all()


@pytest.mark.parametrize("case", [flat, usual, peaked])
def test_the_bound_is_narrow(
    case: Callable[[np.random.Generator, int, int], tuple[Logits, Logits]],
) -> None:
    """Flat rows are kept whole; of others what is left over hardly counts."""
    base, level = case(np.random.default_rng(7), 10, 20_000)
    found = diverge(keep_rows(base), level)
    assert found.kld_error.max() < 1e-5
    np.testing.assert_allclose(found.kld, by_scipy.kld(base, level), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("max_tail", [1e-7, 0.05])
def test_a_row_beside_itself_is_exactly_at_zero(
    case: Callable[[np.random.Generator, int, int], tuple[Logits, Logits]], max_tail: float
) -> None:
    base, _ = case(np.random.default_rng(3), 12, 6000)
    kept = keep_rows(base, max_tail=max_tail)
    for again in (base, np.asfortranarray(base)):
        found = diverge(kept, again)
        assert (found.kld == 0.0).all()
        assert found.same_top.all()
    tokens = top_tokens(kept)
    assert (logprob_of(kept, tokens) == token_logprobs(base, tokens)).all()


def test_equal_tokens_keep_argmaxs_order() -> None:
    logits = np.zeros((2, 50), dtype=np.float32)
    logits[1, [7, 3, 40]] = 30
    for most in (2, 40, 50):
        kept = keep_rows(logits, most=most)
        assert top_tokens(kept).tolist() == [0, 3]
        assert diverge(kept, logits).same_top.all()


def test_of_many_equal_tokens_the_first_stays_first() -> None:
    """Forty tokens share the top; 900 more are too many to look at, and not needed."""
    random = np.random.default_rng(9)
    probabilities = np.full((20, 2000), 1e-12)
    for row in probabilities:
        places = random.permutation(2000)
        row[places[:40]] = 1 / 40
        row[places[40:940]] = 1e-6
    logits = np.log(probabilities).astype(np.float32)
    for max_tail in (1e-3, 1e-7):
        kept = keep_rows(logits, max_tail=max_tail, most=1000 if max_tail < 1e-3 else 100)
        assert np.diff(kept.offsets).max() < 1000
        assert (top_tokens(kept) == logits.argmax(axis=1)).all()


def test_no_more_tokens_are_kept_than_needed() -> None:
    """Halves: 2^-1, 2^-2 ... leave 2^-k after k tokens; 1e-7 lies between 2^-23 and 2^-24."""
    logits = (-math.log(2) * np.arange(1, 101)).astype(np.float32)[None]
    kept = keep_rows(logits)
    assert kept.ids.tolist() == list(range(24))
    assert kept.tail[0] == pytest.approx(2.0**-24, rel=1e-5)
    assert keep_rows(logits, most=24).ids.tolist() == list(range(24))
    whole = keep_rows(logits, most=23)
    assert sorted(whole.ids) == list(range(100))
    assert whole.tail[0] == 0


def test_a_row_takes_as_many_tokens_as_it_needs() -> None:
    random = np.random.default_rng(0)
    for case in CASES:
        base, _ = case(random, 10, 8000)
        kept = keep_rows(base, most=1000)
        lengths = np.diff(kept.offsets)
        assert ((lengths <= 1000) | (lengths == 8000)).all()
        assert (kept.tail <= 1e-7).all()
        probabilities = by_scipy.probabilities(base)
        for row, start, stop, tail in zip(
            probabilities, kept.offsets[:-1], kept.offsets[1:], kept.tail, strict=True
        ):
            ids = kept.ids[start:stop]
            assert len(set(ids.tolist())) == len(ids)
            assert 1 - row[ids].sum() == pytest.approx(tail, rel=1e-3, abs=1e-14)
            if len(ids) < 8000:
                assert np.sort(row)[::-1][: len(ids) - 1].sum() < 1 - 1e-7 + 1e-9


def test_logprobs_are_those_of_the_baseline() -> None:
    base, _ = usual(np.random.default_rng(2), 5, 3000)
    expected = by_scipy.logprobs(base)
    kept = keep_rows(base)
    for place in range(5):
        one = slice(kept.offsets[place], kept.offsets[place + 1])
        np.testing.assert_allclose(
            kept.logprobs[one], expected[place, kept.ids[one]], rtol=1e-6, atol=1e-6
        )
    tokens = np.asarray([5, 6, 7, 8, 9])
    np.testing.assert_allclose(
        token_logprobs(base, tokens), expected[np.arange(5), tokens], rtol=1e-6
    )


def test_a_token_left_over_gets_an_upper_bound() -> None:
    kept = keep_rows(BASE, max_tail=0.26, most=3)
    found = logprob_of(kept, np.asarray([3, 3]))
    assert found[0] == pytest.approx(math.log(0.25), abs=1e-6)
    assert found[1] == pytest.approx(math.log(0.4), abs=1e-6)
    assert (found >= token_logprobs(BASE, np.asarray([3, 3])) - 1e-6).all()
    # Two tokens of 0.1 left over: neither is likelier than the smallest one kept.
    logits = np.log(np.asarray([[0.7, 0.12, 0.1, 0.08]], dtype=np.float32))
    kept = keep_rows(logits, max_tail=0.2, most=3)
    assert logprob_of(kept, np.asarray([2]))[0] == pytest.approx(math.log(0.12), abs=1e-6)


def test_parts_stand_one_after_the_other() -> None:
    base, level = usual(np.random.default_rng(4), 9, 700)
    whole = diverge(keep_rows(base), level)
    kept = concatenate([keep_rows(base[:2]), keep_rows(base[2:2]), keep_rows(base[2:])])
    assert len(kept) == 9
    found = diverge(kept, level)
    assert (found.kld == whole.kld).all()
    assert (found.kld_error == whole.kld_error).all()
    with pytest.raises(ValueError, match="2 vocabularies"):
        concatenate([kept, keep_rows(base[:, :600])])


def test_no_position_is_no_trouble() -> None:
    nothing = np.zeros((0, 40), dtype=np.float32)
    kept = keep_rows(nothing)
    assert len(kept) == 0
    assert diverge(kept, nothing).kld.shape == (0,)
    assert token_logprobs(nothing, np.zeros(0, dtype=np.int32)).shape == (0,)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_said(value: float) -> None:
    broken = BASE.copy()
    broken[1, 2] = value
    for run in (keep_rows, lambda logits: diverge(keep_rows(BASE), logits)):  # type: ignore[misc]
        with pytest.raises(DriftError, match="no numbers"):
            run(broken)


def test_rows_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="2 x 4 kept"):
        diverge(keep_rows(BASE), LEVEL[:, :3])


def test_memory_is_that_of_a_few_rows() -> None:
    base, level = usual(np.random.default_rng(5), 100, 20_000)
    base[:, 5] += 60
    row_bytes = 20_000 * 8
    tracemalloc.start()
    try:
        kept = keep_rows(base)
        diverge(kept, level)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * kept.n_bytes + 6 * row_bytes
    assert peak < base.nbytes / 4


def test_a_file_gives_back_what_was_kept(tmp_path: Path) -> None:
    base, level = usual(np.random.default_rng(6), 6, 900)
    kept = keep_rows(base, most=500)
    save_rows(tmp_path / "rows.npz", kept)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npz"]
    loaded = load_rows(tmp_path / "rows.npz")
    assert loaded is not None
    assert (diverge(loaded, level).kld == diverge(kept, level).kld).all()
    assert (diverge(loaded, base).kld == 0).all()
    save_rows(tmp_path / "rows.npz", keep_rows(base[:0]))
    empty = load_rows(tmp_path / "rows.npz")
    assert empty is not None
    assert len(empty) == 0


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        save_rows(tmp_path / "file" / "rows.npz", keep_rows(BASE))


def test_a_torn_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    assert load_rows(path) is None
    save_rows(path, keep_rows(usual(np.random.default_rng(8), 3, 60)[0]))
    whole = path.read_bytes()
    for stop in range(0, len(whole), 23):
        path.write_bytes(whole[:stop])
        assert load_rows(path) is None
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        found = load_rows(path)
        assert found is None or isinstance(found, KeptRows)
    path.unlink()
    path.mkdir()
    assert load_rows(path) is None


def arrays(**changed: Any) -> dict[str, Any]:
    kept = keep_rows(BASE)
    values: dict[str, Any] = {
        "version": np.asarray(1),
        "ids": kept.ids,
        "logprobs": kept.logprobs,
        "offsets": kept.offsets,
        "tail": kept.tail,
        "n_vocab": np.asarray(4),
    }
    return {**values, **changed}


@pytest.mark.parametrize(
    "changed",
    [
        {"version": np.asarray(2)},
        {"version": np.asarray([1])},
        {"ids": np.asarray([0, 1, 2, 9, 0, 1, 2, 3], dtype=np.int32)},
        {"ids": np.asarray([0, 1, 2, -1, 0, 1, 2, 3], dtype=np.int32)},
        {"ids": np.arange(8)},
        {"ids": np.zeros((8, 1), dtype=np.int32)},
        {"ids": np.asarray(["pickled", None], dtype=object)},
        {"logprobs": np.full(8, np.nan, dtype=np.float32)},
        {"logprobs": np.ones(8, dtype=np.float32)},
        {"logprobs": np.zeros(7, dtype=np.float32)},
        {"offsets": np.asarray([0, 8, 8])},
        {"offsets": np.asarray([0, 9, 8])},
        {"offsets": np.asarray([0, 4, 1 << 40])},
        {"offsets": np.asarray([], dtype=np.int64)},
        {"tail": np.asarray([0.0, np.nan])},
        {"tail": np.asarray([0.0, -1.0])},
        {"tail": np.asarray(0.0)},
        {"n_vocab": np.asarray(-4)},
        {"n_vocab": np.asarray(3)},
    ],
    ids=str,
)
def test_a_file_that_does_not_hold_together_is_none(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays())
    assert load_rows(path) is not None
    np.savez(path, allow_pickle=True, **arrays(**changed))
    assert load_rows(path) is None


def test_nothing_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez_compressed(path, **arrays())
    assert load_rows(path) is None


def test_a_header_that_promises_too_much_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays())
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
    )
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, header.getvalue() if name == "tail.npy" else data)
    assert load_rows(path) is None
