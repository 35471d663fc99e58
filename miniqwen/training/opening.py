"""What opens a run: everything between the flags and the first update.

Promises: what one rank finds amiss ends all of them; whatever can be refused is refused before the model is loaded; a
resumed run stands where its checkpoint was made. Costs: one process lists the data for all; the model is loaded whole
on every rank before it is spread.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.checkpoints.checkpoint import Checkpoint, Progress
from miniqwen.checkpoints.tensor_files import StoredTensors
from miniqwen.config.flags import plain
from miniqwen.config.training import TrainConfig
from miniqwen.data.packing import stored_cursors
from miniqwen.data.repositories import Repository, locate, text_column
from miniqwen.distributed.runtime import Runtime
from miniqwen.distributed.shards import gathered
from miniqwen.errors import shortage_told
from miniqwen.lock import FolderLock
from miniqwen.model.modeling_miniqwen import compile_layers, count_parameters, load_model, read_config
from miniqwen.model.tokenization_miniqwen import check_vocabulary, load_tokenizer
from miniqwen.training.batches import Plan
from miniqwen.training.ending import closing_summary
from miniqwen.training.gauges import Card, Gauges, first_began
from miniqwen.training.lives import lives_until_now, versions
from miniqwen.training.memory import advice, set_aside
from miniqwen.training.optimizers import make_optimizer, record_optimizer
from miniqwen.training.outlets.opened import check_trackers
from miniqwen.training.output_folder import OutputFolder, open_output_dir
from miniqwen.training.preemption import StopRequest
from miniqwen.training.preview import show_preview
from miniqwen.training.question_task import question_task
from miniqwen.training.resuming import check_batch, continued, opened
from miniqwen.training.samples import fitting
from miniqwen.training.task import Steps, Task, updates_in_all
from miniqwen.training.text_task import text_task, validation_text
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
    gauges: Gauges

    def save(self, progress: Progress, window: Window) -> None:
        """A checkpoint of this moment: every rank takes part, rank 0 writes."""
        cursors = self.runtime.gather(stored_cursors(progress.cursor))
        cursor = {key: value for part in cursors for key, value in part.items()}
        scale = self.runtime.loss_scale(self.model)
        whole = replace(progress, cursor=cursor, loss_scale=scale, **window.pending(self.runtime))
        tensors = gathered(self.model, self.optimizer)  # one at a time, from all ranks
        with self.gauges.part("save"), self.runtime.together(tensors):
            if self.output:
                self.tracker.sync()
                self.output.save(whole, tensors, self.tracker.wandb_run_id)
                self.output.report()
                if self.config.log_model == "all":
                    self.tracker.model(self.output.folder / f"checkpoint-{progress.step}", f"step-{progress.step}")

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
                if self.config.log_model != "none":
                    best = "best" if self.config.load_best_model_at_end else "last"
                    self.tracker.model(self.output.folder, best, "final")

    def close(self, status: str, progress: Progress, reason: str | None) -> None:
        """The run has ended without a failure: its state, its trackers and its process group with it."""
        if self.output:
            self.output.set_status(status, progress, self.tracker.wandb_run_id, reason)
            self.output.report(last=True)
        best = {"best_step": progress.best_step, "best_metric": progress.best_metric}
        self.tracker.close(status, reason, best if progress.best_step is not None else None)
        where = self.gauges.close()
        if self.config.trains:
            self.runtime.print(where)
        if status == "finished" and self.config.trains:
            for line in closing_summary(self.config, progress, self.steps, self.tracker):
                self.runtime.print(line)
        self.runtime.close()


@contextlib.contextmanager
def open_run(config: TrainConfig, stop: StopRequest) -> Iterator[Run | None]:
    """Everything that a run needs, on every rank; raises `UserError` for what cannot be had or contradicts itself.

    The output folder is this run's alone until the end of the block. With `--preview` there is no run: it is only shown
    what one would be made of.
    """
    runtime = Runtime(config)
    runtime.agree({**versions(), **config.alike})
    lock = FolderLock(Path(str(config.output_dir)), "train_loop.py")
    runtime.on_main(lock.acquire)
    try:
        with shortage_told(*advice(config, runtime.world_size)):
            run = _opened(config, stop, runtime, lock)
        yield run
    finally:
        gc.unfreeze()
        lock.release()


def _opened(config: TrainConfig, stop: StopRequest, runtime: Runtime, lock: FolderLock) -> Run | None:
    found = runtime.on_main(lambda: open_output_dir(config))
    if not config.preview:
        runtime.on_main(lambda: check_trackers(config))
    stop.forget_stale_file()
    with runtime.together():  # what only one rank finds amiss ends all of them
        checkpoint = opened(Path(found["checkpoint"])) if found["checkpoint"] else None
        source = checkpoint.folder if checkpoint else Path(str(config.model_path))
        tokenizer = load_tokenizer(source)
        check_vocabulary(tokenizer, read_config(source).vocab_size, source)
    plan = Plan(
        config.per_device_train_batch_size, config.gradient_accumulation_steps, runtime.rank, runtime.world_size
    )
    if checkpoint:
        check_batch(checkpoint, plan)
    stored = checkpoint.identity if checkpoint else None
    # the hub is asked once, whatever the number of processes
    found_data = runtime.on_main(lambda: list_data(config, tokenizer, stored))
    with runtime.together():
        task = make_task(config, found_data, tokenizer, plan, stored)
    tokenizer.chat_template = task.chat_template  # saved with it
    config, shares = config.in_updates(updates_in_all(config, task))
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
    if checkpoint and checkpoint.identity.get("order") != task.identity.get("order"):
        runtime.print("the data begins anew: the checkpoint was made in another order")
        progress = replace(progress, cursor={})

    if config.preview:
        for line in (*task.notes, *shares, *lowered):
            runtime.print(line)
        show_preview(config, task, steps, progress, runtime)
        runtime.close()
        return None
    model, optimizer, parameters = _spread(config, runtime, source, checkpoint)
    if checkpoint:
        runtime.print(f"continuing from {checkpoint.folder}, update {progress.step}")
    runs_on, rows = runtime.describe(model, parameters), plan.rows_per_update
    size = f"{steps.total} updates of {rows} {task.rows_are} ({'' if task.updates_per_epoch is None else 'at most '}"
    # git and config.yaml are asked by the one process that tells and writes it
    lives = lives_until_now(config, checkpoint, runs_on, runtime.hosts) if runtime.is_main else [{}]
    if changed := lives[-1].get("changed"):
        runtime.print(f"changed: {', '.join(f'{name} {was} → {now}' for name, (was, now) in changed.items())}")
    bare = runtime.unwrap(model)
    card = Card.of(runtime, bare)
    mfu = [card.note(runtime.precision)] if card else []
    for line in (*task.notes, *shares, *lowered, f"{runs_on}; {size}{rows * config.length:,} tokens)", *mfu):
        runtime.print(line)

    described: dict[str, Any] = bare.config.to_dict()  # type: ignore[operator, union-attr]
    positions = described["max_position_embeddings"]
    task = replace(task, samples=fitting(task.samples, positions))
    output = None
    if runtime.is_main:
        beside = [kept for kept in (task.template, task.reading) if kept]
        output = OutputFolder(config, bare, tokenizer, beside, identity, steps.total, lock)
    facts = {"data": identity, "validation": task.held_out, "parameters": parameters}
    known = {"flags": plain(config), "model": described, "start": lives[-1], **facts}
    tracker = Tracker(config, runtime.is_main, progress.step, steps.total, checkpoint, known)
    if output:
        output.start(progress, tracker.wandb_run_id, {**facts, "lives": lives})
    set_aside()
    gauges = Gauges(config, runtime, card, tracker.productive, first_began(lives, tracker.elapsed))
    return Run(config, task, steps, progress, model, optimizer, runtime, stop, tracker, output, gauges)


def _spread(
    config: TrainConfig, runtime: Runtime, source: Path, checkpoint: Checkpoint | None
) -> tuple[torch.nn.Module, Any, int]:
    """(model, optimizer, number of parameters): of the folder `source`, spread over the ranks, and in the checkpoint's
    state where there is one."""
    model = load_model(source)
    parameters = count_parameters(model)
    optimizer = make_optimizer(model, config, runtime.device.type)
    for line in record_optimizer(model.config, config.optim):
        runtime.print(line)
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


def list_data(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, stored: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What there is to read: one process asks the hub and tells the others. JSON-able:

    {"repositories": {name: repository}, "kept": {name: validation text}}. `stored`: the identity of the data of the
    checkpoint that the run goes on from. Raises `UserError` for data that cannot be had.
    """
    found: dict[str, Repository] = {}
    for name, given in config.named.items():
        of_source = config.of_source(name)
        repository = replace(locate(given, of_source), name=name)
        if config.resolved_task == "pretrain" and not config.token_cache:
            columns, skip_bad = (text_column(given, of_source),), config.on_bad_data == "skip"
            repository = repository.listed((of_source.train_split,), columns, skip_bad)
        found[name] = repository
    kept = {}
    if config.resolved_task == "pretrain":
        kept = validation_text(config, _fetched(found, config), tokenizer, stored)
    return {"repositories": {name: repository.to_json() for name, repository in found.items()}, "kept": kept}


def make_task(
    config: TrainConfig,
    found: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    stored: Mapping[str, Any] | None = None,
) -> Task:
    """The task that the flags ask for, of what `list_data` found; `stored`: the identity of a resumed run's data.

    Raises `UserError` for data that is empty or broken, or other local files than those that were listed.
    """
    repositories = {name: Repository.from_json(listing) for name, listing in found["repositories"].items()}
    for repository in repositories.values():
        repository.check_here()
    repositories = _fetched(repositories, config)
    if config.resolved_task == "finetune":
        return question_task(config, repositories, tokenizer, plan)
    return text_task(config, repositories, found["kept"], tokenizer, plan, stored)


def _fetched(repositories: Mapping[str, Repository], config: TrainConfig) -> dict[str, Repository]:
    """With `--streaming False`, all files on this machine."""
    return {name: found if config.streaming else found.downloaded() for name, found in repositories.items()}
