"""How long a run is, in updates: all of them, the warm-up, and those between two evaluations.

Promises: updates are counted, never processes; an epoch's last update counts even if it is short. Costs: nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from miniqwen.checkpoints.checkpoint import Progress
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.training.task import Task


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
