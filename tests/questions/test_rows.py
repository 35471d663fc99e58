"""Rows of QA data sets become questions: known schemas, data of one's own, and every kind of bad row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miniqwen.config.data import DataFlags
from miniqwen.data.repositories import resolve
from miniqwen.errors import UserError
from miniqwen.questions.rows import Question
from miniqwen.questions.splits import Wanted, read_splits

SCIQ_ROW = {
    "question": "What gas do plants take in?", "distractor3": "argon", "distractor1": "oxygen", "distractor2": "neon",
    "correct_answer": "carbon dioxide", "support": "Plants take in carbon dioxide.",
}  # fmt: skip
CSQA_ROW = {
    "id": "7f", "question": "Where is a book kept?", "question_concept": "book",
    "choices": {"label": ["A", "B", "C"], "text": ["oven", "shelf", "oven"]}, "answerKey": "B",
}  # fmt: skip


def mirror(root: Path, name: str, **splits: list[dict[str, Any]]) -> DataFlags:
    """A mirror of one data set, with a row group of two rows at a time, so that rows are counted over groups."""
    folder = root / {"sciq": "allenai/sciq", "commonsenseqa": "tau/commonsense_qa"}[name] / "data"
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet", row_group_size=2)
    return DataFlags(dataset_name=name, data_root=str(root))


def read(
    name: str, split: str, flags: DataFlags, need_answers: bool = True, limit: int | None = None
) -> list[Question]:
    return read_splits(resolve(name, flags), name, flags, [Wanted(split, need_answers, limit)]).questions[0]


def read_own(
    folder: Path, rows: list[dict[str, Any]], choices: str | None = "options", **columns: str
) -> list[Question]:
    """The questions of a JSONL file with columns q, options, key."""
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = DataFlags(
        dataset_name=str(file), question_column="q", choices_column=choices, answer_column="key", **columns
    )  # fmt: skip
    return read(str(file), "train", flags)


def problems(*arguments: Any, **keywords: Any) -> tuple[str, ...]:
    with pytest.raises(UserError) as raised:
        read_own(*arguments, **keywords)
    return raised.value.problems


def test_sciq_choices_stand_in_a_fixed_order_with_the_right_one_last(tmp_path: Path) -> None:
    (question,) = read("sciq", "test", mirror(tmp_path, "sciq", test=[SCIQ_ROW]))
    assert question == Question(
        id="0", question="What gas do plants take in?", choices=("oxygen", "neon", "argon", "carbon dioxide"),
        answer_index=3, answer="carbon dioxide", support="Plants take in carbon dioxide.",
    )  # fmt: skip


def test_a_sciq_answer_that_is_also_a_distractor_is_still_the_last_choice(tmp_path: Path) -> None:
    row = {**SCIQ_ROW, "distractor1": "carbon dioxide"}
    (question,) = read("sciq", "test", mirror(tmp_path, "sciq", test=[row]))
    assert (question.answer_index, len(question.choices)) == (3, 4)


def test_commonsenseqa_answers_are_labels_and_equal_distractors_are_kept(tmp_path: Path) -> None:
    (question,) = read("commonsenseqa", "train", mirror(tmp_path, "commonsenseqa", train=[CSQA_ROW]))
    assert (question.id, question.choices, question.answer_index) == ("7f", ("oven", "shelf", "oven"), 1)
    assert question.answer == "shelf"


def test_a_split_without_answers_is_refused_only_where_answers_are_needed(tmp_path: Path) -> None:
    flags = mirror(tmp_path, "commonsenseqa", test=[{**CSQA_ROW, "answerKey": ""}] * 3)
    with pytest.raises(UserError, match="test split of commonsenseqa has no answers"):
        read("commonsenseqa", "test", flags)
    questions = read("commonsenseqa", "test", flags, need_answers=False)
    assert [(q.answer_index, q.answer) for q in questions] == [(None, None)] * 3


def test_bad_rows_are_told_by_file_and_row_ten_of_them_and_their_number(tmp_path: Path) -> None:
    rows = [SCIQ_ROW] * 5 + [{**SCIQ_ROW, "correct_answer": ""}] * 12 + [{**SCIQ_ROW, "question": None}]
    with pytest.raises(UserError) as raised:
        read("sciq", "train", mirror(tmp_path, "sciq", train=rows))
    *shown, count = raised.value.problems
    assert len(shown) == 10
    assert "13 bad rows" in count
    assert "train-00000-of-00001.parquet, row 5: correct_answer is empty" in "\n".join(shown)


def test_the_limit_reads_the_first_rows_and_no_bad_one_behind_them(tmp_path: Path) -> None:
    rows = [{**SCIQ_ROW, "question": f"Question {i}?"} for i in range(5)] + [{**SCIQ_ROW, "question": ""}]
    questions = read("sciq", "train", mirror(tmp_path, "sciq", train=rows), limit=3)
    assert [(q.id, q.question) for q in questions] == [(str(i), f"Question {i}?") for i in range(3)]


def test_pairs_without_choices_keep_their_answer(tmp_path: Path) -> None:
    (question,) = read_own(tmp_path, [{"q": "Why?", "key": "Because."}], None)
    assert (question.choices, question.answer_index, question.answer) == ((), None, "Because.")


def test_own_support_and_id_columns_are_read(tmp_path: Path) -> None:
    rows = [
        {"q": "a?", "options": ["x", "y"], "key": "x", "text": "Some.", "number": 17},
        {"q": "b?", "options": ["x", "y"], "key": "x", "text": None, "number": None},
    ]
    questions = read_own(tmp_path, rows, support_column="text", id_column="number")
    assert [(q.id, q.support) for q in questions] == [("17", "Some."), ("1", "")]


def test_a_column_called_id_is_the_id_unless_another_is_named(tmp_path: Path) -> None:
    rows = [{"id": "first", "other": "second", "q": "a?", "options": ["x", "y"], "key": "x"}]
    assert [q.id for q in read_own(tmp_path, rows)] == ["first"]
    assert [q.id for q in read_own(tmp_path, rows, id_column="other")] == ["second"]


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, [{"q": "a?", "choices": ["x", "y"], "key": "x"}])
    assert "options" in problem
    assert "q, choices, key" in problem


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ({"q": "a?", "options": ["x", "y"], "key": "z"}, "key 'z' is none of the choices 'x', 'y'"),
        ({"q": "a?", "options": ["x", "y"], "key": None}, "key is empty"),
        ({"q": " ", "options": ["x", "y"], "key": "x"}, "q is empty"),
        ({"q": "a?", "options": [], "key": "x"}, "options has 0 choices"),
        ({"q": "a?", "options": None, "key": "x"}, "options should be a list"),
        ({"q": "a?", "options": ["x", ""], "key": "x"}, "options is empty"),
        ({"q": "a?", "options": ["x"], "key": "x"}, "at least two choices"),
        ({"q": "a?", "options": [f"c{i}" for i in range(27)], "key": "c0"}, "has 27 choices; expected 2 to 26"),
    ],
)
def test_a_bad_row_of_ones_own_names_file_row_and_fault(tmp_path: Path, bad: dict[str, Any], told: str) -> None:
    good = {"q": "a?", "options": ["x", "y"], "key": "x"}
    (problem,) = problems(tmp_path, [good, good, bad])
    assert "own.jsonl, row 2: " in problem
    assert told in problem


def test_halves_of_surrogate_pairs_become_question_marks_in_questions_choices_and_answers(tmp_path: Path) -> None:
    (question,) = read_own(tmp_path, [{"q": "What \ud800?", "options": ["a\udc00", "b"], "key": "a\udc00"}])
    assert (question.question, question.choices, question.answer) == ("What ??", ("a?", "b"), "a?")
