"""How one answer may be spelled: a value of a file and a row's choices → the choice that it names, under one reading.

Promises: brackets, dots, case, width and words such as "option" are aside; what names a choice only by half, or two of
them, names none. Costs: a few patterns an answer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import regex

from miniqwen.files import encodable
from miniqwen.questions.choices import LABELS, Choices

NUMBERS = {"number": 0, "number_from_1": 1}
YES, NO = frozenset(("true", "yes", "correct", "right")), frozenset(("false", "no", "incorrect", "wrong"))
BEFORE = (
    r"(?:(?:the\s+)?(?:correct\s+|right\s+)?(?:answer|ans|option|choice|letter|number)(?:\s+is)?(?:\s*[:.#=]\s*|\s+|(?=[(\[]))"
    r"|(?:正确)?(?:答案|选项|选择|选)(?:是|为)?\s*:?\s*)?"
)
# Around a label or number: brackets, dots, what makes it bold or quotes it. Behind it may stand its choice's own text;
# in 1.5, 1:5 and 1-5 nothing stands behind a label.
OPENS = r"[(\[*\"'`]*\s*"
CLOSES = r"\s*(?:(?:[)\]、*\"'`]|[.:,–—-](?!\d))+\s*|\s+|$)(.*)"
LABEL = regex.compile(rf"{BEFORE}{OPENS}(\w+){CLOSES}", regex.IGNORECASE | regex.DOTALL)
NUMBER = regex.compile(rf"{BEFORE}{OPENS}\+?(\d+)(?:\.0+)?{CLOSES}", regex.IGNORECASE | regex.DOTALL)
OWN_MARK = regex.compile(r"[(\[]?([A-Za-z]|\d{1,2})[)\].:、]\s*\S.*", regex.DOTALL)  # of a choice: "B. iron"
UNSEEN = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u200e\u200f"))  # no width, not even a space's


def place_of(value: Any, choices: Choices, kind: str, asked: bool = False) -> int | None:
    """The index of the choice that an answer names when it is read as `kind` (see `readings.DESCRIBED`); None: none.

    `asked`: a user or a model said the reading, so that what is read in it is not weighed against other ones; False and
    True are then the numbers 0 and 1.
    """
    if isinstance(value, bool) and kind in NUMBERS:
        return _numbered(int(value), choices) if asked and kind == "number" else None
    if not asked and kind in (*NUMBERS, *(["label"] * (not choices.labelled))) and _in_another_order(choices):
        return None
    spelled = _spelled(value)
    if kind in ("text", "added"):
        return _of_text(spelled, choices.texts)
    if kind == "column":
        return _only(choices.columns, spelled)
    if kind == "label":
        return _of_label(spelled, choices)
    return _of_number(spelled, choices, NUMBERS[kind])


def _spelled(value: Any) -> str:
    """An answer as it would be typed: 1.0 is how tables that know no whole numbers write 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return encodable(str(value)).translate(UNSEEN).strip()


def _half_width(text: str) -> str:
    return unicodedata.normalize("NFKC", text)  # of labels and numbers only: it takes x² for x2


def _plain(text: str) -> str:
    """Text up to case and white space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _only(texts: Sequence[str], wanted: str) -> int | None:
    """Where `wanted` stands, to the letter or, if that is clear, but for case and white space."""
    for spelled in (str.strip, _plain):
        found = [text for text in texts if spelled(text) == spelled(wanted)]
        if found and len(set(map(str.strip, found))) == 1:
            return texts.index(found[0])
    return None


def _of_text(spelled: str, texts: Sequence[str]) -> int | None:
    """The text; of choices that are a yes and a no also true and false, 1 and 0."""
    place = _only(texts, spelled)
    if place is None:
        for words, meant in ((YES, ("true", "1")), (NO, ("false", "0"))):
            said = [number for number, text in enumerate(texts) if _plain(text) in words]
            if len(texts) == 2 and spelled.casefold() in meant and len(said) == 1:
                return said[0]
    return place


def _of_label(spelled: str, choices: Choices) -> int | None:
    """The label, alone or dressed as `(B)`, `**B**`, `option b`, or before its choice's own text: `B) iron`."""
    place = _only(choices.labels, spelled)
    if place is not None:
        return place
    match = LABEL.fullmatch(_half_width(spelled))
    if not match:
        return None
    place = _only([regex.sub(r"^\W+|\W+$", "", _half_width(label)) for label in choices.labels], match[1])
    return place if _is_text_of(match[2], place, choices) else None


def _of_number(spelled: str, choices: Choices, first: int) -> int | None:
    """The number, alone or dressed as `(2)`, `option 2`, or before its choice's own text: `2. iron`."""
    match = NUMBER.fullmatch(_half_width(spelled))
    if not match or len(match[1]) > 3:
        return None
    place = _numbered(int(match[1]) - first, choices)
    return place if _is_text_of(match[2], place, choices) else None


def _numbered(number: int, choices: Choices) -> int | None:
    return choices.numbers.index(number) if number in choices.numbers else None


def _is_text_of(text: str, place: int | None, choices: Choices) -> bool:
    return place is not None and (not text or _plain(text) == _plain(_half_width(choices.texts[place])))


def _in_another_order(choices: Choices) -> bool:
    """Whether choices bear the letters or numbers of their places in another order: `B. iron`, `A. tin`."""
    marks = [match[1] for text in choices.texts if (match := OWN_MARK.fullmatch(text.strip()))]
    found = [mark.strip().upper() for mark in (choices.labels if choices.labelled else marks)]
    count = len(choices.texts)
    orders = [list(LABELS[:count]), *([str(first + number) for number in range(count)] for first in (0, 1))]
    return found not in orders and sorted(found) in map(sorted, orders)
