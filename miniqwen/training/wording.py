"""How numbers and texts are written on a page.

Promises: short, and the same everywhere; flags are not broken. Costs: nothing.
"""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape


def clip(text: Any, most: int = 200) -> str:
    """The beginning of a long text."""
    text = str(text)
    return text if len(text) <= most else f"{text[:most]}…"


def flags(text: str) -> Markup:
    """`text` whose flags, as `--max_steps`, are not broken at the end of a line."""
    return Markup(re.sub(r"--\w+", r'<span class="flag">\g<0></span>', str(escape(text))))


def short(value: Any) -> str:
    """A number with four digits that count; other things as they are."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def clock(seconds: float | None) -> str:
    """3 h 20 min, 12 min, 40 s."""
    if seconds is None:
        return "–"
    minutes = int(seconds) // 60
    if minutes >= 60:
        return f"{minutes // 60:,} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{seconds:.0f} s"
