"""How documents fill blocks: text is concatenated, then split (no padding, no dropped text); examples are fitted whole.

Promises: a block is of one source, and the source of each block follows from its number (mixture.py), so that shares
are shares of tokens. Every block carries the cursor that says where the next one begins, so prefetching cannot falsify
a checkpoint and no buffer is saved; and a digest of all the lane's blocks so far, so that two runs can be seen to have
read the same tokens.
Costs: numpy copies, a hash; a document is tokenised again when a run resumes in the middle of it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from miniqwen.data.mixture import Mixture
from miniqwen.data.strands import Reading, SourceCursor


@dataclass(frozen=True)
class Cursor:
    """Where a lane's next block begins.

    `block`: its number; `sources`: where the lane stands in each; `digest`: BLAKE2b of the digest before the lane's
    last block and that block's tokens (32 bits each, little-endian).
    """

    block: int = 0
    sources: Mapping[str, SourceCursor] = field(default_factory=dict)
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        # not dataclasses.asdict, which copies deeply
        sources = {name: dict(vars(cursor)) for name, cursor in self.sources.items()}
        return {"block": self.block, "sources": sources, "digest": self.digest}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Cursor:
        sources = {name: SourceCursor.from_json(cursor) for name, cursor in stored["sources"].items()}
        return cls(stored["block"], sources, stored["digest"])


def stored_cursors(cursors: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON holds them: each lane's, or what stands in their place in fine-tuning."""
    return {key: value.to_json() if isinstance(value, Cursor) else value for key, value in cursors.items()}


@dataclass(frozen=True)
class Block:
    """`tokens` [length] of `source`, and the cursor of the block after it."""

    tokens: np.ndarray
    cursor: Cursor
    source: str = ""


def pack(
    open_source: Callable[[str, SourceCursor], Reading],
    mixture: Mixture,
    lane: int,
    cursor: Cursor,
    length: int,
    bytes_of_tokens: np.ndarray | None = None,
) -> Iterator[Block]:
    """Endless blocks of `length` tokens of one lane, from `cursor` on; `bytes_of_tokens` [vocabulary] to count text."""
    sources = {name: cursor.sources.get(name, SourceCursor()) for name in mixture.names}
    readings = {name: open_source(name, found) for name, found in sources.items()}
    number, digest = cursor.block, cursor.digest
    while True:
        name, tokens = mixture.source(lane, number), np.empty(length, dtype=np.int64)
        readings[name].fill(tokens, number, bytes_of_tokens)
        digest, number = chained(digest, tokens), number + 1
        sources = {**sources, name: readings[name].cursor()}
        yield Block(tokens, Cursor(number, sources, digest), name)


def lanes_together(cursors: Mapping[str, Any]) -> dict[str, Any]:
    """What the lanes of `cursors` have read of each source, added up: little, whatever their number.

    {source: {"tokens", "bytes", "epoch": the furthest, "counts": {name: number}, "skipped": {unit: what was wrong}}};
    empty where `cursors` are not of lanes.
    """
    parts: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for lane in cursors.values():
        if isinstance(lane, Mapping) and "sources" in lane:
            lane = Cursor.from_json(lane)
        if isinstance(lane, Cursor):
            for name, read in lane.sources.items():
                parts[name].append(vars(read))
    return {name: added_up(found) for name, found in parts.items()}


def added_up(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several lanes, or ranks, have read of one source."""
    counts: Counter[str] = Counter({"documents": 0})
    skipped: dict[str, str] = {}
    for part in parts:
        counts.update(part["counts"])
        skipped.update(part["skipped"])
    return {
        **{name: sum(part[name] for part in parts) for name in ("tokens", "bytes")},
        "epoch": max(part["epoch"] for part in parts), "counts": dict(counts), "skipped": skipped,
    }  # fmt: skip


def read_so_far(ranks: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`lanes_together` of all ranks as one."""
    names = dict.fromkeys(name for rank in ranks for name in rank)
    return {name: added_up([rank[name] for rank in ranks if name in rank]) for name in names}


def data_report(read: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """What was met in the text so far, over all lanes and sources; a unit that several lanes skipped counts once."""
    if not read:
        return {}
    counts = Counter({"documents": 0})
    for found in read.values():
        counts.update(found["counts"])
    return {**counts, "skipped_units": sum(len(found["skipped"]) for found in read.values())}


def skipped_units(cursors: Mapping[str, Any], source: str) -> dict[str, str]:
    """{unit: what was wrong with it} of a source, as any lane found it."""
    found: dict[str, str] = lanes_together(cursors).get(source, {}).get("skipped", {})
    return found


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
