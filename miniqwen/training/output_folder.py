"""What a run leaves in `--output_dir`: the resolved configuration, its state, checkpoints, and the final model.

Promises: nothing that is already there is overwritten without `--overwrite_output_dir`, which deletes only what a run
leaves; the pointer to the last checkpoint moves after the checkpoint is whole; neither the best checkpoint nor the only
one is deleted; the final model appears whole. Costs: see checkpoint.py.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.checkpoints.background import Background
from miniqwen.checkpoints.checkpoint import (
    Checkpoint,
    Progress,
    complete_checkpoints,
    remove_half_written,
    verify,
    write_checkpoint,
)
from miniqwen.checkpoints.tensor_files import StoredTensors, TensorWriter
from miniqwen.config.flags import dump
from miniqwen.config.output import LEFT_BY_A_RUN
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.files import write_json, write_text
from miniqwen.model.modeling_miniqwen import describe_model
from miniqwen.questions.templates import Template
from miniqwen.training.batches import Plan

SHOWN_CHANGES = 10
VERSIONS = ("miniqwen", "torch", "transformers", "accelerate", "deepspeed", "datasets", "tokenizers", "numpy")


def open_output_dir(config: TrainConfig) -> str | None:
    """Make the folder ready (one process does it): delete an earlier run if asked to, and half-written checkpoints.

    Returns the checkpoint to continue from, if any.
    """
    folder = Path(str(config.output_dir))
    resumes = config.resume_from_checkpoint == "auto" and complete_checkpoints(folder)
    if config.overwrite_output_dir and not resumes:
        for pattern in LEFT_BY_A_RUN:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    remove_half_written(folder)
    chosen = checkpoint_to_resume(config)
    return str(chosen) if chosen else None


def checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names, every file of it verified; None to start afresh.

    Of `auto`'s, a damaged one is named on stderr and the one before it taken. Raises `UserError` where none is whole.
    """
    if config.resume_from_checkpoint == "none":
        return None
    if config.resume_from_checkpoint != "auto":
        verify(Path(config.resume_from_checkpoint))
        return Path(config.resume_from_checkpoint)
    damaged: list[str] = []
    for folder in reversed(complete_checkpoints(Path(str(config.output_dir)))):
        try:
            verify(folder)
            return folder
        except UserError as error:
            damaged += error.problems
            print(f"{error}: trying the one before it", file=sys.stderr, flush=True)
    if damaged:
        raise UserError(*damaged, "no checkpoint is whole: --overwrite_output_dir starts afresh")
    return None


class OutputFolder:
    """The output folder of a running run, on the one process that writes it."""

    def __init__(
        self,
        config: TrainConfig,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        template: Template | None,
        identity: Mapping[str, Any],
    ) -> None:
        self.folder = Path(str(config.output_dir))
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._template, self._identity = template, identity
        self._background = Background()

    def start(self, progress: Progress, wandb_run_id: str | None, recorded: Mapping[str, Any]) -> None:
        """Write config.yaml and say that the run is on."""
        facts = {**recorded, "versions": versions(), "git_commit": _git_commit()}
        write_text(self.folder / "config.yaml", dump(self._config, facts))
        self.set_status("running", progress, wandb_run_id)

    def set_status(self, status: str, progress: Progress, wandb_run_id: str | None, reason: str | None = None) -> None:
        """trainer_state.json: running, finished, preempted or failed, why, and where the checkpoints are."""
        names = [path.name for path in complete_checkpoints(self.folder)]
        best = f"checkpoint-{progress.best_step}"
        state = {
            "status": status,
            "reason": reason,
            "step": progress.step,
            "last_checkpoint": names[-1] if names else None,
            "best_checkpoint": best if best in names else None,
            "best_metric": progress.best_metric,
            "best_step": progress.best_step,
            "wandb_run_id": wandb_run_id,
        }
        write_json(self.folder / "trainer_state.json", state)

    def save(self, progress: Progress, tensors: Iterable[tuple[str, torch.Tensor]], wandb_run_id: str | None) -> None:
        """Write a checkpoint, move the pointer to it, and delete the oldest beyond `--save_total_limit`.

        `tensors`: see `write_checkpoint`. With --async_save the writing goes on in the background, and so do the
        pointer and the deleting, in this order. Raises `OSError`, also of the save before that went on so.
        """
        self.wait()
        if self._config.async_save:
            copies = self._background.copied(tensors)
            self._background.start(lambda: self._save(progress, copies, wandb_run_id))
        else:
            self._save(progress, tensors, wandb_run_id)

    def wait(self) -> None:
        """Until nothing is written in the background any more; raises what went wrong there."""
        self._background.wait()

    def _save(self, progress: Progress, tensors: Iterable[tuple[str, torch.Tensor]], wandb_run_id: str | None) -> None:
        write_checkpoint(
            self.folder, progress, self._identity, wandb_run_id, tensors,
            lambda folder: self._describe(folder, torch.float32),
        )  # fmt: skip
        self.set_status("running", progress, wandb_run_id)
        limit = self._config.save_total_limit
        for path in complete_checkpoints(self.folder)[: -limit if limit else 0]:
            if path.name != f"checkpoint-{progress.best_step}":
                shutil.rmtree(path)

    def write_final_model(self, tensors: Iterable[tuple[str, torch.Tensor]], progress: Progress) -> str:
        """The last model, or the best one with --load_best_model_at_end, in the run's precision; says which.

        `tensors` are the last model's, ("model.NAME", weight).
        """
        self.wait()
        chosen = "the last model"
        if self._config.load_best_model_at_end and progress.best_step is not None:
            stored = StoredTensors(self.folder / f"checkpoint-{progress.best_step}", "model")
            tensors = ((f"model.{name}", tensor) for name, tensor in stored.items())
            metric = f"{self._config.best_metric} {progress.best_metric:.4f}"
            chosen = f"the best model (update {progress.best_step}, {metric})"
        dtype = torch.float16 if self._config.fp16 else torch.bfloat16 if self._config.bf16 else torch.float32
        temporary = self.folder / ".checkpoint-final.tmp"
        remove_half_written(self.folder)
        temporary.mkdir()
        writer = TensorWriter(temporary, "model", dtype)
        for name, tensor in tensors:
            writer.add(name.removeprefix("model."), tensor)
        writer.close()
        self._describe(temporary, dtype)
        for path in temporary.iterdir():
            path.replace(self.folder / path.name)
        temporary.rmdir()
        return chosen

    def _describe(self, folder: Path, dtype: torch.dtype) -> None:
        """What makes a folder with weights a model's folder."""
        describe_model(self._model, folder, dtype)
        self._tokenizer.save_pretrained(folder)
        if self._template:
            self._template.save(folder)


