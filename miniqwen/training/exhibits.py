"""What a page shows of runs and evaluations, as plain data: figures, curves with their marks, questions, texts.

Promises: values are those of the files; what is left out, for room, is said. Costs: curves are thinned, see curves.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from miniqwen.config.output import OF_A_START
from miniqwen.config.training import TrainConfig
from miniqwen.training.curves import Curve, charts
from miniqwen.training.health import healthy
from miniqwen.training.record import Record
from miniqwen.training.wording import clip, percent, short

SHOWN = ("id", "question", "choices", "scores", "prediction", "answer", "correct", "generated")


@dataclass(frozen=True)
class Limits:
    """How much of what there is much of: points of a curve, questions of an evaluation, characters of a text."""

    points: int = 800
    questions: int = 300
    characters: int = 800

    def halved(self) -> Limits:
        return Limits(*(value // 2 for value in vars(self).values()))


def run_names(folders: Sequence[Path]) -> list[str]:
    """What tells them apart: the last part of their paths, or as many as that takes."""
    whole = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, whole), default=0) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(parts)} ({number})" for number, parts in enumerate(whole, 1)]


def run_facts(record: Record, name: str) -> dict[str, Any]:
    """What the page says of a run in words."""
    state, flags, curves = record.state(), record.flags, record.curves.named
    lives = record.lives
    best = _best(record)
    clocks = {metric: curves[metric].thinned(120) for metric in ("tokens", "elapsed") if metric in curves}
    speed = curves.get("tokens_per_second")
    return {
        "name": name, "folder": str(record.folder), "state": state, "last": record.last, "best": best, "lives": lives,
        "notices": record.notices, "bad_updates": record.bad_updates(), "lines": record.lines,
        "step": max((curve.last[0] for curve in curves.values()), default=state.get("step", 0)),
        "elapsed": curves["elapsed"].last[1] if "elapsed" in curves else None,
        "speed": float(np.nanmedian(speed.thinned(2000)[1])) if speed else None,
        "parameters": record.recorded.get("parameters"), "validation": record.recorded.get("validation") or {},
        "task": flags.get("dataset_name"), "flags": chosen_flags(flags),
        "life_steps": [life.get("start_step", 0) for life in lives],
        "clock": {key: [steps.tolist(), values.tolist()] for key, (steps, values) in clocks.items()},
    }  # fmt: skip


def _best(record: Record) -> tuple[str, int, float] | None:
    """(metric, update, value) of the best evaluation by the run's own measure."""
    metric = f"eval_{str(record.flags.get('metric_for_best_model') or 'loss').removeprefix('eval_')}"
    larger = record.flags.get("greater_is_better")
    larger = metric != "eval_loss" if larger is None else larger
    found = record.curves.named[metric].best(larger) if metric in record.curves.named else None
    return found and (metric, *found)


def differences(records: Sequence[Record]) -> list[tuple[str, list[Any]]]:
    """Flags that are not the same in all runs, and each run's value."""
    names = dict.fromkeys(name for record in records for name in record.flags)
    rows = [(name, [record.flags.get(name) for record in records]) for name in names if name not in OF_A_START]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def drawn_charts(records: Sequence[Record], names: Sequence[str], limits: Limits) -> list[dict[str, Any]]:
    """What is drawn, in the page's order, each with what can be read of it in words."""
    every = dict.fromkeys(metric for record in records for metric in record.curves.named)
    found = []
    for chart in charts(every):
        drawn = [
            (number, metric, record.curves.named[metric])
            for metric in chart.names
            for number, record in enumerate(records)
            if metric in record.curves.named
        ]
        kept = [one for one in drawn if not one[2].is_zero]
        if not kept:
            continue
        words = healthy(chart.names[0])
        several = len(records) > 1
        found.append({
            "group": chart.group, "title": chart.title, "healthy": words and words[0],
            "bound": words[1][1] if words and words[1] else None,
            "series": [_series(number, metric, curve, names, several, limits) for number, metric, curve in kept],
            "marks": [
                {"run": number, "step": notice.step, "what": notice.what}
                for number, record in enumerate(records)
                for notice in record.notices
                if notice.metric in chart.names
            ]
            + _best_marks(records, chart.names),
            "said": "; ".join(_said(metric, curve, names[number], several) for number, metric, curve in kept),
        })  # fmt: skip
    return found


def zeros(records: Sequence[Record]) -> list[str]:
    """Metrics that were never anything but 0: counts of what did not come."""
    every = [(name, curve) for record in records for name, curve in record.curves.named.items()]
    return [name for name in dict.fromkeys(name for name, _ in every) if all(c.is_zero for n, c in every if n == name)]


def _best_marks(records: Sequence[Record], metrics: Sequence[str]) -> list[dict[str, Any]]:
    bests = [(number, _best(record)) for number, record in enumerate(records)]
    return [
        {"run": number, "step": best[1], "value": best[2], "best": True, "what": f"best {best[0]} {short(best[2])}"}
        for number, best in bests
        if best and best[0] in metrics
    ]


