"""What DeepSpeed is told: ZeRO's settings from a file, everything else from the flags.

Promises: batch size, accumulation, clipping, precision, optimizer and schedule are the flags'; a file may leave them
out, write "auto", or agree, and each contradiction is named; what the engine took is compared with what it was given.
Costs: nothing is imported or started here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.files import read_json
from miniqwen.shipped import shipped

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
            settings = read_json(Path(shipped(file)))
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
    if precision == "bf16":  # as DDP and FSDP2 do: gradients are summed in fp32, over micro-batches and over ranks
        settings.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
        settings.setdefault("communication_data_type", "fp32")
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


def check_engine(engine: Any, wanted: Mapping[str, Any]) -> None:
    """That DeepSpeed took the settings it was given; raises `UserError` with each one that it did not."""
    actual = {
        "stage": (engine.zero_optimization_stage(), wanted["zero_optimization"]["stage"]),
        "train_micro_batch_size_per_gpu": (
            engine.train_micro_batch_size_per_gpu(), wanted["train_micro_batch_size_per_gpu"]),
        "gradient_accumulation_steps": (engine.gradient_accumulation_steps(), wanted["gradient_accumulation_steps"]),
        "gradient_clipping": (engine.gradient_clipping(), wanted["gradient_clipping"]),
        "bf16": (engine.bfloat16_enabled(), wanted["bf16"]["enabled"]),
        "fp16": (engine.fp16_enabled(), wanted["fp16"]["enabled"]),
    }  # fmt: skip
    problems = [
        f"DeepSpeed runs with {name} {now}, not {asked}" for name, (now, asked) in actual.items() if now != asked
    ]
    if problems:
        raise UserError(*problems)
