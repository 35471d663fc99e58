"""The trackers of a run or an evaluation together.

Promises: one that does not start is an error before anything is done; one that fails later is told once, switched off,
and ends nothing. Costs: see each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from miniqwen.config.watching import WatchFlags
from miniqwen.training.outlets.others import Other
from miniqwen.training.outlets.tensorboard import TensorBoard
from miniqwen.training.outlets.wandb import Wandb, check_login, is_off

SHOWN_SAMPLES = 16  # questions in the table of each evaluation
SAMPLE_COLUMNS = ("id", "question", "choices", "scores", "generated", "prediction", "answer", "correct")


class Outlet(Protocol):
    """One tracker; `number` counts what was told over all starts of a run."""

    where: str | None  # where it can be looked at, if that has to be said

    def begin(self, facts: Mapping[str, Any]) -> None: ...

    def log(self, step: int, number: int, values: Mapping[str, float]) -> None: ...

    def table(
        self, name: str, step: int, number: int, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> None: ...

    def alert(self, what: str, look_at: str) -> None: ...

    def model(self, folder: Path, aliases: Sequence[str]) -> None: ...

    def end(self, status: str, reason: str | None, best: Mapping[str, Any]) -> None: ...


def check_trackers(config: WatchFlags) -> None:
    """Raises `UserError` for one that cannot start: before data and model are loaded."""
    if "wandb" in config.trackers and not is_off():
        check_login()


class Outlets:
    """All of them; `failed`: whether one was switched off."""

    def __init__(self, config: WatchFlags, folder: Path, job: str, step: int = 0, wandb_run_id: str | None = None):
        """Raises `UserError` for one that does not start. `job`: what kind of run it is; `step`: where it goes on."""
        self.failed = False
        self._open: dict[str, Outlet] = {}
        # the one that is refused most often goes first
        for name in sorted(config.trackers, key=lambda name: name != "wandb"):
            if name == "wandb" and (off := is_off()):
                print(f"W&B is off ({off})", flush=True)
            elif name == "wandb":
                self._open[name] = Wandb(folder, config.run_name, wandb_run_id, job)
            elif name == "tensorboard":
                self._open[name] = TensorBoard(folder, step)
            else:
                self._open[name] = Other(name, folder)

    @property
    def wandb(self) -> Wandb | None:
        found = self._open.get("wandb")
        return found if isinstance(found, Wandb) else None

    @property
    def places(self) -> list[str]:
        """Where they can be looked at, as far as that has to be said."""
        return [outlet.where for outlet in self._open.values() if outlet.where]

    def each(self, use: Callable[[Outlet], object]) -> None:
        """Use every one. What fails is switched off: no tracker ends a run."""
        for name, outlet in list(self._open.items()):
            try:
                use(outlet)
            except Exception as error:
                del self._open[name]
                self.failed = True
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                tqdm.write(f"{name} fails and is switched off, everything else goes on ({why})", file=sys.stderr)


def sample_table(samples: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) of the first answers, as text."""
    columns = [name for name in SAMPLE_COLUMNS if name in samples[0]]
    return columns, [[_cell(sample.get(name)) for name in columns] for sample in samples[:SHOWN_SAMPLES]]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(f"{one:.2f}" if isinstance(one, float) else str(one) for one in value)
    return "" if value is None else str(value)
