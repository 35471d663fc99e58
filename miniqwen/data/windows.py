"""The rows of a source in windows of bounded size, whatever its units are.

Promises: a small unit is one window. A large one (a gzipped file that cannot be entered in the middle, a row group of a
million rows) is read once per machine and cut into windows of about a megabyte, kept in the cache, each of which can be
read alone. So memory is bounded, and going on in the middle of a unit costs no more than at its beginning.
Costs: a large unit is decoded once; its windows take about as much disk as the gzipped text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from miniqwen.data.formats import BadData
from miniqwen.data.sources import GZIP_FACTOR, Source, readable
from miniqwen.data.units import Unit, Units, is_sliced
from miniqwen.files import sync, write_text, written_whole

WINDOW_BYTES = 1 << 20  # of text; one row may be more
LARGE_BYTES = 64 << 20  # of a decoded unit: more than that is cut into windows
INDEX = "index.json"


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
        self._index = lru_cache(maxsize=256)(self._read_index)
        self.is_large = lru_cache(maxsize=1024)(self._is_large)

    def units(self) -> Units:
        return self.source.units()

    def _is_large(self, unit: int) -> bool:
        found = self.units()[unit]
        return decoded_bytes(self.source, found) > LARGE_BYTES and not is_one_document(self.source, found)

    def starts(self, unit: int) -> Sequence[int]:
        if self.is_large(unit):
            starts: list[int] = self._index(unit)["starts"]
            return starts
        rows = self.units()[unit].rows
        return [0, len(self._column(unit)) if rows is None else rows]

    def read(self, unit: int, window: int) -> Sequence[Any]:
        if not self.is_large(unit):
            return self._column(unit)
        start, stop = self._index(unit)["offsets"][window : window + 2]
        with (self._folder(unit) / "windows.bin").open("rb") as file:
            file.seek(start)
            found: list[Any] = json.loads(zlib.decompress(file.read(stop - start)))
        return found

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
        return WINDOW_BYTES if self.is_large(unit) else decoded_bytes(self.source, self.units()[unit]) / stripes

    def paths(self) -> Sequence[str]:
        return [file.path for file in self.source.files]

    def fetched_whole(self) -> np.ndarray:
        files, sample_by = self.source.files, self.source.sample_by
        whole = [file.format != ".parquet" and not is_sliced(file, sample_by) for file in files]
        return np.array(whole, bool)[self.units().file]

    def _column(self, unit: int) -> Sequence[Any]:
        return self.source.read(self.units()[unit])[self.source.columns[0]]

    def _folder(self, unit: int) -> Path:
        return Path(self.source.cache_dir or HF_HOME, "miniqwen_windows", cut_key(self.source, self.units()[unit]))

    def _read_index(self, unit: int) -> dict[str, list[int]]:
        folder, found = self._folder(unit), self.units()[unit]
        if not folder.is_dir():
            file = self.source.files[found.file]
            cut = lambda: cut_into_windows(self.source, found, folder)  # noqa: E731
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):  # the other processes of this machine wait and find it done
                if not folder.is_dir():
                    readable(cut, file, found.part, self.source.cache_dir)
        index: dict[str, list[int]] = json.loads((folder / INDEX).read_text())
        return index


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
    return unit.size * (GZIP_FACTOR if source.files[unit.file].format.endswith(".gz") else 1)


def is_one_document(source: Source, unit: Unit) -> bool:
    """A slice is small by its making, and a file that is one document has one row."""
    file = source.files[unit.file]
    return is_sliced(file, source.sample_by) or (".txt" in file.format and source.sample_by == "document")


def cut_key(source: Source, unit: Unit) -> str:
    """A name for the windows of a unit, another one when anything they depend on is another."""
    file = source.files[unit.file]
    local = Path(file.url)
    changed = local.stat().st_mtime_ns if local.is_file() else source.revision
    column = source.columns[0]
    described = [file.url, file.size, changed, unit.part, column, source.sample_by, WINDOW_BYTES]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:32]


def cut_into_windows(source: Source, unit: Unit, folder: Path) -> None:
    """Write the unit's first column to `folder`, window by window; it appears whole or not at all.

    JSON, because a row may hold what it should not: the reader of the row says so, not the cutter.
    """
    temporary = folder.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    starts, offsets = [0], [0]
    rows: list[Any] = []
    size = 0

    def write(file: Any) -> None:
        offsets.append(offsets[-1] + file.write(zlib.compress(json.dumps(rows).encode(), 1)))
        starts.append(starts[-1] + len(rows))
        rows.clear()

    with written_whole(temporary / "windows.bin") as file:
        for batch in source.batches(unit):
            for value in batch[source.columns[0]]:
                rows.append(value)
                size += len(value) if isinstance(value, str) else 8
                if size >= WINDOW_BYTES:
                    write(file)
                    size = 0
        if rows:
            write(file)
    write_text(temporary / INDEX, json.dumps({"starts": starts, "offsets": offsets}))
    temporary.rename(folder)
    sync(folder.parent)
