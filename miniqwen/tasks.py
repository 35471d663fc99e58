"""What a run trains on and is judged by: streamed text in blocks, or questions with their answers masked in.

Promises: both tasks give the loop the same three things: updates from any cursor on, validation micro-batches of this
rank, and the identity of the data, which a resumed run must find unchanged. Validation data is never trained on.
Costs: opening a source lists its files; held-out text is tokenised once at the start, questions all at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.batches import (
    MicroBatch,
    Plan,
    Prefetched,
    Update,
    block_batch,
    example_batch,
    example_updates,
    lane_cursors,
    prefetched,
    text_updates,
    updates_per_epoch,
)
from miniqwen.config import TrainConfig, UserError
from miniqwen.documents import HeldOut, LaneOrder, hold_out
from miniqwen.packing import encoded_documents, pack, split
from miniqwen.qa import Example, Template, plain_example, shuffle_choices, training_example, training_questions
from miniqwen.questions import Question
from miniqwen.sources import Repository, Source, resolve
from miniqwen.tokenization_miniqwen import encode_documents

TEXT_COLUMNS = {"wikipedia": "text", "arxiv": "text"}


@dataclass(frozen=True)
class Task:
    """One run's data.

    `updates(cursor)`: endless updates of this rank from a stored cursor on; `validation`: this rank's micro-batches;
    `questions`: all of them, for accuracy; `identity`: what the data order depends on; `notes`: for the user.
    `tokenizer` is the one that made the tokens.
    """

    updates: Callable[[Mapping[str, Any]], Prefetched[Update]]
    validation: Sequence[MicroBatch]
    identity: Mapping[str, Any]
    notes: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    updates_per_epoch: int | None = None
    questions: Sequence[Question] = ()
    template: Template | None = None

    @property
    def rows_are(self) -> str:
        return "examples" if self.updates_per_epoch else "blocks"


def make_task(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, plan: Plan, lanes: int | None) -> Task:
    """The task that the flags ask for; `lanes` is the number a resumed run began with.

    Raises `UserError` for data that cannot be had, is empty or broken.
    """
    if config.resolved_task == "finetune":
        return _question_task(config, tokenizer, plan)
    return _text_task(config, tokenizer, plan, lanes)


def _text_task(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, plan: Plan, lanes: int | None) -> Task:
    names = ("wikipedia", "arxiv") if config.dataset_name == "both" else (str(config.dataset_name),)
    shares = config.shares or {name: 1 / len(names) for name in names}
    lanes = lanes or config.data_lanes or plan.rows_per_update
    own_lanes = plan.lanes_of_rank(lanes)
    encode = lambda texts: encode_documents(tokenizer, texts)  # noqa: E731
    sources, orders, blocks, notes = {}, {}, [], []
    for name in names:
        repository = resolve(name, config)
        notes += [repository.note] if repository.note else []
        column = TEXT_COLUMNS.get(name, config.text_column or "text")
        source = sources[name] = repository.source(config.train_split, (column,))
        held_out, kept_blocks = _validation_blocks(config, repository, source, column, encode)
        blocks += kept_blocks
        orders[name] = LaneOrder(source, held_out, config.seed, lanes)
        kept = f"the first {held_out.count} rows are kept for it" if held_out.count else "from a split of its own"
        notes.append(f"{name}: {len(source.files)} files; validation: {len(kept_blocks)} blocks, {kept}")

    def updates(cursor: Mapping[str, Any]) -> Prefetched[Update]:
        def lane_blocks(lane: int, start: Any) -> Iterator[Any]:
            return pack(
                lambda name, position: encoded_documents(orders[name].documents(lane, position), encode),
                shares, start, config.length,
            )  # fmt: skip

        starts = lane_cursors(cursor, names, own_lanes)
        return prefetched(text_updates({lane: lane_blocks(lane, starts[lane]) for lane in own_lanes}, plan, lanes))

    if config.max_eval_samples:
        blocks = blocks[: config.max_eval_samples]
    identity = {
        "sources": {name: source.identity() for name, source in sources.items()},
        "held_out_rows": {name: order.held_out.count for name, order in orders.items()},
        "shares": shares, "lanes": lanes, "blocks_per_update": plan.rows_per_update, "block_size": config.length,
        "seed": config.seed,
    }  # fmt: skip
    validation = _shared_out(
        blocks, plan, config.per_device_eval_batch_size, lambda rows: block_batch(rows, config.length)
    )
    return Task(updates, validation, _plain(identity), notes, tokenizer)


def _validation_blocks(
    config: TrainConfig, repository: Repository, source: Source, column: str, encode: Callable[[Sequence[str]], Any]
) -> tuple[HeldOut, list[np.ndarray]]:
    """The rows of `source` that training must leave out, and the validation blocks.

    A validation split of the data set is used where there is one; else the first rows are held out of the training
    text.
    """
    wanted = config.validation_blocks * config.length
    split_name = config.validation_split or ("validation" if "validation" in repository.splits else None)
    count = lambda text: len(encode([text])[0])  # noqa: E731
    if split_name is not None and split_name != config.train_split:
        _, texts = hold_out(repository.source(split_name, (column,)), count, wanted, share=1.0)
        held_out = HeldOut()
    else:
        held_out, texts = hold_out(source, count, wanted)
    if not texts:
        raise UserError(f"{source.name}: no validation text: the first rows are empty")
    return held_out, split(np.concatenate([np.asarray(tokens) for tokens in encode(texts)])[:wanted], config.length)


def _question_task(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> Task:
    name = str(config.dataset_name)
    repository = resolve(name, config)
    template = Template().with_flags(config.prompt_template, config.choices_template)
    train, validation = training_questions(repository, name, config)
    if config.max_eval_samples:
        validation = validation[: config.max_eval_samples]
    train = [shuffle_choices(question, config.seed) for question in train]
    validation = [shuffle_choices(question, config.seed) for question in validation]

    def encode(questions: Sequence[Question]) -> list[Example]:
        if config.do_qa_format:
            return [training_example(tokenizer, template, question) for question in questions]
        return [plain_example(tokenizer, question) for question in questions]

    examples, too_long = _fitting(encode(train), config.length)
    held, _ = _fitting(encode(validation), config.length)
    if not examples:
        raise UserError(f"{name}: no training example fits --max_seq_length {config.length}")
    notes = [f"{name}: {len(examples)} examples to train on, {len(held)} to validate on"]
    notes += [repository.note] if repository.note else []
    notes += (
        [f"{name}: {too_long} examples longer than --max_seq_length {config.length} are left out"] if too_long else []
    )
    identity = {
        "source": repository.source(config.train_split, ()).identity(), "examples": len(examples),
        "examples_per_update": plan.rows_per_update, "max_seq_length": config.length, "seed": config.seed,
        "template": vars(template) if config.do_qa_format else None,
    }  # fmt: skip
    return Task(
        updates=lambda cursor: prefetched(example_updates(examples, plan, config.seed, cursor)),
        validation=_shared_out(held, plan, config.per_device_eval_batch_size, example_batch),
        identity=_plain(identity),
        notes=notes,
        tokenizer=tokenizer,
        updates_per_epoch=updates_per_epoch(len(examples), plan),
        questions=[question for question in validation if question.choices] if config.do_qa_format else (),
        template=template if config.do_qa_format else None,
    )


def _fitting(examples: Sequence[Example], length: int) -> tuple[list[Example], int]:
    """The examples of at most `length` tokens, and how many are longer."""
    fitting = [example for example in examples if len(example.input_ids) <= length]
    return fitting, len(examples) - len(fitting)


def _shared_out(
    rows: Sequence[Any], plan: Plan, size: int, batch: Callable[[Sequence[Any]], MicroBatch]
) -> list[MicroBatch]:
    """This rank's micro-batches of `size` rows: each row stands on one rank, and all ranks have the same number."""
    per_rank = -(-len(rows) // plan.world_size)
    mine = rows[plan.rank :: plan.world_size]
    return [batch(mine[start : start + size]) for start in range(0, per_rank, size)]


def _plain(identity: Mapping[str, Any]) -> Any:
    """As JSON gives it back (tuples become lists), so that it can be compared with a stored one."""
    return json.loads(json.dumps(identity))
