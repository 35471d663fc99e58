"""Accuracy on questions with choices: `accelerate launch eval_loop.py --model_path DIR --dataset_name sciq ...`.

Promises: `<output_dir>/<data set>.json` with accuracy, its uncertainty and every question's scores, whole or absent;
the same on one process as on several, which share the questions out. Questions are asked with the templates saved
beside the model. `both` is SciQ and CommonsenseQA, and `combined.json` over the two.
Costs: see `miniqwen/scoring.py`; all questions in memory on every process.
"""

from miniqwen.config import QA_DATASETS, EvalConfig, UserError, parse, user_errors_exit_2
from miniqwen.qa import EVALUATION_SEED, Template, shuffle_choices, template_flags

if __name__ == "__main__":
    with user_errors_exit_2():
        CONFIG = parse(
            EvalConfig,
            program="eval_loop.py",
            description="Accuracy of a model on questions with choices.",
            checks=[template_flags],
        )

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from miniqwen import metrics
from miniqwen.checkpoint import write_json
from miniqwen.flags import RECORDED
from miniqwen.modeling_miniqwen import load_model
from miniqwen.questions import Question, read_questions
from miniqwen.repositories import resolve
from miniqwen.scoring import ChoiceScores, score_share
from miniqwen.tokenization_miniqwen import load_tokenizer

DEFAULT_SPLITS = {"sciq": "test", "commonsenseqa": "validation"}  # CommonsenseQA's test split has no answers


def main(config: EvalConfig) -> None:
    """Score each data set in turn; process 0 writes and prints."""
    transformers_logging.disable_progress_bar()  # of loading weights: scoring has a bar of its own
    state = PartialState() if torch.cuda.is_available() else PartialState(cpu=True)
    names = QA_DATASETS if config.dataset_name == "both" else (str(config.dataset_name),)
    template = Template.load(str(config.model_path)).with_flags(config.prompt_template, config.choices_template)
    asked = {name: questions_of(name, config, state) for name in names}  # before the model: mistakes show early
    model, tokenizer = load(config, state.device)
    results = {}
    for name, questions in asked.items():
        scores = score(model, tokenizer, template, questions, config, state)
        results[name] = result(name, config, template, questions, scores)
        if state.is_main_process:
            report(results[name], questions, scores)
            write(Path(str(config.output_dir), f"{file_stem(name)}.json"), results[name])
    if len(names) > 1 and state.is_main_process:
        write(Path(str(config.output_dir), "combined.json"), combined(results, config))
    state.wait_for_everyone()
    state.destroy_process_group()


def split_of(name: str, config: EvalConfig) -> str:
    """The split to evaluate."""
    return config.split or DEFAULT_SPLITS.get(name, "test")


def questions_of(name: str, config: EvalConfig, state: PartialState) -> list[Question]:
    """The first `--max_eval_samples` questions, their choices in the order in which evaluation presents them."""
    with state.local_main_process_first():  # one download a machine
        repository = resolve(name, config)
        limit = config.max_eval_samples
        questions = read_questions(repository, split_of(name, config), name, config, need_answers=True, limit=limit)
    return [shuffle_choices(question, EVALUATION_SEED) for question in questions]


