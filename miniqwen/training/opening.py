"""What opens a run: everything between the flags and the first update.

Promises: what one rank finds amiss ends all of them; whatever can be refused is refused before the model is loaded; a
resumed run stands where its checkpoint was made. Costs: one process lists the data for all; the model is loaded whole
on every rank before it is spread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.checkpoints.checkpoint import Checkpoint, Progress, read_checkpoint
from miniqwen.checkpoints.tensor_files import StoredTensors
from miniqwen.config.training import TrainConfig
from miniqwen.data.repositories import Repository, data_names, locate, text_column
from miniqwen.distributed.runtime import Runtime
from miniqwen.distributed.shards import gathered
from miniqwen.lock import FolderLock
from miniqwen.model.modeling_miniqwen import compile_layers, count_parameters, load_model
from miniqwen.model.tokenization_miniqwen import load_tokenizer
from miniqwen.training.batches import Plan
from miniqwen.training.ending import closing_summary
from miniqwen.training.optimizers import make_optimizer
from miniqwen.training.output_folder import OutputFolder, open_output_dir, versions
from miniqwen.training.preemption import StopRequest
from miniqwen.training.question_task import question_task
from miniqwen.training.resuming import check_batch, continued
from miniqwen.training.samples import fitting
from miniqwen.training.task import Steps, Task
from miniqwen.training.text_task import text_task
from miniqwen.training.tracking import Tracker, Window


@dataclass(frozen=True)
class Run:
    """What the loop works with; `begins`: how far the run is at its start; `output` only on the rank that writes."""

    config: TrainConfig
    task: Task
    steps: Steps
    begins: Progress
    model: torch.nn.Module
    optimizer: Any
    runtime: Runtime
    stop: StopRequest
    tracker: Tracker
    output: OutputFolder | None

    def save(self, progress: Progress, window: Window) -> None:
        """A checkpoint of this moment: every rank takes part, rank 0 writes."""
        cursors = self.runtime.gather(progress.cursor)
        cursor = {key: value for part in cursors for key, value in part.items()}
        scale = self.runtime.loss_scale(self.model)
        whole = replace(progress, cursor=cursor, loss_scale=scale, **window.pending(self.runtime))
        tensors = gathered(self.model, self.optimizer)  # one at a time, from all ranks
        with self.runtime.together(tensors):
            if self.output:
                self.output.save(whole, tensors, self.tracker.wandb_run_id)

    def note_evaluation(self, progress: Progress) -> bool:
        """In the checkpoint that was written at this update, before it was evaluated; whether it is in this folder.

        Every rank takes part.
        """
        output = self.output
        return bool(
            self.runtime.on_main(lambda: output and output.note_evaluation(progress, self.tracker.wandb_run_id))
        )

    def write_final_model(self, progress: Progress) -> None:
        """Every rank takes part, rank 0 writes."""
        tensors = gathered(self.model, None)
        with self.runtime.together(tensors):
            if self.output:
                self.tracker.say(f"{self.output.write_final_model(tensors, progress)} is in {self.output.folder}")

    def close(self, status: str, progress: Progress, reason: str | None) -> None:
        """The run has ended without a failure: its state, its trackers and its process group with it."""
        if self.output:
            self.output.set_status(status, progress, self.tracker.wandb_run_id, reason)
        self.tracker.close()
        if status == "finished" and self.config.trains:
            for line in closing_summary(self.config, progress, self.steps, self.tracker.elapsed):
                self.runtime.print(line)
        self.runtime.close()


@contextlib.contextmanager
def open_run(config: TrainConfig, stop: StopRequest) -> Iterator[Run]:
    """Everything that a run needs, on every rank; raises `UserError` for what cannot be had or contradicts itself.

    The output folder is this run's alone until the end of the block.
    """
    runtime = Runtime(config)
    runtime.agree({**versions(), **config.alike})
    lock = FolderLock(Path(str(config.output_dir)), "train_loop.py")
    runtime.on_main(lock.acquire)
    try:
        yield _opened(config, stop, runtime, lock)
    finally:
        lock.release()


def _opened(config: TrainConfig, stop: StopRequest, runtime: Runtime, lock: FolderLock) -> Run:
    found = runtime.on_main(lambda: open_output_dir(config))
    stop.forget_stale_file()
    with runtime.together():  # what only one rank finds amiss ends all of them
        checkpoint = read_checkpoint(Path(found["checkpoint"])) if found["checkpoint"] else None
        source = checkpoint.folder if checkpoint else Path(str(config.model_path))
        tokenizer = load_tokenizer(source)
    plan = Plan(
        config.per_device_train_batch_size, config.gradient_accumulation_steps, runtime.rank, runtime.world_size
    )
    if checkpoint:
        check_batch(checkpoint, plan)
    listings = runtime.on_main(lambda: list_data(config))  # the hub is asked once, whatever the number of processes
    with runtime.together():
        task = make_task(config, listings, tokenizer, plan, checkpoint.identity.get("lanes") if checkpoint else None)
    tokenizer.chat_template = task.chat_template  # saved with it
    config, lowered = config.once_an_epoch(task.updates_per_epoch)
    steps = Steps.of(config, task)
    runtime.agree({"data": task.identity, "checkpoint": str(checkpoint.progress) if checkpoint else None})
    identity = continued(config, checkpoint, task.identity, steps.total) if checkpoint else task.identity
    progress = checkpoint.progress if checkpoint else Progress()
    progress = progress if found["best"] else progress.without_best()
    if progress.best_name not in (None, config.best_is):
        runtime.print(
            f"the best model so far has {progress.best_name}, and is to have {config.best_is} now: it is chosen among "
            "the evaluations from here on"
        )
        progress = progress.without_best()

    model, optimizer, parameters = _spread(config, runtime, source, checkpoint)
    if checkpoint:
        runtime.print(f"continuing from {checkpoint.folder}, update {progress.step}")
    runs_on, rows = runtime.describe(model, parameters), plan.rows_per_update
    size = f"{steps.total} updates of {rows} {task.rows_are} ({'' if task.updates_per_epoch is None else 'at most '}"
    for line in (*task.notes, *lowered, f"{runs_on}; {size}{rows * config.length:,} tokens)"):
        runtime.print(line)

    bare = runtime.unwrap(model)
    positions: int = bare.config.max_position_embeddings  # type: ignore[assignment, union-attr]
    task = replace(task, samples=fitting(task.samples, positions))
    output = None
    if runtime.is_main:
        beside = [kept for kept in (task.template, task.reading) if kept]
        output = OutputFolder(config, bare, tokenizer, beside, identity, steps.total, lock)
    known_to_wandb = checkpoint.wandb_run_id if checkpoint else None
    tracker = Tracker(config, runtime.is_main, progress.step, steps.total, known_to_wandb)
    if output:
        facts = {"data": identity, "validation": task.held_out, "parameters": parameters, "runs_on": runs_on}
        output.start(progress, tracker.wandb_run_id, facts)
    return Run(config, task, steps, progress, model, optimizer, runtime, stop, tracker, output)


def _spread(
    config: TrainConfig, runtime: Runtime, source: Path, checkpoint: Checkpoint | None
) -> tuple[torch.nn.Module, Any, int]:
    """(model, optimizer, number of parameters): of the folder `source`, spread over the ranks, and in the checkpoint's
    state where there is one."""
    model = load_model(source)
    parameters = count_parameters(model)
    optimizer = make_optimizer(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.torch_compile:
        compile_layers(model)
    prepared, prepared_optimizer = runtime.prepare(model, optimizer)
    weights = checkpoint.weights if checkpoint else StoredTensors(source, "model")
    state = checkpoint.optimizer_state if checkpoint else None
    loss_scale = checkpoint.progress.loss_scale if checkpoint else None
    runtime.restore(prepared, prepared_optimizer, weights, state, loss_scale)
    return prepared, prepared_optimizer, parameters


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
        return question_task(config, repositories, tokenizer, plan)
    return text_task(config, repositories, tokenizer, plan, lanes)
