"""How documents fill blocks: text is concatenated, then split (no padding, no dropped text); examples are fitted whole.

Promises: the blocks of a lane, laid end to end, are its documents laid end to end. Every block carries the cursor that
says where the next one begins, so prefetching cannot falsify a checkpoint and no buffer is saved; and a digest of all
the lane's blocks so far, so that two runs can be seen to have read the same tokens.
Costs: numpy copies, a hash; a document is tokenised again when a run resumes in the middle of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miniqwen.data.documents import Document, Position

BATCH_DOCUMENTS = 128  # read ahead of the packer in each lane; few, as every lane does it
BATCH_CHARACTERS = 40_000


@dataclass(frozen=True)
class EncodedDocument:
    """A document's tokens (its end token included), where it stands in its lane, and where the next one does.

    `counts`: one document, what was odd in it, and the rows passed over before it; `skipped`: units without a row.
    """

    tokens: np.ndarray
    position: Position
    after: Position
    counts: Mapping[str, int] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


def encoded_documents(
    documents: Iterator[Document],
    encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]],
    oddities: Callable[[Any], Mapping[str, int]] = lambda document: {},
) -> Iterator[EncodedDocument]:
    """Documents as tokens, encoded a few at a time: one call for each costs more where they are tiny.

    A batch ends with its window, so that the next one is not read before it is needed.
    """
    while True:
        read: list[Document] = []
        characters = 0
        while len(read) < BATCH_DOCUMENTS and characters < BATCH_CHARACTERS:
            read.append(next(documents))
            characters += len(read[-1].content)
            if read[-1].after.row == 0:
                break
        for tokens, found in zip(encode([document.content for document in read]), read, strict=True):
            counts = {"documents": 1, **found.passed, **oddities(found.content)}
            yield EncodedDocument(np.asarray(tokens), found.position, found.after, counts, found.skipped)


@dataclass(frozen=True)
class Cursor:
    """Where a lane's next block begins.

    `positions`: per source, the document in use or the next one; `taken`: tokens put into blocks so far, per source;
    `open_source`, `offset`: the document that the last block ended in, and how many of its tokens are used up;
    `counts`: {source: {name: documents and what was odd about them, or passed over, so far}}; `skipped`: {source:
    {unit: what was wrong with it}}, of units that could not be read;
    `digest`: BLAKE2b of the digest before the lane's last block and that block's tokens (32 bits each, little-endian).
    """

    positions: Mapping[str, Position]
    taken: Mapping[str, int]
    open_source: str | None = None
    offset: int = 0
    digest: str = ""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    skipped: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def start(cls, names: Sequence[str]) -> Cursor:
        return cls({name: Position() for name in names}, dict.fromkeys(names, 0))

    @property
    def epoch(self) -> int:
        """Of the source that has been used up most often."""
        return max(position.epoch for position in self.positions.values())

    def to_json(self) -> dict[str, Any]:
        # not dataclasses.asdict, which copies deeply: a twelfth of the whole data path's time
        return {**vars(self), "positions": {name: position._asdict() for name, position in self.positions.items()}}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Cursor:
        positions = {name: Position(**position) for name, position in stored["positions"].items()}
        return cls(**{**stored, "positions": positions})


@dataclass(frozen=True)
class Block:
    """`tokens` [length] and the cursor of the block after it."""

    tokens: np.ndarray
    cursor: Cursor


def pack(
    open_stream: Callable[[str, Position], Iterator[EncodedDocument]],
    shares: Mapping[str, float],
    cursor: Cursor,
    length: int,
) -> Iterator[Block]:
    """Endless blocks of `length` tokens of one lane, from `cursor` on.

    Sources are mixed by tokens: the next document comes from the source furthest below its share. Drawing documents
    by share instead would let long documents crowd out short ones.
    """
    streams = {name: open_stream(name, cursor.positions[name]) for name in shares}
    positions, taken = dict(cursor.positions), dict(cursor.taken)
    counts = {name: Counter(cursor.counts.get(name, {})) for name in shares}
    skipped = {name: dict(cursor.skipped.get(name, {})) for name in shares}
    name, offset, digest = cursor.open_source, cursor.offset, cursor.digest
    document = next(streams[name]) if name is not None else None
    while True:
        tokens = np.empty(length, dtype=np.int64)
        filled = 0
        while filled < length:
            if document is None or name is None:
                name = min(shares, key=lambda source: taken[source] / shares[source])
                document, offset = next(streams[name]), 0
                positions[name] = document.position
                for what, number in document.counts.items():
                    counts[name][what] += number
                skipped[name].update(document.skipped)
            part = document.tokens[offset : offset + length - filled]
            tokens[filled : filled + len(part)] = part
            filled, offset, taken[name] = filled + len(part), offset + len(part), taken[name] + len(part)
            if offset >= len(document.tokens):  # beyond it only where the data was changed under a cursor
                positions[name], document = document.after, None
        open_source, used = (name, offset) if document is not None else (None, 0)
        digest = chained(digest, tokens)
        told = {source: dict(found) for source, found in counts.items()}
        bad = {source: dict(found) for source, found in skipped.items() if found}
        yield Block(tokens, Cursor(dict(positions), dict(taken), open_source, used, digest, told, bad))


def lanes_together(cursors: Mapping[Any, Any]) -> dict[str, Any]:
    """What the lanes of `cursors` met in the text, in the form of one lane's cursor: little, whatever their number.

    Empty where `cursors` are not of lanes.
    """
    lanes = [lane for lane in cursors.values() if isinstance(lane, Mapping) and "counts" in lane]
    if not lanes:
        return {}
    total: Counter[str] = Counter({"documents": 0})
    skipped: dict[str, dict[str, str]] = defaultdict(dict)
    for lane in lanes:
        for found in lane["counts"].values():
            total.update(found)
        for source, units in lane["skipped"].items():
            skipped[source].update(units)
    return {"counts": {"all": dict(total)}, "skipped": dict(skipped)}


def data_report(cursors: Mapping[Any, Any]) -> dict[str, int]:
    """What was met in the text so far, over all lanes and sources; a unit that several lanes skipped counts once."""
    met = lanes_together(cursors)
    return {**met["counts"]["all"], "skipped_units": sum(map(len, met["skipped"].values()))} if met else {}


def skipped_units(cursors: Mapping[str, Any], source: str) -> dict[str, str]:
    """{unit: what was wrong with it} of a source, as any lane found it."""
    return {unit: why for lane in cursors.values() for unit, why in lane.get("skipped", {}).get(source, {}).items()}


def chained(digest: str, tokens: np.ndarray) -> str:
    """The digest after one more block."""
    return hashlib.blake2b(digest.encode() + tokens.astype("<u4").tobytes(), digest_size=8).hexdigest()


def split(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    """`tokens` cut into pieces of `length`; the last one may be shorter (validation counts every token once)."""
    return [tokens[start : start + length] for start in range(0, len(tokens), length)]


def best_fit(lengths: Iterable[int], capacity: int) -> list[list[int]]:
    """Which of the `lengths` share a block of at most `capacity` tokens: each block's, the longest first.

    A block takes the longest that is left, then those that leave least room: a subset sum that tries the most frequent
    lengths first and stops at a full block. Best-fit decreasing, which looks one example ahead, left 2.5 % of the
    blocks empty where this leaves 0.1 % (LOG.md). Costs half a second for 20,000 examples. Raises `ValueError` for a
    length that no block holds.
    """
    left = Counter(lengths)
    if left and max(left) > capacity:
        raise ValueError(f"an example of {max(left)} tokens does not fit a block of {capacity}")
    blocks = []
    while left:
        longest = max(left)
        blocks.append([longest, *_fullest(left - Counter([longest]), capacity - longest)])
        left -= Counter(blocks[-1])
    return blocks


def _fullest(left: Counter[int], room: int) -> tuple[int, ...]:
    """Some of `left` ({length: how many}) whose sum comes nearest to `room` from below."""
    reached: dict[int, tuple[int, ...]] = {0: ()}
    for length in sorted(left, key=lambda length: (-left[length], length)):
        if room in reached:
            break
        for total, chosen in list(reached.items()):
            for more in range(1, min(left[length], (room - total) // length) + 1):
                reached.setdefault(total + more * length, chosen + more * (length,))
    return reached[max(reached)]


def deal(blocks: Sequence[Sequence[int]], lengths: Sequence[int], order: Iterable[int]) -> list[list[int]]:
    """Indices into `lengths` for the places of `blocks` (from `best_fit`): those of one length come in `order`."""
    waiting: dict[int, deque[int]] = defaultdict(deque)
    for index in order:
        waiting[lengths[index]].append(int(index))
    return [[waiting[length].popleft() for length in block] for block in blocks]
