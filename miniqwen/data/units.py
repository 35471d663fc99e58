"""The units of a source: the smallest pieces of its files that are fetched at once.

Promises: a function of the files' names and sizes and of parquet's row groups, the same on every machine. Costs: four
numbers a unit, in columns: millions of units take some megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miniqwen.config.data import HUB_TIMEOUT
from miniqwen.data.formats import SLICED, format_of

SLICE_BYTES = 8 << 20  # of a file of lines


@dataclass(frozen=True)
class DataFile:
    """A file of a data set: its name in the repository, where it is read (a path or hf:// URL), its size in bytes.

    `hub_timeout`: seconds to wait for the hub where it does not answer; `separator`: of a CSV file's values, where its
    data set's card names one.
    """

    path: str
    url: str
    size: int
    hub_timeout: float = field(default=HUB_TIMEOUT, compare=False)
    separator: str | None = None

    @property
    def format(self) -> str:
        """One of `FORMATS`; `UserError` for other files."""
        return format_of(self.path)


@dataclass(frozen=True)
class Unit:
    """The smallest piece of a file that is fetched at once: a row group, a slice of lines, or another file whole.

    `file`: index into `Source.files`; `start`, `stop`: bytes of a slice; `rows`: known for parquet; `size` in bytes
    (of a row group: of the wanted columns, uncompressed).
    """

    file: int
    part: int
    start: int
    stop: int
    rows: int | None
    size: int


class Units(Sequence[Unit]):
    """The units of a source, in file order, as columns of numbers: millions of them take some megabytes."""

    def __init__(self, file: np.ndarray, part: np.ndarray, rows: np.ndarray, sizes: np.ndarray) -> None:
        self.file, self.part, self.rows, self.sizes = file, part, rows, sizes

    @classmethod
    def of(
        cls, files: Sequence[DataFile], row_groups: Mapping[str, Sequence[Sequence[int]]], sample_by: str = "line"
    ) -> Units:
        """The units of `files`; `row_groups`: (rows, size) of each row group of a parquet file."""
        columns: list[list[np.ndarray]] = [[], [], [], []]
        for number, file in enumerate(files):
            if file.path in row_groups:
                rows, sizes = np.asarray(row_groups[file.path], dtype=np.int64).reshape(-1, 2).T
            elif is_sliced(file, sample_by):
                starts = np.arange(0, max(file.size, 1), SLICE_BYTES)
                sizes = np.minimum(starts + SLICE_BYTES, file.size) - starts
                rows = np.full(len(starts), -1)
            else:
                rows, sizes = np.array([-1]), np.array([file.size])
            made = (np.full(len(sizes), number, np.int32), np.arange(len(sizes), dtype=np.int32), rows, sizes)
            for number_of, values in enumerate(made):
                columns[number_of].append(np.asarray(values))
        return cls(*(np.concatenate(column) if column else np.empty(0, np.int64) for column in columns))

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        part, size, rows = int(self.part[index]), int(self.sizes[index]), int(self.rows[index])
        start = part * SLICE_BYTES if rows < 0 else 0
        return Unit(int(self.file[index]), part, start, start + size, rows if rows >= 0 else None, size)


def is_sliced(file: DataFile, sample_by: str) -> bool:
    """Whether the file can be entered in the middle (a text file that is one document cannot)."""
    return file.format in SLICED and not (file.format == ".txt" and sample_by == "document")
