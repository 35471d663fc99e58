"""What people see in TensorBoard, W&B and other trackers, read back from the files that these wrote."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import (
    OFFLINE,
    ROOT,
    TINY,
    command,
    lines,
    run_script,
    running,
    state,
    wait_for_updates,
    wandb_records,
    warm_python,
)  # fmt: skip
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from miniqwen.config.training import TrainConfig

REPORTED = [flag for flag in TINY if flag not in ("--report_to", "none")]


@pytest.fixture(scope="module")
def watched(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that was stopped and went on for 4 updates, and what its last start said."""
    output = tmp_path_factory.mktemp("group") / "name"
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *REPORTED]
    given += ["--report_to", "wandb", "tensorboard", "--eval_strategy", "steps", "--eval_steps", 3]
    given += ["--resume_from_checkpoint", "auto", "--log_model", "best", "--load_best_model_at_end"]
    log = output.parent / "log"
    with running(command(*given, "--max_steps", "100000"), log, WANDB_MODE="offline") as process:
        wait_for_updates(process, output)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0, log.read_text()
    assert state(output)["status"] == "preempted"
    done = run_script("train_loop.py", *given, "--max_steps", state(output)["step"] + 4)
    assert done.returncode == 0, done.stderr
    assert state(output)["status"] == "finished"
    return output, done.stdout


def pieces(output: Path) -> list[list[Any]]:
    """The records of each start's offline file, in their order."""
    return [list(wandb_records(file)) for file in sorted(output.glob("wandb/offline-run-*/*.wandb"))]


def config_of(records: list[Any]) -> dict[str, Any]:
    updates = [update for record in records for part in (record.run.config, record.config) for update in part.update]
    return {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}


def test_wandb_knows_the_run_by_its_folder_and_all_that_it_is_made_of(watched: tuple[Path, str]) -> None:
    output, _ = watched
    first, second = pieces(output)
    runs = [next(record.run for record in records if record.run.run_id) for records in (first, second)]
    assert {run.run_id for run in runs} == {state(output)["wandb_run_id"]}
    for run in runs:
        assert (run.display_name, run.run_group, run.job_type) == ("group0/name", "group0", "pretrain")
    known = config_of(second)
    assert known["learning_rate"] == 0.01
    assert known["model"]["hidden_size"] == 32
    assert known["parameters"] > 10_000
    assert known["start"]["versions"]["torch"]
    assert {"git_commit", "runs_on", "machine"} <= known["start"].keys()
    assert known["data"]["sources"].keys() == {"wikipedia", "arxiv"}


def test_a_preempted_start_is_one_in_wandb_and_a_finished_one_is_finished(watched: tuple[Path, str]) -> None:
    first, second = pieces(watched[0])
    assert [any(record.HasField("preempting") for record in records) for records in (first, second)] == [True, False]
    codes = [[r.exit.exit_code for r in records if r.HasField("exit")] for records in (first, second)]
    assert codes == [[1], [0]]


def test_wandbs_summary_has_the_best_values_and_the_final_model_is_kept(watched: tuple[Path, str]) -> None:
    output, said = watched
    _, second = pieces(output)
    metrics = {record.metric.name or record.metric.glob_name: record.metric for record in second if record.metric}
    assert metrics["eval/loss"].summary.min
    assert metrics["eval/accuracy"].summary.max
    assert metrics["train/*"].step_metric == "train/global_step"
    summary = {item.key: item.value_json for record in second for item in record.summary.update}
    assert json.loads(summary["best_step"]) == state(output)["best_step"]
    assert json.loads(summary["status"]) == "finished"
    artifacts = [record.artifact for record in second] + [record.request.log_artifact.artifact for record in second]
    (kept,) = [artifact for artifact in artifacts if artifact.type == "model"]
    assert {"best", "final"} <= set(kept.aliases)
    assert {entry.path for entry in kept.manifest.contents} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert not [entry.path for entry in kept.manifest.contents if entry.path.startswith(("optimizer", "metrics"))]
    (piece,) = [path for path in output.glob("wandb/offline-run-*") if path.name in said]
    assert f"W&B, offline: wandb sync {piece}" in said


