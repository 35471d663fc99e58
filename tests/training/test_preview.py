"""`--preview N`: the very tokens that the model will get, before it is loaded; the same command then starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import run_script
from transformers import AutoTokenizer

from miniqwen.data.packing import chained


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "preview.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_blocks_of_a_preview_are_those_that_are_then_trained_on(
    model: Path, mirror: Path, tmp_path: Path, processes: int
) -> None:
    output = tmp_path / "run"
    flags = [
        "--model_path", model, "--data_root", mirror, "--output_dir", output, "--dataset_name", "both", "--mixture",
        "wikipedia=0.7,arxiv=0.3", "--block_size", 32, "--per_device_train_batch_size", 4 // processes, "--data_lanes",
        2, "--max_steps", 5, "--report_to", "none", "--validation_blocks", 4, "--sample_prompts", "none",
    ]  # fmt: skip
    shown = run_script("train_loop.py", *flags, "--preview", 3, processes=processes)
    assert shown.returncode == 0, shown.stderr
    assert {path.name for path in output.iterdir()} == {"preview.jsonl"}
    assert "update 3  shares so far: arxiv 0." in shown.stdout
    assert "12 blocks in" in shown.stdout
    assert "30.0% of the tokens" in shown.stdout
    rows = rows_of(output)
    assert [(row["update"], row["row"]) for row in rows] == [(step, row) for step in (1, 2, 3) for row in range(4)]
    assert {row["source"] for row in rows} == {"wikipedia", "arxiv"}
    tokenizer = AutoTokenizer.from_pretrained(model)
    for row in rows:
        assert row["targets"] == [*row["input_ids"][1:], -100]
        assert row["text"] == tokenizer.decode(row["input_ids"])
    done = run_script("train_loop.py", *flags, "--max_steps", 3, "--save_steps", 3, processes=processes)
    assert done.returncode == 0, done.stderr
    cursor = json.loads((output / "checkpoint-3/progress.json").read_text())["progress"]["cursor"]
    for lane in (0, 1):
        digest = ""
        for row in rows:
            if row["row"] % 2 == lane:
                digest = chained(digest, np.array(row["input_ids"]))
        assert cursor[str(lane)]["digest"] == digest
    following = run_script("train_loop.py", *flags, "--preview", 9, "--resume_from_checkpoint", "auto")
    if processes == 1:
        assert following.returncode == 0, following.stderr
        assert [row["update"] for row in rows_of(output)][::4] == [4, 5]  # those that are left
        assert (output / "checkpoint-3").is_dir()


@pytest.mark.parametrize("extra", [[], ["--packing"]])
def test_the_examples_of_a_preview_show_which_tokens_are_trained_on(
    model: Path, mirror: Path, tmp_path: Path, extra: list[object]
) -> None:
    found = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        flags = [
            "--model_path", model, "--data_root", mirror, "--output_dir", output, "--dataset_name", "sciq",
            "--per_device_train_batch_size", 4 // processes, "--num_train_epochs", 1, "--report_to", "none",
            "--max_seq_length", 96, *extra,
        ]  # fmt: skip
        shown = run_script("train_loop.py", *flags, "--preview", 2, processes=processes)
        assert shown.returncode == 0, shown.stderr
        found[processes] = rows_of(output)
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert [(row["update"], row["row"]) for row in found[1]] == [(step, row) for step in (1, 2) for row in range(4)]
    assert [row["text"] for row in found[1]] == [row["text"] for row in found[2]]
    assert [row["targets"] for row in found[1]] == [row["targets"] for row in found[2]]
    for row in found[1]:
        trained = [target for target in row["targets"] if target != -100]
        assert 0 < len(trained) < len(row["input_ids"]) / 2
        assert "Which word has number" in row["text"]
        assert "Which word" not in tokenizer.decode(trained)
        assert f"» {' '.join(tokenizer.decode(trained).split())}"[:40] in shown.stdout


def test_a_preview_deletes_nothing_also_where_the_run_would_begin_anew(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = [
        "--model_path", model, "--data_root", mirror, "--output_dir", output, "--dataset_name", "wikipedia",
        "--block_size", 32, "--per_device_train_batch_size", 2, "--report_to", "none", "--sample_prompts", "none",
    ]  # fmt: skip
    assert run_script("train_loop.py", *flags, "--max_steps", 1).returncode == 0
    shown = run_script("train_loop.py", *flags, "--max_steps", 2, "--overwrite_output_dir", "--preview", 1)
    assert shown.returncode == 0, shown.stderr
    assert (output / "checkpoint-1/manifest.json").is_file()
    assert rows_of(output)[0]["update"] == 1
