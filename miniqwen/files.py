"""How a file is written whole, made durable, hashed, and read where a killed process may have torn it.

Promises: what `write_*` wrote is there whole or not at all, and survives a power cut: a temporary name beside the file,
a sync, a rename, a sync of the folder. Costs: two syncs a file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from miniqwen.errors import disk_refusal, refused_by_disk


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """A binary file to write; it gets its name when the block ends, and is removed when the block fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # writing does not say where
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Whole or not at all: a reader never sees half a file, and the file survives a power cut."""
    with written_whole(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """The same for text in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """The same for JSON, for people to read."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def disk_errors_told(folder: Path, advice: str) -> Iterator[None]:
    """Around what is written in `folder`: a full disk, or a place that may not be written, is one screen with `advice`.

    Raises `UserError` with status 1: it is no mistake in the command.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and refused_by_disk(error) is None:
            raise
        problem = disk_refusal(error, str(folder), advice)
        problem.exit_status, problem.of_one_rank = 1, False
        raise problem from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably: what is written into a folder is lost with it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # as /proc says it
        raise PermissionError(errno.EPERM, "no folder can be made there", str(folder)) from None
    for path in missing:
        sync(path.parent)


def publish(written: Path, folder: Path, last: str, instead_of: Iterable[str]) -> None:
    """Give the files in `written`, a folder beside or in `folder`, their place in `folder`; `written` is gone then.

    A folder that is not there yet appears whole. In one that is, the file `last` makes the others count: it goes first
    and comes last; what else there fits the patterns `instead_of` goes in between.
    """
    sync_all(written)
    files = sorted(written.iterdir(), key=lambda path: path.name == last)
    if not folder.exists():
        make_folder(folder.parent)
        written.rename(folder)
        sync(folder.parent)
        return
    (folder / last).unlink(missing_ok=True)
    sync(folder)
    names = {file.name for file in files}
    for old in {path for pattern in instead_of for path in folder.glob(pattern) if path.name not in names}:
        old.unlink()
    for file in files:
        file.replace(folder / file.name)
    written.rmdir()
    sync(folder)


def sync(path: Path) -> None:
    """Make a file, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Make a folder of files durable, but for its own name."""
    for file in folder.iterdir():
        sync(file)
    sync(folder)


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_lines(path: Path) -> bytes:
    """What a file of lines holds, without what a killed process left of its last one."""
    written = path.read_bytes()
    return written[: written.rfind(b"\n") + 1]


def cut_torn_line(path: Path) -> None:
    """Cut off what a killed process left of the last line, if the file is there."""
    if path.exists():
        whole = whole_lines(path)
        if len(whole) != path.stat().st_size:
            os.truncate(path, len(whole))


def printable(text: str, keep: str = "") -> str:
    """`text` with its control characters spelled out, but for those to `keep`: a terminal would obey them."""
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in ("Cc", "Cs") and char not in keep else char for char in text
    )


def encodable(text: str) -> str:
    """JSON can spell halves of surrogate pairs, which no file in UTF-8 can hold: they become question marks.

    The very same text where there are none.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text
