"""In which order the documents of a source are read (law 1).

From the outside in: a *unit* is what is fetched at once (a row group, a slice of lines, a gzipped file). A *piece* is
what one lane reads of it: the whole unit, or one stripe of it where units are few. A large unit has *windows* of about
a megabyte, any other is a single window; and in a window stand the *rows*, each a document or what is there instead.
The pieces of an epoch are permuted by (seed, epoch), and dealt to the lanes in turn; within a piece its windows are
permuted, and in each window its rows. How a lane goes through its pieces: see strands.py.

Promises: the order is a function of (data, seed, number of lanes) alone; in each epoch every document that is not held
out comes exactly once over all lanes; a piece can be entered at any place.
Costs: to enter a piece, one unit is read (of a large one, one window). A permutation of the pieces per epoch.
"""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from miniqwen.data.held_out import HeldOut
from miniqwen.data.windows import Windows
from miniqwen.errors import UserError

ORDER = 7  # the number of this order: whoever changes which blocks come must raise it (a test holds their digests)

PIECES_PER_LANE = 64  # in an epoch at least, so that lanes stay balanced
LEAST_STRIPE = 1 << 20  # bytes of a large unit, below which its stripes would have no window each
NEIGHBOURS = 64 << 20  # bytes of units whose stripes are read at about the same time, while the units are in memory
MOST_STRANDS, LEAST_STRANDS = 16, 2
STRAND_BYTES = 1 << 30  # of text that the strands of all lanes hold in memory, about
SAMPLED_UNITS = 256  # whose size is looked at to tell how much a strand holds


def permutation(count: int, *key: int) -> np.ndarray:
    """A permutation of range(count) that depends on `key` alone, in every version of every library."""
    if count <= 1:  # pieces of a single window are many
        return np.arange(count)
    return np.argsort(raw_numbers(count, *key), kind="stable")


def raw_numbers(count: int, *key: int) -> np.ndarray:
    """`count` random numbers of 64 bits: the hash of `key`, of any length.

    For a few numbers, ten times as fast as setting up a random generator; pieces of a few rows are many.
    """
    return np.frombuffer(hashlib.shake_128(repr(tuple(map(int, key))).encode()).digest(8 * count), "<u8")


def name_key(name: str) -> int:
    """A number for a source's name, the same in every process (unlike `hash`)."""
    return zlib.crc32(name.encode())


