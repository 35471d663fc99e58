"""The curves of a run's metrics: points that stay few however long the run is, and the charts they are drawn in.

Promises: a point is a value of metrics.jsonl, unchanged; where points are left out, the lowest and the highest of each
stretch stay, and so do the first and the last. Costs: at most `KEPT` points a metric, 16 bytes each.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

KEPT = 20_000  # points of a curve in memory
CLOCKS = ("step", "time")  # are no curves

# (group, chart, names of its curves), the first that fits: in the order of a page, so that the loss opens it.
# What no line names gets a chart of its own at the end.
LAYOUT: tuple[tuple[str, str, str], ...] = (
    ("Loss and evaluation", "Loss (nats per token)", r"(eval_)?loss"),
    ("Loss and evaluation", "Accuracy on validation questions", r"eval_accuracy(_.+)?"),
    ("Loss and evaluation", "Bits per byte", r"(eval_)?bits_per_byte"),
    ("Loss and evaluation", "Perplexity of a token", r"eval_perplexity"),
    ("By source", "Loss by source", r"(eval_)?loss_.+"),
    ("By source", "Bits per byte by source", r"(eval_)?bits_per_byte_.+"),
    ("By source", "Perplexity by source", r"eval_perplexity_.+"),
    ("Learning rate and gradients", "Learning rate", r"learning_rate.*"),
    ("Learning rate and gradients", "Gradient norm", r"grad_norm.*"),
    ("Learning rate and gradients", "Loss scale", r"loss_scale"),
    ("Learning rate and gradients", "Skipped updates", r"skipped_updates"),
    ("Throughput and waits", "Tokens per second", r"tokens_per_second(_per_device)?"),
    ("Throughput and waits", "Model FLOPs utilisation", r"mfu"),
    ("Throughput and waits", "TFLOP/s a device", r"tflops.*"),
    ("Throughput and waits", "Share of the time waited for data", r"data_wait"),
    ("Throughput and waits", "Goodput", r"goodput"),
    ("Throughput and waits", "Seconds since the last line, by part", r"time_.+"),
    ("Throughput and waits", "Seconds of an evaluation", r"eval_seconds"),
    ("Throughput and waits", "Seconds left", r"seconds_left"),
    ("Throughput and waits", "Seconds of updates that count", r"productive_seconds"),
    ("Memory", "Memory (GiB)", r".*memory.*|.*_gib"),
    ("Data", "Tokens", r"tokens(_.+)?"),
    ("Data", "Passes over the text", r"passes_.+|epoch"),
    ("Data", "Documents", r"documents.*"),
    ("Data", "Data that is odd or left out", r".+_documents|skipped_units|bad_.+"),
)
REST = "Everything else"


class Curve:
    """One metric over the updates; NaN where it was not finite."""

    def __init__(self) -> None:
        self._steps, self._values = array("q"), array("d")

    def add(self, step: int, value: float | None) -> None:
        """A later point."""
        self._steps.append(step)
        self._values.append(float("nan") if value is None else value)
        if len(self._steps) > KEPT:
            steps, values = self.thinned(KEPT // 2)
            self._steps, self._values = array("q", steps.tolist()), array("d", values.tolist())

    def thinned(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values, `most` of them (at least 6): of each stretch of points the lowest and the highest."""
        steps, values = np.array(self._steps, dtype=np.int64), np.array(self._values)
        count = len(steps)
        if count <= most:
            return steps, values
        # stretches of updates, not of points: those of long ago are fewer already
        stretches = max(4, most - 2) // 2
        stretch = (steps - steps[0]) * stretches // (steps[-1] - steps[0] + 1)
        starts = np.unique(stretch, return_index=True)[1]
        ends = np.append(starts[1:], count)
        gaps = np.isnan(values)
        lowest = np.lexsort((np.where(gaps, np.inf, values), stretch))[starts]
        highest = np.lexsort((np.where(gaps, -np.inf, values), stretch))[ends - 1]
        chosen = np.unique(np.concatenate(([0], lowest, highest, [count - 1])))
        return steps[chosen], values[chosen]

    @property
    def is_zero(self) -> bool:
        """Nothing but zeros: a count of what never came."""
        return not any(self._values)

    def best(self, larger: bool) -> tuple[int, float] | None:
        """The (first) highest or lowest point."""
        values = np.array(self._values)
        if not len(values) or np.isnan(values).all():
            return None
        place = int(np.nanargmax(values) if larger else np.nanargmin(values))
        return int(self._steps[place]), float(values[place])

    @property
    def first(self) -> float:
        return self._values[0]

    @property
    def last(self) -> tuple[int, float]:
        return self._steps[-1], self._values[-1]


@dataclass
class Curves:
    """All metrics of a run, by their names in metrics.jsonl."""

    named: dict[str, Curve] = field(default_factory=dict)

    def add(self, line: Mapping[str, Any]) -> None:
        """The numbers of one line of metrics."""
        step = int(line["step"])
        for name, value in line.items():
            if name not in CLOCKS and (value is None or isinstance(value, (int, float))):
                if name not in self.named:
                    self.named[name] = Curve()
                self.named[name].add(step, value)


@dataclass(frozen=True)
class Chart:
    """What is drawn in one picture."""

    group: str
    title: str
    names: tuple[str, ...]


def charts(names: Iterable[str]) -> list[Chart]:
    """Every name has its place in one chart; groups and charts in the order of `LAYOUT`, names as they come."""
    found: dict[tuple[int, str, str], list[str]] = {}
    for name in dict.fromkeys(name for name in names if name != "elapsed"):
        place = next((n for n, (_, _, fits) in enumerate(LAYOUT) if re.fullmatch(fits, name)), len(LAYOUT))
        group, title = LAYOUT[place][:2] if place < len(LAYOUT) else (REST, name)
        found.setdefault((place, group, title), []).append(name)
    ordered = sorted(found.items(), key=lambda item: item[0][0])  # stable: the rest stays as it came
    return [Chart(group, title, tuple(names)) for (_, group, title), names in ordered]
