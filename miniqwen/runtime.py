"""Where it runs: the only module that configures Accelerate, devices, precision, seeds and collectives.

Promises: the same loop on one process and under DDP; the loss of an update is the sum over all its target tokens
divided by their number, over micro-batches *and* ranks (law 2); a launch that asks for something else than what would
run stops.
Costs: one all-reduce of a few integers per update, over gloo, so that nothing waits for the GPU.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import InitProcessGroupKwargs, set_seed
from transformers.utils import logging as transformers_logging

from miniqwen.config import TrainConfig, UserError
from miniqwen.peers import Peers, differing

START_UP = 1800.0  # seconds a collective may take until the first update is made: downloads, compilation


class Runtime:
    """One process of the run: its device, its place among the others, and how gradients come together."""

    def __init__(self, config: TrainConfig) -> None:
        """Join the other processes; raises `UserError` for launches that would not run as they ask."""
        problems = launch_problems()
        if problems:
            raise UserError(*problems)
        self._timeout = config.collective_timeout
        patience = timedelta(seconds=max(START_UP, self._timeout))
        if not torch.cuda.is_available():
            PartialState(cpu=True, timeout=patience)
        # the tokenizer's threads; read once, when it first encodes
        os.environ["RAYON_NUM_THREADS"] = str(config.preprocessing_num_workers)
        precision = "fp16" if config.fp16 else "bf16" if config.bf16 else "no"
        self._accelerator = Accelerator(
            mixed_precision=precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=patience)]
        )
        self.precision = {"no": "fp32"}.get(precision, precision)
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.is_main = self.rank == 0
        # counts and flags stay on the CPU: reading them never waits for the GPU
        self._counts = dist.new_group(backend="gloo", timeout=patience) if self.world_size > 1 else None
        self.peers = Peers(self.rank, self.gather(platform.node())) if self.world_size > 1 else None
        set_seed(config.seed)
        transformers_logging.disable_progress_bar()  # of loading and saving weights: the run has a bar of its own

    def describe(self) -> str:
        """What really runs, in a few words."""
        backend = "one process" if self.world_size == 1 else f"DDP over {self.world_size} processes"
        return f"{backend}, {self.device.type}, {self.precision}"

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[torch.nn.Module, Any]:
        """Move the model to the device and wrap both for the backend."""
        return self._accelerator.prepare(model, optimizer)

    def unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model under the backend's wrapper."""
        return self._accelerator.unwrap_model(model)

    @contextlib.contextmanager
    def accumulating(self, model: torch.nn.Module, sync: bool) -> Iterator[None]:
        """Around each micro-batch: gradients travel between ranks only at the last one (`sync`)."""
        self._accelerator.sync_gradients = sync
        with contextlib.nullcontext() if sync else self._accelerator.no_sync(model):
            yield

    def backward(self, loss_sum: torch.Tensor, num_targets: int) -> None:
        """Gradients of `loss_sum / num_targets`, with the targets counted over the whole update and all ranks.

        Backends average gradients over ranks, so the sum needs the world size as a factor: here and nowhere else.
        A loss that is not finite makes the gradients so too, on every rank: their norm then tells of both.
        """
        poison = torch.where(loss_sum.detach().isfinite(), 1.0, torch.nan)
        self._accelerator.backward(loss_sum * (poison * (self.world_size / max(num_targets, 1))))

    def step(self, model: torch.nn.Module, optimizer: Any, max_grad_norm: float) -> float:
        """Clip, update and clear; returns the gradient norm before clipping.

        Where that is not finite, which all ranks find alike, nothing is updated. Reading the norm is the one place
        where the host waits for the device in an update.
        """
        limit = max_grad_norm if max_grad_norm > 0 else float("inf")
        norm = float(self._accelerator.clip_grad_norm_(model.parameters(), limit))
        if math.isfinite(norm) or self.precision == "fp16":  # fp16's loss scaler skips by itself, and learns from it
            optimizer.step()
        optimizer.zero_grad()
        return norm

    def sum(self, *values: int) -> tuple[int, ...]:
        """Each integer summed over the ranks."""
        if self._counts is None:
            return values
        counts = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(counts, group=self._counts)
        return tuple(counts.tolist())

    def sum_tensor(self, value: torch.Tensor) -> torch.Tensor:
        """A device tensor summed over the ranks, in float64."""
        total = value.detach().to("cpu" if self._counts else value.device, torch.float64, copy=True)
        if self._counts is not None:
            dist.all_reduce(total, group=self._counts)
        return total

    def gather(self, value: Any) -> list[Any]:
        """JSON-able `value` of every rank, in rank order, on every rank."""
        if self._counts is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._counts)
        return values

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Raises `UserError` on every rank, naming what differs, when the ranks do not all bring the same facts."""
        problems = differing(self.gather(dict(facts)), self.peers.hosts if self.peers else [])
        if problems:
            raise UserError(*problems)

    def lower_timeouts(self) -> None:
        """From the first update on a rank that does not come to a collective is missed sooner."""
        for group in list(dist.distributed_c10d._world.pg_map) if self.peers else ():
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout), group)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 goes through first, and the others after it (for downloads)."""
        with self._accelerator.main_process_first():
            yield

    def wait(self) -> None:
        """Until every rank is here."""
        self._accelerator.wait_for_everyone()

    def print(self, *words: object) -> None:
        """On rank 0 only."""
        if self.is_main:
            print(*words, flush=True)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            self.wait()
            dist.destroy_process_group()


def launch_problems() -> list[str]:
    """What the launcher asks for that this version does not do; a silent fallback would train something else."""
    asked = {"ACCELERATE_USE_DEEPSPEED": "DeepSpeed ZeRO", "ACCELERATE_USE_FSDP": "FSDP"}
    return [
        f"{name} was asked for by the Accelerate configuration, and this version trains in one process or under DDP "
        "only: use accelerate_configs/ddp.yaml"
        for variable, name in asked.items()
        if os.environ.get(variable, "false").lower() in ("true", "1")
    ]
