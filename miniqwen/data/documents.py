"""In which order documents are read: units, stripes, windows, lanes and positions (law 1).

Promises: the order is a function of (data, seed, number of lanes) alone. In each epoch every document that is not held
out comes exactly once over all lanes; another epoch or seed gives another order. A lane can start at any position and
goes on exactly from there.
Costs: to start at a position, one unit is read (of a large one, one window). A permutation of the units per epoch.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from miniqwen.data.windows import Windows
from miniqwen.errors import UserError

STRIPES_PER_LANE = 64  # pieces of the data a lane gets per epoch at least, so that lanes stay balanced
LEAST_STRIPE = 1 << 20  # bytes of a large unit, below which its stripes would have no window each
NEIGHBOURS = 64 << 20  # bytes of units whose stripes are read at about the same time, while the units are in memory
EMPTY_EPOCHS = 100  # a lane without a single document in that many epochs will not find one
ENCODED_ROWS = 64  # at once, where validation text is held out


class Position(NamedTuple):
    """Where a document stands in a lane's endless stream: epoch, piece within it, window and row within that."""

    epoch: int = 0
    piece: int = 0
    window: int = 0
    row: int = 0


@dataclass(frozen=True)
class Piece:
    """What a lane reads before it goes elsewhere: of `unit`, the part number `stripe` of `stripes`."""

    unit: int
    stripe: int
    stripes: int

    def shares_windows(self, num_windows: int) -> bool:
        """Whether the stripes share out windows; too few of them are all read, and share out rows."""
        return num_windows >= self.stripes

    def windows(self, num_windows: int) -> np.ndarray:
        return np.arange(self.stripe, num_windows, self.stripes) if self.shares_windows(num_windows) else np.arange(
            num_windows
        )  # fmt: skip

    def rows(self, start: int, stop: int, num_windows: int) -> np.ndarray:
        """Of the rows [start, stop) of a window of the piece, those that belong to it."""
        if self.shares_windows(num_windows):
            return np.arange(start, stop)
        return np.arange(start + (self.stripe - start) % self.stripes, stop, self.stripes)


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


@dataclass(frozen=True)
class HeldOut:
    """The first rows of a source, kept for validation: `rows[u]` leading rows of unit u; later units are free."""

    rows: tuple[int, ...] = ()

    def first_free_row(self, unit: int) -> int:
        return self.rows[unit] if unit < len(self.rows) else 0

    @property
    def count(self) -> int:
        return sum(self.rows)


class Document(NamedTuple):
    """A text (or its tokens), its position, the position after it, and what was passed over just before it.

    `passed`: how many rows by what was wrong with them; `skipped`: {unit: what was wrong} of units without a row.
    """

    content: Any
    position: Position
    after: Position
    passed: Mapping[str, int] = {}
    skipped: Mapping[str, str] = {}


