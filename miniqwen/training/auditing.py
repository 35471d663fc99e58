"""Whether what a run left is what it says: metrics of all its lives, checkpoints, state and final model, held together.

Promises: nothing is written; every fault names its file. Each update is told exactly once in the final history, tokens
only grow, checkpoints are what their manifests and the metrics say, the best one is the best and is there, and the
final model is, bit for bit, the checkpoint that it was made of. Costs: every checkpoint is read twice.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from miniqwen.checkpoints.checkpoint import (
    ASIDE,
    MANIFEST,
    Checkpoint,
    complete_checkpoints,
    read_checkpoint,
    step_of,
    verify,
)
from miniqwen.checkpoints.tensor_files import StoredTensors
from miniqwen.config.flags import RECORDED
from miniqwen.config.models import MODEL_FILES
from miniqwen.errors import UserError
from miniqwen.files import read_json, read_yaml, whole_lines
from miniqwen.lock import writer_in
from miniqwen.model.modeling_miniqwen import parameter_shapes
from miniqwen.training.history import Line, evaluates, final_history, read_lines
from miniqwen.training.lives import flags_of_lives
from miniqwen.training.resuming import changed

STATES = ("running", "finished", "preempted", "failed")
SHOWN = 5  # of things that are wrong alike


@dataclass
class Audit:
    """What was found: `faults`, things to know, and what was looked at, in words."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Left:
    """What a run left in its folder; `checkpoints` are those that are whole, oldest first.

    `history` are the lines that count, up to `end`: the newest checkpoint's update, or the last of a finished run.
    """

    folder: Path
    state: Mapping[str, Any]
    flags: Mapping[str, Any]
    recorded: Mapping[str, Any]
    checkpoints: list[Checkpoint]
    history: list[Line]
    end: int

    @property
    def lives(self) -> list[Mapping[str, Any]]:
        return list(self.recorded.get("lives", ()))

    @property
    def finished(self) -> bool:
        return self.state.get("status") == "finished"

    def at(self, step: int, evaluation: bool = False) -> Line | None:
        """The line of an update in the history, if there is one."""
        return next((line for line in self.history if line["step"] == step and evaluates(line) == evaluation), None)


def audit(folder: Path) -> Audit:
    """Look at all that a run left in `folder`; raises `UserError` where there is none, or where it is still on."""
    if writer := writer_in(folder):
        raise UserError(f"{folder}: {writer} is writing there; a run can be audited when it has ended")
    if not (folder / "trainer_state.json").exists() and not complete_checkpoints(folder):
        raise UserError(f"{folder}: no run is there (no trainer_state.json, no checkpoint); give its --output_dir")
    found = Audit()
    left = _read(folder, found)
    for check in (_state, _checkpoints, _history, _best, _final_model):
        found.faults += check(left, found)
    leftovers = sorted(path.name for path in (*folder.glob(".*.tmp"), *folder.glob(f"{ASIDE}*")))
    if leftovers:
        found.notes.append(f"not looked at, as they do not count: {', '.join(leftovers)}")
    return found


def _read(folder: Path, found: Audit) -> Left:
    state = _mapping(folder / "trainer_state.json", read_json, found)
    flags = _mapping(folder / "config.yaml", read_yaml, found)
    recorded = flags.pop(RECORDED, None) or {}
    whole = []
    for path in sorted(folder.glob("checkpoint-*"), key=step_of):
        try:
            verify(path)
            whole.append(read_checkpoint(path))
        except UserError as error:
            found.faults += error.problems
    newest = max((checkpoint.progress.step for checkpoint in whole), default=0)
    end = max(newest, int(state.get("step", 0))) if state.get("status") == "finished" else newest
    lines: list[Line] = []
    try:
        file = folder / "metrics.jsonl"
        lines = read_lines(file)
        if len(whole_lines(file)) < file.stat().st_size:
            found.notes.append(f"{file}: its last line is torn; the next start cuts it")
    except UserError as error:
        found.faults += error.problems
    except OSError as error:
        found.faults.append(f"{file}: cannot be read ({error.strerror})")
    told = final_history(lines, recorded.get("lives", ()))
    history = [line for line in told if line["step"] <= end]
    found.checked += [
        f"{len(recorded.get('lives', ()))} lives",
        f"{len(lines)} lines of metrics, {len(history)} of them in the final history, to update {end}",
        f"{len(whole)} checkpoints",
    ]
    if len(told) > len(history):
        found.notes.append(
            f"{len(told) - len(history)} lines of metrics are of updates after {end}: no checkpoint has them"
        )
    return Left(folder, state, flags, recorded, whole, history, end)


