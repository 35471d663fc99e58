"""What the model writes when it is asked.

Promises: greedy, or sampled by a seed that gives the same texts on any number of processes with the same batch size;
stops at the end token. Costs: batches of prompts of like length, padded on the left, with a cache of keys and
values; memory grows with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        torch.manual_seed(config.seed * 1_000_003 + some[0])
        return _generate(model, tokenizer, [prompts[index] for index in some], config, device)

    for batch in tqdm(mine, desc=progress, unit="batch", disable=progress is None):
        found = parts.of(batch, generated, requests)
        yield {index: text for some, texts in found for index, text in zip(some, texts, strict=True)}


@torch.no_grad()
def _generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], config: EvalConfig,
    device: torch.device | str,
) -> list[str]:  # fmt: skip
    length, end = max(map(len, prompts)), tokenizer.eos_token_id
    ids = torch.tensor([[end] * (length - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    seen = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    ends = end_tokens(model, tokenizer)
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if config.do_sample:
        how = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": config.top_k}
    model.eval()
    written = model.generate(
        input_ids=ids, attention_mask=seen, max_new_tokens=config.max_new_tokens, eos_token_id=sorted(ends),
        pad_token_id=end, **how,
    )[:, length:]  # fmt: skip
    return [tokenizer.decode(_until(row, ends), skip_special_tokens=True).strip() for row in written.tolist()]


def _until(row: list[int], ends: set[int]) -> list[int]:
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
