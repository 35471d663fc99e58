"""What happens in a few updates, operation by operation: a trace for Perfetto (--profile).

Promises: `profile/` in the output folder has a Chrome trace of every rank (https://ui.perfetto.dev opens it, and
chrome://tracing), whose regions are called as the times in metrics.jsonl: data, forward, backward, optimizer, save,
evaluation. Without the flag nothing of the profiler is touched. Costs: the traced updates are slower.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from miniqwen.config.output import PROFILE_FOLDER
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.runtime import Runtime
from miniqwen.files import disk_errors_told


class Trace:
    """The trace of `--profile` updates, with what comes between them and behind the last one."""

    def __init__(self, config: TrainConfig, runtime: Runtime) -> None:
        self._wanted, self._runtime = config.profile or 0, runtime
        self._folder = Path(str(config.output_dir)) / PROFILE_FOLDER
        self._profiler: Any = None
        self._first, self._updates = 0, 0

    def region(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """Around what is to have a name in the trace."""
        return torch.profiler.record_function(name) if self._profiler else contextlib.nullcontext()

    def update_begins(self, step: int, warm: bool) -> None:
        """Update `step` is the next one; the first ones of a process are not traced, as they are like no other."""
        if self._profiler and self._updates == self._wanted:
            self.close()
        if self._wanted and warm and not self._profiler:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self._runtime.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._first, self._profiler = step, torch.profiler.profile(activities=activities, record_shapes=True)
            self._profiler.start()
        self._updates += self._profiler is not None

    def close(self) -> None:
        """Write what was traced; nothing more is."""
        profiler, self._profiler, self._wanted = self._profiler, None, 0
        if profiler is None:
            return
        profiler.stop()
        last = self._first + self._updates - 1
        name = f"updates-{self._first}-{last}-rank-{self._runtime.rank}.pt.trace.json.gz"
        with disk_errors_told(self._folder.parent, "the trace of --profile is not whole"):
            self._folder.mkdir(exist_ok=True)
            temporary = self._folder / f".{name}.tmp.gz"  # torch compresses by the name's end
            profiler.export_chrome_trace(str(temporary))
            temporary.replace(self._folder / name)
        self._runtime.print(f"{self._folder / name}: the trace of updates {self._first} to {last} (ui.perfetto.dev)")
