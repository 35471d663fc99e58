"""What survives: how far a run is, its parameters and its optimizer, in one folder that belongs to no machine.

Promises: a checkpoint is whole or absent (written under a temporary name, hashed, synced, renamed). Parameters and
moments are stored by parameter name, in fp32, as safetensors; the rest is JSON; nothing is ever unpickled. The folder
is a model folder too. Costs: parameters and moments once on disk, written as they come and hashed, and hashed again
when resumed from; the output folder has to be one that every machine of the run can read.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, NonNegativeInt, TypeAdapter
from safetensors import SafetensorError

from miniqwen.checkpoints.tensor_files import StoredTensors, TensorWriter
from miniqwen.errors import UserError
from miniqwen.files import file_hash, read_json, sync, write_json

MANIFEST = "manifest.json"
PROGRESS_FILE = "progress.json"
EVALUATION_FILE = "evaluation.json"  # beside the manifest, not in it: it comes later
EVALUATED = (
    "best_metric",
    "best_name",
    "best_step",
    "evaluations_without_best",
    "evaluated_step",
)  # what an evaluation changes
ASIDE = "aside-"  # how the name of a checkpoint begins that a run has gone back before
REPLACED = ".old.tmp"  # how the name of a checkpoint ends while another takes its place


@dataclass(frozen=True)
class Progress:
    """How far a run is: all of it that is not a tensor."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # where it is read back
    step: NonNegativeInt = 0
    tokens: NonNegativeInt = 0
    epoch: NonNegativeInt = 0
    cursor: Mapping[str, Any] = field(default_factory=dict)
    best_metric: float | None = None
    best_name: str | None = None  # of the metric, and which way it is better
    best_step: int | None = None
    evaluations_without_best: int = 0
    evaluated_step: int = 0  # of the last evaluation
    skipped_updates: int = 0  # whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    # of the updates that no line of metrics has told of yet, so that a resumed run writes the same lines
    pending_loss: float = 0.0
    pending_targets: int = 0
    pending_bytes: int = 0
    loss_scale: Mapping[str, float] | None = None  # of fp16

    def with_evaluation(self, metric: float, larger_is_better: bool, name: str | None = None) -> Progress:
        """After an evaluation that gave `metric`, called `name`, at this step. What is not a number is never the best;
        of equals the first stays."""
        best = self.best_metric
        if not math.isnan(metric) and (best is None or (metric > best if larger_is_better else metric < best)):
            better: dict[str, Any] = {"best_metric": metric, "best_step": self.step, "evaluations_without_best": 0}
            return replace(self, evaluated_step=self.step, best_name=name, **better)
        without = self.evaluations_without_best + 1
        return replace(self, evaluated_step=self.step, evaluations_without_best=without)

    def without_best(self) -> Progress:
        """As if no evaluation had been the best yet."""
        return replace(self, best_metric=None, best_name=None, best_step=None, evaluations_without_best=0)

    def with_update(self, skipped: bool) -> Progress:
        """After an update that was made, or skipped because it was not finite."""
        in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        return replace(
            self, step=self.step + 1, skipped_updates=self.skipped_updates + skipped, skipped_in_a_row=in_a_row
        )


STORED_PROGRESS = TypeAdapter(Progress)


@dataclass(frozen=True)
class Checkpoint:
    """One that was read back: its folder, progress, the identity of its data; tensors are read when asked for."""

    folder: Path
    progress: Progress
    identity: Mapping[str, Any]
    wandb_run_id: str | None
    weights: Mapping[str, torch.Tensor]  # {parameter name: fp32 tensor}
    optimizer_state: Mapping[str, torch.Tensor]  # {"KEY.<parameter name>": tensor}


