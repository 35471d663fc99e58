"""How fast a run is and where its time goes: tokens/s, MFU, times by part, goodput, memory.

Promises: nothing here waits for the device: what runs on a GPU is timed by events on it, which are read when the line
of metrics has waited for the loss anyway. The first updates of a process (compilation, warm-up, the first after a
resume) are left out of all speeds and times. `data`, `save` and `evaluation` are timed by the host's clock; `forward`,
`backward` and `optimizer` by the device's.
Costs: two events, or two looks at the clock, a part; one gathering of a few numbers a line of metrics.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from miniqwen.config.training import TrainConfig
from miniqwen.distributed.runtime import Runtime
from miniqwen.training.batches import Update
from miniqwen.training.flops import Flops, allows_tf32, peak_of
from miniqwen.training.history import life_began
from miniqwen.training.tracing import Trace

WARM_UP = 2  # updates of a process that are like no others
GIB = 2**30
ON_DEVICE = ("forward", "backward", "optimizer")  # parts that the device may still be at when the host is through
PARTS = {  # the times in a line of metrics: their sums
    "time_data": ("data",), "time_forward_backward": ("forward", "backward"), "time_optimizer": ("optimizer",),
    "time_save": ("save",), "time_evaluation": ("evaluation",),
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """One stretch of a part; `seconds` waits for the device, where it has not got as far."""

    part: str
    seconds: Callable[[], float]


@dataclass(frozen=True)
class Card:
    """What a card does at the most in this run's precision (TFLOP/s, dense; None: not known), and what is asked."""

    name: str
    peak: float | None
    flops: Flops

    @classmethod
    def of(cls, runtime: Runtime, model: torch.nn.Module) -> Card | None:
        """The one that this process runs on; None on a CPU, of which no peak is known."""
        if runtime.device.type != "cuda":
            return None
        name = torch.cuda.get_device_name(runtime.device)
        return cls(name, peak_of(name, runtime.precision, allows_tf32()), Flops.of(model))

    def note(self, precision: str) -> str:
        """For the user, once."""
        if self.peak is None:
            return f"{self.name}: its peak in {precision} is not in the table of training/flops.py: no MFU is told"
        return f"MFU is the share of {self.peak:,.1f} TFLOP/s, dense: {self.name}, {precision}"


