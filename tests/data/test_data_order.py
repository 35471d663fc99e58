"""Law 1: the blocks of update k do not depend on the machine, its workers, or how often the run was stopped."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import article, run_script, write_parquet
from transformers import PreTrainedTokenizerBase

from miniqwen.config.data import TEXT_DATASETS
from miniqwen.config.training import TrainConfig
from miniqwen.data.packing import chained
from miniqwen.data.repositories import resolve
from miniqwen.data.token_cache import write_token_cache
from miniqwen.errors import UserError
from miniqwen.model.tokenization_miniqwen import document_encoder, load_tokenizer
from miniqwen.training.batches import Plan, Update
from miniqwen.training.opening import list_data, make_task
from miniqwen.training.task import Task

BLOCKS = 8  # in an update
LENGTH = 48


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(model)


@dataclass(frozen=True)
class Part:
    """Some updates of a run, on one machine: processes, micro-batch, accumulation, worker threads, updates."""

    world: int
    micro_batch: int
    accumulation: int
    workers: int
    updates: int


def config_for(model: Path, mirror: Path, **flags: Any) -> TrainConfig:
    given = {
        "model_path": str(model), "output_dir": "unused", "dataset_name": "both", "data_root": str(mirror),
        "block_size": LENGTH, "validation_blocks": 4, "max_steps": 10, "data_lanes": BLOCKS,
    }  # fmt: skip
    return TrainConfig(**{**given, **flags})


@functools.cache
def listings_of(config: TrainConfig) -> str:
    """As one process lists the data and tells the others; the data sets of the session do not change."""
    return json.dumps(list_data(config))


def tasks_of(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, part: Part) -> list[Task]:
    """What each process of a machine makes of the same listing."""
    listings = json.loads(
        listings_of(config) if config.dataset_name in TEXT_DATASETS else json.dumps(list_data(config))
    )
    plans = [Plan(part.micro_batch, part.accumulation, rank, part.world) for rank in range(part.world)]
    return [make_task(config, listings, tokenizer, plan, None) for plan in plans]


def run_part(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, part: Part, cursor: Mapping[str, Any]
) -> tuple[list[np.ndarray], Mapping[str, Any]]:
    """The blocks of each update [blocks, length], in lane order over all processes, and the cursor behind them."""
    streams: list[Iterator[Update]] = [task.updates(cursor) for task in tasks_of(config, tokenizer, part)]
    updates = []
    for _ in range(part.updates):
        made = [next(stream) for stream in streams]
        assert {len(update.micro_batches) for update in made} == {part.accumulation}
        lanes = config.data_lanes or BLOCKS
        ranks = [np.concatenate([batch.input_ids.numpy() for batch in update.micro_batches]) for update in made]
        rounds = [rank.reshape(-1, lanes // part.world, LENGTH) for rank in ranks]
        updates.append(np.concatenate(rounds, axis=1).reshape(-1, LENGTH))
        cursor = json.loads(json.dumps({lane: value for update in made for lane, value in update.cursor.items()}))
    for stream in streams:
        stream.close()  # type: ignore[attr-defined]  # what was made ahead is thrown away, as when a run is stopped
    return updates, cursor


def run(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, *parts: Part) -> tuple[list[str], Mapping[str, Any]]:
    """A hash of each update's blocks, over a run in several parts; and the last cursor."""
    hashes: list[str] = []
    cursor: Mapping[str, Any] = {}
    for part in parts:
        updates, cursor = run_part(config, tokenizer, part, cursor)
        hashes += [hashlib.sha256(blocks.tobytes()).hexdigest() for blocks in updates]
    return hashes, cursor


