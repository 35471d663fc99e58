"""Which choice a text names: rules for what instruct models really write, in English and Chinese.

Promises: what is said last counts before what is said first, and what is denied counts for nothing; a text that names
no choice, or several and none of them as its answer, is counted as such, not guessed. Plain patterns, no model.
Costs: a few searches a choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import regex

from miniqwen.questions.choices import LABELS
from miniqwen.questions.rows import Question
from miniqwen.questions.texts import normalised_answer, typed

ANY_CASE = regex.IGNORECASE | regex.VERSION1
# No part of an answer: LaTeX and Markdown around it, and the next question, with which a base model goes on.
BOXED = regex.compile(r"\\boxed\s*(\{((?:[^{}]|(?1))*)\})")
DRESS = regex.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
TAGGED = regex.compile(r"<\s*(?:final_)?answer\s*>(.*?)(?:</\s*(?:final_)?answer\s*>|$)", ANY_CASE | regex.DOTALL)
MATHS = regex.compile(r"\$\$?([^$\n]+)\$\$?|\\[(\[](.+?)\\[)\]]")
EMPHASIS = regex.compile(r"(\*\*|__|`+)(?=\S)(.+?)(?<=\S)\1|(?<![\w*])\*(?=\S)([^*\n]+)(?<=\S)\*(?![\w*])")
THOUGHT = regex.compile(r"<think>.*?</think>", ANY_CASE | regex.DOTALL)
NEXT_QUESTION = regex.compile(r"\n\s*(?:#+\s*)?(?:question|q|问题|题目)\s*\d*\s*:.*", ANY_CASE | regex.DOTALL)

FILLER = r"(?:\s*\b(?:therefore|thus|clearly|definitely|most likely|probably|indeed|simply|option|choice)\b)*"
# Behind these stands the answer: in words that say so, in words that may, and at the beginning of a new thought.
STRONG = regex.compile(
    r"\b(?:answer|option|choice|response|solution|ans)\b(?:\s+(?:to|for|here)\b[^.\n:]{0,60}?)?"
    rf"\s*(?:'s|\bis|\bare|\bwas|\bwould be|\bshould be|\bmust be|[:=]){FILLER}[\s:]*"
    rf"|####|\b(?:choose|pick|select|go with|opt for)\b{FILLER}[\s:]*"
    r"|(?:答案|选项)(?:应该|应当|应|就|也)?(?:是|为|选择?|:)[\s:]*|(?<![不别勿]|不能|不应|不应该)选择?(?!项)[\s:]*",
    ANY_CASE,
)
WEAK = regex.compile(
    rf"\b(?:it|this|that)(?:\s+is|'s|\s+(?:must|would|should|has to) be)\b{FILLER}[\s:]*"
    r"|\b(?:option|choice|answer)\b[\s:]*|(?:应该|应当|应|就|而)?是|选项",
    ANY_CASE,
)
TURN = regex.compile(rf"\b(?:therefore|thus|hence|so|actually|rather|instead|but)\b{FILLER}[\s,:]*", ANY_CASE)
RIGHT = regex.compile(
    r"['\")\].]*\s*(?:(?:is|seems|would be|must be)\s+(?:indeed |clearly )?(?:the )?(?:correct|right|best)\b"
    r"|(?:选项|项)?(?:是|为)?(?:正确|对))",
    ANY_CASE,
)
DENIED = regex.compile(r"(?:\bnot|n't|\bnever|不|并非)\s*$", ANY_CASE)
DENIED_BEFORE = regex.compile(
    r"(?:\b(?:not|never|neither|nor|no|unlike|except|excluding|cannot|rather than|instead of|as opposed to)|n't"
    r"|不是?|并非|不选择?|不应该?选?|不能选?|排除|除了|不可能是?)(?:\s+be)?(?:\s+(?:a|an|the|option|choice|answer))*[\s:'\"(\[]*$",
    ANY_CASE,
)
DENIED_BEHIND = regex.compile(
    r"['\")\].:]*\s*(?:选项|项)?(?:(?:is|are|was|can|could|would|does|do|must|should)\s*(?:not\b|n't|never\b)|cannot\b"
    r"|(?:is|are|was)\s+(?:clearly |obviously )?(?:wrong|incorrect|false|excluded|out)\b|can't\b"
    r"|是?(?:错|不对|不正确|不是|不可能|可以排除|有误))",
    ANY_CASE,
)
CLAUSE = regex.compile(
    r"(?<=[.!?])\s+|[。;\n]+|,?\s*\b(?:but|however|so|therefore|thus|hence|then)\b\s*,?|,\s*(?=it\b)"
    r"|,?(?=但|而是|所以|因此|故)|,(?=应|是|选|答案)",
    ANY_CASE,
)
LETTER = regex.compile(r"[(\[{'\"]*\s*([A-Za-z])(?![\p{Latin}\p{N}'_^])(?:\s*[)\]}'\"]+)?")
ENDS = regex.compile(r"\s*(?:$|[.!:;,、。，)\]\n])", regex.VERSION1)
# Behind a letter that is one: an end, or why it is the answer. "A dog" goes on otherwise.
GOES_ON = regex.compile(r"\s+[-—]\s|\s*\p{Han}|\s+(?:because|since|as|is|would|was|must)\b", ANY_CASE)
ANOTHER = regex.compile(
    r"\s*(?:[,、/&]|\band\b|\bor\b|和|或|与|及)+\s*[(\[]?(?:[A-Z](?![\p{L}'])|and\b|or\b)", regex.VERSION1
)
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"  # no spaces between words
IN_WORDS = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{UNSPACED}]]"


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
    bare = MATHS.sub(lambda found: found[1] or found[2], TAGGED.sub(r"\nanswer: \1\n", THOUGHT.sub("", typed(text))))
    bare = DRESS.sub(r"\1", BOXED.sub(r"\nanswer: \2\n", bare))
    bare = EMPHASIS.sub(lambda found: found[2] or found[3], bare)
    return NEXT_QUESTION.sub("", bare)


def _without_echo(text: str, choices: Sequence[str]) -> str:
    """`text` without the list of choices, where it repeats one."""
    lines = text.splitlines()
    echoed = [line for line in lines if _own_line(line, choices) is not None]
    return "\n".join(line for line in lines if line not in echoed) if len(set(echoed)) > 1 else text


def _own_line(line: str, choices: Sequence[str]) -> int | None:
    """The choice of a line that is `B. iron`."""
    match = LETTER.match(line.strip())
    index = _index(match[1], choices) if match else None
    if match is None or index is None:
        return None
    behind = line.strip()[match.end() :].lstrip(".:,、- ")
    return index if behind and normalised_answer(behind) == normalised_answer(choices[index]) else None


def _letter(text: str, choices: Sequence[str]) -> int | None:
    found = _statement(text, choices)
    return found.index if found and found.rule == "letter" else None


def _text(text: str, choices: Sequence[str]) -> int | None:
    found = _statement(text, choices)
    if found and found.rule == "text":
        return found.index
    for clause in reversed([part for part in CLAUSE.split(text) if part]):
        named = {index for _, index in _mentions(clause, choices)}
        if named:
            return named.pop() if len(named) == 1 else None
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
    return _letter(said, choices)


def _statement(text: str, choices: Sequence[str]) -> Named | None:
    """The last statement of what the answer is; where none says so in words, the last that may be one."""
    found = list(_statements(text, choices))
    return max(found, key=lambda named: (named.sure, named.place), default=None)


def _statements(text: str, choices: Sequence[str]) -> Iterator[Named]:
    for start in [0, *(match.end() for match in regex.finditer(r"\n", text))]:
        line = text[start:].partition("\n")[0]
        begun = _at_start(text[start:], choices, whole=start > 0)
        if begun and begun[1] == "letter" and (start == 0 or _own_line(line, choices) is not None or len(line) < 6):
            yield Named(start, *begun, sure=False)
    for kind in (STRONG, WEAK, TURN):
        for match in kind.finditer(text):
            if DENIED.search(text[: match.start()]):
                continue
            behind = text[match.end() :]
            named = _at_start(behind, choices, whole=kind is TURN)
            if named is None and kind is STRONG:
                clause = (CLAUSE.split(behind.lstrip(), maxsplit=1) or [""])[0]
                named = next(((index, "text") for _, index in _mentions(clause, choices)), None)
            if named:
                yield Named(match.end(), *named, sure=kind is STRONG)
    for match in LETTER.finditer(text):
        index = _index(match[1], choices)
        alone = match.start(1) == 0 or not regex.match(IN_WORDS, text[match.start(1) - 1], regex.VERSION1)
        if index is not None and alone and match[1].isupper() and RIGHT.match(text, match.end()):
            yield Named(match.start(), index, "letter", sure=True)
    for place, index in _mentions(text, choices):
        said = regex.compile(regex.escape(choices[index]), ANY_CASE).match(text, place)
        if said and RIGHT.match(text, said.end()):
            yield Named(place, index, "text", sure=True)


def _index(letter: str, choices: Sequence[str]) -> int | None:
    place = LABELS.index(letter.upper())
    return place if place < len(choices) else None


def _at_start(text: str, choices: Sequence[str], whole: bool) -> tuple[int, str] | None:
    """(choice, rule) of a letter or a choice's text that `text` begins with; `whole`: and with nothing behind it."""
    match = LETTER.match(text.lstrip())
    index = _index(match[1], choices) if match else None
    if match and index is not None:
        behind = text.lstrip()[match.end() :]
        ends = bool(ENDS.match(behind)) or match[0].strip()[-1] in ")]}"
        own = _mentions(behind.partition("\n")[0], choices)[:1]
        goes_on = (
            match[1].isupper()
            and not whole
            and (GOES_ON.match(behind) or (own and own[0][1] == index and own[0][0] < 3))
        )
        if (ends or goes_on) and not ANOTHER.match(behind) and not DENIED_BEHIND.match(behind):
            return index, "letter"
    clause = (CLAUSE.split(text.strip(), maxsplit=1) or [""])[0]
    for index, choice in enumerate(choices):
        if choice and clause.strip(" \"'").rstrip(".").strip() in (choice, choice.rstrip(".")) and choice.rstrip("."):
            return index, "text"
    named = _mentions(clause, choices)
    if named and not clause[: named[0][0]].strip(" \"'("):
        behind = clause[named[0][0] + len(choices[named[0][1]]) :]
        if not whole or ENDS.match(behind):
            return named[0][1], "text"
    return None


