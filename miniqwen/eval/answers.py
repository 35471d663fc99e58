"""What a data set's answers come to: questions and what the model answered → the file of results, predictions, a table.

Promises: every figure follows from the samples that stand in the same file; a split without right answers gets
predictions and no figures. Costs: nothing worth mentioning.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from miniqwen.config.evaluating import EvalConfig
from miniqwen.config.flags import RECORDED
from miniqwen.eval import metrics
from miniqwen.eval.extraction import extract
from miniqwen.eval.metrics import NORMALISATIONS, ChoiceScores
from miniqwen.questions.protocols import Prompt, Request
from miniqwen.questions.rows import Question
from miniqwen.questions.texts import normalised_answer


@dataclass(frozen=True)
class Answer:
    """What the model answered to a question: a choice (None: none of them), by its scores or by what it wrote."""

    prompt: Prompt
    choice: int | None
    scores: ChoiceScores | None = None
    generated: str | None = None
    rule: str | None = None  # that found the choice in the text

    @classmethod
    def chosen(
        cls, prompt: Prompt, request: Request, log_likelihoods: Sequence[float],
        unconditional: Sequence[float] | None = None,
    ) -> Answer:  # fmt: skip
        """The most likely choice."""
        scores = ChoiceScores.of(request, log_likelihoods, unconditional)
        return cls(prompt, scores.prediction(), scores)

    @classmethod
    def written(cls, prompt: Prompt, text: str, rules: Sequence[str]) -> Answer:
        """The choice that `rules` find in the text."""
        choice, rule = extract(text, prompt.question, rules)
        return cls(prompt, choice, generated=text, rule=rule)

    @property
    def text(self) -> str | None:
        """The choice's text, or for a question without choices what was written."""
        if not self.prompt.question.choices:
            return self.generated
        return None if self.choice is None else self.prompt.question.choices[self.choice]

    @property
    def is_correct(self) -> bool | None:
        """Whether it is the right answer; None where that is not known."""
        question = self.prompt.question
        if question.answer is None:
            return None
        if question.choices:
            return self.prompt.is_right(self.choice)
        said = normalised_answer(str(self.generated))
        return said == normalised_answer(question.answer) and said != ""

    def sample(self) -> dict[str, Any]:
        """The question's record. Scores are log-likelihoods in the order of `choices`."""
        question = self.prompt.question
        found: dict[str, Any] = {"id": question.id, "question": question.question, "choices": list(question.choices)}
        if self.scores is not None:
            found["scores"] = list(self.scores.log_likelihoods)
            if self.scores.unconditional is not None:
                found["unconditional_scores"] = list(self.scores.unconditional)
        else:
            found |= {"generated": self.generated, "rule": self.rule}
        return found | {
            "prediction": self.text,
            "answer": question.answer,
            "prediction_index": self.choice,
            "answer_index": question.answer_index,
            "correct": self.is_correct,
            "prompt_hash": self.prompt.hash,
        }


def result(
    name: str, answers: Sequence[Answer], train: Sequence[Question], config: EvalConfig, recorded: Mapping[str, Any]
) -> dict[str, Any]:
    """What is written about a data set. `recorded`, within the configuration, is what the flags do not say."""
    described: dict[str, Any] = {"dataset": name, "split": config.split_of(name), "num_examples": len(answers)}
    answered = answers[0].is_correct is not None
    if answered:
        described |= _figures(answers, config)
    if config.check_contamination:
        correct = [bool(answer.is_correct) for answer in answers] if answered else None
        questions = [answer.prompt.question for answer in answers]
        described["contamination"] = metrics.contamination(questions, correct, train, config.train_split)
    return {
        **described,
        "model_path": config.model_path,
        "config": {**asdict(config), RECORDED: dict(recorded)},
        "samples": [answer.sample() for answer in answers],
    }


def _share(correct: Sequence[bool]) -> dict[str, Any]:
    accuracy = metrics.accuracy(correct)
    interval = list(metrics.confidence_interval(accuracy, len(correct)))
    return {"accuracy": accuracy, "stderr": metrics.stderr(correct), "confidence_interval": interval}


def _figures(answers: Sequence[Answer], config: EvalConfig) -> dict[str, Any]:
    questions = [answer.prompt.question for answer in answers]
    correct = [bool(answer.is_correct) for answer in answers]
    found = _share(correct)
    if not questions[0].choices:
        return found | _written_figures(answers)
    right = metrics.right_answers(questions)
    # a choice that says the same as the right one stands for it
    right = [
        place if answer.choice is None or not answer.is_correct else answer.choice
        for place, answer in zip(right, answers, strict=True)
    ]
    scores = [answer.scores for answer in answers if answer.scores is not None]
    if scores:
        shares = {}
        for by in NORMALISATIONS[: None if config.unconditional else -1]:
            hits = [one.prompt.is_right(score.prediction(by)) for score, one in zip(scores, answers, strict=True)]
            shares[by] = _share(hits)
        found = {"accuracy": found.pop("accuracy"), "accuracy_norm": shares["character"]["accuracy"], **found}
        found["accuracies"] = shares
    else:
        found |= _written_figures(answers)
    predicted = [answer.choice for answer in answers]
    places = max(len(question.choices) for question in questions)
    found |= metrics.classes(predicted, right, places)
    found["by_position"] = metrics.by_position(predicted, right, places)
    found["by_question_length"] = metrics.by_question_length(questions, correct)
    if scores:
        found["calibration"] = _calibration(answers)
    return found


