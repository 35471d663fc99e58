"""The endurance test of benchmarks/, in its short form."""

from __future__ import annotations

import sys

import pytest
from runs import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import endurance
from benchmarks.endurance import ALLOWED, Look, growth

FLAT = [Look(update, 500.0, 13, 9, 40, 1.2, update * 100) for update in range(100)]


def grown(**more: float) -> dict[str, float]:
    """A run in which each of `more` grew by that much an update."""
    fields = [{name: value * one.update for name, value in more.items()} for one in FLAT]
    return growth(
        [
            Look(**{**vars(one), **{n: getattr(one, n) + v for n, v in add.items()}})
            for one, add in zip(FLAT, fields, strict=True)
        ],
        99,
    )


def test_a_run_that_stays_as_it_was_is_told_from_one_that_grows() -> None:
    assert not any(more > ALLOWED[name] for name, more in growth(FLAT, 99).items())
    for name, slow in {"memory": 0.5, "handles": 0.1, "threads": 0.1, "files": 0.1, "disk": 0.01}.items():
        assert [n for n, more in grown(**{name: slow}).items() if more > ALLOWED[n]] == [name]
    faster = [Look(**{**vars(one), "logs": one.update**2}) for one in FLAT]
    assert growth(faster, 99)["logs"] > ALLOWED["logs"]


@pytest.mark.slow
def test_a_run_of_3000_updates_with_200_saves_and_evaluations_stays_as_it_was(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert endurance.main("--updates 3000 --seconds 0.2".split()) == 0
    assert capsys.readouterr().out.count("flat: ") == len(ALLOWED)