class LaneOrder:
    """The order in which `lanes` lanes read one source."""

    def __init__(self, source: Windows, held_out: HeldOut, seed: int, lanes: int, skip_bad: bool = False) -> None:
        self.source, self.held_out, self.seed, self.lanes = source, held_out, seed, lanes
        self._skip_bad = skip_bad
        self._key = (seed, name_key(source.name))
        self._stripes = self._stripes_of_units()
        self._epoch_order = functools.lru_cache(maxsize=2)(self._permuted_pieces)

    def _stripes_of_units(self) -> np.ndarray:
        """Into how many pieces each unit is cut."""
        units = self.source.units()
        stripes = max(1, -(-STRIPES_PER_LANE * self.lanes // len(units)))
        if len(units) and (units.rows >= 0).all():  # more stripes than rows would only be empty
            stripes = max(1, min(stripes, int(units.rows.max())))
        cut = np.full(len(units), stripes, dtype=np.int32)
        if stripes > 1:
            for unit in np.flatnonzero(units.sizes > LEAST_STRIPE):
                if self.source.is_large(int(unit)):
                    cut[unit] = min(stripes, units.sizes[unit] // LEAST_STRIPE)
        return cut

    def _permuted_pieces(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The units and stripes of all pieces in reading order.

        Units in random order, and the pieces of neighbours in it again: so the stripes of a unit, which lanes read one
        after the other, come while it is in memory.
        """
        order = permutation(len(self._stripes), *self._key, epoch)
        ends = np.cumsum(self.source.units().sizes[order])
        units = np.repeat(order, self._stripes[order])
        stripes = np.concatenate([np.arange(count) for count in self._stripes[order]]) if len(order) else units
        if (self._stripes == 1).all():
            return units.astype(np.int32), stripes.astype(np.int32)
        neighbourhood = np.repeat(ends // NEIGHBOURS, self._stripes[order])
        mixed = np.lexsort((raw_numbers(len(units), *self._key, epoch, 1), neighbourhood))
        return units[mixed].astype(np.int32), stripes[mixed].astype(np.int32)

    def num_pieces(self, lane: int) -> int:
        """Pieces that `lane` reads in an epoch: every `lanes`-th of all."""
        return len(range(lane, int(self._stripes.sum()), self.lanes))

    def piece(self, epoch: int, lane: int, number: int) -> Piece:
        """The piece that `lane` reads as its `number`-th in `epoch`."""
        units, stripes = self._epoch_order(epoch)
        unit = int(units[lane + number * self.lanes])
        return Piece(unit, int(stripes[lane + number * self.lanes]), int(self._stripes[unit]))

    def windows(self, epoch: int, piece: Piece) -> Iterator[tuple[int, np.ndarray]]:
        """The windows of a piece in reading order, each with the numbers (in the unit) of its rows in theirs."""
        starts = self.source.starts(piece.unit)
        key = (*self._key, epoch, piece.unit, piece.stripe)
        windows = piece.windows(len(starts) - 1)
        for window in windows[permutation(len(windows), *key)].tolist():
            rows = piece.rows(starts[window], starts[window + 1], len(starts) - 1)
            rows = rows[rows >= self.held_out.first_free_row(piece.unit)]
            yield window, rows[permutation(len(rows), *key, window)]

    def documents(self, lane: int, start: Position) -> Iterator[Document]:
        """The lane's endless documents from `start` on.

        Raises `UserError` when a row's text is no text (unless it may be skipped), or when the lane never gets a
        document.
        """
        empty_epochs = 0
        passed: Counter[str] = Counter()
        skipped: dict[str, str] = {}
        for epoch in itertools.count(start.epoch):
            found = False
            first_piece = start.piece if epoch == start.epoch else 0
            for number in range(first_piece, self.num_pieces(lane)):
                begin = start if (epoch, number) == (start.epoch, start.piece) else Position(epoch, number)
                piece = self.piece(epoch, lane, number)
                for content, position, after in self._documents_of(piece, begin, passed):
                    found = True
                    yield Document(content, position, after, dict(passed), skipped)
                    passed.clear()
                    skipped = {}
                if bad := self.source.skipped(piece.unit):
                    skipped[bad[0]] = bad[1]
            empty_epochs = 0 if found else empty_epochs + 1
            if empty_epochs == EMPTY_EPOCHS:
                raise UserError(
                    f"{self.source.name}: too few documents for {self.lanes} lanes; "
                    "lower --data_lanes (or the batch size)"
                )

    def _documents_of(
        self, piece: Piece, start: Position, passed: Counter[str]
    ) -> Iterator[tuple[Any, Position, Position]]:
        """The documents of a piece, each with its position and the one after; rows between are counted in `passed`."""
        windows = itertools.islice(enumerate(self.windows(start.epoch, piece)), start.window, None)
        for number, (window, rows) in windows:
            if not len(rows):
                continue
            documents, alone = self._full_rows(piece.unit, window, rows)
            passed.update(alone)
            here = functools.partial(Position, start.epoch, start.piece)
            first_row = start.row if number == start.window else 0
            for index, (row, document, odd) in enumerate(documents, 1):
                if row >= first_row:
                    if odd:
                        passed.update(odd)
                    after = here(number, row + 1) if index < len(documents) else here(number + 1)
                    yield document, here(number, row), after

    def _full_rows(
        self, unit: int, window: int, rows: np.ndarray
    ) -> tuple[list[tuple[int, Any, dict[str, int]]], Counter[str]]:
        """(place in reading order, document, odd rows beside it) of the `rows` that hold text; odd rows beside none.

        An empty row has nothing to learn from. The rows before a document are counted with it, those behind the last
        one too, as the position after it lies behind the window. A list of its own: a lane keeps its rows in memory,
        not those that the whole unit has.
        """
        first, content = self.source.starts(unit)[window], self.source.read(unit, window)
        found: list[tuple[int, Any, dict[str, int]]] = []
        odd: Counter[str] = Counter()
        for place, row in enumerate(rows.tolist()):
            document = content[row - first]
            if document is None:
                odd["null_documents"] += 1
            elif not isinstance(document, (str, np.ndarray)):
                if not self._skip_bad:
                    kind = type(document).__name__
                    raise UserError(f"{self.source.place(unit, row)}: {document!r:.80} is not text ({kind})")
                odd["non_text_documents"] += 1
            elif not len(document):
                odd["empty_documents"] += 1
            else:
                found.append((place, document, dict(odd)))
                odd.clear()
        if found and odd:
            place, document, before = found[-1]
            found[-1] = (place, document, odd + Counter(before))
            odd = Counter()
        return found, odd


def hold_out(
    source: Windows, encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]], wanted: int, share: float = 0.05
) -> tuple[HeldOut, list[np.ndarray]]:
    """The first rows of `source` that hold `wanted` tokens, but at most `share` of its bytes; and their tokens.

    A function of data, tokenizer and sizes alone, so every world size holds out the same rows. At least one row.
    """
    units = source.units()
    limit = share * float(units.sizes.sum())
    rows: list[int] = []
    kept: list[np.ndarray] = []
    tokens, bytes_taken = 0, 0.0
    for unit in range(len(units)):
        rows.append(0)
        starts = source.starts(unit)
        for window in range(len(starts) - 1):
            content = source.read(unit, window)
            for start in range(0, len(content), ENCODED_ROWS):
                some = content[start : start + ENCODED_ROWS]
                texts = [document if isinstance(document, (str, np.ndarray)) else "" for document in some]
                encoded = iter(encode([text for text in texts if len(text)]))
                for text in texts:
                    if tokens >= wanted or (kept and bytes_taken >= limit):
                        return HeldOut(tuple(rows)), kept
                    rows[-1] += 1
                    bytes_taken += int(units.sizes[unit]) / max(starts[-1], 1)
                    if len(text):
                        kept.append(np.asarray(next(encoded), dtype=np.int64))
                        tokens += len(kept[-1])
    return HeldOut(tuple(rows)), kept
