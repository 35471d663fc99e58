"""How good the answers are: accuracy, its uncertainty, classes, calibration, and where the model goes wrong.

Promises: pure functions of scores, predictions and right answers; the formulas are those of lm-evaluation-harness where
it has them (accuracy, accuracy per character, standard error), to the last digit, so that numbers can be compared with
published ones. Costs: nothing worth mentioning; scikit-learn and sacrebleu are imported when they are needed.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from miniqwen.questions.choices import LABELS
from miniqwen.questions.protocols import Request
from miniqwen.questions.rows import Question
from miniqwen.questions.texts import normalised_answer, plain_text, words

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile
BINS = 10
LENGTHS = 4  # groups of questions by length
NORMALISATIONS = ("sum", "character", "byte", "token", "unconditional")


@dataclass(frozen=True)
class ChoiceScores:
    """Of one question, in the order of its choices: log-likelihoods (nats), and how long the scored texts are.

    `unconditional`: log-likelihoods of the choices behind nothing, where they were asked for.
    """

    log_likelihoods: tuple[float, ...]
    characters: tuple[int, ...]
    bytes: tuple[int, ...]
    tokens: tuple[int, ...]
    unconditional: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls, request: Request, log_likelihoods: Sequence[float], unconditional: Sequence[float] | None = None
    ) -> ChoiceScores:
        tokens = tuple(map(len, request.choices))
        without = None if unconditional is None else tuple(unconditional)
        return cls(tuple(log_likelihoods), request.characters, request.bytes, tokens, without)

    def normalised(self, by: str) -> np.ndarray:
        """[choices] by one of `NORMALISATIONS`: the sum, it per character, byte or token (harness: acc, acc_norm,
        acc_bytes), or less the log-likelihood of the choice without its question (acc_mutual_info; Brown et al. 2020,
        arXiv:2005.14165, section 2.4)."""
        values = np.array(self.log_likelihoods)
        if by == "unconditional":
            return values - np.array(self.unconditional)
        lengths = {"character": self.characters, "byte": self.bytes, "token": self.tokens}
        return values if by == "sum" else values / np.array(lengths[by], dtype=float)

    def prediction(self, by: str = "sum") -> int:
        """Index of the most likely choice; the first of equals."""
        return int(np.argmax(self.normalised(by)))

    def probabilities(self, answers: Sequence[Any], texts: Sequence[Any]) -> np.ndarray:
        """[choices] what the model believes, given that one of them is right; of choices with the same text the first
        has it all.

        Softmax over the different `answers` that were scored (a text that is offered twice is not twice as likely),
        summed where they (letters) stand for the same of the choices' `texts`.
        """
        values = np.array(self.log_likelihoods)
        once = [answers.index(answer) == number for number, answer in enumerate(answers)]
        exponentials = np.where(once, np.exp(values - values.max(where=once, initial=-np.inf)), 0.0)
        first = [texts.index(text) for text in texts]
        return np.bincount(first, exponentials / exponentials.sum(), len(texts))


def right_answers(questions: Sequence[Question]) -> list[int]:
    """Index of the right choice of each question; `ValueError` if one has no answer."""
    indexes = [question.answer_index for question in questions if question.answer_index is not None]
    if len(indexes) != len(questions) or not indexes:
        raise ValueError("accuracy needs questions with answers")
    return indexes


def chance_level(questions: Sequence[Question]) -> float:
    """Expected accuracy of guessing."""
    return float(np.mean([1 / len(question.choices) for question in questions]))


def accuracy(correct: Sequence[bool]) -> float:
    """The share of correct answers."""
    return sum(correct) / len(correct)


def stderr(correct: Sequence[bool]) -> float | None:
    """Standard error of a share: sample deviation / √n, in the harness's order of operations; None for n = 1."""
    if len(correct) < 2:
        return None
    mean = accuracy(correct)
    return math.sqrt(sum((x - mean) ** 2 for x in map(float, correct)) / (len(correct) - 1)) / math.sqrt(len(correct))


