"""The training loop: pretraining on streamed, packed text, or fine-tuning on questions, in one hand-written loop.

    accelerate launch -q train_loop.py --model_path M --dataset_name both --output_dir O --max_steps 1000
    accelerate launch -q train_loop.py --model_path O --dataset_name sciq --output_dir S --num_train_epochs 5

Read `train` below aloud: it is the whole of it. Everything it calls is a room of `miniqwen/` that does one thing: the
data order (`data`), the model and its loss (`model`), the process among the others (`distributed`), what survives
(`checkpoints`), and what one run is (`training`: opening, movement, stopping, what is told).
Promises: an interrupted run that is resumed ends with the weights of one that was not. The output folder then holds the
final model for stock transformers, checkpoints, metrics and the resolved configuration.
"""

from __future__ import annotations

from miniqwen.errors import check_python

check_python()

from miniqwen.config.flags import parse
from miniqwen.config.training import TrainConfig
from miniqwen.errors import leaves_at_once, shortage_told, user_errors_exit_2
from miniqwen.questions.templates import template_flags
from miniqwen.training.preemption import StopRequest

if __name__ == "__main__":
    with user_errors_exit_2():  # before the heavy imports, so that --help and mistakes answer at once
        CONFIG = parse(
            TrainConfig,
            program="train_loop.py",
            description="Pretrain or fine-tune a MiniQwen model.",
            checks=[template_flags],
        )
    STOP = StopRequest(CONFIG, importing=True)  # before the heavy imports too: no signal is lost

from dataclasses import replace
from time import perf_counter
from typing import Any

import torch

from miniqwen.checkpoints.checkpoint import Progress
from miniqwen.config.training import TrainConfig
from miniqwen.data.packing import data_report, lanes_together, read_so_far
from miniqwen.eval.answers import Answer
from miniqwen.eval.scoring import score_rounds
from miniqwen.training.bad_updates import BadUpdates
from miniqwen.training.ending import ended_early, failures_told, reason_to_stop
from miniqwen.training.memory import advice
from miniqwen.training.opening import Run, open_run
from miniqwen.training.optimizers import make_schedule, set_learning_rate
from miniqwen.training.outlets.opened import SHOWN_SAMPLES
from miniqwen.training.preemption import GivenUp, Preempted, next_update, until_stopped
from miniqwen.training.samples import completions
from miniqwen.training.tracking import Window, evaluation_metrics, source_metrics


def train(run: Run) -> tuple[Progress, bool]:
    """Updates from where the run begins to the last one; returns how far it came, and whether it was asked to stop.

    At each boundary between updates: save, evaluate, then make the next update.
    """
    config, task, steps, progress = run.config, run.task, run.steps, run.begins
    model, optimizer, runtime, gauges = run.model, run.optimizer, run.runtime, run.gauges
    schedule = make_schedule(config, steps.total, steps.warmup)
    updates = task.updates(progress.cursor)
    window = Window(runtime, progress)
    bad_updates = BadUpdates(config, runtime, task.tokenizer)
    saved = progress
    model.train()

    while True:
        step = progress.step
        last = step == steps.total
        if progress is not saved and (last or step % config.save_steps == 0):
            run.save(progress, window)
            saved = progress
        if step > progress.evaluated_step and steps.evaluation_is_due(step):
            before, progress = progress, evaluated(run, progress)
            last = last and progress is not before  # it was given up: a stop request came
            if saved is before and progress is not before and run.note_evaluation(progress):
                saved = progress
        last = last or out_of_patience(config, progress)
        if progress is not saved and (last or progress.best_step == step):
            run.save(progress, window)
            saved = progress
        if last:
            return progress, False

        gauges.update_begins(step + 1)
        with gauges.part("data"):
            arrived = next_update(updates, run.stop, runtime)
        if arrived is None:  # a rank was asked to stop
            if progress is not saved:
                run.save(progress, window)
            return progress, True
        update, (num_targets, num_bytes, num_tokens) = arrived
        learning_rate = config.learning_rate * schedule(step)
        set_learning_rate(optimizer, learning_rate)  # before backward: some backends step inside it
        runtime.seed_update(step)
        losses = []
        for number, micro_batch in enumerate(update.micro_batches, 1):
            with runtime.accumulating(model, sync=number == len(update.micro_batches)):
                with gauges.part("forward"):
                    loss_sum = model(**vars(micro_batch.to(runtime.device)))
                with gauges.part("backward"):
                    runtime.backward(loss_sum, num_targets)
            losses.append(loss_sum.detach())
        with gauges.part("optimizer"):
            grad_norm = runtime.step(model, optimizer, config.max_grad_norm)

        skipped = bad_updates.caught(progress, update, losses, grad_norm)  # on every rank alike
        if not skipped:
            window.add_losses(losses, update.num_targets, num_targets, num_bytes)
        progress = replace(
            progress.with_update(skipped), tokens=progress.tokens + num_tokens, epoch=update.epoch, cursor=update.cursor
        )
        gauges.update_ended(update, num_tokens, skipped)
        runtime.lower_timeouts()  # what takes long, it took in the first update
        run.tracker.advance(window)
        if progress.step % config.logging_steps == 0 or progress.step in (1, steps.total):
            metrics = window.metrics(runtime, learning_rate, grad_norm)
            metrics |= gauges.metrics(steps.total - progress.step)  # behind the loss, which was waited for
            counts: dict[str, float] = {"tokens": progress.tokens, "skipped_updates": progress.skipped_updates}
            read = read_so_far(runtime.gather(lanes_together(progress.cursor)))
            counts |= {**steps.epoch(progress), **source_metrics(read, task.source_bytes)}
            run.tracker.train(progress.step, {**metrics, **counts}, data_report(read))
            window = Window(runtime)


