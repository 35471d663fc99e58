"""What the model writes when it is asked.

Promises: greedy, or sampled by a generator of each question's own, so that its text depends on the seed and its number
alone, not on batches and processes; stops at the end token or a `--stop` text. Costs: batches of prompts of like
length, padded on the left, with a cache of keys and values; memory grows with the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from miniqwen.config.evaluating import EvalConfig
from miniqwen.errors import UserError
from miniqwen.eval.causal_models import end_tokens
from miniqwen.eval.scoring import Halving, model_positions
from miniqwen.questions.protocols import Request


def generate_rounds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    config: EvalConfig,
    device: torch.device | str,
    *,
    rank: int = 0,
    world_size: int = 1,
    done: frozenset[int] = frozenset(),
    halve: Callable[[int], None],
    progress: str | None = None,
) -> Iterator[dict[int, str]]:
    """{index of the question: the text behind its prompt}, batch by batch of one rank; see `scoring.score_rounds`."""
    positions = model_positions(model.config)
    room = positions - config.max_new_tokens
    if room < 1:
        raise UserError(f"--max_new_tokens {config.max_new_tokens}: the model has positions for {positions}")
    prompts = [request.prompt[-room:] for request in requests]
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    size = config.per_device_eval_batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    mine = [batch for batch in batches if not done.issuperset(batch)][rank::world_size]
    parts = Halving(size, halve)

    def generated(some: Sequence[int]) -> list[str]:
        drawn = [Drawn(config, index) for index in some] if config.do_sample else []
        return _generate(model, tokenizer, [prompts[index] for index in some], config, device, drawn)

    for batch in tqdm(mine, desc=progress, unit="batch", disable=progress is None):
        found = parts.of(batch, generated, requests)
        yield {index: text for some, texts in found for index, text in zip(some, texts, strict=True)}


@torch.no_grad()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], config: EvalConfig,
    device: torch.device | str, drawn: Sequence[Drawn],
) -> list[str]:  # fmt: skip
    length, end = max(map(len, prompts)), tokenizer.eos_token_id
    ids = torch.tensor([[end] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    ends = end_tokens(model, tokenizer)
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if drawn:
        how["logits_processor"] = LogitsProcessorList([*_sampling(config), Noise(drawn)])
    if config.stops:
        how |= {"stop_strings": list(config.stops), "tokenizer": tokenizer}
    model.eval()
    written = model.generate(
        input_ids=ids, attention_mask=seen, max_new_tokens=config.max_new_tokens, eos_token_id=sorted(ends),
        pad_token_id=end, **how,
    )[:, length:]  # fmt: skip
    texts = (tokenizer.decode(_until(row, ends), skip_special_tokens=True) for row in written.tolist())
    return [_before(text, config.stops).strip() for text in texts]


def _before(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


class Drawn:
    """The random numbers of one question, whatever else is in its batch."""

    def __init__(self, config: EvalConfig, number: int) -> None:
        seed = hashlib.sha256(f"{config.seed}:{number}".encode()).digest()
        self._generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))

    def noise(self, size: int) -> torch.Tensor:
        """[size] of a standard Gumbel distribution."""
        return -torch.empty(size).exponential_(generator=self._generator).log()


class Noise(LogitsProcessor):
    """Scores with Gumbel noise, of which the largest is a sample of their softmax (Maddison et al. 2014,
    arXiv:1411.0030): what is greedy behind it samples, each row by its own generator."""

    def __init__(self, drawn: Sequence[Drawn]) -> None:
        self._drawn = drawn

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        noise = torch.stack([one.noise(scores.shape[-1]) for one in self._drawn])
        return scores + noise.to(scores.device, scores.dtype)


def _sampling(config: EvalConfig) -> list[LogitsProcessor]:
    """What takes part in a sample, in the library's order."""
    found: list[LogitsProcessor] = [TemperatureLogitsWarper(float(config.temperature))]
    if config.top_k:
        found.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        found.append(TopPLogitsWarper(config.top_p))
    return found


def _until(row: list[int], ends: set[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
