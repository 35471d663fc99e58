"""Trackers that fail: they are told once, switched off, and end nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from runs import TINY, command, descendants, lines, run_script, running, state, wait_for_updates, wait_until


def service(launcher: int) -> int | None:
    """The process of W&B's own under a run."""
    for pid in descendants(launcher):
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"wandb-core"):
            return pid
    return None


def test_a_wandb_that_dies_is_told_once_and_the_run_finishes_without_it(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    flags = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *TINY, "--max_steps", "60"]
    words = command(*flags[: flags.index("--report_to")], "--max_steps", "60", "--report_to", "wandb", "tensorboard")
    with running(words, log, WANDB_MODE="offline") as process:
        wait_for_updates(process, output)
        found = wait_until(lambda: service(process.pid), process)
        before = len(lines(output))
        os.kill(found, signal.SIGKILL)
        assert process.wait(timeout=300) == 0, log.read_text()
    said = log.read_text()
    assert said.count("W&B fails and is switched off, the run and metrics.jsonl go on") == 1
    assert "Traceback" not in said
    assert before < 60
    assert [line["step"] for line in lines(output)] == list(range(1, 61))
    assert state(output)["status"] == "finished"


def test_a_wandb_that_does_not_start_is_an_error_and_leaves_the_folder_free(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", tmp_path / "out", *TINY, "--max_steps", "2"]
    nowhere = {
        "WANDB_MODE": "online", "WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_INIT_TIMEOUT": "2",
    }  # fmt: skip
    at_report = given.index("--report_to")
    online = [*given[:at_report], "--report_to", "wandb", "--max_steps", "2"]
    done = run_script("train_loop.py", *online, environment=nowhere)
    assert done.returncode == 2, done.stderr
    assert "connecting to W&B" in done.stdout
    assert "--report_to wandb: W&B does not start" in done.stderr
    assert "WANDB_MODE=offline" in done.stderr
    assert "Traceback" not in done.stderr
    done = run_script("train_loop.py", *given)
    assert done.returncode == 0, done.stderr
