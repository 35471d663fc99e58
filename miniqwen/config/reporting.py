"""What the user asked of `python -m miniqwen.report`.

Promises: as flags.py; nothing but an earlier page is replaced. Costs: a look into the folders, and at the beginnings of
the JSON files there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.flags import Flags, flag
from miniqwen.config.output import REPORT_FILE
from miniqwen.lock import writer_in

MARK = '<meta name="generator" content="MiniQwen report">'  # by which a page of ours is known


@dataclass(frozen=True)
class ReportConfig(Flags):
    """Flags of `python -m miniqwen.report`."""

    example = "runs/demo/sciq_finetuned runs/demo/evaluation"

    paths: tuple[str, ...] = flag(
        (), "output folders of runs; also files of results of eval_loop.py, or folders with such", group="what",
        positional=True, path=True)  # fmt: skip
    output: str | None = flag(
        None, "where the page is written (default: report.html in the run's folder, or here for several)", group="what",
        path=True)  # fmt: skip

    @property
    def runs(self) -> list[Path]:
        return [Path(path) for path in self.paths if (Path(path) / "config.yaml").is_file()]

    @property
    def evaluations(self) -> list[Path]:
        return [Path(path) for path in self.paths if Path(path) not in self.runs]

    @property
    def written_to(self) -> str:
        if self.output:
            return self.output
        return str(self.runs[0] / REPORT_FILE) if len(self.runs) == 1 else REPORT_FILE

    def problems(self) -> list[str]:
        found = [*super().problems(), *(["say which run: its --output_dir"] if not self.paths else [])]
        for path in self.evaluations:
            if not path.exists():
                found.append(f"{path}: no such file or folder")
            elif not has_results(path):
                found.append(f"{path}: neither a run (no config.yaml) nor results of eval_loop.py are there")
        resolved = [path.resolve() for path in self.runs]
        found += [f"{path}: is named twice" for path in dict.fromkeys(resolved) if resolved.count(path) > 1]
        output = Path(self.written_to)
        if output.is_dir():
            found.append(f"--output {output}: is a folder; give a file in it, such as {output / REPORT_FILE}")
        elif output.exists() and MARK not in _beginning(output, 4096):
            found.append(f"--output {output}: is there, and no page of this command: choose another name")
        if not self.output and len(self.runs) == 1 and (writer := writer_in(self.runs[0])):
            found.append(
                f"{self.runs[0]}: {writer} is writing there, and {REPORT_FILE} with it; --output FILE is for a page of "
                "this moment"
            )
        return found


def has_results(path: Path) -> bool:
    """Whether it is a file of results as eval_loop.py writes it, or such a file is in it or in a folder of it."""
    files = [path] if path.is_file() else [*path.glob("*.json"), *path.glob("*/*.json")]
    return any('"dataset"' in _beginning(file, 64) for file in files)


def _beginning(file: Path, size: int) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(size).decode("utf-8", "replace")
    except OSError:
        return ""
