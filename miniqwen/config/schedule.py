"""How much is trained at once, how often, how fast, and by which rule.

Promises: names and meanings are those of `transformers.TrainingArguments`. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from miniqwen.config.flags import flag
from miniqwen.config.task import TaskFlags
from miniqwen.config.values import LARGEST_SEED

ENDING = ("cosine_with_min_lr", "polynomial", "warmup_stable_decay")  # schedules that end at a share of the peak
SCHEDULES = ("linear", "cosine", "cosine_with_min_lr", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
             "warmup_stable_decay")  # fmt: skip


@dataclass(frozen=True)
class ScheduleFlags(TaskFlags):
    """Batch, updates, learning rate and optimizer."""

    do_train: bool | None = flag(None, "train (this is the default unless only --do_eval is given)", group="training")
    do_eval: bool | None = flag(None, "evaluate: at the end, and as --eval_strategy says", group="training")
    per_device_train_batch_size: int = flag(
        8, "blocks (or examples) a device takes at once", group="training", least=1,
        aliases=("per_gpu_train_batch_size",))  # fmt: skip
    per_device_eval_batch_size: int = flag(
        8, "the same in evaluation", group="training", least=1, aliases=("per_gpu_eval_batch_size",)
    )
    gradient_accumulation_steps: int = flag(1, "micro-batches per update", group="training", least=1)
    max_steps: int = flag(-1, "updates in all; beats --num_train_epochs", group="training")
    num_train_epochs: float = flag(
        3.0, "passes over the questions (fine-tuning)", group="training", aliases=("epochs", "num_epochs")
    )
    learning_rate: float = flag(5e-5, "peak learning rate", group="training", aliases=("lr",))
    lr_scheduler_type: str = flag("linear", "learning rate over the updates", group="training", choices=SCHEDULES)
    min_lr_ratio: float = flag(
        0.0, "share of the peak at which cosine_with_min_lr, polynomial and warmup_stable_decay end", group="training"
    )
    decay_ratio: float = flag(0.2, "share of the updates that warmup_stable_decay decays over", group="training")
    warmup_steps: int | float = flag(
        0, "updates of linear warm-up, or a fraction of all updates", group="training", least=0, metavar="N"
    )
    warmup_ratio: float = flag(0.0, "the same as a share of all updates", group="training")
    optim: str = flag(
        "adamw", "muon: Muon for the matrices, AdamW for the rest", group="training", choices=("adamw", "muon"),
        spelled={"adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw"})  # fmt: skip
    weight_decay: float = flag(0.0, "decoupled weight decay of the matrices", group="training")
    adam_beta1: float = flag(0.9, "AdamW's beta 1", group="training")
    adam_beta2: float = flag(0.999, "AdamW's beta 2", group="training")
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon", group="training")
    max_grad_norm: float = flag(1.0, "clip the gradient to this norm; 0 turns clipping off", group="training")
    seed: int = flag(42, "seed of the data order and the shuffling", group="training", least=0, most=LARGEST_SEED)

    @property
    def trains(self) -> bool:
        return self.do_train if self.do_train is not None else not self.do_eval

    def problems(self) -> list[str]:
        found = super().problems()
        if self.max_steps == 0 or self.max_steps < -1:
            found.append(f"--max_steps {self.max_steps}: must be at least 1 (or -1: by --num_train_epochs)")
        if self.max_steps == -1 and self.pretrains and self.trains:
            found.append("--max_steps: pretraining streams text without a known end; say how many updates to make")
        if self.max_steps == -1 and self.num_train_epochs <= 0:
            found.append(f"--num_train_epochs {self.num_train_epochs}: must be above 0")
        if not self.learning_rate > 0:
            found.append(f"--learning_rate {self.learning_rate}: must be above 0")
        if not 0 <= self.warmup_ratio <= 1:
            found.append(f"--warmup_ratio {self.warmup_ratio}: must lie between 0 and 1")
        if self.warmup_steps and self.warmup_ratio:
            found.append("--warmup_steps and --warmup_ratio contradict each other: give one")
        if 0 < self.max_steps < self.warmup_steps:
            found.append(
                f"--warmup_steps {self.warmup_steps} is longer than the training, --max_steps {self.max_steps}"
            )
        for name in ("min_lr_ratio", "decay_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"--{name} {getattr(self, name)}: must lie between 0 and 1")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"--{name} {getattr(self, name)}: must be at least 0 and below 1")
        found += self._schedule_problems()
        for name in ("max_grad_norm", "weight_decay", "adam_epsilon"):
            if getattr(self, name) < 0:
                found.append(f"--{name} {getattr(self, name)}: must not be negative")
        if self.do_train is False and self.do_eval is False:
            found.append("--do_train False --do_eval False leaves nothing to do")
        return found

    def _schedule_problems(self) -> list[str]:
        """What the schedule takes no notice of, and an end that it cannot have."""
        kind = self.lr_scheduler_type
        found = []
        if kind == "constant":
            why = "with --lr_scheduler_type constant, which does not warm up: constant_with_warmup does"
            found += self.useless(why, "warmup_steps", "warmup_ratio")
        if kind not in ENDING:
            why = f"with --lr_scheduler_type {kind}: choose one of {', '.join(ENDING)}"
            found += self.useless(why, "min_lr_ratio")
        if kind != "warmup_stable_decay":
            found += self.useless("without --lr_scheduler_type warmup_stable_decay", "decay_ratio")
        if kind == "polynomial" and self.min_lr_ratio == 1:
            found.append(
                "--min_lr_ratio 1.0: polynomial must end below its peak; --lr_scheduler_type constant stays there"
            )
        return found
