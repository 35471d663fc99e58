"""How blocks and examples become updates: the plan, micro-batches, prefetching.

Promises: an update is the same set of blocks (or examples) however it is cut into ranks and micro-batches; every rank
gets the same number of micro-batches; the update carries the data cursor that stands behind it. Fine-tuning examples
are laid end to end without padding, and do not see each other.
Costs: background threads (`--preprocessing_num_workers`) that work ahead by a few updates.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from miniqwen.config import UserError
from miniqwen.documents import permutation
from miniqwen.packing import Block, Cursor
from miniqwen.qa import Example

IGNORED = -100  # target of positions that are not trained on, as everywhere in the field
Item = TypeVar("Item")


@dataclass(frozen=True)
class MicroBatch:
    """What the model sees at once.

    `input_ids`, `targets` [batch, length]: targets are shifted already (`targets[b, t]` follows `input_ids[b, t]`), and
    `IGNORED` where there is none. `position_ids`, `documents` [batch, length] stand where several examples share a row.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor | None = None
    documents: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for other in (self.targets, self.position_ids, self.documents):
            if other is not None and other.shape != self.input_ids.shape:
                raise ValueError(f"shapes differ: {tuple(other.shape)} and {tuple(self.input_ids.shape)}")

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> MicroBatch:
        """A copy on `device`."""
        moved = (None if value is None else value.to(device, non_blocking=True) for value in vars(self).values())
        return MicroBatch(*moved)  # type: ignore[arg-type]  # tensors stay tensors, in the fields' order


@dataclass(frozen=True)
class Update:
    """One rank's share of an update: its micro-batches, their token counts, and the cursor behind them."""

    micro_batches: tuple[MicroBatch, ...]
    num_targets: int
    num_tokens: int
    cursor: Mapping[str, Any]  # JSON-able: this rank's lanes, or the place in the epoch
    epoch: int

    @classmethod
    def of(cls, micro_batches: Sequence[MicroBatch], cursor: Mapping[str, Any], epoch: int) -> Update:
        targets = sum(batch.num_targets for batch in micro_batches)
        tokens = sum(batch.input_ids.numel() for batch in micro_batches)
        return cls(tuple(micro_batches), targets, tokens, cursor, epoch)


@dataclass(frozen=True)
class Plan:
    """How an update is shared out: `micro_batch` rows at once, `accumulation` times, on `world_size` ranks."""

    micro_batch: int
    accumulation: int
    rank: int
    world_size: int

    @property
    def rows_per_update(self) -> int:
        return self.micro_batch * self.accumulation * self.world_size

    def lanes_of_rank(self, lanes: int) -> range:
        """The lanes this rank reads; raises `UserError` when they cannot be shared out evenly."""
        if lanes % self.world_size or self.rows_per_update % lanes:
            raise UserError(
                f"{lanes} data lanes (--data_lanes) do not fit an update of {self.rows_per_update} blocks on "
                f"{self.world_size} processes: the lanes must be a multiple of the processes and divide the blocks"
            )
        each = lanes // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)


def block_batch(blocks: Sequence[np.ndarray], length: int) -> MicroBatch:
    """Blocks as rows [blocks, length]; a shorter one is filled with tokens that are neither trained on nor counted.

    No blocks make one such row: a rank that has none left still takes part.
    """
    tokens = np.zeros((max(len(blocks), 1), length), dtype=np.int64)
    targets = np.full(tokens.shape, IGNORED, dtype=np.int64)
    for row, block in enumerate(blocks):
        tokens[row, : len(block)] = block
        targets[row, : len(block) - 1] = block[1:]
    return MicroBatch(torch.from_numpy(tokens), torch.from_numpy(targets))


def example_batch(examples: Sequence[Example]) -> MicroBatch:
    """Examples end to end in one row [1, total], masked from each other; no examples make a row without targets."""
    if not examples:
        empty = torch.zeros((1, 1), dtype=torch.int64)
        return MicroBatch(empty, torch.full_like(empty, IGNORED), empty, empty)
    targets, positions, documents = [], [], []
    for number, example in enumerate(examples):
        length = len(example.input_ids)
        after = np.append(np.asarray(example.input_ids[1:], dtype=np.int64), IGNORED)
        after[: max(example.prompt_length - 1, 0)] = (
            IGNORED  # position t predicts t+1: the last prompt token is trained
        )
        targets.append(after)
        positions.append(np.arange(length))
        documents.append(np.full(length, number))
    tokens = np.concatenate([np.asarray(example.input_ids, dtype=np.int64) for example in examples])
    rows = [torch.from_numpy(np.concatenate(parts))[None] for parts in (targets, positions, documents)]
    return MicroBatch(torch.from_numpy(tokens)[None], *rows)


