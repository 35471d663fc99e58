"""Files as people have them: each gives the right rows, or an error with the right words.

One table, by format, encoding, column, split, size, name and damage. A case is what lies in a folder (or a file, or
what a pattern fits), and what comes of asking for the column `text` of its split `train`.
"""

# ruff: noqa: E501  # a case a line

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniqwen.config.data import DataFlags
from miniqwen.data.repositories import resolve
from miniqwen.data.windows import ReadableUnits, TextWindows
from miniqwen.errors import UserError

ROWS = ["one", "twö 中 😀", 'three, "quoted"', "four\nlines"]
LINES = ["one", "twö 中 😀", 'three, "quoted"']  # what a file of lines can hold
Made = Mapping[str, bytes]


def jsonl(rows: list[Any], column: str = "text") -> bytes:
    return "".join(json.dumps({column: row}, ensure_ascii=False) + "\n" for row in rows).encode()


def array(rows: list[Any]) -> bytes:
    return json.dumps([{"text": row} for row in rows]).encode()


def csv_file(rows: list[Any], separator: str = ",", more: str = "id") -> bytes:
    quoted = ('"' + str(row).replace('"', '""') + '"' for row in rows)
    return "".join([f"{more}{separator}text\n", *(f"{n}{separator}{row}\n" for n, row in enumerate(quoted))]).encode()


