"""Where text and questions come from: names → repositories → files → units → rows.

Promises: a data set is listed once (its revision pinned) and then read unit by unit, from the hub, from a mirror laid
out like the hub (`--data_root`) or from local files, with the same rows in the same order. What cannot be had or is
broken is named: data set, configuration, split, column, file and row. `datasets` resolves names and splits; it never
iterates.
Costs: one small request a parquet file to list its row groups, several at a time; the units read last stay in memory,
up to `KEPT_BYTES`.
"""

from __future__ import annotations

import gzip
import io
import os
import platform
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from miniqwen.config import HUB_TIMEOUT, DataFlags, UserError
from miniqwen.formats import FORMATS, SLICED, BadData, Batch, file_batches, format_of, parquet_batches, read_slice
from miniqwen.hub import HubFile, fetched, pinned
from miniqwen.patience import is_passing, patiently

REPOSITORIES = {
    "wikipedia": "wikimedia/wikipedia",
    "arxiv": "common-pile/arxiv_papers",
    "sciq": "allenai/sciq",
    "commonsenseqa": "tau/commonsense_qa",
}
# Data sets that are scripts, which `datasets` no longer runs, and old names: where their data stands today.
MOVED = {
    "legacy-datasets/wikipedia": "wikimedia/wikipedia",
    "armanc/scientific_papers": "ccdv/arxiv-summarization",
}
SLICE_BYTES = 8 << 20  # of a file of lines
GZIP_FACTOR = 4  # about: bytes of a gzipped text, decoded, to bytes stored
KEPT_BYTES = 256 << 20  # decoded units kept for stripes, which read the same unit again
LISTING_THREADS = 32  # footers read at once
SHOWN_FILES = 10  # of those that are amiss
FOOTERS_KEPT = 64  # so that a row group costs one request, not two


