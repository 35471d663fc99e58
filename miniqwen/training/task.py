"""What a run trains on and is judged by: streamed text in blocks, or questions with their answers masked in.

Promises: both tasks give the loop the same three things: updates from any cursor on, validation micro-batches of this
rank, and the identity of the data, which a resumed run must find unchanged. Validation data is never trained on.
Costs: one process lists the files and their row groups; held-out text is tokenised once at the start, questions all at
once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.config.training import TrainConfig
from miniqwen.data.documents import HeldOut, LaneOrder, hold_out
from miniqwen.data.packing import Block, Cursor, encoded_documents, pack, skipped_units, split
from miniqwen.data.repositories import Repository, data_names, locate, text_column
from miniqwen.data.token_cache import cached_oddities, open_token_cache
from miniqwen.data.windows import ReadableUnits, TextWindows, Windows
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import document_encoder, text_oddities
from miniqwen.questions.examples import (
    Example,
    Fitted,
    fit_examples,
    plain_example,
    training_example,
    training_questions,
)
from miniqwen.questions.protocols import Prompt, Request, encode_prompt, template_prompt
from miniqwen.questions.rows import Question
from miniqwen.questions.templates import Template, shuffle_choices
from miniqwen.training.batches import (
    MicroBatch,
    Plan,
    Prefetched,
    Update,
    block_batch,
    block_rows,
    example_batch,
    example_updates,
    lane_cursors,
    packed,
    padding_free,
    prefetched,
    single_rows,
    text_updates,
    updates_per_epoch,
)


@dataclass(frozen=True)
class Task:
    """One run's data.

    `updates(cursor)`: endless updates of this rank from a stored cursor on; `validation`: this rank's micro-batches;
    `prompts` and `requests`: all questions to measure accuracy by, and their tokens; `identity`: what the data order
    depends on; `notes`: for the user.
    `tokenizer` is the one that made the tokens; `held_out`: where validation text comes from, for the record;
    `rows_are`: what the batch counts.
    """

    updates: Callable[[Mapping[str, Any]], Prefetched[Update]]
    validation: Sequence[MicroBatch]
    identity: Mapping[str, Any]
    notes: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    updates_per_epoch: int | None = None
    prompts: Sequence[Prompt] = ()
    requests: Sequence[Request] = ()
    template: Template | None = None
    held_out: Mapping[str, Any] = field(default_factory=dict)
    rows_are: str = "blocks"


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

    Raises `UserError` for data that is empty or broken, or other local files than those that were listed.
    """
    repositories = {name: Repository.from_json(listing) for name, listing in listings.items()}
    for repository in repositories.values():
        repository.check_here()
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
    if lanes and config.data_lanes not in (None, lanes):
        raise UserError(f"--data_lanes {config.data_lanes}: the run began with {lanes}, a part of its data order")
    lanes = lanes or config.data_lanes or plan.rows_per_update
    own_lanes = plan.lanes_of_rank(lanes)
    encode = document_encoder(tokenizer)
    end = tokenizer.eos_token_id if config.masks_documents else None
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
        made = text_updates(own, plan, lanes, max(config.preprocessing_num_workers, 1), end)
        return prefetched(made, ahead=2 if config.preprocessing_num_workers else 0)

    if config.max_eval_samples:
        blocks = blocks[: config.max_eval_samples]
    identity = {
        "sources": {name: text.identity for name, text in texts.items()},
        "held_out_rows": {name: text.order.held_out.count for name, text in texts.items()},
        "shares": shares, "lanes": lanes, "blocks_per_update": plan.rows_per_update, "block_size": config.length,
        "seed": config.seed, "document_masking": config.masks_documents,
    }  # fmt: skip
    validation = _shared_out(
        blocks, plan, config.per_device_eval_batch_size, lambda rows: block_batch(rows, config.length, end)
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
    own_encode = encode
    oddities: Callable[[Any], Mapping[str, int]] = text_oddities(tokenizer)
    if config.token_cache:
        windows = open_token_cache(Path(config.token_cache), source, tokenizer)
        own_encode = lambda documents: documents  # noqa: E731  # they are tokens already
        oddities = cached_oddities
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

    def fitted(questions: Sequence[Question], split: str) -> Fitted:
        ids = [f"question {question.id}" for question in questions]
        return fit_examples(encode(questions), ids, config.length, config.truncation, f"{name}, {split}")

    fits, held = fitted(train, "training"), fitted(validation, "validation")
    examples = fits.examples
    if not examples:
        raise UserError(f"{name}: no training example fits --max_seq_length {config.length}")
    notes = [f"{name}: {len(examples)} examples to train on, {len(held.examples)} to validate on"]
    notes += [repository.note] if repository.note else []
    notes += [
        line for split, part in (("training", fits), ("validation", held)) for line in _too_long(part, split, config)
    ]
    batch: Callable[[Sequence[Sequence[Example]]], MicroBatch]
    if config.packing:
        epoch_rows = block_rows(examples, config.length, config.seed)
        batch = functools.partial(packed, length=config.length, size=config.per_device_train_batch_size)
    else:
        epoch_rows, batch = single_rows(examples, config.seed), padding_free
    per_epoch = updates_per_epoch(len(epoch_rows(0)), plan)
    if config.packing:
        blocks, tokens = len(epoch_rows(0)), sum(len(example.input_ids) for example in examples)
        notes.append(
            f"{name}: packed into {blocks} blocks of {config.length} tokens, {tokens / blocks / config.length:.1%} "
            f"full; the batch counts blocks, and an epoch has {per_epoch} updates"
        )
    identity = {
        "source": repository.source(config.train_split, ()).identity(), "examples": len(examples),
        "examples_cut": fits.cut, "examples_left_out": fits.left_out, "truncation": config.truncation,
        "validation_examples_cut": held.cut, "validation_examples_left_out": held.left_out,
        "packing": config.packing, f"{'blocks' if config.packing else 'examples'}_per_update": plan.rows_per_update,
        "max_seq_length": config.length, "seed": config.seed,
        "template": vars(template) if config.do_qa_format else None,
    }  # fmt: skip
    chosen_by = [question for question in validation if question.choices] if config.do_qa_format else []
    prompts = [template_prompt(question, template) for question in chosen_by]
    return Task(
        updates=lambda cursor: prefetched(example_updates(epoch_rows, batch, plan, cursor)),
        validation=_shared_out(held.examples, plan, config.per_device_eval_batch_size, example_batch),
        identity=_plain(identity),
        notes=notes,
        tokenizer=tokenizer,
        updates_per_epoch=per_epoch,
        prompts=prompts,
        requests=[encode_prompt(tokenizer, prompt) for prompt in prompts],
        template=template if config.do_qa_format else None,
        rows_are="blocks" if config.packing else "examples",
    )


def _too_long(fits: Fitted, split: str, config: TrainConfig) -> list[str]:
    """What became of examples that are too long, for the user."""
    counts = {"lost the beginning of their prompts": fits.cut, "are left out": fits.left_out}
    return [
        f"{config.dataset_name}: {count} {split} examples longer than --max_seq_length {config.length} {what} "
        f"(--truncation {config.truncation})"
        for what, count in counts.items()
        if count
    ]


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
