"""The rows of a source in windows of bounded size, whatever its units are.

Promises: a small unit is one window. A large one (a gzipped file that cannot be entered in the middle, a row group of a
million rows) is cut into windows of about a megabyte, each of which can be read alone, see `cuts`. So memory is
bounded, and going on in the middle of a unit costs no more than at its beginning.
Costs: see `cuts`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from miniqwen.data import cuts
from miniqwen.data.formats import BadData, is_packed
from miniqwen.data.sources import GZIP_FACTOR, Source
from miniqwen.data.units import Unit, Units, is_sliced

LARGE_BYTES = 64 << 20  # of a decoded unit: more than that is cut into windows


class Windows(Protocol):
    """What documents are read from: text, or tokens that were made of it."""

    name: str

    def units(self) -> Units: ...

    def is_large(self, unit: int) -> bool:
        """Whether the unit has several windows."""

    def starts(self, unit: int) -> Sequence[int]:
        """The number, in the unit, of the first row of each window; at the end, the unit's number of rows."""

    def read(self, unit: int, window: int) -> Sequence[Any]:
        """The window's rows: texts (None or, in a wrong file, anything may stand in their place), or token arrays."""

    def place(self, unit: int, row: int) -> str:
        """Where a row stands, for messages."""

    def skipped(self, unit: int) -> tuple[str, str] | None:
        """Which unit this is and what is wrong with it, if it cannot be read and is passed over."""

    def row_bytes(self, unit: int, window: int) -> np.ndarray:
        """Bytes of text, in UTF-8, of each of the window's rows; 0 where there is none [rows]."""

    def held_bytes(self, unit: int, stripes: int) -> float:
        """About how many bytes of text are in memory while one of the unit's `stripes` is read."""

    def paths(self) -> Sequence[str]:
        """Of the source's files."""

    def fetched_whole(self) -> np.ndarray:
        """Whether each unit is a file that cannot be entered in the middle [units]."""


class TextWindows:
    """The first column of a source."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name
        self._cuts = cuts.Cuts(source)
        self.is_large = lru_cache(maxsize=1024)(self._is_large)

    def units(self) -> Units:
        return self.source.units()

    def _is_large(self, unit: int) -> bool:
        found = self.units()[unit]
        return decoded_bytes(self.source, found) > LARGE_BYTES and not is_one_document(self.source, found)

    def starts(self, unit: int) -> Sequence[int]:
        if self.is_large(unit):
            return self._cuts.starts(unit)
        rows = self.units()[unit].rows
        return [0, len(self._column(unit)) if rows is None else rows]

    def read(self, unit: int, window: int) -> Sequence[Any]:
        if not self.is_large(unit):
            return self._column(unit)
        return self._cuts.read(unit, window)

    def place(self, unit: int, row: int) -> str:
        found = self.units()[unit]
        part = f" of part {found.part}" if found.part else ""
        return f"{self.source.files[found.file].path}: row {row}{part}"

    def skipped(self, unit: int) -> tuple[str, str] | None:
        return None  # see ReadableUnits

    def row_bytes(self, unit: int, window: int) -> np.ndarray:
        texts = self.read(unit, window)
        return np.array([text_bytes(text) if isinstance(text, str) else 0 for text in texts], np.int64)

    def held_bytes(self, unit: int, stripes: int) -> float:
        return cuts.WINDOW_BYTES if self.is_large(unit) else decoded_bytes(self.source, self.units()[unit]) / stripes

    def paths(self) -> Sequence[str]:
        return [file.path for file in self.source.files]

    def fetched_whole(self) -> np.ndarray:
        files, sample_by = self.source.files, self.source.sample_by
        whole = [file.format != ".parquet" and not is_sliced(file, sample_by) for file in files]
        return np.array(whole, bool)[self.units().file]

    def _column(self, unit: int) -> Sequence[Any]:
        return self.source.read(self.units()[unit])[self.source.columns[0]]


class ReadableUnits:
    """The windows of a source, none of them in a unit that cannot be read (`--on_bad_data skip`).

    What is skipped is a function of the data: a unit with a single byte that cannot be decoded has no rows, for every
    lane, rank and machine. What was skipped once stays skipped for the run, because the cursors carry it: also where
    the file was mended meanwhile, so that a resumed run goes on as it began; a new run reads the mended file. A unit is
    read when its rows are counted, a moment before they are wanted.
    """

    def __init__(self, text: TextWindows) -> None:
        self.name = text.name
        self._text = text
        self._bad: dict[str, str] = {}

    def remember(self, bad: Mapping[str, str]) -> None:
        """Units that an earlier part of the run skipped, {unit: what was wrong}: they stay skipped."""
        self._bad |= bad

    def units(self) -> Units:
        return self._text.units()

    def is_large(self, unit: int) -> bool:
        return self._text.is_large(unit)

    def starts(self, unit: int) -> Sequence[int]:
        label = self._label(unit)
        if label in self._bad:
            return [0]
        try:
            starts = self._text.starts(unit)
            if not self.is_large(unit):  # a large one was read to be cut
                self._text.read(unit, 0)
            return starts
        except BadData as error:
            self._bad[label] = str(error)
            print(f"{self.name}: skipped {label} (--on_bad_data skip): {error}", file=sys.stderr, flush=True)
            return [0]

    def read(self, unit: int, window: int) -> Sequence[Any]:
        return self._text.read(unit, window)

    def place(self, unit: int, row: int) -> str:
        return self._text.place(unit, row)

    def skipped(self, unit: int) -> tuple[str, str] | None:
        label = self._label(unit)
        return (label, self._bad[label]) if label in self._bad else None

    def all_skipped(self) -> dict[str, str]:
        """{unit: what is wrong with it} of all that were skipped so far."""
        return dict(self._bad)

    def row_bytes(self, unit: int, window: int) -> np.ndarray:
        return self._text.row_bytes(unit, window)

    def held_bytes(self, unit: int, stripes: int) -> float:
        return self._text.held_bytes(unit, stripes)

    def paths(self) -> Sequence[str]:
        return self._text.paths()

    def fetched_whole(self) -> np.ndarray:
        return self._text.fetched_whole()

    def _label(self, unit: int) -> str:
        found = self.units()[unit]
        return f"{self._text.source.files[found.file].path}#{found.part}"


def text_bytes(text: str) -> int:
    """Of the text in UTF-8; what cannot be written becomes a replacement character of three bytes (see encodable)."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def decoded_bytes(source: Source, unit: Unit) -> int:
    """About how many bytes of text the unit holds."""
    return unit.size * (GZIP_FACTOR if is_packed(source.files[unit.file].format) else 1)


def is_one_document(source: Source, unit: Unit) -> bool:
    """A slice is small by its making, and a file that is one document has one row."""
    file = source.files[unit.file]
    return is_sliced(file, source.sample_by) or (".txt" in file.format and source.sample_by == "document")