def confidence_interval(accuracy: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22:209), good for small n too."""
    z2 = Z_95**2 / count
    centre = (accuracy + z2 / 2) / (1 + z2)
    half = Z_95 / (1 + z2) * math.sqrt(accuracy * (1 - accuracy) / count + z2 / (4 * count))
    return centre - half if accuracy > 0 else 0.0, centre + half if accuracy < 1 else 1.0


def classes(predicted: Sequence[int | None], right: Sequence[int], places: int) -> dict[str, Any]:
    """How the places A, B, C... are hit: position bias shows here.

    `per_class`: precision, recall, F1 and support (number of right answers) of each; a place that is never predicted,
    or never right, has precision, or recall, 0. `balanced_accuracy`: mean recall of the places that are right
    somewhere; `macro_f1`: mean F1 of those that are right or predicted somewhere, as scikit-learn has it.
    `confusion_matrix`: rows are right answers, columns predictions, the last column those that are none of the choices,
    where there are any.
    """
    from sklearn import metrics  # takes a second to import, and training has no use for it

    said = [-1 if place is None else place for place in predicted]
    labels = list(range(places))
    columns = metrics.precision_recall_fscore_support(right, said, labels=labels, zero_division=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of places that are predicted and never right, as under the harness's SciQ
        balanced = metrics.balanced_accuracy_score(right, said)
    seen = [*labels, -1] if -1 in said else labels
    return {
        "per_class": {
            LABELS[place]: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(support)}
            for place, p, r, f, support in zip(labels, *columns, strict=True)
        },
        "balanced_accuracy": float(balanced),
        "macro_f1": float(np.mean([columns[2][place] for place in labels if place in {*right, *said}])),
        "confusion_matrix": metrics.confusion_matrix(right, said, labels=seen)[:places].tolist(),
    }


def by_position(predicted: Sequence[int | None], right: Sequence[int], places: int) -> dict[str, dict[str, Any]]:
    """Of each place A, B, C...: the questions whose right answer stands there, their accuracy; how often it is said."""
    found = {}
    for place in range(places):
        hits = [said == place for said, answer in zip(predicted, right, strict=True) if answer == place]
        found[LABELS[place]] = {
            "count": len(hits),
            "accuracy": accuracy(hits) if hits else None,
            "predicted": sum(said == place for said in predicted) / len(predicted),
        }
    return found


def by_question_length(questions: Sequence[Question], correct: Sequence[bool]) -> list[dict[str, Any]]:
    """Accuracy in four groups of like size by the question's length in characters, the shortest first.

    Questions of the same length stay together, so there may be fewer groups.
    """
    lengths = np.array([len(question.question) for question in questions])
    edges = np.unique(np.quantile(lengths, [k / LENGTHS for k in range(1, LENGTHS)], method="lower"))
    group = np.searchsorted(edges, lengths)  # up to and with an edge
    return [
        {
            "shortest": int(lengths[inside].min()),
            "longest": int(lengths[inside].max()),
            "count": int(inside.sum()),
            "accuracy": accuracy(list(np.array(correct)[inside])),
        }
        for number in np.unique(group)
        if (inside := group == number).any()
    ]


def calibration(believed: Sequence[np.ndarray], said: Sequence[int], right: Sequence[int]) -> dict[str, Any]:
    """Is the model as often right as it believes? `believed`: of each question as `ChoiceScores.probabilities` has it.

    `ece`: expected calibration error over ten bins of equal width (Guo et al. 2017, arXiv:1706.04599, eq. 3), the mean
    of |accuracy − confidence| over bins weighted by their counts. `brier`: mean over questions of the sum over choices
    of (p − right)² (Brier 1950); 0 is best and 2 worst. `bins`: (low, high]; empty ones have no confidence (None).
    """
    confidence = np.array([p[place] for p, place in zip(believed, said, strict=True)])
    correct = np.equal(said, right)
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


def contamination(
    questions: Sequence[Question], correct: Sequence[bool] | None, train: Sequence[Question], split: str
) -> dict[str, Any]:
    """Which questions stand in the training split too, and the accuracy of those and of the others (None: of none).

    `word_for_word` of the `count` are the same to the letter, the others but for case, punctuation and white space.
    """
    known, exact = {plain_text(question.question) for question in train}, {question.question for question in train}
    met = [plain_text(question.question) in known for question in questions]
    found: dict[str, Any] = {
        "split": split,
        "count": sum(met),
        "word_for_word": sum(question.question in exact for question in questions),
        "ids": [question.id for question, is_known in zip(questions, met, strict=True) if is_known],
    }
    if correct is not None:
        parts = {
            name: [right for right, is_known in zip(correct, met, strict=True) if is_known is wanted]
            for name, wanted in (("accuracy_of_known", True), ("accuracy_without", False))
        }
        found["accuracy"] = accuracy(correct)
        found |= {name: accuracy(part) if part else None for name, part in parts.items()}
    return found


def text_metrics(generated: Sequence[str], answers: Sequence[str]) -> Mapping[str, Any]:
    """Generated texts against right answers.

    `exact_match` and `f1`: means over the questions of equality and of the F1 of their words, both normalised nearly as
    in SQuAD (see `normalised_answer`); an empty text is never right. `bleu` (Papineni et al. 2002) and `chrf` (Popović
    2015): of the whole set, 0 to 100, by sacrebleu with its standard settings.
    """
    import sacrebleu

    pairs = [
        (normalised_answer(text), normalised_answer(answer)) for text, answer in zip(generated, answers, strict=True)
    ]
    return {
        "exact_match": float(np.mean([text == answer != "" for text, answer in pairs])),
        "f1": float(np.mean([_word_f1(words(text), words(answer)) for text, answer in pairs])),
        "bleu": float(sacrebleu.corpus_bleu(list(generated), [list(answers)]).score),
        "chrf": float(sacrebleu.corpus_chrf(list(generated), [list(answers)]).score),
    }


def _word_f1(text: Sequence[str], answer: Sequence[str]) -> float:
    common = (Counter(text) & Counter(answer)).total()
    if not text or not answer:
        return 0.0
    return 2 * common / (len(text) + len(answer))
