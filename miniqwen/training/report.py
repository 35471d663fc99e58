"""One page to look back at: `report.html`, of one run or of several side by side.

Promises: self-contained, at most `LARGEST` bytes, nothing from a network; everything from data is escaped, and the
page's own scripts are the only ones that its content security policy lets run; values are those of metrics.jsonl. In a
loop it can end nothing: what goes wrong is told once. Costs: see record.py and curves.py; in a loop at most
`SHARE` of its time.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from tqdm import tqdm

from miniqwen.config.output import REPORT_FILE
from miniqwen.config.reporting import MARK
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.files import encodable, write_text
from miniqwen.training.curves import Curve, charts
from miniqwen.training.health import healthy
from miniqwen.training.record import Record

LARGEST = 1_000_000  # bytes of a page
SHARE = 0.05  # of a run's time for its page
PAGE = Path(__file__).parent / "page"  # its template, style and script, and uPlot (https://github.com/leeoniya/uPlot)
SHOWN = ("id", "question", "choices", "scores", "prediction", "answer", "correct", "generated")


@dataclass(frozen=True)
class Limits:
    """How much of what there is much of: points of a curve, questions of an evaluation, characters of a text."""

    points: int = 800
    questions: int = 300
    characters: int = 800

    def halved(self) -> Limits:
        return Limits(*(value // 2 for value in vars(self).values()))


class Report:
    """The page of a running run, on the one process that writes its folder."""

    def __init__(
        self, folder: Path, flags: Mapping[str, Any], recorded: Mapping[str, Any], may_write: Callable[[], None]
    ) -> None:
        """`may_write` raises where the folder is another run's by now."""
        self._record, self._may_write = Record(folder, flags, recorded), may_write
        self._told = False
        self._not_before = 0.0

    def rewrite(self, last: bool = False) -> None:
        """The page as things stand now; not yet, where that would take more than its `SHARE`, unless it is the last."""
        began = time.monotonic()
        if began < self._not_before and not last:
            return
        try:
            self._may_write()
            self._record.refresh()
            write_text(self._record.folder / REPORT_FILE, page([self._record]))
        except Exception as error:  # a page ends no run, whatever is wrong with it
            if not self._told:
                why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                tqdm.write(f"{REPORT_FILE} cannot be written, the run goes on without it ({why})", file=sys.stderr)
            self._told = True
        self._not_before = time.monotonic() + (time.monotonic() - began) / SHARE


def page(records: Sequence[Record], evaluations: Iterable[Mapping[str, Any]] = ()) -> str:
    """The HTML of a page about `records`, with further `evaluations` beside their own.

    Raises `UserError` where even the shortest one would be too large.
    """
    found = {one["file"]: one for record in records for one in record.evaluations()}
    every = [*found.values(), *(one for one in evaluations if one["file"] not in found)]
    limits = Limits()
    while limits.points >= 12:
        text = encodable(_page(records, every, limits))
        if len(text.encode()) <= LARGEST:
            return text
        limits = limits.halved()
    raise UserError(f"a page about {len(records)} runs would be larger than {LARGEST:,} bytes: compare fewer of them")


def _page(records: Sequence[Record], evaluations: Sequence[Mapping[str, Any]], limits: Limits) -> str:
    names = run_names([record.folder for record in records])
    runs = [_run(record, name) for record, name in zip(records, names, strict=True)]
    drawn = _charts(records, names, limits)
    of_runs = [_of_run(one, records, names) for one in evaluations]
    data = {
        "runs": [{"name": run["name"], "lives": run["life_steps"], "clock": run["clock"]} for run in runs],
        "charts": [{key: chart[key] for key in ("series", "marks", "bound")} for chart in drawn],
        "samples": [*_questions(of_runs, limits), *_completions(records, names, limits)],
    }
    style = _file("uPlot.min.css") + _file("report.css")
    scripts = [_file("uPlot.iife.min.js"), _file("report.js")]
    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"short": short, "percent": percent, "clock": clock, "clip": clip}
    groups: dict[str, list[Any]] = {}
    for chart in drawn:
        groups.setdefault(chart["group"], []).append(chart)
    return environment.get_template("report.html.jinja").render(
        runs=runs, groups=groups, evaluations=[_figures(one) for one in of_runs], differences=_differences(records),
        has_samples=bool(data["samples"]), data=Markup(safe_json(data)), style=Markup(style), mark=Markup(MARK),
        scripts=[Markup(script) for script in scripts], licence=_file("uPlot.LICENSE"),
        policy=f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        title=names[0] if len(names) == 1 else f"{len(names)} runs" if names else "evaluations",
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )  # fmt: skip


