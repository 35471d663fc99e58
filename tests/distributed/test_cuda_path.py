"""The CUDA path, as far as a machine without a GPU can go: devices, shards of eight, what is asked of the libraries.

Tests marked `gpu` run where there is one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ROOT, run_script
from safetensors.torch import load_file

from miniqwen.config.precision import PrecisionFlags
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.backends import DDP, FSDP2, ZERO, _fsdp_plugin, asked_backend
from miniqwen.distributed.gradients import clip_gradients, gradient_norm
from miniqwen.distributed.runtime import choose_kernels
from miniqwen.errors import UserError
from miniqwen.model.modeling_miniqwen import MiniQwenConfig, MiniQwenForCausalLM
from miniqwen.questions.examples import Example
from miniqwen.training.batches import MicroBatch, block_batch, example_batch, packed_batch
from miniqwen.training.optimizers import make_optimizer

SMALL = MiniQwenConfig(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
)  # fmt: skip
EIGHT = {
    "RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",
}  # fmt: skip


EXAMPLES = [Example(tuple(range(1, 12)), prompt_length=7), Example((5, 6, 7, 8), prompt_length=2)]
BATCHES = {
    "text": block_batch([np.arange(16) % 7, np.arange(16) % 5], 16),
    "text with documents": block_batch([np.arange(16) % 7, np.arange(16) % 5], 16, end=3),
    "fine-tuning": example_batch(EXAMPLES),
    "fine-tuning in blocks": packed_batch([EXAMPLES, EXAMPLES[:1]], 24),
}


def update(model: MiniQwenForCausalLM, optimizer: torch.optim.Optimizer, batch: MicroBatch) -> torch.Tensor:
    """One update, but for the reading of its norm, which is returned."""
    device = next(model.parameters()).device
    loss = model(**vars(batch.to(device)))
    (loss * (torch.where(loss.detach().isfinite(), 1.0, torch.nan) / batch.num_targets)).backward()
    norm = gradient_norm(model.parameters())
    clip_gradients(model.parameters(), norm, 0.5)
    optimizer.step()
    assert {parameter.grad.device for parameter in model.parameters() if parameter.grad is not None} == {device}
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", BATCHES)
def test_a_whole_update_never_leaves_its_device_and_nothing_is_read_from_it_but_the_norm(
    kind: str, dtype: torch.dtype
) -> None:
    """On the meta device, where a tensor made on the CPU by mistake cannot meet another, and none can be read."""
    with torch.device("meta"):
        model = MiniQwenForCausalLM(SMALL).to(dtype)
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1))
    norm = update(model, optimizer, BATCHES[kind])
    with pytest.raises(RuntimeError, match="meta"):
        float(norm)
    assert all(
        value.device.type == "meta"
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )
    assert len(optimizer.state) == len(list(model.parameters())) > 20


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_on_a_gpu_the_host_waits_for_nothing_but_the_norm(optim: str, autocast: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    model = MiniQwenForCausalLM(SMALL).to("cuda:0")
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1, optim=optim), "cuda")
    for mode in ("default", "error"):  # the first time libraries are opened
        for batch in BATCHES.values():
            torch.cuda.set_sync_debug_mode(mode)
            try:
                with torch.autocast("cuda", torch.float16, enabled=autocast):
                    norm = update(model, optimizer, batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert 0 < float(norm) < 1e3


def test_the_norm_of_a_large_gradient_is_right_and_cutting_it_is_torchs() -> None:
    """torch's own is 2e-4 short for this embedding of 4 million numbers on a CPU."""
    drawn = torch.Generator().manual_seed(0)
    shapes = ((16_384, 256), (256, 700), (3, 5), (1,), (0, 4))
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=drawn) * 1e-3
    exact = float(torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None]).norm())
    norm = gradient_norm(parameters)
    assert float(norm) == pytest.approx(exact, rel=2e-7)
    expected = [p.grad * (0.7 / exact) for p in parameters if p.grad is not None]
    clip_gradients(parameters, norm, 0.7)
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=2e-6, atol=0)
    clip_gradients(parameters, gradient_norm(parameters), 1.0)
    for parameter, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=2e-6, atol=0)


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


def test_a_gpu_s_flags_reach_torch_and_are_refused_where_they_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, refused in (((7, 5), True), ((8, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, found=capability: found)
        assert any("--tf32" in problem for problem in PrecisionFlags(tf32=True).problems()) == refused
    assert PrecisionFlags().problems() == []
    optimizer = make_optimizer(MiniQwenForCausalLM(SMALL), TrainConfig(), "cuda")
    assert {group["fused"] for group in optimizer.param_groups} == {True}
    try:
        choose_kernels(tf32=True, deterministic=True)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        choose_kernels(tf32=False, deterministic=False)
    assert torch.get_float32_matmul_precision() == "highest"


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
from miniqwen.distributed.gradients import clip_gradients, gradient_norm
from miniqwen.distributed.shards import local_parameters
from tests.distributed.test_cuda_path import SMALL
config = TrainConfig(fsdp="full_shard", optim="muon")
accelerator = make_accelerator(asked_backend(config), config, timedelta(seconds=60))
model = MiniQwenForCausalLM(SMALL)
total = count_parameters(model)
model, optimizer = accelerator.prepare(model, make_optimizer(model, config))
units = sum(type(module).__name__.startswith("FSDP") for module in model.modules())
tokens = torch.zeros((2, 16), dtype=torch.int64)
accelerator.backward(model(input_ids=tokens, targets=tokens))
from torch.distributed.tensor.debug import CommDebugMode
with CommDebugMode() as norm:
    clip_gradients(model.parameters(), gradient_norm(model.parameters()), 1.0)
with CommDebugMode() as moved:
    optimizer.step()
print("units", units, "share", local_parameters(model) / total, "state", len(optimizer.optimizer.state))
counts = moved.get_comm_counts()
print(sum(norm.get_comm_counts().values()), sum(counts.values()), {op.__name__ for op in counts})
"""


def test_one_of_eight_ranks_of_fsdp2_holds_an_eighth_and_muon_s_14_matrices_travel_twice(tmp_path: Path) -> None:
    """In a process group that only pretends to have seven others: eight matrices at a time go to the ranks and back."""
    script = tmp_path / "eighth.py"
    script.write_text(EIGHTH)
    done = run_script(str(script), environment={**EIGHT, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    words, collectives = (line.split() for line in done.stdout.splitlines()[-2:])
    assert collectives == ["1", "4", "{'alltoall_base_'}"]
    assert int(words[1]) >= SMALL.num_hidden_layers + 1  # each layer is a unit, and the whole
    assert float(words[3]) == pytest.approx(1 / 8, rel=0.02)
    assert int(words[5]) > 20


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [[], ["--bf16"], ["--fp16"]])
def test_a_gpu_run_resumes_bit_for_bit_at_real_lengths(
    model: Path, mirror: Path, tmp_path: Path, precision: list[str]
) -> None:
    """Flash and cuDNN attention split longer rows among blocks that add up in any order, without --deterministic."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    flags = (
        f"--model_path {longer(model, tmp_path)} --data_root {mirror} --dataset_name both --block_size 1024 "
        "--learning_rate 1e-2 --lr_scheduler_type constant --report_to none --validation_blocks 0 --deterministic"
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


def longer(model: Path, folder: Path) -> Path:
    """A copy of the model that takes 1,024 tokens: rotary positions need no weights."""
    copied = shutil.copytree(model, folder / "longer")
    described = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**described, "max_position_embeddings": 1024}))
    return copied
