"""Windows of large files in the cache: damaged or deleted in the middle of a run, it reads the same rows."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import article, run_script
from transformers import PreTrainedTokenizerBase

from miniqwen.config.data import DataFlags
from miniqwen.data.repositories import resolve
from miniqwen.data.sources import Source
from miniqwen.data.tokenizing import write_token_cache
from miniqwen.data.windows import TextWindows
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import load_tokenizer

TEXTS = [article(number) for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(model)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """Of one gzipped file that is cut into many windows."""
    monkeypatch.setattr("miniqwen.data.windows.LARGE_BYTES", 300)
    monkeypatch.setattr("miniqwen.data.cuts.WINDOW_BYTES", 1000)
    file = tmp_path / "notes.jsonl.gz"
    file.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()))
    flags = DataFlags(dataset_name=str(file), cache_dir=str(tmp_path / "cache"))
    return resolve(str(file), flags).source("train", ("text",))


def rows(windows: TextWindows) -> list[str]:
    return [text for window in range(len(windows.starts(0)) - 1) for text in windows.read(0, window)]


def cut(source: Source, folder: Path) -> Path:
    """The folder of windows, which are made now."""
    windows = TextWindows(source)
    assert rows(windows) == TEXTS
    assert len(windows.starts(0)) > 5
    (found,) = (path for path in (folder / "cache/miniqwen_windows").iterdir() if path.suffix != ".lock")
    return found


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def replaced_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("x")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": lambda folder: os.truncate(folder / "windows.bin", 100),
    "emptied": lambda folder: os.truncate(folder / "windows.bin", 0),
    "a byte flipped": lambda folder: flipped(folder / "windows.bin"),
    "a byte of the index flipped": lambda folder: flipped(folder / "index.json"),
    "no index": lambda folder: (folder / "index.json").unlink(),
    "no windows": lambda folder: (folder / "windows.bin").unlink(),
    "an index of an older version": lambda folder: os.truncate(folder / "index.json", 0),
    "a file in its place": replaced_by_a_file,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_windows_are_told_and_cut_anew(
    damage: str, source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cut(source, tmp_path)
    DAMAGES[damage](folder)
    assert rows(TextWindows(source)) == TEXTS
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"{folder}: damaged (")
    assert told.endswith("): cut anew")
    assert rows(TextWindows(source)) == TEXTS
    assert capsys.readouterr().err == ""


def test_windows_that_are_deleted_or_damaged_while_a_run_reads_them_are_made_again(
    source: Source, tmp_path: Path
) -> None:
    folder = cut(source, tmp_path)
    running = TextWindows(source)
    first = running.read(0, 0)
    shutil.rmtree(folder)
    assert [
        *first,
        *(text for window in range(1, len(running.starts(0)) - 1) for text in running.read(0, window)),
    ] == TEXTS
    flipped(folder / "windows.bin")
    assert rows(running) == TEXTS


def test_several_readers_find_the_damage_and_one_mends_it(source: Source, tmp_path: Path) -> None:
    folder = cut(source, tmp_path)
    readers = [TextWindows(source) for _ in range(4)]
    for reader in readers:
        reader.starts(0)
    DAMAGES["a byte flipped"](folder)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda reader=reader: found.append(rows(reader))) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [TEXTS] * 4


def test_a_cache_that_cannot_be_written_is_one_screen(source: Source, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(UserError, match="--cache_dir chooses another place"):
        TextWindows(source).starts(0)


def test_the_command_lists_what_is_cached_finds_what_is_damaged_and_makes_room(
    source: Source, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    folder = cut(source, tmp_path)
    write_token_cache(tmp_path / "tokens", source, tokenizer, lambda *_: None)
    where = ["-m", "miniqwen.caches", tmp_path / "tokens", "--cache_dir", tmp_path / "cache"]

    def told(*more: object) -> tuple[int, str]:
        done = run_script(*where, *more)
        assert done.stderr == ""
        return done.returncode, done.stdout

    status, listed = told()
    assert status == 0
    windows, tokens, total = listed.splitlines()
    assert windows.startswith(f"{folder}: 0.0 MB, of ")
    assert windows.endswith("notes.jsonl.gz, column text, used today, whole")
    assert tokens.startswith(f"{tmp_path / 'tokens/notes.jsonl.gz'}: ")
    assert total.startswith("2 caches, ")
    flipped(folder / "windows.bin")
    flipped(tmp_path / "tokens/notes.jsonl.gz/00000.tokens")
    assert told() == (0, listed), "lengths say nothing"
    status, verified = told("--verify")
    assert status == 1
    assert verified.count("DAMAGED: ") == 2
    assert "00000.tokens is not what was written" in verified
    assert told("--prune", "30")[1].count("stays: used 0.0 days ago") == 1
    (half := folder.with_suffix(".tmp")).mkdir()
    status, pruned = told("--prune", "30", "--verify")
    assert (status, pruned.count("  deleted")) == (1, 2), "the windows and what was half made; the tokens stay"
    assert not folder.exists()
    assert not half.exists()
    assert rows(TextWindows(source)) == TEXTS
    old = time.time() - 31 * 86_400
    os.utime(folder, (old, old))
    assert "not used for 31 days, whole\n  deleted" in told("--prune", "30")[1]
    assert rows(TextWindows(source)) == TEXTS
    status, refused = run_script(*where[:2], tmp_path / "nowhere").returncode, ""
    assert status == 2, refused
