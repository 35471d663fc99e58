"""What models really write when they are asked, and which choice that is: a table of answers with their verdicts."""

from __future__ import annotations

import unicodedata

import pytest

from miniqwen.eval.extraction import extract
from miniqwen.eval.metrics import normalised_answer, text_metrics
from miniqwen.questions.rows import Question

ALL = ("letter", "text", "last_line")
CHOICES = {
    "things": ("wood", "iron", "copper", "salt"),
    "colours": ("red", "dark red", "the moon", "Bern"),
    "cities": ("上海", "北京", "广州", "深圳"),
    "numbers": ("5", "-5", "50", "0.5"),
    "signs": ("+", "-", "the", "..."),
    "cases": ("pH", "PH", "naïve", "3 km"),
    "phrases": ("A dog", "none of the above", "not enough light", "It's cold."),
    "maths": ("x^2", "$x$", "\\frac{1}{2}", "x²"),
    "parts": ("京", "北京", "北京市", "东京"),
    "nine": ("a", "b", "c", "d", "e", "f", "g", "h", "i"),
}
# Every line: what the model wrote, and the index of the choice that it means; None: it names none, or not one.
VERDICTS: dict[str, list[tuple[str, int | None]]] = {
    "things": [
        # letters by themselves
        ("B", 1), (" B", 1), ("B.", 1), ("B)", 1), ("(B)", 1), ("[B]", 1), ("b", 1), ("b)", 1), ("(b)", 1), ("B:", 1),
        ("B,", 1), ("**B**", 1), ("**B.**", 1), ("__B__", 1), ("*B*", 1), ("`B`", 1), ("\"B\"", 1), ("“B”", 1),
        ("B\n", 1), ("E", None), ("(F)", None), ("AB", None), ("Because", None), ("Ｂ", 1), ("（Ｂ）", 1),
        ("【B】", 1),
        # letters with the choice's text, or a reason
        ("B. iron", 1), ("B) iron", 1), ("(B) iron", 1), ("B iron", 1), ("B: iron", 1), ("B - iron", 1),
        ("**B. iron**", 1), ("**B**: iron", 1), ("B because it grows", 1), ("B, because it conducts", 1),
        ("B is correct.", 1), ("B since it rusts", 1), ("B is the right answer, as it rusts.", 1),
        ("B\n\nExplanation: wood does not rust.", 1), ("D as salt dissolves", 3),
        # statements
        ("Answer: B", 1), ("Answer: **B**", 1), ("**Answer:** B", 1), ("**Answer: B**", 1), ("ANSWER: B", 1),
        ("answer is b", 1), ("The answer is B.", 1), ("The answer is (B).", 1), ("The correct answer is B) iron.", 1),
        ("The answer is option B", 1), ("The correct option is B.", 1), ("The best choice would be B.", 1),
        ("The answer should be: C", 2), ("Final answer: D", 3), ("My final answer is (D).", 3), ("Option B", 1),
        ("option (b)", 1), ("Choice B.", 1), ("I choose B.", 1), ("I would pick C", 2), ("I'd go with option D.", 3),
        ("#### B", 1), ("\\boxed{B}", 1), ("$\\boxed{B}$", 1), ("$$\\boxed{\\text{B}}$$", 1),
        ("\\boxed{\\text{iron}}", 1), ("\\boxed{\\mathrm{(C)}}", 2), ("<answer>B</answer>", 1),
        ("Thus, \\boxed{D}.", 3), ("The answer is iron.", 1), ("The answer is: **iron**", 1), ("Answer: Iron", 1),
        ("The answer is\n\nC", 2),
        ("Let me think. A: wood burns. B: iron rusts. C: copper shines. So the answer is C.", 2),
        ("A. wood\nB. iron\nC. copper\nD. salt\n\nAnswer: C", 2), ("The answer to the question is therefore B.", 1),
        ("Therefore, the correct answer is:\n\n**C. copper**", 2), ("Therefore B.", 1), ("So it must be D.", 3),
        ("It is B.", 1),
        # the last statement before the first, and what is denied
        ("Iron is wrong. The answer is wood.", 0), ("The answer is A. Wait, the answer is C.", 2),
        ("A. No, actually B.", 1), ("At first sight the answer is iron, but the correct answer is copper.", 2),
        ("B. Wait, the answer is salt.", 3), ("The answer is not A but B.", 1), ("The answer is not A.", None),
        ("The answer isn't iron; it's copper.", 2), ("not iron", None), ("Not B", None), ("It can't be iron.", None),
        ("Iron is not right.", None), ("B is wrong.", None), ("B is incorrect, and C is correct.", 2),
        ("A is wrong, so B.", 1), ("Copper, not iron.", 2), ("C, not B.", 2), ("Copper rather than iron", 2),
        ("copper instead of wood", 2), ("It is neither wood nor iron, it is salt.", 3),
        ("Not wood. Not iron. Copper.", 2), ("Wood isn't a metal. Iron is.", 1), ("The answer is never salt", None),
        # texts
        ("iron", 1), ("Iron", 1), ("IRON!", 1), ("iron.", 1), ("It is iron.", 1), ("It's iron, a metal.", 1),
        ("**Iron**", 1), ("I think that iron rusts.", 1), ("irony", None), ("environment", None),
        ("The iron-rich one", 1), ("“Iron”", 1), ("iron and copper", None), ("Either iron or copper.", None),
        ("A and B", None), ("A, B", None), ("B, C and D", None), ("A. wood\nB. iron\nC. copper\nD. salt", None),
        ("A or B", None), ("Both B and C.", None), ("wood, iron, copper, salt", None), ("hm\n\nSalt", 3),
        ("First I thought iron, but copper conducts.", 2), ("A metal: iron", 1), ("A piece of wood", 0),
        ("I have no idea.", None), ("", None), ("   ", None), ("?", None), ("...", None), ("C seems right", 2),
        ("Eliminate A. Eliminate B. Choose C.", 2), ("Neither A nor B", None), ("All of the above", None),
        ("<think>The answer is A? No.</think>\nB", 1),
        ("The correct answer is B. Iron is a metal, but wood is not.", 1), ("The answer is either A or B", None),
        ("Is it iron? No, it is copper.", 2),
        # what a base model goes on with is another question
        ("B\n\nQuestion: Which one burns?\nAnswer: A", 1), (" iron\nQuestion: And then?\nA. iron\nAnswer: C", 1),
        # Chinese around them
        ("答案是B", 1), ("答案：B", 1), ("答案:B。", 1), ("选B", 1), ("应选C。", 2), ("选择D", 3),
        ("正确答案是C。", 2), ("正确答案为：D", 3), ("本题选B，因为铁会生锈。", 1), ("故选：C", 2),
        ("因此，答案选 D。", 3), ("我选A", 0), ("B项正确", 1), ("B选项正确。", 1), ("B是正确的。", 1),
        ("答案不是A，而是B。", 1), ("不选A", None), ("A错误，选C", 2), ("A不对。答案是D", 3), ("排除A和B，选C", 2),
        ("答案是（B）", 1), ("答案是【B】。", 1), ("**答案：B**", 1), ("答案是iron。", 1), ("A和B", None),
        ("正确的选项是B", 1), ("最终答案：\\boxed{B}", 1), ("选项B", 1), ("答案应该是C", 2), ("答案选择C项。", 2),
        ("「B」", 1), ("综上所述，选项C正确。", 2), ("没有正确答案", None), ("选C，因为A和B都不对", 2),
    ],
    "colours": [
        ("(C) the moon", 2), ("D. Bern", 3), ("I think... answer: (A)", 0), ("A dog is red", 0), ("dark red", 1),
        ("RED!", 0), ("reddish", None), ("hm\n\nMoon", 2), ("moon", 2), ("It is a moon.", 2),
        ("It is darker: dark red.", 1), ("Bern is.", 3), ("The moon is dark red", None), ("a", 0), ("bern.", 3),
        ("dark  red", 1),
    ],
    "cities": [
        ("中国的首都是北京。", 1), ("北京", 1), ("北京。", 1), ("答案是北京", 1), ("不是上海，是北京。", 1),
        ("上海不对，应该是广州。", 2), ("答案：深圳", 3), ("上海和北京", None), ("我认为是广州市。", 2),
        ("并非上海", None), ("选B。北京是首都。", 1), ("B、北京", 1), ("Ｂ．北京", 1), ("“北京”", 1), ("南京", None),
        ("首先排除上海，所以答案是深圳。", 3), ("首都不是上海而是北京", 1), ("The capital is 北京.", 1),
    ],
    "numbers": [
        ("5", 0), ("-5", 1), ("−5", 1), ("－５", 1), ("５", 0), ("50", 2), ("0.5", 3), ("The result is -5.", 1),
        ("x = 5", 0), ("x=-5", 1), ("500", None), ("5.5", None), ("15", None), ("50.0 exactly", None),
        ("It is 50, not 5.", 2), ("1,500", None), ("$5$", 0), ("3 + 2 = 5", 0), ("答案是-5", 1), ("等于50。", 2),
        ("+5", 0), ("about 0.5", 3), (".5", None), ("\\boxed{-5}", 1), ("D) 0.5", 3),
    ],
    "signs": [
        ("+", 0), ("-", 1), ("...", 3), ("the", 2), ("?", None), ("2 + 2", None), ("A", 0), ("B: -", 1),
        ("The answer is +.", 0), ("the sign", None), ("..", None), ("!", None), ("—", None),
    ],
    "cases": [
        ("pH", 0), ("PH", 1), ("ph", None), ("The answer is PH.", 1), (unicodedata.normalize("NFD", "naïve"), 2),
        ("NAÏVE", 2), ("naive", None), ("3 km", 3), ("3\u00a0km", 3), ("13 km", None), ("3 kmh", None),
    ],
    "phrases": [
        ("A dog", 0), ("a dog.", 0), ("dog", 0), ("A dog barks", 0), ("The dogs", None), ("None of the above", 1),
        ("none of the above.", 1), ("not enough light", 2), ("There is not enough light.", 2), ("it's cold", 3),
        ("It’s cold.", 3), ("A cat", None), ("B", 1),
    ],
    "maths": [
        ("x^2", 0), ("$x^2$", 0), ("x", 1), ("$x$", 1), ("\\frac{1}{2}", 2), ("\\boxed{\\frac{1}{2}}", 2), ("x²", 3),
        ("C", 2),
    ],
    "parts": [
        ("京", 0), ("北京", 1), ("北京市", 2), ("答案是北京市。", 2), ("东京", 3), ("是北京", 1), ("我想去北京。", 1),
    ],
    "nine": [("i", 8), ("I think that it is c", 2), ("I", 8), ("(I)", 8), ("I have no idea", None), ("h.", 7)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text", "right"), [(kind, text, right) for kind, lines in VERDICTS.items() for text, right in lines]
)
def test_an_answer_is_taken_for_what_it_says(kind: str, text: str, right: int | None) -> None:
    question = Question("q", "Which?", CHOICES[kind], 0, CHOICES[kind][0])
    index, rule = extract(text, question, ALL)
    assert (index, rule is None) == (right, right is None)


def test_the_table_is_long_and_says_yes_and_no() -> None:
    verdicts = [right for lines in VERDICTS.values() for _, right in lines]
    assert len(verdicts) >= 250
    assert sum(right is None for right in verdicts) > 50
    assert all(len({text for text, _ in lines}) == len(lines) for lines in VERDICTS.values())


@pytest.mark.parametrize(
    ("text", "rules", "choice", "rule"),
    [
        ("B", ALL, 1, "letter"), ("The answer is B.", ALL, 1, "letter"), ("iron", ALL, 1, "text"),
        ("The answer is wood.", ALL, 0, "text"), ("B", ("text",), None, None), ("iron", ("letter",), None, None),
        ("A. iron. Wait, the answer is salt.", ("letter", "text"), 3, "text"),
        ("iron\nsalt", ("last_line",), 3, "last_line"), ("iron\n(B)", ("last_line",), 1, "last_line"),
        ("salt\nIt is iron", ("last_line",), None, None), ("An iron", ("last_line",), 1, "last_line"),
    ],
)  # fmt: skip
def test_the_rules_are_asked_in_their_order(
    text: str, rules: tuple[str, ...], choice: int | None, rule: str | None
) -> None:
    assert extract(text, Question("q", "Which?", CHOICES["things"], 0, "wood"), rules) == (choice, rule)


def test_of_equal_choices_the_first_is_taken() -> None:
    assert extract("oven", Question("q", "Which?", ("shelf", "oven", "Oven", "oven"), 1, "oven"), ALL) == (1, "text")


SAME = [
    ("Iron", "iron"), ("the iron", "iron"), ("iron.", "iron"), ("  iron  ore ", "iron ore"), ("An apple", "apple"),
    ("５", "5"), ("北京。", "北京"), ("“Iron”", "iron"), ("naïve", unicodedata.normalize("NFD", "naïve")),
    ("−5", "-5"), ("+5", "5"), ("1,500", "1500"), ("It's", "its"), ("well-known", "well-known"), ("A", "a"),
    ("the", "The"), ("+", " + "), ("ＡＢＣ", "abc"), ("5 %", "5 %"), ("$5", "$5"), ("3.0", "3.0"),
    ("（北京）", "北京"), ("5.", "5"), ("-5.", "-5"),
]  # fmt: skip
OTHER = [
    ("", "A"), ("", "the"), ("", "+"), ("...", "+"), ("A", "an"), ("5", "-5"), ("-5", "−6"), ("+", "-"), ("!", "?"),
    ("0.5", "05"), ("0.5", "5"), ("1.5", "15"), ("iron", "iron ore"), ("x²", "x2"), ("5", "5 %"), ("", " "),
    ("$5", "5"), ("C++", "C"), ("C#", "C"), ("-", ""), ("1/2", "12"), ("3:4", "34"), ("a", ""), ("京", "北京"),
    ("10^5", "105"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "answer"), SAME)
def test_answers_that_are_the_same(text: str, answer: str) -> None:
    assert normalised_answer(text) == normalised_answer(answer) != ""
    found = text_metrics([text], [answer])
    assert (found["exact_match"], found["f1"]) == (1.0, 1.0)


@pytest.mark.parametrize(("text", "answer"), OTHER)
def test_answers_that_are_not(text: str, answer: str) -> None:
    assert not text.strip() or normalised_answer(text) != normalised_answer(answer)
    assert text_metrics([text], [answer])["exact_match"] == 0.0


def test_an_empty_text_is_never_right() -> None:
    found = text_metrics(["", " ", "\n"], ["A", "+", "the"])
    assert (found["exact_match"], found["f1"]) == (0.0, 0.0)
