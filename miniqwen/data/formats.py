"""How rows stand in files: parquet, Arrow, JSON, CSV and plain text, compressed or not → batches of columns.

Promises: a file of any size is read in batches of bounded memory (but one JSON array, one document and one row are
taken whole); a slice of a file of lines holds exactly the rows that begin in it, so that slices laid end to end are the
file; a broken row is named, and so is an encoding that is not UTF-8. Costs: one pass.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import itertools
import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from miniqwen.errors import UserError


class BadData(UserError):
    """Bytes that are not what they should be: a broken page, gzip stream, line or text."""


KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
PACKED = (".gz", ".zst", ".bz2", ".xz")
FORMATS = (".parquet", ".arrow", *KINDS, *(kind + packed for kind in KINDS for packed in PACKED))
READ = f".parquet, .arrow, {', '.join(KINDS)} (also with {', '.join(PACKED)})"  # for messages
SLICED = (".jsonl", ".ndjson", ".txt")  # can be entered in the middle
BATCH_ROWS = 256
# of encodings other than UTF-8, the longer ones first
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
LARGEST_ARRAY = 1 << 30  # bytes of a JSON array, which the parser wants whole
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow
LARGEST_CELL = 1 << 30  # characters of a value in a CSV file

Batch = dict[str, list[Any]]


@lru_cache(maxsize=1024)
def format_of(path: str) -> str:
    """One of `FORMATS`; `UserError` for other files."""
    for ending in sorted(FORMATS, key=len, reverse=True):
        if path.endswith(ending):
            return ending
    raise UserError(f"{path}: not a format that can be read; expected {READ}")


def is_packed(file_format: str) -> bool:
    """Whether it is compressed as a whole."""
    return file_format.endswith(PACKED)


def parquet_batches(opened: BinaryIO, metadata: Any, group: int, columns: Sequence[str], what: str) -> Iterator[Batch]:
    """The rows of one row group."""
    with pq.ParquetFile(opened, metadata=metadata, pre_buffer=True, page_checksum_verification=True) as parquet:
        check_columns(parquet.schema_arrow.names, columns, what)
        for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=list(columns), use_threads=False):
            yield {name: batch[name].to_pylist() for name in columns}


def file_batches(
    opened: BinaryIO,
    file_format: str,
    columns: Sequence[str],
    sample_by: str,
    what: str,
    separator: str | None = None,
    start: int = 0,
) -> Iterator[Batch]:
    """The rows of a file that is not parquet, or of a slice of one that begins at byte `start`.

    `separator`: of a CSV file's values, where it is none that the file's ending says. Raises `UserError` for a missing
    column and a broken row.
    """
    kind = next(kind for kind in (".arrow", *KINDS) if file_format.removesuffix(_packing(file_format)) == kind)
    if kind == ".arrow":
        return arrow_batches(opened, columns, what)
    data = _in_utf_8(unpacked(opened, file_format), start == 0, what)
    first = f"byte {start}, line" if file_format in SLICED else "row"
    if kind in (".csv", ".tsv"):
        return csv_batches(data, columns, separator or ("\t" if kind == ".tsv" else ","), what)
    if kind == ".txt":
        check_columns(["text"], columns, what)
        rows: Iterator[dict[str, Any]] = text_rows(data, sample_by, f"{what}: {first}")
    else:
        rows = json_rows(data, what, first, may_be_array=kind == ".json")
    return column_batches(rows, columns, what)


def _packing(file_format: str) -> str:
    return next((packed for packed in PACKED if file_format.endswith(packed)), "")


def unpacked(opened: BinaryIO, file_format: str) -> Any:
    """The file's bytes as they were before they were compressed, buffered."""
    packing = _packing(file_format)
    if packing == ".zst":
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(opened, mode="r"), "zstd"))
    ways: dict[str, Any] = {".gz": lambda file: gzip.GzipFile(fileobj=file), ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
    return io.BufferedReader(ways[packing](opened) if packing else opened)


def _in_utf_8(data: Any, at_start: bool, what: str) -> Any:
    """The same without a mark of its encoding; raises `BadData` where that, or zeros among the bytes, say another."""
    head = data.peek(4)[:4]
    other = next((name for mark, name in MARKS if at_start and head.startswith(mark)), None)
    if len(head) == 4 and (not any(head[0::2]) or not any(head[1::2])):
        other = other or "utf-16"  # each second byte is zero, as of plain letters
    if other:
        told = other.upper()
        raise BadData(f"{what}: is in {told}, and UTF-8 is expected (iconv -f {other} -t utf-8 OLD > NEW)")
    if at_start and head.startswith(codecs.BOM_UTF8):
        data.read(len(codecs.BOM_UTF8))
    return data


def arrow_batches(opened: BinaryIO, columns: Sequence[str], what: str) -> Iterator[Batch]:
    """The rows of an Arrow stream, as `datasets` writes them, or of an Arrow file."""
    head = opened.read(6)
    opened.seek(0)
    if head and head != b"ARROW1":
        opened.seek(-min(len(END_OF_STREAM), opened.seek(0, io.SEEK_END)), io.SEEK_END)
        if opened.read() != END_OF_STREAM:  # one that was cut between two batches reads like a shorter one
            raise BadData(
                f"{what}: the mark at the end of an Arrow stream is missing: was it written or copied to its end?"
            )
        opened.seek(0)
    if head == b"ARROW1":
        file = pa.ipc.open_file(opened)
        schema, found = file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        stream = pa.ipc.open_stream(opened)
        schema, found = stream.schema, iter(stream)
    check_columns(schema.names, columns, what)
    for whole in found:
        for start in range(0, whole.num_rows, BATCH_ROWS):
            batch = whole.slice(start, BATCH_ROWS)
            yield {name: batch[name].to_pylist() for name in columns}


def csv_batches(data: Iterable[bytes], columns: Sequence[str], separator: str, what: str) -> Iterator[Batch]:
    """The rows of a CSV file with a header; texts stay texts: answers "1", "2" must not become numbers.

    Empty lines count for nothing, and columns that are not asked for may hold anything. Raises `BadData` for a row of
    another number of values than the header's, and for quotes that are not closed or not doubled: they would hold rows.
    """
    csv.field_size_limit(LARGEST_CELL)
    if len(separator) != 1:
        raise UserError(f"{what}: values are separated by {separator!r}, and one character is expected")
    lines = io.TextIOWrapper(data, "utf-8", errors="surrogateescape", newline="")  # type: ignore[type-var]
    rows = csv.reader(lines, delimiter=separator, strict=True)
    header: list[str] = []
    found: list[list[str]] = []
    number = -1
    try:
        header = next(filter(None, rows), [])
        check_columns(header, columns, what)
        places = [header.index(name) for name in columns]
        for number, row in enumerate(filter(None, rows)):
            if len(row) != len(header):
                raise BadData(f"{what}: row {number} has {len(row)} values, and the header names {len(header)}")
            found.append([row[place] for place in places])
            _check_decoded(found[-1], f"{what}: row {number}")
            if len(found) == BATCH_ROWS:
                yield dict(zip(columns, map(list, zip(*found, strict=True)), strict=True))
                found = []
    except csv.Error as error:
        where = f"near row {number + 1}, up to line {rows.line_num}"
        raise BadData(f'{what}: {where}: {error}; is a quote not closed, or not doubled within quotes ("")?') from None
    if found:
        yield dict(zip(columns, map(list, zip(*found, strict=True)), strict=True))


def _check_decoded(values: Sequence[str], where: str) -> None:
    for value in values:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise BadData(f"{where} is not text in UTF-8 (character {error.start}: {value[:40]!r})") from None


def column_batches(rows: Iterator[dict[str, Any]], columns: Sequence[str], what: str) -> Iterator[Batch]:
    """Rows as columns; a column that no row has is missing, one that some have is null in others."""
    there: dict[str, None] = {}
    while found := list(itertools.islice(rows, BATCH_ROWS)):
        there |= dict.fromkeys(name for row in found for name in row)
        yield {name: [row.get(name) for row in found] for name in columns}
    if there:
        check_columns(list(there), columns, what)


def check_columns(there: Sequence[str], wanted: Iterable[str], what: str) -> None:
    """Raises `BadData` for a column that is not there, or there twice."""
    missing = [name for name in wanted if name not in there]
    if missing:
        named = f"its columns are {', '.join(map(str, there))}" if there else "it has no columns"
        raise BadData(f"{what} has no column {', '.join(missing)}; {named}")
    if twice := [name for name in wanted if there.count(name) > 1]:
        raise BadData(f"{what} has {there.count(twice[0])} columns of the name {twice[0]}")


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
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise BadData(f"{what}: {first} {number} is not JSON in UTF-8 ({error})") from None
        if not isinstance(row, dict):
            raise BadData(f"{what}: {first} {number}: expected an object {{...}}, got {str(row)[:60]!r}")
        yield row


def _array(data: bytes, what: str) -> list[Any]:
    try:
        found: list[Any] = json.loads(data)
        return found
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
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
