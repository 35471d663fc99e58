"""What a run leaves in `--output_dir`: the resolved configuration, its state, checkpoints, the final model, a page.

Promises: nothing that is already there is overwritten without `--overwrite_output_dir`, which deletes only what a run
leaves; the pointer to the last checkpoint moves after the checkpoint is whole; neither the best checkpoint nor the only
one is deleted; the final model appears whole. Costs: see checkpoint.py.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.checkpoints.background import Background
from miniqwen.checkpoints.checkpoint import (
    MANIFEST,
    Progress,
    complete_checkpoints,
    delete,
    note_evaluation,
    read_checkpoint,
    remove_half_written,
    set_aside,
    step_of,
    verify,
    write_checkpoint,
)
from miniqwen.checkpoints.tensor_files import StoredTensors, TensorWriter
from miniqwen.config.flags import dump, plain
from miniqwen.config.models import MODEL_FILES
from miniqwen.config.output import LEFT_BY_A_RUN
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.files import disk_errors_told, publish, read_json, sync, sync_all, write_json, write_text
from miniqwen.lock import FolderLock
from miniqwen.model.modeling_miniqwen import describe_model
from miniqwen.model.tokenization_miniqwen import save_tokenizer
from miniqwen.questions.readings import Reading
from miniqwen.questions.templates import Template
from miniqwen.training.card import card, write_card
from miniqwen.training.history import evaluates, final_history, read_lines
from miniqwen.training.report import Report
from miniqwen.training.resuming import checkpoint_to_resume

ONE_AT_A_TIME = threading.Lock()  # the loop, a save in the background and `ending.silence_noted` write the state
GO_ON = "what was saved before is whole, and the same command with --resume_from_checkpoint auto goes on from it"


def open_output_dir(config: TrainConfig) -> dict[str, Any]:
    """Make the folder ready (one process does it): delete an earlier run if asked to, and half-written checkpoints.

    Returns {"checkpoint": the one to continue from, if any; "best": whether the best one so far is in the folder}.
    """
    folder = Path(str(config.output_dir))
    if config.preview:  # which changes nothing there
        chosen = checkpoint_to_resume(config)
        return {"checkpoint": str(chosen) if chosen else None, "best": True}
    resumes = config.resume_from_checkpoint == "auto" and complete_checkpoints(folder)
    if config.overwrite_output_dir and not resumes:
        for pattern in LEFT_BY_A_RUN:
            for path in folder.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    remove_half_written(folder)
    chosen = checkpoint_to_resume(config)
    if chosen is None:
        return {"checkpoint": None, "best": True}
    progress = read_checkpoint(chosen).progress
    if aside := set_aside(folder, progress.step, chosen):
        print(f"going back to {chosen}: later checkpoints are kept as {', '.join(aside)}, and do not count", flush=True)
    return {"checkpoint": str(chosen), "best": _has_best(progress, folder, chosen)}


def _has_best(progress: Progress, folder: Path, resumed_from: Path) -> bool:
    """Whether the best checkpoint so far is in `folder`, which the final model may be made of; says where it is not.

    One that lies beside the checkpoint that is resumed from, in another folder, is copied.
    """
    name = f"checkpoint-{progress.best_step}"
    if progress.best_step is None or (folder / name / MANIFEST).is_file():
        return True
    there = resumed_from if progress.best_step == progress.step else resumed_from.resolve().parent / name
    if not (there / MANIFEST).is_file():
        print(
            f"the best checkpoint so far, {name}, is neither in {folder} nor beside {resumed_from}: the best is chosen "
            "among the evaluations from here on", flush=True,
        )  # fmt: skip
        return False
    verify(there)
    temporary = folder / f".{name}.tmp"
    shutil.copytree(there, temporary)
    sync_all(temporary)
    temporary.rename(folder / name)
    sync(folder)
    print(f"the best checkpoint so far was copied from {there}", flush=True)
    return True


class OutputFolder:
    """The output folder of a running run, on the one process that writes it."""

    def __init__(
        self,
        config: TrainConfig,
        model: torch.nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        beside: Sequence[Template | Reading],
        identity: Mapping[str, Any],
        total_steps: int,
        lock: FolderLock | None = None,
    ) -> None:
        """`beside`: what is kept beside a model; `lock`: the right to write there, which may be lost on the way."""
        self._lock = lock
        self.folder = Path(str(config.output_dir))
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._beside, self._identity, self._total_steps = beside, identity, total_steps
        self._background = Background()
        self._final_model: str | None = None  # the checkpoint that it was made of
        self._report: Report | None = None

    def start(self, progress: Progress, wandb_run_id: str | None, recorded: Mapping[str, Any]) -> None:
        """Write config.yaml and say that the run is on."""
        with self._writable():
            write_text(self.folder / "config.yaml", dump(self._config, recorded))
            self.set_status("running", progress, wandb_run_id)
        may_write = self._lock.check if self._lock else None
        self._report = Report(self.folder, plain(self._config), recorded, may_write)
        self.report()

    def report(self, last: bool = False) -> None:
        """Rewrite report.html, which ends no run; see `Report.rewrite`."""
        if self._report:
            self._report.rewrite(last)

    def set_status(self, status: str, progress: Progress, wandb_run_id: str | None, reason: str | None = None) -> None:
        """trainer_state.json: running, finished, preempted or failed, why, where the checkpoints are, and of which of
        them the final model was made."""
        names = [path.name for path in complete_checkpoints(self.folder)]
        best = f"checkpoint-{progress.best_step}"
        state = {
            "status": status,
            "reason": reason,
            "step": progress.step,
            "max_steps": self._total_steps,
            "last_checkpoint": names[-1] if names else None,
            "best_checkpoint": best if best in names else None,
            "best_metric": progress.best_metric,
            "best_step": progress.best_step,
            "final_model": self._final_model,
            "wandb_run_id": wandb_run_id,
        }
        _write_state(self.folder, state)

    def save(self, progress: Progress, tensors: Iterable[tuple[str, torch.Tensor]], wandb_run_id: str | None) -> None:
        """Write a checkpoint, move the pointer to it, and delete the oldest beyond `--save_total_limit`.

        `tensors`: see `write_checkpoint`. With --async_save the writing goes on in the background, and so do the
        pointer and the deleting, in this order. Raises `UserError`, also of the save before that went on so.
        """
        self.wait()
        with self._writable():
            if self._config.async_save:
                copies = self._background.copied(tensors)
                self._background.start(lambda: self._save(progress, copies, wandb_run_id))
            else:
                self._save(progress, tensors, wandb_run_id)

    def note_evaluation(self, progress: Progress, wandb_run_id: str | None) -> bool:
        """Note what an evaluation brought at an update that was saved before it; no tensor is written again.

        Returns whether that checkpoint is here: a resumed run's first one may be in another folder.
        """
        self.wait()
        checkpoint = self.folder / f"checkpoint-{progress.step}"
        if not checkpoint.is_dir():
            return False
        with self._writable():
            note_evaluation(checkpoint, progress)
            self.set_status("running", progress, wandb_run_id)
            self._prune(progress)  # another one may be the best now
        return True

    def wait(self) -> None:
        """Until nothing is written in the background any more; raises what went wrong there."""
        with self._writable():
            self._background.wait()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        """Around what is written: a full disk, or a folder that may not be written to, is one screen."""
        if self._lock:
            self._lock.check()
        with disk_errors_told(self.folder, GO_ON):
            yield

    def _save(self, progress: Progress, tensors: Iterable[tuple[str, torch.Tensor]], wandb_run_id: str | None) -> None:
        write_checkpoint(
            self.folder, progress, self._identity, wandb_run_id, self._whole(tensors),
            lambda folder: self._describe(folder, torch.float32),
        )  # fmt: skip
        self.set_status("running", progress, wandb_run_id)
        self._prune(progress)

    def _prune(self, progress: Progress) -> None:
        """Delete the oldest checkpoints beyond `--save_total_limit`, but not the best one."""
        limit = self._config.save_total_limit
        for path in complete_checkpoints(self.folder)[: -limit if limit else 0]:
            if path.name != f"checkpoint-{progress.best_step}":
                delete(path)

    def write_final_model(self, tensors: Iterable[tuple[str, torch.Tensor]], progress: Progress) -> str:
        """The last model, or the best one with --load_best_model_at_end, in the run's precision; says which.

        `tensors` are the last model's, ("model.NAME", weight).
        """
        self.wait()
        with self._writable():
            return self._write_final_model(tensors, progress)

    def _write_final_model(self, tensors: Iterable[tuple[str, torch.Tensor]], progress: Progress) -> str:
        chosen, made_of = "the last model", f"checkpoint-{progress.step}"
        if self._config.load_best_model_at_end and progress.best_step is not None:
            made_of = f"checkpoint-{progress.best_step}"
            stored = StoredTensors(self.folder / made_of, "model")
            tensors = ((f"model.{name}", tensor) for name, tensor in stored.items())
            metric = f"{self._config.best_metric} {progress.best_metric:.4f}"
            chosen = f"the best model (update {progress.best_step}, {metric})"
        dtype = torch.float16 if self._config.fp16 else torch.bfloat16 if self._config.bf16 else torch.float32
        temporary = self.folder / ".checkpoint-final.tmp"
        remove_half_written(self.folder)
        temporary.mkdir()
        writer = TensorWriter(temporary, "model", dtype)
        for name, tensor in self._whole(tensors):
            writer.add(name.removeprefix("model."), tensor)
        writer.close()
        self._describe(temporary, dtype)
        publish(temporary, self.folder, "config.json", MODEL_FILES)
        self._final_model = made_of
        note = write_card(self.folder, self._card(progress, made_of))
        return chosen + (f" ({note})" if note else "")

    def _card(self, progress: Progress, made_of: str) -> str:
        """What is to be said of the final model, with what its evaluation told."""
        told: list[dict[str, Any]] = []
        with contextlib.suppress(
            OSError, UserError
        ):  # lines that are gone, or damaged, are no reason to end without a model
            told = [line for line in final_history(read_lines(self.folder / "metrics.jsonl")) if evaluates(line)]
        evaluated = next((line for line in told if made_of == f"checkpoint-{line['step']}"), {})
        template = next((kept for kept in self._beside if isinstance(kept, Template)), None)
        return card(self._config, self._identity, progress, made_of, evaluated, template)

    def _whole(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """`tensors`; raises `UserError` at their end if one of the model's was not among them."""
        missing = {f"model.{name}" for name, _ in self._model.named_parameters()}
        for name, tensor in tensors:
            missing.discard(name)
            yield name, tensor
        if missing:
            raise UserError(
                f"{self.folder}: nothing was written: {len(missing)} of the model's tensors are not there, "
                f"{min(missing)} among them"
            )

    def _describe(self, folder: Path, dtype: torch.dtype) -> None:
        """What makes a folder with weights a model's folder."""
        describe_model(self._model, folder, dtype)
        save_tokenizer(self._tokenizer, folder)
        for kept in self._beside:
            kept.save(folder)


def _write_state(folder: Path, state: Mapping[str, Any]) -> None:
    with ONE_AT_A_TIME:
        write_json(folder / "trainer_state.json", state)


def note_end(folder: Path, status: str, reason: str | None) -> None:
    """Say in trainer_state.json how the run ended and why; what it says of the checkpoints is true.

    Any rank may do it: rank 0 may be the one that is gone.
    """
    file = folder / "trainer_state.json"
    if file.exists():
        state = {**read_json(file), "status": status, "reason": reason}
        if saved := complete_checkpoints(folder):  # one may have been written after the state was
            step = step_of(saved[-1])
            state |= {"last_checkpoint": saved[-1].name, "step": max(state["step"], step)}
        _write_state(folder, state)
