"""One writer at a time: a file in a folder says who writes there, also to machines that share the disk.

Promises: a second command that would write the same is refused with the owner's name; a lock whose owner is gone is
taken over, at once where its process can be asked, and else after some beats that did not come; an owner that was taken
over (it was suspended for long) is told before it writes on. A folder that was copied with its lock is nobody's.
Costs: a small file, which a thread touches every few seconds; at most `PATIENCE` seconds where the owner ran elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from miniqwen.errors import UserError, disk_refusal
from miniqwen.files import make_folder

LOCK_FILE = ".lock"
BEAT = 3.0  # seconds between two signs of life
PATIENCE = 20.0  # seconds without one, watched here, after which an owner that cannot be asked is gone
LOOK = 0.5  # seconds between two looks meanwhile


class LockLost(UserError):
    """Another process has taken over; whatever this one would still write is the other's by now."""

    exit_status = 1  # no mistake in the command


class FolderLock:
    """The right to write in `folder`, or what `file` there stands for; `flag` names the folder in errors."""

    def __init__(self, folder: Path, program: str, flag: str = "--output_dir", file: str = LOCK_FILE) -> None:
        self._folder, self._path, self._flag = folder, folder / file, flag
        self._owner = {"program": program, **_this_process(), "token": uuid.uuid4().hex}
        self._handle: int | None = None
        self._over = threading.Event()

    def acquire(self) -> None:
        """Wait until the owner, if any, shows whether it lives; raises `UserError` if it does, or for a folder that
        cannot be written."""
        try:
            make_folder(self._folder)
            while not self._created():
                self._take_from_the_gone()
        except OSError as error:
            raise disk_refusal(error, str(self._folder), "choose another place", self._flag) from None
        threading.Thread(target=self._beat, name="lock", daemon=True).start()
        atexit.register(self.release)

    def release(self) -> None:
        """Let it go, unless it is another's by now; the end of the process does so too."""
        self._over.set()
        with contextlib.suppress(OSError):
            if self._handle is not None and _read(self._path)[0] == self._owner:
                self._path.unlink()

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self) -> None:
        """Before writing: raises `LockLost` if another process has taken over, or may have: one that has ended since
        leaves no file, no more than a folder that was deleted and made anew."""
        owner, seen = _read(self._path)
        if seen is None:
            raise LockLost(
                f"{self._path} is gone: the folder was deleted, or another process took over while this one gave no "
                "sign of life (suspended?), and has ended; nothing more is written"
            )
        if owner is not None and owner != self._owner:
            raise LockLost(
                f"{self._folder}: {_name(owner)} has taken over, as this process gave no sign of life for long "
                "(suspended?); nothing more is written"
            )

    def _created(self) -> bool:
        """Whether the file is ours now; it is another's if it was there."""
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        self._handle = handle
        self._owner["inode"] = os.fstat(handle).st_ino
        os.write(handle, json.dumps(self._owner).encode())
        os.fsync(handle)
        return True

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._handle)  # type: ignore[arg-type]

    def _take_from_the_gone(self) -> None:
        """Remove the file of an owner that is gone; raises `UserError` if it lives."""
        owner, seen = _read(self._path)
        if seen is None:
            return
        if _lives_on(self._path, owner, seen):
            raise UserError(
                f"{self._flag} {self._folder}: {_name(owner)} is writing there; wait for it, stop it, or choose "
                "another folder"
            )
        with _in_turn(self._folder):  # two that find an owner gone must not remove each other's file
            if _read(self._path)[1] == seen:
                self._path.unlink()
                print(f"{self._folder}: {_name(owner)} is gone without having let go of it: taking over", flush=True)


def writer_in(folder: Path) -> str | None:
    """Who is writing in a folder now, for people; None for nobody. Nothing is written there to find out."""
    owner, seen = _read(folder / LOCK_FILE)
    return _name(owner) if seen and _lives_on(folder / LOCK_FILE, owner, seen) else None


def _lives_on(path: Path, owner: dict[str, Any] | None, seen: tuple[int, int]) -> bool:
    """Whether an owner lives. One that cannot be asked has to touch the file while we watch: only our own clock counts,
    as machines' clocks differ."""
    lives = _lives(owner, seen)
    if lives is not None:
        return lives
    print(f"{path.parent} is {_name(owner)}'s: waiting {PATIENCE:.0f} s for a sign of life", flush=True)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(LOOK)
        if (now := _read(path)[1]) != seen:
            return now is not None
    return False


def _read(path: Path) -> tuple[dict[str, Any] | None, tuple[int, int] | None]:
    """(who owns a lock, if that can be read; its inode and when it was last touched), (None, None) if there is none.

    It is opened each time: a network's file system may otherwise answer from memory.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read()
    except FileNotFoundError:
        return None, None
    try:
        owner = json.loads(content)
        return (owner if isinstance(owner, dict) else None), (status.st_ino, status.st_mtime_ns)
    except ValueError:  # it is just being written
        return None, (status.st_ino, status.st_mtime_ns)


def _lives(owner: dict[str, Any] | None, seen: tuple[int, int]) -> bool | None:
    """Whether an owner lives; None if its process cannot be asked from here, or may be another one's by now."""
    if owner is None or owner.get("machine") != this_machine():
        return None
    try:
        process = psutil.Process(owner["pid"])
        alive = process.status() != psutil.STATUS_ZOMBIE
        same = abs(process.create_time() - owner["began"]) < 1
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None
    return True if alive and same and owner.get("inode") == seen[0] else None if alive else False


def _this_process() -> dict[str, Any]:
    """Who this is, for people and for `_lives`."""
    pid, began = os.getpid(), psutil.Process().create_time()
    job = os.environ.get("SLURM_JOB_ID")
    return {"host": platform.node(), "pid": pid, "began": began, "machine": this_machine()} | (
        {"job": job} if job else {}
    )


def this_machine() -> list[str]:
    """What processes share that can see each other: containers of one machine may have the same name."""
    found = [platform.node()]
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        found += [boot, str(Path("/proc/self/ns/pid").readlink())]
    return found


def _name(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "another process"
    try:
        since = datetime.fromtimestamp(owner["began"]).strftime("%Y-%m-%d %H:%M:%S")
        job = f", job {owner['job']}" if "job" in owner else ""
        return f"{owner['program']} (process {owner['pid']} on {owner['host']}, since {since}{job})"
    except (KeyError, TypeError, ValueError, OverflowError):
        return "another process"


@contextlib.contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """One process after the other, where the file system can do that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
