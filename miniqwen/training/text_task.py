"""Pretraining: streamed text in blocks, and text of the same sources that is never trained on.

Promises: see documents.py for the order and packing.py for the blocks. Costs: held-out text is tokenised once at the
start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.config.training import TrainConfig
from miniqwen.data.documents import HeldOut, LaneOrder, hold_out
from miniqwen.data.packing import Block, Cursor, encoded_documents, pack, skipped_units, split
from miniqwen.data.repositories import Repository, text_column
from miniqwen.data.token_cache import cached_oddities, open_token_cache
from miniqwen.data.windows import ReadableUnits, TextWindows, Windows
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import document_encoder, text_oddities, token_bytes
from miniqwen.questions.templates import TEMPLATE_FILE
from miniqwen.training.batches import (
    Plan,
    Update,
    block_batch,
    lane_cursors,
    text_updates,
)
from miniqwen.training.prefetching import Prefetched, prefetched
from miniqwen.training.samples import BEGINNINGS, SamplePrompt
from miniqwen.training.task import Task, plain, shared_out


def text_task(
    config: TrainConfig,
    repositories: Mapping[str, Repository],
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    lanes: int | None,
) -> Task:
    """Pretraining on the text of `repositories`; `lanes` is the number that a resumed run began with."""
    shares = config.shares or {name: 1 / len(repositories) for name in repositories}
    if lanes and config.data_lanes not in (None, lanes):
        raise UserError(f"--data_lanes {config.data_lanes}: the run began with {lanes}, a part of its data order")
    lanes = lanes or config.data_lanes or plan.rows_per_update
    own_lanes = plan.lanes_of_rank(lanes)
    encode = document_encoder(tokenizer)
    bytes_of_tokens = token_bytes(tokenizer)
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
        made = (update.with_bytes(bytes_of_tokens) for update in made)
        return prefetched(made, ahead=2 if config.preprocessing_num_workers else 0)

    if config.max_eval_samples:
        blocks = blocks[: config.max_eval_samples]
    identity = {
        "sources": {name: text.identity for name, text in texts.items()},
        "held_out_rows": {name: text.order.held_out.count for name, text in texts.items()},
        "shares": shares, "lanes": lanes, "blocks_per_update": plan.rows_per_update, "block_size": config.length,
        "seed": config.seed, "document_masking": config.masks_documents,
    }  # fmt: skip
    validation = shared_out(
        blocks, plan, config.per_device_eval_batch_size, lambda rows: block_batch(rows, config.length, end)
    )
    held_out = {name: text.validation_record() for name, text in texts.items()}
    beginnings = config.sample_prompts or BEGINNINGS
    samples = [
        SamplePrompt.of(tokenizer, text, text, given=bool(config.sample_prompts))
        for text in beginnings
        if beginnings != ("none",)
    ]
    asked_here = Path(str(config.model_path), TEMPLATE_FILE).exists()  # more text makes a base model of it again
    chat_template = None if asked_here else tokenizer.chat_template
    return Task(
        updates, validation, plain(identity), notes, tokenizer, held_out=held_out, chat_template=chat_template,
        samples=samples, token_bytes=bytes_of_tokens,
    )  # fmt: skip


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
