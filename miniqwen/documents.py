"""In which order documents are read: units, stripes, lanes and positions (law 1).

Promises: the order is a function of (data, seed, number of lanes) alone. In each epoch every document that is not held
out comes exactly once over all lanes; another epoch or seed gives another order. A lane can start at any position and
goes on exactly from there. Costs: to start at a position, one unit is read.
"""

from __future__ import annotations

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from miniqwen.config import UserError

if TYPE_CHECKING:
    from miniqwen.sources import Source, Unit

STRIPES_PER_LANE = 64  # pieces of the data a lane gets per epoch at least, so that lanes stay balanced
EMPTY_EPOCHS = 100  # a lane without a single document in that many epochs will not find one


@dataclass(frozen=True)
class Position:
    """Where a document stands in a lane's endless stream: its epoch, the piece within it, the row within that."""

    epoch: int = 0
    piece: int = 0
    row: int = 0


@dataclass(frozen=True)
class Piece:
    """Every `stripes`-th row of a unit, from row `stripe` on."""

    unit: int
    stripe: int
    stripes: int


def permutation(count: int, *key: int) -> np.ndarray:
    """A permutation of range(count) that depends on `key` alone, in every numpy version.

    Built on a bit generator's raw output and a stable sort: numpy promises those, and not `Generator.permutation`.
    """
    raw = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(raw, kind="stable")


def name_key(name: str) -> int:
    """A number for a source's name, the same in every process (unlike `hash`)."""
    return zlib.crc32(name.encode())


@dataclass(frozen=True)
class HeldOut:
    """The first rows of a source, kept for validation: `rows[u]` leading rows of unit u; later units are free."""

    rows: tuple[int, ...] = ()

    def first_free_row(self, unit: int) -> int:
        return self.rows[unit] if unit < len(self.rows) else 0

    @property
    def count(self) -> int:
        return sum(self.rows)


class LaneOrder:
    """The order in which `lanes` lanes read one source."""

    def __init__(self, source: Source, held_out: HeldOut, seed: int, lanes: int) -> None:
        self.source, self.held_out, self.seed, self.lanes = source, held_out, seed, lanes
        units = source.units()
        stripes = max(1, -(-STRIPES_PER_LANE * lanes // len(units)))
        known = [unit.rows for unit in units if unit.rows is not None]
        if len(known) == len(units):  # more stripes than rows would only be empty
            stripes = min(stripes, max(known))
        self._pieces = [Piece(unit, stripe, stripes) for unit in range(len(units)) for stripe in range(stripes)]
        self._units: Sequence[Unit] = units
        self._epoch_order = functools.lru_cache(maxsize=2)(self._permuted_pieces)

    def _permuted_pieces(self, epoch: int) -> np.ndarray:
        return permutation(len(self._pieces), self.seed, name_key(self.source.name), epoch)

    def pieces(self, epoch: int, lane: int) -> list[Piece]:
        """The pieces that `lane` reads in `epoch`: every `lanes`-th of that epoch's permutation."""
        return [self._pieces[index] for index in self._epoch_order(epoch)[lane :: self.lanes]]

    def rows(self, epoch: int, piece: Piece, num_rows: int) -> np.ndarray:
        """Row numbers of `piece` in reading order, without the held-out ones."""
        rows = np.arange(piece.stripe, num_rows, piece.stripes)
        rows = rows[rows >= self.held_out.first_free_row(piece.unit)]
        key = (self.seed, name_key(self.source.name), epoch, piece.unit, piece.stripe)
        return rows[permutation(len(rows), *key)]

    def documents(self, lane: int, start: Position) -> Iterator[tuple[str, Position, Position]]:
        """The lane's endless documents from `start` on: (text, its position, the position after it).

        Raises `UserError` when a row's text is no text, or when the lane never gets a document.
        """
        column = self.source.columns[0]
        empty_epochs = 0
        for epoch in itertools.count(start.epoch):
            found = False
            first_piece = start.piece if epoch == start.epoch else 0
            for index, piece in enumerate(self.pieces(epoch, lane)[first_piece:], first_piece):
                texts = self.source.read(self._units[piece.unit])[column]
                rows = self.rows(epoch, piece, len(texts))
                first_row = start.row if (epoch, index) == (start.epoch, start.piece) else 0
                for row in range(first_row, len(rows)):
                    text = texts[rows[row]]
                    if text is not None and not isinstance(text, str):
                        raise UserError(self._not_text(piece.unit, int(rows[row]), text))
                    if text:  # an empty document has nothing to learn from
                        found = True
                        yield text, Position(epoch, index, row), Position(epoch, index, row + 1)
            empty_epochs = 0 if found else empty_epochs + 1
            if empty_epochs == EMPTY_EPOCHS:
                raise UserError(
                    f"{self.source.name}: too few documents for {self.lanes} lanes; "
                    "lower --data_lanes (or the batch size)"
                )

    def _not_text(self, unit: int, row: int, value: object) -> str:
        file = self.source.files[self._units[unit].file].path
        return f"{file}: row {row} of part {self._units[unit].part}: {self.source.columns[0]} is {value!r}, not text"


def hold_out(
    source: Source, num_tokens: Callable[[str], int], wanted: int, share: float = 0.05
) -> tuple[HeldOut, list[str]]:
    """The first rows of `source` that hold `wanted` tokens, but at most `share` of its bytes; and their texts.

    A function of data, tokenizer and sizes alone, so every world size holds out the same rows. At least one row.
    """
    units = source.units()
    limit = share * sum(unit.size for unit in units)
    rows: list[int] = []
    texts: list[str] = []
    tokens, bytes_taken = 0, 0.0
    for unit in units:
        column = source.read(unit)[source.columns[0]]
        taken = 0
        for text in column:
            if tokens >= wanted or (texts and bytes_taken >= limit):
                return HeldOut((*rows, taken)), texts
            taken += 1
            bytes_taken += unit.size / len(column)
            if isinstance(text, str) and text:
                texts.append(text)
                tokens += num_tokens(text)
        rows.append(taken)
    return HeldOut(tuple(rows)), texts
