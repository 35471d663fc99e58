"""What a launcher's environment asks for, and what of it would not run as it asks.

Promises: everything in the way is named, before a process group is joined. Costs: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def is_on(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "false").lower() in ("true", "1", "yes")


def launcher_problems(env: Mapping[str, str], precision: str) -> list[str]:
    """What the launcher's environment asks for that would not run."""
    problems = []
    for variable, name in (
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config (tensor, context or sequence parallelism)"),
        ("ACCELERATE_USE_SAGEMAKER", "SageMaker"),
    ):
        if is_on(env, variable):
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
    if env.get("WORLD_SIZE", "1") != "1" and not {"RANK", "LOCAL_RANK"} & set(env):
        problems.append(
            f"WORLD_SIZE is {env['WORLD_SIZE']} in the environment, and no launcher has said which process this is: "
            "start with torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    if env.get("WORLD_SIZE", "1") != "1" and "RANK" in env and not {"MASTER_ADDR", "MASTER_PORT"} <= set(env):
        problems.append(
            f"RANK is {env['RANK']} and WORLD_SIZE {env['WORLD_SIZE']} in the environment, without MASTER_ADDR and "
            "MASTER_PORT, where the processes meet: start with torchrun or accelerate launch, or unset RANK and "
            "WORLD_SIZE"
        )
    if alone and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        problems.append(
            f"srun has started {env['SLURM_STEP_NUM_TASKS']} tasks of this, and none knows of the others: start one "
            "launcher a node, as cluster/slurm_train.sh does (or `srun -n1`)"
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
    if torch.cuda.is_available() and here > torch.cuda.device_count() and not is_on(env, "ACCELERATE_USE_CPU"):
        problems.append(f"{here} processes on this machine, and {torch.cuda.device_count()} GPUs: one process a GPU")
    return problems
