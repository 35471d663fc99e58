"""Metrics against values computed by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import binomtest, sem
from sklearn.metrics import brier_score_loss, f1_score

from miniqwen.eval import metrics
from miniqwen.eval.metrics import ChoiceScores
from miniqwen.questions.protocols import Request
from miniqwen.questions.rows import Question


def question(answer: int | None, choices: int = 2, text: str = "?") -> Question:
    return Question("x", text, tuple("abcde"[:choices]), answer, None if answer is None else "abcde"[answer])


def scores(*log_likelihoods: float, **lengths: tuple[int, ...]) -> ChoiceScores:
    ones = (1,) * len(log_likelihoods)
    return ChoiceScores(log_likelihoods, *(lengths.get(name, ones) for name in ("characters", "bytes", "tokens")))


# predictions 0, 0, 1, 1; right answers 0, 1, 1, 1
PREDICTED, RIGHT = [0, 0, 1, 1], [0, 1, 1, 1]


def test_the_most_likely_choice_is_the_prediction_and_of_equals_the_first() -> None:
    assert scores(-3, -2, -2.5).prediction() == 1
    assert scores(-2, -1, -1).prediction() == 1


def test_each_normalisation_divides_by_its_own_lengths() -> None:
    found = scores(-4, -6, characters=(2, 10), bytes=(8, 4), tokens=(1, 3))
    assert found.normalised("sum").tolist() == [-4, -6]
    assert found.normalised("character").tolist() == pytest.approx([-2, -0.6])
    assert found.normalised("byte").tolist() == pytest.approx([-0.5, -1.5])
    assert found.normalised("token").tolist() == pytest.approx([-4, -2])
    assert [found.prediction(by) for by in ("sum", "character", "byte", "token")] == [0, 1, 0, 1]


def test_unconditional_scores_take_away_what_a_choice_is_worth_without_its_question() -> None:
    request = Request("x", (1,), ((2,), (3,)), (1, 1), (1, 1))
    found = ChoiceScores.of(request, [-5, -6], unconditional=[-1, -4])
    assert found.prediction() == 0
    assert found.normalised("unconditional").tolist() == [-4, -2]
    assert found.prediction("unconditional") == 1


def test_lengths_of_scores_are_those_of_the_request() -> None:
    request = Request("x", (1,), ((2, 3), (4,)), (5, 6), (7, 8))
    assert ChoiceScores.of(request, [-1, -2]) == ChoiceScores((-1, -2), (5, 6), (7, 8), (2, 1))


def test_accuracy_is_the_share_of_right_answers_and_its_error_the_samples() -> None:
    assert metrics.accuracy([True, False, True, True]) == 0.75
    assert metrics.stderr([True, False, True, True]) == pytest.approx(0.25)  # sqrt(0.1875 / 3)
    assert metrics.stderr([True, False] * 50 + [True]) == pytest.approx(math.sqrt(51 * 50 / 101**2 / 100))
    assert metrics.stderr([True]) is None


def test_chance_is_one_over_the_number_of_choices() -> None:
    assert metrics.chance_level([question(0, 2), question(0, 4)]) == pytest.approx(0.375)


def test_the_interval_is_wilsons() -> None:
    low, high = metrics.confidence_interval(0.5, 10)
    assert (low, high) == (pytest.approx(0.236593, abs=1e-6), pytest.approx(0.763407, abs=1e-6))
    low, high = metrics.confidence_interval(0.0, 10)
    assert (low, high) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert metrics.confidence_interval(1.0, 10) == (pytest.approx(0.722467, abs=1e-6), pytest.approx(1.0))


def test_classes_are_places_with_precision_recall_and_f1() -> None:
    found = metrics.classes(PREDICTED, RIGHT, 2)
    assert list(found["per_class"]) == ["A", "B"]
    assert found["per_class"]["A"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert found["per_class"]["B"] == {
        "precision": 1.0, "recall": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "support": 3,
    }  # fmt: skip
    assert found["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert found["confusion_matrix"] == [[1, 0], [1, 2]]


def test_a_place_that_never_occurs_counts_zero() -> None:
    found = metrics.classes([0], [0], 3)
    assert found["per_class"]["C"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert found["balanced_accuracy"] == 1.0, "only places that are right somewhere are averaged"


def test_answers_that_are_none_of_the_choices_have_a_column_of_their_own() -> None:
    found = metrics.classes([0, None, 1], [0, 0, 1], 2)
    assert found["confusion_matrix"] == [[1, 0, 1], [0, 1, 0]]
    assert found["per_class"]["A"]["recall"] == 0.5


def test_position_bias_shows_by_position() -> None:
    found = metrics.by_position([0, 0, 0, None], [0, 1, 1, 1], 3)
    assert found["A"] == {"count": 1, "accuracy": 1.0, "predicted": 0.75}
    assert found["B"] == {"count": 3, "accuracy": 0.0, "predicted": 0.0}
    assert found["C"] == {"count": 0, "accuracy": None, "predicted": 0.0}


def test_accuracy_by_length_has_groups_of_like_size_that_hold_every_question_once() -> None:
    asked = [question(0, text="x" * length) for length in (8, 1, 2, 7, 3, 4, 5, 6)]
    found = metrics.by_question_length(asked, [len(one.question) > 4 for one in asked])
    shapes = [(one["shortest"], one["longest"], one["count"]) for one in found]
    assert shapes == [(1, 2, 2), (3, 4, 2), (5, 6, 2), (7, 8, 2)]
    assert [one["accuracy"] for one in found] == [0, 0, 1, 1]
    same = metrics.by_question_length([question(0)] * 5, [True] * 5)
    assert [one["count"] for one in same] == [5], "questions of one length are one group"


def test_probabilities_are_a_softmax_that_survives_very_small_likelihoods() -> None:
    assert scores(-1000, -1000 - math.log(3)).probabilities("AB", "xy").tolist() == pytest.approx([0.75, 0.25])


def test_calibration_has_ece_brier_and_bins() -> None:
    sure = scores(math.log(0.95), math.log(0.05))  # right: confidence 0.95
    torn = scores(math.log(0.55), math.log(0.45))  # wrong: confidence 0.55
    believed = [one.probabilities("AB", "xy") for one in (sure, torn)]
    result = metrics.calibration(believed, [0, 0], [0, 1])
    assert result["ece"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.55)
    assert result["brier"] == pytest.approx((2 * 0.05**2 + 2 * 0.55**2) / 2)
    assert len(result["bins"]) == 10
    assert [one["count"] for one in result["bins"]] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 1]
    assert result["bins"][9] == {
        "low": 0.9, "high": 1.0, "count": 1, "confidence": pytest.approx(0.95), "accuracy": 1.0,
    }  # fmt: skip
    assert result["bins"][0]["confidence"] is None


def test_of_choices_with_the_same_text_the_first_has_all_the_probability() -> None:
    three = scores(math.log(0.2), math.log(0.6), math.log(0.2))  # oven, shelf, oven
    as_texts = three.probabilities(("oven", "shelf", "oven"), ("oven", "shelf", "oven"))
    assert as_texts.tolist() == pytest.approx([0.25, 0.75, 0])  # offered twice, and not twice as likely
    as_letters = three.probabilities("ABC", ("oven", "shelf", "oven"))
    assert as_letters.tolist() == pytest.approx([0.4, 0.6, 0])
    by_place = three.probabilities(range(3), range(3))
    assert by_place.tolist() == pytest.approx([0.2, 0.6, 0.2])
    assert metrics.calibration([as_texts], [1], [0])["brier"] == pytest.approx(0.75**2 * 2)


@pytest.mark.parametrize("seed", range(10))
def test_the_brier_score_of_two_choices_is_twice_scikit_learns(seed: int) -> None:
    drawn = random.Random(seed)
    right = [drawn.randrange(2) for _ in range(20)]
    believed = [scores(*(drawn.gauss(-3, 2) for _ in range(2))).probabilities("AB", "xy") for _ in right]
    said = [int(p.argmax()) for p in believed]
    found = metrics.calibration(believed, said, right)
    assert found["brier"] == pytest.approx(2 * brier_score_loss(right, [p[1] for p in believed]))


def test_questions_without_answers_are_refused() -> None:
    with pytest.raises(ValueError, match="answers"):
        metrics.right_answers([question(None)])


def test_contamination_finds_questions_but_for_case_and_punctuation() -> None:
    train = [question(0, text="What is salt?"), question(0, text="Who was  first")]
    asked = [question(0, text=text) for text in ("What is salt?", "who was first?", "What is salt made of?", "What?")]
    found = metrics.contamination(asked, [True, True, False, True], train, "train")
    assert (found["count"], found["word_for_word"], found["ids"]) == (2, 1, ["x", "x"])
    assert (found["accuracy"], found["accuracy_of_known"], found["accuracy_without"]) == (0.75, 1.0, 0.5)
    assert metrics.contamination(asked[:2], [True, False], train, "train")["accuracy_without"] is None
    assert "accuracy" not in metrics.contamination(asked, None, train, "train")


def test_written_answers_are_compared_as_squad_does() -> None:
    found = metrics.text_metrics(["The Red river!", "blue", ""], ["red river", "dark blue", "x"])
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_bleu_and_chrf_are_sacrebleus() -> None:
    same = ["the quick brown fox jumps", "over the lazy old dog"]
    assert metrics.text_metrics(same, same)["bleu"] == pytest.approx(100)
    assert metrics.text_metrics(same, same)["chrf"] == pytest.approx(100)
    assert metrics.text_metrics(["zzz", "qqq"], same)["bleu"] == 0


@pytest.mark.parametrize("seed", range(30))
def test_shares_intervals_and_f1_are_those_of_scipy_and_scikit_learn(seed: int) -> None:
    drawn = random.Random(seed)
    count, places = drawn.choice([1, 2, 5, 30, 400]), drawn.randint(2, 6)
    right = [drawn.randrange(drawn.randint(1, places)) for _ in range(count)]
    said = [drawn.choice([answer, answer, drawn.randrange(places)]) for answer in right]
    if seed % 3 == 0:
        said = [place if drawn.random() < 0.8 else None for place in said]
    elif seed % 7 == 1:
        said = list(right)
    hits = [place == answer for place, answer in zip(said, right, strict=True)]
    textbook = binomtest(sum(hits), count).proportion_ci(method="wilson")
    assert metrics.confidence_interval(metrics.accuracy(hits), count) == pytest.approx(tuple(textbook), abs=1e-12)
    if count > 1:
        assert metrics.stderr(hits) == pytest.approx(float(sem(np.array(hits, dtype=float))))
    found = metrics.classes(said, right, places)
    numbers = [-1 if place is None else place for place in said]
    met = sorted({*right, *numbers} - {-1})
    assert found["macro_f1"] == pytest.approx(f1_score(right, numbers, labels=met, average="macro", zero_division=0))
    if seed % 7 == 1 and seed % 3:
        assert found["macro_f1"] == found["balanced_accuracy"] == 1.0


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 10_000), (10_000, 10_000), (1, 10_000)])
def test_an_interval_of_an_extreme_share_stays_within_it(hits: int, count: int) -> None:
    low, high = metrics.confidence_interval(hits / count, count)
    assert 0 <= low <= hits / count <= high <= 1
    assert (low, high) == pytest.approx(tuple(binomtest(hits, count).proportion_ci(method="wilson")), abs=1e-12)
