"""Text that was tokenised once: memory-mapped files that stand in for a source, with the same rows in the same places.

Promises: lanes, blocks and cursors, with their counts of odd documents, are those of streaming, so that a run may go
from one to the other; the cache says which tokenizer and which data it was made of, and is refused for any other, and
where a file of it is missing or has another length than was written. Hashes are checked by tokenizing again, which
makes only what is damaged.
Costs: 2 bytes a token for vocabularies up to 65,536, else 4, and 16 bytes a row; memory is the system's page cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.data.sources import Source
from miniqwen.data.units import Units
from miniqwen.data.windows import TextWindows
from miniqwen.errors import UserError
from miniqwen.files import file_hash, read_json, unsealed
from miniqwen.model.tokenization_miniqwen import tokenizer_fingerprint

MADE_OF = "made_of.json"
COMPLETE = "complete.json"
PARTS = (
    "tokens",
    "ends.npy",
    "bytes.npy",
)  # of each file of the source, as NUMBER.PART: where each row ends, its text's bytes
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
        dtype = np.dtype(read_json(self._folder / MADE_OF)["dtype"])
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
    refuse_if_stale(folder, made_of(source, tokenizer))
    if not (folder / COMPLETE).is_file():
        raise UserError(f"--token_cache {root}: the tokens of {source.name} are not complete; {again} again to finish")
    try:
        found = unsealed(folder / COMPLETE)
        if damage := damaged(folder, found["files"]):
            raise ValueError(damage)
        return TokenWindows(folder, replace(source, row_groups=found["row_groups"]), found["starts"], found["odd"])
    except (OSError, ValueError) as error:
        raise UserError(
            f"--token_cache {root}: the tokens of {source.name} are damaged ({error}); {again} again: it makes anew "
            "what is damaged, and nothing else"
        ) from None


def damaged(folder: Path, files: Mapping[str, tuple[int, str]], hashed: bool = False) -> str | None:
    """What is wrong with the `files` of a cache, {name: (bytes, SHA-256)}; the hashes are looked at if `hashed`."""
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if (there := path.stat().st_size) != size:
            return f"{path} has {there:,} bytes of {size:,}"
        if hashed and file_hash(path) != digest:
            return f"{path} is not what was written"
    return None


def refuse_if_stale(folder: Path, wanted: dict[str, Any]) -> None:
    """Raises `UserError` saying why, where a cache was not made of what is `wanted`."""
    try:
        stored = read_json(folder / MADE_OF)
        if stored == wanted:
            return
        why = _difference(stored, wanted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"does not say what it was made of ({folder / MADE_OF}: {error})"
    raise UserError(f"{folder}: the token cache is stale: it {why}; delete the folder and tokenize again")


def _difference(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    if stored["tokenizer"] != wanted["tokenizer"]:
        return "was made with another tokenizer than the model's"
    if stored["data"] != wanted["data"]:
        before, now = (dict(map(tuple, made["data"].pop("files"))) for made in (stored, wanted))
        files = [path for path in {**before, **now} if before.get(path) != now.get(path)]
        what = ", ".join(files[:5]) or ", ".join(
            k for k in wanted["data"] if stored["data"].get(k) != wanted["data"][k]
        )
        return f"was made of other data ({what} changed)"
    return f"holds the column {stored['column']}, not {wanted['column']}"
