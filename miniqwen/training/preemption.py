"""When a run must end before its end: signals, --max_time, a STOP file; and how the ranks come to agree on it.

Promises: SIGTERM, SIGINT (Ctrl-C), SIGUSR1, SIGHUP (a closed terminal), `--max_time` and a file named STOP in
`--output_dir` end the run cleanly, whichever rank notices first: at the start by leaving at once (there is nothing to
save yet), later at the next update, in the middle of an evaluation, or while a rank waits for its data. Signals are
acknowledged at once, whatever the main thread is at. A save is never interrupted, except by a second Ctrl-C, which ends
the run within seconds. One process under `accelerate launch` gets the SIGTERM that its launcher dies of.
Costs: nothing heavy is imported, so that signals are caught from the first second on; a sleeping thread; one look for
the file a second.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from miniqwen.config.models import run_state
from miniqwen.config.output import STOP_FILE
from miniqwen.config.training import TrainConfig
from miniqwen.errors import SAME_KEY_PRESS, UserError, heard_signals, say_at_once
from miniqwen.files import write_json

if TYPE_CHECKING:
    from miniqwen.distributed.runtime import Runtime
    from miniqwen.training.batches import Update
    from miniqwen.training.prefetching import Prefetched

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
POLL = 1.0  # seconds between two looks for the STOP file, and between two questions of ranks that wait for data
TO_END = 2.0  # seconds that a second Ctrl-C waits for the main thread to end the run tidily
SEVERAL_LAUNCHERS = 85  # exit status, as the cluster scripts ask for it
PR_SET_PDEATHSIG = 1  # of Linux's prctl
# all of these are in the environment of what `accelerate launch` starts, and hardly anywhere else
ACCELERATE_SETS = ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "ACCELERATE_DYNAMO_BACKEND")

Item = TypeVar("Item")


class Preempted(SystemExit):
    """The run ends before its end because it was asked to; its code is `--preempted_exit_code`."""


class Interrupted(SystemExit):
    """A second Ctrl-C: the run ends at once, without saving."""


class StopRequest:
    """Whether this process was asked to end the run, and by what (`reason`)."""

    def __init__(self, config: TrainConfig, importing: bool = False) -> None:
        """From now on signals are caught, and the time of `--max_time` runs.

        `importing`: until `imported` is called, a signal ends the process on the spot: libraries that are just being
        imported swallow exceptions, or turn them into others.
        """
        self.reason: str | None = None
        self.data_error: UserError | None = None
        self.signalled = False
        self._exit_code = config.preempted_exit_code
        self._started, self._max_seconds = time.time(), config.max_seconds
        self._file = Path(str(config.output_dir)) / STOP_FILE
        self._looks = os.environ.get("RANK", "0") == "0"  # for the file: one process is enough
        self._last_look, self._polled = 0.0, False
        self._first_signal: float | None = None
        self._importing = importing
        self._acknowledged = threading.Event()
        # a closed terminal ends a run as any other signal does, unless it was started to outlive it (nohup)
        outlives = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        self._signals = SIGNALS if outlives else (*SIGNALS, signal.SIGHUP)
        for number in self._signals:
            signal.signal(number, self._receive)
        if self._looks:
            threading.Thread(target=self._answer, args=(heard_signals(),), daemon=True).start()
        if launcher_is_gone():
            self._ask("the launcher that started this process has ended")

    @property
    def requested(self) -> bool:
        """To be asked often: this is also where the clock and the STOP file are looked at."""
        now = time.time()
        if self.reason is None and now - self._last_look >= POLL:
            self._last_look = now
            if self._max_seconds is not None and now - self._started >= self._max_seconds:
                self.reason = f"--max_time ({self._max_seconds:.0f} s) is over"
            elif self._looks and self._file.exists():
                self.reason = f"found {self._file}"
        return self.reason is not None

    @property
    def exit_code(self) -> int:
        """The status to end with. A launcher whose processes end with 0 waits up to five minutes for the launchers of
        the other machines (torchelastic's exit barrier), and one that a signal ended does not come any more."""
        if self._exit_code is not None:
            return self._exit_code
        return SEVERAL_LAUNCHERS if self.signalled and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1 else 0

    @contextlib.contextmanager
    def ends_cleanly(self) -> Iterator[None]:
        """Around the whole run: when it was asked to stop at its start, other ranks that are gone are no failure."""
        try:
            yield
        except Exception:
            if self.reason is None or self._polled:
                raise
            raise Preempted(self.exit_code) from None

    def forget_stale_file(self) -> None:
        """Remove a STOP file that is older than this run: it was meant for the one before. Says so."""
        with contextlib.suppress(FileNotFoundError):
            if self._looks and self._file.stat().st_mtime < self._started:
                self._file.unlink()
                print(f"removed {self._file}, which was there before this run", flush=True)

    def poll_from_now_on(self) -> None:
        """The loop begins: what is asked from now on waits until the loop looks."""
        self._polled = True
        for number in self._signals:  # again, in case a library has taken one
            signal.signal(number, self._receive)
        if self.reason is not None:
            raise Preempted(self.exit_code)

    def obeyed(self) -> str | None:
        """The run has ended because of this request: the file has done its work. Returns the reason, if it is here."""
        with contextlib.suppress(OSError):
            self._file.unlink()
        return self.reason

    def data_fails(self, error: UserError) -> None:
        """This rank's data ended with `error`: the ranks save together before the run fails with it."""
        self.data_error = error
        self.reason = self.reason or "the data cannot be read"

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if self._looks:
            self._acknowledged.wait(1.0)  # before this process perhaps ends
        leave_lost_terminal()
        now = time.monotonic()
        if self._first_signal is None:
            self._first_signal = now
        elif number == signal.SIGINT and now - self._first_signal > SAME_KEY_PRESS:
            raise Interrupted(130)
        self.signalled = True
        self._ask(f"{signal.Signals(number).name} was received")

    def _ask(self, reason: str) -> None:
        first, self.reason = self.reason is None, self.reason or reason
        if first and self._importing:
            os._exit(self.exit_code)
        if first and not self._polled:
            raise Preempted(self.exit_code)

    def imported(self) -> None:
        """The libraries are there: from now on a signal unwinds what was begun."""
        self._importing = False

    def _answer(self, heard: Iterable[int]) -> None:
        """In a thread: say at once what a signal does, and end the run where the main thread cannot."""
        first = None
        for number in heard:
            if number in self._signals and first is None:
                first = time.monotonic()
                what = "nothing to save yet, the run ends"
                if self._polled:
                    what = "the run saves at its next update and ends; Ctrl-C once more ends it without saving"
                say_at_once(f"{signal.Signals(number).name} was received: {what}")
                self._acknowledged.set()
            elif number == signal.SIGINT and first is not None and time.monotonic() - first > SAME_KEY_PRESS:
                time.sleep(TO_END)
                note_interrupt(self._file.parent)
                os._exit(130)


def note_interrupt(folder: Path) -> None:
    """Say on stderr and in trainer_state.json that a second Ctrl-C ended the run, unless that is said already."""
    state = run_state(folder)
    if not state or state["status"] != "running":
        return
    last = state.get("last_checkpoint")
    since = f"since {last}, where --resume_from_checkpoint auto goes on" if last else "yet"
    say_at_once(f"ended by a second Ctrl-C; nothing was saved {since}")
    ended = {"status": "preempted", "reason": "a second Ctrl-C, without saving"}
    write_json(folder / "trainer_state.json", {**state, **ended})


def leave_lost_terminal() -> None:
    """Let go of a terminal that was closed: a line that cannot be printed would end the run before it has saved."""
    for output in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(output).st_mode) and not os.isatty(output):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, output)
                os.close(nowhere)


