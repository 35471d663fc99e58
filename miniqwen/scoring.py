"""How likely each choice is: log-likelihoods of the answers' texts after the prompt.

Promises: a choice's score is the sum of log-probabilities of " " + choice after the prompt, without eos, encoded as in
training; it does not depend on the batch size, the order of the questions or the number of processes (to 1e-5 in fp32).
A prompt that is longer than the model's positions loses its beginning, as in lm-evaluation-harness, and is counted.
Costs: every choice is run with its own copy of the prompt, choices of like length together; the output matrix is
applied to the completions' tokens only, some of them at a time, so that a large vocabulary needs little memory.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from miniqwen.config import UserError
from miniqwen.loss import IGNORED
from miniqwen.qa import Example, Template, encode_example
from miniqwen.questions import Question


@dataclass(frozen=True)
class ChoiceScores:
    """Of one question, in the order of its choices: log-likelihoods (nats) and lengths of the texts in characters."""

    log_likelihoods: tuple[float, ...]
    characters: tuple[int, ...]
    truncated: bool = False  # the prompt lost its beginning


def score_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    questions: Sequence[Question],
    batch_size: int,
    device: torch.device | str,
) -> list[ChoiceScores]:
    """Scores of all questions, in their order; `batch_size` questions are run at once.

    Raises `UserError` for a completion that is longer than the model's positions and for scores that are not numbers.
    """
    scored = score_share(model, tokenizer, template, questions, batch_size, device)
    return [scored[index] for index in range(len(questions))]


def score_share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    questions: Sequence[Question],
    batch_size: int,
    device: torch.device | str,
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> dict[int, ChoiceScores]:
    """{index of the question: its scores} for the batches of one rank of several: whole batches, the same ones whatever
    the number of ranks. The ranks' shares together are all questions, each once.

    Every rank runs the model equally often, as sharded models need: a rank without a batch of its own repeats the last.
    """
    # under DeepSpeed's wrapper, `config` is not the model's
    positions = getattr(model, "module", model).config.max_position_embeddings
    encoded = [_encode(tokenizer, template, question, positions) for question in questions]
    longest = [max(len(example.input_ids) for example in examples) for examples, _ in encoded]
    by_length = sorted(range(len(questions)), key=lambda index: (-longest[index], index))
    batches = [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
    scored = {}
    with _evaluating(model):
        for first in tqdm(range(0, len(batches), world_size), desc="scoring", unit="batch", disable=not progress):
            batch = batches[min(first + rank, len(batches) - 1)]
            sums = iter(_log_likelihoods(model, [example for index in batch for example in encoded[index][0]], device))
            for index in batch if first + rank < len(batches) else ():
                question, (examples, truncated) = questions[index], encoded[index]
                values = tuple(next(sums) for _ in examples)
                if not all(map(math.isfinite, values)):
                    raise UserError(f"question {question.id}: the model gives {values[0]} for a log-likelihood")
                scored[index] = ChoiceScores(values, tuple(map(len, question.choices)), truncated)
    return scored


def _encode(
    tokenizer: PreTrainedTokenizerBase, template: Template, question: Question, positions: int
) -> tuple[list[Example], bool]:
    """One example a choice, and whether a prompt had to be cut. The last token is never an input: one more fits."""
    prompt, where = template.render(question), f"question {question.id}"
    completions = [template.completion(choice) for choice in question.choices]
    examples = [encode_example(tokenizer, prompt, completion, where, eos=False) for completion in completions]
    truncated = any(len(example.input_ids) > positions + 1 for example in examples)
    try:
        return [example.truncated(positions + 1) for example in examples], truncated
    except ValueError as error:
        raise UserError(f"{where}: {error}, all that the model has positions for") from None


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _log_likelihoods(model: PreTrainedModel, examples: Sequence[Example], device: torch.device | str) -> list[float]:
    """Sum of log-probabilities of each completion.

    Inputs are padded on the right to `[examples, length]`: with causal attention no real token sees the padding, so no
    mask is needed. Targets are the completions' tokens, each at the place that predicts it.
    """
    length = max(len(example.input_ids) for example in examples) - 1
    inputs = torch.zeros(len(examples), length, dtype=torch.long)
    targets = torch.full((len(examples), length), IGNORED)
    for number, example in enumerate(examples):
        ids = torch.tensor(example.input_ids)
        inputs[number, : len(ids) - 1] = ids[:-1]
        first = max(example.prompt_length, 1)  # nothing predicts the first token of an empty prompt
        targets[number, first - 1 : len(ids) - 1] = ids[first:]
    sums: list[float] = model(input_ids=inputs.to(device), targets=targets.to(device), per_row=True).tolist()
    return sums
