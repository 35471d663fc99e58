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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from miniqwen.errors import disk_refusal, refused_by_disk

DEEPEST = 100  # lists and mappings within each other that a file of YAML may have


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
        if file.name == last:
            sync(folder)  # or a power cut may leave its new name beside an old file
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


def regular(path: Path) -> Path:
    """`path`, to be read; raises `OSError` where it leads to a pipe or a device, which may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Is no regular file", str(path))
    return path


def check_regular(folder: Path) -> None:
    """Raises `OSError` where something in a folder would be read for ever: a library opens what has the right name."""
    for path in folder.iterdir():
        if not path.is_dir():
            regular(path)


def read_json(path: Path) -> Any:
    """What a file of JSON holds; raises `OSError` or `ValueError`, whatever is wrong with it."""
    return parsed(regular(path).read_text(encoding="utf-8"))


def read_yaml(path: Path) -> Any:
    """What a file of YAML holds, nothing but plain values; raises `OSError` or `ValueError`, as `read_json` does."""
    text, loader, depth = regular(path).read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader), 0
    try:
        for event in yaml.parse(text, loader):  # the library written in C crashes where it is nested too deep
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError("nested too deep")
        return yaml.load(text, loader)
    except Exception as error:  # the library's own, and whatever its values' types raise
        raise ValueError(" ".join(str(error).split())) from None


def parsed(text: str | bytes) -> Any:
    """What JSON says; raises `ValueError` where it is none, and where it is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def sealed(value: Mapping[str, Any]) -> bytes:
    """JSON that says by a hash of its own whether it was damaged."""
    text = json.dumps(value)
    return json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "sealed": text}).encode()


def unsealed(path: Path) -> dict[str, Any]:
    """What was `sealed` in a file; raises `OSError` or `ValueError`."""
    try:
        found = read_json(path)
        text = found["sealed"]
        if hashlib.sha256(text.encode()).hexdigest() == found["sha256"]:
            return dict(parsed(text))
    except (KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path} is not what was written")


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with regular(Path(path)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_lines(path: Path) -> bytes:
    """What a file of lines holds, without what a killed process left of its last one."""
    written = regular(path).read_bytes()
    return written[: written.rfind(b"\n") + 1]


def cut_torn_line(path: Path) -> None:
    """Cut off what a killed process left of the last line, if the file is there."""
    if path.exists():
        whole = whole_lines(path)
        if len(whole) != path.stat().st_size:
            os.truncate(path, len(whole))


def encodable(text: str) -> str:
    """JSON can spell halves of surrogate pairs, which no file in UTF-8 can hold: they become question marks.

    The very same text where there are none.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text
