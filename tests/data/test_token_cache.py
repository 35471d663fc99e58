"""A token cache that was damaged, in all the ways that copies and disks know, is never trained on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runs import article
from transformers import PreTrainedTokenizerBase

from miniqwen.config.training import TrainConfig
from miniqwen.data.repositories import resolve
from miniqwen.data.sources import Source
from miniqwen.data.token_cache import open_token_cache
from miniqwen.data.tokenizing import write_token_cache
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(model)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Of two files."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for file in range(2):
        rows = [json.dumps({"text": article(10 * file + row)}) + "\n" for row in range(10)]
        (folder / f"train-{file}.jsonl").write_text("".join(rows))
    return resolve(str(folder), TrainConfig(dataset_name=str(folder), task="pretrain")).source("train", ("text",))


def write(root: Path, source: Source, tokenizer: PreTrainedTokenizerBase) -> Path:
    return write_token_cache(root, source, tokenizer, lambda *_: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def halved(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def swapped(file: Path) -> None:
    other = file.with_name(file.name.replace("00000", "00001"))
    data = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)


def unseen(file: Path) -> None:
    """A byte that no length shows."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def overwritten(text: str) -> Callable[[Path], None]:
    def happens(file: Path) -> None:
        file.write_text(text)

    return happens


def counted(file: Path) -> None:
    """A number in the list is another, and it is still a list."""
    text = file.read_text()
    assert "[0, 10" in text
    file.write_text(text.replace("[0, 10", "[0, 11", 1))


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "cut tokens": ("00000.tokens", halved, r"00000\.tokens has [\d,]+ bytes of [\d,]+"),
    "no tokens": ("00001.tokens", Path.unlink, r"00001\.tokens is missing"),
    "empty tokens": ("00000.tokens", lambda file: os.truncate(file, 0), r"has 0 bytes of"),
    "longer tokens": ("00000.tokens", lambda file: os.truncate(file, 99_999), r"has 99,999 bytes of"),
    "cut ends": ("00000.ends.npy", halved, r"00000\.ends\.npy has"),
    "cut sizes": ("00001.bytes.npy", halved, r"00001\.bytes\.npy has"),
    "files of each other": ("00000.tokens", swapped, r"0000[01]\.tokens has"),
    "a pipe": ("00000.tokens", fifo, r"00000\.tokens is missing"),
    "cut list": ("complete.json", halved, "the tokens of notes are damaged"),
    "empty list": ("complete.json", lambda file: os.truncate(file, 0), "the tokens of notes are damaged"),
    "a list of nothing": (
        "complete.json",
        overwritten("{}"),
        "complete.json is not what was written",
    ),
    "a list of another kind": ("complete.json", overwritten("[]"), "complete.json is not what was written"),
    "another number in the list": ("complete.json", counted, "complete.json is not what was written"),
    "cut description": ("made_of.json", halved, "does not say what it was made of"),
    "another description": (
        "made_of.json",
        overwritten("[1]"),
        "does not say what it was made of",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_named_and_made_anew_by_the_command_that_made_it(
    damage: str, source: Source, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "cache", source, tokenizer)
    whole = contents(folder)
    name, happens, told = DAMAGES[damage]
    happens(folder / name)
    with pytest.raises(UserError, match=told) as refused:
        open_token_cache(tmp_path / "cache", source, tokenizer)
    if name == "made_of.json":
        assert "delete the folder and tokenize again" in str(refused.value)
        shutil.rmtree(folder)
    else:
        assert "prepare_datasets.py --tokenize" in str(refused.value)
    write(tmp_path / "cache", source, tokenizer)
    assert contents(folder) == whole
    anew = {line.split(": made anew")[0] for line in capsys.readouterr().err.splitlines()}
    assert len(anew) == (0 if name.endswith(".json") else 2 if damage == "files of each other" else 1)
    rows = open_token_cache(tmp_path / "cache", source, tokenizer).read(0, 0)
    assert [tokenizer.decode(row[:-1]) for row in rows if row is not None] == [article(row) for row in range(10)]


@pytest.mark.parametrize("name", ["00000.tokens", "00001.ends.npy", "00001.bytes.npy", "00001.rows.json"])
def test_a_byte_that_changed_is_found_by_its_hash_when_the_cache_is_made_again(
    name: str, source: Source, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, source, tokenizer)
    whole = contents(folder)
    unseen(folder / name)
    write(tmp_path, source, tokenizer)
    assert contents(folder) == whole
    assert name in capsys.readouterr().err


def test_a_cache_that_is_being_mended_is_not_read(
    source: Source, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path, source, tokenizer)
    halved(folder / "00001.tokens")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, source, tokenizer)
    with pytest.raises(UserError, match="not complete"):
        open_token_cache(tmp_path, source, tokenizer)
    monkeypatch.undo()
    write(tmp_path, source, tokenizer)
    open_token_cache(tmp_path, source, tokenizer)