def _mapping(file: Path, read: Any, found: Audit) -> dict[str, Any]:
    """What a file holds; a fault and nothing if it cannot be read."""
    try:
        return dict(read(file))
    except OSError as error:
        found.faults.append(f"{file}: cannot be read ({error.strerror})")
    except (ValueError, TypeError):
        found.faults.append(f"{file}: does not hold what a run writes there")
    return {}


def _state(left: Left, found: Audit) -> Iterator[str]:
    """trainer_state.json against the checkpoints. That of a killed run may be one save behind."""
    file, state = left.folder / "trainer_state.json", left.state
    if not state:
        return
    status, step, last = state.get("status"), state.get("step"), state.get("last_checkpoint")
    reason = f" ({state['reason']})" if state.get("reason") else ""
    found.checked.insert(0, f"{status} at update {step} of {state.get('max_steps')}{reason}")
    if status not in STATES:
        yield f"{file}: status {status!r} is none of {', '.join(STATES)}"
    if status == "running":
        found.notes.append(
            "nothing writes there, and the run did not end: it was killed; --resume_from_checkpoint auto goes on"
        )
    for name in {last, state.get("best_checkpoint")} - {None}:
        if (left.folder / f"{ASIDE}{name}").exists():
            found.notes.append(f"{file} still speaks of {name}, which a start has set aside that got no further")
        elif not (left.folder / str(name) / MANIFEST).is_file():
            yield f"{file}: {name} is not there"
    if status not in ("finished", "preempted") or not left.checkpoints:
        return
    newest = left.checkpoints[-1]
    says = {"last_checkpoint": last, "step": step} | {name: state.get(name) for name in ("best_step", "best_metric")}
    progress = newest.progress
    true = {"last_checkpoint": newest.folder.name, "step": progress.step} | {
        name: getattr(progress, name) for name in ("best_step", "best_metric")
    }
    for name, value in says.items():
        if value != true[name]:
            yield f"{file}: {name} {value}, and the newest whole checkpoint has {true[name]}"


def _checkpoints(left: Left, found: Audit) -> Iterator[str]:
    """Each against its name, its model, the metrics and the data that the run is said to have read."""
    for checkpoint in left.checkpoints:
        folder, progress, identity = checkpoint.folder, checkpoint.progress, checkpoint.identity
        if folder.name != f"checkpoint-{progress.step}":
            yield f"{folder}: is of update {progress.step}"
        yield from _tensors(checkpoint)
        if line := left.at(progress.step):
            for name in ("tokens", "skipped_updates"):
                if line[name] != getattr(progress, name):
                    yield f"{folder}: {name} {getattr(progress, name)}, and metrics.jsonl has {line[name]} there"
        if {"blocks_per_update", "block_size"} <= identity.keys():
            tokens = progress.step * identity["blocks_per_update"] * identity["block_size"]
            if progress.tokens != tokens:
                yield f"{folder}: {progress.tokens} tokens, and {progress.step} updates have {tokens}"
        yield from _data(checkpoint, left)


def _data(checkpoint: Checkpoint, left: Left) -> Iterator[str]:
    """The identity of its data against config.yaml's, unless that is of a start that was allowed to change it."""
    now = dict(left.recorded.get("data") or checkpoint.identity)
    changes = now.pop("data_changes", [])
    if any(change["step"] >= checkpoint.progress.step for change in changes):
        return
    before = {name: value for name, value in checkpoint.identity.items() if name != "data_changes"}
    for difference in changed(before, now)[:SHOWN]:
        yield f"{checkpoint.folder}: its data is not that of config.yaml: {difference}"


