"""How one lane reads one source: from several places at once, its strands, in turn.

A piece that is read to its end is no shuffle: its rows stood side by side in the file, and the blocks of a long
document would come one after the other. So a lane has up to `Layout.strands` of its pieces open. The turn passes on at
the end of each document and of each block, over strands whose document was cut less than `APART` updates ago. A strand
whose piece has ended takes the lane's next one; the next epoch begins when all pieces of this one have ended. A new
strand is opened at the beginning of a block only, so that the first update reads no more than one unit a lane.

Promises: an epoch of a lane is its pieces, each row once. The cursor says all that the next block depends on.
Costs: the lane's own rows of one window a strand in memory, and a few encoded documents each; a resume reads one unit
(of a large one, one window) for each strand, when its turn comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from miniqwen.data.documents import Order, Piece, Place, Row
from miniqwen.errors import UserError

APART = 4  # updates from one block of a long document to the next, where there is other text
EMPTY_EPOCHS = 100  # times the number of lanes: without a single document in that many there is none
BATCH_DOCUMENTS = 128  # read ahead of the packer in each strand; few, as every strand does it
BATCH_CHARACTERS = 40_000


class EncodedRow(NamedTuple):
    """A row and its tokens (the end token included; None where it is no document), and what was odd in its text."""

    row: Row
    tokens: np.ndarray | None
    oddities: Mapping[str, int]


def encoded_rows(
    rows: Iterator[Row],
    encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]],
    oddities: Callable[[Any], Mapping[str, int]] = lambda document: {},
) -> Iterator[EncodedRow]:
    """Rows with their tokens, encoded a few at a time: one call for each costs more where they are tiny.

    A batch ends with its window, so that the next one is not read before it is needed.
    """
    more = True
    while more:
        read: list[Row] = []
        characters, more = 0, False
        for row in rows:
            read.append(row)
            characters += len(row.content) if row.kind == "documents" else 0
            more = row.after is not None
            if not more or row.after.row == 0 or len(read) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:  # type: ignore[union-attr]
                break
        tokens = iter(encode([row.content for row in read if row.kind == "documents"]))
        for row in read:
            if row.kind == "documents":
                yield EncodedRow(row, np.asarray(next(tokens)), oddities(row.content))
            else:
                yield EncodedRow(row, None, {})


class Strand(NamedTuple):
    """Where a strand goes on: the lane's piece number `piece`, the row there, and how many of its tokens are used up.

    `cut`: the lane's block in which its document was cut last; only where `offset` is above 0.
    """

    piece: int
    window: int = 0
    row: int = 0
    offset: int = 0
    cut: int = 0


@dataclass(frozen=True)
class SourceCursor:
    """Where a lane stands in a source.

    `next_piece`: of `epoch`, the first that no strand has had; `turn`: how often it has passed on; `strands`: None for
    one whose piece has ended; `tokens`, `bytes`: read so far; `counts`: {name: documents, what was odd about them, or
    stood in their place}; `skipped`: {unit: what was wrong with it}, of units that could not be read.
    """

    epoch: int = 0
    next_piece: int = 0
    turn: int = 0
    strands: tuple[Strand | None, ...] = ()
    tokens: int = 0
    bytes: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> SourceCursor:
        strands = tuple(None if strand is None else Strand(*strand) for strand in stored["strands"])
        return cls(**{**stored, "strands": strands})


class Reading:
    """A lane's endless text of one source, as blocks ask for it."""

    def __init__(
        self,
        order: Order,
        lane: int,
        encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]],
        oddities: Callable[[Any], Mapping[str, int]],
        cursor: SourceCursor,
        apart: int = APART,
    ) -> None:
        """`apart`: blocks of the lane that are to lie from one part of a document to the next."""
        self._order, self._lane, self._encode, self._oddities, self._apart = order, lane, encode, oddities, apart
        self._epoch, self._next_piece, self._turn = cursor.epoch, cursor.next_piece, cursor.turn
        self._strands = list(cursor.strands)
        self._rows: dict[int, Iterator[EncodedRow]] = {}  # of the strands that have been read from
        self._at_hand: dict[int, EncodedRow] = {}  # documents that were begun
        self._pieces, self._most = order.pieces(self._epoch, lane), order.layout.strands
        self._round: tuple[int, list[int]] = (-1, [])
        self._empty_epochs = 0
        self._tokens, self._bytes = cursor.tokens, cursor.bytes
        self._counts, self._skipped = Counter(cursor.counts), dict(cursor.skipped)

    def fill(self, tokens: np.ndarray, block: int, bytes_of_tokens: np.ndarray | None = None) -> None:
        """Write the text of the lane's block number `block` into `tokens` [length]."""
        filled = 0
        while filled < len(tokens):
            slot = self._whose_turn(block, may_open=filled == 0)
            strand, document = self._strands[slot], self._at_hand[slot]
            assert strand is not None
            assert document.tokens is not None
            part = document.tokens[strand.offset : strand.offset + len(tokens) - filled]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
            if strand.offset + len(part) < len(document.tokens):
                self._strands[slot] = strand._replace(offset=strand.offset + len(part), cut=block)
            else:  # beyond its end only where the data was changed under a cursor
                del self._at_hand[slot]
                self._pass(slot, document.row.after)
        self._tokens += len(tokens)
        if bytes_of_tokens is not None:
            self._bytes += int(bytes_of_tokens[tokens].sum())

    def cursor(self) -> SourceCursor:
        return SourceCursor(
            self._epoch, self._next_piece, self._turn, tuple(self._strands), self._tokens, self._bytes,
            dict(self._counts), dict(self._skipped),
        )  # fmt: skip

    def _whose_turn(self, block: int, may_open: bool) -> int:
        """The strand to read from now; it has a document at hand."""
        while True:
            if may_open and self._opened():
                return len(self._strands) - 1
            for turn in range(self._turn, self._turn + 2 * self._most):  # all of them, wherever in a round it is
                slot = self._slot(turn)
                if slot < len(self._strands) and not self._was_cut(slot, block) and self._has_document(slot):
                    self._turn = turn + 1
                    return slot
            if self._opened():
                return len(self._strands) - 1
            waits = [slot for slot in range(len(self._strands)) if self._was_cut(slot, block)]
            for slot in sorted(waits, key=lambda slot: self._strands[slot].cut):  # type: ignore[union-attr]
                if self._has_document(slot):  # there is no other text
                    return slot
            self._begin_epoch()

    def _slot(self, turn: int) -> int:
        """Each strand has one turn a round, in another order each time, so that none follows the same one."""
        round_number, place = divmod(turn, self._most)
        if self._round[0] != round_number:
            self._round = (round_number, self._order.turns(self._lane, round_number).tolist())
        return self._round[1][place]

    def _was_cut(self, slot: int, block: int) -> bool:
        """Whether its document goes on, and another part of it has come lately."""
        strand = self._strands[slot]
        return strand is not None and strand.offset > 0 and block - strand.cut < self._apart

    def _opened(self) -> bool:
        """Whether one more strand could be opened, and has a document."""
        if len(self._strands) >= self._most or self._next_piece >= len(self._pieces):
            return False
        self._strands.append(None)
        if self._has_document(len(self._strands) - 1):
            return True
        self._strands.pop()
        return False

    def _has_document(self, slot: int) -> bool:
        """Whether the strand has a document at hand, after it took one: its next, or one of the lane's next pieces."""
        while slot not in self._at_hand:
            strand = self._strands[slot]
            if strand is None:
                if self._next_piece >= len(self._pieces):
                    return False
                strand = self._strands[slot] = Strand(self._next_piece)
                self._next_piece += 1
            if slot not in self._rows:
                rows: Iterator[Row] = iter(())  # of a piece that is gone: the data was changed under a cursor
                if strand.piece < len(self._pieces):
                    place = Place(strand.window, strand.row)
                    rows = self._order.rows(self._epoch, self._piece(strand), place)
                self._rows[slot] = encoded_rows(rows, self._encode, self._oddities)
            found = next(self._rows[slot], None)
            if found is None:
                self._pass(slot, None)
                continue
            if not strand.offset:  # else it was counted when it was begun
                self._counts[found.row.kind] += 1
                for oddity, times in found.oddities.items():
                    self._counts[oddity] += times
            if found.tokens is None:
                self._pass(slot, found.row.after)
                continue
            self._at_hand[slot], self._empty_epochs = found, 0
            self._strands[slot] = Strand(strand.piece, *found.row.place, strand.offset, strand.cut)
        return True

    def _pass(self, slot: int, after: Place | None) -> None:
        """The strand goes on at `after` in its piece, or leaves it."""
        strand = self._strands[slot]
        assert strand is not None
        if after is not None:
            self._strands[slot] = Strand(strand.piece, *after)
            return
        self._strands[slot] = None
        self._rows.pop(slot, None)
        if strand.piece < len(self._pieces) and (bad := self._order.source.skipped(self._piece(strand).unit)):
            self._skipped[bad[0]] = bad[1]

    def _piece(self, strand: Strand) -> Piece:
        return Piece(*self._pieces[strand.piece].tolist())

    def _begin_epoch(self) -> None:
        """All pieces of this epoch have ended: on to the next. Raises `UserError` where no document ever comes."""
        self._empty_epochs += 1
        if self._empty_epochs > EMPTY_EPOCHS * self._order.lanes:
            raise UserError(f"{self._order.source.name}: there is no text in it to train on")
        self._epoch, self._next_piece, self._strands = self._epoch + 1, 0, []
        self._pieces = self._order.pieces(self._epoch, self._lane)
