"""What the caches hold: large files cut into windows, and token caches; what can go, and what is damaged.

Promises: windows that nobody used for some days are deleted on request, with what killed processes left of others;
never while they are being made. A run that wants them again makes them again. Token caches are only looked at.
Costs: lengths are looked at; with hashes every byte is read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from miniqwen.data.cuts import DAMAGE, cuts_folder, fault_of, read_index, remove
from miniqwen.data.token_cache import COMPLETE, MADE_OF, damaged
from miniqwen.files import read_json, unsealed

DAY = 86_400.0


@dataclass(frozen=True)
class Cached:
    """What it was made of, its `size` in bytes, for how many `days` nobody used it, and what is wrong with it."""

    folder: Path
    of: str
    size: int
    days: float
    fault: str | None

    def __str__(self) -> str:
        used = "used today" if self.days < 1 else f"not used for {self.days:,.0f} days"
        state = f"DAMAGED: {self.fault}" if self.fault else "whole"
        return f"{self.folder}: {self.size / 1e6:,.1f} MB, of {self.of}, {used}, {state}"


def windows_in(cache_dir: str | None, hashed: bool) -> Iterator[Cached]:
    """The windows of large files, all of them read if `hashed`."""
    for folder in sorted(path for path in cuts_folder(cache_dir).glob("*") if path.suffix != ".lock"):
        of, fault = "nothing that is known", None
        try:
            described = read_index(folder)["of"]
            of = f"{described['of']}: {described['file']}, column {described['column']}"
            fault = fault_of(folder) if hashed else None
        except DAMAGE as error:
            fault = "half made" if folder.suffix == ".tmp" else str(error)
        yield Cached(folder, of, _size(folder), _days(folder), fault)


def tokens_in(root: Path, hashed: bool) -> Iterator[Cached]:
    """The token caches under `root`, their hashes looked at if `hashed`."""
    for folder in sorted(path.parent for path in root.glob(f"*/{MADE_OF}")):
        of, fault = "nothing that is known", None
        try:
            made = read_json(folder / MADE_OF)
            of = f"{made['data']['repository']}, column {made['column']}"
            if not (folder / COMPLETE).exists():
                raise ValueError("not complete")
            fault = damaged(folder, unsealed(folder / COMPLETE)["files"], hashed)
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = str(error)
        yield Cached(folder, of, _size(folder), _days(folder), fault)


def prune(cached: Cached, days: float) -> str | None:
    """Delete windows that were not used for `days`, or are damaged; why not, if they stay."""
    if cached.days < days and not cached.fault:
        return f"used {cached.days:.1f} days ago"
    try:
        with FileLock(f"{cached.folder.with_suffix('')}.lock", timeout=0):
            remove(cached.folder)
    except Timeout:
        return "it is being made"
    return None if not cached.folder.exists() else "it cannot be deleted"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _days(folder: Path) -> float:
    return max(0.0, time.time() - folder.lstat().st_mtime) / DAY
