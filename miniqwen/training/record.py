"""What a run has left so far, read for its page: metrics, state, lives, texts it wrote, bad updates, evaluations of it.

Promises: only reads; a run that is still on is read up to its last whole line, and each line once, however often it is
asked. What counts is `history`'s to say. Costs: see curves.py; the files are read whole at first, then what was added.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from miniqwen.checkpoints.checkpoint import ASIDE
from miniqwen.config.flags import RECORDED
from miniqwen.config.output import BAD_UPDATES_FILE, SAMPLES_FILE
from miniqwen.errors import UserError
from miniqwen.files import parsed, read_json, read_yaml, regular, whole_lines
from miniqwen.training.curves import Curves
from miniqwen.training.health import Notice, Watch
from miniqwen.training.history import final_history, read_lines

LARGEST_RESULT = 64 * 2**20  # bytes of a file of results that is still read
NOTICES = 200  # that are kept, and completions of so many evaluations: the first and the last ones
EVALUATIONS = 40


class Record:
    """One run, in `folder`; `flags` and `recorded` are what its config.yaml says."""

    def __init__(self, folder: Path, flags: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
        self.folder, self.flags, self.recorded = folder, flags, recorded
        self._forget()

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The run that left its config.yaml in `folder`; raises `UserError` where there is none that can be read."""
        file = folder / "config.yaml"
        try:
            flags = read_yaml(file)
            recorded = flags.pop(RECORDED, None) or {}
        except (OSError, ValueError, AttributeError) as error:
            why = " ".join(str(error).split())
            raise UserError(f"{file}: cannot be read as a run's configuration ({why}); give an --output_dir") from None
        found = cls(folder, flags, recorded)
        found.refresh()
        return found

    @property
    def lives(self) -> list[Mapping[str, Any]]:
        """Each start of the run, the last one last."""
        return list(self.recorded.get("lives", ()))

    def _forget(self) -> None:
        self.curves, self.watch = Curves(), Watch()
        self.notices: list[Notice] = []
        self.last: dict[str, Any] = {}  # the last line of training
        self.lines = 0
        self._read_until: int | None = None
        self._samples_until = 0
        self.written: dict[int, list[dict[str, Any]]] = {}  # what the model wrote: {update: its samples}

    def refresh(self) -> None:
        """Read what was added since the last time; raises `UserError` for lines that are none."""
        file = self.folder / "metrics.jsonl"
        if file.exists():
            if self._read_until is None or file.stat().st_size < self._read_until:
                self._forget()
                self._read_until = len(whole_lines(file))
                lines: Iterable[dict[str, Any]] = final_history(read_lines(file), self.lives)
            else:  # one life only goes forward
                lines, self._read_until = _added(file, self._read_until)
            for line in lines:
                self._see(line)
        samples = self.folder / SAMPLES_FILE
        if samples.exists():
            rows, self._samples_until = _added(samples, self._samples_until)
            self._see_samples(rows)

    def _see(self, line: dict[str, Any]) -> None:
        self.curves.add(line)
        self.lines += 1
        self.last = line if "loss" in line else self.last
        self.notices += self.watch.see(line)
        if len(self.notices) > NOTICES:
            del self.notices[NOTICES // 2]

    def _see_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """A later start of the run may have told of an update once more: then its first sample comes again."""
        for row in rows:
            step, sample = int(row["step"]), {name: row[name] for name in row if name != "step"}
            so_far = self.written.get(step, [])
            again = any(one["prompt"] == sample["prompt"] for one in so_far)
            self.written = {at: kept for at, kept in self.written.items() if at <= step}
            self.written[step] = [sample] if again else [*so_far, sample]
            if len(self.written) > EVALUATIONS:
                del self.written[list(self.written)[EVALUATIONS // 2]]

    def state(self) -> dict[str, Any]:
        """trainer_state.json; nothing where it is not there."""
        return _json(self.folder / "trainer_state.json") or {}

    def bad_updates(self) -> list[dict[str, Any]]:
        """Those of bad_updates.json, with the first text that they were given."""
        found = (_json(self.folder / BAD_UPDATES_FILE) or {}).get("updates", [])
        return [
            {"update": one["update"], "grad_norm": one["grad_norm"], "text": _first_text(one["ranks"])} for one in found
        ]

    def evaluations(self) -> list[dict[str, Any]]:
        """Results of eval_loop.py for this run's models: those in its folder, or in an `evaluation...` beside it."""
        beside = sorted(self.folder.resolve().parent.glob("evaluation*"))
        files = [file for place in (self.folder, *beside) for file in result_files(place)]
        found = (result(file) for file in files)
        return [one for one in found if one is not None and self.owns(one)]

    def owns(self, found: Mapping[str, Any]) -> bool:
        """Whether results are of a model in this folder. A relative path counts from here, or from above the folder."""
        given, own = Path(str(found.get("model_path"))), self.folder.resolve()
        tried = {start / given for start in (Path.cwd(), *own.parents)}
        return any(own == path or own in path.parents for path in tried if path.is_dir())


def result_files(place: Path) -> list[Path]:
    """Files that may be results: `place` itself, or those up to two folders below it."""
    if place.is_file():
        return [place]
    tried = [*place.glob("*.json"), *place.glob("*/*.json")]
    return sorted(file for file in tried if not file.parent.name.startswith(("checkpoint-", ASIDE, ".")))


def result(file: Path) -> dict[str, Any] | None:
    """What eval_loop.py wrote there, with its `file` and how old it is; None for another file."""
    try:
        with regular(file).open("rb") as opened:
            if file.stat().st_size > LARGEST_RESULT or b'"dataset"' not in opened.read(64):
                return None
        found = read_json(file)
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict) or not _has_figures(found):
        return None
    return {
        **found,
        "file": str(file.resolve()),
        "written": time.strftime("%Y-%m-%d %H:%M", time.gmtime(file.stat().st_mtime)),
    }


def _has_figures(found: Mapping[str, Any]) -> bool:
    """Whether what a page shows of results is there, as eval_loop.py writes it."""
    try:
        shares = [found.get("accuracy"), found.get("accuracy_norm"), *(found.get("confidence_interval") or ())]
        places = list((found.get("by_position") or {}).values())
        shares += [place[name] for place in places for name in ("accuracy", "predicted")]
        shares += [one["accuracy"] for one in found.get("by_question_length") or ()]
        calibration = found.get("calibration")
        bins = calibration["bins"] if calibration else []
        shares += [one[name] for one in bins for name in ("low", "high", "confidence", "accuracy")]
        numbers = [found["num_examples"], *(calibration[name] for name in ("ece", "brier") if calibration)]
        numbers += [one["count"] for one in (*bins, *places)]
        whole = all(isinstance(sample, dict) for sample in found.get("samples", ()))
        return (
            whole and "dataset" in found and isinstance(found["model_path"], str)
            and all(share is None or 0 <= share <= 1 for share in shares)
            and all(isinstance(number, (int, float)) for number in numbers)
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError):
        return False


def _added(file: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of JSON behind byte `start`, and where the next ones begin."""
    with file.open("rb") as opened:
        opened.seek(start)
        added = opened.read()
    whole = added[: added.rfind(b"\n") + 1]
    return [parsed(line) for line in whole.splitlines()], start + len(whole)


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _first_text(ranks: Iterable[Mapping[str, Any]]) -> str:
    bad = [batch for rank in ranks for batch in rank["micro_batches"]]
    chosen = next((batch for batch in bad if not batch["finite"]), bad[0] if bad else {"texts": [""]})
    return str(next(iter(chosen["texts"]), ""))
