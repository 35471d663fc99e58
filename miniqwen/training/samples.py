"""What the model writes at an evaluation: a few texts that it goes on with, shown beside the loss.

Promises: the same texts at every evaluation, on every backend; nothing random is drawn, so the training is what it
would be without; no more positions at once than the evaluation itself. Costs: `SAMPLE_TOKENS` forward passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from miniqwen.config.training import TrainConfig
from miniqwen.errors import UserError
from miniqwen.files import encodable
from miniqwen.model.continuation import continued
from miniqwen.model.tokenization_miniqwen import encode_beginning

SAMPLE_TOKENS = 24
SHOWN_QUESTIONS = 4  # of the validation questions, where no prompts are given
BEGINNINGS = ("The opposite of hot is", "The capital of France is", "Water is made of", "In this paper, we")


@dataclass(frozen=True)
class SamplePrompt:
    """A text to go on with, its tokens, and what would be right, where that is known. `shown` stands for it on screen.

    `given`: by the user, who is told when the model has no positions for it.
    """

    shown: str
    text: str
    input_ids: tuple[int, ...]
    given: bool
    answer: str | None = None

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, shown: str, text: str, given: bool, answer: str | None = None
    ) -> SamplePrompt:
        """Its texts are such as files and trackers can hold."""
        ids = encode_beginning(tokenizer, text)
        return cls(encodable(shown), encodable(text), tuple(ids), given, None if answer is None else encodable(answer))


def fitting(samples: Sequence[SamplePrompt], positions: int) -> list[SamplePrompt]:
    """Those that leave the model positions to go on; raises `UserError` for one of the user's that does not."""
    for sample in samples:
        if sample.given and len(sample.input_ids) + SAMPLE_TOKENS > positions:
            raise UserError(
                f"--sample_prompts: {sample.text[:40]!r} has {len(sample.input_ids)} tokens; of the model's "
                f"{positions} positions {SAMPLE_TOKENS} are for what it writes"
            )
    return [sample for sample in samples if len(sample.input_ids) + SAMPLE_TOKENS <= positions]


def completions(
    model: torch.nn.Module, samples: Sequence[SamplePrompt], tokenizer: PreTrainedTokenizerBase, config: TrainConfig,
    device: torch.device,
) -> Iterator[list[str]]:  # fmt: skip
    """What the model writes behind each of `samples`, part by part; every process has to take all parts."""
    room = config.per_device_eval_batch_size * config.length
    prompts = [sample.input_ids for sample in samples]
    for part in continued(model, prompts, SAMPLE_TOKENS, tokenizer.eos_token_id, device, room):
        yield [tokenizer.decode(row, skip_special_tokens=True) for row in part]
