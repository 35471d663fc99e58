"""Trackers that fail: they are told once, switched off, and end nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from runs import (
    TINY,
    command,
    descendants,
    lines,
    run_script,
    running,
    state,
    wait_for_updates,
    wait_until,
    wandb_records,
)


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
    assert said.count("wandb fails and is switched off, everything else goes on") == 1
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


def test_the_pieces_that_starts_of_a_run_leave_offline_are_one_run_in_wandb(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    flags = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *TINY, "--resume_from_checkpoint"]
    flags += ["auto", "--save_steps", "3", "--report_to", "wandb", "--max_steps"]
    pieces = "wandb/offline-run-*/*.wandb"
    with running(command(*flags, "3000"), log, WANDB_MODE="offline") as process:
        wait_until(lambda: any(len(events(file)) > 3 for file in output.glob(pieces)), process)
        wait_for_updates(process, output)
        for pid in [process.pid, *descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)
    (piece,) = output.glob(pieces)
    piece.parent.rename(output / "wandb" / "offline-run-1")
    begins = max(int(path.parent.name.split("-")[1]) for path in output.glob("checkpoint-*/manifest.json"))
    done = run_script("train_loop.py", *flags, begins + 4)
    assert done.returncode == 0, done.stderr
    old, new = (events(next((output / "wandb").glob(place))) for place in ("offline-run-1/*.wandb", "*run-2*/*.wandb"))
    assert {run for run, _, _ in (*old, *new)} == {state(output)["wandb_run_id"]}
    numbers = [number for _, number, _ in (*old, *new)]
    assert numbers == sorted(set(numbers)), "W&B drops what has no greater number than it knows"
    assert [event["train/global_step"] for *_, event in new] == [begins + 1, begins + 2, begins + 3, begins + 4]
    shown = {event["train/global_step"]: event["train/loss"] for *_, event in (*old, *new)}
    told = {line["step"]: line["loss"] for line in lines(output)}
    assert len(shown) > 4
    assert shown == {step: told[step] for step in shown}


def events(file: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """(run, its number in W&B, values) of each line of training that W&B wrote down."""
    run, found = "", []
    for record in wandb_records(file):
        run = record.run.run_id or run
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if "train/loss" in items:
            found.append((run, record.history.step.num, items))
    return found
