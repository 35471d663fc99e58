"""How good the scores are: accuracy, its uncertainty, classes and calibration.

Promises: pure functions of scores and questions; the formulas are those of lm-evaluation-harness where it has them
(accuracy, accuracy per character, standard error), so that numbers can be compared with published ones.
Costs: nothing worth mentioning; scikit-learn is imported when classes are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from miniqwen.questions import LABELS, Question
from miniqwen.scoring import ChoiceScores

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile
BINS = 10


def predictions(scores: Sequence[ChoiceScores]) -> list[int]:
    """Index of the most likely choice of each question; the first of equals."""
    return [int(np.argmax(score.log_likelihoods)) for score in scores]


def predictions_norm(scores: Sequence[ChoiceScores]) -> list[int]:
    """The same by log-likelihood per character of the choice's text (harness: `acc_norm`)."""
    return [int(np.argmax(np.array(score.log_likelihoods) / np.array(score.characters))) for score in scores]


def right_answers(questions: Sequence[Question]) -> list[int]:
    """Index of the right choice of each question; `ValueError` if one has no answer."""
    indexes = [question.answer_index for question in questions if question.answer_index is not None]
    if len(indexes) != len(questions) or not indexes:
        raise ValueError("accuracy needs questions with answers")
    return indexes


def accuracy(scores: Sequence[ChoiceScores], questions: Sequence[Question]) -> float:
    """Share of questions whose most likely choice is the right one (harness: `acc`)."""
    return float(np.mean(np.equal(predictions(scores), right_answers(questions))))


def accuracy_norm(scores: Sequence[ChoiceScores], questions: Sequence[Question]) -> float:
    """The same by log-likelihood per character, which takes away the advantage of short answers."""
    return float(np.mean(np.equal(predictions_norm(scores), right_answers(questions))))


def chance_level(questions: Sequence[Question]) -> float:
    """Expected accuracy of guessing."""
    return float(np.mean([1 / len(question.choices) for question in questions]))


def stderr(accuracy: float, count: int) -> float | None:
    """Standard error of a share: sample deviation / √n = √(p(1−p)/(n−1)), as in the harness; None for n = 1."""
    return math.sqrt(accuracy * (1 - accuracy) / (count - 1)) if count > 1 else None


def confidence_interval(accuracy: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22:209), good for small n too."""
    z2 = Z_95**2 / count
    centre = (accuracy + z2 / 2) / (1 + z2)
    half = Z_95 / (1 + z2) * math.sqrt(accuracy * (1 - accuracy) / count + z2 / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def per_class(scores: Sequence[ChoiceScores], questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support (number of right answers) of each place A, B, C...: position bias shows here.

    A place that is never predicted, or never right, has precision, or recall, 0.
    """
    from sklearn.metrics import (
        precision_recall_fscore_support,
    )  # takes a second to import, and training has no use for it

    places = list(range(max(len(question.choices) for question in questions)))
    columns = precision_recall_fscore_support(
        right_answers(questions), predictions(scores), labels=places, zero_division=0.0
    )
    return {
        LABELS[place]: {
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "support": int(support),
        }
        for place, precision, recall, f1, support in zip(places, *columns, strict=True)
    }


def probabilities(score: ChoiceScores) -> np.ndarray:
    """Softmax of the log-likelihoods over the choices `[choices]`: what the model believes, given that one is right."""
    values = np.array(score.log_likelihoods)
    exponentials = np.exp(values - values.max())
    return exponentials / exponentials.sum()


def calibration(scores: Sequence[ChoiceScores], questions: Sequence[Question]) -> dict[str, Any]:
    """Is the model as often right as it believes?

    `ece`: expected calibration error over ten bins of equal width (Guo et al. 2017, arXiv:1706.04599, eq. 3), the mean
    of |accuracy − confidence| over bins weighted by their counts. `brier`: mean over questions of the sum over choices
    of (p − right)² (Brier 1950); 0 is best and 2 worst. `bins`: (low, high]; empty ones have no confidence (None).
    """
    believed = [probabilities(score) for score in scores]
    right = right_answers(questions)
    confidence = np.array([p.max() for p in believed])
    correct = np.equal(predictions(scores), right)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins: list[dict[str, Any]] = []
    error = 0.0
    for number in range(BINS):
        inside = place == number
        described: dict[str, Any] = {"low": number / BINS, "high": (number + 1) / BINS, "count": int(inside.sum())}
        described |= {"confidence": None, "accuracy": None}
        if inside.any():
            described |= {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
            error += float(inside.mean()) * abs(described["confidence"] - described["accuracy"])
        bins.append(described)
    brier = np.mean([np.sum((p - np.eye(len(p))[answer]) ** 2) for p, answer in zip(believed, right, strict=True)])
    return {"ece": error, "brier": float(brier), "bins": bins}
