"""The audit: a run that is as it says passes, whatever its lives were, and each thing that is not so is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import lines, run_script, state
from safetensors.torch import load_file, save_file

from miniqwen.errors import UserError
from miniqwen.files import file_hash
from miniqwen.training.auditing import audit
from miniqwen.training.history import final_history, read_lines

FLAGS = (
    "--dataset_name both --block_size 32 --per_device_train_batch_size 2 --validation_blocks 8 --report_to none "
    "--eval_strategy steps --eval_steps 2 --save_steps 2 --sample_prompts none --bf16 --greater_is_better True "
    "--load_best_model_at_end"
).split()


def train(model: Path, mirror: Path, output: Path, *flags: object) -> None:
    given = ("--model_path", model, "--data_root", mirror, "--output_dir", output)
    done = run_script("train_loop.py", *given, *FLAGS, *flags)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def left(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 updates that went back to 4 and on to 9, with other flags; its best model is not its last."""
    output = tmp_path_factory.mktemp("audit") / "run"
    train(model, mirror, output, "--max_steps", 6, "--logging_steps", 1)
    back = ("--resume_from_checkpoint", output / "checkpoint-4")
    train(model, mirror, output, *back, "--max_steps", 9, "--logging_steps", 4, "--learning_rate", "1e-3")
    assert state(output)["final_model"] == state(output)["best_checkpoint"] == "checkpoint-2"
    assert [(line["step"], "loss" in line) for line in lines(output)][-5:] == [
        (6, False), (8, True), (8, False), (9, True), (9, False)
    ]  # fmt: skip
    return output


def test_a_run_of_several_lives_is_as_it_says(left: Path) -> None:
    done = run_script("-m", "miniqwen.audit", left)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished at update 9 of 9; 2 lives; 14 lines of metrics, 11 of them in the final history" in done.stdout
    assert "5 checkpoints; the final model, tensor by tensor against checkpoint-2" in done.stdout
    assert "not looked at, as they do not count: aside-checkpoint-6" in done.stdout
    assert done.stdout.endswith("all of it is as it says\n")


def test_what_another_folder_tells_of_a_run_is_said(model: Path, mirror: Path, left: Path, tmp_path: Path) -> None:
    output = tmp_path / "elsewhere"
    on = ("--max_steps", 9, "--logging_steps", 1, "--resume_from_checkpoint", left / "checkpoint-4")
    train(model, mirror, output, *on)
    found = audit(output)
    assert found.faults == []
    assert found.notes == ["its first 4 updates are told in the folder where they were made"]


