"""What is told: metrics.jsonl, the progress bar, TensorBoard and W&B. Compute, format, ship; trackers change nothing.

Promises: metrics.jsonl holds every event, one flushed line each, with flat names; the trackers (`outlets/`) get the
same numbers under `train/` and `eval/`, and none of them ends a run. What is worth a look is told once. On resume a
torn last line is cut and the lines of repeated steps follow: the last one counts.
Costs: the loop hands over plain numbers, and only every `--logging_steps`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from miniqwen.checkpoints.checkpoint import Checkpoint, Progress
from miniqwen.config.output import SAMPLES_FILE
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.runtime import Runtime
from miniqwen.errors import outliving_its_reader, printable
from miniqwen.files import cut_torn_line, disk_errors_told
from miniqwen.training.health import Watch
from miniqwen.training.history import final_history, read_lines
from miniqwen.training.outlets.opened import Outlets, sample_table
from miniqwen.training.samples import SamplePrompt

MOST_NATS = 700.0  # of which a float can say the perplexity
RESERVED = "max_memory_reserved_gib"  # what a line on screen shows of a GPU's memory


def loss_metrics(loss_sum: float, num_targets: int, num_bytes: int, prefix: str = "") -> dict[str, float]:
    """The mean loss in nats per target, and in bits per byte of text, by which vocabularies can be compared.

    The bits are those of the ends of documents too, as they have to be told; without a count of bytes there are none.
    """
    found = {f"{prefix}loss": loss_sum / max(num_targets, 1)}
    return found | ({f"{prefix}bits_per_byte": loss_sum / math.log(2) / num_bytes} if num_bytes else {})


def evaluation_metrics(losses: Mapping[str, tuple[float, int, int]]) -> dict[str, float]:
    """`eval_loss` and its kin over all sources, and of each of several.

    `losses`: {source: (summed loss, targets, their bytes)}. `eval_perplexity` is of a token: by `eval_bits_per_byte`
    vocabularies can be compared.
    """
    loss_sum, num_targets, num_bytes = (sum(column) for column in zip(*losses.values(), strict=True))
    shown = {"": (float(loss_sum), int(num_targets), int(num_bytes))}
    if len(losses) > 1:
        shown |= {f"_{name}": losses[source] for source, name in safe_names(list(losses)).items()}
    metrics: dict[str, float] = {}
    for ending, counted in shown.items():
        metrics |= {f"{name}{ending}": value for name, value in loss_metrics(*counted, "eval_").items()}
        loss = metrics[f"eval_loss{ending}"]
        metrics[f"eval_perplexity{ending}"] = math.exp(loss) if loss < MOST_NATS else math.inf
    return metrics


def source_metrics(read: Mapping[str, Mapping[str, Any]], source_bytes: Mapping[str, int]) -> dict[str, float]:
    """`tokens_NAME` and `passes_NAME` (bytes read / bytes of the source) of each source; `epoch`: the most passes.

    Without a count of bytes an epoch is told by its number, of the lane that is furthest.
    """
    if not read:
        return {}
    names = safe_names(list(read))
    found: dict[str, float] = {f"tokens_{names[name]}": of_source["tokens"] for name, of_source in read.items()}
    passes = {
        f"passes_{names[name]}": of_source["bytes"] / source_bytes[name]
        for name, of_source in read.items()
        if source_bytes.get(name)
    }
    furthest = max(of_source["epoch"] for of_source in read.values())
    return {**found, **passes, "epoch": max(passes.values()) if passes else furthest}


def safe_names(names: Sequence[str]) -> dict[str, str]:
    """{name: what it is called in metrics}: letters, digits and underscores; unlike names stay unlike."""
    found: dict[str, str] = {}
    for name in names:
        safe = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "source"
        tried = itertools.chain([safe], (f"{safe}_{number}" for number in itertools.count(2)))
        found[name] = next(one for one in tried if one not in found.values())
    return found


class Window:
    """The updates since the last line of metrics. Their loss stays on the device until the line is written."""

    def __init__(self, runtime: Runtime, carried: Progress | None = None) -> None:
        """`carried`: a checkpoint whose last updates no line has told of yet."""
        carried = carried or Progress()
        # a sum over the ranks: one of them goes on with it
        loss = carried.pending_loss if runtime.is_main else 0.0
        self._loss = torch.tensor(loss, dtype=torch.float64, device=runtime.device)
        self._targets, self._bytes, self._own_targets = (
            carried.pending_targets,
            carried.pending_bytes,
            carried.pending_targets,
        )

    def add_losses(self, losses: Sequence[torch.Tensor], own_targets: int, num_targets: int, num_bytes: int) -> None:
        """The summed loss of each micro-batch of this rank in one update; its targets here, and over all ranks, and
        their bytes."""
        for loss_sum in losses:
            self._loss += loss_sum
        self._own_targets += own_targets
        self._targets, self._bytes = self._targets + num_targets, self._bytes + num_bytes

    def own_loss(self) -> float:
        """The mean loss of this rank's part; waits for the device."""
        return self._loss.item() / max(self._own_targets, 1)

    def pending(self, runtime: Runtime) -> dict[str, Any]:
        """What a checkpoint has to carry over. Every rank calls it."""
        return {
            "pending_loss": runtime.sum_tensor(self._loss).item(), "pending_targets": self._targets,
            "pending_bytes": self._bytes,
        }  # fmt: skip

    def metrics(self, runtime: Runtime, learning_rate: float, grad_norm: float) -> dict[str, float]:
        """One line of metrics: the mean loss over all target tokens of the window. Every rank calls it."""
        return {
            **loss_metrics(runtime.sum_tensor(self._loss).item(), self._targets, self._bytes),
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
        }


