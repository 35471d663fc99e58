"""Packing: the blocks of a lane are of one source each, and their cursors say where the next one begins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniqwen.data.documents import permutation
from miniqwen.data.packing import Cursor, best_fit, chained, deal, lanes_together, read_so_far, split
from miniqwen.data.strands import SourceCursor


def test_what_lanes_and_ranks_have_read_adds_up_to_the_same_however_they_are_shared_out() -> None:
    def lane(number: int) -> Cursor:
        of_source = SourceCursor(
            epoch=number, tokens=10 * number, bytes=number, counts={"documents": number, f"odd{number % 2}": 1},
            skipped={f"unit{number % 2}": "why"},
        )  # fmt: skip
        return Cursor(
            number,
            {"a": of_source, **({"b": SourceCursor(tokens=1)} if number == 3 else {})},
            chained("", np.arange(3)),
        )

    lanes = {str(number): lane(number) for number in range(4)}
    together = lanes_together(lanes)
    assert together["a"]["counts"] == {"documents": 6, "odd0": 2, "odd1": 2}
    assert {**together["a"], "counts": 0} == {
        "tokens": 60, "bytes": 6, "epoch": 3, "counts": 0, "skipped": {"unit0": "why", "unit1": "why"},
    }  # fmt: skip
    assert together["b"]["tokens"] == 1
    halves = [lanes_together({name: lanes[name] for name in half}) for half in ("01", "23")]
    stored = [lanes_together({name: lanes[name].to_json() for name in half}) for half in ("01", "23")]
    assert read_so_far(halves) == read_so_far(stored) == together
    assert lanes_together({"epoch": 3, "update": 4}) == {}


@settings(max_examples=200, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=60), seed=st.integers(0, 5))
def test_best_fit_cuts_nothing_and_leaves_no_two_blocks_half_empty(lengths: list[int], seed: int) -> None:
    shapes = best_fit(lengths, 30)
    assert shapes == best_fit(reversed(lengths), 30), "a function of the lengths alone"
    assert sorted(length for shape in shapes for length in shape) == sorted(lengths)
    assert all(sum(shape) <= 30 for shape in shapes)
    assert sum(sum(shape) * 2 <= 30 for shape in shapes) <= 1, "two of them would be one"
    blocks = deal(shapes, lengths, permutation(len(lengths), seed))
    assert sorted(index for block in blocks for index in block) == list(range(len(lengths)))
    assert [[lengths[index] for index in block] for block in blocks] == shapes


def test_best_fit_fills_blocks_that_looking_one_example_ahead_does_not() -> None:
    assert best_fit([6, 4, 4, 3, 3], 10) == [[6, 4], [4, 3, 3]]
    assert best_fit([5, 4, 3, 3, 3, 2], 10) == [[5, 3, 2], [4, 3, 3]]  # 5 + 4 leaves room for nothing
    assert deal([[2, 1], [2]], [2, 1, 2], [2, 1, 0]) == [[2, 1], [0]]
    with pytest.raises(ValueError, match="11 tokens does not fit a block of 10"):
        best_fit([11], 10)


def test_ten_thousand_examples_of_ordinary_lengths_fill_their_blocks() -> None:
    drawn = np.random.default_rng(0)
    lengths = np.clip(drawn.lognormal(3.8, 0.4, 10_000), 25, 512).astype(int).tolist()
    assert sum(lengths) / 512 / len(best_fit(lengths, 512)) > 0.998


def test_a_split_keeps_the_short_last_piece() -> None:
    assert [piece.tolist() for piece in split(np.arange(5), 2)] == [[0, 1], [2, 3], [4]]
