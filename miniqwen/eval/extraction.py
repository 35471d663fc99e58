"""Which choice a text names: rules for what instruct models really write, in English and Chinese.

Promises: what is said last counts before what is said first, and what is denied counts for nothing; a text that names
no choice, or several and none of them as its answer, is counted as such, not guessed. Plain patterns, no model.
Costs: a few searches a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import regex

from miniqwen.eval.mentions import mentions, pattern_of
from miniqwen.eval.phrases import (
    ANOTHER,
    ANY_CASE,
    BETWEEN,
    BOXED,
    CLAUSE,
    DENIED,
    DENIED_BEFORE,
    DENIED_BEHIND,
    DRESS,
    EMPHASIS,
    ENDS,
    GOES_ON,
    IN_WORDS,
    LETTER,
    LISTED,
    MATHS,
    NEXT_QUESTION,
    OTHER_LETTER,
    RIGHT,
    STRONG,
    TAGGED,
    THOUGHT,
    TURN,
    WEAK,
)
from miniqwen.questions.choices import LABELS
from miniqwen.questions.rows import Question
from miniqwen.questions.texts import normalised_answer, typed


@dataclass(frozen=True)
class Named:
    """A choice that a text names at `place`, by its letter or its text (`rule`); `sure`: in words that say so."""

    place: int
    index: int
    rule: str
    sure: bool


def extract(text: str, question: Question, rules: Sequence[str]) -> tuple[int | None, str | None]:
    """(index of the choice that `text` names, the rule that found it); (None, None) where no rule finds one.

    letter: A, B., (C), "the answer is D", \\boxed{B}, 选C, of the letters in the order of presentation. text: the words
    of a choice, as the answer ("the answer is ...") or alone in the last clause that has any. For both the last
    statement that names an answer decides. last_line: the last line that is not empty is a choice, but for case,
    punctuation and articles, or its letter.
    """
    choices = [undressed(choice).strip() for choice in question.choices]
    bare = _without_echo(undressed(text), choices)
    for rule in rules:
        index = RULES[rule](bare, choices)
        if index is not None:
            return index, rule
    return None, None


def undressed(text: str) -> str:
    """`text` as typed, without Markdown, LaTeX and tags around its words; what is boxed is called the answer."""
    bare = LISTED.sub("", THOUGHT.sub("", typed(text)).strip())
    bare = MATHS.sub(lambda found: found[1] or found[2], TAGGED.sub(r"\nanswer: \1\n", bare))
    bare = DRESS.sub(r"\1", BOXED.sub(r"\nanswer: \2\n", bare))
    bare = EMPHASIS.sub(lambda found: found[2] or found[3], bare)
    return NEXT_QUESTION.sub("", bare)


def _without_echo(text: str, choices: Sequence[str]) -> str:
    """`text` without the list of choices, where it repeats two of them or more with their letters."""
    items = [
        rf"[(\[]?{label}[)\].:、]+\s*{regex.escape(choice.rstrip('.。'))}[.。]?(?!{IN_WORDS})"
        for label, choice in zip(LABELS, choices, strict=False)
        if choice
    ]
    item = "|".join(items)
    return regex.sub(rf"(?:^|(?<=[\s:,;]))(?:{item})(?:[\s,;*•-]*(?:{item}))+", "", text, flags=ANY_CASE)


def _letter(text: str, choices: Sequence[str]) -> int | None:
    found = _statement(text, choices)
    return found.index if found and found.rule == "letter" else None


def _text(text: str, choices: Sequence[str]) -> int | None:
    found = _statement(text, choices)
    if found and found.rule == "text":
        return found.index
    clauses = [part for part in CLAUSE.split(text) if part]
    plain = [normalised_answer(choice) for choice in choices]
    bare = {plain.index(said) for clause in clauses if (said := normalised_answer(clause)) and said in plain}
    if len(bare) == 1 and len(clauses) > 1 and plain.count(plain[min(bare)]) == 1:  # a clause is that choice alone
        return bare.pop()
    for clause in reversed(clauses):
        if parts := mentions(clause, choices):
            named = {one.index for one in parts}
            several = len(named) > 1 or any(ANOTHER.match(clause, one.stop) for one in parts)
            return None if several else named.pop()
    return None


def _last_line(text: str, choices: Sequence[str]) -> int | None:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    said = lines[-1].strip()
    same = [index for index, choice in enumerate(choices) if normalised_answer(choice) == normalised_answer(said)]
    same = [index for index in same if choices[index] == said] or same
    if same and len({choices[index] for index in same}) == 1:
        return same[0]
    return _letter(said, choices) if len({named.index for named in _bare_letters(text, choices)}) < 2 else None


def _statement(text: str, choices: Sequence[str]) -> Named | None:
    """The last statement of what the answer is; where none says so in words, the last that may be one."""
    found = list(_statements(text, choices))
    return max(found, key=lambda named: (named.sure, named.place), default=None)


def _statements(text: str, choices: Sequence[str]) -> Iterator[Named]:
    bare = _bare_letters(text, choices)
    if len({named.index for named in bare}) < 2:  # several are a list
        yield from bare
        if begun := _letter_at_start(text.lstrip(), choices, whole=False):
            yield Named(0, *begun, sure=False)
    for kind in (STRONG, WEAK, TURN):
        for match in kind.finditer(text):
            if DENIED.search(text[: match.start()]) or DENIED_BEFORE.search(text[: match.end()]):
                continue
            behind = text[match.end() :]
            named = _at_start(behind, choices, whole=kind is TURN)
            if named is None and kind is STRONG:
                clause = (CLAUSE.split(behind.lstrip(), maxsplit=1) or [""])[0]
                named = next(((one.index, "text") for one in mentions(clause, choices)), None)
            if named:
                yield Named(match.end(), *named, sure=kind is STRONG)
    for match in LETTER.finditer(text):
        index = _index(match[1], choices)
        alone = match.start(1) == 0 or not regex.match(IN_WORDS, text[match.start(1) - 1], regex.VERSION1)
        if index is not None and alone and match[1].isupper() and RIGHT.match(text, match.end()):
            yield Named(match.start(), index, "letter", sure=True)
    for one in mentions(text, choices):
        if RIGHT.match(text, one.stop):
            yield Named(one.start, one.index, "text", sure=True)


def _bare_letters(text: str, choices: Sequence[str]) -> list[Named]:
    """Letters that are a clause by themselves, or with their choice's text."""
    found, place = [], 0
    for clause in CLAUSE.splititer(text):
        said = clause.strip() if clause else ""
        place = text.find(said, place)
        match = LETTER.match(said)
        index = _index(match[1], choices) if match else None
        if match is None or index is None or not _letter_at_start(text[place:], choices, whole=False):
            continue
        if DENIED_BEFORE.search(text[:place]):
            continue
        behind = said[match.end() :].strip(".:,、- ")
        if behind == "" or normalised_answer(behind) == normalised_answer(choices[index]):
            found.append(Named(place, index, "letter", sure=False))
    return found