TEXT_COLUMNS = {"wikipedia": "text", "arxiv": "text"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class DataFile:
    """A file of a data set: its name in the repository, where it is read (a path or hf:// URL), its size in bytes.

    `hub_timeout`: seconds to wait for the hub where it does not answer.
    """

    path: str
    url: str
    size: int
    hub_timeout: float = field(default=HUB_TIMEOUT, compare=False)

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
            listed = pool.map(partial(self._row_groups, skip_bad=skip_bad), files)
            return dict(zip((file.path for file in files), listed, strict=True))

    def _row_groups(self, file: DataFile, skip_bad: bool) -> list[list[int]]:
        try:
            metadata = self._metadata(file)
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
        gzipped = self.files[unit.file].format.endswith(".gz")
        future.set_result((unit.size * (GZIP_FACTOR if gzipped else 1), rows))
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
            first = f"byte {unit.start}, line"
            yield from file_batches(io.BytesIO(data), file.format, self.columns, self.sample_by, what, first)
        else:
            with Path(local_copy(file, self.cache_dir)).open("rb") as opened:
                yield from file_batches(opened, file.format, self.columns, self.sample_by, what)


@dataclass(frozen=True)
class Repository:
    """A data set that was found: its files by split, and a note for the user where a name led elsewhere."""

    name: str
    path: str
    config_name: str | None
    revision: str | None
    splits: dict[str, tuple[DataFile, ...]]
    note: str | None = None
    cache_dir: str | None = None
    sample_by: str = "line"
    row_groups: Mapping[str, Mapping[str, Sequence[Sequence[int]]]] = field(default_factory=dict)

    def source(self, split: str, columns: tuple[str, ...]) -> Source:
        """Some columns of a split. Raises `UserError` naming the splits there are."""
        if split not in self.splits:
            raise UserError(f"{self.name}: no split {split!r}; it has {', '.join(self.splits)}")
        found = (self.name, self.path, self.config_name, self.revision)
        listed = self.row_groups.get(split)
        return Source(*found, split, self.splits[split], columns, self.cache_dir, self.sample_by, listed)

    def listed(self, splits: Sequence[str], columns: tuple[str, ...], skip_bad: bool = False) -> Repository:
        """The same with the row groups of those of `splits` that it has: nothing about them need be asked again."""
        there = [split for split in splits if split in self.splits]
        found = {split: self.source(split, columns).list_row_groups(skip_bad) for split in there}
        return replace(self, row_groups=found)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it; `from_json` makes it again."""
        return {**vars(self), "splits": {split: [vars(file) for file in files] for split, files in self.splits.items()}}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Repository:
        splits = {split: tuple(DataFile(**file) for file in files) for split, files in stored["splits"].items()}
        return cls(**{**stored, "splits": splits})

    def check_here(self) -> None:
        """That this machine has the local files that rank 0 listed on its own; raises `UserError` naming the others."""
        amiss = []
        for file in (file for files in self.splits.values() for file in files if "://" not in file.url):
            size = Path(file.url).stat().st_size if Path(file.url).exists() else None
            if size != file.size:
                here = "is not here" if size is None else f"has {size} bytes here"
                amiss.append(f"{file.url} {here} ({platform.node()}), and {file.size} bytes where rank 0 runs")
        if amiss:
            raise UserError(
                *amiss[:SHOWN_FILES], *([f"and {len(amiss) - SHOWN_FILES} more"] * (len(amiss) > SHOWN_FILES))
            )

    def downloaded(self) -> Repository:
        """The same with all its files on this machine."""
        files = lambda found: tuple(downloaded(file, self.cache_dir) for file in found)  # noqa: E731
        return replace(self, splits={split: files(found) for split, found in self.splits.items()})


def resolve(name: str, flags: DataFlags) -> Repository:
    """Find a data set: a name of ours, OWNER/NAME on the hub or under `--data_root`, a local file or folder.

    With `--streaming False` its files are downloaded here. Raises `UserError` for what cannot be had: which, why, and
    what to try.
    """
    repository = locate(name, flags)
    return repository if flags.streaming else repository.downloaded()


def locate(name: str, flags: DataFlags) -> Repository:
    """`resolve` without any download."""
    if name not in REPOSITORIES and Path(name).exists():
        return replace(_local(name), cache_dir=flags.cache_dir, sample_by=flags.sample_by)
    path = REPOSITORIES.get(name, name)
    if path in MOVED:
        raise UserError(f"{path} is a script, which the data sets library no longer runs; use {MOVED[path]}")
    where = path
    if flags.data_root:
        where = str(Path(flags.data_root, path))
        if not Path(where).is_dir():
            raise UserError(f"{name}: --data_root {flags.data_root} has no folder {path}")
    config_name, note = flags.dataset_config_name if name not in REPOSITORIES else None, None
    if name == "wikipedia":
        config_name, note = _wikipedia_dump(where, flags.wikipedia_version, flags.hub_timeout)
    revision, files = _files(name, where, config_name, flags.hub_timeout)
    return Repository(name, path, config_name, revision, files, note, flags.cache_dir, flags.sample_by)


def _local(name: str) -> Repository:
    path = Path(name)
    if path.is_file():
        file = DataFile(path.name, str(path.resolve()), path.stat().st_size)
        _ = file.format  # a format that cannot be read is said at once
        return Repository(path.name, str(path.resolve()), None, None, {"train": (file,)})
    _, files = _files(name, str(path.resolve()), None)
    return Repository(path.name, str(path.resolve()), None, None, files)


def _wikipedia_dump(where: str, wanted: str, limit: float) -> tuple[str, str | None]:
    """The configuration for `--wikipedia_version`, and a note if it is another dump of the same language."""
    names = _listed("wikipedia", where, limit, datasets.get_dataset_config_names)
    if wanted in names:
        return wanted, None
    language = wanted.partition(".")[2] or wanted
    dumps = sorted(name for name in names if name.partition(".")[2] == language)
    if not dumps:
        languages = sorted({name.partition(".")[2] for name in names})
        raise UserError(
            f"--wikipedia_version {wanted}: no dump of language {language!r}; there is {', '.join(languages[:40])}"
        )
    return dumps[
        -1
    ], f"wikipedia: dump {wanted} is no longer served; using {dumps[-1]}, the newest one of that language"


def _files(
    name: str, where: str, config_name: str | None, limit: float = HUB_TIMEOUT
) -> tuple[str | None, dict[str, tuple[DataFile, ...]]]:
    """(revision, files by split) of a data set on the hub or in a folder."""

    def files_of(path: str, **pinning: Any) -> tuple[str | None, dict[str, tuple[DataFile, ...]]]:
        builder = datasets.load_dataset_builder(path, config_name, **pinning)
        found: dict[str, tuple[DataFile, ...]] = {}
        for split, urls in (builder.config.data_files or {}).items():
            files = []
            for url in urls:
                filesystem, file = url_to_fs(url)
                inside = os.path.relpath(url, where)
                if url.startswith("hf://"):
                    inside = filesystem.resolve_path(file).path_in_repo
                files.append(DataFile(inside, url, filesystem.info(file)["size"], limit))
            found[str(split)] = tuple(files)
        return pinning.get("revision"), found

    revision, files = _listed(name, where, limit, files_of)
    if not files or not any(files.values()):
        raise UserError(f"{name}: no data files in {where}; expected {', '.join(FORMATS)}")
    for file in (file for found in files.values() for file in found):
        _ = file.format
    return revision, files


def _listed(name: str, where: str, limit: float, ask: Callable[..., Result]) -> Result:
    """What `ask(where, revision=, cache_dir=)` finds, in a folder or in the commit that the hub has now.

    The empty cache is for `datasets`, which would answer from one in place of a hub that does not answer.
    """
    if Path(where).is_dir():
        return _explained(name, lambda: ask(where))
    revision = _explained(name, lambda: pinned(where, name, limit))
    with tempfile.TemporaryDirectory() as empty:
        call = lambda: ask(where, revision=revision, cache_dir=empty)  # noqa: E731
        return patiently(lambda: _explained(name, call), name, limit)


def _explained(name: str, call: Any) -> Any:
    """`call()`, with the library's errors about names turned into ours; network errors pass, to be waited for."""
    try:
        return call()
    except datasets.exceptions.DatasetNotFoundError:
        raise UserError(
            f"{name}: not on the hub, or not accessible: check the name OWNER/NAME, `hf auth login` if it is private "
            "or gated, or give a local file"
        ) from None
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        if is_passing(error) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
            raise
        said = " ".join(str(error).split())
        hint = "; choose one with --dataset_config_name" if "onfig" in said else ""
        if "scripts are no longer supported" in said:
            hint = "; look for a parquet version of it on the hub"
        raise UserError(f"{name}: {said[:400]}{hint}") from None


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


def repository_card(repository: Repository) -> list[DataFile]:
    """The README.md that tells which files belong to which split; a mirror needs it. Empty where there is none."""
    first = next(file for files in repository.splits.values() for file in files)
    root = first.url.removesuffix(first.path).rstrip("/")

    def found() -> list[DataFile]:
        filesystem, path = url_to_fs(f"{root}/README.md")
        if not filesystem.exists(path):
            return []
        size = filesystem.info(path)["size"]
        return [DataFile("README.md", f"{root}/README.md", size, first.hub_timeout)]

    return patiently(found, f"{repository.name}: README.md", first.hub_timeout)


def data_names(flags: DataFlags) -> tuple[str, ...]:
    """The data sets that `--dataset_name` stands for."""
    return ("wikipedia", "arxiv") if flags.dataset_name == "both" else (str(flags.dataset_name),)


def text_column(name: str, flags: DataFlags) -> str:
    """The column that holds a data set's text."""
    return TEXT_COLUMNS.get(name, flags.text_column or "text")


def is_sliced(file: DataFile, sample_by: str) -> bool:
    """Whether the file can be entered in the middle (a text file that is one document cannot)."""
    return file.format in SLICED and not (file.format == ".txt" and sample_by == "document")


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
        except (BadData, pa.ArrowException, zlib.error, UnicodeDecodeError, EOFError, OSError) as error:
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
