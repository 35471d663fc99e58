"""The data order: each document once an epoch over all lanes, exact from any position, for every format."""

from __future__ import annotations

import gzip
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniqwen.config.data import DataFlags
from miniqwen.data import units, windows
from miniqwen.data.documents import Layout, Order, Piece, Place, permutation
from miniqwen.data.held_out import HeldOut
from miniqwen.data.repositories import resolve
from miniqwen.data.sources import Source
from miniqwen.data.windows import TextWindows
from miniqwen.errors import UserError

TEXTS = [f"document {number}" + ", and so on" * (number % 5) for number in range(97)]
FORMATS = ("parquet", "jsonl", "json", "jsonl.gz", "json.gz", "csv", "csv.gz", "txt", "txt.gz")


def write_text(path: Path, text: str) -> None:
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_rows(path: Path, rows: list[dict[str, object]], group: int = 10) -> None:
    kind = path.name.partition(".")[2].removesuffix(".gz")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    elif kind == "csv":
        table = pa.BufferOutputStream()
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), table)
        write_text(path, table.getvalue().to_pybytes().decode())
    elif kind == "txt":
        write_text(path, "".join(f"{row['text']}\n" for row in rows))
    elif kind == "json":
        write_text(path, json.dumps(rows))
    else:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def make_source(folder: Path, kind: str, texts: list[str | None] = TEXTS, **flags: str) -> Source:  # type: ignore[assignment]
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, object]] = [{"text": text} for text in texts]
    halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for number, half in enumerate(halves):
        write_rows(folder / f"{number}.{kind}", half)
    cache = str(folder.parent / "cache")
    return resolve(str(folder), DataFlags(dataset_name=str(folder), cache_dir=cache, **flags)).source(
        "train", ("text",)
    )


def order_of(source: Source, lanes: int, seed: int = 1, held_out: HeldOut = HeldOut()) -> Order:  # noqa: B008
    return Order(TextWindows(source), held_out, seed, lanes)


def pieces_of(order: Order, lane: int, number: int) -> list[Piece]:
    return [Piece(*piece) for piece in order.pieces(number, lane).tolist()]


def epoch(order: Order, lane: int, number: int) -> list[str]:
    """What `lane` reads in an epoch, piece by piece."""
    pieces = pieces_of(order, lane, number)
    rows = itertools.chain(*(order.rows(number, piece, Place()) for piece in pieces))
    return [row.content for row in rows if row.kind == "documents"]


def units_are_cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the test's files had gigabytes: slices of a few lines, units of many windows."""
    monkeypatch.setattr(units, "SLICE_BYTES", 50)
    monkeypatch.setattr(windows, "LARGE_BYTES", 300)
    monkeypatch.setattr("miniqwen.data.cuts.WINDOW_BYTES", 100)
    monkeypatch.setattr("miniqwen.data.documents.LEAST_STRIPE", 20)
    monkeypatch.setattr("miniqwen.data.documents.NEIGHBOURS", 1000)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_each_document_comes_once_an_epoch_over_all_lanes_in_any_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, large: bool
) -> None:
    if large:
        units_are_cut_small(monkeypatch)
    source = make_source(tmp_path / "data", kind)
    assert len(TextWindows(source).starts(0)) == 2 or large
    for lanes in (1, 2, 5):
        order = order_of(source, lanes, held_out=HeldOut({0: [(0, 3)]}))
        parts = [[epoch(order, lane, number) for lane in range(lanes)] for number in (0, 1)]
        first = len(source.read(source.units()[0])["text"][:3])  # a slice may have fewer rows than are held out
        for part in parts:
            assert sorted(itertools.chain(*part)) == sorted(TEXTS[first:])
        assert parts[0] != parts[1]
    if large and kind not in ("parquet", "jsonl", "txt"):
        assert (tmp_path / "cache/miniqwen_windows").is_dir()
        assert len(TextWindows(source).starts(0)) > 5


