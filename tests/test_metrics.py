"""Metrics against values computed by hand."""

from __future__ import annotations

import math

import pytest

from miniqwen import metrics
from miniqwen.questions import Question
from miniqwen.scoring import ChoiceScores


def question(answer: int | None, choices: int = 2) -> Question:
    return Question("x", "?", tuple("abcde"[:choices]), answer, None if answer is None else "abcde"[answer])


def scores(*log_likelihoods: float, characters: tuple[int, ...] | None = None) -> ChoiceScores:
    return ChoiceScores(log_likelihoods, characters or (1,) * len(log_likelihoods))


# predictions 0, 0, 1, 1; right answers 0, 1, 1, 1
FOUR = [scores(-1, -2), scores(-1, -2), scores(-3, -2), scores(-4, -1)]
ASKED = [question(0), question(1), question(1), question(1)]


def test_accuracy_is_the_share_of_right_first_choices() -> None:
    assert metrics.predictions(FOUR) == [0, 0, 1, 1]
    assert metrics.accuracy(FOUR, ASKED) == 0.75


def test_equal_scores_go_to_the_first() -> None:
    assert metrics.predictions([scores(-2, -1, -1)]) == [1]


def test_accuracy_norm_divides_by_characters() -> None:
    long = scores(-4, -6, characters=(2, 10))  # -2 and -0.6 per character
    assert metrics.accuracy([long], [question(1)]) == 0
    assert metrics.accuracy_norm([long], [question(1)]) == 1


def test_chance_is_one_over_the_number_of_choices() -> None:
    assert metrics.chance_level([question(0, 2), question(0, 4)]) == pytest.approx(0.375)


def test_standard_error_is_the_samples() -> None:
    assert metrics.stderr(0.75, 4) == pytest.approx(0.25)  # sqrt(0.1875 / 3)
    assert metrics.stderr(0.5, 101) == pytest.approx(0.05)
    assert metrics.stderr(1.0, 1) is None


def test_the_interval_is_wilsons() -> None:
    low, high = metrics.confidence_interval(0.5, 10)
    assert (low, high) == (pytest.approx(0.236593, abs=1e-6), pytest.approx(0.763407, abs=1e-6))
    low, high = metrics.confidence_interval(0.0, 10)
    assert (low, high) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert metrics.confidence_interval(1.0, 10) == (pytest.approx(0.722467, abs=1e-6), pytest.approx(1.0))


def test_classes_are_places_with_precision_recall_and_f1() -> None:
    classes = metrics.per_class(FOUR, ASKED)
    assert list(classes) == ["A", "B"]
    assert classes["A"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert classes["B"] == {"precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "support": 3}


def test_a_place_that_never_occurs_counts_zero() -> None:
    assert metrics.per_class([scores(-1, -2, -3)], [question(0, 3)])["C"] == {
        "precision": 0, "recall": 0, "f1": 0, "support": 0,
    }  # fmt: skip


def test_probabilities_are_a_softmax_that_survives_very_small_likelihoods() -> None:
    assert metrics.probabilities(scores(-1000, -1000 - math.log(3))).tolist() == pytest.approx([0.75, 0.25])


def test_calibration_has_ece_brier_and_bins() -> None:
    sure = scores(math.log(0.95), math.log(0.05))  # right: confidence 0.95
    torn = scores(math.log(0.55), math.log(0.45))  # wrong: confidence 0.55
    result = metrics.calibration([sure, torn], [question(0), question(1)])
    assert result["ece"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.55)
    assert result["brier"] == pytest.approx((2 * 0.05**2 + 2 * 0.55**2) / 2)
    assert len(result["bins"]) == 10
    assert [one["count"] for one in result["bins"]] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert result["bins"][9] == {
        "low": 0.9, "high": 1.0, "count": 1, "confidence": pytest.approx(0.95), "accuracy": 1.0,
    }  # fmt: skip
    assert result["bins"][0]["confidence"] is None


def test_questions_without_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="answers"):
        metrics.accuracy([scores(-1, -2)], [question(None)])
