"""What was in the updates that gave a loss or a gradient that is not finite: written down for study.

Promises: `bad_updates.json` in the output folder names, for each of the latest ones in a row, every rank's place in the
data before and after it, its losses, and the text it was given. Costs: nothing, until there is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.checkpoints.checkpoint import Progress
from miniqwen.config.output import BAD_UPDATES_FILE
from miniqwen.config.training import TrainConfig
from miniqwen.data.packing import stored_cursors
from miniqwen.distributed.runtime import Runtime
from miniqwen.errors import UserError
from miniqwen.files import write_json
from miniqwen.training.batches import Update


class BadUpdates:
    """The updates in a row that were skipped; every rank calls it alike."""

    def __init__(self, config: TrainConfig, runtime: Runtime, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config, self._runtime, self._tokenizer = config, runtime, tokenizer
        self._file = Path(str(config.output_dir)) / BAD_UPDATES_FILE
        self._in_a_row: list[dict[str, Any]] = []

    def caught(self, before: Progress, update: Update, losses: Sequence[torch.Tensor], grad_norm: float) -> bool:
        """Whether the update after `before` was one, which is then written down.

        The norm tells of gradients and losses, see `Runtime.backward`. Raises `UserError` at the `--max_bad_steps`-th
        in a row.
        """
        if math.isfinite(grad_norm):
            return False
        mine = described(self._runtime.rank, before.cursor, update, losses, self._tokenizer)
        ranks = self._runtime.gather(mine)
        if before.skipped_in_a_row == 0:
            self._in_a_row = []
        self._in_a_row.append({"update": before.step + 1, "grad_norm": str(grad_norm), "ranks": ranks})
        if self._runtime.is_main:
            write_json(self._file, {"updates": self._in_a_row})
        count = before.skipped_in_a_row + 1
        self._runtime.print(f"update {before.step + 1} is skipped: its loss or gradient is not finite ({grad_norm})")
        if count >= self._config.max_bad_steps:
            raise UserError(
                f"{count} updates in a row (--max_bad_steps), up to update {before.step + 1}, had a loss or gradient "
                f"that is not finite; what they were made of stands in {self._file}. The weights were not touched by "
                "them: look at that text, or go on from the last checkpoint with a lower --learning_rate, a longer "
                "warm-up, or without half precision"
            )
        return True


def described(
    rank: int,
    cursor: Mapping[str, Any],
    update: Update,
    losses: Sequence[torch.Tensor],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """One rank's share of an update as JSON: where in the data it is from, the loss per target token of each
    micro-batch (as text, because JSON has no NaN), and the text of each row."""
    micro_batches = []
    for batch, loss in zip(update.micro_batches, losses, strict=True):
        mean = loss.item() / max(batch.num_targets, 1)
        texts = tokenizer.batch_decode(batch.input_ids.tolist())
        micro_batches.append({"loss": str(mean), "finite": math.isfinite(mean), "texts": texts})
    mine = {key: value for key, value in cursor.items() if key in update.cursor}
    return {
        "rank": rank, "from": stored_cursors(mine), "to": stored_cursors(update.cursor), "micro_batches": micro_batches,
    }  # fmt: skip