def _tensors(checkpoint: Checkpoint) -> Iterator[str]:
    """Weights and moments: all there, in the model's shapes, all of them numbers."""
    folder = checkpoint.folder
    try:
        shapes = parameter_shapes(folder)
    except UserError as error:
        yield from error.problems
        return
    yield from _shown(f"{folder}: lacks weights of the model", shapes.keys() - checkpoint.weights.keys())
    of_state = {key: key.partition(".")[2] for key in checkpoint.optimizer_state}
    trained = checkpoint.progress.step > checkpoint.progress.skipped_updates
    yield from _shown(
        f"{folder}: lacks optimizer state", (shapes.keys() if trained else set()) - set(of_state.values())
    )
    unknown, other_shape, no_numbers = [], [], []
    everything = ((key, checkpoint.weights, key) for key in checkpoint.weights)
    for key, tensors, name in (*everything, *((key, checkpoint.optimizer_state, of_state[key]) for key in of_state)):
        tensor = tensors[key]
        if name not in shapes:
            unknown.append(key)
        elif tensor.dim() and tuple(tensor.shape) != shapes[name]:
            other_shape.append(key)
        if not torch.isfinite(tensor).all():
            no_numbers.append(key)
    yield from _shown(f"{folder}: has tensors that the model does not have", unknown)
    yield from _shown(f"{folder}: has tensors of another shape than the model's", other_shape)
    yield from _shown(f"{folder}: has values that are no numbers", no_numbers)


def _history(left: Left, found: Audit) -> Iterator[str]:
    """Every update told exactly once: lines where the flags of each life put them, and tokens that grow."""
    file, told = left.folder / "metrics.jsonl", [line for line in left.history if not evaluates(line)]
    for earlier, line in itertools.pairwise(told):
        if line["tokens"] <= earlier["tokens"]:
            yield f"{file}: {line['tokens']} tokens at update {line['step']}, and no fewer at {earlier['step']}"
    if not left.flags or not left.lives or not left.end:
        return
    starts = [life["start_step"] for life in left.lives]
    flags = flags_of_lives(left.flags, left.lives)
    at_end = {left.end} if left.state.get("max_steps") == left.end > starts[-1] else set()
    due = sorted({*_due(starts, flags, left.end), *at_end})
    steps = {line["step"] for line in told}
    begins = min(steps, default=left.end)
    # a run that goes on in another folder tells there what comes
    untold = (start for start in starts if start < begins and not any(start < step < begins for step in due))
    before = max(starts[0], *untold, 0)
    if before:
        found.notes.append(f"its first {before} updates are told in the folder where they were made")
    missing = [step for step in due if step > before and step not in steps]
    yield from _shown(f"{file}: no line for updates", missing)
    ends = {*starts, left.end}  # what a life ended with is told, whatever its --logging_steps
    yield from _shown(f"{file}: a line that no life had to tell, for updates", sorted(steps - set(due) - ends))


def _due(starts: list[int], flags: list[dict[str, Any]], end: int) -> Iterator[int]:
    """The updates up to `end` that are told: each by the flags of the last life that made it."""
    for step in range(1, end + 1):
        maker = max((number for number, start in enumerate(starts) if start < step), default=0)
        if step % flags[maker].get("logging_steps", 1) == 0 or step == 1:
            yield step


