"""Units that cannot be read, passed over whole where the user says so (`--on_bad_data skip`).

Promises: what is skipped is a function of the data: a unit with a single byte that cannot be decoded has no rows, for
every lane, rank and machine. What was skipped once stays skipped for the run, because the cursors carry it: also where
the file was mended meanwhile, so that a resumed run goes on as it began; a new run reads the mended file.
Costs: a unit is read when its rows are counted, a moment before they are wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from miniqwen.data.formats import BadData
from miniqwen.data.sources import Units
from miniqwen.data.windows import TextWindows


class ReadableUnits:
    """The windows of a source, none of them in a unit that cannot be read."""

    def __init__(self, text: TextWindows) -> None:
        self.name = text.name
        self._text = text
        self._bad: dict[str, str] = {}

    def remember(self, bad: Mapping[str, str]) -> None:
        """Units that an earlier part of the run skipped, {unit: what was wrong}: they stay skipped."""
        self._bad |= bad

    def units(self) -> Units:
        return self._text.units()

    def is_large(self, unit: int) -> bool:
        return self._text.is_large(unit)

    def starts(self, unit: int) -> Sequence[int]:
        label = self._label(unit)
        if label in self._bad:
            return [0]
        try:
            starts = self._text.starts(unit)
            if not self.is_large(unit):  # a large one was read to be cut
                self._text.read(unit, 0)
            return starts
        except BadData as error:
            self._bad[label] = str(error)
            print(f"{self.name}: skipped {label} (--on_bad_data skip): {error}", file=sys.stderr, flush=True)
            return [0]

    def read(self, unit: int, window: int) -> Sequence[Any]:
        return self._text.read(unit, window)

    def place(self, unit: int, row: int) -> str:
        return self._text.place(unit, row)

    def skipped(self, unit: int) -> tuple[str, str] | None:
        label = self._label(unit)
        return (label, self._bad[label]) if label in self._bad else None

    def _label(self, unit: int) -> str:
        found = self.units()[unit]
        return f"{self._text.source.files[found.file].path}#{found.part}"
