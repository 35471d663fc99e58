"""Runs that are asked to end before their end: by signals, the clock, a file, wherever they are just then."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import OFFLINE, ROOT, TINY, article, command, lines, run_script, running, state, wait_for_updates, wait_until
from safetensors.torch import load_file
from torch.testing import assert_close

from miniqwen.config.survival import seconds
from miniqwen.config.training import TrainConfig
from miniqwen.errors import SAME_KEY_PRESS
from miniqwen.training.auditing import audit
from miniqwen.training.preemption import SIGNALS, Preempted, StopRequest


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts back the signal handlers that a test replaces."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_time_is_read_as_slurm_writes_it() -> None:
    assert [seconds(text) for text in ("90", "1:30", "0:01:30", "0-00:01:30", "1-00:00:00", "2.5")] == [
        90, 90, 90, 90, 86400, 2.5,
    ]  # fmt: skip
    for wrong in ("", "soon", "1:2:3:4", "-5", "1h", "1::2"):
        with pytest.raises(ValueError):
            seconds(wrong)


def test_a_signal_ends_the_start_at_once_and_later_waits_for_the_loop(tmp_path: Path, handlers: None) -> None:
    stop = StopRequest(TrainConfig(output_dir=str(tmp_path), preempted_exit_code=7))
    with pytest.raises(Preempted) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 7
    with pytest.raises(Preempted):  # also when a library swallowed it
        stop.poll_from_now_on()
    stop = StopRequest(TrainConfig(output_dir=str(tmp_path)))
    stop.poll_from_now_on()
    assert not stop.requested
    for number in SIGNALS:
        signal.raise_signal(number)
    assert stop.requested
    assert stop.reason == "SIGTERM was received"


WAITS = """
import hashlib, sys, time
from miniqwen.config.training import TrainConfig
from miniqwen.training.preemption import StopRequest

stop = StopRequest(TrainConfig(output_dir=sys.argv[1]))
stop.poll_from_now_on()
print("ready", file=sys.stderr, flush=True)
if sys.argv[2] == "python":
    while True:
        time.sleep(0.05)
hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[2]))  # no handler of Python's runs before it ends
print("the long call ended", stop.requested, file=sys.stderr)
"""
ACKNOWLEDGED = "the run saves at its next update and ends; Ctrl-C once more ends it without saving"


@contextlib.contextmanager
def waiting(folder: Path, for_what: object) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", WAITS, str(folder), str(for_what)]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stderr.readline() == "ready\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_signal_is_acknowledged_while_the_main_thread_is_in_a_long_call(tmp_path: Path) -> None:
    with waiting(tmp_path, 5_000_000) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr
        told = process.stderr.read().splitlines()
    assert told == [f"SIGINT was received: {ACKNOWLEDGED}", "the long call ended True"]


@pytest.mark.parametrize(("first", "main_is_in"), [(signal.SIGINT, "python"), (signal.SIGTERM, 1_000_000_000)])
def test_a_second_ctrl_c_ends_the_run_wherever_it_is_but_one_key_press_counts_once(
    tmp_path: Path, first: signal.Signals, main_is_in: object
) -> None:
    """The main thread may be in a long call; the first signal may be what a script made of its own Ctrl-C."""
    running = {"status": "running", "step": 40, "max_steps": 90, "last_checkpoint": "checkpoint-40"}
    (tmp_path / "trainer_state.json").write_text(json.dumps(running))
    with waiting(tmp_path, main_is_in) as process:
        process.send_signal(first)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)  # the terminal's and the launcher's
        time.sleep(SAME_KEY_PRESS + 0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr
        told = process.stderr.read().splitlines()
    assert told[0] == f"{first.name} was received: {ACKNOWLEDGED}"
    if main_is_in != "python":  # there the loop tells it on its way out
        since = "since checkpoint-40, where --resume_from_checkpoint auto goes on"
        assert told[1:] == [f"ended by a second Ctrl-C; nothing was saved {since}"]
        assert state(tmp_path) == running | {"status": "preempted", "reason": "a second Ctrl-C, without saving"}


def test_a_run_whose_terminal_is_closed_saves_and_goes_on_at_the_next_start(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", tmp_path / "out", *TINY]
    # not warm: what the terminal does to its processes it has to do to the training
    words = command(*given, "--max_steps", "100000", "--hints", "False", launcher=[sys.executable])
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execve(words[0], words, os.environ | OFFLINE)
    told = b""
    while b"update 3/" not in told and b" 3/100000" not in told:
        told += os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    now = state(tmp_path / "out")
    assert (now["status"], now["reason"]) == ("preempted", "SIGHUP was received")
    assert now["last_checkpoint"] == f"checkpoint-{now['step']}"


def test_a_stop_file_from_before_the_start_is_removed_and_a_new_one_obeyed(tmp_path: Path, handlers: None) -> None:
    file = tmp_path / "STOP"
    file.touch()
    os.utime(file, (0, 0))
    stop = StopRequest(TrainConfig(output_dir=str(tmp_path)))
    stop.forget_stale_file()
    assert not file.exists()
    assert not stop.requested
    file.touch()
    os.utime(file, (time.time() + 1, time.time() + 1))  # a file system's clock may be milliseconds behind
    stop.forget_stale_file()
    stop._last_look = 0.0  # a second has passed
    assert stop.requested
    assert stop.obeyed() == f"found {file}"
    assert not file.exists()


def test_whatever_stops_a_run_it_saves_says_why_and_goes_on_to_the_same_weights(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    whole, output, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    given = ["--model_path", model, "--data_root", mirror, *TINY, "--max_steps", "600"]
    assert run_script("train_loop.py", *given, "--output_dir", whole).returncode == 0
    given += ["--output_dir", output, "--resume_from_checkpoint", "auto", "--preempted_exit_code", "7"]
    reached = 0
    for way in (signal.SIGINT, signal.SIGUSR1, "STOP", "max_time"):
        # so short a time is over before the loop begins: nothing is made, nothing lost
        time_flag = ["--max_time", "0.01"] if way == "max_time" else []
        with running(command(*given, *time_flag), log) as process:
            if isinstance(way, signal.Signals):
                wait_for_updates(process, output)
                process.send_signal(way)
            elif way == "STOP":
                wait_for_updates(process, output)
                (output / "STOP").touch()
            assert process.wait(timeout=300) == 7, log.read_text()
        now = state(output)
        assert now["status"] == "preempted"
        assert (way.name if isinstance(way, signal.Signals) else way) in now["reason"]
        assert now["last_checkpoint"] == f"checkpoint-{now['step']}"
        assert now["step"] == reached if way == "max_time" else reached < now["step"] < 600
        reached = now["step"]
        assert not (output / "model.safetensors").exists()  # no final model before the end
        assert not (output / "STOP").exists()
    assert run_script("train_loop.py", *given).returncode == 0
    assert state(output)["status"] == "finished"
    assert state(output)["reason"] is None
    first, second = load_file(whole / "model.safetensors"), load_file(output / "model.safetensors")
    for name, value in first.items():
        assert_close(value, second[name], rtol=0, atol=0)


def test_signals_during_imports_and_loading_end_the_run_with_its_status(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", tmp_path / "out", *TINY, "--max_steps", "9"]
    words = command(*given, "--preempted_exit_code", "7", launcher=[sys.executable])  # whose imports take seconds
    for delay in (0.0, 1.5, 3.0):
        with running(words, tmp_path / "log") as process:
            caught = Path(f"/proc/{process.pid}/status")
            bit = 1 << (signal.SIGTERM - 1)
            wait_until(lambda: int(caught.read_text().split("SigCgt:")[1].split()[0], 16) & bit, process)  # noqa: B023
            time.sleep(delay)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=300) == 7, (tmp_path / "log").read_text()
        assert not list((tmp_path / "out").glob("checkpoint-*"))
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_an_evaluation_is_given_up_on_all_ranks_and_made_after_the_resume(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    texts, output, log = tmp_path / "texts", tmp_path / "out", tmp_path / "log"
    texts.mkdir()
    for split, numbers in (("train", range(80)), ("validation", range(80, 1500))):
        text = "".join(json.dumps({"text": article(number) * 4}) + "\n" for number in numbers)
        (texts / f"{split}.jsonl").write_text(text)
    flags = [flag for flag in TINY if flag not in ("--dataset_name", "both", "--validation_blocks", "8")]
    given = ["--model_path", model, "--output_dir", output, "--dataset_name", texts, "--task", "pretrain", *flags]
    given += ["--eval_strategy", "steps", "--eval_steps", "3", "--per_device_eval_batch_size", "1"]
    given += ["--max_steps", "6", "--validation_blocks", "20000", "--resume_from_checkpoint", "auto"]
    with running(command(*given, processes=2), log) as process:
        wait_until(lambda: any(line["step"] == 3 for line in lines(output)), process)
        time.sleep(1)  # the evaluation has begun; it is a long one
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=300)
    assert [line for line in lines(output) if "eval_loss" in line] == [], log.read_text()
    now = state(output)
    assert (now["status"], now["step"], now["last_checkpoint"]) == ("preempted", 3, "checkpoint-3")
    assert "SIGTERM" in now["reason"]
    done = run_script("train_loop.py", *given, "--max_eval_samples", "4", processes=2)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in lines(output) if "eval_loss" in line] == [3, 6]
    assert state(output)["best_step"] in (3, 6)
    assert audit(output).faults == []


WAITING = """
import os, signal, sys, threading
sys.path.insert(0, os.getcwd())
from miniqwen.training.prefetching import prefetched
from miniqwen.training.batches import Update
from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.training.preemption import StopRequest, next_update
from miniqwen.distributed.runtime import Runtime

