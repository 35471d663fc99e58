"""TensorBoard: event files in the output folder, by whose name a run is called there.

Promises: the same numbers as metrics.jsonl; what a resumed run makes again, TensorBoard drops; flags and losses stand
in its HParams tab. Costs: a flush an event.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class TensorBoard:
    """The event file of one start of a run."""

    where: str | None = None  # said at the end of the run

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not always wanted

        # events of steps after the checkpoint that is resumed from are dropped, as the run repeats them
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def begin(self, facts: Mapping[str, Any]) -> None:
        """The flags that are numbers or words, for the HParams tab."""
        from torch.utils.tensorboard.summary import hparams

        told = {name: value for name, value in facts["flags"].items() if isinstance(value, (bool, int, float, str))}
        # `add_hparams` would open a run of its own for them
        for summary in hparams(told, {"eval/loss": 0.0, "train/loss": 0.0}):
            self._writer._get_file_writer().add_summary(summary)

    def log(self, step: int, number: int, values: Mapping[str, float]) -> None:
        """Numbers by their names in trackers, at an update."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, name: str, step: int, number: int, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table in Markdown, in the Text tab."""
        lines = [columns, ["---"] * len(columns), *rows]
        # a bar or a line break would begin another cell or row
        cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in cells), step)

    def alert(self, what: str, look_at: str) -> None:
        """The console and report.html tell it."""

    def model(self, folder: Path, aliases: Sequence[str]) -> None:
        """Models are not kept there."""

    def end(self, status: str, reason: str | None, best: Mapping[str, Any]) -> None:
        """Write what is left."""
        with contextlib.suppress(OSError):  # a full disk was told by the line of metrics that did not fit
            self._writer.close()
