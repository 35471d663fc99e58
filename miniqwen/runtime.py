"""Where it runs: the only module that configures Accelerate, devices, precision, seeds and collectives.

Promises: the same loop on one process and under DDP; the loss of an update is the sum over all its target tokens
divided by their number, over micro-batches *and* ranks (law 2); a launch that asks for something else than what would
run stops.
Costs: one all-reduce of a few integers per update, over gloo, so that nothing waits for the GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed
from transformers.utils import logging as transformers_logging

from miniqwen.config import TrainConfig, UserError


class StopRequest:
    """Set by SIGTERM and SIGINT: the run saves and ends at the next update; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class Runtime:
    """One process of the run: its device, its place among the others, and how gradients come together."""

    def __init__(self, config: TrainConfig) -> None:
        """Join the other processes; raises `UserError` for launches that would not run as they ask."""
        problems = launch_problems()
        if problems:
            raise UserError(*problems)
        if not torch.cuda.is_available():
            PartialState(cpu=True)
        # the tokenizer's threads; read once, when it first encodes
        os.environ["RAYON_NUM_THREADS"] = str(max(config.preprocessing_num_workers, 1))
        precision = "fp16" if config.fp16 else "bf16" if config.bf16 else "no"
        self._accelerator = Accelerator(mixed_precision=precision)
        self.precision = {"no": "fp32"}.get(precision, precision)
        self.device: torch.device = self._accelerator.device
        self.rank: int = self._accelerator.process_index
        self.world_size: int = self._accelerator.num_processes
        self.is_main = self.rank == 0
        # counts and flags stay on the CPU: reading them never waits for the GPU
        self._counts = dist.new_group(backend="gloo") if self.world_size > 1 else None
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
        """
        self._accelerator.backward(loss_sum * (self.world_size / max(num_targets, 1)))

    def step(self, model: torch.nn.Module, optimizer: Any, max_grad_norm: float) -> torch.Tensor:
        """Clip, update and clear; returns the gradient norm before clipping (a scalar on the device)."""
        limit = max_grad_norm if max_grad_norm > 0 else float("inf")
        norm = self._accelerator.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad()
        return norm.detach()

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

    def from_main(self, make: Callable[[], Any]) -> Any:
        """`make()` of rank 0, a JSON-able value, on every rank; so is the `UserError` that it raises."""
        if self._counts is None:
            return make()
        told = b""
        if self.is_main:
            try:
                told = json.dumps({"value": make()}).encode()
            except UserError as error:
                told = json.dumps({"problems": list(error.problems)}).encode()
        (size,) = self.sum(len(told))
        message = torch.tensor(bytearray(told) or bytearray(size), dtype=torch.uint8)
        dist.broadcast(message, src=0, group=self._counts)
        found = json.loads(bytes(message.numpy()))
        if "problems" in found:
            raise UserError(*found["problems"])
        return found["value"]

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