def test_tensorboard_shows_the_run_by_its_folder_with_training_first_and_its_flags(watched: tuple[Path, str]) -> None:
    output, _ = watched
    assert list(output.glob("events.out.tfevents.*"))
    assert not list(output.glob("*/events.out.tfevents.*")), "a run's name is its folder's"
    reader = EventAccumulator(str(output))
    reader.Reload()
    groups = sorted({tag.split("/")[0] for tag in reader.Tags()["scalars"]})
    assert groups[:2] == ["eval", "train"], "TensorBoard opens the first two"
    told = {line["step"]: line["loss"] for line in lines(output) if "loss" in line}
    assert {e.step: e.value for e in reader.Scalars("train/loss")} == pytest.approx(told)
    content = reader.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"learning_rate" in content


def test_a_failed_run_raises_an_alert_in_wandb(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; import sys; from miniqwen.training.outlets.wandb import Wandb; "
        "run = Wandb(Path(sys.argv[1]), 'mine', None, 'pretrain'); run.log(1, 1, {'train/loss': 2.0}); "
        "run.alert('update 1: the loss jumps', 'the text there'); "
        "run.end('failed', 'RuntimeError: it broke', {})"
    )
    script = tmp_path / "failing.py"
    script.write_text(program.replace("; ", "\n"))
    done = run_script(str(script), tmp_path)
    assert done.returncode == 0, done.stderr
    (records,) = pieces(tmp_path)
    assert [(record.alert.title, record.alert.text) for record in records if record.HasField("alert")] == [
        ("MiniQwen: update 1: the loss jumps", "the text there"),
        ("MiniQwen: the run failed", "RuntimeError: it broke"),
    ]
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [1]


def test_wandbs_own_variables_are_heard(model: Path, mirror: Path, tmp_path: Path) -> None:
    given = ["--model_path", model, "--data_root", mirror, *REPORTED, "--max_steps", 2, "--report_to", "wandb"]
    named = {"WANDB_NAME": "blue", "WANDB_RUN_GROUP": "colours"}
    done = run_script("train_loop.py", *given, "--output_dir", tmp_path / "a", environment=named)
    assert done.returncode == 0, done.stderr
    (records,) = pieces(tmp_path / "a")
    run = next(record.run for record in records if record.run.run_id)
    assert (run.display_name, run.run_group) == ("blue", "colours")
    off = {"WANDB_DISABLED": "true"}
    done = run_script("train_loop.py", *given, "--output_dir", tmp_path / "b", environment=off)
    assert done.returncode == 0, done.stderr
    assert "W&B is off (WANDB_DISABLED)" in done.stdout
    assert not (tmp_path / "b" / "wandb").exists()


def test_a_login_that_is_missing_is_found_before_data_and_model_are_loaded(tmp_path: Path, model: Path) -> None:
    data = tmp_path / "empty.jsonl"
    data.write_text("")  # which would be the next error
    given = ["--model_path", model, "--dataset_name", data, "--task", "pretrain", "--max_steps", 1]
    given += ["--block_size", 32, "--report_to"]
    nobody = {"WANDB_MODE": "online", "NETRC": str(tmp_path / "none"), "WANDB_API_KEY": ""}
    done = run_script("train_loop.py", *given, "wandb", "--output_dir", tmp_path / "out", environment=nobody)
    assert done.returncode == 2
    assert "--report_to wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline" in done.stderr


def test_a_tracker_that_is_not_installed_or_keeps_no_models_is_refused() -> None:
    given = {"model_path": "m", "dataset_name": "both", "output_dir": "o", "max_steps": 1}
    assert (
        "--report_to aim: it is not installed (pip install aim)" in TrainConfig(**given, report_to=("aim",)).problems()
    )
    wrong = TrainConfig(**given, log_model="best").problems()
    assert "--log_model best: W&B keeps models, add --report_to wandb" in wrong


