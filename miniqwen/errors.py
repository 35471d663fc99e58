"""What ends a command that the user can mend, or interrupts: `UserError`, a Python without the packages, Ctrl-C, a disk
that is full or may not be written.

Promises: every mistake on one screen, once however many processes find it, and an exit status that scripts can read: 2,
unless the error has its own; 1 for a full disk, 130 for Ctrl-C, 141 where nobody reads the output any more. Never a
traceback. Costs: nothing is imported; any Python 3 can read it.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import select
import shutil
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

PACKAGES = ("yaml", "pydantic", "numpy", "torch", "transformers", "accelerate", "datasets", "tqdm", "regex")
OLDEST_PYTHON = (3, 11)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
BROKEN = {errno.EIO, errno.ESTALE, errno.ENXIO}  # a disk that fails, or a server of files that has gone
UNWRITABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as libraries in Rust say it: tokenizers, safetensors
SAME_KEY_PRESS = 1.0  # seconds: a terminal and a launcher may both pass on one Ctrl-C


class UserError(Exception):
    """Mistakes the user can mend, all of them: shown on one screen, exit status 2."""

    exit_status = 2
    of_one_rank = False  # every process finds the same, so one of them says it

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def printable(text: str, keep: str = "") -> str:
    """`text` with its control characters spelled out, but for those to `keep`: a terminal would obey them."""
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs") and char not in keep else char for char in text
    )


@contextlib.contextmanager
def user_errors_exit_2() -> Iterator[None]:
    """Print a `UserError` as a short list on stderr and leave with its status, 2 as a rule.

    So does what the disk refuses, see `disk_refusals_told`; other exceptions pass.
    """
    try:
        with disk_refusals_told():
            yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0" and not error.of_one_rank:
            raise SystemExit(error.exit_status) from None
        count = len(error.problems)
        print(f"error: {'1 problem' if count == 1 else f'{count} problems'}", file=sys.stderr)
        for problem in error.problems:
            print(f"  * {printable(problem, keep=chr(10))}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None


@contextlib.contextmanager
def disk_refusals_told() -> Iterator[None]:
    """A disk that is full or fails, or a place that may not be written, becomes a `UserError`, see `disk_refusal`.

    Where whoever reads the output has gone, as `| head` does, the command leaves without a word.
    """
    try:
        yield
    except BrokenPipeError:
        if not nobody_reads():
            raise
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Exception as error:
        if refused_by_disk(error) is None:
            raise
        number = refused_by_disk(error)
        mended = "make room" if number in FULL else "look at the disk" if number in BROKEN else "mend its permissions"
        advice = f"{mended}, or choose another place"
        raise disk_refusal(error, str(getattr(error, "filename", None) or ""), advice) from None


def refused_by_disk(error: BaseException) -> int | None:
    """The number of the system's error where a disk is full, fails or may not be written; None for other errors."""
    if isinstance(error, UserError):  # it says so already
        return None
    found = OS_ERROR.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    return number if number in FULL | UNWRITABLE | BROKEN else None


def disk_refusal(error: Exception, place: str, advice: str, flag: str = "") -> UserError:
    """What to raise where `place`, which `flag` names, could not be written: how much room there is, and `advice`.

    The status is 1 for a disk that is full or fails, which is no mistake in the command.
    """
    there = next(path for path in (Path(place), *Path(place).absolute().parents) if path.exists())
    free = f"; {shutil.disk_usage(there).free / 1e9:,.2f} GB are free there" if place else ""
    why, file = getattr(error, "strerror", None) or str(error), str(getattr(error, "filename", None) or place)
    why += f": {file}" if file != place else ""
    told = UserError(f"{flag}{' ' * bool(flag)}{place or 'a file'}: cannot be written ({why}{free}); {advice}")
    told.exit_status = 1 if refused_by_disk(error) in FULL | BROKEN else 2
    told.of_one_rank = True
    return told


