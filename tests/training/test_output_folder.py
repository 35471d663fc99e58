"""The edges of a run: what a resume finds, what an evaluation that fails leaves, what the same command does again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import OFFLINE, ROOT, command, lines, run_script, state
from safetensors.torch import load_file

from miniqwen.checkpoints.checkpoint import Progress, complete_checkpoints, remove_half_written, verify
from miniqwen.config.models import MODEL_FILES
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.shards import gathered
from miniqwen.errors import UserError
from miniqwen.files import publish
from miniqwen.model.modeling_miniqwen import load_model
from miniqwen.model.tokenization_miniqwen import load_tokenizer
from miniqwen.training.auditing import audit
from miniqwen.training.output_folder import OutputFolder, note_end

FLAGS = (
    "--dataset_name both --block_size 32 --per_device_train_batch_size 2 --learning_rate 1e-2 --logging_steps 1 "
    "--validation_blocks 8 --report_to none --eval_strategy steps --sample_prompts none"
).split()


def train(model: Path, mirror: Path, output: Path, *flags: object, status: int = 0) -> str:
    given = ("--model_path", model, "--data_root", mirror, "--output_dir", output)
    done = run_script("train_loop.py", *given, *FLAGS, *flags)
    assert done.returncode == status, done.stderr
    if output.is_dir() and status == 0:
        assert audit(output).faults == []
    return done.stdout + done.stderr


def names(output: Path) -> list[str]:
    return sorted(path.name for path in output.glob("*checkpoint-*"))


@pytest.fixture(scope="module")
def whole(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 updates, whose best one is not the last."""
    output = tmp_path_factory.mktemp("edges") / "whole"
    best = ("--metric_for_best_model", "eval_loss", "--greater_is_better", "True", "--load_best_model_at_end")
    train(model, mirror, output, "--max_steps", 8, "--save_steps", 2, "--eval_steps", 2, *best)
    assert state(output)["best_step"] == 2
    return output


BEST = "--load_best_model_at_end --greater_is_better True --resume_from_checkpoint".split()


def test_a_best_checkpoint_in_another_folder_is_brought_along(
    model: Path, mirror: Path, whole: Path, tmp_path: Path
) -> None:
    for name in (4, 2):  # 2 is the best one itself
        output = tmp_path / str(name)
        flags = ("--max_steps", 8, "--save_steps", 2, "--eval_steps", 2, *BEST, whole / f"checkpoint-{name}")
        said = train(model, mirror, output, *flags)
        assert "the best checkpoint so far was copied from" in said
        assert load_file(output / "model.safetensors").keys() == load_file(whole / "model.safetensors").keys()
        for key, value in load_file(whole / "model.safetensors").items():
            assert torch.equal(load_file(output / "model.safetensors")[key], value)
        verify(output / "checkpoint-2")


def test_a_best_checkpoint_that_is_gone_is_told_before_training_and_the_final_model_is_whole(
    model: Path, mirror: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "checkpoint-6", tmp_path / "copied" / "checkpoint-6")
    output = tmp_path / "out"
    flags = ("--max_steps", 8, "--save_steps", 2, "--eval_steps", 2, *BEST, tmp_path / "copied" / "checkpoint-6")
    said = train(model, mirror, output, *flags)
    told = said.index("the best is chosen among the evaluations from here on")
    assert told < said.index("update 7/8")
    assert load_file(output / "model.safetensors").keys() == load_file(whole / "model.safetensors").keys()
    assert state(output)["best_step"] == 8


