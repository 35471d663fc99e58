"""Which documents of a source are kept for validation, and how much text it has.

Promises: documents from up to 16 places of the source, evenly spread over its bytes; never more than the given share
of its text, in bytes of UTF-8; a function of data, tokenizer and sizes alone; kept by file and row, so that a run goes
on with the same ones whatever becomes of the data. Costs: the units at those places are read once, by one process; of
files that are fetched whole the first one only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Any, NamedTuple

import numpy as np

from miniqwen.data.windows import Windows
from miniqwen.errors import UserError

PLACES = 16
READING_THREADS = 8
SAMPLE = 16  # documents that tell how many bytes a token has, where none are held out
Encode = Callable[[Sequence[Any]], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class HeldOut:
    """Rows that are never trained on: `ranges[unit]` are (first, behind the last) of its rows."""

    ranges: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)

    def free(self, unit: int, rows: np.ndarray) -> np.ndarray:
        """Of `rows` of the unit those that may be trained on."""
        for start, stop in self.ranges.get(unit, ()):
            rows = rows[(rows < start) | (rows >= stop)]
        return rows

    @property
    def count(self) -> int:
        return sum(stop - start for ranges in self.ranges.values() for start, stop in ranges)

    def to_json(self, source: Windows) -> list[list[Any]]:
        """[path of the file, part of it, first row, behind the last one] of each range."""
        units, paths = source.units(), source.paths()
        return [
            [paths[int(units.file[unit])], int(units.part[unit]), start, stop]
            for unit, ranges in sorted(self.ranges.items())
            for start, stop in ranges
        ]

    @classmethod
    def from_json(cls, stored: Iterable[Sequence[Any]], source: Windows) -> HeldOut:
        """Files that are not there any more have nothing to hold out."""
        units, files = source.units(), {path: number for number, path in enumerate(source.paths())}
        ranges = defaultdict(list)
        for path, part, start, stop in stored:
            found = np.flatnonzero((units.file == files.get(path, -1)) & (units.part == part))
            if len(found):
                ranges[int(found[0])].append((start, stop))
        return cls(dict(ranges))


class Stretch(NamedTuple):
    """Rows of a unit from one place on, up to the next place: [start, stop)."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class Measured:
    """What was found out about a source: the text held out of it, as tokens; how much there is to train on.

    `text_bytes`: of all the other text, estimated by what was read (exact where that was all); `bytes_per_token`: of
    some documents; 0 where there is none.
    """

    held_out: HeldOut
    kept: Sequence[np.ndarray]
    text_bytes: int
    bytes_per_token: float


def hold_out(
    source: Windows,
    encode: Encode,
    wanted: int,
    share: float | None = 0.05,
    stored: Iterable[Sequence[Any]] | None = None,
) -> Measured:
    """Documents of `source` that hold `wanted` tokens, but at most `share` of its bytes (None: any).

    `stored`: those of an earlier part of the run, which are taken instead. Nothing is held out where no document is
    short enough. Raises `UserError` where what was read has no text, but something else, or where that was all.
    """
    text_bytes, held, stretches, looked_at = 0, HeldOut(), list[Stretch](), set[int]()
    for units in _groups(source):
        looked_at |= {unit for unit, _ in units}
        stretches = [stretch for unit, fractions in units for stretch in _stretches(source, unit, fractions)]
        text_bytes = _measure(source, stretches)
        if stored is not None:
            held = HeldOut.from_json(stored, source)
        elif wanted:
            held = _chosen(source, stretches, encode, wanted, math.inf if share is None else share * text_bytes)
        if held.count or stored is not None or not wanted:
            break
    if not text_bytes:
        _refuse_without_text(source, stretches, is_all=len(looked_at) == len(source.units()))
    contents = list(_documents(source, held))
    kept = [np.asarray(tokens, dtype=np.int64) for content, _ in contents for tokens in encode([content])]
    size = sum(size for _, size in contents)
    if kept:
        return Measured(held, kept, text_bytes - size, size / sum(map(len, kept)))
    sample = [row for stretch in stretches[:1] for row in islice(_rows(source, stretch), SAMPLE) if row[2]]
    tokens = sum(len(found) for _, content, _ in sample for found in encode([content]))
    return Measured(held, kept, text_bytes, sum(size for *_, size in sample) / max(tokens, 1))


