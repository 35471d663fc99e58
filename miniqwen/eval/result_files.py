"""What an evaluation leaves: `<data set>.json`, and until that is whole what has been scored so far.

Promises: a file of results is whole or absent; an evaluation that was killed goes on where it was, on any number of
processes; results of another evaluation (other model, prompts, precision or way of answering) are never mixed in nor
overwritten unasked. Costs: a line of JSON a question while it runs, flushed batch by batch, one file a process.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from miniqwen.errors import UserError, disk_refusal
from miniqwen.files import file_hash, make_folder, parsed, read_json, whole_lines, write_json, write_text
from miniqwen.lock import FolderLock


def model_fingerprint(folder: str | Path) -> str:
    """A hash of a model's configuration and weights."""
    total = hashlib.sha256()
    for file in sorted(Path(folder).glob("*")):
        if file.name == "config.json" or file.suffix == ".safetensors":
            total.update(f"{file.name} {file_hash(file)}\n".encode())
    return total.hexdigest()


class ResultFile:
    """The results of one data set in `folder`; `identity` is a hash of all that decides them."""

    def __init__(self, folder: Path, stem: str, identity: str, rank: int) -> None:
        self.path = folder / f"{stem}.json"
        self._identity, self._stem = identity, stem
        self._own = folder / f".{stem}.partial-{rank}.jsonl"
        self._lines: Any = None
        # others may write other data sets' results beside them
        self._lock = FolderLock(folder, "eval_loop.py", file=f".{stem}.lock")

    def begin(self, overwrite: bool, choices: Sequence[int | None], alone: Sequence[int]) -> dict[int, Any]:
        """What is known of each request by its index, on the process that writes.

        `choices` [requests]: how many scores each has; None where the model writes a text. `alone` [questions], or
        empty: the request of each question's choices behind nothing. Raises `UserError` while another process writes
        them, and for damaged ones or those of another evaluation, which `overwrite` deletes.
        """
        self._lock.acquire()
        other = self._other()
        if other and overwrite:
            for file in (self.path, *self._partial(), *self._predictions()):
                file.unlink(missing_ok=True)
        elif other:
            raise UserError(
                f"{other} holds the results of another evaluation (another model, other questions, prompts or flags), "
                "or is damaged: choose another --output_dir, or --overwrite_output_dir to replace them"
            )
        known: dict[int, Any] = {}
        for file in self._partial():
            known |= _answers(file, choices, alone)
        if known:  # in one file: other processes may have other numbers now
            kept = self.path.parent / f".{self._stem}.partial-kept.jsonl"
            lines = [{"identity": self._identity}] + [{"index": i, "found": known[i]} for i in sorted(known)]
            write_text(kept, "".join(json.dumps(line) + "\n" for line in lines))
            for file in self._partial():
                if file != kept:
                    file.unlink()
        if self.path.exists():
            known |= _answers(self.path, choices, alone)
        return known

    def add(self, found: Mapping[int, Any]) -> None:
        """Keep what a batch of this process gave."""
        with _disk_errors(self._own):
            if self._lines is None:
                make_folder(self._own.parent)
                self._lines = self._own.open("w", encoding="utf-8")
                self._lines.write(json.dumps({"identity": self._identity}) + "\n")
            for index, value in found.items():
                self._lines.write(json.dumps({"index": index, "found": value}) + "\n")
            self._lines.flush()

    def finish(self, described: Mapping[str, Any]) -> None:
        """Write the results on the process that writes, in whose folder nothing unfinished is left."""
        with _disk_errors(self.path):
            write_json(self.path, {**described, "identity": self._identity})
        self.close()
        for file in self._partial():
            file.unlink()

    def close(self) -> None:
        """Close this process's own file, and remove it: all it holds is known to the one that writes."""
        if self._lines is not None:
            self._lines.close()
            self._own.unlink(missing_ok=True)
            self._lines = None
        self._lock.release()

    def _partial(self) -> list[Path]:
        return sorted(self.path.parent.glob(f".{glob.escape(self._stem)}.partial-*.jsonl"))

    def _predictions(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{glob.escape(self._stem)}_predictions.*"))

    def _other(self) -> Path | None:
        """A file there that is not of this evaluation."""
        for file in (self.path, *self._partial()):
            if file.exists() and self._identity_of(file) != self._identity:
                return file
        return None

    def _identity_of(self, file: Path) -> str | None:
        try:
            if file != self.path:
                lines = _whole_lines(file)
                return lines[0].get("identity") if lines else self._identity  # killed before the first line
            found: str | None = read_json(file).get("identity")
        except (OSError, ValueError, AttributeError):
            return None
        return found


@contextlib.contextmanager
def _disk_errors(file: Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be written, is told with the file's name."""
    try:
        yield
    except OSError as error:
        advice = "what was scored until then is kept, and the same command goes on from there"
        raise disk_refusal(error, str(file), advice) from None


def _whole_lines(file: Path) -> list[dict[str, Any]]:
    return [parsed(line) for line in whole_lines(file).splitlines()]


def _answers(file: Path, choices: Sequence[int | None], alone: Sequence[int]) -> dict[int, Any]:
    """What a file of this evaluation holds of it; raises `UserError` where that is not what was written there."""
    try:
        if file.suffix == ".jsonl":
            found = {line["index"]: line["found"] for line in _whole_lines(file)[1:]}
        else:
            samples = read_json(file)["samples"]
            found = {i: one["generated" if choices[i] is None else "scores"] for i, one in enumerate(samples)}
            found |= {alone[i]: one["unconditional_scores"] for i, one in enumerate(samples) if alone}
        whole = all(index >= 0 and _fits(value, choices[index]) for index, value in found.items())
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        whole = False
    if not whole:
        raise UserError(f"{file} is damaged: delete it, and its questions are asked again")
    return found


def _fits(found: Any, choices: int | None) -> bool:
    """Whether it is what a model answers: a text, or a score of each choice."""
    if choices is None:
        return isinstance(found, str)
    return isinstance(found, list) and len(found) == choices and all(isinstance(score, float) for score in found)
