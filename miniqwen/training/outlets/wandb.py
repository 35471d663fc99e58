"""Weights & Biases, as its users expect it: one run over all starts, found, named, grouped, and ended as it ended.

Promises: metrics by the update (`train/global_step`), with their best values in the summary; flags, model, data,
machine and versions in the config; a preempted run is `preempted` there, a failed one raises an alert. W&B's own
variables (WANDB_PROJECT, WANDB_NAME, WANDB_RUN_GROUP, WANDB_MODE, ...) are heard. Costs: its service, a process of its
own.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miniqwen.config.models import MODEL_FILES
from miniqwen.errors import UserError

FLUSH = 5.0  # seconds between two writes of its files: what is not written is lost where the run is killed
OFF = ("1", "true", "yes", "on")
# how a number's best value is told in the summary, beside its last one
BEST = {
    "eval/loss": "min", "eval/bits_per_byte": "min", "eval/perplexity": "min", "eval/accuracy": "max",
    "train/loss": "min",
}  # fmt: skip


def is_off() -> str | None:
    """The variable that switches it off, as in transformers and W&B itself, if one does."""
    if os.environ.get("WANDB_DISABLED", "").lower() in OFF:
        return "WANDB_DISABLED"
    return "WANDB_MODE=disabled" if os.environ.get("WANDB_MODE") == "disabled" else None


def check_login() -> None:
    """Raises `UserError` where a run could not be sent."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
        raise UserError("--report_to wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline")


class Wandb:
    """A run in W&B; `number` is W&B's own step, which only grows, over all starts."""

    def __init__(self, folder: Path, run_name: str | None, run_id: str | None, job: str) -> None:
        """Raises `UserError` when it does not start."""
        import wandb

        self._module = wandb
        name = run_name or os.environ.get("WANDB_NAME") or "/".join(folder.resolve().parts[-2:])
        online = os.environ.get("WANDB_MODE", "online") == "online"
        if online:
            print("connecting to W&B ...", flush=True)  # without a network it takes two minutes to give up
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "miniqwen"), name=name, id=run_id,
                group=os.environ.get("WANDB_RUN_GROUP") or folder.resolve().parent.name or None, job_type=job,
                resume="allow" if run_id else None, dir=str(folder), allow_val_change=True,
                settings=wandb.Settings(silent=True, x_transaction_log_flush_interval=FLUSH),
            )  # fmt: skip
        except Exception as error:  # of many kinds: the network, the service, the project's rights
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(
                f"--report_to wandb: W&B does not start ({why}); WANDB_MODE=offline keeps its files for `wandb sync`"
            ) from None
        self.id: str = self._run.id
        self.known: int = self._run.step  # the number up to which W&B has heard of the run
        # its files, which `wandb sync` takes
        kept = shlex.quote(str(Path(self._run.dir).parent))
        self.where: str | None = f"W&B: {self._run.url}" if online else f"W&B, offline: wandb sync {kept}"
        # a step metric of our own: W&B drops steps that come again after a resume
        self._run.define_metric("train/global_step")
        for group in ("train", "eval", "train_data"):
            self._run.define_metric(f"{group}/*", step_metric="train/global_step")
        for metric, best in BEST.items():
            self._run.define_metric(metric, step_metric="train/global_step", summary=f"last,{best}")

    def begin(self, facts: Mapping[str, Any]) -> None:
        """The whole configuration; what has changed since the start before is overwritten there."""
        others = {name: value for name, value in facts.items() if name != "flags"}
        self._run.config.update({**facts["flags"], **others}, allow_val_change=True)

    def log(self, step: int, number: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "train/global_step": step}, step=number)

    def table(self, name: str, step: int, number: int, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = self._module.Table(columns=list(columns), data=[list(row) for row in rows])
        self._run.log({name: table, "train/global_step": step}, step=number)

    def alert(self, what: str, look_at: str) -> None:
        """Something that is worth a look, as W&B tells it: by mail or chat, as its user has set."""
        self._run.alert(f"MiniQwen: {what}", look_at, level="WARN")

    def model(self, folder: Path, aliases: Sequence[str]) -> None:
        """A version of the run's model; W&B copies the files."""
        artifact = self._module.Artifact(f"model-{self.id}", type="model")
        for file in sorted({file for pattern in MODEL_FILES for file in folder.glob(pattern)}):
            artifact.add_file(str(file))
        self._run.log_artifact(artifact, aliases=list(aliases))

    def end(self, status: str, reason: str | None, best: Mapping[str, Any]) -> None:
        """Finished, preempted or failed, as it is."""
        self._run.summary.update({**best, "status": status, **({"reason": reason} if reason else {})})
        if status == "preempted":
            self._run.mark_preempting()  # W&B tells one that ends with a status of failure so
        if status == "failed":
            self._run.alert("MiniQwen: the run failed", str(reason), level="ERROR")
        self._run.finish(exit_code=0 if status == "finished" else 1)
