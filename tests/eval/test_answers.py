"""What answers come to: which of them are right, and the figures of a data set."""

from __future__ import annotations

import dataclasses
from typing import Any

from miniqwen.config.evaluating import EvalConfig
from miniqwen.eval.answers import Answer, result
from miniqwen.questions.protocols import Prompt, Request
from miniqwen.questions.rows import Question


def test_a_choice_that_says_the_same_as_the_right_one_is_right_but_for_the_harness() -> None:
    question = Question("q", "Where?", ("oven", "shelf", "oven"), 2, "oven")
    request = Request("q", (1,), ((2,), (3,), (2,)), (4, 5, 4), (4, 5, 4))
    prompt = Prompt(question, "Where?", question.choices, ("A", "B", "C"))
    ours = [Answer.chosen(prompt, request, [-1.0, -2.0, -1.0])]
    assert (ours[0].choice, ours[0].is_correct) == (0, True)
    theirs = Answer.chosen(dataclasses.replace(prompt, by_place=True), request, [-1.0, -2.0, -1.0])
    assert theirs.is_correct is False
    found = result("own", ours, [], EvalConfig(), {})
    assert [found["accuracy"], found["accuracy_norm"], found["macro_f1"]] == [1.0, 1.0, 1.0]
    assert found["confusion_matrix"] == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert found["calibration"]["brier"] == found_alone(("oven", "shelf"), (-1.0, -2.0))["brier"] < 1
    harness = result("own", [theirs], [], EvalConfig(), {})["calibration"]
    assert harness["brier"] > 2 * found["calibration"]["brier"]  # the ovens share what it believes, and one is right


def found_alone(choices: tuple[str, ...], scores: tuple[float, ...]) -> dict[str, Any]:
    """The calibration of the question without its twin."""
    request = Request("q", (1,), ((2,), (3,)), (4, 5), (4, 5))
    prompt = Prompt(Question("q", "Where?", choices, 0, choices[0]), "Where?", choices, ("A", "B"))
    calibration = result("own", [Answer.chosen(prompt, request, scores)], [], EvalConfig(), {})["calibration"]
    assert isinstance(calibration, dict)
    return calibration
