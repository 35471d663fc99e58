"""What the model writes when it is asked, and which choice that is.

Promises: greedy, or sampled by a seed that gives the same texts on any number of processes with the same batch size;
stops at the end token. An answer is looked for by rules of plain patterns, in order; a text in which none finds one is
counted as such, not guessed. Costs: batches of prompts of like length, padded on the left, with a cache of keys and
values; memory grows with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import regex
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from miniqwen.config.evaluating import EvalConfig
from miniqwen.errors import UserError
from miniqwen.eval.causal_models import end_tokens
from miniqwen.eval.metrics import normalised_answer
from miniqwen.eval.scoring import Halving, model_positions
from miniqwen.questions.choices import LABELS
from miniqwen.questions.protocols import Request
from miniqwen.questions.rows import Question

# A letter by itself: at the beginning, in brackets, or behind "answer is" and "answer:"; "A dog" names no choice.
LETTER = regex.compile(r"(?:^\s*|\(|(?i:\banswer(?:\s+is)?)\s*:?\s*\(?)([A-Z])(?=\s*(?:[.):,]|$|\n))")


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


def extract(text: str, question: Question, rules: Sequence[str]) -> tuple[int | None, str | None]:
    """(index of the choice that `text` names, the rule that found it); (None, None) where no rule finds one.

    letter: A, B., (C), "the answer is D", of the letters in the order of presentation. text: a choice's words stand in
    the text; the one that comes first, and of those that begin at one place the longest. last_line: the last line that
    is not empty is a choice, but for case, punctuation and articles, or its letter.
    """
    for rule in rules:
        index = RULES[rule](text, question.choices)
        if index is not None:
            return index, rule
    return None, None


def _letter(text: str, choices: Sequence[str]) -> int | None:
    found = (LABELS.index(match[1]) for match in LETTER.finditer(text))
    return next((index for index in found if index < len(choices)), None)


def _choice_text(text: str, choices: Sequence[str]) -> int | None:
    places = []
    for index, choice in enumerate(choices):
        match = regex.search(rf"(?<!\w){regex.escape(choice.strip())}(?!\w)", text, regex.IGNORECASE)
        if match:
            places.append((match.start(), -len(choice), index))
    return min(places)[2] if places else None


def _last_line(text: str, choices: Sequence[str]) -> int | None:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    said = normalised_answer(lines[-1])
    same = [index for index, choice in enumerate(choices) if normalised_answer(choice) == said]
    return same[0] if same else _letter(lines[-1], choices)


RULES = {"letter": _letter, "text": _choice_text, "last_line": _last_line}
