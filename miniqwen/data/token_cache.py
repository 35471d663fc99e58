"""Text that was tokenised once: memory-mapped files that stand in for a source, with the same rows in the same places.

Promises: lanes, blocks and cursors, with their counts of odd documents, are those of streaming, so that a run may go
from one to the other; the cache says which tokenizer and which data it was made of, and is refused for any other. An
interrupted one goes on with the next file.
Costs: 2 bytes a token for vocabularies up to 65,536, else 4, and 16 bytes a row; memory is the system's page cache.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.data.sources import Source
from miniqwen.data.units import Units
from miniqwen.data.windows import TextWindows, text_bytes
from miniqwen.errors import UserError
from miniqwen.files import make_folder, write_bytes, written_whole
from miniqwen.model.tokenization_miniqwen import document_encoder, text_oddities, tokenizer_fingerprint

MADE_OF = "made_of.json"
COMPLETE = "complete.json"
ENCODED_ROWS = 64  # at once
OPEN_FILES = 64


class Tokens(np.ndarray):
    """A document's tokens [length], and what was odd in its text."""

    oddities: Mapping[str, int] = {}


def cached_oddities(document: Any) -> Mapping[str, int]:
    """What `text_oddities` found in the text of a cached document."""
    return document.oddities if isinstance(document, Tokens) else {}


class TokenWindows:
    """A cached source, as `documents` reads it: windows of token arrays, empty or None where the text is.

    `starts`: of each unit; `odd`: of each file, {row: what was odd in its text, None where there was none}.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        starts: Sequence[Sequence[int]],
        odd: Sequence[Mapping[str, Mapping[str, int] | None]],
    ) -> None:
        self.name, self._folder, self._starts, self._odd = source.name, folder, starts, odd
        self._text = TextWindows(source)
        units = source.units()
        rows = np.array([found[-1] for found in starts], dtype=np.int64)
        before = np.cumsum(rows) - rows
        first_units = np.searchsorted(units.file, units.file)  # the first unit of each unit's file
        self._first_rows = before - before[first_units]  # of each unit, in its file
        self._opened = lru_cache(maxsize=OPEN_FILES)(self._open)

    def units(self) -> Units:
        return self._text.units()

    def is_large(self, unit: int) -> bool:
        return self._text.is_large(unit)

    def starts(self, unit: int) -> Sequence[int]:
        return self._starts[unit]

    def read(self, unit: int, window: int) -> Sequence[np.ndarray | None]:
        file = int(self.units().file[unit])
        (tokens, ends), odd = self._opened(file), self._odd[file]
        start, stop = (int(self._first_rows[unit]) + row for row in self._starts[unit][window : window + 2])
        rows = ((str(row), tokens[ends[row] : ends[row + 1]]) for row in range(start, stop))
        return [_with_oddities(found, odd[row]) if row in odd else found for row, found in rows]

    def place(self, unit: int, row: int) -> str:
        return self._text.place(unit, row)

    def skipped(self, unit: int) -> tuple[str, str] | None:
        return None  # what cannot be read was never tokenised

    def row_bytes(self, unit: int, window: int) -> np.ndarray:
        start, stop = (int(self._first_rows[unit]) + row for row in self._starts[unit][window : window + 2])
        path = self._folder / f"{int(self.units().file[unit]):05}.bytes.npy"
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[start:stop])

    def held_bytes(self, unit: int, stripes: int) -> float:
        return self._text.held_bytes(unit, stripes)

    def paths(self) -> Sequence[str]:
        return self._text.paths()

    def fetched_whole(self) -> np.ndarray:
        return self._text.fetched_whole()

    def _open(self, file: int) -> tuple[np.ndarray, np.ndarray]:
        ends = np.load(self._folder / f"{file:05}.ends.npy", mmap_mode="r", allow_pickle=False)
        dtype = np.dtype(json.loads((self._folder / MADE_OF).read_text())["dtype"])
        path = self._folder / f"{file:05}.tokens"
        tokens = np.memmap(path, dtype, mode="r") if ends[-1] else np.empty(0, dtype)  # an empty file cannot be mapped
        return tokens, ends


def _with_oddities(tokens: np.ndarray, odd: Mapping[str, int] | None) -> Tokens | None:
    if odd is None:
        return None
    marked = tokens.view(Tokens)
    marked.oddities = odd
    return marked


def made_of(source: Source, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What the tokens depend on."""
    identity = json.loads(json.dumps(source.identity()))
    dtype = "<u2" if len(tokenizer) <= 1 << 16 else "<u4"
    return {
        "data": identity, "column": source.columns[0], "tokenizer": tokenizer_fingerprint(tokenizer), "dtype": dtype,
    }  # fmt: skip


