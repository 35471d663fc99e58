"""What the launch asks for is what runs, or it stops: environments of launchers, DeepSpeed files, real launches."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import ROOT, metrics, needs_compiler, run_script

from miniqwen.config.training import TrainConfig
from miniqwen.distributed.backends import DDP, FSDP2, SINGLE, ZERO, asked_backend
from miniqwen.distributed.launches import launcher_problems
from miniqwen.distributed.workarounds import MADE_ON, compilation_told
from miniqwen.errors import UserError
from miniqwen.lock import this_machine

CONFIG = TrainConfig(per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-3)
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "no"}
TWO = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
       "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}  # fmt: skip
FSDP = {**ACCELERATE, **TWO, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
DEEPSPEED = {**ACCELERATE, **TWO, "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}


def problems(environment: dict[str, str], **flags: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        asked_backend(dataclasses.replace(CONFIG, **flags), environment)
    return list(caught.value.problems)


def test_launchers_are_understood() -> None:
    kinds = {
        name: asked_backend(dataclasses.replace(CONFIG, fsdp=fsdp), environment).name
        for name, environment, fsdp in (
            ("python", {}, None), ("torchrun", TWO, None), ("accelerate", {**ACCELERATE, **TWO}, None),
            ("one process of accelerate", {**ACCELERATE, "ACCELERATE_USE_CPU": "True"}, None),
            ("fsdp file", FSDP, None), ("fsdp flag", TWO, "full_shard"), ("fsdp alone", {}, "shard_grad_op"),
            ("zero file", DEEPSPEED, None),
        )
    }  # fmt: skip
    assert kinds == {
        "python": SINGLE, "torchrun": DDP, "accelerate": DDP, "one process of accelerate": SINGLE, "fsdp file": FSDP2,
        "fsdp flag": FSDP2, "fsdp alone": FSDP2, "zero file": f"{ZERO}-3",
    }  # fmt: skip


def test_a_launch_that_would_not_run_as_asked_is_refused() -> None:
    alone = {**ACCELERATE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert "asked for several processes and started one" in problems(alone)[0]
    assert "FSDP version 1" in problems({**FSDP, "FSDP_VERSION": "1"})[0]
    assert "Megatron" in problems({**TWO, "ACCELERATE_USE_MEGATRON_LM": "true"})[0]
    assert "parallelism_config" in problems({**FSDP, "ACCELERATE_USE_PARALLELISM_CONFIG": "true"})[0]
    assert "add --bf16" in problems({**TWO, "ACCELERATE_MIXED_PRECISION": "bf16"})[0]
    assert "--torch_compile" in problems({**TWO, "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"})[0]
    assert "leave offload out" in problems(TWO, fsdp="full_shard offload")[0]
    assert "leave offload out" in problems({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"})[0]
    assert "both asked for" in problems(FSDP, deepspeed=str(ROOT / "ds_configs/zero2.json"))[0]
    assert "flat pieces" in problems(DEEPSPEED, optim="muon")[0]
    assert asked_backend(dataclasses.replace(CONFIG, optim="muon"), FSDP).name == FSDP2
    everything = {**DEEPSPEED, "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_CLIPPING": "0.5"}
    assert len(problems(everything, optim="muon")) == 3


def test_deepspeed_takes_batch_clipping_and_precision_from_the_flags_whatever_its_file_leaves_out() -> None:
    flags = dataclasses.replace(CONFIG, max_grad_norm=0.0, bf16=True)
    for environment in (DEEPSPEED, {**DEEPSPEED, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}):
        settings = asked_backend(flags, environment).zero
        assert settings is not None
        assert settings["gradient_clipping"] == 0.0  # Accelerate would write 1.0
        assert settings["train_micro_batch_size_per_gpu"] == 4
        assert settings["gradient_accumulation_steps"] == 1  # the loop accumulates
        assert (settings["bf16"]["enabled"], settings["fp16"]["enabled"]) == (True, False)
        assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
        assert settings["communication_data_type"] == "fp32"


def test_users_deepspeed_files_are_taken_and_their_contradictions_listed(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    usual = {  # as the Trainer's documentation has it
        "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16}, "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")},
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": "auto", "total_num_steps": "auto"}},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": 2e8},
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto", "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto", "wall_clock_breakdown": False,
    }  # fmt: skip
    file.write_text(json.dumps(usual))
    backend = asked_backend(dataclasses.replace(CONFIG, deepspeed=str(file)), TWO)
    assert backend.stage == 2
    assert backend.zero is not None
    assert not {"optimizer", "scheduler", "train_batch_size"} & set(backend.zero)
    assert backend.zero["fp16"]["initial_scale_power"] == 16
    equal = {**usual, "train_batch_size": 16, "gradient_clipping": 1.0, "gradient_accumulation_steps": 2}
    file.write_text(json.dumps(equal))
    asked_backend(dataclasses.replace(CONFIG, deepspeed=str(file)), TWO)

    wrong = {
        **usual, "train_batch_size": 32, "gradient_clipping": 0.5, "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": 8, "bf16": {"enabled": True}, "tensor_parallel": {"autotp_size": 2},
        "optimizer": {"type": "Lamb", "params": {"lr": 3e-4}}, "scheduler": {"type": "OneCycle", "params": {}},
        "zero_optimization": {"stage": 0},
    }  # fmt: skip
    file.write_text(json.dumps(wrong))
    found = "\n".join(problems(TWO, deepspeed=str(file)))
    for flag in (
        "--per_device_train_batch_size", "--gradient_accumulation_steps", "--max_grad_norm", "--bf16",
        "--learning_rate", "--optim", "--lr_scheduler_type", "stage is 0", "tensor_parallel", "train_batch_size 32",
    ):  # fmt: skip
        assert flag in found
    assert found.count(str(file)) == 10
    file.write_text(json.dumps(usual))
    both = {**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file), "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage"}
    assert "sets zero_stage beside it" in problems(both)[0]
    file.write_text("{")
    assert "not a readable DeepSpeed JSON" in problems(TWO, deepspeed=str(file))[0]
    file.write_text("{}")
    assert "zero_optimization" in problems(TWO, deepspeed=str(file))[0]


def test_shipped_files_say_where_a_run_runs_and_nothing_else() -> None:
    files = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
    assert {file.stem for file in files} == {
        "cpu", "one_gpu", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload", "multi_node_ddp",
        "multi_node_fsdp2", "multi_node_zero3",
    }  # fmt: skip
    for file in files:
        written = yaml.safe_load(file.read_text())
        assert file.read_text().startswith("# ")
        assert written["mixed_precision"] == "no"
        assert file.stem == "cpu" or "use_cpu" not in written
        assert "fsdp_transformer_layer_cls_to_wrap" not in written.get("fsdp_config", {})
        zero = written.get("deepspeed_config", {})
        assert not {"gradient_clipping", "gradient_accumulation_steps", "deepspeed_config_file"} & set(zero)
        assert ("multi_node" in file.stem) == (written["num_machines"] > 1)
        assert not zero or (written["num_machines"] > 1) == (zero.get("deepspeed_multinode_launcher") == "standard")
    files = sorted((ROOT / "ds_configs").glob("*.json"))
    assert len(files) == 4
    for file in files:
        assert list(json.loads(file.read_text())) == ["zero_optimization"]
        assert asked_backend(dataclasses.replace(CONFIG, deepspeed=str(file)), TWO).stage == int(file.stem[4])


@pytest.fixture(scope="module")
def given(model: Path, mirror: Path) -> list[str]:
    """Flags of a short run on questions with choices."""
    return (
        f"--model_path {model} --dataset_name sciq --data_root {mirror} --eval_strategy steps --eval_steps 1 "
        "--max_seq_length 96 --learning_rate 1e-3 --logging_steps 1 --max_steps 2 --report_to none "
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 2"
    ).split()


def evaluations(output: Path) -> list[list[float]]:
    """[loss, accuracy] of each evaluation of a run."""
    written = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [[line["eval_loss"], line["eval_accuracy"]] for line in written if "eval_loss" in line]


@pytest.fixture(scope="module")
def on_one_process(given: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    output = tmp_path_factory.mktemp("one") / "out"
    done = run_script("train_loop.py", *given, "--gradient_accumulation_steps", 4, "--output_dir", output)
    assert done.returncode == 0, done.stderr
    return evaluations(output)


def launched(file: str, output: Path, given: list[str], *flags: str, limit: float = 300) -> str:
    """What a run says under `accelerate launch --config_file FILE --num_processes 2`, on a machine without a GPU."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / file)]
    script = ["--num_processes", "2", "--main_process_port", "0", "train_loop.py"]
    done = run_script(*launcher, *script, *given, "--output_dir", output, *flags, limit=limit)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@needs_compiler