WHOLE = Part(1, BLOCKS, 1, 0, 14)
# world 1, 2, 4 × micro-batch × accumulation × workers 0, 1, 4; several prefetch, which `run_part` throws away
MACHINES = [
    Part(world, micro_batch, BLOCKS // world // micro_batch, workers, 0)
    for world in (1, 2, 4)
    for micro_batch in (1, 2, 4, 8)
    for workers in (0, 1, 4)
    if world * micro_batch <= BLOCKS
]
FAST = MACHINES[::5]


def on(machine: Part, updates: int) -> Part:
    return Part(machine.world, machine.micro_batch, machine.accumulation, machine.workers, updates)


def assert_law_1(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, machines: list[Part], stops: list[tuple[int, ...]]
) -> None:
    """Every machine, alone and resuming what others began, at every set of stop points, sees the same updates."""
    expected, cursor = run(config, tokenizer, WHOLE)
    assert len(set(expected)) == WHOLE.updates
    following = itertools.cycle(machines)
    for machine in machines:
        assert run(config, tokenizer, on(machine, WHOLE.updates)) == (expected, cursor), machine
        for lengths in stops:
            assert sum(lengths) == WHOLE.updates
            parts = [on(machine if number == 0 else next(following), n) for number, n in enumerate(lengths)]
            assert run(config, tokenizer, *parts) == (expected, cursor), parts


def test_an_update_has_the_same_blocks_on_any_machine_after_any_resumes(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert {part.world for part in FAST} == {1, 2, 4}
    assert {part.workers for part in FAST} == {0, 1, 4}
    config = config_for(model, mirror, mixture="wikipedia=0.7,arxiv=0.3")
    assert_law_1(config, tokenizer, FAST, [(1, 1, 12), (3, 6, 5)])


@pytest.mark.slow
@pytest.mark.parametrize("dataset_name", ["wikipedia", "arxiv", "both"])
@pytest.mark.parametrize("lanes", [4, 8])
def test_the_whole_matrix_of_machines_workers_and_resumes(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase, dataset_name: str, lanes: int
) -> None:
    config = config_for(model, mirror, dataset_name=dataset_name, data_lanes=lanes)
    assert len(MACHINES) == 27
    stops = [(1, 13), (7, 7), (1, 1, 12), (3, 6, 5), (2, 2, 2, 8), (1, 2, 3, 4, 4)]
    assert_law_1(config, tokenizer, MACHINES, stops)


@pytest.mark.parametrize("dataset_name", ["wikipedia", "arxiv"])
def test_an_epoch_is_the_corpus_with_nothing_lost_or_repeated(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase, dataset_name: str
) -> None:
    """One lane read through two epochs, stopped again and again, against the concatenated corpus."""
    config = config_for(model, mirror, dataset_name=dataset_name, data_lanes=1)
    repository = resolve(dataset_name, config)
    source = repository.source("train", ("text",))
    corpus = [text for unit in source.units() for text in source.read(unit)["text"]]
    (task,) = tasks_of(config, tokenizer, WHOLE)
    held_out = task.identity["held_out_rows"][dataset_name]
    assert held_out > 0
    expected = sorted(map(tuple, document_encoder(tokenizer)(corpus[held_out:])))
    updates: list[np.ndarray] = []
    cursor: Mapping[str, Any] = {}
    while sum(map(np.size, updates)) < 2.2 * sum(map(len, expected)):
        more, cursor = run_part(config, tokenizer, Part(1, BLOCKS, 1, len(updates) % 3, 5), cursor)
        updates += more
    tokens = np.concatenate([blocks.ravel() for blocks in updates])
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id) + 1
    documents = [tuple(document.tolist()) for document in np.split(tokens, ends)]
    first, second = documents[: len(expected)], documents[len(expected) : 2 * len(expected)]
    assert sorted(first) == sorted(second) == expected
    assert first != second
    assert cursor["0"]["taken"][dataset_name] == len(tokens)
    other_seed, _ = run_part(config_for(model, mirror, dataset_name=dataset_name, data_lanes=1, seed=7), tokenizer,
                             Part(1, BLOCKS, 1, 0, 2), {})  # fmt: skip
    assert not np.array_equal(other_seed[0], updates[0])


def test_the_mixture_keeps_its_shares_and_its_books_over_resumes(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = config_for(model, mirror, mixture="wikipedia=0.8,arxiv=0.2")
    _, cursor = run(config, tokenizer, Part(1, 8, 1, 1, 10), Part(2, 2, 2, 4, 20), Part(4, 1, 2, 0, 30))
    for lane in cursor.values():
        taken = lane["taken"]
        assert sum(taken.values()) == 60 * LENGTH
        assert abs(taken["wikipedia"] / sum(taken.values()) - 0.8) < 0.15  # within a document of its share
    shares = sum(lane["taken"]["wikipedia"] for lane in cursor.values()) / (60 * BLOCKS * LENGTH)
    assert abs(shares - 0.8) < 0.03


def test_the_digest_of_a_cursor_is_that_of_its_lane_s_blocks(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = config_for(model, mirror)
    updates, cursor = run_part(config, tokenizer, Part(2, 4, 1, 1, 3), {})
    for lane in range(BLOCKS):
        digest = ""
        for blocks in updates:
            digest = chained(digest, blocks[lane])
        assert cursor[str(lane)]["digest"] == digest


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_validation_text_is_held_out_alike_and_each_token_of_it_counted_once(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase, world: int
) -> None:
    """Also where the blocks do not divide by the processes: five of them here."""
    config = config_for(model, mirror, max_eval_samples=5, per_device_eval_batch_size=2)
    tasks = tasks_of(config, tokenizer, Part(world, 1, BLOCKS // world, 0, 0))
    (alone,) = tasks_of(config, tokenizer, WHOLE)
    assert len({json.dumps(task.held_out) for task in tasks}) == 1
    assert tasks[0].held_out == alone.held_out
    assert len({len(task.validation) for task in tasks}) == 1  # or ranks would wait for each other
    rows = [
        row for task in tasks for batch in task.validation for row in zip(batch.input_ids, batch.targets, strict=True)
    ]
    found = sorted((ids.tolist(), targets.tolist()) for ids, targets in rows if (targets != -100).any())
    expected = sorted(
        (ids.tolist(), targets.tolist())
        for batch in alone.validation
        for ids, targets in zip(batch.input_ids, batch.targets, strict=True)
    )
    assert found == expected
    assert len(found) == 5
    for name, kept in alone.held_out.items():
        source = resolve(name, config).source("train", ("text",))
        rows_in_order = (text for unit in source.units() for text in source.read(unit)["text"])
        texts = list(itertools.islice(rows_in_order, kept["rows_held_out_of_training"]))
        assert len(texts) == kept["rows_held_out_of_training"] > 0
        assert sum(map(len, document_encoder(tokenizer)(texts))) >= kept["tokens"] > LENGTH


def write_cache(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, root: Path) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []
    for name in ("wikipedia", "arxiv"):
        source = resolve(name, config).source("train", ("text",))
        write_token_cache(root, source, tokenizer, lambda *done: told.append(done))
    return told


def test_a_token_cache_gives_the_blocks_of_streaming_and_a_run_may_go_from_one_to_the_other(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    streaming = config_for(model, mirror)
    told = write_cache(streaming, tokenizer, tmp_path)
    assert sum(rows for _, rows, _ in told) == 180
    assert write_cache(streaming, tokenizer, tmp_path) == told  # nothing is done twice, and nothing changes
    cached = config_for(model, mirror, token_cache=str(tmp_path))
    expected, cursor = run(streaming, tokenizer, WHOLE)
    assert run(cached, tokenizer, Part(2, 4, 1, 4, 14)) == (expected, cursor)
    hashes: list[str] = []
    at: Mapping[str, Any] = {}
    for number, updates in enumerate((3, 1, 4, 6)):
        made, at = run_part(
            cached if number % 2 else streaming, tokenizer, Part(1 + number % 2, 4, 2 - number % 2, 1, updates), at
        )
        hashes += [hashlib.sha256(blocks.tobytes()).hexdigest() for blocks in made]
    assert (hashes, at) == (expected, cursor)
    first, second = (tasks_of(config, tokenizer, WHOLE)[0] for config in (streaming, cached))
    assert (first.identity, first.held_out) == (second.identity, second.held_out)


def test_a_stale_half_made_or_absent_token_cache_is_refused_and_says_why(
    model: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file, cache = tmp_path / "notes.jsonl", tmp_path / "cache"
    cache.mkdir()
    file.write_text("".join(json.dumps({"text": article(number)}) + "\n" for number in range(30)))
    config = config_for(
        model, tmp_path, dataset_name=str(file), data_root=None, task="pretrain", token_cache=str(cache)
    )

    def refusal() -> str:
        with pytest.raises(UserError) as refused:
            tasks_of(config, tokenizer, WHOLE)
        return str(refused.value)

    assert "no tokens of notes.jsonl" in refusal()
    folder = write_token_cache(cache, resolve(str(file), config).source("train", ("text",)), tokenizer, lambda *_: None)
    assert len(tasks_of(config, tokenizer, WHOLE)) == 1
    (folder / "complete.json").rename(folder / "aside")
    assert "not complete" in refusal()
    (folder / "aside").rename(folder / "complete.json")
    made_of = json.loads((folder / "made_of.json").read_text())
    (folder / "made_of.json").write_text(json.dumps({**made_of, "tokenizer": "another"}))
    assert "stale: it was made with another tokenizer" in refusal()
    (folder / "made_of.json").write_text(json.dumps(made_of))
    with file.open("a") as more:
        more.write(json.dumps({"text": "one more"}) + "\n")
    assert "notes.jsonl changed" in refusal()


def progress_of(output: Path, step: int) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((output / f"checkpoint-{step}" / "progress.json").read_text())
    return stored


def test_real_processes_read_the_same_tokens_resumed_on_1_2_4_and_1_of_them(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    """The real loop under gloo: the digests in the checkpoints are those of one undisturbed process."""
    flags = (
        f"--dataset_name both --block_size {LENGTH} --validation_blocks 5 --save_steps 2 --report_to none "
        "--do_train --do_eval --eval_strategy steps --eval_steps 8 --logging_steps 8 --data_lanes 8"
    ).split()

    def train(output: Path, processes: int, micro_batch: int, workers: int, steps: int) -> None:
        accumulation = BLOCKS // processes // micro_batch
        done = run_script(
            "train_loop.py", "--model_path", model, "--data_root", mirror, "--output_dir", output, *flags,
            "--per_device_train_batch_size", micro_batch, "--gradient_accumulation_steps", accumulation,
            "--preprocessing_num_workers", workers, "--max_steps", steps, "--resume_from_checkpoint", "auto",
            "--lr_scheduler_type", "constant", processes=processes,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, 1, 8, 1, 8)
    for processes, micro_batch, workers, steps in ((1, 2, 0, 2), (2, 2, 4, 4), (4, 1, 1, 6), (1, 4, 1, 8)):
        train(parts, processes, micro_batch, workers, steps)
    for step in (2, 4, 6, 8):
        expected, found = (progress_of(output, step)["progress"]["cursor"] for output in (whole, parts))
        assert found == expected
    assert len({lane["digest"] for lane in expected.values()}) == BLOCKS
    losses = [
        [
            json.loads(line)["eval_loss"]
            for line in (output / "metrics.jsonl").read_text().splitlines()
            if "eval_loss" in line
        ]
        for output in (whole, parts)
    ]
    assert losses[1][-1] == pytest.approx(losses[0][-1], abs=1e-5)


def test_changed_data_stops_a_resume_names_the_file_and_goes_on_only_when_allowed(model: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for number in range(2):
        write_parquet(data, f"train{number}", [{"text": article(n)} for n in range(number * 40, number * 40 + 40)])
    flags = [
        "--model_path", model, "--output_dir", output, "--dataset_name", data, "--task", "pretrain", "--block_size", 32,
        "--per_device_train_batch_size", 4, "--validation_blocks", 2, "--save_steps", 2, "--report_to", "none",
    ]  # fmt: skip
    assert run_script("train_loop.py", *flags, "--max_steps", 2).returncode == 0
    write_parquet(data, "train1", [{"text": article(n)} for n in range(100, 170)])
    refused = run_script("train_loop.py", *flags, "--max_steps", 4, "--resume_from_checkpoint", "auto")
    assert refused.returncode == 2
    assert "train1-00000-of-00001.parquet: was " in refused.stderr
    assert "train0" not in refused.stderr
    assert "--allow_data_change" in refused.stderr
    go_on = [*flags, "--max_steps", 4, "--resume_from_checkpoint", "auto", "--allow_data_change"]
    allowed = run_script("train_loop.py", *go_on)
    assert allowed.returncode == 0, allowed.stderr
    (change,) = progress_of(output, 4)["identity"]["data_changes"]
    assert change["step"] == 2
    assert any("train1-00000-of-00001.parquet" in what for what in change["changes"])
    assert "data_changes" in (output / "config.yaml").read_text()
    again = run_script("train_loop.py", *flags, "--max_steps", 5, "--resume_from_checkpoint", "auto")
    assert again.returncode == 0, again.stderr  # it is the data of the last checkpoint now
    assert progress_of(output, 5)["identity"]["data_changes"] == [change]
    reseeded = run_script("train_loop.py", *go_on[:-3], "--max_steps", 6, *go_on[-3:], "--seed", 1)
    assert reseeded.returncode == 2
    assert "seed: was 42, is 1" in reseeded.stderr  # data may be allowed to change, its order may not


def test_prepare_datasets_writes_a_cache_that_train_loop_reads(model: Path, mirror: Path, tmp_path: Path) -> None:
    cache = tmp_path / "tokens"
    made = run_script(
        "prepare_datasets.py",
        "--wikipedia",
        "--arxiv",
        "--data_root",
        mirror,
        "--tokenize",
        cache,
        "--model_path",
        model,
    )
    assert made.returncode == 0, made.stderr
    assert "--token_cache" in made.stdout
    flags = (
        "--dataset_name both --block_size 32 --per_device_train_batch_size 4 --max_steps 4 --validation_blocks 4 "
        "--report_to none --save_steps 4"
    ).split()
    outputs = {}
    for name, extra in (("streamed", []), ("cached", ["--token_cache", cache])):
        outputs[name] = tmp_path / name
        done = run_script(
            "train_loop.py", "--model_path", model, "--data_root", mirror, "--output_dir", outputs[name], *flags, *extra
        )
        assert done.returncode == 0, done.stderr
    assert progress_of(outputs["streamed"], 4) == progress_of(outputs["cached"], 4)


def test_another_number_of_lanes_on_resume_is_refused_and_not_passed_over(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = config_for(model, mirror, data_lanes=4)
    listings = json.loads(listings_of(config))
    with pytest.raises(UserError, match="--data_lanes 4: the run began with 8"):
        make_task(config, listings, tokenizer, Plan(BLOCKS, 1, 0, 1), 8)
