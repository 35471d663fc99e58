"""Saving beside the loop: what is to be written is copied, and a thread writes it while training goes on.

Promises: one save at a time; the next one, and the end of the run, wait for it and raise what it raised, so no failure
is silent. Nothing but the copying keeps the loop waiting, and on Linux the thread takes only what processor time the
training leaves. Costs: a copy of all tensors in the memory of the rank that writes, kept from save to save.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable

import torch


def give_way() -> None:
    """Let this thread run where no other wants to. Only Linux has priorities of single threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


class Background:
    """At most one call that goes on in a thread, and the memory for what it reads."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._copies: dict[str, torch.Tensor] = {}

    def copied(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> list[tuple[str, torch.Tensor]]:
        """`tensors` as they are now; call it after `wait`. The memory is used again by the next call."""
        copies = []
        for name, tensor in tensors:
            mine = self._copies.get(name)
            if mine is None or mine.shape != tensor.shape:
                mine = self._copies[name] = torch.empty_like(tensor, device="cpu")
            copies.append((name, mine.copy_(tensor)))
        return copies

    def start(self, call: Callable[[], None]) -> None:
        """Have `call` go on beside; call it after `wait`."""

        def work() -> None:
            try:
                give_way()
                call()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="save", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the call, if any, has ended; raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
