"""How the model is spread over the processes: what the launch asks for, and the Accelerate plugin that does it.

Promises: one process, DDP, FSDP2 or ZeRO-1/2/3, exactly as the launcher, its Accelerate file and the flags ask, or a
stop that lists everything in the way (law 4): Accelerate itself would train DDP where FSDP2 was asked for on a CPU,
start one process where several were asked for, and clip at 1.0 where nothing was said. Batch size, accumulation,
clipping, optimizer, schedule and precision come from the flags; a DeepSpeed file that says otherwise is refused.
Costs: on a machine without a GPU the same files start over gloo; DeepSpeed then compiles a small library once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin

from miniqwen.config import TrainConfig, UserError

SINGLE, DDP, FSDP2, ZERO = "one process", "DDP", "FSDP2", "ZeRO"
KINDS = {
    DistributedType.NO: SINGLE, DistributedType.MULTI_CPU: DDP, DistributedType.MULTI_GPU: DDP,
    DistributedType.FSDP: FSDP2, DistributedType.DEEPSPEED: ZERO,
}  # fmt: skip
DEEPSPEED_SCHEDULES = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
SETTINGS_OF_A_FILE = (
    "zero_stage", "gradient_accumulation_steps", "gradient_clipping", "offload_optimizer_device",
    "offload_param_device", "offload_optimizer_nvme_path", "offload_param_nvme_path",
)  # fmt: skip
# sections of a DeepSpeed file that would train something else than the flags say
FOREIGN_SECTIONS = (
    "tensor_parallel", "compression_training", "curriculum_learning", "data_efficiency", "progressive_layer_drop",
    "sparse_attention", "sparse_gradients", "eigenvalue", "amp",
)  # fmt: skip


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
    precision = "fp16" if config.fp16 else "bf16" if config.bf16 else "no"
    problems = launcher_problems(env, precision)
    if fsdp and env.get("FSDP_VERSION", "1") != "2":
        problems.append("the Accelerate file asks for FSDP version 1: write fsdp_version: 2 (accelerate_configs/fsdp2)")
    if (fsdp or config.fsdp is not None) and (zero or config.deepspeed is not None):
        problems.append("FSDP and DeepSpeed are both asked for: give one")
    if zero and config.deepspeed is not None:
        problems.append("the Accelerate file asks for DeepSpeed, and so does --deepspeed: give one")
    if fsdp and config.fsdp is not None:
        problems.append("the Accelerate file asks for FSDP, and so does --fsdp: give one")
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
    on_cpu = not torch.cuda.is_available() or _on(env, "ACCELERATE_USE_CPU")
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


def zero_settings(config: TrainConfig, precision: str, env: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """DeepSpeed's settings, from a JSON file or the Accelerate file, and what in them contradicts the flags.

    Settings that the flags decide may be left out, be "auto", or equal the flags.
    """
    file = config.deepspeed or env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if file == "none":
        where, settings = "the Accelerate file", _settings_from_environment(env)
    else:
        where = str(file)
        try:
            settings = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            return {}, [f"{where}: not a readable DeepSpeed JSON ({error})"]
    if not isinstance(settings, dict) or not isinstance(settings.get("zero_optimization"), dict):
        return {}, [f'{where}: has no "zero_optimization" section; ds_configs/ has examples']
    beside = set(env.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(",")) & set(SETTINGS_OF_A_FILE)
    if file != "none" and beside:
        return {}, [
            f"{where}: the Accelerate file sets {', '.join(sorted(beside))} beside it: write them into one place"
        ]
    problems = [f"{where}: {problem}" for problem in conflicts(settings, config, precision, env)]
    for name in ("train_batch_size", "optimizer", "scheduler"):  # decided by the flags, which were just compared
        settings.pop(name, None)
    settings["train_micro_batch_size_per_gpu"] = config.per_device_train_batch_size
    settings["gradient_accumulation_steps"] = 1  # the loop accumulates: the last update may be short
    settings["gradient_clipping"] = config.max_grad_norm
    settings["steps_per_print"] = 10**9
    for kind in ("bf16", "fp16"):
        given = settings.get(kind)
        settings[kind] = {**(given if isinstance(given, dict) else {}), "enabled": precision == kind}
    if precision == "bf16" and settings["zero_optimization"].get("stage") in (2, 3):
        settings.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    return settings, problems


def _settings_from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    """The `deepspeed_config` block of an Accelerate file, as its launcher passes it on."""
    zero: dict[str, Any] = {"stage": int(env.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))}
    for name in ("offload_optimizer", "offload_param"):
        device = env.get(f"ACCELERATE_DEEPSPEED_{name.upper()}_DEVICE", "none")
        if device != "none":
            zero[name] = {"device": device}
    settings: dict[str, Any] = {"zero_optimization": zero}
    for variable, name, kind in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", int),
        ("ACCELERATE_GRADIENT_CLIPPING", "gradient_clipping", float),
    ):
        if variable in env:
            settings[name] = env[variable] if env[variable] == "auto" else kind(env[variable])
    return settings


def conflicts(settings: Mapping[str, Any], config: TrainConfig, precision: str, env: Mapping[str, str]) -> list[str]:
    """Where DeepSpeed settings say something else than the flags."""
    micro, steps = config.per_device_train_batch_size, config.gradient_accumulation_steps
    decided: list[tuple[Mapping[str, Any], str, Any, str]] = [
        (settings, "train_micro_batch_size_per_gpu", micro, "--per_device_train_batch_size"),
        (settings, "gradient_accumulation_steps", steps, "--gradient_accumulation_steps"),
        (settings, "train_batch_size", micro * steps * int(env.get("WORLD_SIZE", "1")), "processes times batch flags"),
        (settings, "gradient_clipping", config.max_grad_norm, "--max_grad_norm"),
        (settings.get("bf16", {}), "enabled", precision == "bf16", "--bf16"),
        (settings.get("fp16", {}), "enabled", precision == "fp16", "--fp16"),
    ]
    optimizer, scheduler = settings.get("optimizer", {}), settings.get("scheduler", {})
    parameters = optimizer.get("params", {})
    decided += [
        (parameters, "lr", config.learning_rate, "--learning_rate"),
        (parameters, "weight_decay", config.weight_decay, "--weight_decay"),
        (parameters, "betas", [config.adam_beta1, config.adam_beta2], "--adam_beta1 and --adam_beta2"),
        (parameters, "eps", config.adam_epsilon, "--adam_epsilon"),
        (parameters, "adam_w_mode", True, "--optim adamw"),
    ]
    found = [
        f"{name} {section[name]!r} contradicts {flag} ({value!r}): leave it out"
        for section, name, value, flag in decided
        if name in section and section[name] not in ("auto", value)
    ]
    if optimizer and optimizer.get("type") not in ("AdamW", "Adam"):
        found.append(f"optimizer {optimizer.get('type')!r} contradicts --optim adamw: leave the section out")
    if scheduler and (
        DEEPSPEED_SCHEDULES.get(scheduler.get("type", "")) != config.lr_scheduler_type
        or set(scheduler.get("params", {}).values()) - {"auto"}
    ):
        found.append("scheduler: the flags make the schedule (--lr_scheduler_type, --warmup_steps): leave it out")
    if settings["zero_optimization"].get("stage") not in (1, 2, 3):
        stage = settings["zero_optimization"].get("stage", 0)
        found.append(f"zero_optimization.stage is {stage!r}: write 1, 2 or 3 (without sharding, use DDP)")
    found += [f"{name}: is not supported; leave it out" for name in FOREIGN_SECTIONS if settings.get(name)]
    return found


def make_accelerator(backend: Backend, config: TrainConfig, timeout: timedelta) -> Accelerator:
    """Join the other processes and start `backend`; raises `UserError` if something else would run.

    `timeout` is how long a collective may take.
    """
    # read already; Accelerate would change the loop's own accumulation, switch DeepSpeed off, and refuse the settings
    for variable in ("GRADIENT_ACCUMULATION_STEPS", "USE_CPU", "CONFIG_DS_FIELDS"):
        os.environ.pop(f"ACCELERATE_{variable}", None)
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


def check_engine(engine: Any, backend: Backend) -> None:
    """That DeepSpeed took the settings it was given; raises `UserError` with each one that it did not."""
    wanted = backend.zero or {}
    actual = {
        "stage": (engine.zero_optimization_stage(), backend.stage),
        "train_micro_batch_size_per_gpu": (
            engine.train_micro_batch_size_per_gpu(), wanted["train_micro_batch_size_per_gpu"]),
        "gradient_accumulation_steps": (engine.gradient_accumulation_steps(), wanted["gradient_accumulation_steps"]),
        "gradient_clipping": (engine.gradient_clipping(), wanted["gradient_clipping"]),
        "bf16": (engine.bfloat16_enabled(), backend.precision == "bf16"),
        "fp16": (engine.fp16_enabled(), backend.precision == "fp16"),
    }  # fmt: skip
    problems = [
        f"DeepSpeed runs with {name} {now}, not {asked}" for name, (now, asked) in actual.items() if now != asked
    ]
    if problems:
        raise UserError(*problems)
