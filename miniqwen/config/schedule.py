"""How much is trained at once, how often, how fast, and by which rule.

Promises: names and meanings are those of `transformers.TrainingArguments`. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from miniqwen.config.flags import flag
from miniqwen.config.task import TaskFlags

SCHEDULES = ("linear", "cosine", "cosine_with_min_lr", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
             "warmup_stable_decay")  # fmt: skip


@dataclass(frozen=True)
class ScheduleFlags(TaskFlags):
    """Batch, updates, learning rate and optimizer."""

    do_train: bool | None = flag(None, "train (this is the default unless only --do_eval is given)", group="training")
    do_eval: bool | None = flag(None, "evaluate: at the end, and as --eval_strategy says", group="training")
    per_device_train_batch_size: int = flag(8, "blocks (or examples) a device takes at once", group="training", least=1)
    per_device_eval_batch_size: int = flag(8, "the same in evaluation", group="training", least=1)
    gradient_accumulation_steps: int = flag(1, "micro-batches per update", group="training", least=1)
    max_steps: int = flag(-1, "updates in all; beats --num_train_epochs", group="training")
    num_train_epochs: float = flag(3.0, "passes over the questions (fine-tuning)", group="training")
    learning_rate: float = flag(5e-5, "peak learning rate", group="training")
    lr_scheduler_type: str = flag("linear", "learning rate over the updates", group="training", choices=SCHEDULES)
    min_lr_ratio: float = flag(
        0.0, "share of the peak at which cosine_with_min_lr, polynomial and warmup_stable_decay end", group="training"
    )
    decay_ratio: float = flag(0.2, "share of the updates that warmup_stable_decay decays over", group="training")
    warmup_steps: int = flag(0, "updates of linear warm-up", group="training")
    warmup_ratio: float = flag(0.0, "the same as a share of all updates", group="training")
    optim: str = flag(
        "adamw", "muon: Muon for the matrices, AdamW for the rest", group="training", choices=("adamw", "muon")
    )
    weight_decay: float = flag(0.0, "decoupled weight decay of the matrices", group="training")
    adam_beta1: float = flag(0.9, "AdamW's beta 1", group="training")
    adam_beta2: float = flag(0.999, "AdamW's beta 2", group="training")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon", group="training")
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm; 0 turns clipping off", group="training")
    seed: int = flag(42, "seed of the data order and the shuffling", group="training")

    @property
    def trains(self) -> bool:
        return self.do_train if self.do_train is not None else not self.do_eval

    def problems(self) -> list[str]:
        found = super().problems()
        if self.max_steps == 0 or self.max_steps < -1:
            found.append(f"--max_steps {self.max_steps}: must be at least 1 (or -1: by --num_train_epochs)")
        if self.max_steps == -1 and self.resolved_task == "pretrain" and self.trains:
            found.append("--max_steps: pretraining streams text without a known end; say how many updates to make")
        if self.max_steps == -1 and self.num_train_epochs <= 0:
            found.append(f"--num_train_epochs {self.num_train_epochs}: must be above 0")
        if not self.learning_rate > 0:
            found.append(f"--learning_rate {self.learning_rate}: must be above 0")
        if self.warmup_steps < 0 or not 0 <= self.warmup_ratio <= 1:
            found.append("--warmup_steps must not be negative, and --warmup_ratio must lie between 0 and 1")
        if self.warmup_steps and self.warmup_ratio:
            found.append("--warmup_steps and --warmup_ratio contradict each other: give one")
        if 0 < self.max_steps < self.warmup_steps:
            found.append(
                f"--warmup_steps {self.warmup_steps} is longer than the training, --max_steps {self.max_steps}"
            )
        for name, low, high in (
            ("min_lr_ratio", 0, 1),
            ("decay_ratio", 0, 1),
            ("adam_beta1", 0, 1),
            ("adam_beta2", 0, 1),
        ):
            if not low <= getattr(self, name) <= high:
                found.append(f"--{name} {getattr(self, name)}: must lie between {low} and {high}")
        for name in ("max_grad_norm", "weight_decay", "adam_epsilon"):
            if getattr(self, name) < 0:
                found.append(f"--{name} {getattr(self, name)}: must not be negative")
        if self.do_train is False and self.do_eval is False:
            found.append("--do_train False --do_eval False leaves nothing to do")
        return found
