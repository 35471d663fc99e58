"""The data order: each document once an epoch over all lanes, exact from any position."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniqwen.config import DataFlags, UserError
from miniqwen.documents import HeldOut, LaneOrder, Position, hold_out, permutation
from miniqwen.sources import Source, resolve

TEXTS = [f"document {number}" for number in range(97)]


def make_source(folder: Path, kind: str, texts: list[str | None] = TEXTS) -> Source:  # type: ignore[assignment]
    folder.mkdir(exist_ok=True)
    rows = [{"text": text} for text in texts]
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for number, half in enumerate(halves):
        lines = "".join(json.dumps(row) + "\n" for row in half)
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(half), folder / f"{number}.parquet", row_group_size=10)
        elif kind == "jsonl":
            (folder / f"{number}.jsonl").write_text(lines)
        else:
            with gzip.open(folder / f"{number}.jsonl.gz", "wt") as file:
                file.write(lines)
    return resolve(str(folder), DataFlags(dataset_name=str(folder))).source("train", ("text",))


def epoch(order: LaneOrder, lane: int, number: int) -> list[str]:
    """What `lane` reads in an epoch."""
    documents = order.documents(lane, Position(number))
    return [text for text, position, _ in itertools.takewhile(lambda found: found[1].epoch == number, documents)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "gz"])
@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_each_document_comes_once_an_epoch_over_all_lanes(tmp_path: Path, kind: str, lanes: int) -> None:
    order = LaneOrder(make_source(tmp_path / "data", kind), HeldOut((3,)), seed=1, lanes=lanes)
    free = sorted(TEXTS[3:])
    for number in (0, 1):
        parts = [epoch(order, lane, number) for lane in range(lanes)]
        assert sorted(itertools.chain(*parts)) == free
    assert [epoch(order, lane, 0) for lane in range(lanes)] != [epoch(order, lane, 1) for lane in range(lanes)]


def test_another_seed_gives_another_order_and_the_same_seed_the_same(tmp_path: Path) -> None:
    source = make_source(tmp_path / "data", "parquet")
    first, same, other = (epoch(LaneOrder(source, HeldOut(), seed, 2), 0, 0) for seed in (1, 1, 2))
    assert first == same != other
    assert first != sorted(first)


def test_a_lane_goes_on_exactly_from_any_position(tmp_path: Path) -> None:
    order = LaneOrder(make_source(tmp_path / "data", "parquet"), HeldOut(), seed=1, lanes=3)
    whole = list(itertools.islice(order.documents(1, Position()), 80))  # more than two epochs of this lane
    assert {position.epoch for _, position, _ in whole} >= {0, 1, 2}
    for done in range(0, 75, 7):
        again = list(itertools.islice(order.documents(1, whole[done][2]), 5))
        assert [text for text, _, _ in again] == [text for text, _, _ in whole[done + 1 : done + 6]]
        assert next(order.documents(1, whole[done][1]))[0] == whole[done][0]


def test_empty_texts_are_passed_over_and_other_types_are_named_with_file_and_row(tmp_path: Path) -> None:
    order = LaneOrder(make_source(tmp_path / "some", "jsonl", ["a", None, "", "b"]), HeldOut(), seed=1, lanes=1)
    assert sorted(epoch(order, 0, 0)) == ["a", "b"]
    (tmp_path / "wrong.jsonl").write_text('{"text": 3}\n')
    flags = DataFlags(dataset_name=str(tmp_path / "wrong.jsonl"))
    source = resolve(str(flags.dataset_name), flags).source("train", ("text",))
    with pytest.raises(UserError, match=r"wrong.jsonl: row 0 .* text is 3, not text"):
        next(LaneOrder(source, HeldOut(), 1, 1).documents(0, Position()))


def test_a_lane_that_never_gets_a_document_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    source = make_source(tmp_path / "data", "jsonl", [None, None])
    with pytest.raises(UserError, match="too few documents"):
        next(LaneOrder(source, HeldOut(), 1, 1).documents(0, Position()))


def test_the_first_rows_are_held_out_until_there_are_tokens_enough(tmp_path: Path) -> None:
    source = make_source(tmp_path / "data", "parquet")
    held, texts = hold_out(source, num_tokens=lambda text: 10, wanted=125, share=0.5)
    assert texts == TEXTS[:13]
    assert (held.rows, held.count) == ((10, 3), 13)
    seen = list(itertools.chain(*(epoch(LaneOrder(source, held, 1, 2), lane, 0) for lane in (0, 1))))
    assert sorted(seen) == sorted(TEXTS[13:])


def test_no_more_than_the_given_share_is_held_out_but_at_least_one_row(tmp_path: Path) -> None:
    source = make_source(tmp_path / "data", "parquet")
    assert 3 <= hold_out(source, lambda text: 1, wanted=10**9)[0].count <= 8  # 5 % of 97 rows, by bytes
    assert hold_out(source, lambda text: 1, wanted=10**9, share=0.0)[0].count == 1


def test_a_permutation_is_the_same_on_every_machine() -> None:
    assert permutation(10, 1, 2).tolist() == [7, 1, 3, 0, 4, 8, 9, 2, 6, 5]
    assert sorted(permutation(1000, 7).tolist()) == list(range(1000))
