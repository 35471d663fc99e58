"""Where it runs: the process among the others, its device, precision, randomness and collectives.

Promises: the same loop on one process, under DDP, FSDP2 and ZeRO-1/2/3; the loss of an update is the sum over all its
target tokens divided by their number, over micro-batches *and* ranks (law 2); what is random in an update follows from
the seed, the update and the rank, so that resuming needs no generator's state; an error of one rank stops them all.
Costs: one all-reduce of a few integers per update, over gloo, so that nothing waits for the GPU.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import set_seed
from transformers.utils import logging as transformers_logging

from miniqwen.config.training import TrainConfig
from miniqwen.distributed.backends import DDP, asked_backend, make_accelerator
from miniqwen.distributed.gradients import clip_gradients, gradient_norm
from miniqwen.distributed.peers import Peers
from miniqwen.distributed.ranks import START_UP, Ranks
from miniqwen.distributed.shards import Tensors, inner, is_engine, local_parameters, restore_masters, restore_optimizer
from miniqwen.distributed.workarounds import compilation_told
from miniqwen.distributed.zero import check_engine


class Runtime(Ranks):
    """One process of the run: its device, its place among the others, and how gradients come together."""

    def __init__(self, config: TrainConfig) -> None:
        """Join the other processes; raises `UserError` for launches that would not run as they ask."""
        self._timeout = config.collective_timeout
        patience = timedelta(seconds=max(START_UP, self._timeout))
        # every worker encodes in its own thread: threads of the tokenizer's own would wait for each other in each batch
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        # blocks of a GPU's memory that can grow: shapes that are new all the time leave no holes in it
        if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        choose_kernels(config.tf32, config.deterministic)
        self.backend = asked_backend(config)
        self._accelerator, precision = make_accelerator(self.backend, config, patience), self.backend.precision
        self._seed, self._compiles = config.seed, config.torch_compile
        self.precision = {"no": "fp32"}.get(precision, precision)
        self._tf32 = config.tf32
        self.device: torch.device = self._accelerator.device
        super().__init__(self._accelerator.process_index, self._accelerator.num_processes, patience)
        self.peers = Peers(self.rank, self.hosts) if self.world_size > 1 else None
        set_seed(config.seed)
        transformers_logging.disable_progress_bar()  # of loading and saving weights: the run has a bar of its own

    def describe(self, model: torch.nn.Module, parameters: int) -> str:
        """What really runs, on one line; `parameters` of the prepared `model` are distinct ones."""
        here = int(os.environ.get("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", self.world_size)))
        nodes = max(self.world_size // here, 1)
        over = (
            f" over {self.world_size} process{'es' if self.world_size > 1 else ''} on {nodes} node{'s' * (nodes > 1)}"
        )
        place = f"{self.backend.name}{over if self.backend.name != 'one process' else ''}"
        held = f"{parameters:,} parameters"
        if self.world_size > 1:
            held = f"{local_parameters(model):,} of {held} on each rank"
        precision = self.precision
        if self.device.type == "cuda" and precision == "fp32":
            precision += " with TF32" if self._tf32 else " without TF32 (--tf32 and --bf16 are several times faster)"
        return f"{place}, {self.device.type}, {precision}; {held}"

    def prepare(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[torch.nn.Module, Any]:
        """Move the model to the device and wrap both for the backend."""
        with compilation_told() if self.backend.zero is not None else contextlib.nullcontext():
            prepared, prepared_optimizer = self._accelerator.prepare(model, optimizer)
        if self.backend.zero is not None:
            check_engine(prepared, self.backend.zero)
        if self.backend.kind == DDP and not self._compiles:
            self._settle(prepared)
        return prepared, prepared_optimizer

    def _settle(self, model: torch.nn.Module) -> None:
        """Let DDP put the gradients into the order in which they come, which it does behind the first backward.

        What several processes sum depends on that order in its last bits: a resumed run would make its first update in
        another one than the run that was not interrupted. A compiled model would be compiled for these two tokens.
        """
        tokens = torch.zeros((1, 2), dtype=torch.int64, device=self.device)
        model(input_ids=tokens, targets=tokens).backward()
        model.zero_grad()

    def restore(
        self, model: torch.nn.Module, optimizer: Any, weights: Tensors, state: Tensors | None,
        loss_scale: Mapping[str, float] | None,
    ) -> None:  # fmt: skip
        """Give prepared `model` and `optimizer` what a checkpoint holds (see shards.py); no `state` in a new run."""
        if state is not None:
            restore_optimizer(model, optimizer, weights, state)
            scaler = self._scaler(model)
            if scaler is not None and loss_scale is not None:
                set_scale(scaler, loss_scale)
        elif self.backend.zero is not None and self.precision != "fp32":
            restore_masters(model, weights)

    def loss_scale(self, model: torch.nn.Module) -> dict[str, float] | None:
        """fp16's dynamic loss scale, and for how many updates it has held; None in other precisions."""
        scaler = self._scaler(model)
        return None if scaler is None else scale_of(scaler)

    def _scaler(self, model: torch.nn.Module) -> Any:
        if self.precision != "fp16":
            return None
        return model.optimizer.loss_scaler if is_engine(model) else self._accelerator.scaler  # type: ignore[union-attr]

    def unwrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model under the backend's wrapper."""
        return inner(model)

    def evaluable(self, model: torch.nn.Module) -> torch.nn.Module:
        """What to call without gradients: sharded models only gather their parameters through their wrapper."""
        return model if is_engine(model) else inner(model)

    def seed_update(self, step: int) -> None:
        """Make what is random in update `step` (a model's dropout) depend on it, and not on what came before."""
        torch.manual_seed(((self._seed * 1_000_003 + step) * 65_537 + self.rank) % 2**64)

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
        if is_engine(model):
            norm = float(self._accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))  # it clips by itself
        else:
            self._accelerator.unscale_gradients()
            measured = gradient_norm(model.parameters())
            if max_grad_norm > 0:
                clip_gradients(model.parameters(), measured, max_grad_norm)
            norm = float(measured)
        # fp16's loss scaler and DeepSpeed skip by themselves, and learn from it
        if math.isfinite(norm) or self.precision == "fp16":
            optimizer.step()
        optimizer.zero_grad()
        return norm

    def lower_timeouts(self) -> None:
        """From the first update on a rank that does not come to a collective is missed sooner."""
        for group in list(dist.distributed_c10d._world.pg_map) if self.peers else ():
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=self._timeout), group)

    def wait(self) -> None:
        """Until every rank is here."""
        self._accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            self.wait()
            dist.destroy_process_group()


def choose_kernels(tf32: bool, deterministic: bool) -> None:
    """In which precision GPUs multiply fp32, and whether only kernels may run that give the same bits each time."""
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for debugging only


def scale_of(scaler: Any) -> dict[str, float]:
    """The scale of torch's or DeepSpeed's loss scaler, and the updates since it last changed or overflowed."""
    if hasattr(scaler, "cur_scale"):
        return {"scale": scaler.cur_scale, "updates": scaler.cur_iter - scaler.last_overflow_iter - 1}
    return {"scale": scaler.get_scale(), "updates": scaler._get_growth_tracker()}


def set_scale(scaler: Any, stored: Mapping[str, float]) -> None:
    """Give a scaler what `scale_of` took."""
    if hasattr(scaler, "cur_scale"):
        scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = stored["scale"], int(stored["updates"]), -1
    else:
        values = {"scale": stored["scale"], "_growth_tracker": int(stored["updates"])}
        scaler.load_state_dict({**scaler.state_dict(), **values})
