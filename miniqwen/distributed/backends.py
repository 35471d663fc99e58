"""How the model is spread over the processes: what the launch asks for, and the Accelerate plugin that does it.

Promises: one process, DDP, FSDP2 or ZeRO-1/2/3, exactly as the launcher, its Accelerate file and the flags ask, or a
stop that lists everything in the way (law 4): Accelerate itself would train DDP where FSDP2 was asked for on a CPU,
start one process where several were asked for, and clip at 1.0 where nothing was said. Batch size, accumulation,
clipping, optimizer, schedule and precision come from the flags; a DeepSpeed file that says otherwise is refused.
Costs: on a machine without a GPU the same files start over gloo; DeepSpeed then compiles a small library once.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

from miniqwen.config.precision import precision_name
from miniqwen.config.training import TrainConfig
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
    fsdp, zero = _on(env, "ACCELERATE_USE_FSDP"), _on(env, "ACCELERATE_USE_DEEPSPEED")
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
    on_cpu = not torch.cuda.is_available() or _on(env, "ACCELERATE_USE_CPU")
    if on_cpu and ((fsdp and _on(env, "FSDP_OFFLOAD_PARAMS")) or "offload" in (config.fsdp or "")):
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


def _on(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "false").lower() in ("true", "1", "yes")


def launcher_problems(env: Mapping[str, str], precision: str) -> list[str]:
    """What the launcher's environment asks for that would not run."""
    problems = []
    for variable, name in (
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config (tensor, context or sequence parallelism)"),
        ("ACCELERATE_USE_SAGEMAKER", "SageMaker"),
    ):
        if _on(env, variable):
            problems.append(
                f"{name} was asked for by the Accelerate configuration: there are DDP, FSDP2 and ZeRO-1/2/3"
            )
    # `accelerate launch` with several processes and a file of type NO or MULTI_CPU, or none at all, starts one
    alone = not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & set(env)
    if alone and "ACCELERATE_MIXED_PRECISION" in env and {"MASTER_ADDR", "MASTER_PORT"} <= set(env):
        problems.append(
            "accelerate launch was asked for several processes and started one, as it does without a configuration "
            "file, or with one of distributed_type NO or MULTI_CPU: add --config_file accelerate_configs/ddp.yaml (or "
            "--num_processes 1, and unset MASTER_ADDR)"
        )
    asked = env.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        problems.append(
            f"the launcher asks for mixed precision {asked}, and the flags for {precision}: "
            f"{f'add --{asked}' if asked in ('bf16', 'fp16') else 'use --bf16'}, or write mixed_precision: 'no'"
        )
    if env.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        problems.append("the launcher asks for a dynamo backend: leave it out and give --torch_compile")
    here = int(env.get("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", "1")))
    if torch.cuda.is_available() and here > torch.cuda.device_count() and not _on(env, "ACCELERATE_USE_CPU"):
        problems.append(f"{here} processes on this machine, and {torch.cuda.device_count()} GPUs: one process a GPU")
    return problems


def make_accelerator(backend: Backend, config: TrainConfig, timeout: timedelta) -> Accelerator:
    """Join the other processes and start `backend`; raises `UserError` if something else would run.

    `timeout` is how long a collective may take.
    """
    # read already; Accelerate would change the loop's own accumulation, switch DeepSpeed off, and refuse the settings
    for variable in ("GRADIENT_ACCUMULATION_STEPS", "USE_CPU", "CONFIG_DS_FIELDS"):
        os.environ.pop(f"ACCELERATE_{variable}", None)
    if backend.on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed warns of it, also where it is not used
    # DeepSpeed 0.19.8 calls names that torch 2.13 has renamed, and torch says so at every call
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    if backend.kind in (FSDP2, ZERO):
        os.environ["ACCELERATE_USE_FSDP" if backend.kind == FSDP2 else "ACCELERATE_USE_DEEPSPEED"] = "true"
        if "RANK" not in os.environ:
            _be_a_world_of_one()
    if config.fsdp is not None:  # as Accelerate's launcher says it
        os.environ |= {
            "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_RESHARD_AFTER_FORWARD": str("shard_grad_op" not in config.fsdp).lower(),
            "FSDP_OFFLOAD_PARAMS": str("offload" in config.fsdp).lower(),
        }  # fmt: skip
    PartialState(cpu=backend.on_cpu, timeout=timeout)
    plugins: dict[str, Any] = {}
    if backend.kind == FSDP2:
        if backend.on_cpu:  # Accelerate shards on GPUs only; on a CPU it would train DDP without a word
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plugins["fsdp_plugin"] = _fsdp_plugin(backend.precision)
    elif backend.kind == ZERO:
        plugins["deepspeed_plugin"] = DeepSpeedPlugin(hf_ds_config=dict(backend.zero or {}), zero3_init_flag=False)
    accelerator = Accelerator(mixed_precision=backend.precision, **plugins)
    if backend.kind == ZERO:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # or models would be loaded in pieces, and their folder could not be checked
    runs, world = KINDS.get(accelerator.distributed_type), int(os.environ.get("WORLD_SIZE", "1"))
    if runs != backend.kind or accelerator.num_processes != world:
        raise UserError(
            f"{backend.name} on {world} processes was asked for, and {accelerator.distributed_type.value} on "
            f"{accelerator.num_processes} would run: use a file of accelerate_configs/"
        )
    return accelerator


def _be_a_world_of_one() -> None:
    """What a launcher would say to the only process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _fsdp_plugin(precision: str) -> FullyShardedDataParallelPlugin:
    """FSDP2 as the environment describes it; in half precision, gradients are summed and the loss returned in fp32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if dtype else None
    return FullyShardedDataParallelPlugin(mixed_precision_policy=policy, cpu_ram_efficient_loading=False)
