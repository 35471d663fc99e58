"""What survives: how far a run is, its parameters and its optimizer, in one folder that belongs to no machine.

Promises: a checkpoint is whole or absent (written under a temporary name, hashed, synced, renamed). Parameters and
moments are stored by parameter name, in fp32, as safetensors; the rest is JSON; nothing is ever unpickled. The folder
is a model folder too. Costs: parameters and moments once on disk, hashed when written and again when resumed from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from miniqwen.config import UserError

MANIFEST = "manifest.json"
OPTIMIZER_FILE = "optimizer.safetensors"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is: all of it that is not a tensor."""

    step: int = 0
    tokens: int = 0
    epoch: int = 0
    cursor: Mapping[str, Any] = field(default_factory=dict)
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_without_best: int = 0
    evaluated_step: int = 0  # of the last evaluation
    skipped_updates: int = 0  # whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    # of the updates that no line of metrics has told of yet, so that a resumed run writes the same lines
    pending_loss: float = 0.0
    pending_targets: int = 0

    def with_evaluation(self, metric: float, larger_is_better: bool) -> Progress:
        """After an evaluation that gave `metric` at this step."""
        best = self.best_metric
        if best is None or (metric > best if larger_is_better else metric < best):
            better: dict[str, Any] = {"best_metric": metric, "best_step": self.step, "evaluations_without_best": 0}
            return replace(self, evaluated_step=self.step, **better)
        without = self.evaluations_without_best + 1
        return replace(self, evaluated_step=self.step, evaluations_without_best=without)

    def with_update(self, skipped: bool) -> Progress:
        """After an update that was made, or skipped because it was not finite."""
        in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        return replace(
            self, step=self.step + 1, skipped_updates=self.skipped_updates + skipped, skipped_in_a_row=in_a_row
        )


@dataclass(frozen=True)
class Checkpoint:
    """One that was read back: its folder, progress, the identity of its data, the optimizer's tensors."""

    folder: Path
    progress: Progress
    identity: Mapping[str, Any]
    wandb_run_id: str | None
    optimizer_state: Mapping[str, torch.Tensor]


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: a reader never sees half a file, and the file survives a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Make a file, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state as {"exp_avg.<parameter name>": tensor, ...}, on the CPU."""
    return {
        f"{key}.{name}": value.detach().to("cpu").contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Give the optimizer the state that `optimizer_tensors` took, on the parameters' devices.

    Raises `UserError` for state of a parameter that the model does not have, or of another optimizer.
    """
    parameters = dict(model.named_parameters())
    state: dict[str, dict[str, torch.Tensor]] = {}
    for full_name, value in tensors.items():
        key, _, name = full_name.partition(".")
        if name not in parameters or (value.ndim and value.shape != parameters[name].shape):
            raise UserError(f"the checkpoint's optimizer state of {name} does not fit the model")
        # counters such as AdamW's `step` stay on the CPU, where torch wants them
        state.setdefault(name, {})[key] = value.to(parameters[name].device) if value.ndim else value
    for group in optimizer.param_groups:
        wanted = "momentum_buffer" if group.get("rule") == "muon" and "momentum" in group else "exp_avg"
        for name in state:
            if any(parameters[name] is parameter for parameter in group["params"]) and wanted not in state[name]:
                raise UserError("the checkpoint was made with another --optim; resume with the same one")
    for name, values in state.items():
        optimizer.state[parameters[name]] = values


def write_checkpoint(
    folder: Path,
    progress: Progress,
    identity: Mapping[str, Any],
    wandb_run_id: str | None,
    optimizer_state: Mapping[str, torch.Tensor],
    write_model: Callable[[Path], None],
) -> Path:
    """Write `folder`/checkpoint-STEP; `write_model(folder)` puts the model's files there. Returns its path.

    Raises `OSError` (disk full, no permission), with nothing left behind and earlier checkpoints untouched.
    """
    final = folder / f"checkpoint-{progress.step}"
    temporary = folder / f".checkpoint-{progress.step}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_model(temporary)
        save_file(dict(optimizer_state), temporary / OPTIMIZER_FILE)
        described = {"progress": asdict(progress), "identity": identity, "wandb_run_id": wandb_run_id}
        write_json(temporary / PROGRESS_FILE, described)
        written = sorted(path for path in temporary.iterdir() if path.is_file())
        for path in written:
            sync(path)
        write_json(temporary / MANIFEST, {"sha256": {path.name: file_hash(path) for path in written}})
        sync(temporary)
        if final.exists():  # the same step saved again after a resume: a folder cannot be renamed onto another
            final.rename(folder / f".checkpoint-{progress.step}.old.tmp")
        temporary.rename(final)
        sync(folder)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"cannot write {final}: {error}") from error
    finally:
        remove_half_written(folder)
    return final


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, after checking every file against its manifest.

    Raises `UserError` naming the file that is missing or damaged.
    """
    try:
        for name, expected in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sha256"].items():
            if file_hash(folder / name) != expected:
                raise UserError(
                    f"{folder / name} is damaged (its hash is not the manifest's); resume from another checkpoint"
                )
        stored = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        progress = Progress(**stored["progress"])
        return Checkpoint(
            folder, progress, stored["identity"], stored["wandb_run_id"], load_file(folder / OPTIMIZER_FILE)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be resumed from ({error}); resume from another checkpoint") from None


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of an output folder, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if (path / MANIFEST).is_file()]
    return sorted(
        (path for path in found if path.name.split("-")[1].isdigit()), key=lambda p: int(p.name.split("-")[1])
    )


def remove_half_written(folder: Path) -> None:
    """Remove what a save that was killed left behind."""
    for path in folder.glob(".checkpoint-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
