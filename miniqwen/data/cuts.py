"""Large units of a source, cut into windows that are kept in the cache, each of which can be read alone.

Promises: a unit is cut once a machine; its windows appear whole or not at all, and what was damaged since is told and
cut anew. Windows may be deleted at any time, by anyone: they are made again when they are wanted.
Costs: a large unit is decoded once; its windows take about as much disk as the gzipped text.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from miniqwen.data.sources import Source, readable
from miniqwen.data.units import Unit
from miniqwen.files import disk_errors_told, sealed, sync, unsealed, write_bytes, written_whole

WINDOW_BYTES = 1 << 20  # of text; one row may be more
INDEX = "index.json"
WINDOWS = "windows.bin"
DAMAGE = (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, zlib.error)


def cuts_folder(cache_dir: str | None) -> Path:
    """Where the windows of all sources are."""
    return Path(cache_dir or HF_HOME, "miniqwen_windows")


class Cuts:
    """The windows of a source's large units."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._index = lru_cache(maxsize=256)(self._read_index)

    def starts(self, unit: int) -> Sequence[int]:
        """As `Windows.starts`."""
        starts: list[int] = self._index(unit)["starts"]
        return starts

    def read(self, unit: int, window: int) -> Sequence[Any]:
        """As `Windows.read`."""
        folder = self._folder(unit)
        try:
            return read_window(folder, self._index(unit), window)
        except DAMAGE as error:
            self._index.cache_clear()
            self._cut(unit, folder, f"{type(error).__name__}: {error}")
            return read_window(folder, self._index(unit), window)

    def _folder(self, unit: int) -> Path:
        return cuts_folder(self._source.cache_dir) / cut_key(self._source, self._source.units()[unit])

    def _read_index(self, unit: int) -> dict[str, Any]:
        folder = self._folder(unit)
        if not folder.exists():
            self._cut(unit, folder)
        try:
            index = read_index(folder)
        except DAMAGE as error:
            self._cut(unit, folder, str(error))
            index = read_index(folder)
        with contextlib.suppress(OSError):
            os.utime(folder)  # used just now, for whoever makes room
        return index

    def _cut(self, unit: int, folder: Path, damage: str | None = None) -> None:
        """Cut the unit, unless another process of this machine has done so meanwhile."""
        found, source = self._source.units()[unit], self._source
        lock = FileLock(f"{folder}.lock")
        with disk_errors_told(folder.parent, "--cache_dir chooses another place"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        try:
            if damage and fault_of(folder):
                print(f"{folder}: damaged ({damage}): cut anew", file=sys.stderr, flush=True)
                remove(folder)
            if not folder.exists():
                file = source.files[found.file]
                readable(lambda: cut_into_windows(source, found, folder), file, found.part, source.cache_dir)
        finally:
            lock.release()


def read_index(folder: Path) -> dict[str, Any]:
    """{"of": what was cut, "starts": first row of each window, "offsets": its first byte}, each with its end behind it.

    Raises one of `DAMAGE`, also where the windows have not their length.
    """
    index = unsealed(folder / INDEX)
    if (size := (folder / WINDOWS).stat().st_size) != index["offsets"][-1]:
        raise ValueError(f"{folder / WINDOWS} has {size:,} bytes of {index['offsets'][-1]:,}")
    return index


def read_window(folder: Path, index: dict[str, Any], window: int) -> list[Any]:
    """The rows of one window; raises one of `DAMAGE`."""
    start, stop = index["offsets"][window : window + 2]
    with (folder / WINDOWS).open("rb") as file:
        file.seek(start)
        rows: list[Any] = json.loads(zlib.decompress(file.read(stop - start)))
    first, end = index["starts"][window : window + 2]
    if len(rows) != end - first:
        raise ValueError(f"window {window} has {len(rows)} rows of {end - first}")
    return rows


def fault_of(folder: Path) -> str | None:
    """What is wrong with the windows in a folder, every one of them read; None where they are whole."""
    try:
        index = read_index(folder)
        for window in range(len(index["starts"]) - 1):
            read_window(folder, index, window)
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    return None


def remove(folder: Path) -> None:
    """Delete windows, or whatever has their name."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
    else:
        folder.unlink(missing_ok=True)


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

    with written_whole(temporary / WINDOWS) as file:
        for batch in source.batches(unit):
            for value in batch[source.columns[0]]:
                rows.append(value)
                size += len(value) if isinstance(value, str) else 8
                if size >= WINDOW_BYTES:
                    write(file)
                    size = 0
        if rows:
            write(file)
    described = {"file": source.files[unit.file].path, "of": source.repository, "column": source.columns[0]}
    write_bytes(temporary / INDEX, sealed({"of": described, "starts": starts, "offsets": offsets}))
    temporary.rename(folder)
    sync(folder.parent)