class Piece(NamedTuple):
    """What a lane reads of `unit`: the part number `stripe` of `stripes`."""

    unit: int
    stripe: int
    stripes: int

    def rows(self, starts: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(window, numbers of its rows in the unit) of the piece; `starts` of the unit's windows, and its end.

        Stripes share out the windows; of too few windows every stripe reads all, and they share out the rows.
        """
        count = len(starts) - 1
        if count >= self.stripes:
            own = range(self.stripe, count, self.stripes)
            return [(window, np.arange(starts[window], starts[window + 1])) for window in own]
        first = starts[:-1] + (self.stripe - starts[:-1]) % self.stripes
        return [(window, np.arange(first[window], starts[window + 1], self.stripes)) for window in range(count)]


class Place(NamedTuple):
    """A row of a piece: the number of its window and its number in there, in the order of reading."""

    window: int = 0
    row: int = 0


class Row(NamedTuple):
    """What stands in a row: a text, its tokens, or by its `kind` none. `after`: the next row, None behind the last."""

    content: Any
    kind: str  # documents, null_documents, empty_documents, non_text_documents
    place: Place
    after: Place | None


@dataclass(frozen=True)
class Layout:
    """How a source is cut for its lanes: a function of the data and the lanes, which a checkpoint keeps.

    `strands`: pieces that a lane has open at once; `stripes`: into how many pieces a unit is cut.
    """

    strands: int
    stripes: int

    @classmethod
    def of(cls, source: Windows, lanes: int) -> Layout:
        """Stripes enough to balance the lanes, and as many strands as fit the memory."""
        units = source.units()
        stripes = max(1, -(-PIECES_PER_LANE * lanes // max(len(units), 1)))
        if len(units) and (units.rows >= 0).all():  # more stripes than rows would only be empty
            stripes = max(1, min(stripes, int(units.rows.max())))
        sampled = set(np.linspace(0, len(units) - 1, SAMPLED_UNITS).astype(int).tolist()) if len(units) else set[int]()
        held = sum(source.held_bytes(unit, stripes) for unit in sorted(sampled)) / max(len(sampled), 1)
        strands = int(STRAND_BYTES // max(held * lanes, 1))
        return cls(min(max(strands, LEAST_STRANDS), MOST_STRANDS), stripes)


class Order:
    """The pieces of a source in each epoch, as `lanes` lanes read them, and the rows of each piece."""

    def __init__(
        self,
        source: Windows,
        held_out: HeldOut,
        seed: int,
        lanes: int,
        layout: Layout | None = None,
        skip_bad: bool = False,
    ) -> None:
        """`layout`: that of the checkpoint that a run goes on from; `skip_bad`: pass over rows that are no text."""
        self.source, self.held_out, self.seed, self.lanes = source, held_out, seed, lanes
        self.layout = layout or Layout.of(source, lanes)
        self._skip_bad = skip_bad
        self._key = (seed, name_key(source.name))
        self._stripes = self._stripes_of_units()
        self._pieces = functools.lru_cache(maxsize=4)(self._permuted_pieces)

    def _stripes_of_units(self) -> np.ndarray:
        """Into how many pieces each unit is cut; a large one, which can be entered at each window, finely."""
        units, stripes = self.source.units(), self.layout.stripes
        cut = np.full(len(units), stripes, dtype=np.int32)
        if stripes > 1 or not (units.rows >= 0).all():
            for unit in np.flatnonzero(units.sizes > LEAST_STRIPE):
                if self.source.is_large(int(unit)):
                    cut[unit] = max(1, min(stripes * self.layout.strands, units.sizes[unit] // LEAST_STRIPE))
        return cut

    def _permuted_pieces(self, epoch: int) -> np.ndarray:
        """(unit, stripe, stripes) of all pieces in reading order [pieces, 3].

        Units in random order, and the pieces of neighbours in it again: so the stripes of a unit, which lanes read one
        after the other, come while it is in memory.
        """
        units = permutation(len(self._stripes), *self._key, epoch)
        stripes = self._stripes[units]
        pieces = np.empty((int(stripes.sum()), 3), np.int32)
        pieces[:, 0], pieces[:, 2] = np.repeat(units, stripes), np.repeat(stripes, stripes)
        pieces[:, 1] = np.arange(len(pieces)) - np.repeat(np.cumsum(stripes) - stripes, stripes)
        if (stripes == 1).all():
            return pieces
        neighbourhood = np.repeat(np.cumsum(self.source.units().sizes[units]) // NEIGHBOURS, stripes)
        return pieces[np.lexsort((raw_numbers(len(pieces), *self._key, epoch, 1), neighbourhood))]

    def pieces(self, epoch: int, lane: int) -> np.ndarray:
        """What `lane` reads in `epoch`: every `lanes`-th piece, as rows of what makes a `Piece` [pieces, 3].

        The first one moves on with the epochs, so that a lane gets text also where there are fewer pieces than lanes.
        """
        return self._pieces(epoch)[(lane + epoch) % self.lanes :: self.lanes]

    def windows(self, epoch: int, piece: Piece) -> list[tuple[int, np.ndarray]]:
        """The windows of a piece in reading order, each with the numbers (in the unit) of its rows in theirs."""
        free = [
            (window, self.held_out.free(piece.unit, rows))
            for window, rows in piece.rows(np.asarray(self.source.starts(piece.unit)))
        ]
        full = [(window, rows) for window, rows in free if len(rows)]
        key = (*self._key, epoch, piece.unit, piece.stripe)
        return [
            (window, rows[permutation(len(rows), *key, window)])
            for window, rows in (full[number] for number in permutation(len(full), *key))
        ]

    def turns(self, lane: int, round_number: int) -> np.ndarray:
        """The strands of a lane in the order in which they have their turns in a round [strands]."""
        return permutation(self.layout.strands, *self._key, lane, round_number, 2)

    def rows(self, epoch: int, piece: Piece, start: Place) -> Iterator[Row]:
        """The rows of a piece from `start` on. Raises `UserError` for one that is no text, unless it may be skipped."""
        windows = self.windows(epoch, piece)
        for number in range(start.window, len(windows)):
            window, rows = windows[number]
            first, content = self.source.starts(piece.unit)[window], self.source.read(piece.unit, window)
            own = [content[row - first] for row in rows.tolist()]  # the others are not kept in memory by this lane
            del content
            next_window = Place(number + 1) if number + 1 < len(windows) else None
            for row in range(start.row if number == start.window else 0, len(own)):
                after = Place(number, row + 1) if row + 1 < len(own) else next_window
                yield Row(own[row], self._kind(own[row], piece.unit, int(rows[row])), Place(number, row), after)

    def _kind(self, content: Any, unit: int, row: int) -> str:
        if content is None:
            return "null_documents"
        if not isinstance(content, (str, np.ndarray)):
            if not self._skip_bad:
                kind = type(content).__name__
                raise UserError(f"{self.source.place(unit, row)}: {content!r:.80} is not text ({kind})")
            return "non_text_documents"
        return "documents" if len(content) else "empty_documents"