def _calibration(answers: Sequence[Answer]) -> dict[str, Any]:
    """Choices with the same text are one, which stands at the first of them; not so in the harness's terms."""
    believed, said, right = [], [], []
    for answer in answers:
        question = answer.prompt.question
        texts: list[Any] = [choice.strip() for choice in question.choices]
        scored: Sequence[Any] = answer.prompt.answers
        if answer.prompt.by_place:
            scored = texts = list(range(len(texts)))
        if answer.scores is not None and answer.choice is not None and question.answer_index is not None:
            believed.append(answer.scores.probabilities(scored, texts))
            said.append(texts.index(texts[answer.choice]))
            right.append(texts.index(texts[question.answer_index]))
    return metrics.calibration(believed, said, right)


def _written_figures(answers: Sequence[Answer]) -> dict[str, Any]:
    expected = [
        answer.prompt.answers[question.answer_index] if question.answer_index is not None else str(question.answer)
        for answer in answers
        if (question := answer.prompt.question)
    ]
    found = dict(metrics.text_metrics([str(answer.generated) for answer in answers], expected))
    if answers[0].prompt.question.choices:
        rules = Counter(answer.rule for answer in answers)
        found |= {"unmatched": rules.pop(None, 0), "rules": dict(rules)}
    return found


def combined(results: Mapping[str, Mapping[str, Any]], config: EvalConfig) -> dict[str, Any]:
    """The data sets side by side, the accuracy over all questions, and the mean of the data sets' accuracies."""
    answered = {name: one for name, one in results.items() if "accuracy" in one}
    correct = [sample["correct"] for one in answered.values() for sample in one["samples"]]
    found: dict[str, Any] = {
        "dataset": config.dataset_name,
        "num_examples": sum(one["num_examples"] for one in results.values()),
    }
    if correct:
        found |= _share(correct)
        found["mean_accuracy"] = sum(one["accuracy"] for one in answered.values()) / len(answered)
        if all("accuracy_norm" in one for one in answered.values()):
            hits = sum(one["accuracy_norm"] * one["num_examples"] for one in answered.values())
            found["accuracy_norm"] = hits / len(correct)
    left_out = ("samples", "config", "model_path", "dataset")
    return {
        **found,
        "model_path": config.model_path,
        "config": asdict(config),
        "datasets": {
            name: {key: value for key, value in one.items() if key not in left_out} for name, one in results.items()
        },
    }


def predictions(name: str, answers: Sequence[Answer]) -> tuple[str, str]:
    """(ending of the file's name, its text) of what is handed in where the right answers are secret.

    CommonsenseQA takes lines of id and letter, without a heading; other data gets a line of JSON a question. An answer
    that is none of the choices leaves its place empty.
    """
    chosen = [(answer, None if answer.choice is None else answer.prompt.labels[answer.choice]) for answer in answers]
    if name == "commonsenseqa":
        lines = io.StringIO()
        csv.writer(lines, lineterminator="\n").writerows((one.prompt.question.id, label or "") for one, label in chosen)
        return "_predictions.csv", lines.getvalue()
    rows = [{"id": one.prompt.question.id, "prediction": one.text, "label": label} for one, label in chosen]
    return "_predictions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def report(described: Mapping[str, Any], answers: Sequence[Answer], stem: str) -> str:
    """A few lines to read at once."""
    head, row = (
        f"{'data set':<16}{'split':<12}{'questions':>10}",
        f"{stem:<16}{described['split']:<12}{len(answers):>10}",
    )
    lines = []
    if "accuracy" in described:
        low, high = described["confidence_interval"]
        head += f"{'accuracy':>10}{'95 % interval':>18}"
        row += f"{described['accuracy']:>10.1%}{f'{low:.1%} – {high:.1%}':>18}"
        if "accuracy_norm" in described:
            head, row = head + f"{'per character':>15}", row + f"{described['accuracy_norm']:>15.1%}"
        if answers[0].prompt.question.choices:
            chance = metrics.chance_level([answer.prompt.question for answer in answers])
            head, row = head + f"{'chance':>8}", row + f"{chance:>8.1%}"
    lines += _remarks(described)
    cut = described["config"][RECORDED]["truncated_prompts"]
    if cut:
        lines.append(f"note: {cut} prompts were longer than the model's positions and lost their beginning")
    return "\n".join([head, row, *lines])


def _remarks(described: Mapping[str, Any]) -> list[str]:
    lines = []
    if "exact_match" in described:
        lines.append(
            f"written answers: exact match {described['exact_match']:.1%}, F1 {described['f1']:.1%}, BLEU "
            f"{described['bleu']:.1f}, chrF {described['chrf']:.1f}"
            + (f"; {described['unmatched']} name no choice" if "unmatched" in described else "")
        )
    known = described.get("contamination")
    if known and not known["count"]:
        lines.append(f"contamination: no question stands in the {known['split']} split")
    elif known:
        said = (
            f"contamination: {known['count']} of the questions ({known['word_for_word']} word for word) stand in the "
        )
        said += f"{known['split']} split too"
        if "accuracy" in known:
            shares = [known[name] for name in ("accuracy_of_known", "accuracy_without")]
            of_known, without = ("none" if share is None else f"{share:.1%}" for share in shares)
            said += f"; accuracy of these {of_known}, without them {without}"
        lines.append(said)
    return lines