def load(config: EvalConfig, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of `--model_path`; `UserError` if they do not belong together."""
    tokenizer = load_tokenizer(str(config.model_path))
    model = load_model(str(config.model_path))
    vocabulary = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocabulary:
        raise UserError(f"{config.model_path}: the tokenizer has {len(tokenizer)} tokens, the model only {vocabulary}")
    return model.to(device), tokenizer


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template, questions: Sequence[Question],
    config: EvalConfig, state: PartialState,
) -> list[ChoiceScores]:  # fmt: skip
    """Scores of all questions on every process, each question scored by one of them."""
    precision = torch.autocast(state.device.type, torch.bfloat16) if config.bf16 else contextlib.nullcontext()
    with precision:
        share = score_share(
            model, tokenizer, template, questions, config.per_device_eval_batch_size, state.device,
            rank=state.process_index, world_size=state.num_processes,
            progress=state.is_main_process and sys.stderr.isatty(),
        )  # fmt: skip
    scored = {index: scores for part in gather_object([share]) for index, scores in part.items()}
    return [scored[index] for index in range(len(questions))]


def result(
    name: str, config: EvalConfig, template: Template, questions: Sequence[Question], scores: Sequence[ChoiceScores]
) -> dict[str, Any]:
    """What is written about a data set. `recorded`, within the configuration, is what the flags do not say."""
    recorded = {
        "prompt_template": template.prompt,
        "choices_template": template.choices,
        "truncated_prompts": sum(score.truncated for score in scores),
    }
    return {
        "dataset": name,
        "split": split_of(name, config),
        "num_examples": len(questions),
        **figures(metrics.accuracy(scores, questions), metrics.accuracy_norm(scores, questions), len(questions)),
        "per_class": metrics.per_class(scores, questions),
        "calibration": metrics.calibration(scores, questions),
        "model_path": config.model_path,
        "config": {**dataclasses.asdict(config), RECORDED: recorded},
        "samples": [
            sample(question, score, prediction)
            for question, score, prediction in zip(questions, scores, metrics.predictions(scores), strict=True)
        ],
    }


def figures(accuracy: float, accuracy_norm: float, count: int) -> dict[str, Any]:
    """Accuracies with the uncertainty of the first."""
    return {
        "accuracy": accuracy,
        "accuracy_norm": accuracy_norm,
        "stderr": metrics.stderr(accuracy, count),
        "confidence_interval": list(metrics.confidence_interval(accuracy, count)),
    }


def sample(question: Question, scores: ChoiceScores, prediction: int) -> dict[str, Any]:
    """One question; scores are log-likelihoods in the order of `choices`."""
    return {
        "id": question.id,
        "question": question.question,
        "choices": list(question.choices),
        "scores": list(scores.log_likelihoods),
        "prediction": question.choices[prediction],
        "answer": question.answer,
        "prediction_index": prediction,
        "answer_index": question.answer_index,
        "correct": prediction == question.answer_index,
    }


def combined(results: Mapping[str, Mapping[str, Any]], config: EvalConfig) -> dict[str, Any]:
    """The data sets side by side, the accuracy over all questions, and the mean of the data sets' accuracies."""
    counts = {name: one["num_examples"] for name, one in results.items()}
    total = sum(counts.values())
    pooled = {
        key: sum(results[name][key] * counts[name] for name in counts) / total for key in ("accuracy", "accuracy_norm")
    }
    return {
        "dataset": config.dataset_name,
        "num_examples": total,
        **figures(pooled["accuracy"], pooled["accuracy_norm"], total),
        "mean_accuracy": sum(one["accuracy"] for one in results.values()) / len(results),
        "model_path": config.model_path,
        "config": dataclasses.asdict(config),
        "datasets": {
            name: {
                key: value for key, value in one.items() if key not in ("samples", "config", "model_path", "dataset")
            }
            for name, one in results.items()
        },
    }


def file_stem(name: str) -> str:
    """`sciq` for sciq, and for data of your own the last part of its name without endings."""
    stem = Path(name).name
    for ending in (".gz", ".jsonl", ".json", ".parquet", ".csv"):
        stem = stem.removesuffix(ending)
    return stem or "dataset"


def write(file: Path, described: Mapping[str, Any]) -> None:
    """Complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, described)
    print(f"written: {file}")


def report(described: Mapping[str, Any], questions: Sequence[Question], scores: Sequence[ChoiceScores]) -> None:
    """A few lines to read at once."""
    low, high = described["confidence_interval"]
    print(
        f"{'data set':<16}{'split':<12}{'questions':>10}{'accuracy':>10}"
        f"{'95 % interval':>18}{'per character':>15}{'chance':>8}"
    )
    print(
        f"{file_stem(described['dataset']):<16}{described['split']:<12}{described['num_examples']:>10}"
        f"{described['accuracy']:>10.1%}{f'{low:.1%} – {high:.1%}':>18}{described['accuracy_norm']:>15.1%}"
        f"{metrics.chance_level(questions):>8.1%}"
    )
    if truncated := sum(score.truncated for score in scores):
        print(f"note: {truncated} prompts were longer than the model's positions and lost their beginning")


if __name__ == "__main__":
    with user_errors_exit_2():
        main(CONFIG)