config = TrainConfig(output_dir=sys.argv[1])
stop, runtime = StopRequest(config), None
runtime = Runtime(config)
stop.poll_from_now_on()

def slow_hub():
    yield Update((), 5, 7, {}, 0, num_bytes=9)
    if runtime.rank == 1 and sys.argv[2] == "hangs":
        threading.Event().wait()  # for ever
    if runtime.rank == 1:
        raise UserError("file.parquet: the hub cannot be reached")
    yield Update((), 5, 7, {}, 0, num_bytes=9)

updates = prefetched(slow_hub())
first = next_update(updates, stop, runtime)
assert first[1] == [10, 18, 14], first
if runtime.rank == 0 and sys.argv[2] == "hangs":
    threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
assert next_update(updates, stop, runtime) is None
print(f"rank {runtime.rank} stops: {stop.reason}, {stop.data_error}\\n", end="", flush=True)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.parametrize("case", ["hangs", "fails"])
def test_a_rank_that_waits_for_its_data_stops_with_the_others(tmp_path: Path, case: str) -> None:
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    done = run_script(str(script), tmp_path, case, processes=2)
    assert done.returncode == 0, done.stderr
    told = sorted(done.stdout.split("\n"))
    if case == "hangs":
        assert told[-2:] == ["rank 0 stops: SIGUSR1 was received, None", "rank 1 stops: None, None"]
    else:
        assert told[-2] == "rank 0 stops: None, None"
        assert told[-1].endswith("the data cannot be read, file.parquet: the hub cannot be reached")


def test_one_process_under_accelerate_launch_is_told_when_its_launcher_dies(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *TINY, "--max_steps", "100000"]
    accelerate = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    words = command(*given, launcher=[*accelerate, "--config_file", "accelerate_configs/cpu.yaml"])
    with running(words, log) as process:
        wait_for_updates(process, output)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == -signal.SIGTERM  # the launcher itself
        wait_until(lambda: state(output)["status"] == "preempted")
    assert state(output)["step"] > 0
    assert state(output)["last_checkpoint"] == f"checkpoint-{state(output)['step']}"