def test_another_tracker_of_accelerates_gets_the_same_numbers(model: Path, mirror: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed: pip install mlflow-skinny")
    store = {"MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true"}
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", tmp_path / "out", *REPORTED]
    done = run_script(
        "train_loop.py", *given, "--max_steps", 2, "--report_to", "mlflow", environment=os.environ | store
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("mlruns/*/*/metrics/train/loss")
    written = [line.split() for line in file.read_text().splitlines()]
    assert {int(step): float(value) for _, value, step in written} == {
        line["step"]: line["loss"] for line in lines(tmp_path / "out")
    }
    (rate,) = tmp_path.glob("mlruns/*/*/params/learning_rate")
    assert rate.read_text() == "0.01"


def test_the_sweep_runs_as_wandbs_agent_runs_it(model: Path, mirror: Path, tmp_path: Path) -> None:
    from wandb.sdk.launch.sweeps import utils

    sweep = yaml.safe_load((ROOT / "cluster" / "wandb_sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "eval/loss", "goal": "minimize"}
    drawn = {"learning_rate": 0.002, "lr_scheduler_type": "warmup_stable_decay", "seed": 43}
    assert drawn.keys() == sweep["parameters"].keys()
    parts = {**utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in drawn.items()}})}
    words = [
        word
        for part in utils.create_sweep_command(sweep["command"])
        for word in (parts[part[2:-1]] if part.startswith("${") else [part])
    ]
    assert words[:2] == ["bash", "-c"]
    ours = words[2]  # of the guide's size: a small world here instead
    for wanted in ("--config recipes/pretrain.yaml", '--output_dir "runs/sweep/$WANDB_RUN_ID"', "--report_to wandb"):
        assert wanted in ours
    tiny = " ".join(map(str, ["--data_root", mirror, *REPORTED, "--max_steps", 4]))
    ours = ours.replace("accelerate launch -q", warm_python()).replace("--config recipes/pretrain.yaml", tiny)
    ours = ours.replace("./miniqwen_checkpoints/final_model", str(model)).replace("runs/sweep", str(tmp_path))
    done = subprocess.run(
        ["bash", "-c", ours, *words[3:]], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | OFFLINE | {"WANDB_RUN_ID": "abc123", "WANDB_SWEEP_ID": "s1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (records,) = pieces(tmp_path / "abc123")
    assert next(record.run.run_id for record in records if record.run.run_id) == "abc123"
    known = config_of(records)
    assert {name: known[name] for name in drawn} == drawn


def test_an_evaluation_reports_its_figures_and_first_questions(model: Path, mirror: Path, tmp_path: Path) -> None:
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", tmp_path / "e", "--dataset_name", "both"]
    done = run_script("eval_loop.py", *given, "--report_to", "wandb", "tensorboard")
    assert done.returncode == 0, done.stderr
    reader = EventAccumulator(str(tmp_path / "e"))
    reader.Reload()
    (records,) = pieces(tmp_path / "e")
    run = next(record.run for record in records if record.run.run_id)
    assert (run.display_name, run.job_type) == (f"{tmp_path.name}/e", "evaluate")
    items = [item for record in records for item in record.history.item]
    logged = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    for name in ("sciq", "commonsenseqa"):
        found = json.loads((tmp_path / "e" / f"{name}.json").read_text())
        (event,) = reader.Scalars(f"eval/{name}/accuracy")
        assert event.value == pytest.approx(found["accuracy"])
        assert logged[f"eval/{name}/accuracy"] == found["accuracy"]
        assert logged[f"eval/{name}/accuracy_low"] == found["confidence_interval"][0]
        assert logged[f"eval/{name}/calibration_ece"] == found["calibration"]["ece"]
        (text,) = reader.Tensors(f"eval/{name}/samples/text_summary")
        assert found["samples"][0]["question"].encode() in text.tensor_proto.string_val[0]
    assert "W&B, offline: wandb sync" in done.stdout
