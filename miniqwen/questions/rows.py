"""Where questions come from: the rows of a QA data set → `Question`s.

Promises: one order of choices whatever the file (SciQ: the distractors, then the right answer); an answer may be given
as a choice's text, its label or its number, and is read in one way in the whole data set; all bad rows are reported at
once, with file and row.
Costs: all questions of a split in memory (SciQ's 11,679 take a few MB) and one pass over its files.
"""

from __future__ import annotations

import dataclasses
import math
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from miniqwen.config.data import DataFlags
from miniqwen.errors import UserError
from miniqwen.files import encodable

if TYPE_CHECKING:
    from miniqwen.data.repositories import Repository

LABELS = string.ascii_uppercase
SHOWN_ROWS = 10  # of the bad ones


@dataclass(frozen=True)
class Question:
    """One row. `answer` is None where the data set keeps it secret; `choices` is empty for question/answer pairs."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer_index: int | None
    answer: str | None
    support: str = ""


@dataclass(frozen=True)
class Columns:
    """Which column holds what. Several columns of choices hold one choice each."""

    question: str
    choices: tuple[str, ...]
    answer: str
    support: str | None
    id: str | None

    def names(self) -> tuple[str, ...]:
        named = (self.id, self.question, *self.choices, self.answer, self.support)
        return tuple(dict.fromkeys(name for name in named if name))


SCHEMAS = {
    "sciq": Columns("question", ("distractor1", "distractor2", "distractor3", "correct_answer"), "correct_answer",
                    "support", None),
    "commonsenseqa": Columns("question", ("choices",), "answerKey", None, "id"),
}  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """A row whose question and choices are sound; `labels` belong to `question.choices`."""

    where: str
    question: Question
    labels: tuple[str, ...]
    answer: Any


def read_questions(
    repository: Repository, split: str, name: str, flags: DataFlags, *, need_answers: bool, limit: int | None = None
) -> list[Question]:
    """The questions of a split in row order, or of its first `limit` rows.

    Raises `UserError` for an empty split, one without answers (with `need_answers`), and for bad rows: the first ten by
    file and row (the first row is row 0), and their number.
    """
    columns = SCHEMAS.get(name) or _custom_columns(repository, split, flags)
    rows: list[_Row] = []
    problems: dict[str, str] = {}
    for number, (where, values) in enumerate(_raw_rows(repository, split, columns)):
        if number == limit:
            break
        try:
            rows.append(_sound_row(values, columns, where, str(number)))
        except ValueError as error:
            problems[where] = str(error)
    if not rows and not problems:
        raise UserError(f"the {split} split of {name} has no rows")
    answered = [row for row in rows if not _is_empty(row.answer)]
    if need_answers and rows and not answered:
        raise UserError(
            f"the {split} split of {name} has no answers (its {columns.answer} is empty): use another split"
        )
    reading = _reading(answered, columns)
    questions = []
    for row in rows:
        try:
            questions.append(_with_answer(row, reading, columns, need_answers))
        except ValueError as error:
            problems[row.where] = str(error)
    if problems:
        shown = [f"{where}: {problem}" for where, problem in list(problems.items())[:SHOWN_ROWS]]
        count = len(problems)
        raise UserError(
            *shown, *([f"... {count} bad rows in all in the {split} split of {name}"] * (count > len(shown)))
        )
    return questions


def _custom_columns(repository: Repository, split: str, flags: DataFlags) -> Columns:
    if not (flags.question_column and flags.answer_column):
        raise UserError("--question_column and --answer_column are needed for QA data of your own")
    choices = tuple(name.strip() for name in (flags.choices_column or "").split(",") if name.strip())
    identity = flags.id_column or ("id" if _has_column(repository, split, "id") else None)
    return Columns(flags.question_column, choices, flags.answer_column, flags.support_column, identity)


def _has_column(repository: Repository, split: str, name: str) -> bool:
    source = repository.source(split, (name,))
    try:
        return bool(source.read(source.units()[0]))
    except UserError:  # no such column; a broken file is told when its rows are read
        return False


def _raw_rows(repository: Repository, split: str, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE, row N", {column: value}) of each row."""
    source = repository.source(split, columns.names())
    counted: Counter[int] = Counter()
    for unit in source.units():
        table = source.read(unit)
        for values in zip(*table.values(), strict=True):
            yield f"{source.files[unit.file].path}, row {counted[unit.file]}", dict(zip(table, values, strict=True))
            counted[unit.file] += 1


def _is_empty(value: Any) -> bool:
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and not value.strip())
    )


def _text(value: Any, column: str) -> str:
    """`value` as text (numbers are fine: a CSV file does not tell them apart); `ValueError` for anything else."""
    if _is_empty(value):
        raise ValueError(f"{column} is empty")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{column} should be text and is {type(value).__name__}: {str(value)[:60]!r}")
    return encodable(str(value))


