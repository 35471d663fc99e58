"""What a run trains on and is judged by: streamed text in blocks, or questions with their answers masked in.

Promises: both tasks give the loop the same three things: updates from any cursor on, validation micro-batches of this
rank, and the identity of the data, which a resumed run must find unchanged. Validation data is never trained on.
Costs: one process lists the files and their row groups; held-out text is tokenised once at the start, questions all at
once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.bad_units import ReadableUnits
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
from miniqwen.packing import Block, Cursor, encoded_documents, pack, skipped_units, split
from miniqwen.qa import Example, Template, plain_example, shuffle_choices, training_example, training_questions
from miniqwen.questions import Question
from miniqwen.sources import Repository, data_names, locate, text_column
from miniqwen.token_cache import open_token_cache
from miniqwen.tokenization_miniqwen import document_encoder, text_oddities
from miniqwen.windows import TextWindows, Windows


@dataclass(frozen=True)
class Task:
    """One run's data.

    `updates(cursor)`: endless updates of this rank from a stored cursor on; `validation`: this rank's micro-batches;
    `questions`: all of them, for accuracy; `identity`: what the data order depends on; `notes`: for the user.
    `tokenizer` is the one that made the tokens; `held_out`: where validation text comes from, for the record.
    """

    updates: Callable[[Mapping[str, Any]], Prefetched[Update]]
    validation: Sequence[MicroBatch]
    identity: Mapping[str, Any]
    notes: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    updates_per_epoch: int | None = None
    questions: Sequence[Question] = ()
    template: Template | None = None
    held_out: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows_are(self) -> str:
        return "examples" if self.updates_per_epoch else "blocks"


def list_data(config: TrainConfig) -> dict[str, Any]:
    """What there is to read, {name: repository as JSON}: one process asks the hub and tells the others.

    Raises `UserError` for data that cannot be had.
    """
    found = {}
    for name in data_names(config):
        repository = locate(name, config)
        if config.resolved_task == "pretrain" and not config.token_cache:
            columns, skip_bad = (text_column(name, config),), config.on_bad_data == "skip"
            repository = repository.listed((config.train_split,), columns, skip_bad)
        found[name] = repository.to_json()
    return found


def make_task(
    config: TrainConfig, listings: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, plan: Plan, lanes: int | None
) -> Task:
    """The task that the flags ask for, of data that was listed; `lanes` is the number a resumed run began with.

    Raises `UserError` for data that is empty or broken.
    """
    repositories = {name: Repository.from_json(listing) for name, listing in listings.items()}
    if not config.streaming:
        repositories = {name: repository.downloaded() for name, repository in repositories.items()}
    if config.resolved_task == "finetune":
        return _question_task(config, next(iter(repositories.values())), tokenizer, plan)
    return _text_task(config, repositories, tokenizer, plan, lanes)


def _text_task(
    config: TrainConfig,
    repositories: Mapping[str, Repository],
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    lanes: int | None,
) -> Task:
    shares = config.shares or {name: 1 / len(repositories) for name in repositories}
    lanes = lanes or config.data_lanes or plan.rows_per_update
    own_lanes = plan.lanes_of_rank(lanes)
    encode = document_encoder(tokenizer)
    texts: dict[str, TrainingText] = {}
    blocks: list[np.ndarray] = []
    notes: list[str] = []
    for name, repository in repositories.items():
        notes += [repository.note] if repository.note else []
        text = texts[name] = _training_text(config, repository, name, tokenizer, encode, lanes)
        blocks += text.validation
        kept = f"the first {text.order.held_out.count} rows of {config.train_split} are kept for it"
        kept = kept if text.order.held_out.count else f"from the split {text.validated_on}"
        notes.append(f"{name}: {len(text.identity['files'])} files; validation: {len(text.validation)} blocks, {kept}")

    def updates(cursor: Mapping[str, Any]) -> Prefetched[Update]:
        for name, text in texts.items():
            if isinstance(text.order.source, ReadableUnits):
                text.order.source.remember(skipped_units(cursor, name))
        starts = lane_cursors(cursor, list(texts), own_lanes)
        own = {lane: lane_blocks(texts, shares, lane, starts[lane], config.length) for lane in own_lanes}
        made = text_updates(own, plan, lanes, max(config.preprocessing_num_workers, 1))
        return prefetched(made, ahead=2 if config.preprocessing_num_workers else 0)

    if config.max_eval_samples:
        blocks = blocks[: config.max_eval_samples]
    identity = {
        "sources": {name: text.identity for name, text in texts.items()},
        "held_out_rows": {name: text.order.held_out.count for name, text in texts.items()},
        "shares": shares, "lanes": lanes, "blocks_per_update": plan.rows_per_update, "block_size": config.length,
        "seed": config.seed,
    }  # fmt: skip
    validation = _shared_out(
        blocks, plan, config.per_device_eval_batch_size, lambda rows: block_batch(rows, config.length)
    )
    held_out = {name: text.validation_record() for name, text in texts.items()}
    return Task(updates, validation, _plain(identity), notes, tokenizer, held_out=held_out)


@dataclass(frozen=True)
class TrainingText:
    """One source of a pretraining run: its documents in lanes, how they become tokens, its validation blocks."""

    order: LaneOrder
    encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]]
    oddities: Callable[[Any], Mapping[str, int]]
    validation: Sequence[np.ndarray]
    validated_on: str
    identity: Mapping[str, Any]

    def validation_record(self) -> dict[str, Any]:
        """What config.yaml states."""
        tokens = sum(len(block) for block in self.validation)
        return {
            "split": self.validated_on, "rows_held_out_of_training": self.order.held_out.count,
            "blocks": len(self.validation), "tokens": tokens,
        }  # fmt: skip


def lane_blocks(
    texts: Mapping[str, TrainingText], shares: Mapping[str, float], lane: int, start: Cursor, length: int
) -> Iterator[Block]:
    """Endless blocks of one lane, its sources mixed."""
    return pack(
        lambda name, position: encoded_documents(
            texts[name].order.documents(lane, position), texts[name].encode, texts[name].oddities
        ),
        shares, start, length,
    )  # fmt: skip


def _training_text(
    config: TrainConfig,
    repository: Repository,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]],
    lanes: int,
) -> TrainingText:
    """The documents to train on, without the validation text, and that.

    A validation split of the data set is used where there is one; else the first rows are held out of the training
    text.
    """
    columns = (text_column(name, config),)
    source = repository.source(config.train_split, columns)
    skip_bad = config.on_bad_data == "skip"
    windows: Windows = ReadableUnits(TextWindows(source)) if skip_bad else TextWindows(source)
    own_encode, oddities = encode, text_oddities(tokenizer)
    if config.token_cache:
        windows = open_token_cache(Path(config.token_cache), source, tokenizer)
        own_encode = lambda documents: documents  # noqa: E731  # they are tokens already
        oddities = lambda document: {}  # noqa: E731  # and the text is not here to be looked at
    wanted = config.validation_blocks * config.length
    validated_on = config.validation_split or ("validation" if "validation" in repository.splits else None)
    if validated_on is not None and validated_on != config.train_split:
        held_out = HeldOut()
        _, kept = hold_out(TextWindows(repository.source(validated_on, columns)), encode, wanted, share=1.0)
    else:
        validated_on = config.train_split
        held_out, kept = hold_out(windows, own_encode, wanted)
    if not kept:
        raise UserError(f"{name}: no validation text: the first rows are empty")
    validation = split(np.concatenate(kept)[:wanted], config.length)
    order = LaneOrder(windows, held_out, config.seed, lanes, skip_bad)
    return TrainingText(order, own_encode, oddities, validation, validated_on, source.identity())


def _question_task(config: TrainConfig, repository: Repository, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> Task:
    name = str(config.dataset_name)
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
