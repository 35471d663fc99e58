"""What a question is, and the rows of a QA data set as its files hold them.

Promises: one order of choices whatever the file (SciQ: the distractors, then the right answer); a row is sound, or said
to be bad with file and row; what its answer means is not looked at here. Costs: all questions of a split in memory
(SciQ's 11,679 take a few MB) and one pass over its files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from miniqwen.config.data import DataFlags
from miniqwen.errors import UserError
from miniqwen.questions.choices import Choices, choices_of, is_empty, text_of
from miniqwen.questions.readings import Answered, is_hidden, single

if TYPE_CHECKING:
    from miniqwen.data.repositories import Repository


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
    """Which column holds what. Several columns of choices hold one choice each. `reading`: of answers, if known."""

    question: str
    choices: tuple[str, ...]
    answer: str
    support: str | None
    id: str | None
    reading: str | None = None

    def names(self) -> tuple[str, ...]:
        named = (self.id, self.question, *self.choices, self.answer, self.support)
        return tuple(dict.fromkeys(name for name in named if name))


SCHEMAS = {
    "sciq": Columns("question", ("distractor1", "distractor2", "distractor3", "correct_answer"), "correct_answer",
                    "support", None, "own"),
    "commonsenseqa": Columns("question", ("choices",), "answerKey", None, "id", "label"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row whose question and choices are sound. `answered.value` is None where the answer is kept secret."""

    number: int
    question: Question
    answered: Answered


def columns_of(name: str, repository: Repository, split: str, flags: DataFlags) -> Columns:
    """The columns of a data set the project knows, or those that the flags name; `UserError` where they do not."""
    if name in SCHEMAS:
        return SCHEMAS[name]
    if not (flags.question_column and flags.answer_column):
        raise UserError("--question_column and --answer_column are needed for QA data of your own")
    choices = tuple(name.strip() for name in (flags.choices_column or "").split(",") if name.strip())
    identity = flags.id_column or ("id" if _has_column(repository, split, "id") else None)
    known = "pair" if not choices else "own" if len(choices) > 1 and flags.answer_column in choices else None
    if known and flags.answer_is:
        why = "there are no choices" if known == "pair" else f"--answer_column {flags.answer_column} is one of them"
        raise UserError(f"--answer_is {flags.answer_is} has no use: {why} (--choices_column)")
    return Columns(flags.question_column, choices, flags.answer_column, flags.support_column, identity, known)


def _has_column(repository: Repository, split: str, name: str) -> bool:
    source = repository.source(split, (name,))
    try:
        return bool(source.read(source.units()[0]))
    except UserError:  # no such column; a broken file is told when its rows are read
        return False


def read_rows(
    repository: Repository, split: str, columns: Columns, limit: int | None = None
) -> tuple[list[Row], dict[int, str]]:
    """(sound rows in order, {number of a bad row: where it is and what is wrong}) of a split or its first `limit` rows.

    Rows have their number for an id where none is named.
    """
    rows: list[Row] = []
    problems: dict[int, str] = {}
    names = repository.names_of_classes(split, columns.answer)
    for number, (where, values) in enumerate(_raw_rows(repository, split, columns)):
        if number == limit:
            break
        try:
            rows.append(_sound_row(values, columns, number, where, names))
        except ValueError as error:
            problems[number] = f"{where}: {error}"
    return rows, problems


def _raw_rows(repository: Repository, split: str, columns: Columns) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE, row N", {column: value}) of each row."""
    source = repository.source(split, columns.names())
    counted: Counter[int] = Counter()
    for unit in source.units():
        table = source.read(unit)
        for values in zip(*table.values(), strict=True):
            yield f"{source.files[unit.file].path}, row {counted[unit.file]}", dict(zip(table, values, strict=True))
            counted[unit.file] += 1


def _sound_row(
    values: Mapping[str, Any], columns: Columns, number: int, where: str, names: Sequence[str] | None
) -> Row:
    """`names`: of the answer column's classes, whose numbers stand in the file; `ValueError` says what is wrong."""
    choices = choices_of(values, columns.choices) if columns.choices else Choices()
    support = values[columns.support] if columns.support else None
    identity = values[columns.id] if columns.id else None
    question = Question(
        id=str(number) if is_empty(identity) else text_of(identity, str(columns.id)),
        question=text_of(values[columns.question], columns.question),
        choices=choices.texts,
        answer_index=None,
        answer=None,
        support="" if is_empty(support) else text_of(support, str(columns.support)),
    )
    answer = single(values[columns.answer], columns.answer)
    if names and isinstance(answer, int) and not isinstance(answer, bool) and answer != -1:
        if not 0 <= answer < len(names):
            raise ValueError(f"{columns.answer} {answer} is none of the {len(names)} classes of the data set's card")
        answer = names[answer]
    return Row(number, question, Answered(where, None if is_hidden(answer, choices) else answer, choices))
