"""Updates: the same rows however they are cut; targets one to the left; examples end to end."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniqwen.data.packing import Block, Cursor, split
from miniqwen.errors import UserError
from miniqwen.model.loss import IGNORED
from miniqwen.questions.examples import Example
from miniqwen.training.batches import (
    MicroBatch,
    Plan,
    block_batch,
    block_rows,
    example_batch,
    example_updates,
    packed,
    packed_batch,
    padding_free,
    single_rows,
    text_updates,
    updates_per_epoch,
)
from miniqwen.training.prefetching import prefetched


def lane(number: int) -> Iterator[Block]:
    for count in itertools.count():
        yield Block(np.array([number, count, 7]), Cursor(count))


def rows(plan: Plan, lanes: int, updates: int) -> list[set[tuple[int, ...]]]:
    own = {number: lane(number) for number in plan.lanes_of_rank(lanes)}
    made = itertools.islice(text_updates(own, plan, lanes), updates)
    return [{tuple(row.tolist()) for batch in update.micro_batches for row in batch.input_ids} for update in made]


def test_an_update_holds_the_same_blocks_for_every_world_size_and_micro_batch() -> None:
    whole = rows(Plan(8, 1, 0, 1), lanes=8, updates=3)
    assert whole[1] == {(number, 1, 7) for number in range(8)}
    for world, micro_batch, accumulation in itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4, 8)):
        if world * micro_batch * accumulation != 8:
            continue
        parts = [rows(Plan(micro_batch, accumulation, rank, world), 8, 3) for rank in range(world)]
        for update in range(3):
            assert set.union(*(part[update] for part in parts)) == whole[update]
            assert sum(len(part[update]) for part in parts) == 8


def test_fewer_lanes_than_blocks_give_several_blocks_each() -> None:
    assert rows(Plan(4, 2, 0, 1), lanes=2, updates=1)[0] == {
        (number, count, 7) for number in (0, 1) for count in range(4)
    }


@pytest.mark.parametrize(("lanes", "world"), [(3, 2), (5, 1)])
def test_lanes_that_do_not_fit_are_refused(lanes: int, world: int) -> None:
    with pytest.raises(UserError, match="data lanes"):
        Plan(4, 2, 0, world).lanes_of_rank(lanes)


def test_targets_stand_one_to_the_left_and_short_blocks_are_not_counted() -> None:
    batch = block_batch([np.array([1, 2, 3]), np.array([4, 5])], length=3)
    assert batch.input_ids.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert batch.targets.tolist() == [[2, 3, IGNORED], [5, IGNORED, IGNORED]]
    assert batch.num_targets == 3


def test_examples_lie_end_to_end_and_train_only_their_completions() -> None:
    batch = example_batch([Example((1, 2, 3, 4), prompt_length=2), Example((5, 6), prompt_length=1)])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch.targets.tolist() == [[IGNORED, 3, 4, IGNORED, 6, IGNORED]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert documents_of(batch) == [[1, 2, 3, 4], [5, 6]]


def test_plain_text_trains_on_every_token_but_the_first() -> None:
    assert example_batch([Example((1, 2, 3), prompt_length=0)]).targets.tolist() == [[2, 3, IGNORED]]


def test_a_row_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        MicroBatch(torch.zeros(1, 3), torch.zeros(1, 2))


def documents_of(batch: MicroBatch) -> list[list[int]]:
    """The tokens of each document of a micro-batch."""
    assert batch.cu_seqlens is not None
    ends = np.unique(batch.cu_seqlens).tolist()
    return [batch.input_ids.flatten()[start:end].tolist() for start, end in itertools.pairwise(ends)]


def test_documents_of_blocks_are_kept_apart_at_their_end_tokens() -> None:
    end = 9
    batch = block_batch([np.array([1, 2, 9, 3, 9, 4]), np.array([9, 5, 6, 9])], length=6, end=end)
    assert documents_of(batch) == [[1, 2, 9], [3, 9], [4], [9], [5, 6, 9], [0, 0]]
    assert batch.targets.tolist() == [[2, 9, IGNORED, 9, IGNORED, IGNORED], [IGNORED, 6, 9, IGNORED, IGNORED, IGNORED]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 0, 1]]
    assert batch.num_targets == 5
    filled = block_batch([np.array([1, 0, 2])], length=5, end=0)  # the filling is no end, though it looks like one
    assert documents_of(filled) == [[1, 0], [2, 0, 0]]
    assert block_batch([], length=3, end=0).num_targets == 0  # of a rank that has no blocks left
    assert documents_of(block_batch([], length=3, end=0)) == [[0, 0, 0]]


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(st.lists(st.integers(1, 50), max_size=9), min_size=1, max_size=20), length=st.integers(2, 12))
def test_no_target_crosses_a_boundary_and_within_documents_none_is_lost(
    documents: list[list[int]], length: int
) -> None:
    tokens = np.array([token for document in documents for token in [*document, 0]])
    batch = block_batch(split(tokens, length), length, end=0)
    wanted = [IGNORED] * len(tokens)
    for number in range(len(tokens) - 1):
        if tokens[number] != 0 and (number + 1) % length:  # an end has no next token, nor has the end of a block
            wanted[number] = int(tokens[number + 1])
    assert batch.targets.flatten()[: len(tokens)].tolist() == wanted
    assert set(batch.targets.flatten()[len(tokens) :].tolist()) <= {IGNORED}


def test_packed_rows_hold_whole_examples_and_their_filling_is_not_trained_on() -> None:
    rows = [[Example((1, 2, 3), 1), Example((4, 5), 0)], [], [Example((6, 7, 8, 9, 10, 11), 5)]]
    batch = packed_batch(rows, length=6)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 0], [0] * 6, [6, 7, 8, 9, 10, 11]]
    assert batch.targets.tolist() == [
        [2, 3, IGNORED, 5, IGNORED, IGNORED], [IGNORED] * 6, [IGNORED] * 4 + [11, IGNORED]
    ]  # fmt: skip
    assert documents_of(batch) == [[1, 2, 3], [4, 5], [0], [0] * 6, [6, 7, 8, 9, 10, 11]]
    with pytest.raises(ValueError, match="more than 5 tokens"):
        packed_batch(rows, length=5)


EXAMPLES = [Example((number, 99), prompt_length=1) for number in range(22)]


def seen(plan: Plan, cursor: dict[str, int], updates: int) -> list[list[int]]:
    made = itertools.islice(example_updates(single_rows(EXAMPLES, 3), padding_free, plan, cursor), updates)
    return [
        sorted(
            int(token)
            for batch in update.micro_batches
            if batch.num_targets
            for token in batch.input_ids.flatten()
            if token != 99
        )
        for update in made
    ]


def test_an_epoch_holds_every_example_once_and_the_next_one_has_another_order() -> None:
    plan = Plan(2, 2, 0, 1)
    per_epoch = updates_per_epoch(len(EXAMPLES), plan)
    assert per_epoch == 6
    updates = seen(plan, {}, 2 * per_epoch)
    first, second = updates[:per_epoch], updates[per_epoch:]
    assert sorted(itertools.chain(*first)) == sorted(itertools.chain(*second)) == list(range(22))
    assert first != second
    assert [len(update) for update in first] == [4, 4, 4, 4, 4, 2]


def test_updates_of_examples_do_not_depend_on_ranks_or_accumulation_and_every_rank_has_the_same_number() -> None:
    whole = seen(Plan(8, 1, 0, 1), {}, 6)
    for plan_of in (lambda rank: Plan(2, 2, rank, 2), lambda rank: Plan(1, 2, rank, 4)):
        world = plan_of(0).world_size
        parts = [seen(plan_of(rank), {}, 6) for rank in range(world)]
        assert [sorted(itertools.chain(*update)) for update in zip(*parts, strict=True)] == whole
        counts = {
            len(update.micro_batches)
            for rank in range(world)
            for update in itertools.islice(
                example_updates(single_rows(EXAMPLES, 3), padding_free, plan_of(rank), {}), 6
            )
        }
        assert counts == {2}


def test_fine_tuning_goes_on_from_a_cursor_in_the_middle_of_an_epoch() -> None:
    plan = Plan(2, 2, 0, 1)
    made = itertools.islice(example_updates(single_rows(EXAMPLES, 3), padding_free, plan, {}), 9)
    cursors = [update.cursor for update in made]
    for done, cursor in enumerate(cursors, 1):
        assert seen(plan, dict(cursor), 4) == seen(plan, {}, done + 4)[done:]


LONG_AND_SHORT = [Example(tuple(range(1, 2 + number * 7 % 23)), 0) for number in range(61)]


def blocks_seen(plan: Plan, cursor: dict[str, int], updates: int) -> list[list[list[list[int]]]]:
    """Per update its rows of documents; filling and empty rows left out."""
    batch = functools.partial(packed, length=24, size=plan.micro_batch)
    made = itertools.islice(example_updates(block_rows(LONG_AND_SHORT, 24, 3), batch, plan, cursor), updates)
    found = []
    for update in made:
        assert {tuple(part.input_ids.shape) for part in update.micro_batches} == {(plan.micro_batch, 24)}
        assert len(update.micro_batches) == plan.accumulation
        rows = [row for part in update.micro_batches for row in rows_of(part) if row]
        assert update.num_tokens == sum(len(document) for row in rows for document in row)
        found.append(rows)
    return found


def rows_of(batch: MicroBatch) -> list[list[list[int]]]:
    rows, place = [[] for _ in batch.input_ids], 0
    for document in documents_of(batch):
        if document[0] != 0:
            rows[place // 24].append(document)
        place += len(document)
    return rows


def test_packed_updates_do_not_depend_on_ranks_and_every_epoch_holds_every_example_once() -> None:
    per_epoch = updates_per_epoch(len(block_rows(LONG_AND_SHORT, 24, 3)(0)), Plan(4, 2, 0, 1))
    whole = blocks_seen(Plan(4, 2, 0, 1), {}, 2 * per_epoch)
    for epoch in (whole[:per_epoch], whole[per_epoch:]):
        seen = sorted(len(document) for update in epoch for row in update for document in row)
        assert seen == sorted(len(example.input_ids) for example in LONG_AND_SHORT)
    assert whole[:per_epoch] != whole[per_epoch:]
    assert 0 < len(whole[per_epoch - 1]) < 8  # the last update is short: not vacuous
    for micro_batch, accumulation, world in ((2, 2, 2), (1, 2, 4), (8, 1, 1)):
        parts = [blocks_seen(Plan(micro_batch, accumulation, rank, world), {}, 2 * per_epoch) for rank in range(world)]
        for update, expected in enumerate(whole):
            assert sorted(row for part in parts for row in part[update]) == sorted(expected)
    for done in (1, per_epoch - 1, per_epoch + 2):
        batch = functools.partial(packed, length=24, size=4)
        made = example_updates(block_rows(LONG_AND_SHORT, 24, 3), batch, Plan(4, 2, 0, 1), {})
        cursor = dict(next(itertools.islice(made, done - 1, None)).cursor)
        assert blocks_seen(Plan(4, 2, 0, 1), cursor, 2) == blocks_seen(Plan(4, 2, 0, 1), {}, done + 2)[done:]


def test_working_ahead_changes_nothing_and_errors_arrive_in_their_place() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise UserError("row 5 is broken")

    ahead = prefetched(numbers())
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(UserError, match="row 5 is broken"):
        next(ahead)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_error_in_one_lane_comes_with_the_update_that_needs_its_block(workers: int) -> None:
    def broken() -> Iterator[Block]:
        yield from itertools.islice(lane(1), 5)
        raise UserError("row 5 is broken")

    lanes = {0: lane(0), 1: broken(), 2: lane(2), 3: lane(3)}
    made = text_updates(lanes, Plan(4, 1, 0, 1), 4, workers)
    for number in range(5):
        assert next(made).micro_batches[0].input_ids[:, 1].tolist() == [number] * 4
    with pytest.raises(UserError, match="row 5 is broken"):
        next(made)