def test_a_folder_without_a_run_is_refused(left: Path, tmp_path: Path) -> None:
    done = run_script("-m", "miniqwen.audit", tmp_path, left)
    assert done.returncode == 2
    assert f"{tmp_path}: no run is there" in done.stderr
    assert run_script("-m", "miniqwen.audit").returncode == 2
    with pytest.raises(UserError, match="no run is there"):
        audit(tmp_path)


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change_line(folder: Path, step: int, evaluation: bool = False, drop: bool = False, **values: Any) -> None:
    """The last line of an update, changed or dropped."""
    told = lines(folder)
    number = max(n for n, line in enumerate(told) if line["step"] == step and ("eval_loss" in line) == evaluation)
    changed = [] if drop else [told[number] | values]
    told = [*told[:number], *changed, *told[number + 1 :]]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object], manifest: bool = True) -> None:
    """Changed tensors, as if a run had written them; with their hash in the manifest beside them."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    if manifest:
        resealed(file)


def resealed(file: Path) -> None:
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["sha256"][file.name] = file_hash(file)
    (file.parent / "manifest.json").write_text(json.dumps(manifest))


def change_progress(checkpoint: Path, **values: Any) -> None:
    file = checkpoint / "progress.json"
    stored = json.loads(file.read_text())
    change_json(file, progress=stored["progress"] | values)
    resealed(file)


def flip(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.seek(-3, 2)
        last = opened.read(1)
        opened.seek(-3, 2)
        opened.write(bytes([last[0] ^ 1]))


def other_data(folder: Path) -> None:
    written = yaml.safe_load((folder / "config.yaml").read_text())
    written["recorded"]["data"]["seed"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(written))


NORM = "model.norm.weight"
WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a line that is lost": (lambda f: change_line(f, 8, drop=True), "no line for updates: 8"),
    "the first line": (lambda f: change_line(f, 1, drop=True), "no line for updates: 1"),
    "a lost evaluation": (lambda f: change_line(f, 9, True, drop=True), "no line for the evaluation at update 9"),
    "no metrics": (lambda f: (f / "metrics.jsonl").unlink(), "metrics.jsonl: cannot be read"),
    "a line that is none": (
        lambda f: (f / "metrics.jsonl").write_text("{}\n" + (f / "metrics.jsonl").read_text()), "line 1: is not a line"
    ),
    "tokens that shrink": (lambda f: change_line(f, 8, tokens=1), "1 tokens at update 8, and no fewer at 4"),
    "tokens of another run": (lambda f: change_line(f, 9, tokens=577), "tokens 576, and metrics.jsonl has 577 there"),
    "updates that count twice": (
        lambda f: change_progress(f / "checkpoint-8", tokens=640), "640 tokens, and 8 updates have 512"
    ),
    "a bit of a weight": (lambda f: flip(f / "checkpoint-4" / "model.safetensors"), "model.safetensors is damaged"),
    "a file that is gone": (lambda f: (f / "checkpoint-4/optimizer.safetensors").unlink(), "optimizer.safetensors"),
    "another checkpoint's name": (
        lambda f: shutil.copytree(f / "checkpoint-4", f / "checkpoint-5"), "checkpoint-5: is of update 4"
    ),
    "a checkpoint without a weight": (
        lambda f: change_tensors(f / "checkpoint-8/model.safetensors", lambda t: t.pop(NORM)),
        f"lacks weights of the model: {NORM}",
    ),
    "one without a moment": (
        lambda f: change_tensors(
            f / "checkpoint-8/optimizer.safetensors", lambda t: [t.pop(key) for key in list(t) if key.endswith(NORM)]
        ),
        f"lacks optimizer state: {NORM}",
    ),
    "one with NaN": (
        lambda f: change_tensors(f / "checkpoint-8/model.safetensors", lambda t: t[NORM].fill_(float("nan"))),
        "no numbers",
    ),
    "one with another model's weights": (
        lambda f: change_tensors(f / "checkpoint-8/model.safetensors", lambda t: t.update({NORM: torch.ones(3)})),
        "another shape",
    ),
    "other data": (other_data, "its data is not that of config.yaml: seed: was 42, is 1"),
    "a pointer to nothing": (
        lambda f: change_json(f / "trainer_state.json", last_checkpoint="checkpoint-7"), "checkpoint-7 is not there"
    ),
    "a state that is behind": (lambda f: change_json(f / "trainer_state.json", step=8), "step 8, and the newest whole"),
    "a state that is none": (lambda f: (f / "trainer_state.json").write_text("[1]"), "does not hold what a run writes"),
    "a status of another program": (lambda f: change_json(f / "trainer_state.json", status="done"), "status 'done'"),
    "a best one that is gone": (lambda f: shutil.rmtree(f / "checkpoint-2"), "checkpoint-2 is not there"),
    "a best one that is none": (
        lambda f: change_line(f, 9, True, eval_loss=99.0), "the best is update 2's, and update 9 has eval_loss 99.0"
    ),
    "a best metric of its own": (lambda f: change_line(f, 2, True, eval_loss=5.0), "and metrics.jsonl has 5.0"),
    "a final model without a weight": (
        lambda f: change_tensors(f / "model.safetensors", lambda t: t.pop(NORM), manifest=False),
        f"the final model lacks: {NORM}",
    ),
    "a final model of the last update": (
        lambda f: change_tensors(
            f / "model.safetensors", lambda t: t.update(
                {name: weight.bfloat16() for name, weight in load_file(f / "checkpoint-9/model.safetensors").items()}
            ), manifest=False,
        ), "the final model is not checkpoint-2's in torch.bfloat16"
    ),
    "a final model in another precision": (
        lambda f: shutil.copy(f / "checkpoint-2/model.safetensors", f), "the final model is not checkpoint-2's"
    ),
    "a shard of another model": (
        lambda f: shutil.copy(f / "model.safetensors", f / "model-00001-of-00002.safetensors"),
        "and there are model-00001",
    ),
    "another tokenizer": (lambda f: flip(f / "tokenizer.json"), "not as in checkpoint-2: tokenizer.json"),
    "no final model": (lambda f: (f / "config.json").unlink(), "the final model's config.json is not there"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_as_it_says_is_named(left: Path, tmp_path: Path, case: str) -> None:
    damage, said = WRONG[case]
    folder = tmp_path / "run"
    shutil.copytree(left, folder)
    assert audit(folder).faults == [], "a copy is as good"
    damage(folder)
    faults = audit(folder).faults
    assert [fault for fault in faults if said in fault], faults


def test_a_run_that_was_killed_is_clean_and_what_its_lines_are_ahead_is_noted(left: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(left, folder)
    for name in ("checkpoint-9", "checkpoint-8"):
        shutil.rmtree(folder / name)
    (folder / "config.json").unlink()
    change_json(
        folder / "trainer_state.json", status="running", step=6, last_checkpoint="checkpoint-6", final_model=None
    )
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    found = audit(folder)
    assert found.faults == []
    assert [note.split(": ", 1)[-1] for note in found.notes][:3] == [
        "its last line is torn; the next start cuts it", "no checkpoint has them",
        "it was killed; --resume_from_checkpoint auto goes on",
    ]  # fmt: skip


def told(*steps: float) -> list[dict[str, Any]]:
    """Lines: 4.5 is the evaluation at 4; their time is their number."""
    evaluation = {True: "loss", False: "eval_loss"}
    return [{"step": int(s), evaluation[s == int(s)]: 1.0, "time": float(n)} for n, s in enumerate(steps)]


def test_the_final_history_has_each_update_once(tmp_path: Path) -> None:
    def steps(*given: float, lives: list[dict[str, Any]] | None = None) -> list[float]:
        return [line["step"] + 0.5 * ("eval_loss" in line) for line in final_history(told(*given), lives or [])]

    assert steps(1, 2, 2.5, 3, 4, 4.5) == [1, 2, 2.5, 3, 4, 4.5]
    assert steps(1, 2, 2.5, 3, 4, 4.5, 3, 4) == [1, 2, 2.5, 3, 4], "updates that were made again"
    assert steps(1, 2, 2.5, 2.5, 3) == [1, 2, 2.5, 3], "an evaluation that was made again"
    assert steps(1, 2, 2.5, 2, 2.5) == [1, 2, 2.5]
    assert steps(1, 3, 6, 9, 1) == [1], "begun afresh"
    life = {"began": "1970-01-01T00:00:03.500+00:00", "start_step": 8}
    assert steps(1, 3, 6, 9, 10, lives=[life]) == [1, 3, 6, 10], "9 was taken back, though nothing took its place"
    assert steps(1, 3, 6, 9, lives=[life]) == [1, 3, 6], "nothing was told since"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"loss": 1}\n')
    with pytest.raises(UserError, match="line 2: is not a line of metrics"):
        read_lines(tmp_path / "metrics.jsonl")
