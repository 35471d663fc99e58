"""The training loop: pretraining on streamed, packed text, or fine-tuning on questions, in one hand-written loop.

    accelerate launch train_loop.py --model_path M --dataset_name both --output_dir O --max_steps 1000
    accelerate launch train_loop.py --model_path O --dataset_name sciq --output_dir S --num_train_epochs 5

Read `train` below aloud: it is the whole of it. Everything it calls is a room of `miniqwen/` that does one thing: the
data order (documents, packing, batches, tasks), the loss (loss, modeling_miniqwen), the movement (optimizers), what
survives (checkpoint) and what is told (tracking).
Promises: an interrupted run that is resumed ends with the weights of one that was not. The output folder then holds the
final model for stock transformers, checkpoints, metrics and the resolved configuration.
"""

from __future__ import annotations

from miniqwen.config import TrainConfig, parse, user_errors_exit_2
from miniqwen.qa import template_flags

if __name__ == "__main__":
    with user_errors_exit_2():  # before the heavy imports, so that --help and mistakes answer at once
        CONFIG = parse(
            TrainConfig,
            program="train_loop.py",
            description="Pretrain or fine-tune a MiniQwen model.",
            checks=[template_flags],
        )

import math
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from miniqwen.batches import Plan
from miniqwen.checkpoint import Progress, read_checkpoint
from miniqwen.config import UserError
from miniqwen.metrics import predictions
from miniqwen.modeling_miniqwen import count_parameters, load_model
from miniqwen.optimizers import make_optimizer, make_schedule, set_learning_rate
from miniqwen.output_folder import OutputFolder, check_batch, continued, open_output_dir
from miniqwen.runtime import Runtime, StopRequest
from miniqwen.scoring import score_share
from miniqwen.shards import gathered
from miniqwen.tasks import Task, list_data, make_task
from miniqwen.tensor_files import StoredTensors
from miniqwen.tokenization_miniqwen import load_tokenizer
from miniqwen.tracking import Tracker, Window


@dataclass(frozen=True)
class Steps:
    """The run in updates: how many in all, how many of warm-up, and how many between two evaluations."""

    total: int
    warmup: int
    between_evaluations: int | None  # None: not while training
    per_epoch: int | None  # None: text has no end
    evaluates_at_end: bool

    @classmethod
    def of(cls, config: TrainConfig, task: Task) -> Steps:
        """Raises `UserError` when the warm-up is longer than the training."""
        per_epoch = task.updates_per_epoch
        by_epochs = per_epoch is not None and config.max_steps == -1
        total = math.ceil(config.num_train_epochs * per_epoch) if per_epoch and by_epochs else config.max_steps
        warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total)
        if warmup > total:
            raise UserError(f"--warmup_steps {warmup} is longer than the training, which has {total} updates")
        between = {"no": None, "steps": config.eval_steps or config.logging_steps, "epoch": per_epoch}[
            config.eval_strategy
        ]
        return cls(total, warmup, between, per_epoch, bool(config.do_eval) or between is not None)

    def evaluation_is_due(self, step: int) -> bool:
        at_this_step = self.between_evaluations is not None and step % self.between_evaluations == 0
        return at_this_step or (step == self.total and self.evaluates_at_end)

    def epoch(self, progress: Progress) -> float:
        """Passes over the questions so far, or the number of the pass over the text."""
        return progress.step / self.per_epoch if self.per_epoch else progress.epoch


@dataclass(frozen=True)
class Run:
    """What the loop works with, beside the flags and the data; `output` only on the rank that writes."""

    model: torch.nn.Module
    optimizer: Any
    runtime: Runtime
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

    def write_final_model(self, progress: Progress) -> None:
        """Every rank takes part, rank 0 writes."""
        tensors = gathered(self.model, None)
        with self.runtime.together(tensors):
            if self.output:
                print(f"{self.output.write_final_model(tensors, progress)} is in {self.output.folder}")


def train(config: TrainConfig, task: Task, steps: Steps, run: Run, progress: Progress) -> tuple[Progress, str]:
    """Updates from `progress.step` to the last one; returns how far the run came, and its status.

    At each boundary between updates: evaluate, save, then make the next update.
    """
    model, optimizer, runtime = run.model, run.optimizer, run.runtime
    schedule = make_schedule(config, steps.total, steps.warmup)
    updates = task.updates(progress.cursor)
    carried = progress.pending_loss if runtime.is_main else 0.0  # a sum over the ranks: one of them goes on with it
    window = Window(runtime.device, carried, progress.pending_targets)
    stop, stopping, start = StopRequest(), False, progress.step
    model.train()

    for step in range(start, steps.total + 1):
        last = step == steps.total or stopping
        if step > start and not stopping and steps.evaluation_is_due(step):
            progress = evaluated(config, task, run, progress)
            last = last or out_of_patience(config, progress)
        if step > start and (last or step % config.save_steps == 0 or progress.best_step == step):
            run.save(progress, window)
        if last:
            break

        began = perf_counter()
        learning_rate = config.learning_rate * schedule(step)
        set_learning_rate(optimizer, learning_rate)  # before backward: some backends step inside it
        runtime.seed_update(step)
        update = next(updates)
        waited = perf_counter() - began
        num_targets, num_tokens, stops = runtime.sum(update.num_targets, update.num_tokens, int(stop.requested))
        for number, micro_batch in enumerate(update.micro_batches, 1):
            with runtime.accumulating(model, sync=number == len(update.micro_batches)):
                loss_sum = model(**vars(micro_batch.to(runtime.device)))
                runtime.backward(loss_sum, num_targets)
            window.add_loss(loss_sum)
        grad_norm = runtime.step(model, optimizer, config.max_grad_norm)

        stopping = stops > 0
        if update.epoch > progress.epoch and task.updates_per_epoch is None:
            runtime.print(f"update {step + 1}: the text is used up; it repeats in another order (epoch {update.epoch})")
        progress = replace(
            progress, step=step + 1, tokens=progress.tokens + num_tokens, epoch=update.epoch, cursor=update.cursor
        )
        window.add_update(num_targets, num_tokens, waited, perf_counter() - began)
        run.tracker.advance()
        if progress.step % config.logging_steps == 0 or progress.step in (1, steps.total):
            metrics = window.metrics(runtime, learning_rate, grad_norm, steps.total - progress.step)
            run.tracker.train(progress.step, {**metrics, "tokens": progress.tokens, "epoch": steps.epoch(progress)})
            window = Window(runtime.device)
    return progress, "preempted" if stopping and progress.step < steps.total else "finished"


