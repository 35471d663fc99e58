"""What the first updates will be made of, before a model is loaded: `--preview N`.

Promises: the very blocks and examples that the model would get, in its order, on any number of processes; a line each
in preview.jsonl, and on screen where they are from, where documents end, and which tokens are trained on. Nothing else
is written: the same command without it then starts. Costs: the data of N updates.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from miniqwen.checkpoints.checkpoint import Progress
from miniqwen.config.output import PREVIEW_FILE
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.runtime import Runtime
from miniqwen.errors import printable
from miniqwen.files import written_whole
from miniqwen.model.loss import IGNORED
from miniqwen.training.batches import MicroBatch, Update
from miniqwen.training.task import Steps, Task

SHOWN_ROWS = 16  # of an update on screen; the file has all
SHOWN_CHARACTERS = 200


def show_preview(config: TrainConfig, task: Task, steps: Steps, progress: Progress, runtime: Runtime) -> None:
    """Write and print the next `--preview` updates from `progress` on. Every rank takes part."""
    updates = task.updates(progress.cursor)
    file = Path(str(config.output_dir)) / PREVIEW_FILE
    shares: Counter[str] = Counter()
    written: list[str] = []
    for step in range(progress.step, min(progress.step + int(config.preview or 0), steps.total)):
        own = list(update_rows(step + 1, next(updates), task.tokenizer, are_blocks=task.rows_are == "blocks"))
        rows = sorted(itertools.chain(*runtime.gather(own)), key=lambda row: row["row"])
        shares.update(row["source"] for row in rows)
        written += [json.dumps(row, ensure_ascii=False) for row in rows]
        for row in rows[:SHOWN_ROWS]:
            runtime.print("\n".join(described(row, task.tokenizer)))
        if len(rows) > SHOWN_ROWS:
            runtime.print(f"update {step + 1}  and {len(rows) - SHOWN_ROWS} more, see {file}")
        if len(shares) > 1:
            so_far = (f"{name} {count / shares.total():.3f}" for name, count in sorted(shares.items()))
            runtime.print(f"update {step + 1}  shares so far: {', '.join(so_far)}")
    updates.close()
    if runtime.is_main:
        with written_whole(file) as opened:
            opened.write("".join(f"{line}\n" for line in written).encode("utf-8", "replace"))
    runtime.print(f"preview: {len(written)} {task.rows_are} in {file}; without --preview the training starts")


def update_rows(
    step: int, update: Update, tokenizer: PreTrainedTokenizerBase, are_blocks: bool
) -> Iterator[dict[str, Any]]:
    """A record of each block or example of this rank's share of an update, in its order.

    `targets` [length] are what follows each of `input_ids` [length], -100 where nothing is trained on.
    """
    parts = [
        part for batch in update.micro_batches for part in (blocks_of(batch) if are_blocks else examples_of(batch))
    ]
    is_text = all(source for _, source in update.rows)
    real = [(ids, targets) for ids, targets in parts if is_text or (targets != IGNORED).any()]  # the others fill
    for (ids, targets), (place, source) in zip(real, update.rows, strict=True):
        yield {
            "update": step, "row": place, "source": source, "input_ids": ids.tolist(), "targets": targets.tolist(),
            "text": tokenizer.decode(ids.tolist()),
        }  # fmt: skip


def blocks_of(batch: MicroBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(batch.input_ids.numpy(), batch.targets.numpy(), strict=True))


def examples_of(batch: MicroBatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """The examples that lie end to end: positions begin anew with each."""
    assert batch.position_ids is not None
    begins = np.flatnonzero(batch.position_ids.numpy().ravel() == 0)[1:]
    ids, targets = (np.split(tensor.numpy().ravel(), begins) for tensor in (batch.input_ids, batch.targets))
    return list(zip(ids, targets, strict=True))


def described(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lines for the screen: what it is, and its text, the tokens that are trained on behind »."""
    ids, targets = np.array(row["input_ids"]), np.array(row["targets"])
    trained = targets != IGNORED
    ends = int((ids == tokenizer.eos_token_id).sum())
    source = f"{row['source']}  " if row["source"] else ""
    told = f"update {row['update']} row {row['row']}  {source}{len(ids):,} tokens, {ends} ends of documents, "
    told += f"{int(trained.sum()):,} trained on"
    first = int(np.argmax(trained)) if trained.any() else len(ids)
    shown = [tokenizer.decode(ids[: first + 1].tolist()), tokenizer.decode(targets[trained].tolist())]
    left, right = (" ".join(text.split()) for text in shown)
    return [told, f"    {printable(shortened(left, from_end=True))} » {printable(shortened(right))}"]


def shortened(text: str, from_end: bool = False) -> str:
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"…{text[-SHOWN_CHARACTERS:]}" if from_end else f"{text[:SHOWN_CHARACTERS]}…"