def _mentions(text: str, choices: Sequence[str]) -> list[tuple[int, int]]:
    """(place, choice) of each choice's text that is not denied, in order; within a longer one it is none."""
    found: list[tuple[int, int, int]] = []
    for index, choice in enumerate(choices):
        pattern = _pattern(choice)
        if pattern:
            found += [(match.start(), -match.end(), index) for match in pattern.finditer(text)]
    kept: list[tuple[int, int]] = []
    end = 0
    for start, minus_stop, _ in sorted(found):
        if start < end:
            continue
        same = [index for other, stop, index in found if (other, stop) == (start, minus_stop)]
        same = [index for index in same if choices[index] in text[start:-minus_stop]] or same
        end = -minus_stop
        denied = DENIED_BEFORE.search(text[:start]) or DENIED_BEHIND.match(text, end)
        if not denied and len({choices[index] for index in same}) == 1:
            kept.append((start, same[0]))
    return kept


def _pattern(choice: str) -> regex.Pattern[str] | None:
    """What finds a choice's words in a sentence; None for those that may stand there for something else."""
    text = regex.sub(r"^(?:an?|the)\s+(?=\S)", "", choice, flags=ANY_CASE).rstrip(".!。")
    if not regex.search(r"[\p{L}\p{N}]", text) or regex.fullmatch(r"\p{Latin}|the|an", text, ANY_CASE):
        return None
    before = rf"(?<!{IN_WORDS})" if regex.match(rf"{IN_WORDS}|-", text, regex.VERSION1) else ""
    behind = rf"(?!{IN_WORDS})" if regex.search(rf"{IN_WORDS}$", text, regex.VERSION1) else ""
    before += r"(?<![\p{N}.,\-])" if text[0].isdigit() else ""
    behind += r"(?![.,]\p{N})" if text[-1].isdigit() else ""
    return regex.compile(before + r"\s+".join(map(regex.escape, text.split())) + behind, ANY_CASE)


RULES = {"letter": _letter, "text": _text, "last_line": _last_line}
