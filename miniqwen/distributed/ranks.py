"""One process among the others: what they count, gather and agree on together.

Promises: an error of one rank stops them all, with what it was; counts, flags and records stay on the CPU, so that
reading them never waits for a GPU. Costs: a gloo group beside the backend's own.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from miniqwen.distributed.peers import differing
from miniqwen.errors import UserError, outliving_its_reader

START_UP = 1800.0  # seconds a collective may take until the first update is made: downloads, compilation

Result = TypeVar("Result")


class Ranks:
    """Rank `rank` of `world_size`, on the hosts `hosts` (one name a rank)."""

    def __init__(self, rank: int, world_size: int, timeout: timedelta = timedelta(seconds=START_UP)) -> None:
        """The process group has been joined already; `timeout` is how long a collective here may take."""
        self.rank, self.world_size, self.is_main = rank, world_size, rank == 0
        self._counts = dist.new_group(backend="gloo", timeout=timeout) if world_size > 1 else None
        self.hosts: list[str] = self.gather(platform.node())

    def sum(self, *values: int) -> tuple[int, ...]:
        """Each integer summed over the ranks."""
        if self._counts is None:
            return values
        counts = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(counts, group=self._counts)
        return tuple(counts.tolist())

    def sum_tensor(self, value: torch.Tensor) -> torch.Tensor:
        """A device tensor summed over the ranks, in float64."""
        total = value.detach().to("cpu" if self._counts else value.device, torch.float64, copy=True)
        if self._counts is not None:
            dist.all_reduce(total, group=self._counts)
        return total

    def gather(self, value: Any) -> list[Any]:
        """JSON-able `value` of every rank, in rank order, on every rank."""
        if self._counts is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._counts)
        return values

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Raises `UserError` on every rank, naming what differs, when the ranks do not all bring the same facts."""
        problems = differing(self.gather(dict(facts)), self.hosts)
        if problems:
            raise UserError(*problems)

    @contextlib.contextmanager
    def together(self, parts: Iterable[Any] = ()) -> Iterator[None]:
        """Around what one rank may fail at: its error is raised on all of them.

        `parts` is a generator that every rank has to go through: what is left of it is used up first.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        for _ in parts:
            pass
        told = self.gather([f"{type(error).__name__}: {error}", getattr(error, "exit_status", None)] if error else None)
        if error:
            raise error
        failed = next(((rank, *found) for rank, found in enumerate(told) if found), None)
        if failed:
            rank, text, exit_status = failed
            if exit_status is None:
                raise OSError(f"rank {rank}: {text}")
            problem = UserError(f"rank {rank}: {text}")
            problem.exit_status = exit_status  # 75 where it is the hub that stayed away: every rank leaves with it
            raise problem

    def on_main(self, call: Callable[[], Result]) -> Result:
        """What `call` gives on rank 0 (JSON-able), on every rank; its error too."""
        result = None
        with self.together():
            if self.is_main:
                result = call()
        found: Result = self.gather(result)[0]
        return found

    def print(self, *words: object) -> None:
        """On rank 0 only."""
        if self.is_main:
            with outliving_its_reader():
                print(*words, flush=True)
