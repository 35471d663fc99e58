"""Law 1: the blocks of update k do not depend on the machine, its workers, or how often the run was stopped."""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from runs import article, run_script, write_parquet
from transformers import PreTrainedTokenizerBase

from miniqwen.config.data import BOTH
from miniqwen.config.training import TrainConfig
from miniqwen.data.documents import ORDER, Order
from miniqwen.data.held_out import HeldOut
from miniqwen.data.mixture import Mixture
from miniqwen.data.packing import Cursor, chained, lanes_together, pack, stored_cursors
from miniqwen.data.repositories import resolve
from miniqwen.data.strands import Reading, SourceCursor
from miniqwen.data.tokenizing import write_token_cache
from miniqwen.data.windows import TextWindows
from miniqwen.errors import UserError
from miniqwen.files import file_hash
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
def listed_once(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """As one process lists the data and tells the others; the data sets of the session do not change."""
    return json.dumps(list_data(config, tokenizer))


def tasks_of(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, part: Part) -> list[Task]:
    """What each process of a machine makes of the same listing."""
    is_fixed = all(name in BOTH for name in config.named)
    found = json.loads(listed_once(config, tokenizer) if is_fixed else json.dumps(list_data(config, tokenizer)))
    plans = [Plan(part.micro_batch, part.accumulation, rank, part.world) for rank in range(part.world)]
    return [make_task(config, found, tokenizer, plan) for plan in plans]


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
        stored = {lane: value for update in made for lane, value in stored_cursors(update.cursor).items()}
        cursor = json.loads(json.dumps(stored))
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
    rows = held_out_texts(config, dataset_name, task)
    assert 0 < len(rows) <= 0.05 * len(corpus) + 1
    free = [text for text in corpus if text not in rows]
    assert len(free) == len(corpus) - len(rows)
    expected = sorted(map(tuple, document_encoder(tokenizer)(free)))
    updates: list[np.ndarray] = []
    cursor: Mapping[str, Any] = {}
    epochs: list[int] = []
    while not epochs or epochs[-1] < 2:
        more, cursor = run_part(config, tokenizer, Part(1, 1, 1, len(updates) % 3, 1), cursor)
        updates += more
        epochs.append(cursor["0"]["sources"][dataset_name]["epoch"])
    tokens = np.concatenate([blocks.ravel() for blocks in updates])
    total = sum(map(len, expected))
    # the strands are mixed, so it is the tokens of each epoch that are those of the corpus
    for number in (0, 1):
        epoch = tokens[number * total : (number + 1) * total]
        assert sorted(epoch.tolist()) == sorted(token for document in expected for token in document)
        assert (epoch == tokenizer.eos_token_id).sum() == len(expected)
    assert not np.array_equal(tokens[:total], tokens[total : 2 * total])
    assert cursor["0"]["sources"][dataset_name]["tokens"] == len(tokens)
    assert epochs.index(1) == pytest.approx(total / LENGTH, abs=1)
    other_seed, _ = run_part(config_for(model, mirror, dataset_name=dataset_name, data_lanes=1, seed=7), tokenizer,
                             Part(1, BLOCKS, 1, 0, 2), {})  # fmt: skip
    assert not np.array_equal(other_seed[0], updates[0])


def test_the_mixture_keeps_its_shares_and_its_books_over_resumes(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = config_for(model, mirror, mixture="wikipedia=0.8,arxiv=0.2")
    _, cursor = run(config, tokenizer, Part(1, 8, 1, 1, 10), Part(2, 2, 2, 4, 20), Part(4, 1, 2, 0, 30))
    taken = [{name: read["tokens"] for name, read in lane["sources"].items()} for lane in cursor.values()]
    for lane in taken:
        assert sum(lane.values()) == 60 * LENGTH
        assert abs(lane["wikipedia"] - 0.8 * 60 * LENGTH) <= 2 * LENGTH
    assert abs(sum(lane["wikipedia"] for lane in taken) - 0.8 * 60 * BLOCKS * LENGTH) <= 2 * LENGTH


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


def held_out_texts(config: TrainConfig, name: str, task: Task) -> list[str]:
    """What a task keeps of a source, as its identity says it."""
    source = resolve(name, config).source("train", ("text",))
    units = {(source.files[unit.file].path, unit.part): unit for unit in source.units()}
    ranges = task.identity["held_out"][name]
    return [text for path, part, *rows in ranges for text in source.read(units[path, part])["text"][slice(*rows)]]


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
    assert (
        len({str({name: len(own) for name, own in task.validation.items()}) for task in tasks}) == 1
    )  # or ranks would wait for each other
    validations = [[batch for batches in task.validation.values() for batch in batches] for task in tasks]
    rows = [
        row for batches in validations for batch in batches for row in zip(batch.input_ids, batch.targets, strict=True)
    ]
    found = sorted((ids.tolist(), targets.tolist()) for ids, targets in rows if (targets != -100).any())
    expected = sorted(
        (ids.tolist(), targets.tolist())
        for batches in alone.validation.values()
        for batch in batches
        for ids, targets in zip(batch.input_ids, batch.targets, strict=True)
    )
    assert found == expected
    assert len(found) == 5
    assert {name: len(own) for name, own in alone.validation.items()} == {"wikipedia": 2, "arxiv": 1}  # 3 and 2 blocks
    for name, kept in alone.held_out.items():
        texts = held_out_texts(config, name, alone)
        assert len(texts) == kept["rows_held_out_of_training"] > 0
        assert sum(map(len, document_encoder(tokenizer)(texts))) >= kept["tokens"] > LENGTH


def test_an_evaluation_of_nothing_is_refused_and_never_a_loss_of_zero(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Where a resumed run held nothing out, and where in what is kept nothing is to be predicted."""
    config = config_for(model, mirror, do_eval=True)
    with pytest.raises(UserError, match="wikipedia: no validation text: what the checkpoint held out, if anything"):
        list_data(config, tokenizer, {"held_out": {"wikipedia": [], "arxiv": []}})
    found = json.loads(listed_once(config, tokenizer))
    found["kept"]["arxiv"]["blocks"] = [[7], [7]]
    with pytest.raises(UserError, match="arxiv: no validation text: in what is kept no token follows another"):
        make_task(config, found, tokenizer, Plan(BLOCKS, 1, 0, 1))


def write_cache(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, root: Path) -> list[tuple[str, int, int]]:
    told: list[tuple[str, int, int]] = []
    for name in config.named.values():
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
    found = json.loads(listed_once(config, tokenizer))
    with pytest.raises(UserError, match="--data_lanes 4: the run began with 8"):
        make_task(config, found, tokenizer, Plan(BLOCKS, 1, 0, 1), {"lanes": 8})


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third source: lines, some of them long beyond many blocks."""
    file = tmp_path_factory.mktemp("own") / "notes.jsonl"
    texts = [article(2000 + number) * (40 if number % 15 == 0 else 1) for number in range(60)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def mixture_of_three(model: Path, mirror: Path, notes: Path, **flags: Any) -> TrainConfig:
    names = ("wikipedia", "arxiv", str(notes))
    shares = "wikipedia=0.5,arxiv=0.2,notes.jsonl=0.3"
    return config_for(model, mirror, dataset_name=names, mixture=shares, **flags)


def test_a_mixture_of_three_with_documents_that_are_cut_again_and_again_has_the_same_blocks_on_any_machine(
    model: Path, mirror: Path, notes: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = mixture_of_three(model, mirror, notes)
    assert_law_1(config, tokenizer, FAST[::2], [(1, 1, 12), (3, 6, 5), (2, 2, 2, 8)])
    _, cursor = run(config, tokenizer, WHOLE)
    open_strands = [strand for lane in cursor.values() for strand in lane["sources"]["notes.jsonl"]["strands"]]
    assert sum(strand is not None and strand[3] > 0 for strand in open_strands) > BLOCKS  # cut, and to be gone on with


def test_a_token_cache_of_three_sources_gives_the_blocks_and_the_validation_text_of_streaming(
    model: Path, mirror: Path, notes: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    streaming = mixture_of_three(model, mirror, notes)
    write_cache(streaming, tokenizer, tmp_path)
    cached = mixture_of_three(model, mirror, notes, token_cache=str(tmp_path))
    assert run(cached, tokenizer, Part(2, 4, 1, 1, 14)) == run(streaming, tokenizer, WHOLE)
    first, second = (tasks_of(config, tokenizer, WHOLE)[0] for config in (streaming, cached))
    assert (first.identity, first.held_out, first.source_bytes) == (
        second.identity,
        second.held_out,
        second.source_bytes,
    )
    for name, batches in first.validation.items():
        for one, other in zip(batches, second.validation[name], strict=True):
            assert torch.equal(one.input_ids, other.input_ids)


@pytest.mark.parametrize("updates_apart", [1, 2])
def test_blocks_of_one_long_document_are_four_updates_apart_where_there_is_other_text(
    model: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, updates_apart: int
) -> None:
    """Also where an update takes several blocks of each lane."""
    file = tmp_path / "papers.jsonl"
    papers = [" ".join([f"paper{number} says"] * 700) for number in range(60)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in papers))
    lanes = BLOCKS // updates_apart
    config = config_for(model, tmp_path, dataset_name=str(file), data_root=None, task="pretrain", data_lanes=lanes)
    updates, _ = run_part(config, tokenizer, Part(1, BLOCKS, 1, 0, 60), {})
    last: dict[str, int] = {}
    distances = []
    for number, blocks in enumerate(updates):
        for block in blocks:
            said = set(tokenizer.decode(block).split("paper")[1:])
            for name in {one.split()[0] for one in said if one.split()[1:]}:
                if last.get(name, number) != number:
                    distances.append(number - last[name])
                last[name] = number
    assert len(distances) > 100
    assert sorted(distances)[len(distances) // 50] >= 4


def test_documents_of_one_place_in_the_file_do_not_come_one_after_the_other(
    model: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Forty row groups: of documents up to eight apart in a lane a tenth at most are of the same one."""
    rows = [{"text": f"N{number:05} " + " ".join(["stone", "river"] * (number % 9 + 1))} for number in range(40 * 40)]
    write_parquet(tmp_path / "data", "train", rows, group=40)
    config = config_for(
        model, tmp_path, dataset_name=str(tmp_path / "data"), data_root=None, task="pretrain", data_lanes=2
    )
    updates, _ = run_part(config, tokenizer, Part(1, 2, 1, 0, 400), {})
    found = [re.findall(r"N(\d{5})", tokenizer.decode(np.concatenate([update[lane] for update in updates])))
             for lane in (0, 1)]  # fmt: skip
    for numbers in (np.array(list(map(int, lane))) for lane in found):
        assert len(numbers) > 300
        for distance in range(1, 9):
            first, second = numbers[:-distance], numbers[distance:]
            assert (first // 40 == second // 40).mean() <= 0.10
            assert np.corrcoef(first, second)[0, 1] <= 0.25


def test_what_cannot_be_read_in_a_mixture_of_three_is_passed_over_alike_on_any_machine_after_any_resume(
    model: Path, mirror: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A row group, a file of lines and a gzipped file that are broken, in three sources that are read in strands."""
    for number in range(6):
        texts = [article(3000 + number * 40 + row) for row in range(40)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        for kind in ("rows", "lines", "packed"):
            (tmp_path / kind).mkdir(exist_ok=True)
        write_parquet(tmp_path / "rows", f"train{number}", [{"text": text} for text in texts], group=10)
        (tmp_path / "lines" / f"train{number}.jsonl").write_bytes(lines + (b"{broken\n" if number == 4 else b""))
        packed = gzip.compress(lines, mtime=0)
        (tmp_path / "packed" / f"train{number}.jsonl.gz").write_bytes(
            packed[: len(packed) // (2 if number == 3 else 1)]
        )
    group = sorted((tmp_path / "rows").glob("train2*"))[0]
    page = pq.read_metadata(group).row_group(1).column(0)
    data = bytearray(group.read_bytes())
    first = page.dictionary_page_offset or page.data_page_offset
    data[first : first + 8] = b"\xff" * 8
    group.write_bytes(data)
    config = config_for(
        model, mirror, dataset_name=tuple(str(tmp_path / kind) for kind in ("rows", "lines", "packed")), data_root=None,
        task="pretrain", mixture="rows=0.3,lines=0.3,packed=0.4", on_bad_data="skip", text_column="text",
    )  # fmt: skip
    whole = Part(1, BLOCKS, 1, 0, 120)
    expected, cursor = run(config, tokenizer, whole)
    found = {name: read["skipped"] for name, read in lanes_together(cursor).items()}
    assert {name: len(bad) for name, bad in found.items()} == {"rows": 1, "lines": 1, "packed": 1}
    assert all(read["epoch"] > 0 for read in lanes_together(cursor).values())
    assert run(config, tokenizer, on(MACHINES[-1], 120)) == (expected, cursor)
    parts = [Part(2, 4, 1, 4, 7), Part(1, 8, 1, 0, 30), Part(4, 1, 2, 1, 83)]
    assert run(config, tokenizer, *parts) == (expected, cursor)


class Bytes:
    """An encoder of the test's own, so that a new tokenizer does not look like another order."""

    @staticmethod
    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode() + b"\0", np.uint8).astype(np.int64) for text in texts]


def test_the_order_has_a_number_and_its_first_blocks_are_pinned(tmp_path: Path) -> None:
    """Who makes other blocks of the same data must raise `documents.ORDER`, and then write the new digests here.

    Four formats, in a mixture, in strands; long documents that are cut, some epochs, and rows that are held out.
    """
    for name, kind in (("rows", "parquet"), ("lines", "jsonl"), ("packed", "gz"), ("plain", "txt")):
        texts = [f"{name} {number} " + "and so on, " * (number * number % 90) for number in range(300)]
        (tmp_path / name).mkdir()
        if kind == "parquet":
            write_parquet(tmp_path / name, "train", [{"text": text} for text in texts])
            continue
        lines = "".join((text if kind == "txt" else json.dumps({"text": text})) + "\n" for text in texts).encode()
        file = tmp_path / name / {"jsonl": "train.jsonl", "gz": "train.jsonl.gz", "txt": "train.txt"}[kind]
        file.write_bytes(gzip.compress(lines, mtime=0) if kind == "gz" else lines)
    lanes, digests = 4, []
    shares = {"rows": 0.4, "lines": 0.2, "packed": 0.2, "plain": 0.2}
    orders = {}
    for name in shares:
        source = resolve(str(tmp_path / name), TrainConfig(dataset_name=str(tmp_path / name))).source(
            "train", ("text",)
        )
        orders[name] = Order(TextWindows(source), HeldOut({0: [(3, 9)]}), 42, lanes)
        assert orders[name].layout.strands > 1
    for lane in range(lanes):

        def opened(name: str, cursor: SourceCursor, lane: int = lane) -> Reading:
            return Reading(orders[name], lane, Bytes.encode, lambda _: {}, cursor)

        *_, last = itertools.islice(pack(opened, Mixture(shares, lanes), lane, Cursor(), 256), 800)
        assert {cursor.epoch > 0 for cursor in last.cursor.sources.values()} == {True}
        digests.append(last.cursor.digest)
    assert (ORDER, digests) == (7, PINNED)


PINNED = ["f4db0e64ddda465d", "751fa02a4281b038", "4f005bb1e3d62c4b", "e90e5509ba80633a"]


def test_a_checkpoint_of_another_order_is_refused_and_goes_on_from_the_beginning_of_the_data_when_allowed(
    model: Path, mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    flags = [
        "--model_path", model, "--data_root", mirror, "--output_dir", output, "--dataset_name", "both", "--block_size",
        32, "--per_device_train_batch_size", 4, "--save_steps", 2, "--report_to", "none", "--validation_blocks", 2,
    ]  # fmt: skip
    assert run_script("train_loop.py", *flags, "--max_steps", 2).returncode == 0
    file = output / "checkpoint-2/progress.json"
    stored = progress_of(output, 2)
    assert stored["identity"]["order"] == ORDER
    for name in ("order", "layout", "held_out", "unreadable"):
        del stored["identity"][name]
    stored["identity"]["held_out_rows"] = {"wikipedia": 3, "arxiv": 1}  # as it was before the order had a number
    stored["progress"]["cursor"] = {"0": {"positions": {}}}
    file.write_text(json.dumps(stored))
    manifest = json.loads((output / "checkpoint-2/manifest.json").read_text())
    manifest["sha256"]["progress.json"] = file_hash(file)
    (output / "checkpoint-2/manifest.json").write_text(json.dumps(manifest))
    go_on = [*flags, "--max_steps", 4, "--resume_from_checkpoint", "auto"]
    refused = run_script("train_loop.py", *go_on)
    assert refused.returncode == 2
    assert "order: was absent, is 7" in refused.stderr
    allowed = run_script("train_loop.py", *go_on, "--allow_data_change")
    assert allowed.returncode == 0, allowed.stderr
    assert "the data begins anew" in allowed.stdout
    (change,) = progress_of(output, 4)["identity"]["data_changes"]
    assert "order: was absent, is 7" in change["changes"]


def test_a_grown_file_keeps_its_held_out_rows_and_its_layout(model: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    lines = [json.dumps({"text": article(number)}) + "\n" for number in range(400)]
    (data / "train.jsonl").write_text("".join(lines[:200]))
    flags = [
        "--model_path", model, "--output_dir", output, "--dataset_name", data, "--task", "pretrain", "--block_size", 32,
        "--per_device_train_batch_size", 4, "--validation_blocks", 2, "--save_steps", 2, "--report_to", "none",
    ]  # fmt: skip
    assert run_script("train_loop.py", *flags, "--max_steps", 2).returncode == 0
    before = progress_of(output, 2)["identity"]
    (data / "train.jsonl").write_text("".join(lines))
    go_on = [*flags, "--max_steps", 4, "--resume_from_checkpoint", "auto"]
    assert run_script("train_loop.py", *go_on).returncode == 2
    allowed = run_script("train_loop.py", *go_on, "--allow_data_change")
    assert allowed.returncode == 0, allowed.stderr
    after = progress_of(output, 4)["identity"]
    assert after["sources"] != before["sources"]
    for name in ("held_out", "layout"):
        assert after[name] == before[name] != {}


def test_settings_of_one_source_stand_in_the_file_and_two_files_of_one_name_are_told_apart(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        lines = "".join(json.dumps({"body": article(n), "text": "x"}) + "\n" for n in range(40))
        (tmp_path / folder / "notes.jsonl").write_text(lines)
    (tmp_path / "book.txt").write_text("\n\n".join(article(number) for number in range(40)))
    files = [str(tmp_path / name) for name in ("a/notes.jsonl", "b/notes.jsonl", "book.txt")]
    config = {
        "dataset_name": ["wikipedia", *files], "mixture": f"wikipedia=0.4,{files[0]}=0.2,{files[1]}=0.2,book.txt=0.2",
        "sources": {files[0]: {"text_column": "body"}, "book.txt": {"sample_by": "paragraph"}},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    flags = [
        "--config", tmp_path / "run.yaml", "--model_path", model, "--data_root", mirror, "--output_dir", tmp_path / "o",
        "--block_size", 32, "--per_device_train_batch_size", 4, "--max_steps", 2, "--report_to", "none",
    ]  # fmt: skip
    done = run_script("train_loop.py", *flags)
    assert done.returncode == 0, done.stderr
    identity = progress_of(tmp_path / "o", 2)["identity"]
    assert list(identity["sources"]) == ["wikipedia", *files[:2], "book.txt"]
    assert identity["sources"]["book.txt"]["sample_by"] == "paragraph"
    again = run_script("train_loop.py", "--config", tmp_path / "o/config.yaml", "--max_steps", 3,
                       "--resume_from_checkpoint", "auto")  # fmt: skip
    assert again.returncode == 0, again.stderr
    (tmp_path / "run.yaml").write_text(json.dumps({**config, "sources": {"wiki": {}, "book.txt": {"by": "line"}}}))
    refused = run_script("train_loop.py", *flags)
    assert refused.returncode == 2
    assert "sources: wiki is none of the data sets in --dataset_name" in refused.stderr
    assert "sources: book.txt: by is no setting of a data set" in refused.stderr