@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("ddp.yaml", "DDP over 2 processes on 1 node, cpu, fp32; "),
        ("fsdp2.yaml", "FSDP2 over 2 processes on 1 node, cpu, fp32; "),
        ("zero3.yaml", "ZeRO-3 over 2 processes on 1 node, cpu, fp32; "),
        pytest.param("zero1.yaml", "ZeRO-1 over 2 processes on 1 node, cpu, fp32; ", marks=pytest.mark.slow),
        pytest.param("zero2.yaml", "ZeRO-2 over 2 processes on 1 node, cpu, fp32; ", marks=pytest.mark.slow),
        pytest.param("zero3_offload.yaml", "ZeRO-3 over 2 processes on 1 node, cpu", marks=pytest.mark.slow),
    ],
)
def test_shipped_files_start_without_a_gpu_say_what_runs_and_evaluate_as_one_process_does(
    given: list[str], on_one_process: list[list[float]], tmp_path: Path, file: str, says: str
) -> None:
    said = launched(file, tmp_path / "out", given, limit=600)
    assert says in said
    assert "; 2 updates of 16 examples (at most 1,536 tokens)" in said
    held, of = (int(text.split()[0].replace(",", "")) for text in said.split("fp32; ")[1].split(" of ")[:2])
    assert held < of if file == "fsdp2.yaml" else held <= of
    assert metrics(tmp_path / "out")[2]["loss"] > 0
    found = evaluations(tmp_path / "out")
    assert len(found) == len(on_one_process) == 2
    for own, expected in zip(found, on_one_process, strict=True):
        assert own == pytest.approx(expected, rel=1e-5)