def _best(left: Left, found: Audit) -> Iterator[str]:
    """The best of the newest checkpoint against what the evaluations told, and whether it is there."""
    if not left.checkpoints:
        return
    newest = left.checkpoints[-1]
    progress = newest.progress
    evaluated = progress.evaluated_step
    begins = left.history[0]["step"] if left.history else left.end
    if evaluated > begins and left.at(evaluated, evaluation=True) is None:
        yield f"{left.folder / 'metrics.jsonl'}: no line for the evaluation at update {evaluated}"
    if progress.best_step is None or progress.best_name is None:
        return
    best = f"checkpoint-{progress.best_step}"
    if not (left.folder / best / MANIFEST).is_file():
        yield f"{left.folder}: {best} is not there, the best by {newest.folder.name}"
    larger, metric = progress.best_name.startswith("the largest"), progress.best_name.split()[-1]
    starts = sorted(life["start_step"] for life in left.lives)
    for line in left.history:
        step, value = line["step"], line.get(metric)
        if value is None or step > evaluated:
            continue
        if step == progress.best_step and value != progress.best_metric:
            yield f"{newest.folder}: {metric} {progress.best_metric} at update {step}, and metrics.jsonl has {value}"
        # at a start the choice may have begun anew, which is told there
        chosen_anew = step < progress.best_step and bisect.bisect_left(starts, step) < bisect.bisect_left(
            starts, progress.best_step
        )
        better = value > progress.best_metric if larger else value < progress.best_metric
        if better and not chosen_anew:
            yield f"{newest.folder}: the best is update {progress.best_step}'s, and update {step} has {metric} {value}"


def _final_model(left: Left, found: Audit) -> Iterator[str]:
    """The model in the folder against the checkpoint that the state says it was made of."""
    there, made_of = (left.folder / "config.json").exists(), left.state.get("final_model")
    if not left.finished or made_of is None:
        if there:
            found.notes.append("the model in the folder is of an earlier end of the run, or was there before it")
        if left.finished and left.flags.get("do_train", True) is not False and not left.flags.get("do_eval"):
            yield f"{left.folder / 'trainer_state.json'}: finished, and no final model"
        return
    source = next((one for one in left.checkpoints if one.folder.name == made_of), None)
    if not there:
        yield f"{left.folder}: the final model's config.json is not there"
    elif source is None:
        yield f"{left.folder}: {made_of} is not there, or not whole: the final model cannot be compared with it"
    else:
        found.checked.append(f"the final model, tensor by tensor against {made_of}")
        yield from _differences(left.folder, source)


def _differences(folder: Path, source: Checkpoint) -> Iterator[str]:
    """What a final model does not have of the checkpoint it was made of, whose weights it has in another precision."""
    try:
        described, original = (read_json(one / "config.json") for one in (folder, source.folder))
        dtype = getattr(torch, described.pop("dtype"))
        weights = StoredTensors(folder, "model")
        index = folder / "model.safetensors.index.json"
        files = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        yield f"{folder}: the final model cannot be read ({error})"
        return
    original.pop("dtype", None)
    if described != original:
        yield f"{folder / 'config.json'}: describes another model than {source.folder.name}'s"
    if files != (there := {path.name for path in folder.glob("model*.safetensors")}):
        yield f"{folder}: the weights are in {', '.join(sorted(files))}, and there are {', '.join(sorted(there))}"
    yield from _shown(f"{folder}: the final model lacks", source.weights.keys() - weights.keys())
    yield from _shown(f"{folder}: the final model has too many", weights.keys() - source.weights.keys())
    other = [
        name for name in weights.keys() & source.weights.keys()
        if weights[name].dtype != dtype or not torch.equal(_bits(weights[name]), _bits(source.weights[name].to(dtype)))
    ]  # fmt: skip
    yield from _shown(f"{folder}: the final model is not {source.folder.name}'s in {dtype}", other)
    beside = {path.name for pattern in MODEL_FILES for path in source.folder.glob(pattern)}
    beside = {name for name in beside if name != "config.json" and not name.startswith("model")}
    changed_files = [name for name in beside if not _same(folder / name, source.folder / name)]
    yield from _shown(f"{folder}: not as in {source.folder.name}", changed_files)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """What no number is, equals itself so."""
    return tensor.contiguous().view(torch.uint8)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _shown(what: str, names: Iterable[Any]) -> Iterator[str]:
    """One fault for things that are wrong alike, if there are any."""
    found = sorted(names)
    if found:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield f"{what}: {', '.join(map(str, found[:SHOWN]))}{more}"
