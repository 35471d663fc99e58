"""Memory that runs out: one screen that names what needs less, those flags first that change no result."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from runs import TINY, run_script, state

from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError, shortage_told, user_errors_exit_2
from miniqwen.training.memory import advice, set_aside

CONFIG = TrainConfig(dataset_name="wikipedia", per_device_train_batch_size=6, gradient_accumulation_steps=2)


def test_memory_that_runs_out_is_one_screen_of_flags_and_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, user_errors_exit_2(), shortage_told(*advice(CONFIG, world_size=2)):
        torch.empty(2**60)  # no machine has it
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert "out of memory in the machine" in shown
    for flags in (
        "--per_device_train_batch_size 3 --gradient_accumulation_steps 4", "--gradient_checkpointing", "--bf16",
        "--fsdp full_shard", "--block_size 512",
    ):  # fmt: skip
        assert flags in shown
    assert len(shown.splitlines()) <= 9


def test_a_gpu_s_shortage_is_told_by_the_rank_that_has_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), user_errors_exit_2(), shortage_told(*advice(CONFIG, world_size=2)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB." in capsys.readouterr().err


STARVED = """
import os, sys
sys.path.insert(0, os.getcwd())
import torch, train_loop
from miniqwen.config.flags import parse
from miniqwen.config.training import TrainConfig
from miniqwen.errors import user_errors_exit_2
from miniqwen.model.modeling_miniqwen import TargetLoss
from miniqwen.training.preemption import StopRequest
whole, calls = TargetLoss.forward, []
def forward(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == 4:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return whole(self, *args, **kwargs)
TargetLoss.forward = forward
with user_errors_exit_2():
    config = parse(TrainConfig, program="train_loop.py", description="")
    train_loop.main(config, StopRequest(config))
"""


def test_a_run_that_it_happens_to_says_so_where_it_is_looked_for(model: Path, mirror: Path, tmp_path: Path) -> None:
    script, output = tmp_path / "starved.py", tmp_path / "run"
    script.write_text(STARVED)
    flags = [*TINY, "--model_path", model, "--data_root", mirror, "--output_dir", output, "--max_steps", 3]
    done = run_script(str(script), *flags)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "--per_device_train_batch_size 1 --gradient_accumulation_steps 4" in done.stderr
    assert state(output)["status"] == "failed"
    assert "out of memory: CUDA out of memory" in state(output)["reason"]


LOADING = """
import os, runpy, sys
sys.path.insert(0, os.getcwd())
import torch
whole = torch.nn.Module.to
def to(self, *args, **kwargs):
    if any(True for _ in self.parameters()):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    return whole(self, *args, **kwargs)
torch.nn.Module.to = to
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("command", "advised"),
    [
        ("train_loop.py --dataset_name wikipedia --block_size 32 --max_steps 2 --output_dir OUT", "--gradient_checkp"),
        ("eval_loop.py --dataset_name sciq --output_dir OUT", "--bf16"),
        ("miniqwen/generate.py hello", "--max_new_tokens"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_one_screen_too(
    command: str, advised: str, model: Path, mirror: Path, tmp_path: Path
) -> None:
    script = tmp_path / "loading.py"
    script.write_text(LOADING)
    words = command.replace("OUT", str(tmp_path / "out")).split()
    data = [] if "generate" in command else ["--data_root", mirror]
    done = run_script(str(script), *words, "--model_path", model, *data)
    assert done.returncode == 2, done.stderr
    assert "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB." in done.stderr
    assert advised in done.stderr
    assert "Traceback" not in done.stderr


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes") as caught, shortage_told(*advice(CONFIG, world_size=1)):
        raise RuntimeError("shapes differ")
    assert not isinstance(caught.value, UserError)


def test_only_what_is_left_to_lower_is_named() -> None:
    flags = {"per_device_train_batch_size": 1, "gradient_checkpointing": True, "bf16": True}
    least = TrainConfig(dataset_name="sciq", task="finetune", **flags)  # type: ignore[arg-type]
    assert advice(least, world_size=1) == ["--max_seq_length 256 or less: shorter rows, other updates"]


def test_what_lives_until_the_end_is_set_aside_from_pythons_collector() -> None:
    before = gc.get_freeze_count()
    try:
        set_aside()
        assert gc.get_freeze_count() > before + 10_000
    finally:
        gc.unfreeze()
