"""A script whose n-th operation on a folder's files fails, as SQLite's tests have it.

    python faulty_disk.py '{"folder": F, "at": 17, "how": "ENOSPC", "lasting": false, "told": FILE}' SCRIPT FLAGS

Operations that change something below `folder` are counted: a file is opened to be written, written, cut, synced,
renamed or removed, a folder is made or removed. Number `at` (0: none) raises the error `how`, or kills the process; so
do all behind it if `lasting`. FILE hears of each operation, a line each, and which one `fired`. Weights are written by
a library that is not Python: an error there leaves half a file, as a full disk does.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import runpy
import signal
import sys
import threading
from pathlib import Path
from typing import Any


class FaultyDisk:
    """Counts, and fails where it is to."""

    def __init__(self, folder: str, at: int, how: str, lasting: bool, told: str) -> None:
        self._folder, self._at, self._how, self._lasting = os.path.realpath(folder), at, how, lasting
        self._told = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._count, self._lock = 0, threading.Lock()

    def covers(self, path: Any) -> bool:
        if not isinstance(path, (str, os.PathLike)):
            return False
        where = os.path.realpath(os.path.dirname(os.path.abspath(os.fspath(path))))
        return where == self._folder or where.startswith(f"{self._folder}{os.sep}")

    def count(self, what: str, path: Any) -> None:
        """Before an operation; raises `OSError`, or does not return, where it is to fail."""
        if not self.covers(path):
            return
        with self._lock:
            self._count += 1
            fires = self._at and (self._count == self._at or (self._lasting and self._count > self._at))
            os.write(self._told, f"{'fired ' * bool(fires)}{what} {os.path.basename(os.fspath(path))}\n".encode())
        if fires and self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fires:
            number = getattr(errno, self._how)
            raise OSError(number, os.strerror(number), os.fspath(path))

    def install(self) -> None:
        """From now on, for the whole process."""
        self._install_open()
        for name in ("mkdir", "rmdir", "unlink", "remove", "truncate", "rename", "replace"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        opened, synced = os.open, os.fsync

        def faulty_os_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
                self.count("open", path)
            return opened(path, flags, *more, **named)

        def faulty_fsync(handle: Any) -> None:
            number = handle if isinstance(handle, int) else handle.fileno()
            path = os.readlink(f"/proc/self/fd/{number}")
            self.count("sync", path if os.path.isfile(path) else os.path.join(path, "."))
            synced(handle)

        os.open, os.fsync = faulty_os_open, faulty_fsync
        self._install_weights()

    def _counted(self, name: str, real: Any) -> Any:
        def faulty(path: Any, *more: Any, **named: Any) -> Any:
            inside = named.get("dir_fd")
            whole = path if inside is None else os.path.join(os.readlink(f"/proc/self/fd/{inside}"), path)
            self.count(name, whole)
            return real(path, *more, **named)

        return faulty

    def _install_open(self) -> None:
        disk, real = self, io.open

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                disk.count("write", str(self.name))
                return super().write(data)

        def faulty_open(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, closefd: bool = True, opener: Any = None,
        ) -> Any:  # fmt: skip
            if not (set(mode) & set("wax+") and self.covers(file)):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            self.count("open", file)
            raw = Raw(os.fspath(file), mode.replace("b", "").replace("t", ""), closefd, opener)
            whole: Any = raw if buffering == 0 else io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return whole if "b" in mode else io.TextIOWrapper(whole, encoding, errors, newline, buffering == 1)

        io.open = faulty_open  # type: ignore[assignment]
        builtins.open = faulty_open  # type: ignore[assignment]

    def _install_weights(self) -> None:
        import safetensors.torch
        from safetensors import SafetensorError

        real = safetensors.torch.serialize_file

        def faulty_serialize(tensors: Any, path: Any, *more: Any, **named: Any) -> None:
            self.count("open", path)
            real(tensors, path, *more, **named)
            try:
                self.count("write", path)
            except OSError as error:
                os.truncate(path, os.path.getsize(path) // 2)
                raise SafetensorError(f"I/O error: {error.strerror} (os error {error.errno})") from None

        safetensors.torch.serialize_file = faulty_serialize


if __name__ == "__main__":
    FaultyDisk(**json.loads(sys.argv[1])).install()
    sys.argv = sys.argv[2:]
    sys.path[0] = str(Path.cwd())
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")