def nobody_reads() -> bool:
    """Whether stdout is a pipe whose reader has gone; what is still written to it then goes nowhere, without error."""
    watched = select.poll()
    watched.register(1, 0)
    gone = any(event & select.POLLERR for _, event in watched.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return gone


@contextlib.contextmanager
def outliving_its_reader() -> Iterator[None]:
    """Around what a long run says: it goes on where nobody reads it any more."""
    try:
        yield
    except BrokenPipeError:
        if not nobody_reads():
            raise


@contextlib.contextmanager
def shortage_told(*advice: str) -> Iterator[None]:
    """Memory that runs out, on a device or in the machine, becomes a `UserError` with what needs less of it.

    One of this process alone: others may have enough.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        device = type(error).__name__ == "OutOfMemoryError"
        found = " ".join(str(error).split())[:200]
        told = UserError(f"out of memory{'' if device else ' in the machine'}{f': {found}' if found else ''}", *advice)
        told.of_one_rank = True
        raise told from None


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out: torch, which is not imported here, has its own errors for that."""
    told = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and told)


@contextlib.contextmanager
def leaves_at_once() -> Iterator[None]:
    """Around a whole command: where it ends before its end, Python does not wait for threads that wait for a hub.

    Nor for what libraries do at the end of a process: aborting it, with another status than was asked for.
    """
    try:
        yield
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            stream.flush()
    os._exit(code)


def check_python() -> None:
    """A command's first line: end it with status 2 where this Python is too old, or lacks what is imported next.

    What a terminal cannot show is spelled out, and what it sends amiss is replaced, whatever its encoding.
    """
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if getattr(stream, "errors", None) == "strict":
            stream.reconfigure(errors=errors)  # type: ignore[union-attr]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    activate = "activate the environment first (. .venv/bin/activate; ./run_training.sh makes it)"
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        print(f"error: {sys.executable} is Python {version}, and {oldest} is needed: {activate}", file=sys.stderr)
    elif missing:
        print(
            f"error: {sys.executable} has no {', '.join(missing)}: {activate}, "
            "or install the project into this Python (pip install -c constraints.txt -e .)",
            file=sys.stderr,
        )
    else:
        return
    raise SystemExit(2)


def interrupts_end(what_remains: str) -> Callable[[], None]:
    """From now on Ctrl-C and SIGTERM end this process with one line and status 130 or 143, also during imports.

    The line comes at once. Until what is returned is called, behind the imports, the process ends on the spot:
    libraries that are being imported swallow exceptions. Later, what was begun is cleaned up when the main thread comes
    back from a call into a library; a second signal does not wait for that.
    """
    numbers, heard = (signal.SIGINT, signal.SIGTERM), heard_signals()
    told, ending, imported = threading.Event(), threading.Event(), threading.Event()

    def answer() -> None:
        first: float | None = None
        for number in heard:
            if number not in numbers:
                continue
            if first is None:
                first = time.monotonic()
                if os.environ.get("RANK", "0") == "0":
                    say_at_once(f"interrupted: {what_remains}")
                told.set()
            elif time.monotonic() - first > SAME_KEY_PRESS:
                os._exit(128 + number)

    def end(number: int, frame: FrameType | None) -> None:
        if not ending.is_set():  # again, it would interrupt the way out
            ending.set()
            told.wait(1.0)
            if not imported.is_set():
                os._exit(128 + number)
            raise SystemExit(128 + number)

    for number in numbers:
        signal.signal(number, end)
    threading.Thread(target=answer, daemon=True).start()
    return imported.set


def heard_signals() -> Iterator[int]:
    """Signals as they come, for a thread: handlers in Python wait until the main thread's call into a library ends."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    return iter(lambda: os.read(reading, 1)[0], 0)


def say_at_once(line: str) -> None:
    """A line on stderr, past all buffers, where a progress bar may stand; nowhere if the terminal is gone."""
    with contextlib.suppress(OSError):
        os.write(2, (("\r\x1b[K" if os.isatty(2) else "") + line + "\n").encode())
