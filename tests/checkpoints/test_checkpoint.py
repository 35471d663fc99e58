"""What survives: shards and their index, disks that fill up, saves that are killed, ranks that fail alone."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import OFFLINE, ROOT, command, ranks_by, run_script, warm_python
from safetensors.torch import load_file
from transformers import Qwen3ForCausalLM

from miniqwen.checkpoints.checkpoint import Progress, complete_checkpoints, read_checkpoint, verify, write_checkpoint
from miniqwen.checkpoints.tensor_files import StoredTensors, TensorWriter
from miniqwen.distributed.runtime import scale_of, set_scale
from miniqwen.distributed.shards import gathered
from miniqwen.errors import UserError
from miniqwen.model.modeling_miniqwen import describe_model, load_model


def write(folder: Path, step: int, values: dict[str, torch.Tensor]) -> Path:
    return write_checkpoint(folder, Progress(step=step), {"seed": 1}, None, values.items(), lambda _: None)


VALUES = {"model.a": torch.arange(6.0).reshape(2, 3), "exp_avg.a": torch.ones(2, 3), "step.a": torch.tensor(4.0)}


def test_a_checkpoint_gives_back_what_it_took(tmp_path: Path) -> None:
    folder = write(tmp_path, 4, VALUES)
    verify(folder)
    read = read_checkpoint(folder)
    assert (read.progress.step, read.identity) == (4, {"seed": 1})
    assert torch.equal(read.weights["a"], VALUES["model.a"])
    assert {name: value.tolist() for name, value in read.optimizer_state.items()} == {
        "exp_avg.a": [[1.0] * 3] * 2, "step.a": 4.0
    }  # fmt: skip


def test_large_models_lie_in_shards_that_stock_transformers_loads(model: Path, tmp_path: Path) -> None:
    ours = load_model(model)
    writer = TensorWriter(tmp_path, "model", shard_bytes=20_000)
    for name, tensor in gathered(ours, None):
        writer.add(name.removeprefix("model."), tensor)
    writer.close()
    describe_model(ours, tmp_path, torch.float32)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert 3 < len(shards) < 10
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    assert index["metadata"]["total_size"] == 4 * sum(parameter.numel() for parameter in ours.parameters())
    assert not list(tmp_path.glob("*.part"))
    theirs = dict(Qwen3ForCausalLM.from_pretrained(tmp_path).named_parameters())
    again = dict(load_model(tmp_path).named_parameters())
    stored = StoredTensors(tmp_path, "model")
    assert len(stored) > 20
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name])
        assert torch.equal(parameter, again[name])
        assert torch.equal(parameter, stored[name])


def test_a_save_that_fails_leaves_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, 4, VALUES)

    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield "model.a", torch.zeros(2)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, Progress(step=8), {}, None, failing(), lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]
    verify(tmp_path / "checkpoint-4")


def test_a_step_that_is_saved_twice_keeps_the_second(tmp_path: Path) -> None:
    write(tmp_path, 4, VALUES)
    folder = write(tmp_path, 4, {"model.a": torch.zeros(1)})
    verify(folder)
    assert read_checkpoint(folder).weights["a"].tolist() == [0.0]
    assert complete_checkpoints(tmp_path) == [folder]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"])
def test_every_damaged_or_missing_file_is_found(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, 4, VALUES)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-3])
    with pytest.raises(UserError, match=r"damaged|cannot be resumed from"):
        verify(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        verify(folder)


FLAGS = (
    "--task pretrain --dataset_name {data} --block_size 32 --per_device_train_batch_size 2 --learning_rate 1e-3 "
    "--gradient_accumulation_steps 1 --save_steps 2 --validation_blocks 2 --report_to none "
    "--lr_scheduler_type constant --model_path {model}"
)


@pytest.fixture(scope="module")
def flags(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("texts") / "notes.jsonl"
    data.write_text("".join(json.dumps({"text": f"note {n} stone river " * 9}) + "\n" for n in range(120)))
    return FLAGS.format(data=data, model=model).split()


def test_a_full_disk_ends_every_rank_and_the_run_goes_on_from_the_checkpoint_before(
    flags: list[str], tmp_path: Path
) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    two = {"processes": 2}
    assert run_script("train_loop.py", *flags, "--output_dir", whole, "--max_steps", 4, **two).returncode == 0
    assert run_script("train_loop.py", *flags, "--output_dir", output, "--max_steps", 2, **two).returncode == 0
    again = [*flags, "--output_dir", str(output), "--max_steps", "4", "--resume_from_checkpoint", "auto"]
    # no file may grow beyond 150 KiB: the model's file fits, the optimizer's does not
    limited = ["bash", "-c", 'ulimit -f 150; exec "$@"', "-", *command(*again, processes=2)]
    environment = os.environ | OFFLINE | ranks_by(warm_python())
    done = subprocess.run(limited, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert "GB are free there); what was saved before is whole" in done.stderr
    assert 'train_loop.py", line' not in done.stderr, "one screen, and no traceback of ours"
    assert json.loads((output / "trainer_state.json").read_text())["status"] == "failed"
    assert [path.name for path in complete_checkpoints(output)] == ["checkpoint-2"]
    assert not list(output.glob(".checkpoint-*"))
    (output / ".checkpoint-4.tmp").mkdir()  # what a killed save leaves
    (output / ".checkpoint-4.tmp" / "model.0.part").write_bytes(b"half")
    done = run_script("train_loop.py", *again, processes=2)
    assert done.returncode == 0, done.stderr
    assert not list(output.glob(".checkpoint-*"))
    one, other = load_file(whole / "model.safetensors"), load_file(output / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_loss_scale_of_fp16_comes_back() -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    def torchs() -> torch.amp.GradScaler:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
        scaler.scale(torch.ones(1))  # it makes its tensors now
        return scaler

    one, other = torchs(), torchs()
    assert scale_of(one) == {"scale": 1024.0, "updates": 0}
    set_scale(one, {"scale": 256.0, "updates": 3})
    set_scale(other, scale_of(one))
    assert scale_of(other) == {"scale": 256.0, "updates": 3}

    def deepspeeds() -> DynamicLossScaler:
        return DynamicLossScaler(2.0**10, 5, 1, 1, False)

    first, second = deepspeeds(), deepspeeds()
    first.cur_scale, first.cur_iter, first.last_overflow_iter = 512.0, 5, 1  # as after an overflow in update 1
    set_scale(second, scale_of(first))
    assert scale_of(second) == {"scale": 512.0, "updates": 3}
    for _ in range(9):
        first.update_scale(False)
        second.update_scale(False)
        assert first.cur_scale == second.cur_scale
    assert first.cur_scale > 512.0


def test_what_is_not_a_number_is_never_the_best_and_of_equals_the_first_stays() -> None:
    nan = float("nan")
    progress = Progress(step=1).with_evaluation(nan, False, "loss")
    assert (progress.best_metric, progress.best_step, progress.evaluations_without_best) == (None, None, 1)
    for step, metric in ((2, 3.0), (3, nan), (4, 3.0), (5, 2.0), (6, float("inf"))):
        progress = replace(progress, step=step).with_evaluation(metric, False, "loss")
    assert (progress.best_metric, progress.best_step, progress.evaluations_without_best) == (2.0, 5, 1)
    assert progress.best_name == "loss"
    larger = replace(progress.without_best(), step=7).with_evaluation(0.5, True, "accuracy")
    assert (larger.best_metric, larger.best_name, larger.best_step) == (0.5, "accuracy", 7)


@pytest.mark.parametrize(
    ("hashes", "told"),
    [
        ({}, "does not name model.safetensors, optimizer.safetensors, progress.json"),
        ({"../secret": "x"}, "names '../secret', which is no file of the folder"),
        ({"/etc/hostname": "x"}, "names '/etc/hostname', which is no file of the folder"),
        ({"..": "x"}, "cannot be resumed from"),
        ({"progress.json": None}, "progress.json is damaged"),
        ([], "cannot be resumed from"),
        (None, "cannot be resumed from"),
    ],
)
def test_a_manifest_that_no_run_wrote_makes_nothing_whole(tmp_path: Path, hashes: object, told: str) -> None:
    folder = write(tmp_path / "run", 4, VALUES)
    (tmp_path / "run" / "secret").write_text("not read")
    (folder / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    with pytest.raises(UserError, match=re.escape(told)):
        verify(folder)


def test_a_file_that_the_manifest_does_not_name_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 4, VALUES)
    (folder / "model-00002-of-00002.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"does not name model-00002-of-00002\.safetensors"):
        verify(folder)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("step", "4"), ("step", -4), ("step", 4.5), ("step", True), ("tokens", None), ("cursor", []), ("cursor", None),
        ("best_metric", "low"), ("best_name", 3), ("loss_scale", {"scale": "x"}), ("pending_loss", []), ("unknown", 1),
    ],
)  # fmt: skip
def test_progress_of_other_types_is_not_gone_on_from(tmp_path: Path, place: str, value: object) -> None:
    folder = write(tmp_path, 4, VALUES)
    file = folder / "progress.json"
    described = json.loads(file.read_text())
    described["progress"][place] = value
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match="cannot be resumed from"):
        read_checkpoint(folder)


def test_progress_comes_back_as_it_was(tmp_path: Path) -> None:
    progress = Progress(
        step=3, tokens=2**40, cursor={"a": [1, {"b": None}]}, best_metric=math.inf, best_name="the largest x",
        best_step=2, pending_loss=0.1, loss_scale={"scale": 2.0},
    )  # fmt: skip
    folder = write_checkpoint(tmp_path, progress, {}, None, VALUES.items(), lambda _: None)
    assert read_checkpoint(folder).progress == progress
    nan = write_checkpoint(tmp_path, replace(progress, step=4, best_metric=math.nan), {}, None, [], lambda _: None)
    assert math.isnan(read_checkpoint(nan).progress.best_metric or 0)


def test_only_numbers_in_ascii_name_a_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 4, VALUES)
    for name in ("checkpoint-\u00b2", "checkpoint-\u0664", "checkpoint-x", "checkpoint--1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-4"]
