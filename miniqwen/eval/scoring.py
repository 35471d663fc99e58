"""How likely each choice is: log-likelihoods of the answers' texts behind the prompt.

Promises: a choice's score is the sum of its tokens' log-probabilities behind the prompt, without eos; it does not
depend on the batch size, the order of the questions, what shares a batch or the number of processes (to 1e-5 in fp32).
A prompt that is longer than the model's positions loses its beginning, as in lm-evaluation-harness, and is counted.
Costs: a prompt is computed once for all its choices, which follow it in the same row; questions of like length share a
batch, without padding; the output matrix meets only the places that are scored, so a question whose choices are single
tokens needs one row of logits. A batch has at most `MOST_TOKENS` tokens, or one question.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm import tqdm

from miniqwen.errors import UserError
from miniqwen.eval.choice_rows import ChoiceRow, Text, texts_of
from miniqwen.model.attention import share_prefixes
from miniqwen.questions.protocols import Request

Found = TypeVar("Found")

MOST_TOKENS = 16_384  # in a batch of several questions: hidden states and logits stay small whatever the contexts


def score_rounds(
    model: torch.nn.Module,
    requests: Sequence[Request],
    batch_size: int,
    device: torch.device | str,
    *,
    rank: int = 0,
    world_size: int = 1,
    done: frozenset[int] = frozenset(),
    halve: Callable[[int], None] | None = None,
    progress: str | None = None,
) -> Iterator[dict[int, tuple[float, ...]]]:
    """{index of the question: log-likelihoods (nats) of its choices}, a batch of one rank of several at a time.

    The batches, of `batch_size` questions of like length, are the same whatever the number of ranks and whatever is
    `done` already: a batch is left out when all of it is. The ranks' shares together are all questions, each once.
    Every rank runs the model equally often, as sharded models need: a rank without a batch of its own repeats the last.
    When memory runs out, a batch is halved, and those behind it too; `halve` is told the new size. Without it, as for
    sharded models, whose ranks must keep step, the error ends the run.

    Raises `UserError` for a choice longer than the model's positions, scores that are not numbers, and one question
    alone that does not fit into memory.
    """
    # under DeepSpeed's wrapper, `config` is not the model's
    positions = model_positions(getattr(model, "module", model).config)
    texts = [texts_of(request, positions) for request in requests]
    batches = [batch for batch in _batches(texts, batch_size) if not done.issuperset(batch)]
    parts = Halving(batch_size, halve)

    def log_likelihoods(some: Sequence[int]) -> list[list[float]]:
        return _log_likelihoods(model, [text for index in some for text in texts[index]], device)

    with _evaluating(model):
        for first in tqdm(range(0, len(batches), world_size), desc=progress, unit="batch", disable=progress is None):
            batch = batches[min(first + rank, len(batches) - 1)]
            scored: dict[int, tuple[float, ...]] = {}
            for some, found in parts.of(batch, log_likelihoods, requests):
                sums = iter(found)
                for index in some if first + rank < len(batches) else ():
                    own = list(itertools.islice(sums, len(texts[index])))
                    scored[index] = _put_together(requests[index], texts[index], own)
            yield scored


class Halving:
    """Batches in parts that fit into memory: one that does not is halved, and so are all that come behind it."""

    def __init__(self, size: int, told: Callable[[int], None] | None) -> None:
        """Parts have at most `size` questions; `told` hears of each new size, and without it nothing is halved."""
        self._size, self._told = size, told

    def of(
        self, batch: Sequence[int], call: Callable[[Sequence[int]], Found], requests: Sequence[Request]
    ) -> Iterator[tuple[Sequence[int], Found]]:
        """(part, what `call` gives for it) until the batch is done; `UserError` when one question alone is too much."""
        start = 0
        while start < len(batch):
            some = batch[start : start + self._size]
            try:
                found = call(some)
            except RuntimeError as error:
                if self._told is None or not should_reduce_batch_size(error):
                    raise
                if len(some) == 1:
                    name = requests[some[0]].id
                    raise UserError(f"question {name} alone needs more memory than there is") from None
                self._size = (len(some) + 1) // 2
                self._told(self._size)
                clear_device_cache(garbage_collection=True)
                continue
            start += len(some)
            yield some, found


def is_truncated(request: Request, positions: int) -> bool:
    """Whether the prompt loses its beginning in front of some choice."""
    return len(request.prompt) + max(map(len, request.choices)) > positions + 1


def model_positions(config: Any) -> int:
    """How many tokens a model has positions for."""
    own = getattr(config, "text_config", config)  # of models that see pictures too
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):  # the harness's order
        if isinstance(found := getattr(own, name, None), int):
            return found
    return 2048  # the harness's default


def _batches(texts: Sequence[Sequence[Text]], batch_size: int) -> list[tuple[int, ...]]:
    """Indexes of questions, the longest first, so that memory runs out at the beginning if it does."""
    sizes = [sum(map(len, own)) for own in texts]
    batches: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(texts)), key=lambda index: (-sizes[index], index)):
        if not batches or len(batches[-1]) == batch_size or tokens + sizes[index] > MOST_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += sizes[index]
    return [tuple(batch) for batch in batches]


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout and gradients; the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _log_likelihoods(model: torch.nn.Module, texts: Sequence[Text], device: torch.device | str) -> list[list[float]]:
    """Of each text the sum of log-probabilities of each choice; all texts stand in one row."""
    row = ChoiceRow.of(texts)
    return row.sums(
        model(
            input_ids=row.input_ids.to(device), position_ids=row.position_ids.to(device),
            shared=share_prefixes(row.lengths, device), scored=row.scored.to(device),
        )
    )  # fmt: skip


def _put_together(request: Request, texts: Sequence[Text], sums: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The log-likelihoods of a question's choices, in their order."""
    values = {
        number: value
        for text, found in zip(texts, sums, strict=True)
        for numbers, value in zip(text.numbers, found, strict=True)
        for number in numbers
    }
    bad = [value for value in values.values() if not math.isfinite(value)]
    if bad:
        raise UserError(
            f"question {request.id}: the model gives {bad[0]} for a log-likelihood; its weights, or the precision it "
            "runs in, are broken"
        )
    return tuple(values[number] for number in range(len(request.choices)))
