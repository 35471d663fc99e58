"""How blocks and examples become updates: the plan, and micro-batches.

Promises: an update is the same set of blocks (or examples) however it is cut into ranks and micro-batches; every rank
gets the same number of micro-batches; the update carries the data cursor that stands behind it. Documents that share a
row can be kept apart; fine-tuning examples, laid end to end without padding or packed into blocks, always are.
Costs: numpy copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from miniqwen.data.documents import permutation
from miniqwen.data.packing import Block, Cursor, best_fit, deal
from miniqwen.errors import UserError
from miniqwen.model.attention import cumulative_lengths, pinned
from miniqwen.model.loss import IGNORED
from miniqwen.questions.examples import Example
from miniqwen.training.prefetching import rounds_of


@dataclass(frozen=True)
class MicroBatch:
    """What the model sees at once.

    `input_ids`, `targets` [batch, length]: targets are shifted already (`targets[b, t]` follows `input_ids[b, t]`), and
    `IGNORED` where there is none. Where documents are kept apart, `position_ids` [batch, length] count within each, and
    `cu_seqlens` are their cumulative lengths over the rows laid end to end (see `attention.cumulative_lengths`), which
    stay on the host. `places` [num_targets]: where the targets stand in the flattened batch, if most positions have
    none, so that it pays to leave them out of the loss.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor | None = None
    cu_seqlens: np.ndarray | None = None
    places: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for other in (self.targets, self.position_ids):
            if other is not None and other.shape != self.input_ids.shape:
                raise ValueError(f"shapes differ: {tuple(other.shape)} and {tuple(self.input_ids.shape)}")

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORED).sum())

    @property
    def num_logits(self) -> int:
        """Rows that meet the output matrix."""
        return self.targets.numel() if self.places is None else self.places.numel()

    def num_bytes(self, token_bytes: np.ndarray | None) -> int:
        """Bytes of text in the targets, by a table of bytes per token; 0 without one."""
        targets = self.targets.numpy()
        return 0 if token_bytes is None else int(token_bytes[targets[targets != IGNORED]].sum())

    def to(self, device: torch.device) -> MicroBatch:
        """A copy on `device`, which the host does not wait for."""
        moved: dict[str, Any] = {
            name: pinned(value, device).to(device, non_blocking=True)
            for name, value in vars(self).items()
            if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Update:
    """One rank's share of an update: its micro-batches, what they count, and the cursor behind them.

    `cursor`: this rank's lanes, or the place in the epoch; see `packing.stored_cursors`. `rows`: the place in the
    update, and the source, of each block or example of the micro-batches, in their order.
    """

    micro_batches: tuple[MicroBatch, ...]
    num_targets: int
    num_tokens: int
    cursor: Mapping[str, Any]
    epoch: int
    num_bytes: int = 0
    rows: Sequence[tuple[int, str]] = ()

    def with_bytes(self, token_bytes: np.ndarray | None) -> Update:
        """With the bytes of its targets counted."""
        return replace(self, num_bytes=sum(batch.num_bytes(token_bytes) for batch in self.micro_batches))

    @classmethod
    def of(
        cls,
        micro_batches: Sequence[MicroBatch],
        cursor: Mapping[str, Any],
        epoch: int,
        rows: Sequence[tuple[int, str]] = (),
    ) -> Update:
        targets = sum(batch.num_targets for batch in micro_batches)
        tokens = sum(batch.input_ids.numel() for batch in micro_batches)
        return cls(tuple(micro_batches), targets, tokens, cursor, epoch, rows=rows)


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


def block_batch(blocks: Sequence[np.ndarray], length: int, end: int | None = None) -> MicroBatch:
    """Blocks as rows [blocks, length]; a shorter one is filled with tokens that are neither trained on nor counted.

    No blocks make one such row: a rank that has none left still takes part.
    With `end`, the token that every document ends with and none contains, the documents of a block are kept apart: no
    target crosses a boundary, and positions restart. A document that goes on from the block before is the first of this
    one, and its positions restart too: rotary attention within a document knows distances only.
    """
    tokens = np.zeros((max(len(blocks), 1), length), dtype=np.int64)
    targets = np.full(tokens.shape, IGNORED, dtype=np.int64)
    for row, block in enumerate(blocks):
        tokens[row, : len(block)] = block
        targets[row, : len(block) - 1] = block[1:]
    if end is None:
        return MicroBatch(torch.from_numpy(tokens), torch.from_numpy(targets))
    lengths = np.array([len(block) for block in blocks] or [0])
    is_last = (tokens == end) & (np.arange(length) < lengths[:, None])
    targets[is_last] = IGNORED
    begins = np.ones_like(is_last)
    begins[:, 1:] = is_last[:, :-1]
    return _apart(tokens, targets, np.flatnonzero(begins))


def _apart(tokens: np.ndarray, targets: np.ndarray, starts: np.ndarray, places: np.ndarray | None = None) -> MicroBatch:
    """Rows [rows, length] whose documents begin at `starts`, counted over the rows laid end to end.

    `places`: see `MicroBatch`.
    """
    lengths = np.diff(starts, append=tokens.size)
    positions = (np.arange(tokens.size) - np.repeat(starts, lengths)).reshape(tokens.shape)
    input_ids, shifted, position_ids = (torch.from_numpy(array) for array in (tokens, targets, positions))
    wanted = None if places is None else torch.from_numpy(places)
    return MicroBatch(input_ids, shifted, position_ids, cumulative_lengths(starts, tokens.size), wanted)


def example_batch(examples: Sequence[Example]) -> MicroBatch:
    """Examples end to end in one row [1, total], kept apart; no examples make a row without targets."""
    return packed_batch([examples], max(1, sum(len(example.input_ids) for example in examples)))


def packed_batch(rows: Sequence[Sequence[Example]], length: int) -> MicroBatch:
    """Each row's examples end to end in `length` tokens, kept apart; the rest of a row is filled and not trained on.

    Raises `ValueError` when a row's examples are longer than `length`.
    """
    tokens = np.zeros((len(rows), length), dtype=np.int64)
    targets = np.full((len(rows), length), IGNORED, dtype=np.int64)
    starts = []
    for row, examples in enumerate(rows):
        begin = 0
        for example in examples:
            ids = np.asarray(example.input_ids, dtype=np.int64)
            after = begin + len(ids)
            if after > length:
                raise ValueError(f"examples of more than {length} tokens in a row of {length}")
            tokens[row, begin:after] = ids
            first = max(example.prompt_length, 1)  # position t predicts t + 1: the last prompt token is trained
            targets[row, begin + first - 1 : after - 1] = ids[first:]
            starts.append(row * length + begin)
            begin = after
        if begin < length:  # the filling is a document of its own
            starts.append(row * length + begin)
    return _apart(tokens, targets, np.array(starts), np.flatnonzero(targets != IGNORED))


def text_updates(
    lanes: Mapping[int, Iterator[Block]], plan: Plan, num_lanes: int, workers: int = 1, end: int | None = None
) -> Iterator[Update]:
    """Endless updates of this rank: the same number of blocks from each of its lanes, in lane order.

    `workers`: see `rounds_of`. `end` keeps documents apart: see `block_batch`.
    """
    rounds = plan.rows_per_update // num_lanes
    order = sorted(lanes)
    for made in rounds_of([lanes[lane] for lane in order], rounds, workers):
        blocks = [of_lane[number] for number in range(rounds) for of_lane in made]
        length = len(blocks[0].tokens)
        micro_batches = [
            block_batch([block.tokens for block in blocks[start : start + plan.micro_batch]], length, end)
            for start in range(0, len(blocks), plan.micro_batch)
        ]
        cursor = {str(lane): of_lane[-1].cursor for lane, of_lane in zip(order, made, strict=True)}
        places = [number * num_lanes + lane for number in range(rounds) for lane in order]
        rows = [(place, block.source) for place, block in zip(places, blocks, strict=True)]
        yield Update.of(micro_batches, cursor, epoch=0, rows=rows)


def lane_cursors(stored: Mapping[str, Any], lanes: range) -> dict[int, Cursor]:
    """The cursors to start `lanes` from: stored ones, or the beginning of the data."""
    return {lane: Cursor.from_json(stored[str(lane)]) if stored else Cursor() for lane in lanes}


def updates_per_epoch(num_rows: int, plan: Plan) -> int:
    """Updates in one pass over the examples (or blocks of them); the last one may be short."""
    return math.ceil(num_rows / plan.rows_per_update)


def example_updates(
    epoch_rows: Callable[[int], Sequence[Sequence[Example]]],
    batch: Callable[[Sequence[Sequence[Example]]], MicroBatch],
    plan: Plan,
    cursor: Mapping[str, Any],
) -> Iterator[Update]:
    """Endless updates of this rank over the rows of each epoch, from `cursor` on ({"epoch", "update"}, or nothing).

    `epoch_rows(epoch)`: that epoch's rows in their order; `batch(rows)`: some of them as a micro-batch.
    An update's rows are dealt out in turn, so that a short last update leaves no rank without micro-batches.
    """
    epoch, update = cursor.get("epoch", 0), cursor.get("update", 0)
    while True:
        rows = epoch_rows(epoch)
        per_epoch = updates_per_epoch(len(rows), plan)
        for number in range(update, per_epoch):
            chosen = rows[number * plan.rows_per_update : (number + 1) * plan.rows_per_update]
            mine = chosen[plan.rank :: plan.world_size]
            micro_batches = [batch(mine[k :: plan.accumulation]) for k in range(plan.accumulation)]
            places = range(plan.rank, len(chosen), plan.world_size)
            in_order = [(place, "") for k in range(plan.accumulation) for place in places[k :: plan.accumulation]]
            done = number + 1 == per_epoch
            after = {"epoch": epoch + 1, "update": 0} if done else {"epoch": epoch, "update": number + 1}
            num_tokens = sum(len(example.input_ids) for row in mine for example in row)
            yield replace(Update.of(micro_batches, after, epoch, in_order), num_tokens=num_tokens)
        epoch, update = epoch + 1, 0


def single_rows(examples: Sequence[Example], seed: int) -> Callable[[int], list[list[Example]]]:
    """Rows of one example each, shuffled by (seed, epoch)."""
    return lambda epoch: [[examples[index]] for index in permutation(len(examples), seed, epoch)]


def padding_free(rows: Sequence[Sequence[Example]]) -> MicroBatch:
    """All examples of `rows` in one row, without padding."""
    return example_batch([example for row in rows for example in row])


def block_rows(examples: Sequence[Example], length: int, seed: int) -> Callable[[int], list[list[Example]]]:
    """Best-fit blocks of `length` tokens; who shares a block, and their order, depend on (seed, epoch, data) alone."""
    lengths = [len(example.input_ids) for example in examples]
    shapes = best_fit(lengths, length)

    def rows(epoch: int) -> list[list[Example]]:
        blocks = deal(shapes, lengths, permutation(len(examples), seed, epoch))
        order = permutation(len(blocks), seed, epoch, 1)  # best fit puts the longest first
        return [[examples[index] for index in blocks[number]] for number in order]

    return rows


def packed(rows: Sequence[Sequence[Example]], length: int, size: int) -> MicroBatch:
    """`rows` as blocks [size, length]: empty ones fill the batch, so that its shape never changes."""
    return packed_batch([*rows, *([()] * (size - len(rows)))], length)