def test_a_damaged_newest_checkpoint_is_set_aside_and_never_counts_again(
    model: Path, mirror: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    with (output / "checkpoint-8" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x01\x02\x03")
    (output / "trainer_state.json").write_text(json.dumps({**state(output), "status": "failed"}))
    flags = ("--max_steps", 8, "--save_steps", 1, "--eval_steps", 8, "--save_total_limit", 1, *BEST, "auto")
    said = train(model, mirror, output, *flags)
    assert "later checkpoints are kept as aside-checkpoint-8, and do not count" in said
    assert names(output) == ["aside-checkpoint-8", "checkpoint-2", "checkpoint-8"], "the newest, the best, the damaged"
    verify(output / "checkpoint-8")
    assert state(output)["last_checkpoint"] == "checkpoint-8"


def test_going_back_to_an_older_checkpoint_leaves_the_branch_for_good(
    model: Path, mirror: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(whole, output)
    flags = ("--save_steps", 1, "--eval_steps", 8, "--learning_rate", "2e-2")
    train(model, mirror, output, *flags, "--max_steps", 5, "--resume_from_checkpoint", output / "checkpoint-4")
    assert complete_checkpoints(output)[-1].name == "checkpoint-5"
    assert {"aside-checkpoint-6", "aside-checkpoint-8"} <= set(names(output))
    said = train(model, mirror, output, *flags, "--max_steps", 6, "--resume_from_checkpoint", "auto")
    assert f"continuing from {output / 'checkpoint-5'}, update 5" in said
    train(model, mirror, output, *flags, "--max_steps", 5, "--resume_from_checkpoint", output / "checkpoint-4")
    assert [name for name in names(output) if name.startswith("aside")] == ["aside-checkpoint-5", "aside-checkpoint-6"]


def test_a_run_that_stopped_early_repeats_nothing_and_says_why_it_ended(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    flags = ["--max_steps", 60, "--save_steps", 1, "--eval_steps", 2, "--early_stopping_patience", 2, *BEST, "auto"]
    flags += ["--save_total_limit", 1]
    train(model, mirror, output, *flags)
    ended, told = state(output), lines(output)
    assert (ended["status"], ended["step"], ended["best_step"]) == ("finished", 6, 2)
    assert ended["reason"] == "stopped early: 2 evaluations without a better one (--early_stopping_patience)"
    final = (output / "model.safetensors").read_bytes()
    again = train(model, mirror, output, *flags)
    assert "finished: 6 updates of 60, stopped early: 2 evaluations without a better one" in again
    assert (state(output), lines(output)) == (ended, told)
    assert (output / "model.safetensors").read_bytes() == final


FAILING = """
import sys
sys.path.insert(0, {root!r})
import train_loop
from miniqwen.config.flags import parse
from miniqwen.config.models import MODEL_FILES
from miniqwen.config.training import TrainConfig
from miniqwen.training.preemption import StopRequest

def evaluate(run):
    raise RuntimeError("out of memory")

train_loop.evaluate = evaluate
config = parse(TrainConfig, program="", description="")
train_loop.main(config, StopRequest(config))
"""


def test_what_is_due_is_saved_before_an_evaluation_that_may_fail_and_the_next_start_evaluates_it(
    model: Path, mirror: Path, whole: Path, tmp_path: Path
) -> None:
    script = tmp_path / "failing.py"
    script.write_text(FAILING.format(root=str(Path(__file__).parents[2])))
    output = tmp_path / "out"
    flags = ["--save_steps", 2, "--eval_steps", 2, "--max_steps", 8, *BEST, "auto"]
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *FLAGS, *flags]
    done = run_script(str(script), *given)
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert (state(output)["status"], names(output)) == ("failed", ["checkpoint-2"])
    train(model, mirror, output, *flags)
    evaluated = [(line["step"], line["eval_loss"]) for line in lines(output) if "eval_loss" in line]
    assert evaluated == [(line["step"], line["eval_loss"]) for line in lines(whole) if "eval_loss" in line]
    assert (output / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def opened(model: Path, folder: Path, **flags: Any) -> tuple[OutputFolder, torch.nn.Module]:
    loaded = load_model(model)
    config = TrainConfig(output_dir=str(folder), **flags)
    folder.mkdir(exist_ok=True)
    return OutputFolder(config, loaded, load_tokenizer(model), (), {}, 9), loaded


def test_nothing_is_written_that_has_fewer_tensors_than_the_model(model: Path, tmp_path: Path) -> None:
    output, loaded = opened(model, tmp_path / "out")
    some = list(gathered(loaded, None))
    for tensors in ([], some[1:]):
        with pytest.raises(UserError, match=r"nothing was written: .* of the model's tensors are not there"):
            output.write_final_model(iter(tensors), Progress(step=1))
        with pytest.raises(UserError, match="nothing was written"):
            output.save(Progress(step=1), iter(tensors), None)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".safetensors"] == []
    assert complete_checkpoints(tmp_path / "out") == []
    output.write_final_model(iter(some), Progress(step=1))
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == (model / "model.safetensors").stat().st_size


def test_a_kill_between_the_two_renames_of_a_save_loses_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, loaded = opened(model, tmp_path / "out")
    output.save(Progress(step=3, tokens=1), gathered(loaded, None), None)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if target.name == "checkpoint-3":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr("miniqwen.checkpoints.checkpoint.remove_half_written", lambda folder: None)  # killed, too
    with pytest.raises(KeyboardInterrupt):
        output.save(Progress(step=3, tokens=2), gathered(loaded, None), None)
    assert complete_checkpoints(tmp_path / "out") == []
    monkeypatch.undo()
    remove_half_written(tmp_path / "out")
    (found,) = complete_checkpoints(tmp_path / "out")
    verify(found)
    assert json.loads((found / "progress.json").read_text())["progress"]["tokens"] == 1


def test_a_kill_while_an_old_checkpoint_is_deleted_leaves_none_that_looks_whole(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, loaded = opened(model, tmp_path / "out", save_total_limit=1)
    output.save(Progress(step=1), gathered(loaded, None), None)

    def killed(path: Path, **options: Any) -> None:
        if "gone" in path.name:
            (path / "model.safetensors").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("miniqwen.checkpoints.checkpoint.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        output.save(Progress(step=2), gathered(loaded, None), None)
    monkeypatch.undo()
    assert [path.name for path in complete_checkpoints(tmp_path / "out")] == ["checkpoint-2"]
    remove_half_written(tmp_path / "out")
    assert names(tmp_path / "out") == ["checkpoint-2"]


def test_every_start_is_kept_with_what_changed_and_the_change_is_told(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    train(model, mirror, output, "--max_steps", 2, "--eval_steps", 2)
    said = train(
        model,
        mirror,
        output,
        "--max_steps",
        4,
        "--eval_steps",
        2,
        "--resume_from_checkpoint",
        "auto",
        "--weight_decay",
        0.5,
    )
    assert "changed: max_steps 2 → 4, weight_decay 0.0 → 0.5\n" in said.replace(
        "weight_decay 0 →", "weight_decay 0.0 →"
    )
    elsewhere = tmp_path / "elsewhere"
    flags = ("--max_steps", 4, "--eval_steps", 2, "--resume_from_checkpoint", output / "checkpoint-2")
    train(model, mirror, elsewhere, *flags)
    first, second = yaml.safe_load((output / "config.yaml").read_text())["recorded"]["lives"]
    assert (first["start_step"], first["checkpoint"], "changed" in first) == (0, None, False)
    assert second["start_step"] == 2
    assert second["checkpoint"].endswith("checkpoint-2")
    assert second["changed"]["max_steps"] == [2, 4]
    assert set(second) >= {"began", "command", "runs_on", "machine", "git_commit", "versions"}
    lives = yaml.safe_load((elsewhere / "config.yaml").read_text())["recorded"]["lives"]
    assert lives[:2] == [first, second]
    assert lives[2]["changed"]["weight_decay"][0] == 0.5
    (elsewhere / "config.yaml").write_text("a: [")  # damaged by hand: told as a life that knows of no other
    train(model, mirror, elsewhere, *flags[:2], "--eval_steps", 2, "--resume_from_checkpoint", "auto")
    assert len(yaml.safe_load((elsewhere / "config.yaml").read_text())["recorded"]["lives"]) == 1


def test_a_failed_run_s_state_names_the_checkpoint_that_is_whole(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "trainer_state.json").write_text(json.dumps({"status": "running", "step": 0, "last_checkpoint": None}))
    note_end(folder, "failed", "why")
    newest = complete_checkpoints(folder)[-1].name
    assert state(folder) == {"status": "failed", "reason": "why", "step": 8, "last_checkpoint": newest}


def test_a_final_model_leaves_no_shards_of_an_earlier_one_that_would_be_loaded_instead(tmp_path: Path) -> None:
    written, folder = tmp_path / ".new", tmp_path / "run"
    for place, names in (
        (folder, ("config.json", "model.safetensors", "mine.txt")),
        (written, ("config.json", "model-1.safetensors")),
    ):
        place.mkdir()
        for name in names:
            (place / name).write_text(place.name)
    publish(written, folder, "config.json", MODEL_FILES)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "mine.txt", "model-1.safetensors"]
    assert (folder / "config.json").read_text() == ".new"
    assert not written.exists()


FULL = """
mount -t tmpfs -o size=6m tmpfs $1 || exit 99
shift; train() { "$@" --max_steps $steps; echo "status $?"; }
steps=2 train "$@"
head -c 100M /dev/zero > $OUT/filler 2> /dev/null; truncate -s -48K $OUT/filler
steps=200 train "$@"
rm $OUT/filler
steps=8 train "$@"
cp -r $OUT/. $KEPT
"""


def test_a_disk_that_is_full_at_a_line_of_metrics_is_one_screen_and_the_run_goes_on_once_there_is_room(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here: a small disk cannot be made")
    output, kept = tmp_path / "out", tmp_path / "kept"
    output.mkdir()
    kept.mkdir()
    # only the last update is saved: metrics fill the disk
    flags = "--save_steps 1000 --eval_steps 1000 --resume_from_checkpoint auto".split()
    words = command("--model_path", model, "--data_root", mirror, "--output_dir", output, *FLAGS, *flags)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FULL, "sh", output, *words], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | OFFLINE | {"OUT": str(output), "KEPT": str(kept)}, check=False, timeout=300,
    )  # fmt: skip
    assert re.findall(r"status \d+", done.stdout) == ["status 0", "status 1", "status 0"], done.stderr
    assert f"{output}: cannot be written (No space left on device; 0.00 GB are free there)" in done.stderr
    assert "update 9/200" in done.stderr, "it was a line of metrics that did not fit"
    assert "Traceback" not in done.stderr
    assert [line["step"] for line in lines(kept) if "loss" in line][:2] == [1, 2]
    assert state(kept)["status"] == "finished"
    assert audit(kept).faults == []