def text_updates(
    lanes: Mapping[int, Iterator[Block]], plan: Plan, num_lanes: int, workers: int = 1
) -> Iterator[Update]:
    """Endless updates of this rank: the same number of blocks from each of its lanes, in lane order.

    Several `workers` (threads) make the blocks of several lanes at once: the hub, the tokenizer and parquet do not wait
    for each other. A lane is only ever in the hands of one of them, so its blocks are the same.
    """
    rounds = plan.rows_per_update // num_lanes
    order = sorted(lanes)
    with ThreadPoolExecutor(workers) as pool:
        at_once = pool.map if workers > 1 else map
        while True:
            made = list(at_once(lambda lane: [next(lanes[lane]) for _ in range(rounds)], order))
            blocks = [of_lane[number] for number in range(rounds) for of_lane in made]
            length = len(blocks[0].tokens)
            micro_batches = [
                block_batch([block.tokens for block in blocks[start : start + plan.micro_batch]], length)
                for start in range(0, len(blocks), plan.micro_batch)
            ]
            last = [of_lane[-1].cursor for of_lane in made]
            cursor = {str(lane): behind.to_json() for lane, behind in zip(order, last, strict=True)}
            yield Update.of(micro_batches, cursor, max(behind.epoch for behind in last))


def lane_cursors(stored: Mapping[str, Any], names: Sequence[str], lanes: range) -> dict[int, Cursor]:
    """The cursors to start `lanes` from: stored ones, or the beginning of the data."""
    if not stored:
        return {lane: Cursor.start(names) for lane in lanes}
    return {lane: Cursor.from_json(stored[str(lane)]) for lane in lanes}


def updates_per_epoch(num_examples: int, plan: Plan) -> int:
    """Updates in one pass over the examples; the last one may be short."""
    return math.ceil(num_examples / plan.rows_per_update)


def example_updates(examples: Sequence[Example], plan: Plan, seed: int, cursor: Mapping[str, Any]) -> Iterator[Update]:
    """Endless updates of this rank over the shuffled examples, from `cursor` on ({"epoch", "update"}, or nothing).

    An update's examples are dealt out in turn, so that a short last update leaves no rank without micro-batches.
    """
    epoch, update = cursor.get("epoch", 0), cursor.get("update", 0)
    per_epoch = updates_per_epoch(len(examples), plan)
    while True:
        order = permutation(len(examples), seed, epoch)
        for number in range(update, per_epoch):
            chosen = order[number * plan.rows_per_update : (number + 1) * plan.rows_per_update]
            mine = [examples[index] for index in chosen[plan.rank :: plan.world_size]]
            micro_batches = [example_batch(mine[k :: plan.accumulation]) for k in range(plan.accumulation)]
            done = number + 1 == per_epoch
            after = {"epoch": epoch + 1, "update": 0} if done else {"epoch": epoch, "update": number + 1}
            yield Update.of(micro_batches, after, epoch)
        epoch, update = epoch + 1, 0


class Prefetched(Iterator[Item]):
    """The same items, made by a background thread that works up to `ahead` of them in advance; without one at 0.

    An error in the thread is raised here, in its place. Cursors travel with the items, so working ahead changes
    nothing. Closing this iterator, or losing it, ends the thread.
    """

    def __init__(self, items: Iterator[Item], ahead: int) -> None:
        self._items = items
        self._made: queue.Queue[tuple[Item | None, BaseException | None]] | None = None
        self._closed = threading.Event()
        if ahead:
            self._made = queue.Queue(maxsize=ahead)
            threading.Thread(target=_work_ahead, args=(items, self._made, self._closed), daemon=True).start()

    def within(self, seconds: float | None) -> Item | None:
        """The next item, or None when the thread does not have it in time; None `seconds` wait without end."""
        if self._made is None:
            return next(self._items)
        try:
            item, error = self._made.get(timeout=seconds)
        except queue.Empty:
            return None
        if error is not None:
            raise error
        return item

    def __next__(self) -> Item:
        item = self.within(None)
        assert item is not None
        return item

    def close(self) -> None:
        self._closed.set()
        while self._made is not None and not self._made.empty():  # a thread that waits to hand over can go on, and end
            self._made.get_nowait()

    def __del__(self) -> None:
        self.close()


def _work_ahead(
    items: Iterator[Item], made: queue.Queue[tuple[Item | None, BaseException | None]], closed: threading.Event
) -> None:
    try:
        for item in items:
            made.put((item, None))
            if closed.is_set():
                return
        made.put((None, StopIteration()))
    except BaseException as error:
        made.put((None, error))


def prefetched(items: Iterator[Item], ahead: int = 2) -> Prefetched[Item]:
    """`items`, made in advance; see `Prefetched`."""
    return Prefetched(items, ahead)
