"""What the loop is given to train on and to be judged by, whatever it is, and how long the run is.

Promises: text and questions give the loop the same three things: updates from any cursor on, validation micro-batches
of this rank, and the identity of the data, which a resumed run must find unchanged. Updates are counted, never
processes; an epoch's last update counts even if it is short. Costs: nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.checkpoints.checkpoint import Progress
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.questions.protocols import Prompt, Request
from miniqwen.questions.readings import Reading
from miniqwen.questions.templates import Template
from miniqwen.training.batches import (
    MicroBatch,
    Plan,
    Update,
)
from miniqwen.training.prefetching import Prefetched
from miniqwen.training.samples import SamplePrompt


@dataclass(frozen=True)
class Task:
    """One run's data.

    `updates(cursor)`: endless updates of this rank from a stored cursor on; `validation`: this rank's micro-batches, by
    the source that they are of (of questions there is one);
    `prompts` and `requests`: all questions to measure accuracy by, and their tokens; `identity`: what the data order
    depends on; `notes`: for the user.
    `tokenizer` is the one that made the tokens; `held_out`: where validation text comes from, for the record;
    `template` and `reading` (of answers, of data that is not known by name) are kept beside the model;
    `rows_are`: what the batch counts; `chat_template`: Jinja that asks the trained model as it was trained to be asked;
    `samples`: what it goes on with at every evaluation; `token_bytes` [vocabulary]: see `tokenization.token_bytes`;
    `source_bytes`: of the text of each source.
    """

    updates: Callable[[Mapping[str, Any]], Prefetched[Update]]
    validation: Mapping[str, Sequence[MicroBatch]]
    identity: Mapping[str, Any]
    notes: Sequence[str]
    tokenizer: PreTrainedTokenizerBase
    updates_per_epoch: int | None = None
    prompts: Sequence[Prompt] = ()
    requests: Sequence[Request] = ()
    template: Template | None = None
    reading: Reading | None = None
    chat_template: str | None = None
    samples: Sequence[SamplePrompt] = ()
    token_bytes: np.ndarray | None = None
    source_bytes: Mapping[str, int] = field(default_factory=dict)
    held_out: Mapping[str, Any] = field(default_factory=dict)
    rows_are: str = "blocks"


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
        """Of flags without fractions, see `updates_in_all`. Raises `UserError` for a warm-up longer than all."""
        per_epoch, total = task.updates_per_epoch, updates_in_all(config, task)
        steps = config.warmup_steps
        warmup = int(steps) if steps >= 1 else math.ceil((steps or config.warmup_ratio) * total)
        if warmup > total:
            raise UserError(f"--warmup_steps {warmup} is longer than the training, which has {total} updates")
        evaluations = int(config.eval_steps or config.logging_steps)
        between = {"no": None, "steps": evaluations, "epoch": per_epoch}[config.eval_strategy]
        return cls(total, warmup, between, per_epoch, bool(config.do_eval) or between is not None)

    def evaluation_is_due(self, step: int) -> bool:
        at_this_step = self.between_evaluations is not None and step % self.between_evaluations == 0
        return at_this_step or (step == self.total and self.evaluates_at_end)

    def epoch(self, progress: Progress) -> dict[str, float]:
        """{"epoch": passes over the questions so far}; of text each source has passes of its own."""
        return {"epoch": progress.step / self.per_epoch} if self.per_epoch else {}


def updates_in_all(config: TrainConfig, task: Task) -> int:
    """The length of the training; 0 where text, which has no end, is only evaluated on."""
    if config.max_steps != -1:
        return config.max_steps
    return math.ceil(config.num_train_epochs * (task.updates_per_epoch or 0))


def shared_out(
    rows: Sequence[Any], plan: Plan, size: int, batch: Callable[[Sequence[Any]], MicroBatch]
) -> list[MicroBatch]:
    """This rank's micro-batches of `size` rows: each row stands on one rank, and all ranks have the same number."""
    per_rank = -(-len(rows) // plan.world_size)
    mine = rows[plan.rank :: plan.world_size]
    return [batch(mine[start : start + size]) for start in range(0, per_rank, size)]


def plain(identity: Mapping[str, Any]) -> Any:
    """As JSON gives it back (tuples become lists), so that it can be compared with a stored one."""
    return json.loads(json.dumps(identity))
