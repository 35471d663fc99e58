"""Where a run is written, how often, and to whom it is told.

Promises: nothing that is already there may be lost without being asked for. Costs: a look into the folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.flags import flag
from miniqwen.config.models import MODEL_FILES
from miniqwen.config.task import TaskFlags
from miniqwen.config.watching import WatchFlags
from miniqwen.lock import LOCK_FILE

SAMPLES_FILE = "samples.jsonl"  # what the model wrote at evaluations
PROFILE_FOLDER = "profile"  # traces of updates
BAD_UPDATES_FILE = "bad_updates.json"  # what the updates were made of that were not finite
REPORT_FILE = "report.html"  # the run on one page
PREVIEW_FILE = "preview.jsonl"  # what the first updates will be made of
STOP_FILE = "STOP"  # touched in --output_dir, it ends the run
# by themselves: W&B writes there before a run has begun, and a run that was killed then leaves its lock
WORTHLESS = (STOP_FILE, "wandb", LOCK_FILE, PREVIEW_FILE)
# Flags that say how a start is made, not what the run does.
OF_A_START = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "hints", "profile", "local_rank")
# What a run leaves in its folder: all that --overwrite_output_dir deletes there.
LEFT_BY_A_RUN = (
    STOP_FILE, PREVIEW_FILE, PROFILE_FOLDER, BAD_UPDATES_FILE, "config.yaml", "metrics.jsonl", SAMPLES_FILE,
    "trainer_state.json", "events.out.tfevents.*", "wandb", REPORT_FILE, "checkpoint-*", "aside-checkpoint-*", ".*.tmp",
    *MODEL_FILES,
)  # fmt: skip


@dataclass(frozen=True)
class OutputFlags(WatchFlags, TaskFlags):
    """The output folder, and what is continued in it."""

    output_dir: str | None = flag(None, "where the run is written", group="output", path=True, required=True)
    overwrite_output_dir: bool = flag(
        False, "delete what an earlier run left in --output_dir, and start afresh", group="output"
    )
    resume_from_checkpoint: str = flag(
        "none", "auto (or True): continue from the newest complete checkpoint in --output_dir; a checkpoint's path; or "
        "none", group="output", path=True, spelled={"True": "auto", "true": "auto", "False": "none", "false": "none"},
        metavar="auto|PATH|none")  # fmt: skip

    preview: int | None = flag(
        None, "show the first N updates as the model will get them, write them to preview.jsonl in --output_dir, and "
        "stop before a model is loaded", group="output", least=1)  # fmt: skip
    profile: int | None = flag(
        None, "trace N updates behind the first two, and write what Perfetto (ui.perfetto.dev) opens to profile/ in "
        "--output_dir", group="output", least=1)  # fmt: skip
    hints: bool = flag(True, "say at the end which command comes next", group="output")

    logging_steps: int | float = flag(
        10, "updates between two lines of metrics, or a fraction of all updates", group="output", least=1, metavar="N"
    )
    save_steps: int | float = flag(
        500, "updates between checkpoints, or a fraction of all; the last update is always saved", group="output",
        least=1, metavar="N")  # fmt: skip
    async_save: bool = flag(
        False, "write checkpoints in the background: training goes on after a copy is made, in the memory of rank 0 "
        "(parameters and optimizer, in fp32)", group="output")  # fmt: skip
    save_total_limit: int | None = flag(
        None, "keep the newest N checkpoints (and the best one)", group="output", least=1
    )
    log_model: str = flag(
        "none", "models that W&B keeps: best, the final one (with --load_best_model_at_end the best); all, every "
        "checkpoint too", group="output", choices=("none", "best", "all"))  # fmt: skip

    @property
    def resumes_model_path(self) -> bool:
        if self.resume_from_checkpoint != "auto" or not self.output_dir or not self.model_path:
            return False
        return Path(self.model_path).resolve() == Path(self.output_dir).resolve()

    def problems(self) -> list[str]:
        found = [*super().problems(), *self._folder_problems()]
        if self.allow_data_change and self.resume_from_checkpoint == "none":
            found.append("--allow_data_change belongs to --resume_from_checkpoint")
        if self.log_model != "none" and "wandb" not in self.trackers:
            found.append(f"--log_model {self.log_model}: W&B keeps models, add --report_to wandb")
        if self.log_model == "all" and self.async_save:
            found.append("--log_model all copies each checkpoint as it is written: leave --async_save out")
        return found

    def _folder_problems(self) -> list[str]:
        """Nothing that is already there may be lost without being asked for."""
        if not self.output_dir:
            return []
        folder, resume = Path(self.output_dir), self.resume_from_checkpoint
        if folder.exists() and not folder.is_dir():
            return [f"--output_dir {folder} is a file, not a folder"]
        found = []
        if resume not in ("none", "auto"):
            if not (Path(resume) / "manifest.json").is_file():
                found.append(f"--resume_from_checkpoint {resume}: no complete checkpoint (no manifest.json there)")
            if self.overwrite_output_dir:
                found.append(
                    "--overwrite_output_dir would delete what --resume_from_checkpoint PATH continues: give one"
                )
        if self.overwrite_output_dir and self.model_path and folder.resolve() in (
            Path(self.model_path).resolve(), *Path(self.model_path).resolve().parents
        ):  # fmt: skip
            found.append(
                f"--overwrite_output_dir would delete the model in --model_path {self.model_path}: "
                "choose another --output_dir"
            )
        elif (
            folder.is_dir() and any(p.name not in WORTHLESS for p in folder.iterdir()) and not self.overwrite_output_dir
        ):
            inside = Path(resume).resolve().parent == folder.resolve()
            continues = inside or (
                resume == "auto" and (_has_checkpoint(folder) or not (folder / "config.json").exists())
            )
            if not continues:
                found.append(
                    f"--output_dir {folder} is not empty: continue its run with --resume_from_checkpoint auto, "
                    "or delete it with --overwrite_output_dir"
                )
        return found


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoint-*/manifest.json"))
