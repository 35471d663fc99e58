"""Pretraining: streamed text in blocks, and text of the same sources that is never trained on.

Promises: see documents.py, strands.py and mixture.py for the order, packing.py for the blocks and held_out.py for what
is kept. Costs: one process reads and tokenises the held-out text at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.config.training import TrainConfig
from miniqwen.data.documents import ORDER, Layout, Order
from miniqwen.data.held_out import HeldOut, hold_out
from miniqwen.data.mixture import Mixture
from miniqwen.data.packing import Block, Cursor, pack, skipped_units, split
from miniqwen.data.repositories import Repository, text_column
from miniqwen.data.strands import APART, Reading, SourceCursor
from miniqwen.data.token_cache import cached_oddities, open_token_cache
from miniqwen.data.windows import ReadableUnits, TextWindows, Windows
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import document_encoder, text_oddities, token_bytes
from miniqwen.questions.templates import TEMPLATE_FILE
from miniqwen.training.batches import (
    MicroBatch,
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
    kept: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    stored: Mapping[str, Any] | None,
) -> Task:
    """Pretraining on the text of `repositories`; `kept`: see `validation_text`; `stored`: a resumed run's identity."""
    lanes = (stored or {}).get("lanes")
    if lanes and config.data_lanes not in (None, lanes):
        raise UserError(f"--data_lanes {config.data_lanes}: the run began with {lanes}, a part of its data order")
    lanes = lanes or config.data_lanes or plan.rows_per_update
    own_lanes = plan.lanes_of_rank(lanes)
    mixture = Mixture(config.shares, lanes)
    texts = {
        name: _training_text(config.of_source(name), repository, kept[name], tokenizer, lanes, _layout(stored, name))
        for name, repository in repositories.items()
    }
    bytes_of_tokens = token_bytes(tokenizer)
    end = tokenizer.eos_token_id if config.masks_documents else None

    def updates(cursor: Mapping[str, Any]) -> Prefetched[Update]:
        for name, text in texts.items():
            if isinstance(text.order.source, ReadableUnits):
                text.order.source.remember(skipped_units(cursor, name))
        starts = lane_cursors(cursor, own_lanes)
        apart = APART * plan.rows_per_update // lanes
        own = {
            lane: lane_blocks(texts, mixture, lane, starts[lane], config.length, bytes_of_tokens, apart)
            for lane in own_lanes
        }
        made = text_updates(own, plan, lanes, max(config.preprocessing_num_workers, 1), end)
        made = (update.with_bytes(bytes_of_tokens) for update in made)
        return prefetched(made, ahead=2 if config.preprocessing_num_workers else 0)

    identity = {
        "order": ORDER,
        "sources": {name: text.identity for name, text in texts.items()},
        "held_out": {name: kept[name]["held_out"] for name in texts},
        "unreadable": {name: kept[name]["skipped"] for name in texts},
        "layout": {name: vars(text.order.layout) for name, text in texts.items()},
        "shares": config.shares, "lanes": lanes, "blocks_per_update": plan.rows_per_update, "block_size": config.length,
        "seed": config.seed, "document_masking": config.masks_documents,
    }  # fmt: skip
    beginnings = config.sample_prompts or BEGINNINGS
    samples = [
        SamplePrompt.of(tokenizer, text, text, given=bool(config.sample_prompts))
        for text in beginnings
        if beginnings != ("none",)
    ]
    asked_here = Path(str(config.model_path), TEMPLATE_FILE).exists()  # more text makes a base model of it again
    return Task(
        updates, _validation(config, kept, plan, end), plain(identity), _notes(config, repositories, texts, kept, plan),
        tokenizer, held_out={name: _record(found) for name, found in kept.items()},
        chat_template=None if asked_here else tokenizer.chat_template, samples=samples, token_bytes=bytes_of_tokens,
        source_bytes={name: found["text_bytes"] for name, found in kept.items()} if bytes_of_tokens is not None else {},
    )  # fmt: skip


