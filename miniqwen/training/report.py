"""One page to look back at: `report.html`, of one run or of several side by side.

Promises: self-contained, at most `LARGEST` bytes, nothing from a network; everything from data is escaped, and the
page's own scripts are the only ones that its content security policy lets run; values are those of metrics.jsonl. In a
loop it can end nothing: what goes wrong is told once. Costs: see record.py and curves.py; in a loop at most
`SHARE` of its time.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from tqdm import tqdm

from miniqwen.config.output import REPORT_FILE
from miniqwen.config.reporting import MARK
from miniqwen.errors import UserError
from miniqwen.files import encodable, write_text
from miniqwen.training.exhibits import (
    Limits,
    completions,
    differences,
    drawn_charts,
    evaluation_figures,
    of_run,
    questions,
    run_facts,
    run_names,
    zeros,
)
from miniqwen.training.record import Record
from miniqwen.training.wording import clip, clock, flags, percent, short

LARGEST = 1_000_000  # bytes of a page
SHARE = 0.05  # of a run's time for its page
PAGE = Path(__file__).parent / "page"  # its template, style and script, and uPlot (https://github.com/leeoniya/uPlot)


class Report:
    """The page of a running run, on the one process that writes its folder."""

    def __init__(
        self,
        folder: Path,
        flags: Mapping[str, Any],
        recorded: Mapping[str, Any],
        may_write: Callable[[], None] | None = None,
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
            if self._may_write:
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
    runs = [run_facts(record, name) for record, name in zip(records, names, strict=True)]
    drawn = drawn_charts(records, names, limits)
    of_runs = [of_run(one, records, names) for one in evaluations]
    data = {
        "runs": [{"name": run["name"], "lives": run["life_steps"], "clock": run["clock"]} for run in runs],
        "charts": [{key: chart[key] for key in ("series", "marks", "bound")} for chart in drawn],
        "samples": [*questions(of_runs, limits), *completions(records, names, limits)],
    }
    style = _file("uPlot.min.css") + _file("report.css")
    scripts = [_file("uPlot.iife.min.js"), _file("report.js")]
    groups: dict[str, list[Any]] = {}
    for chart in drawn:
        groups.setdefault(chart["group"], []).append(chart)
    return _template().render(
        runs=runs, groups=groups, zeros=zeros(records), differences=differences(records),
        evaluations=[evaluation_figures(one) for one in of_runs],
        has_samples=bool(data["samples"]), data=Markup(safe_json(data)), style=Markup(style), mark=Markup(MARK),
        scripts=[Markup(script) for script in scripts], licence=_file("uPlot.LICENSE"),
        policy=f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        title=names[0] if len(names) == 1 else f"{len(names)} runs" if names else "evaluations",
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )  # fmt: skip


@functools.cache
def _template() -> Template:
    found = Environment(loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    found.filters |= {"short": short, "percent": percent, "clock": clock, "clip": clip, "flags": flags}
    return found.get_template("report.html.jinja")


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
