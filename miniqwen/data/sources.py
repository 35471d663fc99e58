"""How a data set's rows are read: files → units → rows, from the hub, a mirror or local files.

Promises: a unit has the same rows in the same order wherever it is read. What is broken is named: data set, column,
file and row. Costs: one small request a parquet file to list its row groups, several at a time; the units read last
stay in memory, up to `KEPT_BYTES`.
"""

from __future__ import annotations

import gzip
import io
import lzma
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from miniqwen.data.formats import (
    SLICED,
    BadData,
    Batch,
    check_columns,
    file_batches,
    is_packed,
    parquet_batches,
    read_slice,
)
from miniqwen.data.hub import HubFile, fetched
from miniqwen.data.patience import patiently
from miniqwen.data.units import DataFile, Unit, Units, is_sliced

GZIP_FACTOR = 4  # about: bytes of a gzipped text, decoded, to bytes stored
KEPT_BYTES = 256 << 20  # decoded units kept for stripes, which read the same unit again
LISTING_THREADS = 32  # footers read at once
FOOTERS_KEPT = 64  # so that a row group costs one request, not two

Result = TypeVar("Result")


@dataclass(frozen=True)
class Source:
    """Some columns of one split of a data set. `row_groups`: of its parquet files, where they were listed already."""

    name: str
    repository: str
    config_name: str | None
    revision: str | None
    split: str
    files: tuple[DataFile, ...]
    columns: tuple[str, ...]
    cache_dir: str | None = None
    sample_by: str = "line"
    row_groups: Mapping[str, Sequence[Sequence[int]]] | None = field(default=None, compare=False, repr=False)
    _kept: OrderedDict[Unit, Future[tuple[int, Batch]]] = field(default_factory=OrderedDict, compare=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def identity(self) -> dict[str, Any]:
        """What the rows depend on, for a checkpoint to remember."""
        names = ("repository", "config_name", "revision", "split")
        cut = {"sample_by": self.sample_by} if any(".txt" in file.format for file in self.files) else {}
        broken = [path for path, groups in (self.row_groups or {}).items() if any(rows < 0 for rows, _ in groups)]
        return {
            **{name: getattr(self, name) for name in names},
            **cut,
            **({"unreadable_files": broken} if broken else {}),
            "files": [[file.path, file.size] for file in self.files],
        }

    def units(self) -> Units:
        """All units, in file order; listed once."""
        return self._units

    @cached_property
    def _units(self) -> Units:
        row_groups = self.row_groups if self.row_groups is not None else self.list_row_groups()
        return Units.of(self.files, row_groups, self.sample_by)

    def list_row_groups(self, skip_bad: bool = False) -> dict[str, list[list[int]]]:
        """{path: [(rows, bytes of the wanted columns), ...]} of each parquet file, from their footers.

        With `skip_bad` a file whose footer is broken is one unit, of which nothing is known yet: rows -1.
        """
        files = [file for file in self.files if file.format == ".parquet"]
        with ThreadPoolExecutor(LISTING_THREADS) as pool:
            listed = list(pool.map(partial(self._row_groups, skip_bad=skip_bad), files))
        if files and all(groups and groups[0][0] < 0 for groups in listed):
            self._row_groups(files[0], skip_bad=False)  # none can be read: the first says why
        return dict(zip((file.path for file in files), listed, strict=True))

    def _row_groups(self, file: DataFile, skip_bad: bool) -> list[list[int]]:
        try:
            metadata = self._metadata(file)
            check_columns(metadata.schema.to_arrow_schema().names, self.columns, f"{self.name}: {file.path}")
        except BadData:
            if not skip_bad:
                raise
            return [[-1, file.size]]
        wanted = [
            n for n in range(metadata.num_columns) if metadata.schema.column(n).path.split(".")[0] in self.columns
        ]
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        return [
            [group.num_rows, sum(group.column(n).total_uncompressed_size for n in wanted) or group.total_byte_size]
            for group in groups
        ]

    def _metadata(self, file: DataFile) -> Any:
        return readable(lambda: parquet_footer(file), file)

    def read(self, unit: Unit) -> Batch:
        """{column: values} of a unit, in row order. Threads that want the same unit read it once.

        Raises `UserError` for a missing column and for a broken file or row, named.
        """
        with self._lock:
            known = self._kept.get(unit)
            if known is None:
                future = self._kept[unit] = Future()
            else:
                self._kept.move_to_end(unit)
        if known is not None:
            return known.result()[1]
        try:
            rows = self._read_whole(unit)
        except BaseException as error:
            with self._lock:
                self._kept.pop(unit, None)
            future.set_exception(error)
            raise
        packed = is_packed(self.files[unit.file].format)
        future.set_result((unit.size * (GZIP_FACTOR if packed else 1), rows))
        with self._lock:
            read = [(key, value.result()[0]) for key, value in self._kept.items() if value.done()]
            excess = sum(size for _, size in read) - KEPT_BYTES
            for key, size in read[:-1]:
                if excess > 0:
                    del self._kept[key]
                    excess -= size
        return rows

    def _read_whole(self, unit: Unit) -> Batch:
        file = self.files[unit.file]

        def decoded() -> Batch:
            rows: Batch = {name: [] for name in self.columns}
            for batch in self.batches(unit):
                for name, values in batch.items():
                    rows[name] += values
            return rows

        return readable(decoded, file, unit.part, self.cache_dir)

    def batches(self, unit: Unit) -> Iterator[Batch]:
        """The rows of a unit, a few hundred at a time, read once and without waiting for a hub that fails."""
        file, what = self.files[unit.file], f"{self.name}: {self.files[unit.file].path}"
        if file.format == ".parquet":
            with open_file(file) as opened:
                yield from parquet_batches(opened, parquet_footer(file), unit.part, self.columns, what)
        elif is_sliced(file, self.sample_by):
            with open_file(file) as opened:
                data = read_slice(
                    opened, unit.start, unit.stop, file.format == ".txt" and self.sample_by == "paragraph"
                )
            how = (file.format, self.columns, self.sample_by, what)
            yield from file_batches(io.BytesIO(data), *how, start=unit.start)
        else:
            with Path(local_copy(file, self.cache_dir)).open("rb") as opened:
                yield from file_batches(opened, file.format, self.columns, self.sample_by, what, file.separator)


def downloaded(file: DataFile, cache_dir: str | None = None) -> DataFile:
    """The file in the hub's cache; a local file as it is."""
    return replace(file, url=local_copy(file, cache_dir))


def local_copy(file: DataFile, cache_dir: str | None = None, *, again: bool = False) -> str:
    """Path of the file on this machine, fetched once from the hub: for formats that cannot be entered in the middle.

    `again`: also where there is a copy already, which turned out to be damaged.
    """
    if not file.url.startswith("hf://"):
        return file.url
    filesystem, path = url_to_fs(file.url)
    at = patiently(lambda: filesystem.resolve_path(path), file.path, file.hub_timeout)
    return fetched(at.repo_id, at.path_in_repo, at.revision, cache_dir, file.path, file.hub_timeout, again)


@lru_cache(maxsize=FOOTERS_KEPT)
def parquet_footer(file: DataFile) -> Any:
    """What a parquet file says of its columns and row groups."""
    with open_file(file) as opened:
        return pq.read_metadata(opened)


def open_file(file: DataFile) -> Any:
    """A binary file, local or on the hub, which is waited for."""
    return HubFile(file.url, file.hub_timeout) if file.url.startswith("hf://") else Path(file.url).open("rb")


def readable(call: Callable[[], Result], file: DataFile, part: int = 0, cache_dir: str | None = None) -> Result:
    """`call()`, which decodes a part of the file; what it cannot decode is `BadData` that names the file.

    Bytes from the hub are asked for once more before that, so that it is the data that is bad and not the moment.
    Flipped bits that still decode are seen where the file has checksums: gzip streams, parquet pages written with
    them, and whole files that were downloaded (see hub.py).
    """
    for tries_left in (file.url.startswith("hf://"), False):
        try:
            return call()
        except (BadData, pa.ArrowException, zlib.error, lzma.LZMAError, UnicodeDecodeError, EOFError, OSError) as error:
            if not _is_decoder_error(error):
                raise
            if not tries_left:
                said = " ".join(str(error).split())[:200]
                where = file.path + (f", part {part}" if part else "")
                raise (
                    error if isinstance(error, BadData) else BadData(f"{where}: broken {file.format} ({said})")
                ) from None
            if file.format not in (".parquet", *SLICED):
                local_copy(file, cache_dir, again=True)
    raise AssertionError("unreachable")


def _is_decoder_error(error: BaseException) -> bool:
    """Arrow's own `OSError`s have no number, and are of no class that says what the system or the hub could not do."""
    if isinstance(error, OSError):
        return isinstance(error, gzip.BadGzipFile) or (type(error) is OSError and error.errno is None)
    return True
