"""Two files of results against each other, by hand and by scipy's numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miniqwen.errors import UserError
from miniqwen.eval.comparison import compare, told


def write(path: Path, correct: str, **other: Any) -> Path:
    """Results whose questions are right where `correct` has a 1."""
    samples = [
        {"id": str(i), "question": f"Q{i}", "prediction": "red" if mark == "1" else "blue", "answer": "red",
         "correct": mark == "1"}
        for i, mark in enumerate(correct)
    ]  # fmt: skip
    path.write_text(json.dumps({"dataset": "sciq", "samples": samples, **other}))
    return path


def test_counts_test_and_changed_questions_are_those_of_the_pairs(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", "1100000000")
    second = write(tmp_path / "b.json", "1011111100")
    found = compare(first, second)
    assert (found["both"], found["only_first"], found["only_second"], found["neither"]) == (1, 1, 6, 2)
    assert found["accuracies"] == [0.2, 0.7]
    assert found["difference"] == pytest.approx(0.5)
    assert found["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)  # 1 of 7 or fewer, two-sided
    low, high = found["confidence_interval"]
    assert 0 < low < 0.5 < high < 1
    assert [one["id"] for one in found["lost"]] == ["1"]
    assert [one["id"] for one in found["gained"]] == ["2", "3", "4", "5", "6", "7"]
    assert found["gained"][0]["predictions"] == ["blue", "red"]
    text = told(found)
    assert "B - A: +50.0%" in text
    assert "only A 1, only B 6" in text
    assert "  1: 'Q1'  A 'red', B 'blue', right 'red'" in text


def test_a_file_equals_itself(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", "10101")
    found = compare(file, file)
    assert (found["difference"], found["p_value"], found["confidence_interval"]) == (0, 1.0, [0, 0])
    assert found["gained"] == found["lost"] == []


def test_the_interval_turns_round_with_the_files(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.json", "1100" * 20), write(tmp_path / "b.json", "1010" * 15 + "1111" * 5)
    low, high = compare(first, second)["confidence_interval"]
    assert compare(second, first)["confidence_interval"] == pytest.approx([-high, -low], abs=0.02)


def test_files_of_other_questions_or_without_answers_are_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", "10")
    longer = write(tmp_path / "longer.json", "100")
    with pytest.raises(UserError, match="1 are in one file only"):
        compare(good, longer)
    renamed = json.loads(good.read_text())
    renamed["samples"][1]["question"] = "Another?"
    (tmp_path / "renamed.json").write_text(json.dumps(renamed))
    with pytest.raises(UserError, match="1 differ under the same id"):
        compare(good, tmp_path / "renamed.json")
    renamed["samples"][1]["correct"] = None
    (tmp_path / "secret.json").write_text(json.dumps(renamed))
    with pytest.raises(UserError, match="no right answers"):
        compare(good, tmp_path / "secret.json")
    (tmp_path / "combined.json").write_text(json.dumps({"datasets": {}}))
    with pytest.raises(UserError, match="no file of results with samples"):
        compare(good, tmp_path / "combined.json")
    (tmp_path / "torn.json").write_text('{"samples": [')
    with pytest.raises(UserError, match="cannot be read as JSON"):
        compare(tmp_path / "torn.json", good)
