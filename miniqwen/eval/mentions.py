"""Where a text has the words of a choice, and does not deny them.

Promises: words are whole words, also of languages that write none apart as far as that can be told; numbers have their
signs and units. Costs: a search a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from miniqwen.eval.phrases import ANY_CASE, DENIED_BEFORE, DENIED_BEHIND, ENDS, IN_WORDS, LIST, LIST_ENDS


@dataclass(frozen=True)
class Mention:
    """Where a text has the words of the choice `index`."""

    start: int
    stop: int
    index: int


def mentions(text: str, choices: Sequence[str]) -> list[Mention]:
    """Each choice's text that is not denied, in order; within a longer one it is none."""
    found: list[Mention] = []
    for index, choice in enumerate(choices):
        if pattern := pattern_of(choice):
            found += [Mention(match.start(), match.end(), index) for match in pattern.finditer(text)]
    found.sort(key=lambda one: (one.start, -one.stop))
    listed = _denied_lists(text, found)
    kept: list[Mention] = []
    end = 0
    for one in found:
        if one.start < end:
            continue
        same = [other.index for other in found if (other.start, other.stop) == (one.start, one.stop)]
        same = [index for index in same if choices[index] in text[one.start : one.stop]] or same
        end = one.stop
        denied = one.start in listed or DENIED_BEFORE.search(text[: one.start]) or DENIED_BEHIND.match(text, end)
        if not denied and len({choices[index] for index in same}) == 1:
            kept.append(Mention(one.start, one.stop, same[0]))
    return kept


def _denied_lists(text: str, found: Sequence[Mention]) -> set[int]:
    """Where the parts of "not wood, iron or salt" begin, and of 上海和北京都不对."""
    places: set[int] = set()
    for first, one in enumerate(found):
        run, ends = [one], False
        for other in found[first + 1 :]:
            between = text[run[-1].stop : other.start]
            if not LIST.fullmatch(between):
                break
            run.append(other)
            ends = bool(LIST_ENDS.search(between))
        if ends and (DENIED_BEFORE.search(text[: one.start]) or DENIED_BEHIND.match(text, run[-1].stop)):
            places.update(part.start for part in run)
    return places


def pattern_of(choice: str) -> regex.Pattern[str] | None:
    """What finds a choice's words in a sentence; None for those that may stand there for something else."""
    text = regex.sub(r"^(?:an?|the)\s+(?=\S)", "", choice, flags=ANY_CASE).rstrip(".!。")
    if not regex.search(r"[\p{L}\p{N}]", text) or regex.fullmatch(r"\p{Latin}|the|an", text, ANY_CASE):
        return None
    before = rf"(?<!{IN_WORDS})" if regex.match(rf"{IN_WORDS}|-", text, regex.VERSION1) else ""
    behind = rf"(?!{IN_WORDS})" if regex.search(rf"{IN_WORDS}$", text, regex.VERSION1) else ""
    before += r"(?<![\p{N}.,\-]|负|\bminus |\bnegative )" if text[0].isdigit() else ""
    behind += r"(?![.,:]\p{N}|\s\p{N}|\s?[%‰°²³]|\s?[/x×*+^-]\s?\p{N})" if text[-1].isdigit() else ""
    behind += ENDS.pattern.join(("(?=", ")")) if text.lower() == "no" else ""  # not of "no idea"
    return regex.compile(before + r"\s+".join(map(regex.escape, text.split())) + behind, ANY_CASE)
