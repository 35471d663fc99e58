"""A hub that stays away while training: every rank saves before the same update, and the run goes on from there."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty_hub import Fault, FaultyHub
from runs import article, command, run_script, running, state, wait_for_updates, wait_until, write_parquet
from safetensors.torch import load_file

from miniqwen.training.auditing import audit

PRETRAIN = (
    "--dataset_name some/text --task pretrain --text_column text --block_size 64 --per_device_train_batch_size 2 "
    "--learning_rate 1e-2 --logging_steps 5 --save_steps 1000 --validation_blocks 2 --max_steps 24 --report_to none"
).split()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of many small row groups, so that training asks the hub again and again."""
    root = tmp_path_factory.mktemp("hub")
    write_parquet(root / "some/text/data", "train", [{"text": article(n)} for n in range(600)], shards=3, group=3)
    return root


def train(hub: FaultyHub, model: Path, output: Path, *flags: object, processes: int = 1) -> Any:
    environment = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(output.parent / "home")}
    accumulation = ["--gradient_accumulation_steps", 2 // processes]
    given = ["--model_path", model, "--output_dir", output, *PRETRAIN, *accumulation, *flags]
    return run_script("train_loop.py", *given, processes=processes, environment=environment)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_hub_that_leaves_in_mid_training_costs_nothing_but_time(
    root: Path, model: Path, tmp_path: Path, processes: int
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    with FaultyHub(root) as hub:
        done = train(hub, model, whole, processes=processes)
        assert done.returncode == 0, done.stderr
        asked = sum("GET" in request and "parquet" in request for request in hub.seen)
        # one answer is missing, which one rank alone meets; with one process the hub is away for good
        times = 1 if processes > 1 else 1_000_000
        hub.faults = [Fault("status 503", "GET .*parquet", times=times, after=2 * asked // 3)]
        done = train(hub, model, broken, "--hub_timeout", 0 if processes > 1 else 2, processes=processes)
        assert done.returncode == (75 if processes == 1 else 1), done.stderr  # torchrun has a status of its own
        assert "did not answer for" in done.stderr
        state = json.loads((broken / "trainer_state.json").read_text())
        step = state["step"]
        assert 0 < step < 24
        assert (state["status"], state["last_checkpoint"]) == ("failed", f"checkpoint-{step}")
        assert "did not answer for" in state["reason"]
        assert "what was trained is saved: the same command with --resume_from_checkpoint auto" in done.stderr
        assert 'train_loop.py", line' not in done.stderr  # no traceback of ours
        assert not (broken / "model.safetensors").exists()
        hub.faults = []
        done = train(hub, model, broken, "--resume_from_checkpoint", "auto", processes=processes)
        assert done.returncode == 0, done.stderr
    assert json.loads((broken / "trainer_state.json").read_text())["status"] == "finished"
    assert audit(broken).faults == []
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(broken)[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_stop_while_the_hub_is_away_saves_and_leaves_at_once_with_the_status_that_was_asked_for(
    root: Path, model: Path, tmp_path: Path, workers: int
) -> None:
    output = tmp_path / "run"
    with FaultyHub(root) as hub:
        flags = ("--preprocessing_num_workers", workers, "--preempted_exit_code", 3, "--gradient_accumulation_steps", 2)
        words = command("--model_path", model, "--output_dir", output, *PRETRAIN, *flags, launcher=[sys.executable])
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        with running(words, tmp_path / "log", **online) as process:
            wait_for_updates(process, output, 1)
            hub.faults = [Fault("status 503", ".*", times=1_000_000)]
            wait_until(lambda: "trying again" in (tmp_path / "log").read_text(), process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 3, (tmp_path / "log").read_text()
    ended = state(output)
    assert (ended["status"], ended["reason"]) == ("preempted", "SIGTERM was received")
    assert (output / f"checkpoint-{ended['step']}" / "manifest.json").exists()


def test_whichever_rank_leaves_first_has_status_75_when_the_hub_is_away_at_the_start(
    root: Path, model: Path, tmp_path: Path
) -> None:
    with FaultyHub(root) as hub:
        hub.faults = [Fault("status 503", ".*", times=1_000_000)]
        done = train(hub, model, tmp_path / "run", "--hub_timeout", 1, processes=2)
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("did not answer for") == 1
    assert "exitcode  : 75" in done.stderr, done.stderr  # of whichever rank left first; torchrun ends the other
    assert "exitcode  : 2 " not in done.stderr
    assert 'train_loop.py", line' not in done.stderr