def _sound_row(values: Mapping[str, Any], columns: Columns, where: str, number: str) -> _Row:
    """The row without its answer's meaning; `ValueError` says what is wrong with it."""
    text = _text(values[columns.question], columns.question)
    labels, choices = _choices(values, columns) if columns.choices else ((), ())
    support = values[columns.support] if columns.support else None
    identity = values[columns.id] if columns.id else None
    question = Question(
        id=number if _is_empty(identity) else _text(identity, str(columns.id)),
        question=text,
        choices=choices,
        answer_index=None,
        answer=None,
        support="" if _is_empty(support) else _text(support, str(columns.support)),
    )
    return _Row(where, question, labels, values[columns.answer])


def _choices(values: Mapping[str, Any], columns: Columns) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(labels, texts): from several columns (an empty one is no choice), a list of texts, or labelled ones."""
    named = ",".join(columns.choices)
    pairs: list[tuple[Any, Any]]
    if len(columns.choices) > 1:
        pairs = [(LABELS[i], values[name]) for i, name in enumerate(columns.choices) if not _is_empty(values[name])]
    else:
        pairs = _listed(values[named], named)
    if not 1 <= len(pairs) <= len(LABELS):
        raise ValueError(f"{named} has {len(pairs)} choices; expected 2 to {len(LABELS)}")
    return tuple(str(label) for label, _ in pairs), tuple(_text(text, named) for _, text in pairs)


def _listed(value: Any, column: str) -> list[tuple[Any, Any]]:
    """(label, text) of each choice in one column's value; a missing label is the letter of the place."""
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):
        texts, labels = value["text"], value.get("label") or [None] * len(value["text"])
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) and "text" in item for item in value):
        texts, labels = [item["text"] for item in value], [item.get("label") for item in value]
    elif isinstance(value, list):
        texts, labels = value, [None] * len(value)
    else:
        raise ValueError(f"{column} should be a list of texts or {{label, text}} and is {str(value)[:60]!r}")
    if len(texts) != len(labels):
        raise ValueError(f"{column} has {len(texts)} texts and {len(labels)} labels")
    letters = [*LABELS, *[""] * len(texts)]
    return [
        (letter if label is None else label, text) for label, letter, text in zip(labels, letters, texts, strict=False)
    ]


def _reading(rows: Sequence[_Row], columns: Columns) -> str:
    """What the answers of a data set are: `text` of a choice, `label`, `number` from 0, `column`, `added` or `pair`.

    One reading for all rows, the one that fits most: "2" may be a choice's text in one row and a number in all of them.
    """
    if not columns.choices:
        return "pair"
    if columns.answer in columns.choices:
        return "column"
    numeric = all(isinstance(row.answer, int) for row in rows)
    candidates = ("label", "number", "text") if numeric else ("text", "label", "number")
    fits = {kind: sum(_position(row, kind, columns) is not None for row in rows) for kind in candidates}
    best = max(candidates, key=lambda kind: fits[kind])
    return "added" if len(columns.choices) > 1 and 2 * fits[best] < len(rows) else best


def _position(row: _Row, reading: str, columns: Columns) -> int | None:
    """Which choice the answer is under a reading; None if it is none of them."""
    answer = encodable(str(row.answer))
    if reading == "text":
        return row.question.choices.index(answer) if answer in row.question.choices else None
    if reading == "column":
        answer = LABELS[columns.choices.index(columns.answer)]
    if reading == "number":
        number = int(answer) if answer.strip().isdecimal() else -1
        if len(columns.choices) == 1:
            return number if 0 <= number < len(row.question.choices) else None
        answer = LABELS[number] if 0 <= number < len(LABELS) else ""  # the number of a column, of which some are empty
    return row.labels.index(answer) if answer in row.labels else None


def _with_answer(row: _Row, reading: str, columns: Columns, need_answer: bool) -> Question:
    """The question with what its answer means; `ValueError` if it means nothing."""
    if _is_empty(row.answer):
        if need_answer:
            raise ValueError(f"{columns.answer} is empty")
        return row.question
    if reading == "pair":
        return dataclasses.replace(row.question, answer=_text(row.answer, columns.answer))
    question = row.question
    if reading == "added":
        question = dataclasses.replace(question, choices=(*question.choices, _text(row.answer, columns.answer)))
    index = len(question.choices) - 1 if reading == "added" else _position(row, reading, columns)
    if index is None:
        shown = ", ".join(map(repr, question.choices))
        raise ValueError(
            f"{columns.answer} {row.answer!r} is none of the choices {shown[:200]} (read as their {reading})"
        )
    if len(question.choices) < 2:
        raise ValueError("a question needs at least two choices")
    return dataclasses.replace(question, answer_index=index, answer=question.choices[index])