def _file(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """As a content security policy names what may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def safe_json(value: Any) -> str:
    """JSON that can stand in a script element: no text in it ends the element, or opens another or a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def run_names(folders: Sequence[Path]) -> list[str]:
    """What tells them apart: the last part of their paths, or as many as that takes."""
    whole = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, whole), default=0) + 1):
        names = ["/".join(parts[-count:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(parts)} ({number})" for number, parts in enumerate(whole, 1)]


def _run(record: Record, name: str) -> dict[str, Any]:
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
        "task": flags.get("dataset_name"), "flags": _flags(flags),
        "life_steps": [life.get("start_step", 0) for life in lives],
        "clock": {key: [steps.tolist(), values.tolist()] for key, (steps, values) in clocks.items()},
    }  # fmt: skip


def _flags(flags: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Those that were chosen, and those that are as they are unless one chooses."""
    usual = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default for f in fields(TrainConfig)}
    chosen = {name: name not in usual or value != usual[name] for name, value in flags.items()}
    return {
        "chosen": [(name, value) for name, value in flags.items() if chosen[name]],
        "usual": [(name, value) for name, value in flags.items() if not chosen[name]],
    }


def _best(record: Record) -> tuple[str, int, float] | None:
    """(metric, update, value) of the best evaluation by the run's own measure."""
    metric = f"eval_{str(record.flags.get('metric_for_best_model') or 'loss').removeprefix('eval_')}"
    larger = record.flags.get("greater_is_better")
    larger = metric != "eval_loss" if larger is None else larger
    found = record.curves.named[metric].best(larger) if metric in record.curves.named else None
    return found and (metric, *found)


def _differences(records: Sequence[Record]) -> list[tuple[str, list[Any]]]:
    """Flags that are not the same in all runs, and each run's value."""
    names = dict.fromkeys(name for record in records for name in record.flags)
    rows = [(name, [record.flags.get(name) for record in records]) for name in names if name != "output_dir"]
    return [(name, values) for name, values in rows if any(value != values[0] for value in values)]


def _charts(records: Sequence[Record], names: Sequence[str], limits: Limits) -> list[dict[str, Any]]:
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
        if chart.group not in ("Loss and evaluation", "Learning rate and gradients", "Throughput and waits") and not kept:
            continue
        words = healthy(chart.names[0])
        several = len(records) > 1
        found.append({
            "group": chart.group, "title": chart.title, "healthy": words and words[0],
            "bound": words[1][1] if words and words[1] else None,
            "series": [_series(number, metric, curve, names, several, limits) for number, metric, curve in kept or drawn],
            "marks": [
                {"run": number, "step": notice.step, "what": notice.what}
                for number, record in enumerate(records)
                for notice in record.notices
                if notice.metric in chart.names
            ]
            + _best_marks(records, chart.names),
            "said": "; ".join(_said(metric, curve, names[number], several) for number, metric, curve in kept or drawn),
        })  # fmt: skip
    return found


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


def _of_run(found: Mapping[str, Any], records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """Results, with the run whose model they are of."""
    owner = next((name for record, name in zip(records, names, strict=True) if record.owns(found)), None)
    return {**found, "run": owner, "label": f"{owner or found['model_path']}: {found['dataset']}"}


def _figures(found: Mapping[str, Any]) -> dict[str, Any]:
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


def _questions(evaluations: Sequence[Mapping[str, Any]], limits: Limits) -> list[dict[str, Any]]:
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


def _completions(records: Sequence[Record], names: Sequence[str], limits: Limits) -> list[dict[str, Any]]:
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


def clip(text: Any, most: int = 200) -> str:
    """The beginning of a long text."""
    text = str(text)
    return text if len(text) <= most else f"{text[:most]}…"


def short(value: Any) -> str:
    """A number with four digits that count; other things as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def clock(seconds: float | None) -> str:
    """3 h 20 min, 12 min, 40 s."""
    if seconds is None:
        return "–"
    minutes = int(seconds) // 60
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{seconds:.0f} s"
