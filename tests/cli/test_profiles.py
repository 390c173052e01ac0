from __future__ import annotations

import json

import pytest

from edgevlm.cli.app import main


def test_lists_every_level_with_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles"]) == 0
    out = capsys.readouterr().out
    for expected in ("Q4_K_M", "Q5_K_M", "Q8_0", "8.5 bits per weight"):
        assert expected in out


def test_json_holds_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    level = next(profile for profile in document if profile["name"] == "Q4_K_M")
    assert level["type"] == "Q4_K"
    assert level["fallback"]["Q4_K"] == "Q5_0"
    assert {"role": "output", "type": "Q6_K"}.items() <= level["rules"][0].items()
    # The field's names promise less than they keep where rows do not divide by 256.
    assert level["bits_per_weight"]["2B"] < 5.2 < 5.9 < level["bits_per_weight"]["500M"]
    ours = next(profile for profile in document if profile["name"] == "pi")
    assert ours["bits_per_weight"]["500M"] < 5
    assert ours["budget"]["mean_kld"] > 0