def evaluated(run: Run, progress: Progress) -> Progress:
    """`progress` after an evaluation at its step, which the tracker is told of; unchanged when a stop request came."""
    began = perf_counter()
    try:
        with run.gauges.part("evaluation"):
            result, samples, written = evaluate(run)
    except GivenUp:
        return progress
    run.tracker.evaluation(progress.step, {**result, "eval_seconds": perf_counter() - began}, samples)
    run.tracker.completions(progress.step, run.task.samples, written)
    if run.output:
        run.output.report()
    config = run.config
    return progress.with_evaluation(result[config.best_metric], config.larger_is_better, config.best_is)


@torch.no_grad()
def evaluate(run: Run) -> tuple[dict[str, float], list[dict[str, Any]], list[str]]:
    """`eval_loss`: cross-entropy summed over all validation tokens of all ranks, divided by their number.

    Of several sources also each one's. For questions with choices also `eval_accuracy`: the share whose right choice
    has the highest log-likelihood, and the records of the first of them. Last what the model writes behind each of the
    task's samples. Raises `GivenUp` on every rank when one is asked to stop.
    """
    config, task, runtime = run.config, run.task, run.runtime
    model = runtime.evaluable(run.model)
    was_training = model.training
    model.eval()
    losses = {}
    for source, micro_batches in task.validation.items():
        loss = torch.zeros((), dtype=torch.float64, device=runtime.device)
        for micro_batch in until_stopped(micro_batches, run.stop, runtime):
            loss += model(**vars(micro_batch.to(runtime.device)))
        num_targets, num_bytes = runtime.sum(
            sum(batch.num_targets for batch in micro_batches),
            sum(batch.num_bytes(task.token_bytes) for batch in micro_batches),
        )
        losses[source] = (runtime.sum_tensor(loss).item(), num_targets, num_bytes)
    result = evaluation_metrics(losses)
    samples: dict[int, dict[str, Any]] = {}
    if task.requests:
        rounds = score_rounds(
            model, task.requests, config.per_device_eval_batch_size, runtime.device,
            rank=runtime.rank, world_size=runtime.world_size,
        )  # fmt: skip
        scores = {index: found for part in until_stopped(rounds, run.stop, runtime) for index, found in part.items()}
        answers = {i: Answer.chosen(task.prompts[i], task.requests[i], found) for i, found in scores.items()}
        correct, asked = runtime.sum(sum(bool(answer.is_correct) for answer in answers.values()), len(answers))
        result["eval_accuracy"] = correct / asked
        own = {str(index): answer.sample() for index, answer in answers.items() if index < SHOWN_SAMPLES}
        samples = {int(index): sample for part in runtime.gather(own) for index, sample in part.items()}
    parts = completions(model, task.samples, task.tokenizer, config, runtime.device)
    written = [text for part in until_stopped(parts, run.stop, runtime) for text in part]
    model.train(was_training)
    return result, [samples[index] for index in sorted(samples)], written


def out_of_patience(config: TrainConfig, progress: Progress) -> bool:
    """Early stopping: the last `--early_stopping_patience` evaluations brought nothing better."""
    patience = config.early_stopping_patience
    return patience is not None and progress.evaluations_without_best >= patience


def main(config: TrainConfig, stop: StopRequest) -> None:
    """One run: open everything, train (or only evaluate), write the final model."""
    with open_run(config, stop) as run:
        if run is None:  # it was only to be shown what it is made of (--preview)
            return
        told = failures_told(config, run.runtime, stop, run.tracker, run.output)
        with told, shortage_told(*advice(config, run.runtime.world_size)):
            if config.trains:
                progress, stopped = train(run)
            else:
                progress = evaluated(run, run.begins)
                stopped = progress is run.begins
            early = ended_early(progress, run.steps, config)
            reason = reason_to_stop(stop, progress, run.runtime, run.tracker) if stopped else early
            if config.trains and not stopped:
                run.write_final_model(progress)
        run.close("preempted" if stopped else "finished", progress, reason)
    if stopped:
        raise Preempted(stop.exit_code)
    if run.tracker.failed:
        raise SystemExit  # before its library fails once more, at the end of the process


if __name__ == "__main__":
    STOP.imported()
    with leaves_at_once(), user_errors_exit_2(), STOP.ends_cleanly():
        main(CONFIG, STOP)
