"""Who is told of a run or an evaluation, beside the files that it writes.

Promises: a tracker that is not installed is told at once. Costs: a look for its package.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from miniqwen.config.flags import Flags, flag

# those that Accelerate knows; the first two are installed with this project
TRACKERS = ("tensorboard", "wandb", "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio")


@dataclass(frozen=True)
class WatchFlags(Flags):
    """The trackers, of every command that has numbers for them."""

    report_to: tuple[str, ...] = flag(
        ("tensorboard",), "trackers beside metrics.jsonl; all: those that are installed", group="output",
        choices=(*TRACKERS, "all", "none"))  # fmt: skip
    run_name: str | None = flag(
        None, "name of the run in W&B (default: WANDB_NAME, or the output folder with the one above it)", group="output"
    )

    @property
    def trackers(self) -> tuple[str, ...]:
        if "none" in self.report_to:
            return ()
        return tuple(filter(_installed, TRACKERS)) if "all" in self.report_to else self.report_to

    def problems(self) -> list[str]:
        found = super().problems()
        if len(self.report_to) > 1 and {"all", "none"} & set(self.report_to):
            found.append(f"--report_to {' '.join(self.report_to)}: `all` and `none` stand alone")
        return found + [
            f"--report_to {name}: it is not installed (pip install {name.replace('_', '-')})"
            for name in self.trackers
            if not _installed(name)
        ]


def _installed(tracker: str) -> bool:
    return importlib.util.find_spec(tracker) is not None