class Tracker:
    """The outlets of one run; on other ranks than 0 it does nothing."""

    def __init__(
        self,
        config: TrainConfig,
        is_main: bool,
        step: int,
        total_steps: int,
        resumed: Checkpoint | None,
        facts: Mapping[str, Any],
    ) -> None:
        """Open the outlets, at `step` of `total_steps`, where `resumed` was left, in the same W&B run.

        `facts`: {"flags": ..., and what else dashboards are to know of the run}. `productive`: what the lines of
        earlier starts tell of it. Raises `UserError` for an outlet that does not start.
        """
        self.wandb_run_id = resumed.wandb_run_id if resumed else None
        self._is_main, self.productive = is_main, 0.0
        self.places: list[str] = []  # where outlets can be looked at, once they are closed
        # passes over each source at the last line; a resumed run does not know those before its first one
        self._passes: dict[str, float] | None = None if step else {}
        if not is_main:
            return
        self._folder = folder = Path(config.output_dir or ".")
        # first, as one may be refused: nothing is left in the folder then
        self._outlets = Outlets(config, folder, config.resolved_task, step, self.wandb_run_id)
        wandb = self._outlets.wandb
        self.wandb_run_id = wandb.id if wandb else self.wandb_run_id
        told = _told(folder, resumed)
        # W&B drops what has not a greater number than what it knows: lines are counted over all starts of a run
        self._events = max(len(told), wandb.known if wandb else 0)
        self._lines, self._samples = (_opened(folder / name) for name in ("metrics.jsonl", SAMPLES_FILE))
        # a bar needs a terminal; a log file gets one line per event instead
        self._bar_shown = 0.0
        # one clock over all starts of a run: it goes on from the lines that a resumed run stands behind
        self._began = time.time() - so_far(told, step, "elapsed")
        self.productive = so_far(told, step, "productive_seconds")
        self._watch = Watch()
        for line in final_history(line for line in told if line["step"] <= step):
            self._watch.see(line)  # what was noticed there was told
        self._bar = tqdm(
            total=total_steps, initial=step, unit="update", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )
        for place in self._outlets.places:
            self.say(place)
        self._outlets.each(lambda outlet: outlet.begin(facts))

    def advance(self, window: Window) -> None:
        """One update is done; a bar shows its loss, but asks the device for it once a second only."""
        if not self._is_main:
            return
        self._bar.update()
        if not self._bar.disable and time.monotonic() - self._bar_shown > 1:
            self._bar_shown = time.monotonic()
            self._bar.set_postfix_str(f"loss {window.own_loss():.4f}")

    @property
    def failed(self) -> bool:
        """Whether a tracker was switched off."""
        return self._is_main and self._outlets.failed

    @property
    def elapsed(self) -> float:
        """Seconds of this run, those of its earlier starts among them."""
        return time.time() - self._began if self._is_main else 0.0

    def say(self, line: str, file: IO[str] | None = None) -> None:
        """A line on stdout, or in another file, that does not tear the progress bar."""
        if self._is_main:
            with outliving_its_reader():
                tqdm.write(line, file=file)

    def train(self, step: int, metrics: Mapping[str, float], met: Mapping[str, int]) -> None:
        """Metrics of the updates since the last line; `met`: documents so far, and those that were odd or left out."""
        names = {name: f"train/{name}" for name in metrics} | {name: f"train_data/{name}" for name in met}
        self._ship(step, {**metrics, **met}, names)
        passes = {name: value for name, value in metrics.items() if name.startswith("passes_")}
        for name, value in passes.items():
            if self._passes is not None and value >= 1 > self._passes.get(name, 0.0):
                source = name.removeprefix("passes_")
                self.say(f"update {step}: all of the text of {source} was read; it repeats, each time in another order")
        self._passes = passes
        if self._is_main:
            told = (
                f"loss {_loss(metrics)}", f"lr {_short(metrics['learning_rate'])}",
                f"grad norm {metrics['grad_norm']:.2f}", f"{metrics['tokens_per_second']:,.0f} tokens/s",
                *([f"{metrics['mfu']:.1%} MFU"] if "mfu" in metrics else []),
                *([f"{metrics[RESERVED]:.2f} GiB"] if RESERVED in metrics else []),
                f"{_clock(metrics['seconds_left'])} left",
            )  # fmt: skip
            self.say(f"update {step}/{self._bar.total}  {'  '.join(told)}", file=sys.stderr)
            if met and step == self._bar.total:
                self.say("met in the text: " + "  ".join(f"{name} {count:,}" for name, count in met.items() if count))

    def evaluation(self, step: int, metrics: Mapping[str, float], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Metrics of an evaluation, named `eval_...`, and records of questions, for a table in the trackers."""
        self._ship(step, metrics, {name: name.replace("eval_", "eval/", 1) for name in metrics})
        if self._is_main and samples:
            self._ship_table("eval/samples", step, *sample_table(samples))
        if self._is_main:
            accuracy = f"  eval_accuracy {metrics['eval_accuracy']:.4f}" if "eval_accuracy" in metrics else ""
            line = f"update {step}/{self._bar.total}  eval_loss {_loss(metrics, 'eval_')}{accuracy}"
            self.say(line, file=sys.stderr)

    def completions(self, step: int, samples: Sequence[SamplePrompt], written: Sequence[str]) -> None:
        """What the model wrote behind each sample at this step: on screen, in samples.jsonl and in the trackers."""
        if not self._is_main or not samples:
            return
        rows = []
        for sample, text in zip(samples, written, strict=True):
            answer = {} if sample.answer is None else {"answer": sample.answer}
            record = {"prompt": sample.text, "completion": text, **answer}
            self._write(self._samples, {"step": step, **record})
            rows.append(list(record.values()))
            right = f"  ({sample.answer})" if sample.answer is not None else ""
            shown = " ".join(f"{sample.shown} » {text.strip()}{right}".split())
            self.say(f"    {printable(shown)}", file=sys.stderr)
        columns = ("prompt", "completion", "answer")[: max(map(len, rows))]
        self._ship_table("eval/completions", step, columns, [[*row, ""][: len(columns)] for row in rows])

    def sync(self) -> None:
        """Make durable what was told: a checkpoint that stands behind it must not outlive it."""
        if self._is_main:
            for file in (self._lines, self._samples):
                os.fsync(file.fileno())

    def model(self, folder: Path, *aliases: str) -> None:
        """A model that a folder holds, for the trackers that keep models."""
        if self._is_main:
            self._outlets.each(lambda outlet: outlet.model(folder, aliases))

    def close(self, status: str, reason: str | None = None, best: Mapping[str, Any] | None = None) -> None:
        """Flush and close every outlet of a run that is finished, preempted or failed; `best`: what was, for them."""
        if not self._is_main:
            return
        self._bar.close()
        for file in (self._lines, self._samples):
            with contextlib.suppress(OSError):  # a full disk was told by the line that did not fit
                file.close()
        self.places = self._outlets.places
        self._outlets.each(lambda outlet: outlet.end(status, reason, best or {}))

    def _ship(self, step: int, metrics: Mapping[str, float], names: Mapping[str, str]) -> None:
        if not self._is_main:
            return
        # JSON has no infinity: fp16 can overflow, and a line must stay readable
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        clock = {"time": round(time.time(), 3), "elapsed": round(self.elapsed, 3)}
        line = {"step": step, **finite, **clock}
        self._write(self._lines, line)
        self._events += 1
        prefixed = {names[name]: value for name, value in metrics.items()}
        self._outlets.each(lambda outlet: outlet.log(step, self._events, prefixed))
        for notice in self._watch.see(line):
            self.say(f"update {step}: {notice.what}. Look at: {notice.look_at}", file=sys.stderr)
            self._outlets.each(methodcaller("alert", f"update {step}: {notice.what}", notice.look_at))

    def _write(self, file: IO[str], record: Mapping[str, Any]) -> None:
        with disk_errors_told(self._folder, "the same command with --resume_from_checkpoint auto goes on"):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()

    def _ship_table(self, name: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self._outlets.each(lambda outlet: outlet.table(name, step, self._events, columns, rows))


def _opened(file: Path) -> IO[str]:
    """To add lines to, behind what a killed run left."""
    cut_torn_line(file)
    return file.open("a", encoding="utf-8")


def _told(folder: Path, resumed: Checkpoint | None) -> list[dict[str, Any]]:
    """The lines of metrics of a run's earlier starts, which may have been in another folder; none for a new run."""
    for file in (folder / "metrics.jsonl", *([resumed.folder.parent / "metrics.jsonl"] if resumed else [])):
        if resumed and file.exists():
            return read_lines(file)
    return []


def so_far(told: Sequence[Mapping[str, Any]], step: int, name: str) -> float:
    """What a count over all starts of a run (`elapsed`, ...) had come to at `step`, by its lines; 0 for a new run."""
    return max((line.get(name, 0.0) for line in told if line["step"] <= step), default=0.0)


def _loss(metrics: Mapping[str, float], prefix: str = "") -> str:
    bits = metrics.get(f"{prefix}bits_per_byte")
    return f"{metrics[f'{prefix}loss']:.4f}" + ("" if bits is None else f" ({bits:.2f} bits/byte)")


def _short(rate: float) -> str:
    """6e-03, 5.43e-04: no more digits than it has, of three."""
    digits, exponent = f"{rate:.2e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{exponent}"


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
