"""What a run does about memory: what lives as long as it is set aside, and what to try when there is not enough.

Promises: the flags which need less are named, those first that change no result. Costs: nothing.
"""

from __future__ import annotations

import gc

from miniqwen.config.training import TrainConfig


def set_aside() -> None:
    """Keep Python's collector from going through what lives until the end, half a million objects, again and again.

    It would stop the loop for a tenth of a second each time, and each rank at another moment.
    """
    gc.collect()
    gc.freeze()


def advice(config: TrainConfig, world_size: int) -> list[str]:
    """What needs less memory than `config`; the first change no result beyond rounding."""
    found = []
    if (rows := config.per_device_train_batch_size) > 1:
        less = rows // 2 if rows % 2 == 0 else 1
        steps = config.gradient_accumulation_steps * rows // less
        found.append(
            f"--per_device_train_batch_size {less} --gradient_accumulation_steps {steps}: the same updates in smaller "
            "micro-batches"
        )
    if config.evaluates and config.per_device_eval_batch_size > 1:
        found.append(f"--per_device_eval_batch_size {config.per_device_eval_batch_size // 2}: if it was an evaluation")
    if not config.gradient_checkpointing:
        found.append("--gradient_checkpointing: the same updates, activations are recomputed; a third slower")
    if world_size > 1:
        found.append(
            "--fsdp full_shard, or --deepspeed ds_configs/zero3.json (zero3_offload.json keeps the weights in the "
            "machine's memory): the same updates, the weights and the optimizer's state are shared out"
        )
    if not (config.bf16 or config.fp16):
        found.append("--bf16 (--fp16 on GPUs before Ampere): half the activations")
    length = "--max_seq_length" if config.resolved_task == "finetune" else "--block_size"
    found.append(f"{length} {config.length // 2} or less: shorter rows, other updates")
    return found
