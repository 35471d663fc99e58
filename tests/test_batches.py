"""Updates: the same rows however they are cut; targets one to the left; examples end to end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from miniqwen.batches import (
    IGNORED,
    MicroBatch,
    Plan,
    block_batch,
    example_batch,
    example_updates,
    prefetched,
    text_updates,
    updates_per_epoch,
)
from miniqwen.config import UserError
from miniqwen.packing import Block, Cursor
from miniqwen.qa import Example


def lane(number: int) -> Iterator[Block]:
    for count in itertools.count():
        yield Block(np.array([number, count, 7]), Cursor.start(["a"]))


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
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 0, 0, 1, 1]]


def test_plain_text_trains_on_every_token_but_the_first() -> None:
    assert example_batch([Example((1, 2, 3), prompt_length=0)]).targets.tolist() == [[2, 3, IGNORED]]


def test_a_row_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        MicroBatch(torch.zeros(1, 3), torch.zeros(1, 2))


EXAMPLES = [Example((number, 99), prompt_length=1) for number in range(22)]


def seen(plan: Plan, cursor: dict[str, int], updates: int) -> list[list[int]]:
    made = itertools.islice(example_updates(EXAMPLES, plan, 3, cursor), updates)
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
            for update in itertools.islice(example_updates(EXAMPLES, plan_of(rank), 3, {}), 6)
        }
        assert counts == {2}


def test_fine_tuning_goes_on_from_a_cursor_in_the_middle_of_an_epoch() -> None:
    plan = Plan(2, 2, 0, 1)
    cursors = [update.cursor for update in itertools.islice(example_updates(EXAMPLES, plan, 3, {}), 9)]
    for done, cursor in enumerate(cursors, 1):
        assert seen(plan, dict(cursor), 4) == seen(plan, {}, done + 4)[done:]


def test_working_ahead_changes_nothing_and_errors_arrive_in_their_place() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise UserError("row 5 is broken")

    ahead = prefetched(numbers())
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(UserError, match="row 5 is broken"):
        next(ahead)
