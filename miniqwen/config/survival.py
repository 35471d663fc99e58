"""How a run is stopped, and what it survives.

Promises: times are written as Slurm writes them. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from miniqwen.config.flags import Flags, flag


@dataclass(frozen=True)
class SurvivalFlags(Flags):
    """Time limits, exit statuses, patience with ranks and with losses."""

    max_time: str | None = flag(
        None, "save and end after this time: seconds, MM:SS, HH:MM:SS or D-HH:MM:SS, from the start of the process",
        group="survival")  # fmt: skip
    preempted_exit_code: int | None = flag(
        None, "exit status of a run that was stopped and saved (default: 0; but 85 where a signal stops a run on "
        "several machines, whose launchers would wait minutes for the one that ended)", group="survival")  # fmt: skip
    collective_timeout: float = flag(
        600.0, "seconds after which a rank that does not come to a collective ends the run; at the start, until the "
        "first update is made, at least 1800", group="survival")  # fmt: skip
    max_bad_steps: int = flag(
        10, "updates in a row with a loss or gradient that is not finite, after which the run fails; one such update "
        "is skipped and counted", group="survival", least=1)  # fmt: skip

    @property
    def max_seconds(self) -> float | None:
        """`--max_time` in seconds; None when it was not given. Raises `ValueError` when it is no time."""
        return None if self.max_time is None else seconds(self.max_time)

    def problems(self) -> list[str]:
        found = super().problems()
        try:
            if self.max_seconds is not None and not self.max_seconds > 0:
                found.append(f"--max_time {self.max_time}: must be above 0")
        except ValueError:
            found.append(f"--max_time {self.max_time}: expected seconds, MM:SS, HH:MM:SS or D-HH:MM:SS")
        if self.preempted_exit_code is not None and not 0 <= self.preempted_exit_code <= 255:
            found.append(f"--preempted_exit_code {self.preempted_exit_code}: must lie between 0 and 255")
        if not self.collective_timeout >= 1:
            found.append(f"--collective_timeout {self.collective_timeout:g}: must be at least 1 (second)")
        return found


def seconds(time: str) -> float:
    """`90`, `1:30`, `0:01:30` or `0-00:01:30` in seconds; raises `ValueError` for anything else."""
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if (dash and not days.isdigit()) or not 1 <= len(parts) <= 3 or not all(part.isdigit() for part in parts[:-1]):
        raise ValueError(time)
    if not parts[-1].replace(".", "", 1).isdigit():
        raise ValueError(time)
    total = 0.0
    for part in parts:
        total = total * 60 + float(part)
    return total + 86400 * int(days or 0)
