"""What metrics.jsonl tells of a run in the end: its lines, without those that a later start took back and told anew.

Promises: in the final history updates only go forward, and at each there is one line of training and one evaluation at
most. Costs: the file is read whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from miniqwen.errors import UserError
from miniqwen.files import parsed, whole_lines

Line = dict[str, Any]


def read_lines(file: Path) -> list[Line]:
    """Every event that was told, oldest first; what a killed process left of the last one is none.

    Raises `UserError` naming the first line that is no event.
    """
    found = []
    for number, line in enumerate(whole_lines(file).splitlines(), 1):
        try:
            found.append(parsed(line))
            _place(found[-1])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{file}, line {number}: is not a line of metrics (a JSON object with its step)") from None
    return found


def evaluates(line: Mapping[str, Any]) -> bool:
    """Whether it is an evaluation's; else it is of training."""
    return "eval_loss" in line


def final_history(lines: Iterable[Line], lives: Sequence[Mapping[str, Any]] = ()) -> list[Line]:
    """The lines that count. One takes back those of its update and later ones that stand before it.

    So does a new one of the `lives` that config.yaml records, with all beyond its first update; which one a line
    belongs to is told by its time.
    """
    found: list[Line] = []
    later = list(lives)
    for line in lines:
        while later and life_began(later[0]) <= line.get("time", 0.0):
            _take_back(found, (later.pop(0)["start_step"], True))
        place = _place(line)
        _take_back(found, (place[0], place[1] - 1))
        found.append(line)
    for life in later:  # which have told nothing yet
        _take_back(found, (life["start_step"], True))
    return found


def _place(line: Mapping[str, Any]) -> tuple[int, int]:
    """At one update training comes first."""
    return int(line["step"]), int(evaluates(line))


def _take_back(found: list[Line], last: tuple[int, int]) -> None:
    while found and _place(found[-1]) > last:
        found.pop()


def life_began(life: Mapping[str, Any]) -> float:
    """When a life began, in seconds of the Unix epoch."""
    return datetime.fromisoformat(life["began"]).timestamp()
