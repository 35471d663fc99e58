"""How rows stand in files: parquet, JSON, CSV and plain text, gzipped or not → batches of columns.

Promises: a file of any size is read in batches of bounded memory (but one JSON array, and one document, are taken
whole); a slice of a file of lines holds exactly the rows that begin in it, so that slices laid end to end are the file;
a broken row is named. Costs: one pass.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from miniqwen.errors import UserError


class BadData(UserError):
    """Bytes that are not what they should be: a broken page, gzip stream, line or text."""


FORMATS = (
    ".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".txt", ".txt.gz",
)  # fmt: skip
SLICED = (".jsonl", ".txt")  # can be entered in the middle
BATCH_ROWS = 256
HEADER_BYTES = 1 << 20  # of a CSV file, at most
LARGEST_ARRAY = 1 << 30  # bytes of a JSON array, which the parser wants whole

Batch = dict[str, list[Any]]


@lru_cache(maxsize=1024)
def format_of(path: str) -> str:
    """One of `FORMATS`; `UserError` for other files."""
    for ending in sorted(FORMATS, key=len, reverse=True):
        if path.endswith(ending):
            return ending
    raise UserError(f"{path}: not a format that can be read; expected {', '.join(FORMATS)}")


def parquet_batches(opened: BinaryIO, metadata: Any, group: int, columns: Sequence[str], what: str) -> Iterator[Batch]:
    """The rows of one row group."""
    with pq.ParquetFile(opened, metadata=metadata, pre_buffer=True, page_checksum_verification=True) as parquet:
        check_columns(parquet.schema_arrow.names, columns, what)
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
            yield {name: batch[name].to_pylist() for name in columns}


def file_batches(
    opened: BinaryIO, file_format: str, columns: Sequence[str], sample_by: str, what: str, first: str = "row"
) -> Iterator[Batch]:
    """The rows of a file that is not parquet, or of a slice of one; `first` says where it begins, for messages.

    Raises `UserError` for a missing column and a broken row.
    """
    if file_format.endswith(".gz"):
        opened = gzip.GzipFile(fileobj=opened)  # type: ignore[assignment]  # it reads like one
    if file_format.startswith(".csv"):
        return csv_batches(opened, columns, what)
    if file_format.startswith(".txt"):
        check_columns(["text"], columns, what)
        rows: Iterator[dict[str, Any]] = text_rows(opened, sample_by, f"{what}: {first}")
    else:
        rows = json_rows(opened, what, first, may_be_array=file_format.startswith(".json") and "l" not in file_format)
    return column_batches(rows, columns, what)


def csv_batches(opened: BinaryIO, columns: Sequence[str], what: str) -> Iterator[Batch]:
    """The rows of a CSV file with a header; texts stay texts: answers "1", "2" must not become numbers."""
    data = io.BufferedReader(opened, HEADER_BYTES)  # type: ignore[type-var]  # only to look ahead
    head = data.peek(HEADER_BYTES).decode("utf-8-sig", "replace")
    check_columns(next(csv.reader(io.StringIO(head, newline="")), []), columns, what)
    # the other columns are not looked at: their types may change from one block to the next
    types = pyarrow.csv.ConvertOptions(
        include_columns=list(columns), column_types={name: pa.string() for name in columns}
    )  # fmt: skip
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    reader = pyarrow.csv.open_csv(pa.PythonFile(data, mode="r"), convert_options=types, parse_options=parsing)
    for batch in reader:
        yield {name: batch[name].to_pylist() for name in columns}


def column_batches(rows: Iterator[dict[str, Any]], columns: Sequence[str], what: str) -> Iterator[Batch]:
    """Rows as columns; a column that no row of the first batch has is missing, one that some have is null in others."""
    checked = False
    while found := list(itertools.islice(rows, BATCH_ROWS)):
        if not checked:
            check_columns(list(dict.fromkeys(name for row in found for name in row)), columns, what)
            checked = True
        yield {name: [row.get(name) for row in found] for name in columns}


def check_columns(there: Sequence[str], wanted: Iterable[str], what: str) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UserError(f"{what} has no column {', '.join(missing)}; its columns are {', '.join(there)}")


def json_rows(opened: BinaryIO, what: str, first: str, may_be_array: bool) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines, or of one JSON array."""
    lines: Iterable[Any] = opened
    if may_be_array:
        head = opened.read(1 << 16)
        if head.lstrip()[:1] == b"[":
            data = head + opened.read(LARGEST_ARRAY)
            if len(data) > LARGEST_ARRAY:
                raise UserError(
                    f"{what}: one JSON array of more than {LARGEST_ARRAY >> 30} GiB, which must be parsed whole; "
                    "write one object a line (.jsonl)"
                )
            lines = _array(data, what)
        else:
            lines = itertools.chain(_with_rest_of_line(head, opened), opened)
    for number, line in enumerate(lines):
        if isinstance(line, bytes) and not line.strip():
            continue
        try:
            row = json.loads(line) if isinstance(line, bytes) else line
        except (UnicodeDecodeError, ValueError) as error:
            raise BadData(f"{what}: {first} {number} is not JSON in UTF-8 ({error})") from None
        if not isinstance(row, dict):
            raise BadData(f"{what}: {first} {number}: expected an object {{...}}, got {str(row)[:60]!r}")
        yield row


def _array(data: bytes, what: str) -> list[Any]:
    try:
        found: list[Any] = json.loads(data)
        return found
    except (UnicodeDecodeError, ValueError) as error:
        raise BadData(f"{what}: is not JSON in UTF-8 ({error})") from None


def _with_rest_of_line(head: bytes, opened: BinaryIO) -> list[bytes]:
    return (head + opened.readline()).splitlines(keepends=True)


def text_rows(opened: Iterable[bytes], sample_by: str, where: str) -> Iterator[dict[str, str]]:
    """Rows of plain text, as the `text` loader of `datasets` makes them: `line`, `paragraph` or `document`.

    A paragraph ends at a blank line; the line break that ends a line or paragraph is left out.
    """
    kept: list[bytes] = []
    for number, line in enumerate(itertools.chain(opened, [None])):
        at_end = line is None or sample_by == "line" or (sample_by == "paragraph" and not line.strip())
        if line is not None and (sample_by != "paragraph" or line.strip()):
            kept.append(line)
        if at_end and kept:
            try:
                text = b"".join(kept).decode("utf-8")
            except UnicodeDecodeError as error:
                raise BadData(f"{where} {number} is not text in UTF-8 ({error})") from None
            yield {"text": text if sample_by == "document" else text.removesuffix("\n").removesuffix("\r")}
            kept = []


def read_slice(opened: BinaryIO, start: int, stop: int, by_paragraph: bool = False) -> bytes:
    """The lines that begin in [start, stop); of paragraphs, all from the first blank line there to the next slice's."""
    start = _first_cut(opened, start, by_paragraph)
    if start >= stop:
        return b""
    opened.seek(start)
    parts = [opened.read(stop - start)]
    if not parts[0].endswith(b"\n"):
        parts.append(opened.readline())
    while by_paragraph and (line := opened.readline()).strip():
        parts.append(line)
    return b"".join(parts)


def _first_cut(opened: BinaryIO, at: int, by_paragraph: bool) -> int:
    """The first byte from `at` on that begins a line, or a blank line."""
    if at == 0:
        return 0
    opened.seek(at - 1)  # a line that begins before the slice belongs to the one before
    at += len(opened.readline()) - 1
    while by_paragraph and (line := opened.readline()).strip():
        at += len(line)
    return at
