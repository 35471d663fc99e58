"""How the model is spread over the processes: what the launch asks for, and the Accelerate plugin that does it.

Promises: one process, DDP, FSDP2 or ZeRO-1/2/3, exactly as the launcher, its Accelerate file and the flags ask, or a
stop that lists everything in the way (law 4): Accelerate itself would train DDP where FSDP2 was asked for on a CPU,
start one process where several were asked for, and clip at 1.0 where nothing was said. Batch size, accumulation,
clipping, optimizer, schedule and precision come from the flags; a DeepSpeed file that says otherwise is refused.
Costs: on a machine without a GPU the same files start over gloo; DeepSpeed then compiles a small library once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

from miniqwen.config.precision import precision_name
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.launches import is_on, launcher_problems
from miniqwen.distributed.workarounds import compilation_told, said_plainly, shard_on_this_device
from miniqwen.distributed.zero import zero_settings
from miniqwen.errors import UserError

SINGLE, DDP, FSDP2, ZERO = "one process", "DDP", "FSDP2", "ZeRO"
KINDS = {
    DistributedType.NO: SINGLE, DistributedType.MULTI_CPU: DDP, DistributedType.MULTI_GPU: DDP,
    DistributedType.FSDP: FSDP2, DistributedType.DEEPSPEED: ZERO,
}  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """What was asked for; `zero` holds DeepSpeed's settings as they are handed over, the flags' values among them."""

    kind: str
    precision: str  # as Accelerate names it: no, bf16, fp16
    on_cpu: bool
    zero: Mapping[str, Any] | None = None

    @property
    def stage(self) -> int:
        return int(self.zero["zero_optimization"]["stage"]) if self.zero else 0

    @property
    def name(self) -> str:
        return f"ZeRO-{self.stage}" if self.zero else self.kind


def asked_backend(config: TrainConfig, environment: Mapping[str, str] | None = None) -> Backend:
    """The backend that the launcher's environment and the flags ask for.

    Raises `UserError` with everything that contradicts itself or would not run as asked.
    """
    env = dict(os.environ if environment is None else environment)
    fsdp, zero = is_on(env, "ACCELERATE_USE_FSDP"), is_on(env, "ACCELERATE_USE_DEEPSPEED")
    precision = precision_name(config.fp16, config.bf16)
    problems = launcher_problems(env, precision)
    if fsdp and env.get("FSDP_VERSION", "1") != "2":
        problems.append("the Accelerate file asks for FSDP version 1: write fsdp_version: 2 (accelerate_configs/fsdp2)")
    if (fsdp or config.fsdp is not None) and (zero or config.deepspeed is not None):
        problems.append("FSDP and DeepSpeed are both asked for: give one")
    if zero and config.deepspeed is not None:
        problems.append("the Accelerate file asks for DeepSpeed, and so does --deepspeed: give one")
    if fsdp and config.fsdp is not None:
        problems.append("the Accelerate file asks for FSDP, and so does --fsdp: give one")
    on_cpu = not torch.cuda.is_available() or is_on(env, "ACCELERATE_USE_CPU")
    if on_cpu and ((fsdp and is_on(env, "FSDP_OFFLOAD_PARAMS")) or "offload" in (config.fsdp or "")):
        problems.append("FSDP2's offload moves parameters off a GPU, and there is none: leave offload out")
    settings = None
    if zero or config.deepspeed is not None:
        settings, found = zero_settings(config, precision, env)
        problems += found
        if config.optim == "muon":
            problems.append(
                "--optim muon needs whole matrices, and ZeRO updates flat pieces of them: use FSDP2 or DDP, or adamw"
            )
    if problems:
        raise UserError(*problems)
    several = int(env.get("WORLD_SIZE", "1")) > 1 or "LOCAL_RANK" in env
    kind = ZERO if settings else FSDP2 if fsdp or config.fsdp is not None else DDP if several else SINGLE
    return Backend(kind, precision, on_cpu, settings)


def make_accelerator(backend: Backend, config: TrainConfig, timeout: timedelta) -> Accelerator:
    """Join the other processes and start `backend`; raises `UserError` if something else would run.

    `timeout` is how long a collective may take.
    """
    told = compilation_told() if backend.kind == ZERO else contextlib.nullcontext()
    with told, said_plainly(backend.kind == FSDP2, backend.kind == ZERO, backend.on_cpu, config.fsdp):
        PartialState(cpu=backend.on_cpu, timeout=timeout)
        plugins: dict[str, Any] = {}
        if backend.kind == FSDP2:
            shard_on_this_device(backend.on_cpu)
            plugins["fsdp_plugin"] = _fsdp_plugin(backend.precision)
        elif backend.kind == ZERO:
            plugins["deepspeed_plugin"] = DeepSpeedPlugin(hf_ds_config=dict(backend.zero or {}), zero3_init_flag=False)
        accelerator = Accelerator(mixed_precision=backend.precision, **plugins)
    runs, world = KINDS.get(accelerator.distributed_type), int(os.environ.get("WORLD_SIZE", "1"))
    if runs != backend.kind or accelerator.num_processes != world:
        raise UserError(
            f"{backend.name} on {world} processes was asked for, and {accelerator.distributed_type.value} on "
            f"{accelerator.num_processes} would run: use a file of accelerate_configs/"
        )
    return accelerator


def _fsdp_plugin(precision: str) -> FullyShardedDataParallelPlugin:
    """FSDP2 as the environment describes it; in half precision, gradients are summed and the loss returned in fp32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if dtype else None
    return FullyShardedDataParallelPlugin(mixed_precision_policy=policy, cpu_ram_efficient_loading=False)