def _groups(source: Windows) -> Iterator[list[tuple[int, list[float]]]]:
    """Places to look at, as {unit: how far in it}: the first group, unless no document there is short enough.

    Files that are fetched whole are looked at one by one.
    """
    units, whole = source.units(), source.fetched_whole()
    if not len(units):
        return
    if whole.all():
        for unit in range(min(len(units), PLACES)):
            yield [(unit, [(place + 0.5) / PLACES for place in range(PLACES)])]
        return
    some = np.flatnonzero(~whole)
    ends = np.cumsum(units.sizes[some])
    at = (np.arange(PLACES) + 0.5) / PLACES * ends[-1]
    found: dict[int, list[float]] = {}
    for number, place in zip(np.searchsorted(ends, at, side="right").tolist(), at.tolist(), strict=True):
        number = min(number, len(some) - 1)
        size = max(int(units.sizes[some[number]]), 1)
        found.setdefault(int(some[number]), []).append((place - (int(ends[number]) - size)) / size)
    with ThreadPoolExecutor(READING_THREADS) as pool:  # requests take time, and units stay in memory for a while
        for count, unit in zip(pool.map(lambda unit: len(source.starts(unit)), found), found, strict=True):
            if count == 2:
                pool.submit(source.read, unit, 0)
    yield list(found.items())


def _stretches(source: Windows, unit: int, fractions: Sequence[float]) -> Iterator[Stretch]:
    """The unit cut at these places; in a large one a place is moved to the beginning of its window."""
    starts = np.asarray(source.starts(unit))
    rows = np.unique((np.array(fractions) * starts[-1]).astype(int))
    if len(starts) > 2:
        rows = np.unique(starts[np.searchsorted(starts, rows, side="right") - 1])
    for start, stop in pairwise([*rows.tolist(), int(starts[-1])]):
        if start < stop:
            yield Stretch(unit, start, stop)


def _measure(source: Windows, stretches: Sequence[Stretch]) -> int:
    """Bytes of text in the source, by the units of these stretches."""
    units, measured, sizes = source.units(), 0.0, 0
    looked_at = dict.fromkeys(stretch.unit for stretch in stretches)
    for unit in looked_at:
        starts = np.asarray(source.starts(unit))
        firsts = [stretch.start for stretch in stretches if stretch.unit == unit]
        windows = np.unique(np.searchsorted(starts, firsts, side="right") - 1)
        found = [source.row_bytes(unit, int(window)) for window in windows]
        measured += sum(int(part.sum()) for part in found) / len(windows) * (len(starts) - 1)
        sizes += int(units.sizes[unit])
    return round(measured * int(units.sizes.sum()) / sizes) if sizes else 0


def _refuse_without_text(source: Windows, stretches: Sequence[Stretch], is_all: bool) -> None:
    """What no run could train on is told before it begins."""
    for stretch in stretches:
        for row, content, _ in _rows(source, stretch):
            if content is not None and not isinstance(content, (str, np.ndarray)):
                kind = type(content).__name__
                raise UserError(
                    f"{source.place(stretch.unit, row)}: {content!r:.80} is not text ({kind}); "
                    "choose a --text_column of texts"
                )
    if is_all:
        raise UserError(f"{source.name}: there is no text in it to train on: every row is empty or cannot be read")


def _chosen(source: Windows, stretches: Sequence[Stretch], encode: Encode, wanted: int, limit: float) -> HeldOut:
    """Rows from the beginning of each stretch, which share out the tokens `wanted` and the `limit` of bytes.

    What one of them leaves of its part, because its next document is too long, the later ones have too. Where no
    document fits so, the first one anywhere that is short enough.
    """
    ranges: dict[int, list[tuple[int, int]]] = {}
    tokens = size = 0
    for number, stretch in enumerate(stretches, 1):
        part = number / len(stretches)
        for row, content, row_bytes in _rows(source, stretch):
            if tokens >= wanted * part or size + row_bytes > limit * part:
                break
            if row_bytes:
                own = ranges.setdefault(stretch.unit, [])
                joins = bool(own) and own[-1][1] == row
                own[-1:] = [(own[-1][0], row + 1)] if joins else [*own[-1:], (row, row + 1)]
                tokens, size = tokens + len(encode([content])[0]), size + row_bytes
    if not ranges:
        rows = ((stretch.unit, row, size) for stretch in stretches for row, _, size in _rows(source, stretch))
        ranges = {unit: [(row, row + 1)] for unit, row, size in islice((r for r in rows if 0 < r[2] <= limit), 1)}
    return HeldOut(ranges)


def _rows(source: Windows, stretch: Stretch) -> Iterator[tuple[int, Any, int]]:
    """(row, content, bytes of its text) of a stretch."""
    starts = source.starts(stretch.unit)
    for window, (first, behind) in enumerate(pairwise(starts)):
        if behind <= stretch.start or first >= stretch.stop:
            continue
        content, sizes = source.read(stretch.unit, window), source.row_bytes(stretch.unit, window)
        for row in range(max(first, stretch.start), min(behind, stretch.stop)):
            yield row, content[row - first], int(sizes[row - first])


def _documents(source: Windows, held: HeldOut) -> Iterator[tuple[Any, int]]:
    """(content, bytes) of the documents that are held out."""
    for unit, ranges in held.ranges.items():
        for start, stop in ranges:
            for _, content, size in _rows(source, Stretch(unit, start, stop)):
                if size:
                    yield content, size
