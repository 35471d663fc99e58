"""prepare_datasets.py, called as it is, on data of one's own; what it says is what training says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from runs import article, run_script
from transformers import AutoTokenizer

from miniqwen.config.creating import CreateConfig
from miniqwen.create_model import next_command


def quiz(folder: Path, bad: bool = False) -> Path:
    """Questions in two splits, the last one without answers."""
    folder.mkdir()
    rows = [{"q": f"Which is {word}?", "o": ["red", word, "blue"], "key": 1} for word in ("iron", "tin", "zinc")]
    rows[1] |= {"key": 7} if bad else {}
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    secret = [{**row, "key": None} for row in rows]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in secret))
    return folder


SHORT = ("--max_steps", 1, "--block_size", 64, "--max_seq_length", 64)
COLUMNS = ("--question_column", "q", "--choices_column", "o", "--answer_column", "key")


def test_questions_of_ones_own_are_read_whole_and_shown_as_they_are_understood(tmp_path: Path) -> None:
    folder = quiz(tmp_path / "quiz")
    done = run_script("prepare_datasets.py", "--dataset_name", folder, *COLUMNS, "--answer_is", "number")
    assert done.returncode == 0, done.stderr
    assert "  from      this machine\n" in done.stdout
    assert "revision" not in done.stdout
    assert "  questions train: 3 with 3 choices\n" in done.stdout
    assert "  questions test: 3 with 3 choices; 3 without an answer\n" in done.stdout
    assert "  train[0]  Which is iron?  red | *iron | blue\n" in done.stdout
    assert "  test[1]  Which is tin?  red | tin | blue\n" in done.stdout
    assert f"all of {folder} can be read" in done.stdout


def test_what_training_refuses_is_refused_in_the_same_words(model: Path, tmp_path: Path) -> None:
    folder = quiz(tmp_path / "quiz", bad=True)
    asked = ("--dataset_name", folder, *COLUMNS, "--answer_is", "number")
    prepared = run_script("prepare_datasets.py", *asked)
    trained = run_script(
        "train_loop.py", *asked, "--model_path", model, "--output_dir", tmp_path / "out", "--max_steps", 1,
        "--max_seq_length", 64,
    )  # fmt: skip
    assert prepared.returncode == trained.returncode == 2
    (said,) = {line.strip() for line in trained.stderr.splitlines() if "row 1" in line}
    assert said in prepared.stderr
    more = run_script("prepare_datasets.py", "--dataset_name", folder, "--question_column", "q", "--text_column", "q")
    assert "--text_column and --question_column contradict each other" in more.stderr
    alone = run_script("prepare_datasets.py", "--sciq", "--answer_column", "x")
    assert "--answer_column belongs to --dataset_name, which is not given" in alone.stderr


def test_files_that_no_split_holds_stop_every_command_alike(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("train.jsonl", "more.jsonl"):
        (folder / name).write_text("".join(json.dumps({"text": article(n)}) + "\n" for n in range(20)))
    told = f"{folder}: 1 files would not be read"
    output = ("--output_dir", tmp_path / "out")
    commands = [
        ("prepare_datasets.py", "--dataset_name", folder),
        ("train_loop.py", "--dataset_name", folder, "--task", "pretrain", "--model_path", model, *output, *SHORT),
        ("eval_loop.py", "--dataset_name", folder, *COLUMNS, "--model_path", model, *output),
        ("-m", "miniqwen.create_model", "--dataset_name", folder, *output),
    ]  # fmt: skip
    for command in commands:
        done = run_script(*command)
        assert (done.returncode, told in done.stderr) == (2, True), (command[0], done.stderr)
        assert "more.jsonl; rename or move them" in done.stderr
    pattern = folder / "*.jsonl"
    done = run_script("prepare_datasets.py", "--dataset_name", pattern)
    assert (done.returncode, "train: 2 files" in done.stdout) == (0, True), done.stderr


def test_a_pattern_is_trained_on_as_one_data_set(model: Path, tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"text": article(n)}) + "\n" for n in range(20)))
    done = run_script(
        "train_loop.py", "--dataset_name", tmp_path / "[ab].jsonl", "--task", "pretrain", "--model_path", model,
        "--output_dir", tmp_path / "out", "--max_steps", 2, "--block_size", 32, "--per_device_train_batch_size", 2,
        "--report_to", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 files" in done.stdout
    assert "finished: 2 updates" in done.stdout


@pytest.mark.parametrize("command", ["train_loop.py", "-m miniqwen.generate"])
def test_a_tokenizer_that_is_larger_than_its_model_is_named_before_anything_is_read(
    command: str, model: Path, mirror: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size = max(tokenizer.get_vocab().values()) + 1
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    flags = ["--dataset_name", "both", "--data_root", mirror, "--output_dir", tmp_path / "out", *SHORT]
    done = run_script(*command.split(), "--model_path", folder, *(flags if "train" in command else ["a"]))
    assert done.returncode == 2
    assert f"{folder}: the tokenizer has {size + 2} tokens, the model only {size}" in done.stderr


def test_the_next_command_reads_what_this_one_read(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "my notes.txt"
    file.write_text("\n\n".join(article(n) for n in range(60)))
    output = tmp_path / "made"
    asked = ("--dataset_name", file, "--sample_by", "paragraph", "--cache_dir", tmp_path / "my cache")
    made = run_script("-m", "miniqwen.create_model", *asked, "--output_dir", output, "--vocab_size", 320)
    assert made.returncode == 0, made.stderr
    words = shlex.split(made.stdout.splitlines()[-1].removeprefix("next: "))
    assert words[:4] == ["accelerate", "launch", "-q", "train_loop.py"]
    pasted = [
        *words[3:],
        "--output_dir",
        tmp_path / "out",
        "--max_steps",
        1,
        "--block_size",
        64,
        "--max_seq_length",
        64,
    ]
    done = run_script(*pasted, "--report_to", "none")
    assert done.returncode == 0, done.stderr
    assert "finished: 1 updates" in done.stdout
    config = CreateConfig(output_dir="m", wikipedia_version="20231101.zh", data_root="a b", hub_timeout=9.0)
    told = next_command(config, 512)
    assert "--wikipedia_version 20231101.zh --data_root 'a b' --hub_timeout 9.0" in told
    assert "--task" not in told