def test_several_processes_that_the_launcher_would_not_start_are_found(given: list[str], tmp_path: Path) -> None:
    for file in ("one_gpu.yaml", "cpu.yaml"):
        launcher = ["accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / file)]
        done = run_script(
            "-m", *launcher, "--num_processes", "2", "train_loop.py", *given, "--output_dir", tmp_path / "out"
        )
        assert done.returncode != 0
        assert "asked for several processes and started one" in done.stderr
    assert not (tmp_path / "out").exists()


@needs_compiler
@pytest.mark.slow
def test_the_deepspeed_launcher_and_plain_python_run_zero(given: list[str], tmp_path: Path) -> None:
    zero = ["--deepspeed", ROOT / "ds_configs/zero2.json"]
    done = run_script("train_loop.py", *given, "--output_dir", tmp_path / "alone", *zero)
    assert "ZeRO-2 over 1 process on 1 node" in done.stdout, done.stderr[-3000:]
    done = run_script(
        "-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", "29713", "train_loop.py", *given,
        "--output_dir", tmp_path / "two", *zero,
    )  # fmt: skip
    assert "ZeRO-2 over 2 processes on 1 node" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4 in the environment, and no launcher has said which process this is"),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"}, "srun has started 4 tasks of this, and none knows"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "without MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, None),
        ({"SLURM_STEP_NUM_TASKS": "4", **TWO}, None),  # under a launcher under srun
    ],
)
def test_processes_that_nothing_has_introduced_to_each_other_are_found(
    environment: dict[str, str], told: str | None
) -> None:
    found = launcher_problems(environment, "no")
    assert (told is None and found == []) or (told is not None and told in found[0])


def test_the_lock_of_a_compilation_that_was_killed_is_removed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's FileBaton would wait for it without end, and without a word."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    locks = {name: tmp_path / name / "lock" for name in ("killed", "compiling", "elsewhere", "long_ago", "unknown")}
    for name, lock in locks.items():
        lock.parent.mkdir()
        lock.touch()
        if name != "unknown":
            made_on = ["far"] if name in ("elsewhere", "long_ago") else this_machine()
            (lock.parent / MADE_ON).write_text(repr(made_on))
    os.utime(locks["long_ago"], (0, 0))
    with locks["compiling"].open(), compilation_told():
        assert {name for name, lock in locks.items() if lock.exists()} == {"compiling", "elsewhere", "unknown"}