def txt(rows: list[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def parquet(rows: Any, column: str = "text", **options: Any) -> bytes:
    out = io.BytesIO()
    table = rows if isinstance(rows, pa.Table) else pa.table({column: rows})
    pq.write_table(table, out, **options)
    return out.getvalue()


def arrow(rows: list[Any], file: bool = False, column: str = "text") -> bytes:
    out = io.BytesIO()
    table = pa.table({column: rows})
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return out.getvalue()


def zst(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def utf_16(data: bytes, mark: bytes = b"") -> bytes:
    return mark + data.decode().encode("utf-16-le")


def card(text: str) -> bytes:
    return f"---\n{text}\n---\n# notes\n".encode()


def spelled(*columns: str) -> pa.Table:
    """A table whose columns have these names, also where two are the same."""
    return pa.Table.from_arrays([pa.array(ROWS) for _ in columns], names=list(columns))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zst,
}
LONG = "word " * 800_000  # 4 MB

# {case: (what lies there, the right rows or the error's words)}
FOLDERS: dict[str, tuple[Made, list[Any] | str]] = {
    # formats
    "jsonl": ({"a.jsonl": jsonl(ROWS)}, ROWS),
    "ndjson": ({"a.ndjson": jsonl(ROWS)}, ROWS),
    "json of lines": ({"a.json": jsonl(ROWS)}, ROWS),
    "json of one array": ({"a.json": array(ROWS)}, ROWS),
    "json, indented": ({"a.json": json.dumps([{"text": row} for row in ROWS], indent=2).encode()}, ROWS),
    "csv": ({"a.csv": csv_file(ROWS)}, ROWS),
    "tsv": ({"a.tsv": csv_file(ROWS, "\t")}, ROWS),
    "txt": ({"a.txt": txt(LINES)}, LINES),
    "parquet": ({"a.parquet": parquet(ROWS)}, ROWS),
    "arrow stream": ({"a.arrow": arrow(ROWS)}, ROWS),
    "arrow file": ({"a.arrow": arrow(ROWS, file=True)}, ROWS),
    "saved by datasets": (
        {"data-00000-of-00001.arrow": arrow(ROWS), "state.json": b"{}", "dataset_info.json": b"{}"}, ROWS
    ),
    **{f"jsonl.{end}": ({f"a.jsonl.{end}": pack(jsonl(ROWS))}, ROWS) for end, pack in PACKED.items()},
    **{f"ndjson.{end}": ({f"a.ndjson.{end}": pack(jsonl(ROWS))}, ROWS) for end, pack in PACKED.items()},
    **{f"json.{end}": ({f"a.json.{end}": pack(array(ROWS))}, ROWS) for end, pack in PACKED.items()},
    **{f"csv.{end}": ({f"a.csv.{end}": pack(csv_file(ROWS))}, ROWS) for end, pack in PACKED.items()},
    **{f"tsv.{end}": ({f"a.tsv.{end}": pack(csv_file(ROWS, chr(9)))}, ROWS) for end, pack in PACKED.items()},
    **{f"txt.{end}": ({f"a.txt.{end}": pack(txt(LINES))}, LINES) for end, pack in PACKED.items()},
    "two gzip members": ({"a.jsonl.gz": gzip.compress(jsonl(ROWS)) + gzip.compress(jsonl(ROWS))}, ROWS * 2),
    "two zstd frames": ({"a.jsonl.zst": zst(jsonl(ROWS)) + zst(jsonl(ROWS))}, ROWS * 2),
    "two bz2 streams": ({"a.jsonl.bz2": bz2.compress(jsonl(ROWS)) + bz2.compress(jsonl(ROWS))}, ROWS * 2),
    # encodings
    **{f"a mark of UTF-8, {end}": ({f"a.{end}": codecs.BOM_UTF8 + data}, ROWS) for end, data in (
        ("jsonl", jsonl(ROWS)), ("json", array(ROWS)), ("csv", csv_file(ROWS)), ("tsv", csv_file(ROWS, "\t")),
        ("ndjson", jsonl(ROWS)))},
    "a mark of UTF-8, txt": ({"a.txt": codecs.BOM_UTF8 + txt(LINES)}, LINES),
    "a mark of UTF-8, txt.gz": ({"a.txt.gz": gzip.compress(codecs.BOM_UTF8 + txt(LINES))}, LINES),
    "a mark of UTF-8 before the only column": ({"a.csv": codecs.BOM_UTF8 + b"text\none\n"}, ["one"]),
    **{f"UTF-16, {end}": ({f"a.{end}": utf_16(data, codecs.BOM_UTF16_LE)}, r"is in UTF-16.*iconv -f utf-16") for end, data in (
        ("jsonl", jsonl(ROWS)), ("json", array(ROWS)), ("csv", csv_file(ROWS)), ("txt", txt(LINES)))},
    "UTF-16 of the other order": ({"a.txt": codecs.BOM_UTF16_BE + "one\n".encode("utf-16-be")}, "is in UTF-16"),
    "UTF-16 without a mark": ({"a.txt": utf_16(txt(LINES))}, "is in UTF-16"),
    "UTF-16 without a mark, jsonl": ({"a.jsonl": utf_16(jsonl(ROWS))}, "is in UTF-16"),
    "UTF-16, gzipped": ({"a.csv.gz": gzip.compress(utf_16(csv_file(ROWS), codecs.BOM_UTF16_LE))}, "is in UTF-16"),
    "latin-1, txt": ({"a.txt": "one\nä\n".encode("latin-1")}, r"a\.txt: byte 0, line 1 is not text in UTF-8"),
    "latin-1, jsonl": ({"a.jsonl": b'{"text": "one"}\n{"text": "\xe4"}\n'}, r"a\.jsonl: byte 0, line 1 is not JSON in UTF-8"),
    "latin-1, csv": ({"a.csv": "text\none\nä\n".encode("latin-1")}, r"a\.csv: row 1 is not text in UTF-8"),
    "latin-1, json": ({"a.json": b'[{"text": "\xe4"}]'}, r"a\.json: is not JSON in UTF-8"),
    **{f"UTF-32, {end}": ({f"a.{end}": data.decode().encode("utf-32")}, r"is in UTF-32.*iconv -f utf-32") for end, data in (
        ("jsonl", jsonl(ROWS)), ("json", array(ROWS)), ("csv", csv_file(ROWS)), ("txt", txt(LINES)))},
    "latin-1 in another column": ({"a.csv": "id,text\nä,one\n".encode("latin-1")}, ["one"]),
    "a zero in a line": ({"a.txt": b"one\0two\nthree\n"}, ["one\0two", "three"]),
    "a zero in a value": ({"a.csv": b"text\none\0two\n"}, ["one\0two"]),
    "lines of Windows, txt": ({"a.txt": b"one\r\ntwo\r\n"}, ["one", "two"]),
    "lines of Windows, jsonl": ({"a.jsonl": jsonl(ROWS).replace(b"\n", b"\r\n")}, ROWS),
    "lines of Windows, csv": ({"a.csv": b"id,text\r\n1,one\r\n2,two\r\n"}, ["one", "two"]),
    "lines of old Macs, csv": ({"a.csv": b"id,text\r1,one\r2,two\r"}, ["one", "two"]),
    "other breaks of lines stay text": ({"a.jsonl": jsonl(["a\u2028b\u0085c\x0bd"])}, ["a\u2028b\u0085c\x0bd"]),
    "other breaks of lines stay text, txt": ({"a.txt": txt(["a\u2028b\u0085c"])}, ["a\u2028b\u0085c"]),
    "other breaks of lines stay text, csv": ({"a.csv": csv_file(["a\u2028b\u0085c"])}, ["a\u2028b\u0085c"]),
    # columns
    "large strings": ({"a.parquet": parquet(pa.array(ROWS, pa.large_string()))}, ROWS),
    "views of strings": ({"a.arrow": arrow(pa.array(ROWS, pa.string_view()))}, ROWS),  # type: ignore[arg-type]
    "a dictionary": ({"a.parquet": parquet(pa.array(ROWS).dictionary_encode())}, ROWS),
    "nulls": ({"a.parquet": parquet(["one", None, "two"])}, ["one", None, "two"]),
    "nulls of JSON": ({"a.jsonl": jsonl(["one", None])}, ["one", None]),
    "numbers stay what they are": ({"a.jsonl": jsonl([1, 2.5, True])}, [1, 2.5, True]),
    "lists stay what they are": ({"a.parquet": parquet([["a"], ["b", "c"]])}, [["a"], ["b", "c"]]),
    "numbers of a csv are texts": ({"a.csv": b"text\n007\n1e5\n"}, ["007", "1e5"]),
    "empty values": ({"a.csv": b"id,text\n1,\n2,\"\"\n"}, ["", ""]),
    "a space in a column's name": ({"a.csv": b"id, text\n1,one\n"}, r"no column text; its columns are id,  text"),
    "columns in another order": ({"a.csv": b"text,id\none,1\n", "b.csv": b"id,text\n2,two\n"}, ["one", "two"]),
    "a column more": ({"a.jsonl": b'{"text": "one", "b": 1}\n{"b": [2], "text": "two"}\n'}, ["one", "two"]),
    "a row without the column": ({"a.jsonl": b'{"text": "one"}\n{"b": 1}\n'}, ["one", None]),
    "the column from row 300 on": ({"a.jsonl": b'{"b": 1}\n' * 300 + b'{"text": "x"}\n'}, [None] * 300 + ["x"]),
    "no column, jsonl": ({"a.jsonl": jsonl(ROWS, "content")}, "no column text; its columns are content"),
    "no column, json": ({"a.json": b'[{"content": "x"}]'}, "no column text; its columns are content"),
    "no column, csv": ({"a.csv": b"content\nx\n"}, "no column text; its columns are content"),
    "no column, parquet": ({"a.parquet": parquet(ROWS, "content")}, "no column text; its columns are content"),
    "no column, arrow": ({"a.arrow": arrow(ROWS, column="content")}, "no column text; its columns are content"),
    "no column in the second shard": (
        {"a.parquet": parquet(ROWS), "b.parquet": parquet(ROWS, "content")}, r"b\.parquet has no column text"
    ),
    "two columns of one name, parquet": ({"a.parquet": parquet(spelled("text", "text"))}, "2 columns of the name text"),
    "two columns of one name, csv": ({"a.csv": b"text,text\na,b\n"}, "2 columns of the name text"),
    "two other columns of one name": ({"a.csv": b"text,b,b\none,1,2\n"}, ["one"]),
    "a column of another case": ({"a.jsonl": jsonl(ROWS, "Text")}, "no column text; its columns are Text"),
    # splits
    "words of splits": ({"train.jsonl": jsonl(["a"]), "test.jsonl": jsonl(["b"]), "dev.jsonl": jsonl(["c"])}, ["a"]),
    "folders of splits": ({"train/x.jsonl": jsonl(["a"]), "validation/y.jsonl": jsonl(["b"])}, ["a"]),
    "one name with a split's word": (
        {"train.jsonl": jsonl(["a"]), "notes.jsonl": jsonl(["b"])}, r"1 files would not be read.*: notes\.jsonl; rename"
    ),
    "only test": ({"test.jsonl": jsonl(["a"]), "notes.jsonl": jsonl(["b"])}, r"would not be read.*notes\.jsonl"),
    "the rarer of two formats": (
        {"a.jsonl": jsonl(["a"]), "b.jsonl": jsonl(["b"]), "c.csv": csv_file(["c"])}, r"would not be read.*c\.csv"
    ),
    "a format in a folder below": (
        {"a.txt": txt(["a"]), "b.txt": txt(["b"]), "x/y/c.parquet": parquet(["c"])}, r"would not be read.*x/y/c\.parquet"
    ),
    "files of other kinds": ({"a.jsonl": jsonl(["a"]), "x.pdf": b"%PDF", "LICENSE": b"x", "z.py": b"x"}, ["a"]),
    "hidden files": ({"a.jsonl": jsonl(["a"]), ".b.jsonl": jsonl(["b"]), ".x/c.csv": csv_file(["c"])}, ["a"]),
    "a card that names files": (
        {"README.md": card("configs:\n- config_name: default\n  data_files: a.jsonl"), "a.jsonl": jsonl(["a"]),
         "b.jsonl": jsonl(["b"])}, ["a"]
    ),
    "a card without files": ({"README.md": card("license: mit"), "a.jsonl": jsonl(["a"])}, ["a"]),
    "a card that is no YAML": ({"README.md": card("a: [b"), "a.jsonl": jsonl(["a"])}, r"card \(README\.md\) is no YAML"),
    "a card of an odd kind": ({"README.md": card("configs: 3"), "a.jsonl": jsonl(["a"])}, r"\w"),
    "a card that names no file there": (
        {"README.md": card("configs:\n- config_name: default\n  data_files: no.jsonl"), "a.jsonl": jsonl(["a"])}, r"no\.jsonl"
    ),
    "a card's separator": (
        {"README.md": card("configs:\n- config_name: default\n  data_files: a.csv\n  sep: ';'"),
         "a.csv": csv_file(ROWS, ";")}, ROWS
    ),
    "a card's delimiter": (
        {"README.md": card('configs:\n- config_name: default\n  data_files: a.csv\n  delimiter: "|"'),
         "a.csv": csv_file(ROWS, "|")}, ROWS
    ),
    "a card's long separator": (
        {"README.md": card('configs:\n- config_name: default\n  data_files: a.csv\n  sep: "||"'), "a.csv": csv_file(ROWS, "|")},
        r"separated by '\|\|', and one character"
    ),
    "a card's other settings": (
        {"README.md": card("configs:\n- config_name: default\n  data_files: a.csv\n  skiprows: 3"),
         "a.csv": csv_file(ROWS)}, r"its card sets skiprows: 3 .* not followed here"
    ),
    "two configurations": (
        {"README.md": card("configs:\n- config_name: x\n  data_files: a.jsonl\n- config_name: y\n  data_files: b.jsonl"),
         "a.jsonl": jsonl(["a"]), "b.jsonl": jsonl(["b"])}, "--dataset_config_name"
    ),
    "no file at all": ({"LICENSE": b"x"}, "[Nn]o .*data files"),
    # sizes
    "an empty file, jsonl": ({"a.jsonl": b""}, []),
    "an empty file, txt": ({"a.txt": b""}, []),
    "an empty file, csv": ({"a.csv": b""}, "no column text; it has no columns"),
    "an empty file, parquet": ({"a.parquet": b""}, r"broken \.parquet"),
    "an empty file, arrow": ({"a.arrow": b""}, r"broken \.arrow"),
    "an empty file, gz": ({"a.jsonl.gz": b""}, []),
    "only a header": ({"a.csv": b"id,text\n"}, []),
    "an empty array": ({"a.json": b"[]"}, []),
    "no rows": ({"a.parquet": parquet(pa.array([], pa.string()))}, []),
    "one row": ({"a.jsonl": jsonl(["one"])}, ["one"]),
    "no break at the end, jsonl": ({"a.jsonl": jsonl(ROWS).rstrip()}, ROWS),
    "no break at the end, txt": ({"a.txt": b"one\ntwo"}, ["one", "two"]),
    "no break at the end, csv": ({"a.csv": b"text\none"}, ["one"]),
    "empty lines, jsonl": ({"a.jsonl": b"\n\n" + jsonl(["one"]) + b"\n \n" + jsonl(["two"])}, ["one", "two"]),
    "empty lines, csv": ({"a.csv": b"id,text\n\n1,one\n\n"}, ["one"]),
    "empty lines, txt": ({"a.txt": b"one\n\ntwo\n"}, ["one", "", "two"]),
    "a long row, csv": ({"a.csv": csv_file([LONG, "two"])}, [LONG, "two"]),
    "a long row, jsonl": ({"a.jsonl": jsonl([LONG, "two"])}, [LONG, "two"]),
    "a long row, json": ({"a.json": array([LONG, "two"])}, [LONG, "two"]),
    "a long row, parquet": ({"a.parquet": parquet([LONG, "two"])}, [LONG, "two"]),
    "a long row, zst": ({"a.jsonl.zst": zst(jsonl([LONG, "two"]))}, [LONG, "two"]),
    "a long line": ({"a.txt": LONG.encode()}, [LONG]),
    "many rows": ({"a.csv": csv_file(list(range(1000)))}, [str(number) for number in range(1000)]),
    "many row groups": ({"a.parquet": parquet([str(n) for n in range(100)], row_group_size=7)}, [str(n) for n in range(100)]),
    # names
    "a space": ({"my notes.jsonl": jsonl(["a"])}, ["a"]),
    "letters of all kinds": ({"名前 é.jsonl": jsonl(["a"])}, ["a"]),
    "signs": ({"a#b%20c&d.jsonl": jsonl(["a"])}, ["a"]),
    "several endings": ({"a.b.c.jsonl": jsonl(["a"])}, ["a"]),
    # damage
    "cut gzip": ({"a.jsonl.gz": gzip.compress(jsonl(ROWS * 50))[:-20]}, r"broken \.jsonl\.gz"),
    "cut zstd": ({"a.jsonl.zst": zst(jsonl(ROWS * 50))[:-5]}, r"broken \.jsonl\.zst"),
    "cut bz2": ({"a.jsonl.bz2": bz2.compress(jsonl(ROWS * 50))[:-5]}, r"broken \.jsonl\.bz2"),
    "cut xz": ({"a.jsonl.xz": lzma.compress(jsonl(ROWS * 50))[:-5]}, r"broken \.jsonl\.xz"),
    "cut parquet": ({"a.parquet": parquet(ROWS)[:-9]}, r"broken \.parquet"),
    "arrow, cut between two batches": ({"a.arrow": arrow(ROWS)[:-8]}, "the mark at the end of an Arrow stream is missing"),
    "arrow, cut in a file": ({"a.arrow": arrow(ROWS, file=True)[:-8]}, r"broken \.arrow"),
    "no arrow at all": ({"a.arrow": b"x"}, "the mark at the end"),
    "cut arrow": ({"a.arrow": arrow(ROWS)[:60]}, "the mark at the end"),
    **{f"no {end} at all": ({f"a.jsonl.{end}": jsonl(ROWS)}, rf"broken \.jsonl\.{end}") for end in PACKED},
    "no parquet at all": ({"a.parquet": jsonl(ROWS)}, r"broken \.parquet"),
    "a page of a web server": ({"a.jsonl": b"<!DOCTYPE html><html></html>\n"}, r"a\.jsonl: byte 0, line 0 is not JSON"),
    "a pointer of Git LFS": ({"a.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"}, "line 0 is not JSON"),
    "a pointer in a parquet's place": ({"a.parquet": b"version https://git-lfs.github.com/spec/v1\n"}, r"broken \.parquet"),
    "half a last line": ({"a.jsonl": jsonl(["a"]) + b'{"text": "b'}, r"a\.jsonl: byte 0, line 1 is not JSON"),
    "a cut array": ({"a.json": array(ROWS)[:-3]}, r"a\.json: is not JSON"),
    "rows that are lists": ({"a.jsonl": b'["one"]\n'}, r"line 0: expected an object"),
    "rows that are texts": ({"a.json": b'["one"]'}, r"row 0: expected an object"),
    "an object of everything": ({"a.json": b'{"text": ["one", "two"]}'}, [["one", "two"]]),
    "JSON without end": ({"a.jsonl": b"[" * 100_000 + b"\n"}, "is not JSON"),
    "a quote that never ends": ({"a.csv": b'id,text\n1,one\n2,"two\n3,three\n4,four\n'}, r"near row 1, up to line 5: unexpected end of data; is a quote not closed"),
    "a quote that never ends, in the first row": ({"a.csv": b'text\n"one\ntwo\n'}, "near row 0, up to line 3: unexpected end"),
    "a quote that a later one ends": ({"a.csv": b'id,text\n1,"one\n2,"two"\n3,three\n'}, "is a quote not closed, or not doubled"),
    "quotes that are not doubled": ({"a.csv": b'id,text\n1,"say "x" now"\n'}, "is a quote not closed, or not doubled"),
    "quotes within a value": ({"a.csv": b'id,text\n1,5" wide\n2,say "x"\n'}, ['5" wide', 'say "x"']),
    "a value too many": ({"a.csv": b"id,text\n1,one\n2,two,three\n"}, r"row 1 has 3 values, and the header names 2"),
    "a value too few": ({"a.csv": b"id,text\n1,one\n2\n"}, r"row 1 has 1 values, and the header names 2"),
    "breaks of lines in quotes": ({"a.csv": b'id,text\n1,"a\nb\r\nc"\n'}, ["a\nb\r\nc"]),
    "semicolons without a card": ({"a.csv": csv_file(ROWS, ";")}, r"no column text; its columns are id;text"),
}  # fmt: skip


def lie(folder: Path, made: Made) -> Path:
    folder.mkdir()
    for name, data in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read(name: object, **flags: Any) -> list[Any]:
    """All rows of the column, unit by unit and window by window, as training reads them."""
    repository = resolve(str(name), DataFlags(dataset_name=str(name), **flags))
    windows = TextWindows(repository.source("train", ("text",)))
    return [
        row
        for unit in range(len(windows.units()))
        for window in range(len(windows.starts(unit)) - 1)
        for row in windows.read(unit, window)
    ]


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_gives_the_right_rows_or_the_right_words(case: str, tmp_path: Path) -> None:
    made, right = FOLDERS[case]
    folder = lie(tmp_path / "notes", made)
    if isinstance(right, list):
        assert read(folder) == right
        return
    with pytest.raises(UserError) as refused:
        read(folder)
    assert re.search(right, str(refused.value)), refused.value


@pytest.mark.parametrize(
    "case", [case for case, (made, _) in FOLDERS.items() if len(made) == 1 and "README" not in made]
)
def test_a_file_gives_what_a_folder_of_it_gives(case: str, tmp_path: Path) -> None:
    made, right = FOLDERS[case]
    (name,) = made
    folder = lie(tmp_path / "notes", made)
    if not isinstance(right, list):
        with pytest.raises(UserError):
            read(folder / name)
    else:
        assert read(folder / name) == right
        assert read(str(folder / "*")) == right


def test_the_table_is_as_long_as_it_was_meant_to_be() -> None:
    assert len(FOLDERS) >= 150
    assert sum(isinstance(right, str) for _, right in FOLDERS.values()) >= 50


@pytest.mark.parametrize("name", ["notes [1]", "notes*", "a?b", "[abc]", "notes {x}"])
def test_a_folder_may_have_the_characters_of_a_pattern_in_its_name(name: str, tmp_path: Path) -> None:
    folder = lie(tmp_path / name, {"train.jsonl": jsonl(["a"]), "test.jsonl": jsonl(["b"])})
    lie(tmp_path / "notesx", {"train.jsonl": jsonl(["another"])})
    assert read(folder) == ["a"]
    assert read(folder / "train.jsonl") == ["a"]
    found = resolve(str(folder), DataFlags(dataset_name=str(folder)))
    assert [file.url for files in found.splits.values() for file in files] == [
        str(folder / "train.jsonl"), str(folder / "test.jsonl")
    ]  # fmt: skip


def test_the_configuration_that_was_asked_for_is_read(tmp_path: Path) -> None:
    configs = (
        "configs:\n- config_name: x\n  default: true\n  data_files: a.jsonl\n- config_name: y\n  data_files: b.jsonl"
    )
    folder = lie(tmp_path / "notes", {"README.md": card(configs), "a.jsonl": jsonl(["a"]), "b.jsonl": jsonl(["b"])})
    assert read(folder) == ["a"]
    assert read(folder, dataset_config_name="y") == ["b"]
    found = resolve(str(folder), DataFlags(dataset_name=str(folder), dataset_config_name="y"))
    assert found.config_name == "y"
    assert found.note == f"{folder}: its card leaves out 1 files: a.jsonl"
    with pytest.raises(UserError, match="z"):
        read(folder, dataset_config_name="z")
    with pytest.raises(UserError, match="files have none"):
        read(folder / "a.jsonl", dataset_config_name="y")


def test_a_pattern_is_one_data_set_of_files_in_the_order_of_their_paths(tmp_path: Path) -> None:
    made = {
        "b/2.jsonl": jsonl(["b2"]),
        "a/10.jsonl": jsonl(["a10"]),
        "a/9.csv": csv_file(["a9"]),
        "test.jsonl": jsonl(["t"]),
    }
    folder = lie(tmp_path / "notes", made)
    assert read(folder / "**/*.jsonl") == ["a10", "b2", "t"]
    assert read(folder / "a/*") == ["a10", "a9"]
    assert read(folder / "[ab]/*.jsonl") == ["a10", "b2"]
    found = resolve(str(folder / "*/*.jsonl"), DataFlags(dataset_name="x"))
    assert [file.path for file in found.splits["train"]] == ["a/10.jsonl", "b/2.jsonl"]
    with pytest.raises(UserError, match="there are only folders"):
        read(folder / "?")
    (folder / "c.pdf").write_bytes(b"x")
    with pytest.raises(UserError, match=r"c\.pdf: not a format that can be read"):
        read(folder / "*.*")
    assert DataFlags(dataset_name=str(folder / "*.nothing")).problems() == [
        f"--dataset_name {folder}/*.nothing: no file fits this pattern"
    ]


def test_a_link_is_read_and_a_pipe_or_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_bytes(jsonl(["a"]))
    folder = lie(tmp_path / "notes", {})
    (folder / "a.jsonl").symlink_to(tmp_path / "real.jsonl")
    assert read(folder / "a.jsonl") == ["a"]
    assert read(folder) == ["a"]
    os.mkfifo(folder / "pipe.jsonl")
    with pytest.raises(UserError, match="is no file that can be read"):
        read(folder / "pipe.jsonl")


def test_a_shard_without_the_column_is_passed_over_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lie(tmp_path / "notes", {"a.parquet": parquet(ROWS), "b.parquet": parquet(ROWS, "content")})
    repository = resolve(str(folder), DataFlags(dataset_name=str(folder))).listed(("train",), ("text",), skip_bad=True)
    windows = ReadableUnits(TextWindows(repository.source("train", ("text",))))
    assert [windows.starts(unit)[-1] for unit in range(len(windows.units()))] == [4, 0]
    assert "skipped b.parquet#0 (--on_bad_data skip)" in capsys.readouterr().err


def test_utf_16_is_named_in_whatever_slice_reading_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miniqwen.data.units.SLICE_BYTES", 64)
    folder = lie(tmp_path / "notes", {"a.txt": utf_16(txt(["word " * 5] * 20), codecs.BOM_UTF16_LE)})
    repository = resolve(str(folder), DataFlags(dataset_name=str(folder)))
    windows = TextWindows(repository.source("train", ("text",)))
    assert len(windows.units()) > 10
    refused = 0
    for unit in range(len(windows.units())):
        try:
            assert windows.read(unit, 0) in ([], ["\0"]), "no line begins there, or the end of the last one"
        except UserError as error:
            refused += "is in UTF-16" in str(error)
    assert refused > 10


def test_a_column_that_no_shard_has_is_an_error_also_where_bad_ones_are_passed_over(tmp_path: Path) -> None:
    folder = lie(tmp_path / "notes", {f"{n}.parquet": parquet(ROWS, "content") for n in range(3)})
    with pytest.raises(UserError, match="no column text; its columns are content"):
        resolve(str(folder), DataFlags(dataset_name=str(folder))).listed(("train",), ("text",), skip_bad=True)