def _series(
    number: int, metric: str, curve: Curve, names: Sequence[str], several: bool, limits: Limits
) -> dict[str, Any]:
    steps, values = curve.thinned(max(limits.points // max(len(names), 1), 12))
    return {
        "run": number, "name": metric, "label": f"{metric}, {names[number]}" if several else metric,
        "steps": steps.tolist(), "values": [None if math.isnan(value) else value for value in values.tolist()],
    }  # fmt: skip


def _said(metric: str, curve: Curve, name: str, several: bool) -> str:
    """A curve in words, for who cannot see it."""
    low, high = curve.best(larger=False), curve.best(larger=True)
    who = f"{metric} of {name}" if several else metric
    if low is None or high is None:
        return f"{who}: never a finite number"
    step, value = curve.last
    return (
        f"{who}: from {short(curve.first)} to {short(value)} at update {step:,}, lowest {short(low[1])} at update "
        f"{low[0]:,}, highest {short(high[1])} at update {high[0]:,}"
    )


def of_run(found: Mapping[str, Any], records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """Results, with the run whose model they are of."""
    owner = next((name for record, name in zip(records, names, strict=True) if record.owns(found)), None)
    given = found["dataset"]
    dataset = " + ".join(Path(str(name)).name for name in ([given] if isinstance(given, str) else given))
    return {**found, "run": owner, "dataset": dataset, "label": f"{owner or found['model_path']}: {dataset}"}


def evaluation_figures(found: Mapping[str, Any]) -> dict[str, Any]:
    """Results as the page shows them: with the chance level, and with words about positions."""
    choices = [len(sample.get("choices") or ()) for sample in found.get("samples", ())]
    chance = sum(1 / count for count in choices) / len(choices) if choices and all(choices) else None
    places = found.get("by_position") or {}
    total = sum(place["count"] for place in places.values())
    biased = [
        f"{name} is said to {percent(place['predicted'])} of the questions, and right in {percent(share)}"
        for name, place in places.items()
        if (share := place["count"] / total) is not None
        # two standard errors of what is said, were it right as often
        and abs(place["predicted"] - share) > 2 * math.sqrt(max(share * (1 - share), 1e-9) / total)
    ]
    blank = dict.fromkeys((
        "accuracy", "accuracy_norm", "stderr", "confidence_interval", "calibration", "by_question_length", "split",
        "contamination", "exact_match", "f1", "accuracies", "mean_accuracy",
    ))  # fmt: skip
    kept = {name: value for name, value in found.items() if name not in ("samples", "config")}
    return {**blank, **kept, "by_position": places, "chance": chance, "biased": biased}


def questions(evaluations: Sequence[Mapping[str, Any]], limits: Limits) -> list[dict[str, Any]]:
    """Questions to browse: of each evaluation the first wrong ones and the first right ones, in their order."""
    found = []
    for one in evaluations:
        samples = one.get("samples", [])
        room = max(limits.questions // max(len(evaluations), 1), 4)
        wrong = [n for n, sample in enumerate(samples) if sample.get("correct") is not True]
        right = [n for n, sample in enumerate(samples) if sample.get("correct") is True]
        half = max(room // 2, room - len(right))
        chosen = sorted([*wrong[:half], *right[: room - min(half, len(wrong))]])
        of_all = f"{len(chosen):,} of {len(samples):,} questions"
        found += [
            {"from": one["label"], "of": of_all} | _clipped(samples[n], SHOWN, limits) for n in chosen
        ]  # fmt: skip
    return found


def completions(records: Sequence[Record], names: Sequence[str], limits: Limits) -> list[dict[str, Any]]:
    """What the models wrote at evaluations, the newest first."""
    room = max(limits.questions // max(len(records), 1), 4)
    found = []
    for record, name in zip(records, names, strict=True):
        rows = [(step, row) for step in sorted(record.written, reverse=True) for row in record.written[step]]
        label = f"{name}: written at evaluations"
        found += [
            {"from": label, "of": f"{min(room, len(rows))} of {len(rows)} texts", "step": step}
            | _clipped(row, ("prompt", "completion", "answer"), limits)
            for step, row in rows[:room]
        ]
    return found


def _clipped(sample: Mapping[str, Any], names: Iterable[str], limits: Limits) -> dict[str, Any]:
    return {name: _clip(sample[name], limits.characters) for name in names if sample.get(name) is not None}


def _clip(value: Any, most: int) -> Any:
    if isinstance(value, list):
        return [_clip(one, max(most // 4, 20)) for one in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return clip(value, most) if isinstance(value, str) else value


def chosen_flags(flags: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Those that were chosen, and those that are as they are unless one chooses."""
    usual = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(TrainConfig)}
    chosen = {name: name not in usual or value != usual[name] for name, value in flags.items()}
    return {
        "chosen": [(name, value) for name, value in flags.items() if chosen[name]],
        "usual": [(name, value) for name, value in flags.items() if not chosen[name]],
    }