def evaluated(config: TrainConfig, task: Task, run: Run, progress: Progress) -> Progress:
    """`progress` after an evaluation at its step, which the tracker is told of."""
    began = perf_counter()
    result = evaluate(config, task, run.runtime.evaluable(run.model), run.runtime)
    run.tracker.evaluation(progress.step, {**result, "eval_seconds": perf_counter() - began})
    return progress.with_evaluation(result[config.best_metric], config.larger_is_better)


@torch.no_grad()
def evaluate(config: TrainConfig, task: Task, model: torch.nn.Module, runtime: Runtime) -> dict[str, float]:
    """`eval_loss`: cross-entropy summed over all validation tokens of all ranks, divided by their number.

    For questions with choices also `eval_accuracy`: the share whose right choice has the highest log-likelihood.
    """
    was_training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=runtime.device)
    for micro_batch in task.validation:
        loss += model(**vars(micro_batch.to(runtime.device)))
    (num_targets,) = runtime.sum(sum(batch.num_targets for batch in task.validation))
    result = {"eval_loss": runtime.sum_tensor(loss).item() / max(num_targets, 1)}
    if task.template is not None and task.questions:
        scores = score_share(
            model, task.tokenizer, task.template, task.questions, config.per_device_eval_batch_size, runtime.device,
            rank=runtime.rank, world_size=runtime.world_size,
        )  # fmt: skip
        chosen = predictions(list(scores.values()))
        right = [choice == task.questions[index].answer_index for choice, index in zip(chosen, scores, strict=True)]
        correct, asked = runtime.sum(sum(right), len(right))
        result["eval_accuracy"] = correct / asked
    model.train(was_training)
    return result


def out_of_patience(config: TrainConfig, progress: Progress) -> bool:
    """Early stopping: the last `--early_stopping_patience` evaluations brought nothing better."""
    patience = config.early_stopping_patience
    return patience is not None and progress.evaluations_without_best >= patience


def main(config: TrainConfig) -> None:
    """One run: open everything, train (or only evaluate), write the final model."""
    runtime = Runtime(config)
    folder = runtime.on_main(lambda: open_output_dir(config))
    checkpoint = read_checkpoint(Path(folder)) if folder else None
    source = checkpoint.folder if checkpoint else Path(str(config.model_path))
    tokenizer = load_tokenizer(source)
    plan = Plan(
        config.per_device_train_batch_size, config.gradient_accumulation_steps, runtime.rank, runtime.world_size
    )
    if checkpoint:
        check_batch(checkpoint, plan)
    listings = runtime.on_main(lambda: list_data(config))  # the hub is asked once, whatever the number of processes
    task = make_task(config, listings, tokenizer, plan, checkpoint.identity.get("lanes") if checkpoint else None)
    steps = Steps.of(config, task)
    identity = continued(config, checkpoint, task.identity, steps.total) if checkpoint else task.identity
    progress = checkpoint.progress if checkpoint else Progress()

    model = load_model(source)
    parameters = count_parameters(model)
    optimizer = make_optimizer(model, config)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.torch_compile:
        for layer in model.model.layers:
            layer.compile()
    prepared, prepared_optimizer = runtime.prepare(model, optimizer)
    weights = checkpoint.weights if checkpoint else StoredTensors(source, "model")
    state = checkpoint.optimizer_state if checkpoint else None
    runtime.restore(prepared, prepared_optimizer, weights, state, progress.loss_scale)
    if checkpoint:
        runtime.print(f"continuing from {checkpoint.folder}, update {progress.step}")
    runs_on, rows = runtime.describe(prepared, parameters), plan.rows_per_update
    size = f"{steps.total} updates of {rows} {task.rows_are} ({'' if task.updates_per_epoch is None else 'at most '}"
    for line in (*task.notes, f"{runs_on}; {size}{rows * config.length:,} tokens)"):
        runtime.print(line)

    bare = runtime.unwrap(prepared)
    output = OutputFolder(config, bare, tokenizer, task.template, identity) if runtime.is_main else None
    tracker = Tracker(
        config, runtime.is_main, progress.step, steps.total, checkpoint.wandb_run_id if checkpoint else None
    )
    run = Run(prepared, prepared_optimizer, runtime, tracker, output)
    if output:
        output.start(
            progress,
            tracker.wandb_run_id,
            {"data": identity, "validation": task.held_out, "parameters": parameters, "runs_on": runs_on},
        )
    try:
        if config.trains:
            progress, status = train(config, task, steps, run, progress)
        else:
            evaluated(config, task, run, progress)
            status = "finished"
        if config.trains:
            run.write_final_model(progress)
    except BaseException:
        tracker.close(failed=True)
        if output:
            output.set_status("failed", progress, tracker.wandb_run_id)
        raise
    tracker.close()
    if output:
        output.set_status(status, progress, tracker.wandb_run_id)
    runtime.close()


if __name__ == "__main__":
    with user_errors_exit_2():
        main(CONFIG)
