"""The questions of a data set's splits, with what their answers mean.

Promises: one reading of answers for all that is read together, found on whole splits whatever the limit, and told with
an example; all bad rows are reported at once, or left out and counted where that is asked for. Costs: data whose
reading is not known is read whole, also under a limit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miniqwen.config.data import DataFlags
from miniqwen.errors import UserError
from miniqwen.questions.choices import text_of
from miniqwen.questions.readings import DESCRIBED, Answered, Reading, find_reading
from miniqwen.questions.rows import Columns, Question, Row, columns_of, read_rows

if TYPE_CHECKING:
    from miniqwen.data.repositories import Repository

SHOWN_ROWS = 10  # of the bad ones


@dataclass(frozen=True)
class Wanted:
    """A split to read, whole or only its first `limit` rows; `need_answers`: a row without an answer is a bad one."""

    split: str
    need_answers: bool = True
    limit: int | None = None


@dataclass(frozen=True)
class Read:
    """The questions of each wanted split in row order, how their answers were read, and what to tell the user."""

    questions: list[list[Question]]
    reading: Reading
    notes: list[str]


def read_splits(
    repository: Repository, name: str, flags: DataFlags, wanted: Sequence[Wanted], *, saved: Reading | None = None,
    skip_bad: bool = False,
) -> Read:  # fmt: skip
    """The questions of some splits of a data set, all of whose answers are read in one way.

    That is `--answer_is`, else what was `saved` beside the model for the same columns, else the one that fits all rows
    of these splits, also those behind a limit. Raises `UserError` for an empty split, for one without answers where
    they are needed, for answers that can be read in two ways, and for bad rows: the first ten by file and row (the
    first row is row 0), and their number. With `skip_bad` they are left out, unless they are more than half.
    """
    columns = columns_of(name, repository, wanted[0].split, flags)
    known = columns.reading or flags.answer_is
    rows = [read_rows(repository, one.split, columns, one.limit if known else None) for one in wanted]
    answers = [row.answered for own, _ in rows for row in own if row.answered.value is not None]
    names = repository.names_of_classes(wanted[0].split, columns.answer)
    reading = _reading(columns, answers, known, saved, names)
    questions, notes, example = [], [], None
    for one, (sound, problems) in zip(wanted, rows, strict=True):
        where = f"the {one.split} split of {name}"
        if not sound and not problems:
            raise UserError(f"{where} has no rows")
        if one.need_answers and sound and all(row.answered.value is None for row in sound):
            raise UserError(f"{where} has no answers (its {columns.answer} is empty): use another split")
        found = _meant([row for row in sound if one.limit is None or row.number < one.limit], reading, problems, one)
        bad = {number: said for number, said in problems.items() if one.limit is None or number < one.limit}
        notes += _bad_rows(bad, len(found), where, skip_bad)
        questions.append([question for _, question in found])
        example = example or next(((row.answered, one.answer) for row, one in found if one.answer is not None), None)
    if example:
        notes.insert(0, f"{name}: {reading.told(example[0], str(example[1]))}")
    return Read(questions, reading, notes)


def _reading(
    columns: Columns, answers: Sequence[Answered], known: str | None, saved: Reading | None, names: Sequence[str] | None
) -> Reading:
    if known:
        return Reading(known, columns.choices, columns.answer)
    if saved and (saved.choices, saved.answer) == (columns.choices, columns.answer):
        return saved.checked(answers)
    return find_reading(answers, columns.choices, columns.answer, names)


def _meant(
    rows: Sequence[Row], reading: Reading, problems: dict[int, str], wanted: Wanted
) -> list[tuple[Row, Question]]:
    """The rows with what their answers mean; what means nothing goes to `problems`."""
    found = []
    for row in rows:
        try:
            found.append((row, _with_answer(row, reading, wanted.need_answers)))
        except ValueError as error:
            problems[row.number] = f"{row.answered.where}: {error}"
    return found


def _with_answer(row: Row, reading: Reading, need_answer: bool) -> Question:
    """The question with what its answer means; `ValueError` if it means nothing."""
    value, question = row.answered.value, row.question
    if reading.kind != "pair" and len(question.choices) + (reading.kind == "added") < 2:
        raise ValueError("a question needs at least two choices")
    if value is None:
        if need_answer:
            raise ValueError(f"{reading.answer} is empty")
        return question
    if reading.kind == "pair":
        return dataclasses.replace(question, answer=text_of(value, reading.answer))
    if reading.kind == "added":
        choices = (*question.choices, text_of(value, reading.answer))
        return dataclasses.replace(question, choices=choices, answer_index=len(choices) - 1, answer=choices[-1])
    if reading.kind == "own":
        index: int | None = row.answered.choices.columns.index(reading.answer)
    else:
        index = reading.place(row.answered)
    if index is None:
        shown = ", ".join(map(repr, question.choices))
        raise ValueError(
            f"{reading.answer} {value!r} is none of the choices {shown[:200]} (read as {DESCRIBED[reading.kind]}; "
            "--answer_is says otherwise)"
        )
    return dataclasses.replace(question, answer_index=index, answer=question.choices[index])


def _bad_rows(problems: Mapping[int, str], sound: int, where: str, skip: bool) -> list[str]:
    """What to tell of bad rows that are skipped; raises `UserError` where they are not to be, or are too many."""
    if not problems:
        return []
    count = len(problems)
    shown = [problems[number] for number in sorted(problems)][:SHOWN_ROWS]
    if skip and count <= sound:
        return [f"{where}: {count} bad rows are left out (--on_bad_data skip), the first of them {shown[0]}"]
    more = [f"... {count} bad rows in all in {where}"] if count > len(shown) else []
    if skip:
        more = [f"{where}: {count} of {count + sound} rows are bad: --on_bad_data skip leaves out half at most"]
    raise UserError(*shown, *more)