def check_batch(checkpoint: Checkpoint, plan: Plan) -> None:
    """Raises `UserError`, naming what would keep it, when an update has not as many rows as the checkpoint's."""
    identity = checkpoint.identity
    rows = identity.get("blocks_per_update") or identity["examples_per_update"]
    if plan.rows_per_update == rows:
        return
    was = f"{checkpoint.folder}: an update was {rows} rows, and {plan.micro_batch} x {plan.accumulation} on "
    was += f"{plan.world_size} processes are {plan.rows_per_update} (blocks_per_update)"
    if rows % plan.world_size:
        raise UserError(f"{was}: {rows} cannot be shared out on {plan.world_size} processes; use a divisor of it")
    each = rows // plan.world_size
    micro = next(size for size in range(min(plan.micro_batch, each), 0, -1) if each % size == 0)
    size = "" if micro == plan.micro_batch else f"--per_device_train_batch_size {micro} "
    raise UserError(f"{was}: {size}--gradient_accumulation_steps {each // micro} keeps them")


def note_end(folder: Path, status: str, reason: str) -> None:
    """Say in trainer_state.json how the run ended and why; what it says of the checkpoints stays true.

    Any rank may do it: rank 0 may be the one that is gone.
    """
    file = folder / "trainer_state.json"
    if file.exists():
        write_json(file, {**json.loads(file.read_text(encoding="utf-8")), "status": status, "reason": reason})


def continued(
    config: TrainConfig, checkpoint: Checkpoint, identity: Mapping[str, Any], total_steps: int
) -> dict[str, Any]:
    """The identity of the data that a resumed run goes on with: `identity` and what was changed on the way to it.

    Raises `UserError` when the data, its order or the length of the training do not continue the checkpoint's. Other
    files of the same sources are let through, and recorded, with --allow_data_change.
    """
    step, stored = checkpoint.progress.step, dict(checkpoint.identity)
    history = stored.pop("data_changes", [])
    differences = changed(stored, identity)
    if differences and config.allow_data_change and not changed(_order_of(stored), _order_of(identity)):
        history = [*history, {"step": step, "changes": differences}]
    elif differences:
        what = "the data or its order is not what the checkpoint was made with"
        hint = "" if changed(_order_of(stored), _order_of(identity)) else " (--allow_data_change goes on with it)"
        shown = [f"{checkpoint.folder}: {what}{hint}: {difference}" for difference in differences[:SHOWN_CHANGES]]
        more = len(differences) - len(shown)
        raise UserError(*shown, *([f"and {more} more differences"] if more else []))
    if step > total_steps:
        raise UserError(
            f"{checkpoint.folder} is already at update {step}, and the training has {total_steps}: raise --max_steps"
        )
    return {**identity, "data_changes": history} if history else dict(identity)


def _order_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What no flag lets change: which sources, in what order. The rest is what their files are."""
    files_are = ("sources", "source", "held_out_rows", "examples")
    kept = {key: value for key, value in identity.items() if key not in files_are}
    return {**kept, "names": sorted(identity.get("sources", {}))}


def changed(stored: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, by name; files by their path, with their sizes in bytes."""
    found = []
    for key in {**stored, **current}:
        before, now = stored.get(key), current.get(key)
        if key == "files" and isinstance(before, list) and isinstance(now, list):
            before, now = dict(before), dict(now)
        if isinstance(before, dict) and isinstance(now, dict):
            found += changed(before, now, f"{prefix}{key}.")
        elif before != now:
            was, is_now = ("absent" if value is None else repr(value) for value in (before, now))
            found.append(f"{prefix}{key}: was {was}, is {is_now}")
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
            found[name] = "not installed"
    return found


def _git_commit() -> str | None:
    """The commit of the code, None outside a git checkout."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None
