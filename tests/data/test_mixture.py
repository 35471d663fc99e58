"""The source of a block: shares that hold from the first update on, by a rule that remembers nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniqwen.data.mixture import Mixture

SHARES = {
    "0.9": {"a": 0.9, "b": 0.1}, "0.5": {"a": 0.5, "b": 0.5}, "0.97": {"a": 0.97, "b": 0.03},
    "three": {"a": 0.6, "b": 0.3, "c": 0.1},
}  # fmt: skip


def taken(shares: dict[str, float], lanes: int, updates: int) -> np.ndarray:
    """Blocks of each source in each update [updates, sources]."""
    mixture = Mixture(shares, lanes)
    made = [[mixture.source(lane, block) for lane in range(lanes)] for block in range(updates)]
    return np.array([[update.count(name) for name in shares] for update in made])


@pytest.mark.parametrize("name", SHARES)
def test_shares_hold_from_the_first_update_and_in_every_window_of_twenty(name: str) -> None:
    shares, lanes = SHARES[name], 16
    counts = taken(shares, lanes, 300)
    wanted = np.array(list(shares.values()))
    for updates in (20, 40, 80, 300):
        share = counts[:updates].sum(0) / (updates * lanes)
        assert np.abs(share - wanted).max() <= 0.02
    windows = np.array([counts[start : start + 20].sum(0) / (20 * lanes) for start in range(280)])
    assert np.abs(windows - wanted).max() <= 0.05
    assert np.abs(counts.cumsum(0) - np.arange(1, 301)[:, None] * lanes * wanted).max() <= 3  # blocks, ever


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    lanes=st.integers(1, 64),
    start=st.integers(0, 10**12),
)
def test_no_number_of_lanes_and_no_set_of_shares_drifts(parts: list[int], lanes: int, start: int) -> None:
    shares = {str(number): part / sum(parts) for number, part in enumerate(parts)}
    mixture = Mixture(shares, lanes)
    made = [mixture.source(lane, start + block) for block in range(40) for lane in range(lanes)]
    for name, share in shares.items():
        assert abs(made.count(name) - share * len(made)) <= 0.05 * len(made) + 3
    for lane in (0, lanes - 1):
        own = [mixture.source(lane, start + block) for block in range(200)]
        for name, share in shares.items():
            assert abs(own.count(name) - 200 * share) <= 12


def test_the_rule_is_pinned() -> None:
    """Who changes it changes the order: see `documents.ORDER`."""
    mixture = Mixture({"a": 0.5, "b": 0.3, "c": 0.2}, 4)
    said = ["".join(mixture.source(lane, block) for lane in range(4)) for block in range(8)]
    assert said == ["aabb", "abca", "caab", "aabc", "bcaa", "aabb", "abca", "caab"]
