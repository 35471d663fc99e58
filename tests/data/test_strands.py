"""A lane reads one source from several places in turn: each document once an epoch, exact from any block on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import write_parquet

from miniqwen.config.data import DataFlags
from miniqwen.data.documents import Layout, Order
from miniqwen.data.held_out import HeldOut
from miniqwen.data.repositories import resolve
from miniqwen.data.sources import Source
from miniqwen.data.strands import APART, Reading, SourceCursor
from miniqwen.data.windows import TextWindows
from miniqwen.errors import UserError

LENGTHS = [1 + number * number % 23 for number in range(60)]


def source_of(folder: Path, texts: list[str | None]) -> Source:
    write_parquet(folder, "train", [{"text": text} for text in texts], group=7)
    return resolve(str(folder), DataFlags(dataset_name=str(folder))).source("train", ("text",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Sixty documents, and rows that are none among them."""
    texts: list[str | None] = [f"{number} {length}" for number, length in enumerate(LENGTHS)]
    return source_of(tmp_path_factory.mktemp("data") / "rows", [*texts[:20], None, "", *texts[20:], None])


def encoded(texts: list[str]) -> list[np.ndarray]:
    """As many tokens as the text says, each the number of its document."""
    pairs = [map(int, text.split()) for text in texts]
    return [np.full(length, number) for number, length in pairs]


def reading(source: Source, lanes: int, lane: int, layout: Layout, cursor: SourceCursor | None = None) -> Reading:
    order = Order(TextWindows(source), HeldOut(), 1, lanes, layout)
    return Reading(order, lane, encoded, lambda _: {}, cursor or SourceCursor())  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lanes=st.integers(1, 5), strands=st.integers(1, 6), stripes=st.integers(1, 4), length=st.integers(1, 40),
    stops=st.sets(st.integers(1, 59), max_size=6),
)  # fmt: skip
def test_stopping_after_any_blocks_changes_no_block_and_no_cursor(
    source: Source, lanes: int, strands: int, stripes: int, length: int, stops: set[int]
) -> None:
    layout = Layout(strands, stripes)
    whole, parts = (reading(source, lanes, lanes - 1, layout) for _ in range(2))
    for block in range(60):
        if block in stops:
            stored = json.loads(json.dumps(vars(parts.cursor())))
            parts = reading(source, lanes, lanes - 1, layout, SourceCursor.from_json(stored))
        tokens, same = np.empty(length, np.int64), np.empty(length, np.int64)
        whole.fill(tokens, block)
        parts.fill(same, block)
        assert tokens.tolist() == same.tolist()
        assert whole.cursor() == parts.cursor()


@pytest.mark.parametrize("strands", [1, 2, 16])
@pytest.mark.parametrize("lanes", [1, 4])
def test_an_epoch_of_all_lanes_is_every_document_whole_and_once(source: Source, lanes: int, strands: int) -> None:
    read: Counter[int] = Counter()
    counts: Counter[str] = Counter()
    for lane in range(lanes):
        own = reading(source, lanes, lane, Layout(strands, 2))
        token, block = np.empty(1, np.int64), 0
        while True:
            own.fill(token, block)
            if own.cursor().epoch > 0:
                break
            read[int(token[0])] += 1
            last, block = own.cursor(), block + 1
        counts.update(last.counts)
    assert read == dict(enumerate(LENGTHS))
    assert counts["documents"] == len(LENGTHS)


def test_the_first_block_reads_one_place_and_each_later_one_opens_another(source: Source) -> None:
    own = reading(source, 1, 0, Layout(5, 2))
    tokens = np.empty(30, np.int64)
    opened = []
    for block in range(7):
        own.fill(tokens, block)
        opened.append(len(own.cursor().strands))
    assert opened == [1, 2, 3, 4, 5, 5, 5]


@pytest.mark.parametrize("strands", [1, 2, 3, 4, 8, 16])
def test_blocks_of_a_document_are_four_updates_apart_or_as_many_as_there_are_places(
    tmp_path: Path, strands: int
) -> None:
    """As long as there are pieces to open: behind the last one, places run out one by one."""
    source = source_of(tmp_path / "long", [f"{number} {35 + 7 * number % 30}" for number in range(200)])
    own, pieces = reading(source, 1, 0, Layout(strands, 1)), -(-200 // 7)
    tokens, block = np.empty(10, np.int64), 0
    last: dict[int, int] = {}
    distances: list[int] = []
    while True:
        own.fill(tokens, block)
        if own.cursor().next_piece == pieces:
            break
        for number in set(tokens.tolist()):
            distances += [block - last[number]] if number in last else []
            last[number] = block
        block += 1
    assert len(distances) > 100
    assert min(distances) == min(strands, APART)


def test_more_lanes_than_documents_all_get_text_and_a_source_without_any_is_an_error_and_not_a_hang(
    tmp_path: Path,
) -> None:
    two = source_of(tmp_path / "two", ["0 3", "1 4"])
    for lane in range(5):
        tokens = np.empty(9, np.int64)
        reading(two, 5, lane, Layout(2, 1)).fill(tokens, 0)
        assert set(tokens.tolist()) <= {0, 1}
    none = source_of(tmp_path / "none", ["", None])
    with pytest.raises(UserError, match="none: there is no text in it to train on"):
        reading(none, 2, 0, Layout(2, 1)).fill(np.empty(9, np.int64), 0)