class Gauges:
    """What one process measures of its life, and, on the one that tells, of the lives before it."""

    def __init__(
        self, config: TrainConfig, runtime: Runtime, card: Card | None, productive: float, since: float
    ) -> None:
        """`productive`: seconds of updates that count, in the lives before; `since`: when the first began (Unix)."""
        self._runtime, self.card, self._trace = runtime, card, Trace(config, runtime)
        self._events = runtime.device.type == "cuda"
        self._productive, self._since = productive, since
        self._updates = 0  # of this process
        self._totals = dict.fromkeys(PARTS, 0.0)
        self._of_update: list[Span] = []
        self._began = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        """A new line of metrics begins."""
        self._spans: list[tuple[Span, bool]] = []  # and whether they are of an update that counts as productive
        self._cold, self._warm = [0, 0.0, 0], [0, 0.0, 0]  # updates, their seconds, their tokens
        self._flops = 0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Around a part of the loop, by the name that it has in metrics and in the trace of --profile."""
        began = self._now(name)
        try:
            with self._trace.region(name):
                yield
        finally:
            span = Span(name, _between(began, self._now(name)))
            if name in ("save", "evaluation"):
                self._spans.append((span, False))
            else:
                self._of_update.append(span)

    def _now(self, part: str) -> Any:
        if self._events and part in ON_DEVICE:
            event = torch.Event(device=self._runtime.device, enable_timing=True)
            event.record()
            return event
        return time.perf_counter()

    def update_begins(self, step: int) -> None:
        """Before the data of update `step` are asked for."""
        self._trace.update_begins(step, warm=self._updates >= WARM_UP)
        self._of_update, self._began = [], time.perf_counter()

    def update_ended(self, update: Update, num_tokens: int, skipped: bool) -> None:
        """One update was made, of `num_tokens` over all ranks, or `skipped` because it was not finite."""
        self._updates += 1
        counted = self._warm if self._updates > WARM_UP else self._cold
        counted[0] += 1
        counted[1] += time.perf_counter() - self._began
        counted[2] += num_tokens
        if self._updates > WARM_UP:
            self._spans += [(span, not skipped and span.part in ON_DEVICE) for span in self._of_update]
            if self.card:
                self._flops += self.card.flops.training(update.micro_batches)

    def metrics(self, updates_left: int) -> dict[str, float]:
        """Of the updates since the last line; every rank calls it, behind the reading of the loss.

        `tokens_per_second` and `seconds_left` are of the first updates where there are no others yet. `mfu` and
        `tflops` (a device): see `Flops.training`. `time_...`: seconds since the last line, `data_wait` their share that
        was waited for data. `goodput`: seconds of forward and backward passes and of the optimizer, in all updates of
        all lives but the first of each, skipped and repeated ones, over the seconds since the first life began
        (those between the last line and a kill are lost to it). Memory is the most of any rank so far.
        """
        world, (count, seconds, tokens) = self._runtime.world_size, self._warm if self._warm[0] else self._cold
        times = dict.fromkeys(PARTS, 0.0)
        for span, productive in self._spans:
            taken = span.seconds()
            times[next(name for name, parts in PARTS.items() if span.part in parts)] += taken
            self._productive += taken if productive else 0.0
        self._totals = {name: self._totals[name] + times[name] for name in PARTS}
        ranks = self._runtime.gather([self._flops, memory(self._runtime.device)])
        found = {
            "tokens_per_second": tokens / seconds, "tokens_per_second_per_device": tokens / seconds / world,
            "data_wait": times["time_data"] / seconds if self._warm[0] else 0.0,
            "seconds_left": updates_left * seconds / count,
            **times, "productive_seconds": self._productive,
            "goodput": self._productive / max(time.time() - self._since, 1e-9),
            **{name: max(of_rank[name] for _, of_rank in ranks) for name in ranks[0][1]},
        }  # fmt: skip
        if self.card and self._warm[0]:
            found["tflops"] = sum(flops for flops, _ in ranks) / seconds / world / 1e12
            if self.card.peak:
                found["mfu"] = found["tflops"] / self.card.peak
        self._clear()
        return found

    def close(self) -> str:
        """The run has ended: write the trace that is not finished, and tell where the time of this life went."""
        self._trace.close()
        for span, _ in self._spans:  # saves and evaluations behind the last line
            self._totals[next(name for name, parts in PARTS.items() if span.part in parts)] += span.seconds()
        self._clear()
        lived = max(time.time() - psutil.Process().create_time(), 1e-9)
        shares = {**self._totals, "the rest (start-up, first updates)": lived - sum(self._totals.values())}
        times = [f"{name.removeprefix('time_').replace('_', ' ')} {took / lived:.0%}" for name, took in shares.items()]
        most = [f"{value:.2f} GiB {name[11:-4]}" for name, value in memory(self._runtime.device).items()]
        return f"time since the start: {', '.join(times)}; memory at the most: {', '.join(most)}"


def _between(began: Any, ended: Any) -> Callable[[], float]:
    """Seconds between two readings of a clock, or two events, which are asked for when the device is there."""
    if isinstance(began, float):
        seconds = ended - began
        return lambda: seconds
    return lambda: began.elapsed_time(ended) / 1000


def memory(device: torch.device) -> dict[str, float]:
    """The most that this process has had, in GiB: on a GPU by torch's allocator, on a CPU resident."""
    if device.type == "cuda":
        return {
            "max_memory_allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "max_memory_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
        }
    unit = 1 if sys.platform == "darwin" else 1024
    return {"max_memory_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}


def first_began(lives: Sequence[Mapping[str, Any]], elapsed: float) -> float:
    """When a run's first life began (Unix): by its records, or by the `elapsed` seconds of its lines where those tell
    of more, as config.yaml may not have come along."""
    told = [life_began(life) for life in lives[:1] if "began" in life]
    return min([*told, time.time() - elapsed])
