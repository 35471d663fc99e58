"""What the user asked of train_loop.py: all groups of its flags on one command line; frozen afterwards.

Promises: contradictions between flags, and with the files they name, are found before anything is loaded: each group
checks its own. Costs: nothing heavy is imported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from miniqwen.config.evaluation import EvaluationFlags
from miniqwen.config.launch import LaunchFlags
from miniqwen.config.output import OutputFlags
from miniqwen.config.pasted import TRAINING, Pasted
from miniqwen.config.precision import PrecisionFlags
from miniqwen.config.prompt import PromptFlags
from miniqwen.config.schedule import ScheduleFlags
from miniqwen.config.survival import SurvivalFlags
from miniqwen.config.task import TaskFlags


@dataclass(frozen=True)
class TrainConfig(
    SurvivalFlags, EvaluationFlags, LaunchFlags, PrecisionFlags, ScheduleFlags, PromptFlags, OutputFlags, TaskFlags
):
    """Flags of train_loop.py; `--help all` shows the groups from the last to the first."""

    pasted: ClassVar[Mapping[str, Pasted]] = TRAINING
    most_used = (
        "task", "data_root", "block_size", "max_seq_length", "max_steps", "num_train_epochs",
        "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type",
        "warmup_steps", "weight_decay", "bf16", "do_eval", "eval_strategy", "eval_steps", "load_best_model_at_end",
        "logging_steps", "save_steps", "resume_from_checkpoint", "overwrite_output_dir", "report_to",
    )  # fmt: skip
    example = "--model_path M --dataset_name both --output_dir runs/text --max_steps 1000 --warmup_steps 0.1"

    def problems(self) -> list[str]:
        found = super().problems()
        if self.pretrains and self.evaluates and not self.validation_blocks:
            found.append(
                "--validation_blocks 0 leaves no text to evaluate on: give more, or leave out --do_eval and "
                "--eval_strategy"
            )
        if self.pretrains and self.length == 1:
            found.append("--block_size: a block of one token has none to predict; give at least 2")
        sources = len(self.named)
        if self.pretrains and self.evaluates and 0 < (self.max_eval_samples or 0) < sources:
            found.append(
                f"--max_eval_samples {self.max_eval_samples} is shared out over {sources} data sets: give at least "
                f"{sources}, or some would not be evaluated at all"
            )
        if not self.evaluates:
            names = ["per_device_eval_batch_size", "max_eval_samples", "metric_for_best_model", "greater_is_better"]
            names += ["sample_prompts"] * (self.sample_prompts != ("none",))
            found += self.useless("where nothing is evaluated: add --do_eval, or --eval_strategy steps", *names)
        if not self.trains:
            found += self.useless("where nothing is trained: add --do_train", "profile", "preview")
        return found

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation is asked for, at any time."""
        return bool(self.do_eval) or self.eval_strategy != "no"

    @property
    def alike(self) -> dict[str, object]:
        """What every process has to be given alike: {"--FLAG": value}."""
        return {f"--{name}": value for name, value in vars(self).items() if name != "local_rank"}

    def in_updates(self, total: int) -> tuple[TrainConfig, list[str]]:
        """Fractions of all `total` updates as numbers of them, rounded up as transformers does; and what to say."""
        asked = {name: getattr(self, name) for name in ("logging_steps", "save_steps", "eval_steps")}
        numbers: dict[str, Any] = {
            name: math.ceil(total * share) for name, share in asked.items() if share is not None and 0 < share < 1
        }
        notes = [f"--{name} {asked[name]} of {total} updates: every {number}" for name, number in numbers.items()]
        return dataclasses.replace(self, **numbers), notes

    def once_an_epoch(self, updates: int | None) -> tuple[TrainConfig, list[str]]:
        """With `--packing` an epoch has few `updates`: steps between evaluations and saves fit in one; and what to say.

        Flags that were meant for epochs of single examples would come too rarely, or never.
        """
        if not self.packing or updates is None:
            return self, []
        asked = {"save_steps": self.save_steps}
        if self.eval_strategy == "steps":
            asked["eval_steps"] = self.eval_steps or self.logging_steps
        lower: dict[str, Any] = {name: updates for name, steps in asked.items() if steps > updates}
        notes = [
            f"--{name} {asked[name]} is lowered to {updates}: with --packing an epoch has {updates} updates"
            for name in lower
        ]
        return dataclasses.replace(self, **lower), notes
