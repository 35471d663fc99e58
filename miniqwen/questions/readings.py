"""What the answers of a data set are: texts of choices, labels, numbers, names of columns; found once for all rows.

Promises: one reading for a data set, which understands every answer or is not taken; where two fit and differ, the user
is asked; where none does, the rows are named. It is kept beside the model, so that evaluation reads as training did.
Costs: each answer is read under every reading that its file allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miniqwen.errors import UserError
from miniqwen.files import read_json, write_json
from miniqwen.questions.choices import Choices, is_empty
from miniqwen.questions.spellings import NUMBERS, place_of

READING_FILE = "answer_reading.json"
DESCRIBED = {
    "text": "the texts of choices",
    "label": "the labels of choices",
    "number": "the numbers of choices from 0",
    "number_from_1": "the numbers of choices from 1",
    "column": "the names of the choices' columns",
    "added": "texts that are added to the wrong choices",
    "own": "one of the choices' columns",
    "pair": "texts, without choices",
}


@dataclass(frozen=True)
class Answered:
    """An answer as the file has it, the choices it stands beside, and where that is ("FILE, row N")."""

    where: str
    value: Any
    choices: Choices


@dataclass(frozen=True)
class Reading:
    """`kind`, a key of `DESCRIBED`, and the columns that it was found for."""

    kind: str
    choices: tuple[str, ...]
    answer: str

    def place(self, answered: Answered) -> int | None:
        """The index of the choice that an answer names; None if it names none."""
        return place_of(answered.value, answered.choices, self.kind, asked=True)

    def save(self, folder: str | Path) -> None:
        """Write it beside a model, so that evaluation reads as training did."""
        described = {"answer_is": self.kind, "choices_column": list(self.choices), "answer_column": self.answer}
        write_json(Path(folder, READING_FILE), described)

    @classmethod
    def load(cls, folder: str | Path) -> Reading | None:
        """The one saved beside a model, None where there is none; `UserError` for a broken file."""
        file = Path(folder, READING_FILE)
        if not file.exists():
            return None
        try:
            described = read_json(file)
            found = cls(described["answer_is"], tuple(described["choices_column"]), described["answer_column"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: expected answer_is, choices_column and answer_column ({error!r})") from None
        if found.kind not in DESCRIBED:
            raise UserError(f"{file}: answer_is {found.kind!r} is not one of {', '.join(DESCRIBED)}")
        return found

    def checked(self, answers: Sequence[Answered]) -> Reading:
        """Itself; raises `UserError` where another reading fits all answers and this one, of other data, does not."""
        odd = next((one for one in answers if self.place(one) is None), None)
        try:
            other = find_reading(answers, self.choices, self.answer) if odd else self
        except UserError:  # none fits all: those that are none of the choices are bad rows
            return self
        if odd and other.kind != self.kind and other.place(odd) is not None:
            raise UserError(
                f"{self.answer}: the model was trained with answers that are {DESCRIBED[self.kind]} ({READING_FILE}), "
                f"and {odd.where}, {_shown(odd.value)} is none; here all are {DESCRIBED[other.kind]}: say so with "
                f"--answer_is {other.kind}, or --answer_is {self.kind} if that row is wrong"
            )
        return self

    def told(self, example: Answered, meant: str) -> str:
        """How answers are read, with an example."""
        shown = f"{example.where}: {_shown(example.value)}"
        return f"answers are read as {DESCRIBED[self.kind]}, e.g. {shown} → {_shown(meant)}"


def single(value: Any, column: str) -> Any:
    """An answer in a list by itself is that answer; raises `ValueError` for several right ones."""
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise ValueError(f"{column} has {len(value)} right answers {str(value)[:60]}, and can have one")
        return value[0] if value else None
    return value


def is_hidden(value: Any, choices: Choices) -> bool:
    """Whether the answer is kept secret: empty, or -1 where that is no choice's text."""
    if is_empty(value):
        return True
    minus_one = not isinstance(value, bool) and str(value).strip() in ("-1", "-1.0")
    return minus_one and not any(text.strip() == str(value).strip() for text in choices.texts)


def find_reading(
    answers: Sequence[Answered], choices: tuple[str, ...], answer: str, names: Sequence[str] | None = None
) -> Reading:
    """The one reading of all answers that some reading understands at all; the others are bad rows under each.

    `names`: every answer there can be, where the data set's card lists them. Raises `UserError` where two readings fit
    and mean different choices, and where none fits: with what each takes an answer for, and the flag that decides.
    """
    kinds = ("text", "label", *NUMBERS, *(["column"] if len(choices) > 1 else []))
    places = {kind: [place_of(one.value, one.choices, kind) for one in answers] for kind in kinds}
    readable = [number for number in range(len(answers)) if any(places[kind][number] is not None for kind in kinds)]
    if not readable:
        return Reading("text", choices, answer)
    widest = max((answers[number].choices for number in readable), key=lambda found: len(found.texts))
    fits = [
        kind
        for kind in kinds
        if all(places[kind][number] is not None for number in readable)
        and all(place_of(name, widest, kind) is not None for name in names or ())
    ]
    own_labels = "label" in fits and all(answers[number].choices.labelled for number in readable)
    if own_labels or "column" in fits:  # a number that is a label, or a column's name, of the data's own is just that
        fits = [kind for kind in fits if kind not in NUMBERS]
    meant = {kind: [answers[number].choices.texts[places[kind][number] or 0] for number in readable] for kind in fits}
    if not fits:
        raise UserError(_none_fits(answers, readable, places, answer))
    if any(meant[kind] != meant[fits[0]] for kind in fits):
        raise UserError(_several_fit(answers, readable, meant, answer))
    # that all of them mean the same choices: a column that is called A; the first is the plainest name for it
    return Reading(fits[0], choices, answer)


def _shown(value: Any) -> str:
    found = repr(value) if not isinstance(value, str) else repr(" ".join(value.split()))
    return found if len(found) <= 60 else f"{found[:59]}…"


def _several_fit(
    answers: Sequence[Answered], readable: Sequence[int], meant: Mapping[str, Sequence[str]], answer: str
) -> str:
    kinds = list(meant)
    differs = next(i for i in range(len(readable)) if len({meant[kind][i] for kind in kinds}) > 1)
    example = answers[readable[differs]]
    ways = ", or ".join(f"{_shown(meant[kind][differs])} with --answer_is {kind}" for kind in kinds)
    return (
        f"{answer}: its answers can be read in {len(kinds)} ways, and all fit; say which one is right: in "
        f"{example.where}, {_shown(example.value)} means {ways}"
    )


def _none_fits(
    answers: Sequence[Answered], readable: Sequence[int], places: Mapping[str, Sequence[int | None]], answer: str
) -> str:
    counts = {kind: sum(found[number] is not None for number in readable) for kind, found in places.items()}
    best = max(counts, key=lambda kind: counts[kind])
    odd = [answers[number] for number in readable if places[best][number] is None]
    examples = "; ".join(f"{one.where}: {_shown(one.value)}" for one in odd[:3]) or "none of these rows"
    said = ", ".join(f"{count} as {DESCRIBED[kind]} ({kind})" for kind, count in counts.items() if count)
    return (
        f"{answer}: no one reading fits all {len(readable)} answers ({said}); say with --answer_is how they are to be "
        f"read, and mend the others: not read as {best} are {examples}"
    )
