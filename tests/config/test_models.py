"""What `--model_path` is told when there is no finished model at its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from miniqwen.config.models import model_problems


def told(path: object, any_kind: bool = False) -> str:
    (problem,) = model_problems(str(path), None, any_kind=any_kind)
    return problem


@pytest.mark.parametrize(
    "given",
    [
        "Qwen/Qwen3-0.6B", "https://huggingface.co/Qwen/Qwen3-0.6B", "hf.co/Qwen/Qwen3-0.6B/", "hf://Qwen/Qwen3-0.6B",
        "https://huggingface.co/Qwen/Qwen3-0.6B/tree/main?library=transformers",
    ],
)  # fmt: skip
def test_a_model_of_the_hub_is_imported_first(given: str) -> None:
    said = told(given)
    assert "create_model --from_pretrained Qwen/Qwen3-0.6B --output_dir models/Qwen3-0.6B`" in said
    assert said.endswith("then --model_path models/Qwen3-0.6B")
    assert "hf download Qwen/Qwen3-0.6B --local-dir models/Qwen3-0.6B" in told(given, any_kind=True)


def test_a_path_that_may_be_either_is_told_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "pretrained").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    said = told("runs/pretraned")
    assert "did you mean runs/pretrained?" in said
    assert "--from_pretrained runs/pretraned" in said


def test_other_addresses_and_names_without_an_owner_make_no_folder_of_that_name(tmp_path: Path) -> None:
    assert told("https://example.org/model").endswith("on this machine is expected: download it first")
    assert "goes by its whole name, OWNER/Qwen3-0.6B" in told("Qwen3-0.6B")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained-2").mkdir()
    assert f"did you mean {tmp_path / 'pretrained'} or {tmp_path / 'pretrained-2'}?" in told(tmp_path / "pretraned")


def test_files_parents_and_names_of_nothing_are_told_what_they_are(model: Path, tmp_path: Path) -> None:
    assert f"is a file; give the model's folder, {model}" in told(model / "model.safetensors")
    shutil.copytree(model, tmp_path / "parent" / "one")
    assert f"there are models in {tmp_path / 'parent' / 'one'}" in told(tmp_path / "parent")
    assert "make a model with `python -m miniqwen.create_model --output_dir" in told(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "it has no config.json; make a model" in told(tmp_path / "empty")


def test_an_unfinished_run_says_how_far_it_is_and_what_can_be_done(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    state = {
        "status": "preempted",
        "reason": "SIGINT was received",
        "step": 120,
        "max_steps": 400,
        "last_checkpoint": None,
    }
    (folder / "trainer_state.json").write_text(json.dumps(state))
    said = told(folder)
    assert "is not finished (preempted at update 120 of 400: SIGINT was received)" in said
    assert "--resume_from_checkpoint auto" in said
    assert "create_model" not in said, "a random model in its place is the last thing wanted"
    shutil.copytree(model, folder / "checkpoint-100")
    (folder / "trainer_state.json").write_text(json.dumps(state | {"last_checkpoint": "checkpoint-100"}))
    assert f"--model_path {folder / 'checkpoint-100'}" in told(folder, any_kind=True)
    assert model_problems(str(folder / "checkpoint-100"), None) == []
    for file in model.iterdir():  # also where the final model of an earlier life stands
        shutil.copy(file, folder)
    assert "is not finished" in told(folder)
    assert model_problems(str(folder), None, resumed=True) == [], "a run that goes on in the folder of its model"
    (folder / "trainer_state.json").write_text(json.dumps(state | {"status": "finished"}))
    assert model_problems(str(folder), None) == []


@pytest.mark.parametrize(
    "state", ["", "{", "[]", "{}", '"x"', '{"status": "finished"}', '{"global_step": 3, "log_history": []}']
)
def test_a_state_file_of_another_program_or_a_torn_one_is_passed_over(model: Path, tmp_path: Path, state: str) -> None:
    shutil.copytree(model, tmp_path / "model")
    (tmp_path / "model" / "trainer_state.json").write_text(state)
    assert model_problems(str(tmp_path / "model"), None) == []
