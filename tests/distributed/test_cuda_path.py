"""The CUDA path, as far as a machine without a GPU can go: devices, shards of eight, what is asked of the libraries.

Tests marked `gpu` run where there is one.
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
import torch
from runs import ROOT, run_script
from safetensors.torch import load_file

from miniqwen.config.training import TrainConfig
from miniqwen.distributed.backends import DDP, FSDP2, ZERO, _fsdp_plugin, asked_backend
from miniqwen.errors import UserError
from miniqwen.model.modeling_miniqwen import MiniQwenConfig, MiniQwenForCausalLM
from miniqwen.training.batches import MicroBatch
from miniqwen.training.optimizers import make_optimizer

SMALL = MiniQwenConfig(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
EIGHT = {
    "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}  # fmt: skip


def test_a_whole_update_never_leaves_its_device() -> None:
    """On the meta device, where a tensor made on the CPU by mistake cannot meet another."""
    with torch.device("meta"):
        model = MiniQwenForCausalLM(SMALL)
        tokens = torch.zeros((2, 16), dtype=torch.int64)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1))
    batch = MicroBatch(tokens, tokens).to(torch.device("meta"))
    loss = model(**vars(batch))
    assert loss.device.type == "meta"
    (loss / 32).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert norm.device.type == "meta"
    assert {parameter.grad.device.type for parameter in model.parameters() if parameter.grad is not None} == {"meta"}
    assert all(
        value.device.type == "meta"
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )
    assert len(optimizer.state) == len(list(model.parameters())) > 20


def test_devices_come_from_the_runtime_and_are_never_named() -> None:
    """`cuda` may be asked about, not chosen: the launcher says which device a process has."""
    named = {
        path.name: found
        for path in [*ROOT.glob("*.py"), *(ROOT / "miniqwen").rglob("*.py")]
        if (found := re.findall(r"(?:device=|\.to\(|device\()[\"']cuda|\.cuda\(\)", path.read_text()))
    }
    assert named == {}


def test_launches_on_gpus_ask_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    config = TrainConfig(bf16=True)
    files = {name: dataclasses.replace(config, **flags) for name, flags in (
        (DDP, {}), (FSDP2, {"fsdp": "full_shard"}), (f"{ZERO}-3", {"deepspeed": str(ROOT / "ds_configs/zero3.json")}),
    )}  # fmt: skip
    for name, flags in files.items():
        backend = asked_backend(flags, EIGHT)
        assert (backend.name, backend.on_cpu, backend.precision) == (name, False, "bf16")
        assert asked_backend(flags, {**EIGHT, "ACCELERATE_USE_CPU": "true"}).on_cpu
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(UserError, match="8 processes on this machine, and 4 GPUs"):
        asked_backend(config, EIGHT)


def test_fsdp2_computes_in_half_precision_and_sums_gradients_and_loss_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "FSDP_VERSION": "2"})
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        policy = _fsdp_plugin(precision).mixed_precision_policy
        assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (dtype, torch.float32, None)
    assert _fsdp_plugin("no").mixed_precision_policy is None


EIGHTH = """
import os, sys
sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "tests")]
import torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
from datetime import timedelta
from miniqwen.distributed.backends import asked_backend, make_accelerator
from miniqwen.config.training import TrainConfig
from miniqwen.model.modeling_miniqwen import MiniQwenForCausalLM, count_parameters
from miniqwen.training.optimizers import make_optimizer
from miniqwen.distributed.shards import local_parameters
from tests.distributed.test_cuda_path import SMALL
config = TrainConfig(fsdp="full_shard")
accelerator = make_accelerator(asked_backend(config), config, timedelta(seconds=60))
model = MiniQwenForCausalLM(SMALL)
total = count_parameters(model)
model, optimizer = accelerator.prepare(model, make_optimizer(model, config))
units = sum(type(module).__name__.startswith("FSDP") for module in model.modules())
tokens = torch.zeros((2, 16), dtype=torch.int64)
accelerator.backward(model(input_ids=tokens, targets=tokens))
accelerator.clip_grad_norm_(model.parameters(), 1.0)
optimizer.step()
print("units", units, "share", local_parameters(model) / total, "state", len(optimizer.optimizer.state))
"""


def test_one_of_eight_ranks_of_fsdp2_holds_an_eighth(tmp_path: Path) -> None:
    """In a process group that only pretends to have seven others."""
    script = tmp_path / "eighth.py"
    script.write_text(EIGHTH)
    done = run_script(str(script), environment={**EIGHT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    words = done.stdout.splitlines()[-1].split()
    assert int(words[1]) >= SMALL.num_hidden_layers + 1  # each layer is a unit, and the whole
    assert float(words[3]) == pytest.approx(1 / 8, rel=0.02)
    assert int(words[5]) > 20


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [[], ["--bf16"], ["--fp16"]])
def test_a_gpu_run_resumes_bit_for_bit(model: Path, mirror: Path, tmp_path: Path, precision: list[str]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    flags = (
        f"--model_path {model} --data_root {mirror} --dataset_name both --block_size 32 --learning_rate 1e-2 "
        "--lr_scheduler_type constant --report_to none --validation_blocks 8"
    ).split()
    for output, steps in (("whole", (8,)), ("parts", (3, 8))):
        for stop in steps:
            done = run_script(
                "train_loop.py", *flags, *precision, "--output_dir", tmp_path / output, "--max_steps", stop,
                "--resume_from_checkpoint", "auto", environment={"CUDA_VISIBLE_DEVICES": "0"},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert ", cuda, " in done.stdout
    one, other = (load_file(tmp_path / name / "checkpoint-8" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
