"""The choices of one row: a list, labelled texts, a dict of letters, JSON text or several columns → texts with labels.

Promises: an empty column and a null that pads a list are no choice, and leave its letter and number out; a form that
could be taken in two ways is an error. Costs: nothing.
"""

from __future__ import annotations

import ast
import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from miniqwen.files import encodable

LABELS = string.ascii_uppercase
PAIRS = (("label", "text"), ("key", "value"))  # how labelled choices call their two parts


@dataclass(frozen=True)
class Choices:
    """`texts` in the row's order; of each its label, its number in the row from 0, and its column where it has one.

    `labelled`: the labels are the data's own, not the letters of the places.
    """

    texts: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    columns: tuple[str, ...] = ()
    labelled: bool = False


def is_empty(value: Any) -> bool:
    """Null, NaN, or text of nothing but white space."""
    return _is_null(value) or (isinstance(value, str) and not value.strip())


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any, column: str) -> str:
    """`value` as text (numbers are fine: a CSV file does not tell them apart); `ValueError` for anything else."""
    if is_empty(value):
        raise ValueError(f"{column} is empty")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{column} should be text and is {type(value).__name__}: {str(value)[:60]!r}")
    return encodable(str(value))


def choices_of(values: Mapping[str, Any], columns: Sequence[str]) -> Choices:
    """The choices in one column, or in several that hold one each; `ValueError` says what is wrong with them."""
    named = ",".join(columns)
    several = len(columns) > 1
    found = [(None, values[name]) for name in columns] if several else _listed(values[named], named)
    is_none = is_empty if several else _is_null
    kept = [(number, label, text) for number, (label, text) in enumerate(found) if not is_none(text)]
    if not (kept and kept[-1][0] < len(LABELS)):
        raise ValueError(f"{named} has {len(found) if kept else 0} choices; expected 2 to {len(LABELS)}")
    numbers = tuple(number for number, _, _ in kept)
    labels = tuple(LABELS[number] if label is None else str(label) for number, label, _ in kept)
    if len({label.strip().casefold() for label in labels}) < len(labels):
        raise ValueError(f"{named} has two choices with the same label: {', '.join(labels)}")
    return Choices(
        tuple(text_of(text, named) for _, _, text in kept), labels, numbers,
        tuple(columns[number] for number in numbers) if several else (), any(label is not None for label, _ in found),
    )  # fmt: skip


def _listed(value: Any, column: str) -> list[tuple[Any, Any]]:
    """(its own label or None, text) of each choice in one column's value."""
    given = value
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, Mapping):
        for label, text in PAIRS:
            if isinstance(value.get(text), list):
                texts, labels = value[text], value.get(label) or [None] * len(value[text])
                if len(texts) != len(labels):
                    raise ValueError(f"{column} has {len(texts)} texts and {len(labels)} labels")
                return list(zip(labels, texts, strict=True))
        if value and all(re.fullmatch(r"[A-Za-z]|\d+", str(key)) for key in value):
            return list(value.items())
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for label, text in PAIRS:
            if all(text in item for item in value):
                return [(item.get(label), item[text]) for item in value]
    elif isinstance(value, list):
        return [(None, text) for text in value]
    raise ValueError(f"{column} should be a list of texts, {{label, text}} or {{A: text}}, and is {str(given)[:60]!r}")


def _parsed(text: str) -> Any:
    """What JSON text, or a list as Python (and so pandas) writes it into a CSV file, stands for; else the text."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text
