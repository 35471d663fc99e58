"""Packing: the blocks of a lane, end to end, are its documents end to end, from any cursor on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniqwen.data.documents import Document, Position, permutation
from miniqwen.data.packing import Block, Cursor, EncodedDocument, best_fit, deal, encoded_documents, pack, split


def endless(documents: list[list[int]], start: Position) -> Iterator[EncodedDocument]:
    """A one-lane stream whose position is (epoch, 0, 0, row)."""
    for number in itertools.count(start.epoch * len(documents) + start.row):
        epoch, row = divmod(number, len(documents))
        yield EncodedDocument(np.array(documents[row]), Position(epoch, 0, 0, row), Position(epoch, 0, 0, row + 1))


def blocks_of(
    sources: dict[str, list[list[int]]], shares: dict[str, float], cursor: Cursor, length: int
) -> Iterator[Block]:
    return pack(lambda name, start: endless(sources[name], start), shares, cursor, length)


DOCUMENTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(documents=DOCUMENTS, length=st.integers(1, 9), count=st.integers(1, 12))
def test_no_token_is_lost_repeated_or_padded(documents: list[list[int]], length: int, count: int) -> None:
    packed = list(itertools.islice(blocks_of({"a": documents}, {"a": 1.0}, Cursor.start(["a"]), length), count))
    tokens = np.concatenate([block.tokens for block in packed])
    stream = itertools.islice(itertools.cycle(itertools.chain.from_iterable(documents)), length * count)
    assert tokens.tolist() == list(stream)


@settings(max_examples=100, deadline=None)
@given(
    first=DOCUMENTS,
    second=DOCUMENTS,
    length=st.integers(1, 9),
    stops=st.lists(st.integers(0, 6), min_size=2, max_size=4),
)
def test_stopping_any_number_of_times_changes_no_block(
    first: list[list[int]], second: list[list[int]], length: int, stops: list[int]
) -> None:
    sources, shares = {"a": first, "b": second}, {"a": 0.7, "b": 0.3}
    count = sum(stops) + 3
    whole = [
        block.tokens for block in itertools.islice(blocks_of(sources, shares, Cursor.start(["a", "b"]), length), count)
    ]
    cursor, parts = Cursor.start(["a", "b"]), []
    for taken in [*stops, 3]:
        for block in itertools.islice(blocks_of(sources, shares, cursor, length), taken):
            parts.append(block.tokens)
            cursor = Cursor.from_json(json.loads(json.dumps(block.cursor.to_json())))
    np.testing.assert_array_equal(np.stack(whole), np.stack(parts))


def test_sources_are_mixed_by_tokens_and_not_by_documents() -> None:
    sources = {"short": [[1] * 3], "long": [[2] * 90]}
    shares = {"short": 0.7, "long": 0.3}
    packed = list(itertools.islice(blocks_of(sources, shares, Cursor.start(list(shares)), 100), 100))
    tokens = np.concatenate([block.tokens for block in packed])
    assert abs((tokens == 1).mean() - 0.7) < 0.01
    assert packed[-1].cursor.taken == {"short": int((tokens == 1).sum()), "long": int((tokens == 2).sum())}


def test_documents_are_encoded_in_order_whatever_the_batching() -> None:
    texts = ["a" * (number % 7 + 1) for number in range(100)]
    stream = (
        Document(text, Position(0, 0, 0, row), Position(0, 0, 0, row + 1))
        for row, text in enumerate(itertools.cycle(texts))
    )
    encoded = encoded_documents(stream, lambda batch: [[len(text)] for text in batch])
    first = list(itertools.islice(encoded, 250))
    assert [int(document.tokens[0]) for document in first] == [number % 100 % 7 + 1 for number in range(250)]
    assert [document.position.row for document in first] == list(range(250))


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