def test_the_same_rows_in_another_order_of_reading_come_from_every_seed_and_the_same_from_the_same(
    tmp_path: Path,
) -> None:
    source = make_source(tmp_path / "data", "parquet")
    first, same, other = (epoch(order_of(source, 2, seed), 0, 0) for seed in (1, 1, 2))
    assert first == same != other
    assert first != sorted(first)


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz"])
@pytest.mark.parametrize("large", [False, True])
def test_a_piece_goes_on_exactly_from_any_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, large: bool
) -> None:
    if large:
        units_are_cut_small(monkeypatch)
    order = Order(TextWindows(make_source(tmp_path / "data", kind)), HeldOut(), 1, 3, Layout(strands=2, stripes=2))
    checked = 0
    for number in (0, 1):
        for piece in pieces_of(order, 1, number):
            whole = list(order.rows(number, piece, Place()))
            assert not whole or whole[-1].after is None
            for done, row in enumerate(whole):
                assert next(order.rows(number, piece, row.place)).content == row.content
                if row.after is not None:
                    again = list(order.rows(number, piece, row.after))
                    assert [found.content for found in again] == [found.content for found in whole[done + 1 :]]
                    checked += 1
    assert checked > 20


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=30), min_size=1, max_size=40),
    lanes=st.integers(1, 6),
    kind=st.sampled_from(FORMATS[:5]),
    sizes=st.tuples(st.integers(1, 200), st.integers(1, 400), st.integers(1, 200), st.integers(1, 300)),
)
def test_no_cut_of_files_into_units_windows_and_stripes_loses_or_repeats_a_document(
    texts: list[str], lanes: int, kind: str, sizes: tuple[int, int, int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(units, "SLICE_BYTES", sizes[0])
        patched.setattr(windows, "LARGE_BYTES", sizes[1])
        patched.setattr("miniqwen.data.cuts.WINDOW_BYTES", sizes[2])
        patched.setattr("miniqwen.data.documents.NEIGHBOURS", sizes[3])
        patched.setattr("miniqwen.data.documents.LEAST_STRIPE", 16)
        source = make_source(Path(folder) / "data", kind, ["an anchor", *texts])  # type: ignore[list-item]
        order = order_of(source, lanes)
        for number in (0, 1):
            pieces = [piece for lane in range(lanes) for piece in pieces_of(order, lane, number)]
            read = [row.content for piece in pieces for row in order.rows(number, piece, Place())]
            assert len(set(pieces)) == len(pieces)
            assert sorted(filter(None, read)) == sorted(["an anchor", *filter(None, texts)])


def test_stripes_share_out_windows_where_there_are_enough_and_rows_where_there_are_not() -> None:
    starts = np.array([0, 4, 7, 12])
    for stripes in (1, 2, 3, 4, 9):
        found = sorted(
            int(row) for stripe in range(stripes) for _, rows in Piece(0, stripe, stripes).rows(starts) for row in rows
        )
        assert found == list(range(12))
    assert [(window, rows.tolist()) for window, rows in Piece(0, 1, 3).rows(starts)] == [(1, [4, 5, 6])]
    assert [(window, rows.tolist()) for window, rows in Piece(0, 1, 4).rows(starts)] == [(0, [1]), (1, [5]), (2, [9])]


@pytest.mark.parametrize(
    ("sample_by", "expected"),
    [
        ("line", ["One.", "Still one.", "Two, long enough to reach over a slice.", "Three.", "  ", "Fünf."]),
        ("paragraph", ["One.\nStill one.", "Two, long enough to reach over a slice.", "Three.", "Fünf."]),
        ("document", ["One.\nStill one.\n\nTwo, long enough to reach over a slice.\n\n\nThree.\n  \nFünf."]),
    ],
)
@pytest.mark.parametrize("slice_bytes", [1, 7, 20, 1000])
def test_plain_text_is_cut_into_lines_paragraphs_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample_by: str, expected: list[str], slice_bytes: int
) -> None:
    monkeypatch.setattr(units, "SLICE_BYTES", slice_bytes)
    file = tmp_path / "book.txt"
    file.write_text("One.\nStill one.\n\nTwo, long enough to reach over a slice.\n\n\nThree.\n  \nFünf.")
    flags = DataFlags(dataset_name=str(file), sample_by=sample_by)
    source = resolve(str(file), flags).source("train", ("text",))
    read = [text for unit in source.units() for text in source.read(unit)["text"]]
    assert [text for text in read if text] == expected


def test_the_pieces_that_lanes_read_at_about_the_same_time_are_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit's stripes come while the unit is in memory: a large data set is not read once for each stripe."""
    monkeypatch.setattr("miniqwen.data.documents.NEIGHBOURS", 400)
    order = order_of(make_source(tmp_path / "data", "parquet"), 3)
    units = order._pieces(0)[:, 0]
    counts = np.bincount(units)
    assert counts.min() > 1
    spans = [np.ptp(np.flatnonzero(units == unit)) for unit in range(len(counts))]
    assert max(spans) < len(units) / 2


def test_csv_columns_that_are_not_asked_for_may_hold_anything_and_a_missing_one_is_named(tmp_path: Path) -> None:
    """The reader takes a megabyte at a time: the type of a column is not known from its first rows."""
    file = tmp_path / "table.csv"
    lines = ["number,text", *(f'{number},"{"long, " * 100}"' for number in range(3000)), "many,last"]
    file.write_text("\n".join(lines) + "\n")
    repository = resolve(str(file), DataFlags(dataset_name=str(file)))
    (unit,) = repository.source("train", ("text",)).units()
    rows = repository.source("train", ("text",)).read(unit)["text"]
    assert (len(rows), rows[-1]) == (3001, "last")
    assert repository.source("train", ("number",)).read(unit)["number"][0] == "0"
    with pytest.raises(UserError, match=r"table\.csv has no column texts; its columns are number, text"):
        repository.source("train", ("texts",)).read(unit)


def test_what_is_no_text_comes_as_a_row_of_its_kind_and_other_types_are_named_with_file_and_row(tmp_path: Path) -> None:
    order = order_of(make_source(tmp_path / "some", "jsonl", ["a", None, "", "b"]), 1)
    assert sorted(epoch(order, 0, 0)) == ["a", "b"]
    kinds = [row.kind for piece in pieces_of(order, 0, 0) for row in order.rows(0, piece, Place())]
    assert sorted(kinds) == ["documents", "documents", "empty_documents", "null_documents"]
    (tmp_path / "wrong.jsonl").write_text('{"text": 3}\n')
    flags = DataFlags(dataset_name=str(tmp_path / "wrong.jsonl"))
    order = order_of(resolve(str(flags.dataset_name), flags).source("train", ("text",)), 1)
    with pytest.raises(UserError, match=r"wrong\.jsonl: row 0: 3 is not text"):
        [*(row for piece in pieces_of(order, 0, 0) for row in order.rows(0, piece, Place()))]


def test_a_permutation_is_the_same_on_every_machine() -> None:
    assert permutation(10, 1, 2).tolist() == [1, 6, 7, 9, 5, 0, 2, 4, 8, 3]
    assert sorted(permutation(1000, 7).tolist()) == list(range(1000))
