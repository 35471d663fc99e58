"""Where a run goes on: which checkpoint, and whether data, order and batch continue what it was made with.

Promises: a damaged checkpoint is named, and the one before it taken; every difference is named, file by file. Costs: a
hash over the checkpoint's files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, TypeAdapter
from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on only

from miniqwen.checkpoints.checkpoint import Checkpoint, complete_checkpoints, read_checkpoint, verify
from miniqwen.config.training import TrainConfig
from miniqwen.data.documents import ORDER, Layout
from miniqwen.data.packing import Cursor
from miniqwen.errors import UserError
from miniqwen.training.batches import Plan

SHOWN_CHANGES = 10


class Identity(TypedDict, total=False):
    """What is used of a checkpoint's identity before it is compared with that of the data."""

    order: int
    lanes: PositiveInt
    blocks_per_update: PositiveInt
    examples_per_update: PositiveInt
    sources: dict[str, dict[str, Any]]
    held_out: dict[str, list[tuple[str, NonNegativeInt, NonNegativeInt, NonNegativeInt]]]
    unreadable: dict[str, dict[str, str]]
    layout: dict[str, Layout]
    data_changes: list[dict[str, Any]]


IDENTITY = TypeAdapter(Identity)
LANES, EXAMPLES = TypeAdapter(dict[str, Cursor]), TypeAdapter(dict[str, NonNegativeInt])


def opened(folder: Path) -> Checkpoint:
    """A checkpoint that `verify` has found whole; raises `UserError` where a run wrote no such thing."""
    checkpoint = read_checkpoint(folder)
    identity, cursor = checkpoint.identity, checkpoint.progress.cursor
    try:
        IDENTITY.validate_json(json.dumps(identity), strict=True)
        if not {"blocks_per_update", "examples_per_update"} & identity.keys():
            raise ValueError("it does not say how many rows an update has")
        if identity.get("order") == ORDER:
            LANES.validate_json(json.dumps(cursor), strict=True)
            if cursor and cursor.keys() != {str(lane) for lane in range(identity["lanes"])}:
                raise ValueError(f"it does not say where each of {identity['lanes']} lanes stands")
        elif "examples_per_update" in identity:
            EXAMPLES.validate_json(json.dumps(cursor), strict=True)
    except (ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} cannot be resumed from ({why}); resume from another checkpoint") from None
    return checkpoint


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
    if step > total_steps and config.trains:
        raise UserError(
            f"{checkpoint.folder} is already at update {step}, and the training has {total_steps}: raise --max_steps"
        )
    return {**identity, "data_changes": history} if history else dict(identity)


def _order_of(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What no flag lets change: which sources, in what mixture. The rest is what their files are, and how the order of
    this version comes to be."""
    files_are = ("sources", "source", "held_out", "held_out_rows", "unreadable", "layout", "order", "examples")
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
