"""What is told: metrics.jsonl, the progress bar, TensorBoard and W&B. Compute, format, ship; trackers change nothing.

Promises: metrics.jsonl holds every event, one flushed line each, with flat names; the trackers get the same numbers
under
`train/` and `eval/`. On resume a torn last line is cut and the lines of repeated steps follow: the last one counts.
Costs: the loop hands over plain numbers, and only every `--logging_steps`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from miniqwen.config.training import TrainConfig
from miniqwen.distributed.runtime import Runtime
from miniqwen.errors import UserError
from miniqwen.files import cut_torn_line

SHOWN_SAMPLES = 16  # questions in the trackers' table of each evaluation
SAMPLE_COLUMNS = ("id", "question", "choices", "scores", "prediction", "answer", "correct")


def _cell(value: Any) -> str:
    """A value of a record as text."""
    if isinstance(value, list):
        return "; ".join(f"{one:.2f}" if isinstance(one, float) else str(one) for one in value)
    return str(value)


class Window:
    """The updates since the last line of metrics. Their loss stays on the device until the line is written."""

    def __init__(self, device: torch.device, pending_loss: float = 0.0, pending_targets: int = 0) -> None:
        """`pending_loss` and `pending_targets` are of updates that a checkpoint carried over."""
        self._loss = torch.tensor(pending_loss, dtype=torch.float64, device=device)
        self._targets, self._tokens, self._updates = pending_targets, 0, 0
        self._seconds, self._waited = 0.0, 0.0

    def add_losses(self, losses: Sequence[torch.Tensor]) -> None:
        """The summed loss of each micro-batch of this rank in one update."""
        for loss_sum in losses:
            self._loss += loss_sum

    def add_update(self, num_targets: int, num_tokens: int, waited: float, seconds: float) -> None:
        """The counts of one update over all ranks, and the seconds it took (`waited` of them for data)."""
        self._targets, self._tokens, self._updates = (
            self._targets + num_targets,
            self._tokens + num_tokens,
            self._updates + 1,
        )
        self._seconds, self._waited = self._seconds + seconds, self._waited + waited

    def pending(self, runtime: Runtime) -> dict[str, Any]:
        """What a checkpoint has to carry over. Every rank calls it."""
        return {"pending_loss": runtime.sum_tensor(self._loss).item(), "pending_targets": self._targets}

    def metrics(self, runtime: Runtime, learning_rate: float, grad_norm: float, updates_left: int) -> dict[str, float]:
        """One line of metrics: the mean loss over all target tokens of the window, and speed. Every rank calls it."""
        return {
            "loss": runtime.sum_tensor(self._loss).item() / max(self._targets, 1),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "tokens_per_second": self._tokens / self._seconds,
            "data_wait": self._waited / self._seconds,
            "seconds_left": updates_left * self._seconds / self._updates,
        }


class Tracker:
    """The outlets of one run; on other ranks than 0 it does nothing."""

    def __init__(
        self, config: TrainConfig, is_main: bool, step: int, total_steps: int, wandb_run_id: str | None
    ) -> None:
        """Open the outlets, at `step` of `total_steps`; `wandb_run_id` continues a W&B run."""
        self.wandb_run_id = wandb_run_id
        self._is_main = is_main
        if not is_main:
            return
        folder = Path(config.output_dir or ".")
        # first, as it may be refused: nothing is left in the folder then
        self._wandb = _open_wandb(config, folder, wandb_run_id) if "wandb" in config.trackers else None
        if self._wandb:
            self.wandb_run_id = self._wandb.id
        cut_torn_line(folder / "metrics.jsonl")
        self._lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._tensorboard = _open_tensorboard(folder, step) if "tensorboard" in config.trackers else None
        # a bar needs a terminal; a log file gets one line per event instead
        self._bar = tqdm(
            total=total_steps, initial=step, unit="update", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def advance(self) -> None:
        """One update is done."""
        if self._is_main:
            self._bar.update()

    def say(self, line: str) -> None:
        """A line on stdout that does not tear the progress bar."""
        if self._is_main:
            tqdm.write(line)

    def train(self, step: int, metrics: Mapping[str, float], met: Mapping[str, int]) -> None:
        """Metrics of the updates since the last line; `met`: documents so far, and those that were odd or left out."""
        names = {name: f"train/{name}" for name in metrics} | {name: f"data/{name}" for name in met}
        self._ship(step, {**metrics, **met}, names)
        if self._is_main:
            speed = f"{metrics['tokens_per_second']:,.0f} tokens/s"
            text = f"loss {metrics['loss']:.4f}  lr {metrics['learning_rate']:.2e}  {speed}"
            self._bar.set_postfix_str(text)
            self._say(f"update {step}/{self._bar.total}  {text}{self._time_left(metrics)}")
            if met and step == self._bar.total:
                self.say("met in the text: " + "  ".join(f"{name} {count:,}" for name, count in met.items() if count))

    def evaluation(self, step: int, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Metrics of an evaluation, named `eval_...`, and records of questions, for a table in the trackers."""
        if self._is_main and samples:
            self._ship_table(step, samples)
        self._ship(step, metrics, {name: name.replace("eval_", "eval/", 1) for name in metrics})
        if self._is_main:
            words = "  ".join(
                f"{name} {value:.4f}" for name, value in metrics.items() if name not in ("eval_seconds", "epoch")
            )
            tqdm.write(f"update {step}/{self._bar.total}  {words}", file=sys.stderr)

    def close(self, failed: bool = False) -> None:
        """Flush and close every outlet."""
        if not self._is_main:
            return
        self._bar.close()
        self._lines.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish(exit_code=1 if failed else 0)

    def _ship(self, step: int, metrics: Mapping[str, float], names: Mapping[str, str]) -> None:
        if not self._is_main:
            return
        # JSON has no infinity: fp16 can overflow, and a line must stay readable
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._lines.write(json.dumps({"step": step, **finite}) + "\n")
        self._lines.flush()
        prefixed = {names[name]: value for name, value in metrics.items()}
        if self._tensorboard:
            for name, value in prefixed.items():
                self._tensorboard.add_scalar(name, value, step)
            self._tensorboard.flush()
        if self._wandb:
            self._wandb.log({**prefixed, "train/global_step": step})

    def _ship_table(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        rows = [[_cell(sample[name]) for name in SAMPLE_COLUMNS] for sample in samples]
        if self._tensorboard:
            lines = [SAMPLE_COLUMNS, ["---"] * len(SAMPLE_COLUMNS), *rows]
            # in a table of Markdown a bar or a line break would begin another cell or row
            cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
            table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
            self._tensorboard.add_text("eval/samples", table, step)
        if self._wandb:
            import wandb

            table = wandb.Table(columns=list(SAMPLE_COLUMNS), data=rows)
            self._wandb.log({"eval/samples": table, "train/global_step": step})

    def _say(self, line: str) -> None:
        if self._bar.disable:
            print(line, file=sys.stderr, flush=True)

    def _time_left(self, metrics: Mapping[str, float]) -> str:
        seconds = int(metrics["seconds_left"])
        return f"  {seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02} left"


def _open_tensorboard(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always wanted

    # events of steps after the checkpoint that is resumed from are dropped, as the run repeats them
    return SummaryWriter(str(folder / "runs"), purge_step=step + 1 if step else None)


def _open_wandb(config: TrainConfig, folder: Path, run_id: str | None) -> Any:
    import wandb

    if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
        raise UserError("--report_to wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline")
    name = config.run_name or folder.resolve().name
    settings = wandb.Settings(silent=True)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", "miniqwen"), name=name, id=run_id, resume="allow" if run_id else None,
        dir=str(folder), config={name: value for name, value in vars(config).items()}, settings=settings,
    )  # fmt: skip
    # a step metric of our own: W&B drops steps that come again after a resume
    run.define_metric("train/global_step")
    run.define_metric("train/*", step_metric="train/global_step")
    run.define_metric("eval/*", step_metric="train/global_step")
    run.define_metric("data/*", step_metric="train/global_step")
    return run