def open_token_cache(root: Path, source: Source, tokenizer: PreTrainedTokenizerBase) -> TokenWindows:
    """The cache of `source` under `root`.

    Raises `UserError` when there is none, when it is not complete, and when it was made of other data or by another
    tokenizer.
    """
    folder = root / source.name
    again = "make it with `python prepare_datasets.py --tokenize DIR --model_path M`"
    if not (folder / MADE_OF).is_file():
        raise UserError(f"--token_cache {root}: no tokens of {source.name} in it; {again}")
    _refuse_if_stale(folder, made_of(source, tokenizer))
    if not (folder / COMPLETE).is_file():
        raise UserError(f"--token_cache {root}: the tokens of {source.name} are not complete; {again} again to finish")
    found = json.loads((folder / COMPLETE).read_text())
    return TokenWindows(folder, replace(source, row_groups=found["row_groups"]), found["starts"], found["odd"])


def _refuse_if_stale(folder: Path, wanted: dict[str, Any]) -> None:
    stored = json.loads((folder / MADE_OF).read_text())
    if stored == wanted:
        return
    if stored["tokenizer"] != wanted["tokenizer"]:
        why = "was made with another tokenizer than the model's"
    elif stored["data"] != wanted["data"]:
        before, now = (dict(map(tuple, made["data"].pop("files"))) for made in (stored, wanted))
        files = [path for path in {**before, **now} if before.get(path) != now.get(path)]
        what = ", ".join(files[:5]) or ", ".join(
            k for k in wanted["data"] if stored["data"].get(k) != wanted["data"][k]
        )
        why = f"was made of other data ({what} changed)"
    else:
        why = f"holds the column {stored['column']}, not {wanted['column']}"
    raise UserError(f"{folder}: the token cache is stale: it {why}; delete the folder and tokenize again")


def write_token_cache(
    root: Path, source: Source, tokenizer: PreTrainedTokenizerBase, told: Callable[[str, int, int], None]
) -> Path:
    """Tokenise `source` into `root`/NAME, file by file; files that an interrupted call finished are kept.

    `told(path, rows, tokens)` hears of every file that is done. Raises `UserError` for broken rows and a stale cache.
    """
    folder = root / source.name
    make_folder(folder)
    wanted = made_of(source, tokenizer)
    if (folder / MADE_OF).is_file():
        _refuse_if_stale(folder, wanted)
    else:
        write_bytes(folder / MADE_OF, json.dumps(wanted).encode())
    listed = source.row_groups if source.row_groups is not None else source.list_row_groups()
    windows = TextWindows(replace(source, row_groups=listed))
    encode = document_encoder(tokenizer)
    oddities = text_oddities(tokenizer)
    starts: list[Sequence[int]] = []
    odd: list[Mapping[str, Mapping[str, int] | None]] = []
    for number, file in enumerate(source.files):
        units = np.flatnonzero(windows.units().file == number).tolist()
        done = folder / f"{number:05}.rows.json"
        if not done.is_file():
            found = _write_file(folder, number, windows, units, encode, oddities, np.dtype(wanted["dtype"]))
            described = {"starts": [list(windows.starts(unit)) for unit in units], "odd": found}
            write_bytes(done, json.dumps(described).encode())
        stored = json.loads(done.read_text())
        starts += stored["starts"]
        odd.append(stored["odd"])
        ends = np.load(folder / f"{number:05}.ends.npy", mmap_mode="r", allow_pickle=False)
        told(file.path, len(ends) - 1, int(ends[-1]))
    write_bytes(folder / COMPLETE, json.dumps({"starts": starts, "odd": odd, "row_groups": listed}).encode())
    return folder


def _write_file(
    folder: Path,
    number: int,
    windows: TextWindows,
    units: Sequence[int],
    encode: Callable[[Sequence[Any]], Sequence[Any]],
    oddities: Callable[[str], Mapping[str, int]],
    dtype: np.dtype,
) -> dict[int, Mapping[str, int] | None]:
    """Write the tokens of one file's rows, where each row's end, and how many bytes its text has.

    Returns what was odd, see `TokenWindows`.
    """
    ends, sizes = [0], []
    odd: dict[int, Mapping[str, int] | None] = {}
    with written_whole(folder / f"{number:05}.tokens") as written:
        for rows in _rows(windows, units):
            encoded = iter(encode([text for text in rows if text]))
            for text in rows:
                if text is None:
                    odd[len(ends) - 1] = None
                elif found := oddities(text):
                    odd[len(ends) - 1] = found
                tokens = np.asarray(next(encoded) if text else [], dtype=dtype)
                written.write(tokens.tobytes())
                ends.append(ends[-1] + len(tokens))
                sizes.append(text_bytes(text or ""))
    for name, numbers in (("ends", ends), ("bytes", sizes)):
        with written_whole(folder / f"{number:05}.{name}.npy") as file:
            np.save(file, np.asarray(numbers, dtype=np.int64), allow_pickle=False)
    return odd


def _rows(windows: TextWindows, units: Sequence[int]) -> Iterator[Sequence[str | None]]:
    """The texts of `units`, a few at a time."""
    for unit in units:
        starts = windows.starts(unit)
        for window, first in enumerate(starts[:-1]):
            rows = windows.read(unit, window)
            for start in range(0, len(rows), ENCODED_ROWS):
                some = rows[start : start + ENCODED_ROWS]
                for number, text in enumerate(some, first + start):
                    if text is not None and not isinstance(text, str):
                        raise UserError(f"{windows.place(unit, number)}: {text!r:.80} is not text")
                yield some
