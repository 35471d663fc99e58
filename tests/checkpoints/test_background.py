"""Saving in the background: the same files, no silent failure, and copies that training does not touch."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from runs import TINY, run_script, state
from safetensors.torch import load_file
from torch.testing import assert_close

from miniqwen.checkpoints.background import Background
from miniqwen.training.auditing import audit


def test_what_is_written_is_what_was_there_when_it_was_copied() -> None:
    background, go, written = Background(), threading.Event(), []
    weight = torch.arange(4.0)
    copies = background.copied([("weight", weight)])

    def write() -> None:
        go.wait()
        written.append(copies[0][1].clone())

    background.start(write)
    weight += 1  # training goes on
    go.set()
    background.wait()
    assert_close(written[0], torch.arange(4.0))
    again = background.copied([("weight", weight)])
    assert again[0][1] is copies[0][1]  # no new memory
    assert_close(again[0][1], torch.arange(4.0) + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of single threads")
def test_the_writer_gives_way_to_the_training_which_keeps_its_priority() -> None:
    before, background, seen = os.getpriority(os.PRIO_PROCESS, 0), Background(), []
    background.start(lambda: seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
    background.wait()
    assert seen == [19] > [before]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_what_went_wrong_is_raised_once_by_the_next_wait() -> None:
    def fail() -> None:
        raise OSError("disk full")

    background = Background()
    background.wait()
    background.start(fail)
    with pytest.raises(OSError, match="disk full"):
        background.wait()
    background.wait()


def test_background_saves_leave_the_same_checkpoints_and_resume_to_the_same_weights(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    given = [
        "--model_path",
        model,
        "--data_root",
        mirror,
        *TINY,
        "--max_steps",
        "12",
        "--lr_scheduler_type",
        "constant_with_warmup",
    ]
    given += ["--save_steps", "2", "--save_total_limit", "3"]
    plain, beside, parts = tmp_path / "plain", tmp_path / "beside", tmp_path / "parts"
    runs = [(plain, []), (beside, ["--async_save"]), (parts, ["--async_save", "--max_steps", "7"])]
    for output, more in [*runs, (parts, ["--async_save", "--resume_from_checkpoint", "auto"])]:
        done = run_script("train_loop.py", *given, "--output_dir", output, *more, processes=2)
        assert done.returncode == 0, done.stderr
    kept = ["checkpoint-10", "checkpoint-12", "checkpoint-8"]
    for output in (plain, beside, parts):
        assert sorted(path.name for path in output.glob("checkpoint-*")) == kept
        assert (state(output)["status"], state(output)["last_checkpoint"]) == ("finished", "checkpoint-12")
        assert not list(output.glob(".*.tmp"))
        assert audit(output).faults == []
        for name in kept:
            one, other = (json.loads((folder / name / "manifest.json").read_text()) for folder in (plain, output))
            tensors = {"model.safetensors", "optimizer.safetensors"}
            assert tensors <= one["sha256"].keys()
            assert {file: one["sha256"][file] for file in tensors} == {file: other["sha256"][file] for file in tensors}
    first, second = load_file(plain / "model.safetensors"), load_file(parts / "model.safetensors")
    for name, value in first.items():
        assert_close(value, second[name], rtol=0, atol=0)


@pytest.mark.parametrize("last", [10, 12])
def test_a_background_save_that_fails_fails_the_run_and_keeps_the_checkpoint_before_it(
    model: Path, mirror: Path, tmp_path: Path, last: int
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / ".checkpoint-10.tmp").write_text("a file where the save wants a folder")
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *TINY, "--save_steps", "5"]
    given += ["--async_save", "--max_steps", last, "--resume_from_checkpoint", "auto", "--save_total_limit", "1"]
    done = run_script("train_loop.py", *given)  # found by the next save, or by the end of the run
    assert done.returncode == 1, done.stderr
    now = state(output)
    assert (now["status"], now["last_checkpoint"], now["step"]) == ("failed", "checkpoint-5", 5)
    assert ".checkpoint-10.tmp" in now["reason"]
    assert not (output / "model.safetensors").exists()
    (output / ".checkpoint-10.tmp").unlink()
    done = run_script("train_loop.py", *given)
    assert done.returncode == 0, done.stderr
    assert (state(output)["status"], state(output)["last_checkpoint"]) == ("finished", f"checkpoint-{last}")
    shutil.rmtree(output)
