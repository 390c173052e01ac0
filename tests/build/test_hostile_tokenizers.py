"""Damaged tokenizer files end in an error of ours, or in a vocabulary that is proved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest
from edgevlm_convert.vocabulary import reference
from edgevlm_convert.vocabulary.probes import Probe, probes

from edgevlm.build.tokenizer_proof import prove_tokenizer
from edgevlm.errors import EdgeVLMError
from tests.build.test_tokenizer_proof import MAKERS as PLAIN_MAKERS
from tests.build.test_tokenizer_proof import write_vocabulary
from tests.goldens.mistral_naming import tekken
from tests.synthetic_tokenizer import write_json
from tests.tokenizers.byte_level import write_tokenizer_tekken
from tests.tokenizers.internvl import write_tokenizer_opengvlab
from tests.tokenizers.mutations import damage
from tests.tokenizers.unigram import TABLE, write_tokenizer_unigram

N_MUTATIONS = 300


def write_tekken(folder: Path) -> None:
    """Write a tekken.json and nothing else."""
    write_tokenizer_tekken(folder)
    document = tekken(folder)
    for path in list(folder.iterdir()):
        path.unlink()
    write_json(folder / "tekken.json", document)


MAKERS: dict[str, Callable[..., None]] = {
    **PLAIN_MAKERS,
    "vocab.json and merges.txt": write_tokenizer_opengvlab,
    "tekken.json": write_tekken,
    "unigram": partial(write_tokenizer_unigram, model=False),
    "unigram with a table": partial(write_tokenizer_unigram, charsmap=TABLE),
}


@pytest.fixture
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove with every tenth text: a proof of all 500 of each would take minutes."""

    def few(added: list[str]) -> list[Probe]:
        return probes(added)[::10]

    monkeypatch.setattr(reference, "probes", few)


@pytest.mark.usefixtures("few_probes")
@pytest.mark.parametrize("name", MAKERS)
def test_random_damage(tmp_path: Path, name: str) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "damaged"
    whole.mkdir()
    MAKERS[name](whole)
    n_proved = 0
    for seed in range(N_MUTATIONS):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        file = damage(folder, Random(f"{name} {seed}"))
        error = _error(folder)
        n_proved += error is None
        if error is not None:
            assert error.hint, (seed, file)
            assert len(error.message + error.hint) < 2500, (seed, file)
            assert "\x1b" not in error.message, (seed, file)
    # Some damage does no harm.
    assert 0 < n_proved < N_MUTATIONS // 2


def _error(folder: Path) -> EdgeVLMError | None:
    """Convert and prove; nothing but an error of ours may end that."""
    try:
        prove_tokenizer(folder, write_vocabulary(folder))
    except EdgeVLMError as error:
        return error
    return None