@dataclass(frozen=True)
class TrainingText:
    """One source of a pretraining run: its documents in lanes, and how they become tokens."""

    order: Order
    encode: Callable[[Sequence[Any]], Sequence[Sequence[int]]]
    oddities: Callable[[Any], Mapping[str, int]]
    identity: Mapping[str, Any]


def lane_blocks(
    texts: Mapping[str, TrainingText],
    mixture: Mixture,
    lane: int,
    start: Cursor,
    length: int,
    bytes_of_tokens: np.ndarray | None,
    apart: int,
) -> Iterator[Block]:
    """Endless blocks of one lane, its sources mixed."""

    def opened(name: str, cursor: SourceCursor) -> Reading:
        text = texts[name]
        return Reading(text.order, lane, text.encode, text.oddities, cursor, apart)

    return pack(opened, mixture, lane, start, length, bytes_of_tokens)


def validation_text(
    config: TrainConfig,
    repositories: Mapping[str, Repository],
    tokenizer: PreTrainedTokenizerBase,
    stored: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What is kept of each source and never trained on; one process reads it for all. JSON-able, by source:

    `held_out`: rows of the training split (see `HeldOut.to_json`); `split`: where the text comes from; `blocks`: its
    tokens; `text_bytes`: what is left to train on; `bytes_per_token`; `skipped`: units that could not be read.
    A validation split of the data set is used where there is one. `stored`: a resumed run's identity. Raises
    `UserError` where there is no validation text and an evaluation is asked for.
    """
    found = {}
    for name, repository in repositories.items():
        of_source = config.of_source(name)
        wanted = config.validation_blocks * config.length
        named = of_source.validation_split or ("validation" if "validation" in repository.splits else None)
        apart = named is not None and named != of_source.train_split
        windows, encode = _windows(of_source, repository, tokenizer)
        rows = (stored or {}).get("held_out", {}).get(name)
        if isinstance(windows, ReadableUnits):
            windows.remember((stored or {}).get("unreadable", {}).get(name, {}))
        measured = hold_out(windows, encode, 0 if apart else wanted, stored=rows)
        kept = measured.kept
        if apart and wanted:
            split_text = TextWindows(repository.source(str(named), (text_column(of_source.named[name], of_source),)))
            kept = hold_out(split_text, document_encoder(tokenizer), wanted, share=None).kept
        if not kept and config.evaluates:
            raise _no_validation_text(name, f"the split {named} has no text" if apart else (
                "what the checkpoint held out, if anything, is in none of its files" if rows is not None else
                f"at most 5 % of its {measured.text_bytes:,} bytes of text are held out of {of_source.train_split}, "
                "and no document looked at is as short"
            ))  # fmt: skip
        blocks = split(np.concatenate(kept)[:wanted], config.length) if kept and wanted else []
        found[name] = {
            "held_out": measured.held_out.to_json(windows), "split": named if apart else of_source.train_split,
            "blocks": [block.tolist() for block in blocks], "text_bytes": measured.text_bytes,
            "bytes_per_token": measured.bytes_per_token,
            "skipped": windows.all_skipped() if isinstance(windows, ReadableUnits) else {},
        }  # fmt: skip
    return found


def _no_validation_text(name: str, why: str) -> UserError:
    return UserError(
        f"{name}: no validation text: {why}; name another --validation_split, or leave --do_eval and --eval_strategy "
        "out to train on all of it"
    )


def _windows(
    config: TrainConfig, repository: Repository, tokenizer: PreTrainedTokenizerBase
) -> tuple[Windows, Callable[[Sequence[Any]], Sequence[Sequence[int]]]]:
    """What the documents to train on are read from, and how they become tokens; `config` is that of the source."""
    source = repository.source(config.train_split, (text_column(str(config.dataset_name), config),))
    if config.token_cache:
        return open_token_cache(Path(config.token_cache), source, tokenizer), lambda documents: documents
    text = TextWindows(source)
    return ReadableUnits(text) if config.on_bad_data == "skip" else text, document_encoder(tokenizer)


def _training_text(
    config: TrainConfig,
    repository: Repository,
    kept: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    lanes: int,
    layout: Layout | None,
) -> TrainingText:
    """The documents of a source without those that are kept; `config` is that of the source."""
    windows, encode = _windows(config, repository, tokenizer)
    if isinstance(windows, ReadableUnits):
        windows.remember(kept["skipped"])
    held_out = HeldOut.from_json(kept["held_out"], windows)
    order = Order(windows, held_out, config.seed, lanes, layout, config.on_bad_data == "skip")
    oddities = cached_oddities if config.token_cache else text_oddities(tokenizer)
    column = text_column(str(config.dataset_name), config)
    return TrainingText(order, encode, oddities, repository.source(config.train_split, (column,)).identity())


def _layout(stored: Mapping[str, Any] | None, name: str) -> Layout | None:
    """That of the checkpoint that the run goes on from: another one would be another order."""
    found = (stored or {}).get("layout", {}).get(name)
    return Layout(**found) if found else None


def _validation(
    config: TrainConfig, kept: Mapping[str, Any], plan: Plan, end: int | None
) -> dict[str, Sequence[MicroBatch]]:
    """This rank's micro-batches of each source; `--max_eval_samples` blocks are shared out over the sources."""
    blocks = {name: [np.array(block) for block in found["blocks"]] for name, found in kept.items()}
    if config.max_eval_samples:
        in_turn = sorted((number, place) for place, own in enumerate(blocks.values()) for number in range(len(own)))
        chosen = in_turn[: config.max_eval_samples]
        blocks = {
            name: own[: sum(place == chosen_place for _, chosen_place in chosen)]
            for place, (name, own) in enumerate(blocks.items())
        }
    size = config.per_device_eval_batch_size
    for name, own in blocks.items():
        if own and config.evaluates and not block_batch(own, config.length, end).num_targets:
            raise _no_validation_text(name, "in what is kept no token follows another")
    return {
        name: shared_out(own, plan, size, lambda rows: block_batch(rows, config.length, end))
        for name, own in blocks.items()
        if own
    }


def _record(kept: Mapping[str, Any]) -> dict[str, Any]:
    """What config.yaml states of a source's validation text."""
    return {
        "split": kept["split"], "rows_held_out_of_training": sum(stop - start for *_, start, stop in kept["held_out"]),
        "blocks": len(kept["blocks"]), "tokens": sum(map(len, kept["blocks"])),
    }  # fmt: skip


def _notes(
    config: TrainConfig,
    repositories: Mapping[str, Repository],
    texts: Mapping[str, TrainingText],
    kept: Mapping[str, Any],
    plan: Plan,
) -> list[str]:
    """What the user should know of each source: its files, what is held out, and how often it is to be read."""
    notes = []
    for name, found in kept.items():
        notes += [str(repositories[name].note)] if repositories[name].note else []
        record = _record(found)
        rows = record["rows_held_out_of_training"]
        held = f"{rows} rows of {record['split']} are kept for it" if rows else f"from the split {record['split']}"
        told = f"validation: {record['blocks']} blocks, {held}" if record["blocks"] else "no validation text"
        notes.append(f"{name}: {len(texts[name].identity['files'])} files; {told}")
        tokens = max(config.max_steps, 0) * plan.rows_per_update * config.length * config.shares[name]
        if found["text_bytes"] and tokens:
            passes = tokens * found["bytes_per_token"] / found["text_bytes"]
            notes.append(
                f"{name}: {config.shares[name]:.1%} of the tokens; about {found['text_bytes'] / 1e6:,.2f} MB of text, "
                f"read {passes:,.2f} times in {config.max_steps} updates"
            )
    return notes
