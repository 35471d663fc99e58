"""The other trackers that Accelerate knows, Aim, ClearML, Comet, DVCLive, MLflow, SwanLab, Trackio, by its own classes.

Promises: the same numbers under the same names; each start of a run is a run of its own there, unless the tracker's own
variables say otherwise (MLFLOW_RUN_ID, ...). Costs: those of the tracker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from miniqwen.errors import UserError


class Other:
    """One of them, called as `Accelerator.init_trackers` does."""

    where: str | None = None

    def __init__(self, name: str, folder: Path) -> None:
        """Raises `UserError` when it does not start."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[name]
        project = os.environ.get("WANDB_PROJECT", "miniqwen")
        try:
            self._tracker = kind(project, str(folder)) if kind.requires_logging_directory else kind(project)
            self._tracker.start()
        except Exception as error:  # of as many kinds as there are trackers
            why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise UserError(f"--report_to {name}: it does not start ({why})") from None

    def begin(self, facts: Mapping[str, Any]) -> None:
        """The flags and facts, nested ones as JSON: not all of them take more than words and numbers."""
        told = {**facts["flags"], **{key: value for key, value in facts.items() if key != "flags"}}
        plain = (bool, int, float, str)
        self._tracker.store_init_configuration(
            {key: value if isinstance(value, plain) else json.dumps(value) for key, value in told.items()}
        )

    def log(self, step: int, number: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=step)

    def table(self, name: str, step: int, number: int, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Only numbers are told: tables are in TensorBoard, W&B and samples.jsonl."""

    def alert(self, what: str, look_at: str) -> None:
        """The console and report.html tell it."""

    def model(self, folder: Path, aliases: Sequence[str]) -> None:
        """Models are not kept there."""

    def end(self, status: str, reason: str | None, best: Mapping[str, Any]) -> None:
        self._tracker.finish()
