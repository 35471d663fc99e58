"""How text becomes a token cache, file by file.

Promises: a file of tokens is whole or absent, synced, with its length and hash on record; what an interrupted call
finished is kept; one that is called again looks at every hash, and makes anew what is damaged. The caller keeps others
from writing there.
Costs: the text is read once, its tokens once more for their hashes; a few rows at a time in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.data.sources import Source
from miniqwen.data.token_cache import COMPLETE, MADE_OF, PARTS, damaged, made_of, refuse_if_stale
from miniqwen.data.windows import TextWindows, text_bytes
from miniqwen.errors import UserError
from miniqwen.files import file_hash, make_folder, sealed, unsealed, write_bytes, written_whole
from miniqwen.model.tokenization_miniqwen import document_encoder, text_oddities

ENCODED_ROWS = 64  # at once


def write_token_cache(
    root: Path, source: Source, tokenizer: PreTrainedTokenizerBase, told: Callable[[str, int, int], None]
) -> Path:
    """Tokenise `source` into `root`/NAME, file by file; whole files of an earlier call are kept.

    `told(path, rows, tokens)` hears of every file that is done. Raises `UserError` for broken rows and a stale cache.
    """
    folder = root / source.name
    make_folder(folder)
    wanted = made_of(source, tokenizer)
    if (folder / MADE_OF).is_file():
        refuse_if_stale(folder, wanted)
    else:
        write_bytes(folder / MADE_OF, json.dumps(wanted).encode())
    listed = source.row_groups if source.row_groups is not None else source.list_row_groups()
    windows = TextWindows(replace(source, row_groups=listed))
    encode = document_encoder(tokenizer)
    oddities = text_oddities(tokenizer)
    whole: dict[str, Any] = {"starts": [], "odd": [], "row_groups": listed, "files": {}}
    for number, file in enumerate(source.files):
        done = folder / f"{number:05}.rows.json"
        found = _finished(done)
        if found is None:
            (folder / COMPLETE).unlink(missing_ok=True)  # nobody reads it half mended
            units = np.flatnonzero(windows.units().file == number).tolist()
            odd = _write_file(folder, number, windows, units, encode, oddities, np.dtype(wanted["dtype"]))
            names = [f"{number:05}.{part}" for part in PARTS]
            files = {name: ((folder / name).stat().st_size, file_hash(folder / name)) for name in names}
            found = {"starts": [list(windows.starts(unit)) for unit in units], "odd": odd, "files": files}
            write_bytes(done, sealed(found))
            found = unsealed(done)  # with its numbers as JSON has them, as a later call reads them
        whole["starts"] += found["starts"]
        whole["odd"].append(found["odd"])
        whole["files"] |= found["files"]
        ends = np.load(folder / f"{number:05}.ends.npy", mmap_mode="r", allow_pickle=False)
        told(file.path, len(ends) - 1, int(ends[-1]))
    write_bytes(folder / COMPLETE, sealed(whole))
    return folder


def _finished(done: Path) -> dict[str, Any] | None:
    """What an earlier call wrote of a file, if its hashes are right; None where it is damaged, or not there."""
    if not done.exists():
        return None
    try:
        found = unsealed(done)
        damage = damaged(done.parent, found["files"], hashed=True)
    except (OSError, ValueError) as error:
        damage = str(error)
    if damage:
        print(f"{damage}: made anew", file=sys.stderr, flush=True)
    return None if damage else found


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
