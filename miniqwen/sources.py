"""Where text and questions come from: names → repositories → files → units → rows.

Promises: a data set is listed once (its revision pinned) and then read unit by unit, from the hub, from a mirror laid
out like the hub (`--data_root`) or from local files, with the same rows in the same order. What cannot be had or is
broken is named: data set, configuration, split, column, file and row. `datasets` resolves names and splits; it never
iterates.
Costs: one small request a parquet file to list its row groups; the units read last stay in memory, up to `KEPT_BYTES`.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from huggingface_hub import hf_hub_download

from miniqwen.config import DataFlags, UserError
from miniqwen.patience import patiently

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
FORMATS = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv")
SLICE_BYTES = 8 << 20  # of a .jsonl file
KEPT_BYTES = 256 << 20  # decoded units kept for stripes, which read the same unit again


@dataclass(frozen=True)
class DataFile:
    """A file of a data set: its name in the repository, where it is read (a path or hf:// URL), its size in bytes."""

    path: str
    url: str
    size: int

    @property
    def format(self) -> str:
        """One of `FORMATS`; `UserError` for other files."""
        for ending in sorted(FORMATS, key=len, reverse=True):
            if self.path.endswith(ending):
                return ending
        raise UserError(f"{self.path}: not a format that can be read; expected {', '.join(FORMATS)}")


@dataclass(frozen=True)
class Unit:
    """The smallest piece that is read at once: a parquet row group, a slice of a .jsonl file, another file whole.

    `file`: index into `Source.files`; `start`, `stop`: bytes of a slice; `rows`: known for parquet; `size` in bytes.
    """

    file: int
    part: int
    start: int
    stop: int
    rows: int | None
    size: int


@dataclass(frozen=True)
class Source:
    """Some columns of one split of a data set."""

    name: str
    repository: str
    config_name: str | None
    revision: str | None
    split: str
    files: tuple[DataFile, ...]
    columns: tuple[str, ...]
    cache_dir: str | None = None
    _kept: OrderedDict[Unit, tuple[int, dict[str, list[Any]]]] = field(
        default_factory=OrderedDict, compare=False, repr=False
    )

    def identity(self) -> dict[str, Any]:
        """What the rows depend on, for a checkpoint to remember."""
        names = ("repository", "config_name", "revision", "split")
        return {
            **{name: getattr(self, name) for name in names},
            "files": [[file.path, file.size] for file in self.files],
        }

    def units(self) -> tuple[Unit, ...]:
        """All units, in file order; listed once."""
        return self._units

    @cached_property
    def _units(self) -> tuple[Unit, ...]:
        return tuple(unit for number, file in enumerate(self.files) for unit in self._units_of(number, file))

    def _units_of(self, number: int, file: DataFile) -> Iterator[Unit]:
        if file.format == ".parquet":
            metadata = self._metadata(file)
            for group in range(metadata.num_row_groups):
                described = metadata.row_group(group)
                yield Unit(number, group, 0, 0, described.num_rows, described.total_byte_size)
        elif file.format == ".jsonl":
            for part, start in enumerate(range(0, max(file.size, 1), SLICE_BYTES)):
                stop = min(start + SLICE_BYTES, file.size)
                yield Unit(number, part, start, stop, None, stop - start)
        else:
            yield Unit(number, 0, 0, file.size, None, file.size)

    def _metadata(self, file: DataFile) -> Any:
        def footer() -> Any:
            with open_file(file.url) as opened:
                return pq.read_metadata(opened)

        return readable(lambda: patiently(footer, f"{self.name}: {file.path}"), file, ".parquet")

    def read(self, unit: Unit) -> dict[str, list[Any]]:
        """{column: values} of a unit, in row order.

        Raises `UserError` for a missing column and for a broken file or row, named.
        """
        if unit in self._kept:
            self._kept.move_to_end(unit)
            return self._kept[unit][1]
        file = self.files[unit.file]
        size, rows = readable(
            lambda: patiently(lambda: self._decode(file, unit), f"{self.name}: {file.path}"), file, file.format
        )
        self._kept[unit] = (size, rows)
        while len(self._kept) > 1 and sum(kept for kept, _ in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return rows

    def _decode(self, file: DataFile, unit: Unit) -> tuple[int, dict[str, list[Any]]]:
        """The decoded unit and about how many bytes it takes."""
        if file.format == ".parquet":
            with open_file(file.url) as opened, pq.ParquetFile(opened, pre_buffer=True) as parquet:
                self._check_columns(parquet.schema_arrow.names, file)
                table = parquet.read_row_group(unit.part, columns=list(self.columns))
            return table.nbytes, {name: table[name].to_pylist() for name in self.columns}
        if file.format == ".csv":
            return self._decode_csv(file)
        if file.format == ".jsonl":
            data, first = read_slice(file, unit), f"byte {unit.start}, line"
        else:
            with open_file(local_copy(file, self.cache_dir)) as opened:
                data, first = opened.read(), "row"
            data = gzip.decompress(data) if file.format.endswith(".gz") else data
        return len(data), self._columns_of(parse_json(data, file, first), file)

    def _decode_csv(self, file: DataFile) -> tuple[int, dict[str, list[Any]]]:
        with open_file(local_copy(file, self.cache_dir)) as opened:
            data = opened.read()
        header = pyarrow.csv.open_csv(io.BytesIO(data)).schema.names if data.strip() else []
        self._check_columns(header, file)
        # texts stay texts: a column of answers "1", "2" must not become numbers
        types = pyarrow.csv.ConvertOptions(
            include_columns=list(self.columns), column_types={name: pa.string() for name in self.columns}
        )  # fmt: skip
        parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
        table = pyarrow.csv.read_csv(io.BytesIO(data), convert_options=types, parse_options=parsing)
        return table.nbytes, {name: table[name].to_pylist() for name in self.columns}

    def _columns_of(self, rows: Iterable[dict[str, Any]], file: DataFile) -> dict[str, list[Any]]:
        found = list(rows)
        names = dict.fromkeys(name for row in found for name in row)
        if found:
            self._check_columns(list(names), file)
        return {name: [row.get(name) for row in found] for name in self.columns}

    def _check_columns(self, there: list[str], file: DataFile) -> None:
        missing = [name for name in self.columns if name not in there]
        if missing:
            raise UserError(
                f"{self.name}: {file.path} has no column {', '.join(missing)}; its columns are {', '.join(there)}"
            )


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

    def source(self, split: str, columns: tuple[str, ...]) -> Source:
        """Some columns of a split. Raises `UserError` naming the splits there are."""
        if split not in self.splits:
            raise UserError(f"{self.name}: no split {split!r}; it has {', '.join(self.splits)}")
        found = (self.name, self.path, self.config_name, self.revision)
        return Source(*found, split, self.splits[split], columns, self.cache_dir)


def resolve(name: str, flags: DataFlags) -> Repository:
    """Find a data set: a name of ours, OWNER/NAME on the hub or under `--data_root`, a local file or folder.

    With `--streaming False` its files are downloaded here. Raises `UserError` for what cannot be had: which, why, and
    what to try.
    """
    if name not in REPOSITORIES and Path(name).exists():
        return _local(name)
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
        config_name, note = _wikipedia_dump(where, flags.wikipedia_version)
    revision, files = _files(name, where, config_name)
    if not flags.streaming:
        files = {split: tuple(downloaded(file, flags.cache_dir) for file in found) for split, found in files.items()}
    return Repository(name, path, config_name, revision, files, note, flags.cache_dir)


def _local(name: str) -> Repository:
    path = Path(name)
    if path.is_file():
        file = DataFile(path.name, str(path.resolve()), path.stat().st_size)
        _ = file.format  # a format that cannot be read is said at once
        return Repository(path.name, str(path.resolve()), None, None, {"train": (file,)})
    _, files = _files(name, str(path.resolve()), None)
    return Repository(path.name, str(path.resolve()), None, None, files)


def _wikipedia_dump(where: str, wanted: str) -> tuple[str, str | None]:
    """The configuration for `--wikipedia_version`, and a note if it is another dump of the same language."""
    names = patiently(lambda: _explained("wikipedia", lambda: datasets.get_dataset_config_names(where)), "wikipedia")
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


def _files(name: str, where: str, config_name: str | None) -> tuple[str | None, dict[str, tuple[DataFile, ...]]]:
    """(revision, files by split) of a data set on the hub or in a folder."""

    def listed() -> tuple[str | None, dict[str, tuple[DataFile, ...]]]:
        builder = _explained(name, lambda: datasets.load_dataset_builder(where, config_name))
        found: dict[str, tuple[DataFile, ...]] = {}
        revision = None
        for split, urls in (builder.config.data_files or {}).items():
            files = []
            for url in urls:
                filesystem, path = url_to_fs(url)
                inside = os.path.relpath(url, where)
                if url.startswith("hf://"):
                    resolved = filesystem.resolve_path(path)
                    revision, inside = resolved.revision, resolved.path_in_repo
                files.append(DataFile(inside, url, filesystem.info(path)["size"]))
            found[str(split)] = tuple(files)
        return revision, found

    revision, files = patiently(listed, name)
    if not files or not any(files.values()):
        raise UserError(f"{name}: no data files in {where}; expected {', '.join(FORMATS)}")
    for file in (file for found in files.values() for file in found):
        _ = file.format
    return revision, files


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
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        said = " ".join(str(error).split())
        hint = "; choose one with --dataset_config_name" if "onfig" in said else ""
        if "scripts are no longer supported" in said:
            hint = "; look for a parquet version of it on the hub"
        raise UserError(f"{name}: {said[:400]}{hint}") from None


def downloaded(file: DataFile, cache_dir: str | None = None) -> DataFile:
    """The file in the hub's cache; a local file as it is."""
    return DataFile(file.path, local_copy(file, cache_dir), file.size)


def local_copy(file: DataFile, cache_dir: str | None = None) -> str:
    """Path of the file on this machine, fetched once from the hub: for formats that cannot be entered in the middle."""
    if not file.url.startswith("hf://"):
        return file.url
    filesystem, path = url_to_fs(file.url)
    resolved = filesystem.resolve_path(path)

    def fetch() -> str:
        return hf_hub_download(
            resolved.repo_id,
            resolved.path_in_repo,
            repo_type="dataset",
            revision=resolved.revision,
            cache_dir=cache_dir,
        )

    return patiently(fetch, file.path)


def repository_card(repository: Repository) -> list[DataFile]:
    """The README.md that tells which files belong to which split; a mirror needs it. Empty where there is none."""
    first = next(file for files in repository.splits.values() for file in files)
    root = first.url.removesuffix(first.path).rstrip("/")

    def found() -> list[DataFile]:
        filesystem, path = url_to_fs(f"{root}/README.md")
        if not filesystem.exists(path):
            return []
        return [DataFile("README.md", f"{root}/README.md", filesystem.info(path)["size"])]

    return patiently(found, f"{repository.name}: README.md")


def open_file(url: str) -> Any:
    """A binary file, local or on the hub."""
    filesystem, path = url_to_fs(url)
    return filesystem.open(path, "rb")


def readable(call: Any, file: DataFile, kind: str) -> Any:
    """`call()`, with a decoder's error turned into one that names the file."""
    try:
        return call()
    except (pa.ArrowException, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{file.path}: broken {kind} file ({' '.join(str(error).split())[:200]})") from None


def read_slice(file: DataFile, unit: Unit) -> bytes:
    """The whole lines whose first byte lies in the slice."""
    with open_file(file.url) as opened:
        start = unit.start
        if start:  # a line that begins before the slice belongs to the one before
            opened.seek(start - 1)
            start += len(opened.readline()) - 1
        if start >= unit.stop:
            return b""
        opened.seek(start)
        data: bytes = opened.read(unit.stop - start)
        return data if data.endswith(b"\n") else data + opened.readline()


def parse_json(data: bytes, file: DataFile, first: str) -> Iterator[dict[str, Any]]:
    """The rows of JSON lines, or of one JSON array; `first` says where `data` begins, for messages."""
    if data.lstrip()[:1] == b"[" and file.format.startswith(".json") and not file.format.startswith(".jsonl"):
        lines: Iterable[bytes] = [json.dumps(row).encode() for row in json.loads(data)]
    else:
        lines = data.split(b"\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (UnicodeDecodeError, ValueError) as error:
            raise UserError(f"{file.path}: {first} {number} is not JSON in UTF-8 ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{file.path}: {first} {number}: expected an object {{...}}, got {str(row)[:60]!r}")
        yield row