def _index(letter: str, choices: Sequence[str]) -> int | None:
    place = LABELS.index(letter.upper())
    return place if place < len(choices) else None


def _at_start(text: str, choices: Sequence[str], whole: bool) -> tuple[int, str] | None:
    """(choice, rule) of a letter or a choice's text that `text` begins with; `whole`: and with nothing behind it."""
    text = text.lstrip()
    return _letter_at_start(text, choices, whole) or _text_at_start(text, choices, whole)


def _letter_at_start(text: str, choices: Sequence[str], whole: bool) -> tuple[int, str] | None:
    match = LETTER.match(text)
    index = _index(match[1], choices) if match else None
    if match is None or index is None:
        return None
    behind = text[match.end() :]
    line = behind.partition("\n")[0]
    own = next((one for one in mentions(line, choices)[:1] if BETWEEN.fullmatch(line, 0, one.start)), None)
    if own and own.index != index and not line[own.stop :].strip(" .!"):
        return None  # the letter of one choice with the text of another
    ends = bool(ENDS.match(behind)) or match[0].strip()[-1] in ")]}"
    goes_on = match[1].isupper() and not whole and (GOES_ON.match(behind) or (own and own.index == index))
    denied = DENIED_BEHIND.match(behind) or OTHER_LETTER.match(behind) or behind.startswith("?")
    denied = denied or _is_denied_text(line, choices[index])
    another = ANOTHER.match(behind) or (own and ANOTHER.match(line, own.stop))
    return (index, "letter") if (ends or goes_on) and not denied and not another else None


def _is_denied_text(line: str, choice: str) -> bool:
    """Whether a line begins with the words of a choice and says that they are wrong."""
    pattern = pattern_of(choice)
    own = pattern.search(line) if pattern else None
    return bool(own and BETWEEN.fullmatch(line, 0, own.start()) and DENIED_BEHIND.match(line, own.end()))


def _text_at_start(text: str, choices: Sequence[str], whole: bool) -> tuple[int, str] | None:
    clause = (CLAUSE.split(text.strip(), maxsplit=1) or [""])[0]
    for index, choice in enumerate(choices):
        if choice and clause.strip(" \"'").rstrip(".").strip() in (choice, choice.rstrip(".")) and choice.rstrip("."):
            return index, "text"
    named = mentions(clause, choices)
    begins = named and not clause[: named[0].start].strip(" \"'(")
    return (named[0].index, "text") if begins and (not whole or ENDS.match(clause[named[0].stop :])) else None


RULES = {"letter": _letter, "text": _text, "last_line": _last_line}
