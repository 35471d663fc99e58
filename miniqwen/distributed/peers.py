"""What each rank knows of the others when the collectives no longer tell: signs of life, and why one gave up.

Promises: after a failed collective every living rank can name the ranks that are gone or stand still, with their hosts,
and repeat what a rank said before it gave up. Costs: one tiny request a second to the launcher's key-value store, from
a thread that also lives while its rank waits in a collective; `PATIENCE` seconds at a failure.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

BEAT = 1.0  # seconds between two signs of life
PATIENCE = 4.0  # seconds without one that make a rank silent
WATCHED = 8.0  # seconds of the next rank's silence after which all are asked
STORE_TIMEOUT = timedelta(seconds=5)


class Peers:
    """The ranks of this run on their `hosts` (one name a rank), seen from `rank`."""

    def __init__(self, rank: int, hosts: Sequence[str]) -> None:
        self.rank, self.hosts = rank, list(hosts)
        # a launcher that restarts a failed run may keep its store
        self._prefix = f"miniqwen/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._over = threading.Event()
        # connected here: a rank that stood still while its thread connected would never give a sign of life again
        self._beating = threading.Thread(target=self._beat, args=(self._connect(),), daemon=True)
        self._beating.start()
        atexit.register(self._end)

    def name(self, rank: int) -> str:
        return f"rank {rank} on {self.hosts[rank]}"

    def explain(self, error: BaseException) -> tuple[str, bool]:
        """Why this rank's run ended with `error`, with what the others say and which are silent.

        Also whether it is this rank's turn to write it down: rank 0's, or the first living one's.
        """
        own = f"{self.name(self.rank)}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        told: dict[str, Any] = {"silent": None, "reasons": []}
        asking = threading.Thread(target=self._ask, args=(own, told), daemon=True)
        asking.start()
        asking.join(PATIENCE + 2 * STORE_TIMEOUT.total_seconds())  # a store behind a dead link answers never
        if told["silent"] is None:
            store = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            return f"{own}; the launcher's store at {store} does not answer: is this machine cut off?", self.rank == 0
        silent = [self.name(rank) for rank in told["silent"]]
        parts = [told["reasons"][0] if told["reasons"] else own]
        parts += [f"no sign of life from {', '.join(silent)}"] if silent else []
        living = [rank for rank in range(len(self.hosts)) if rank not in told["silent"]]
        return "; ".join(parts), self.rank == min(living, default=self.rank)

    def silence(self, over: threading.Event) -> Iterator[list[str]]:
        """Once a second, until `over`, the ranks that give no sign of life, by name, if it is this rank's to tell.

        For a thread beside the loop: NCCL's watchdog may abort processes that no handler runs in. Each rank watches the
        next one, and asks the others only when that one is silent.
        """
        with contextlib.suppress(RuntimeError):  # the launcher has ended: nobody answers
            store = self._connect()
            watched = f"{self._prefix}/beat/{(self.rank + 1) % len(self.hosts)}"
            before, since = -1, time.monotonic()
            while not over.wait(BEAT):
                if (now := store.add(watched, 0)) != before:
                    before, since = now, time.monotonic()
                silent = time.monotonic() - since > WATCHED
                yield [self.name(rank) for rank in self._silent(store)] if silent else []

    def _silent(self, store: dist.TCPStore) -> list[int]:
        """The other ranks whose beats stand still for `PATIENCE` seconds."""
        beats = [f"{self._prefix}/beat/{rank}" for rank in range(len(self.hosts))]
        before = [store.add(beat, 0) for beat in beats]
        time.sleep(PATIENCE)
        return [r for r, beat in enumerate(beats) if r != self.rank and store.add(beat, 0) == before[r]]

    def _connect(self) -> dist.TCPStore:
        """A connection of one's own: one that waits for an answer makes the others of its rank wait."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(address, port, None, False, timeout=STORE_TIMEOUT, wait_for_workers=False)

    def _beat(self, store: dist.TCPStore) -> None:
        with contextlib.suppress(RuntimeError):  # the launcher has ended: nobody listens any more
            while not self._over.wait(BEAT):
                store.add(f"{self._prefix}/beat/{self.rank}", 1)

    def _end(self) -> None:
        """Before the interpreter ends: a thread that it finds in C++ then would abort the process."""
        self._over.set()
        self._beating.join(STORE_TIMEOUT.total_seconds())

    def _ask(self, own: str, told: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):
            store = self._connect()
            number = store.add(f"{self._prefix}/failures", 1)
            store.set(f"{self._prefix}/failure/{number}", own)
            silent = self._silent(store)
            told["reasons"] = [store.get(f"{self._prefix}/failure/1").decode()]
            told["silent"] = silent


def differing(facts: Sequence[Mapping[str, Any]], hosts: Sequence[str]) -> list[str]:
    """What is not the same on all ranks, by name, with the values of rank 0 and of the first rank that differs."""
    found = []
    for key in sorted({key for of_rank in facts for key in of_rank}):
        values = [of_rank.get(key) for of_rank in facts]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            found.append(
                f"{key} differs between ranks: {_short(values[0])} on rank 0 ({hosts[0]}), {_short(values[other])} on "
                f"rank {other} ({hosts[other]})"
            )
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