def write_checkpoint(
    folder: Path,
    progress: Progress,
    identity: Mapping[str, Any],
    wandb_run_id: str | None,
    tensors: Iterable[tuple[str, torch.Tensor]],
    describe_model: Callable[[Path], None],
) -> Path:
    """Write `folder`/checkpoint-STEP and return its path.

    `tensors` are ("model.NAME", weight) and ("KEY.NAME", optimizer state) in any order; `describe_model(folder)` writes
    what else makes the folder a model's.

    Raises `OSError` (disk full, no permission), with nothing left behind and earlier checkpoints untouched.
    """
    final = folder / f"checkpoint-{progress.step}"
    temporary = folder / f".checkpoint-{progress.step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        model, optimizer = TensorWriter(temporary, "model"), TensorWriter(temporary, "optimizer")
        for full_name, tensor in tensors:
            kind, _, name = full_name.partition(".")
            if kind == "model":
                model.add(name, tensor)
            else:
                optimizer.add(full_name, tensor)
        model.close()
        optimizer.close()
        describe_model(temporary)
        described = {"progress": asdict(progress), "identity": identity, "wandb_run_id": wandb_run_id}
        write_json(temporary / PROGRESS_FILE, described)
        written = sorted(path for path in temporary.iterdir() if path.is_file())
        for path in written:
            sync(path)
        write_json(temporary / MANIFEST, {"sha256": {path.name: file_hash(path) for path in written}})
        sync(temporary)
        if final.exists():  # the same step saved again after a resume: a folder cannot be renamed onto another
            final.rename(folder / f".{final.name}{REPLACED}")
        temporary.rename(final)
        sync(folder)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {final}: {error}") from error
    finally:
        remove_half_written(folder)
    return final


def note_evaluation(checkpoint: Path, progress: Progress) -> None:
    """Say in a checkpoint that was written before the evaluation at its update what came of it."""
    write_json(checkpoint / EVALUATION_FILE, {name: getattr(progress, name) for name in EVALUATED})


def verify(folder: Path) -> None:
    """Raises `UserError` naming the file that is missing, not what its manifest says, or not in it.

    A manifest that names other places than the folder's own files is none that a run wrote.
    """
    try:
        hashes = read_json(folder / MANIFEST)["sha256"]
        if odd := [name for name in hashes if Path(name).name != name]:
            raise ValueError(f"{MANIFEST} names {odd[0]!r}, which is no file of the folder")
        for name, expected in hashes.items():
            if file_hash(folder / name) != expected:
                raise UserError(
                    f"{folder / name} is damaged (its hash is not the manifest's); resume from another checkpoint"
                )
        read = {PROGRESS_FILE, *(path.name for path in folder.iterdir() if path.suffix == ".safetensors")}
        if unsigned := sorted(read - hashes.keys()):
            raise ValueError(f"{MANIFEST} does not name {', '.join(unsigned)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} cannot be resumed from ({error}); resume from another checkpoint") from None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint that `verify` has found whole; raises `UserError` where it cannot be read."""
    try:
        stored = read_json(folder / PROGRESS_FILE)
        weights, state = StoredTensors(folder, "model"), StoredTensors(folder, "optimizer")
        evaluated = folder / EVALUATION_FILE
        later = read_json(evaluated) if evaluated.exists() else {}
        told = json.dumps(stored["progress"] | {name: later[name] for name in EVALUATED if later})
        progress = STORED_PROGRESS.validate_json(told, strict=True)
        return Checkpoint(folder, progress, dict(stored["identity"]), stored["wandb_run_id"], weights, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be resumed from ({error}); resume from another checkpoint") from None


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of an output folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / MANIFEST).is_file() and step_of(path) >= 0]
    return sorted(found, key=step_of)


def remove_half_written(folder: Path) -> None:
    """Remove what a save or a deletion that was killed left behind; a checkpoint that nothing replaced comes back."""
    for path in folder.glob(f".checkpoint-*{REPLACED}"):
        if not (name := folder / path.name[1 : -len(REPLACED)]).exists():
            path.rename(name)
    for path in folder.glob(".checkpoint-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def delete(checkpoint: Path) -> None:
    """Delete a checkpoint; killed on the way, none is left that looks whole."""
    gone = checkpoint.with_name(f".{checkpoint.name}.gone.tmp")
    checkpoint.rename(gone)
    sync(gone.parent)
    shutil.rmtree(gone, ignore_errors=True)


def set_aside(folder: Path, step: int, resumed_from: Path) -> list[str]:
    """Rename the checkpoints beyond `step`, where the run goes on from: they count no more. Returns their new names.

    They stay until the next time: one generation of them.
    """
    beyond = [path for path in folder.glob("checkpoint-*") if step_of(path) > step]
    for path in folder.glob(f"{ASIDE}*") if beyond else ():
        if path.resolve() != resumed_from.resolve():
            shutil.rmtree(path, ignore_errors=True)
    for path in beyond:
        path.rename(folder / f"{ASIDE}{path.name}")
    sync(folder)
    return sorted(f"{ASIDE}{path.name}" for path in beyond)


def step_of(path: Path) -> int:
    """The update that a folder is named after; -1 for another name."""
    number = path.name.partition("-")[2]
    return int(number) if number.isascii() and number.isdigit() else -1
