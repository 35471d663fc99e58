"""How questions lie in one row: prompts computed once, each followed by its choices; and where each score is found.

Promises: the places that are scored, the tokens asked of them, and the way back from scores to choices are made here
together and nowhere else. A prompt that is longer than the model's positions loses its beginning, as in
lm-evaluation-harness. Costs: a few numbers a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from miniqwen.errors import UserError
from miniqwen.model.loss import Scored
from miniqwen.questions.protocols import Request


@dataclass(frozen=True)
class Text:
    """A prompt as the model sees it, the choices behind it, and where their scores belong."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    numbers: tuple[tuple[int, ...], ...]  # of the question's choices that are this one: equal ones are scored once

    def __len__(self) -> int:
        return len(self.prompt) + sum(len(choice) - 1 for choice in self.choices)


def texts_of(request: Request, positions: int) -> tuple[Text, ...]:
    """The request within `positions`: choices see the same prompt unless a long one needs more of it cut than others.

    The last token is never an input: one more fits.
    """
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, choice in enumerate(request.choices):
        if len(choice) > positions:
            raise UserError(
                f"question {request.id}: choice {number} has {len(choice)} tokens, the model positions for {positions}"
            )
        numbers.setdefault(choice, []).append(number)
    by_cut: dict[int, list[tuple[int, ...]]] = {}
    for choice in numbers:
        by_cut.setdefault(max(0, len(request.prompt) + len(choice) - positions - 1), []).append(choice)
    return tuple(
        Text(request.prompt[cut:], tuple(choices), tuple(tuple(numbers[choice]) for choice in choices))
        for cut, choices in by_cut.items()
    )


@dataclass(frozen=True)
class ChoiceRow:
    """Texts end to end in one row: a prompt, then its choices without their last tokens, which nothing follows.

    `input_ids`, `position_ids` [1, length]: a choice's positions go on from its prompt's. `lengths`: of each text the
    prompt's tokens and those of each choice that stand in the row. A choice's first token is predicted by the prompt's
    last, for all choices at once, and every other one by the token before it: `scored` holds these places, ascending,
    and the tokens in the order of texts, choices and tokens. `counts`: of each text the tokens of each choice.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: tuple[tuple[int, tuple[int, ...]], ...]
    scored: Scored
    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, texts: Sequence[Text]) -> ChoiceRow:
        ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        which: list[int] = []
        for text in texts:
            ids += text.prompt
            positions += range(len(text.prompt))
            end = len(places)  # the prompt's last token, among the places
            places.append(len(ids) - 1)
            for choice in text.choices:
                which += (end, *range(len(places), len(places) + len(choice) - 1))
                places += range(len(ids), len(ids) + len(choice) - 1)
                ids += choice[:-1]
                positions += range(len(text.prompt), len(text.prompt) + len(choice) - 1)
        asked = [token for text in texts for choice in text.choices for token in choice]
        return cls(
            torch.tensor([ids]), torch.tensor([positions]),
            tuple((len(text.prompt), tuple(len(choice) - 1 for choice in text.choices)) for text in texts),
            Scored(torch.tensor(places), torch.tensor(which), torch.tensor(asked)),
            tuple(tuple(map(len, text.choices)) for text in texts),
        )  # fmt: skip

    def sums(self, log_probabilities: torch.Tensor) -> list[list[float]]:
        """Of each text the sum over each choice's tokens of `log_probabilities` [n], which stand as in `scored`."""
        found = log_probabilities.to("cpu", torch.float64).split([n for counts in self.counts for n in counts])
        sums = iter([part.sum().item() for part in found])
        return [[next(sums) for _ in counts] for counts in self.counts]
