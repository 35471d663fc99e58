"""Files are there whole or not at all, and what a killed process tore is cut off."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from miniqwen.files import (
    cut_torn_line,
    encodable,
    file_hash,
    read_json,
    read_yaml,
    whole_lines,
    write_bytes,
    write_json,
    written_whole,
)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_json(file, {"é": 1})
    with pytest.raises(TypeError), written_whole(file) as opened:
        opened.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert file.read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_synced_before_it_gets_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").resolve()
        happened.append(f"{path.name} {(tmp_path / 'a').exists()}")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_bytes(tmp_path / "a", b"x")
    assert happened == [".a.tmp False", f"{tmp_path.name} True"]


def test_a_torn_last_line_is_cut_and_whole_ones_stay(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    cut_torn_line(file)
    assert not file.exists()
    for written, whole in ((b"", b""), (b"1\n2\n", b"1\n2\n"), (b"1\n2", b"1\n"), (b"torn", b"")):
        file.write_bytes(written)
        assert whole_lines(file) == whole
        cut_torn_line(file)
        assert file.read_bytes() == whole


def test_a_hash_is_the_files_sha_256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_text_that_no_file_can_hold_gets_question_marks_and_any_other_stays_itself() -> None:
    text = "a\u00e9中😀"
    assert encodable(text) is text
    assert encodable("a\ud800b") == "a?b"


def test_what_is_no_file_is_not_waited_for_and_what_is_no_json_is_one_kind_of_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "endless", "loop", "folder", "missing"):
        for read in (read_json, whole_lines, file_hash):
            with pytest.raises(OSError, match=name):
                read(tmp_path / name)
    for number, data in enumerate((b"", b"{", b"\xff", b"[" * 100_000, b"1" * 10_000)):
        (tmp_path / f"{number}").write_bytes(data)
        with pytest.raises(ValueError, match=r"\w"):
            read_json(tmp_path / f"{number}")


def test_yaml_is_plain_values_or_one_kind_of_error(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    deep = (b"[" * 200_000, b"{a: " * 100_000, b"- " * 100_000, b"&a [*a" + b"[" * 101)
    odd = (b"!!python/object/apply:os.getcwd []", b"\xff", b"a: [", b"a: *b", b"? [a]\n: 1", b"{[a]: 1}", b"\0")
    for data in (*deep, *odd, b"x: 2026-01-01T00:00:00+99:99", b"!!int x", b"!!timestamp 1", b"a: 1\n---\nb: 2"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=r"\w"):
            read_yaml(file)
    file.write_text("a: [1, {b: no}]\nc: é\n", encoding="utf-8")
    assert read_yaml(file) == {"a": [1, {"b": False}], "c": "é"}
    file.write_bytes(b"")
    assert read_yaml(file) is None
