"""What an evaluation left is gone on from as it was written, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from miniqwen.errors import UserError
from miniqwen.eval.comparison import compare
from miniqwen.eval.result_files import ResultFile

CHOICES = [2, 3, 1]  # of two questions, and of the first one's choices behind nothing


def begun(folder: Path, choices: list[int | None], alone: list[int]) -> dict[int, Any]:
    file = ResultFile(folder, "sciq", "me", rank=0)
    try:
        return file.begin(overwrite=False, choices=choices, alone=alone)
    finally:
        file.close()


def partial(folder: Path, *lines: object) -> None:
    """What a killed evaluation left."""
    text = "".join(json.dumps(line) + "\n" for line in ({"identity": "me"}, *lines))
    (folder / ".sciq.partial-3.jsonl").write_text(text)


def test_what_was_answered_is_known_of_killed_and_of_finished_evaluations(tmp_path: Path) -> None:
    partial(tmp_path, {"index": 0, "found": [-1.0, -2.5]}, {"index": 2, "found": [-9.0]})
    assert begun(tmp_path, [*CHOICES], []) == {0: [-1.0, -2.5], 2: [-9.0]}
    for left in tmp_path.glob(".*"):
        left.unlink()
    samples = [
        {"scores": [-1.0, -2.0], "unconditional_scores": [-3.0]},
        {"scores": [-4.0] * 3, "unconditional_scores": [-3.0]},
    ]
    (tmp_path / "sciq.json").write_text(json.dumps({"identity": "me", "samples": samples}))
    assert begun(tmp_path, [*CHOICES], [2, 2]) == {0: [-1.0, -2.0], 1: [-4.0] * 3, 2: [-3.0]}
    (tmp_path / "sciq.json").unlink()
    partial(tmp_path, {"index": 1, "found": "a text"})
    assert begun(tmp_path, [None, None], []) == {1: "a text"}


@pytest.mark.parametrize(
    "line",
    [
        {"index": 3, "found": [-1.0]}, {"index": -1, "found": [-1.0]}, {"index": "0", "found": [-1.0, -2.0]},
        {"index": 0, "found": [-1.0]}, {"index": 0, "found": None}, {"index": 0, "found": [-1.0, "x"]},
        {"index": 0, "found": {"0": -1.0}}, {"index": 0}, {}, [], None, 3, {"index": [], "found": [-1.0, -2.0]},
    ],
)  # fmt: skip
def test_a_line_that_answers_no_question_is_named_and_not_counted(tmp_path: Path, line: object) -> None:
    partial(tmp_path, {"index": 2, "found": [-1.0]}, line)
    with pytest.raises(UserError, match=r"\.sciq\.partial-3\.jsonl is damaged: delete it"):
        begun(tmp_path, [*CHOICES], [])
    assert (tmp_path / ".sciq.partial-3.jsonl").exists()


@pytest.mark.parametrize("samples", [None, 3, [None], [{}], [{"scores": [-1.0]}], [{"scores": [-1.0, -2.0]}] * 4])
def test_results_that_answer_other_questions_are_named_and_not_counted(tmp_path: Path, samples: object) -> None:
    (tmp_path / "sciq.json").write_text(json.dumps({"identity": "me", "samples": samples}))
    with pytest.raises(UserError, match=r"sciq\.json is damaged: delete it"):
        begun(tmp_path, [*CHOICES], [])


def test_a_pipe_or_a_device_in_a_results_place_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sciq.json")
    (tmp_path / ".sciq.partial-0.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="another evaluation"):
        begun(tmp_path, [*CHOICES], [])
    with pytest.raises(UserError, match="cannot be read as JSON"):
        compare(tmp_path / "sciq.json", tmp_path / "sciq.json")


SAMPLE = {"id": "1", "question": "Q", "prediction": "red", "answer": "red", "correct": True}


@pytest.mark.parametrize(
    "described",
    [
        {}, [], {"samples": [SAMPLE]}, {"dataset": "x", "samples": {"1": SAMPLE}}, {"dataset": "x", "samples": [None]},
        {"dataset": "x", "samples": [SAMPLE | {"id": {}}]}, {"dataset": "x", "samples": [SAMPLE | {"question": []}]},
        {"dataset": "x", "samples": [SAMPLE | {"correct": 2}]}, {"dataset": "x", "samples": ["id question correct"]},
    ],
)  # fmt: skip
def test_what_is_no_file_of_results_is_not_compared(tmp_path: Path, described: object) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(described))
    with pytest.raises(UserError, match="is no file of results"):
        compare(file, file)