def launcher_is_gone() -> bool:
    """Have the kernel send SIGTERM when `accelerate launch` dies, if it started this as its only process.

    That launcher neither passes signals on to a single process nor takes it with it. Returns whether it died before
    this was called.
    """
    alone = "RANK" not in os.environ and "LOCAL_RANK" not in os.environ
    if not alone or sys.platform != "linux" or not all(name in os.environ for name in ACCELERATE_SETS):
        return False
    parent = os.getppid()
    if parent == 1 and not _is_accelerate(parent):
        return True
    if not _is_accelerate(parent):  # a script of the user's own stands between: it decides
        return False
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    return os.getppid() != parent  # it died in between, and no signal will come


def _is_accelerate(process: int) -> bool:
    try:
        return b"accelerate" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False


def next_update(updates: Prefetched[Update], stop: StopRequest, runtime: Runtime) -> tuple[Update, list[int]] | None:
    """This rank's next update, and its targets, their bytes and all tokens, each over all ranks.

    None when any rank was asked to stop, or its data cannot be read.

    Ranks wait for their data together, asking each other once a second: a slow hub is neither a hang nor in the way of
    a stop. All ranks get the same answer.
    """
    update = None
    while True:
        try:
            update = update or updates.within(POLL)
        except UserError as error:
            stop.data_fails(error)
        own = (update.num_targets, update.num_bytes, update.num_tokens) if update else (0, 0, 0)
        *counts, missing, stops = runtime.sum(*own, int(update is None), int(stop.requested))
        if stops:
            return None
        if update is not None and not missing:
            return update, counts


def until_stopped(items: Iterable[Item], stop: StopRequest, runtime: Runtime) -> Iterator[Item]:
    """`items` while no rank is asked to stop; every rank has the same number of them. Raises `GivenUp` then."""
    for item in items:
        if any(runtime.sum(int(stop.requested))):
            raise GivenUp
        yield item


class GivenUp(Exception):
    """An evaluation was left unfinished because of a stop request; it is made after the resume."""
