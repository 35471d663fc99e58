"""What is minimised: the sum of cross-entropies over the targets, without ever holding all logits.

Promises: an fp32 sum over exactly the positions whose target is not -100 (the mean is taken once per update, over all
of its targets: law 2); no targets give 0 with zero gradients. Costs: a few hundred rows of logits at a time
(`rows_at_once`), so memory does not grow with the vocabulary times the batch; chunks are also the faster way on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy, log_softmax
from torch.utils.checkpoint import checkpoint

IGNORED = -100


def cross_entropy_sum(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, drop_ignored: bool = True
) -> torch.Tensor:
    """Σ −log softmax(hidden · weightᵀ)[target] over the targets that are not -100, as an fp32 scalar.

    `hidden` [..., width], `weight` [vocabulary, width], `targets` [...]. With `drop_ignored`, rows without a target
    never meet the output matrix; a GPU is waited for, because their number must be known. Without, nothing is waited
    for and they cost as much as the others, with the same result.

    In fp32 this is torch's chunked `linear_cross_entropy`. In half precision its sum would be half precision too
    (2,160 for 2,161.33), so there the logits are made chunk by chunk in half precision, summed in fp32, and made again
    in the backward pass.
    """
    rows, classes = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if drop_ignored:
        wanted = classes != IGNORED
        rows, classes = rows[wanted], classes[wanted]
    at_once = rows_at_once(len(weight))
    if computes_in(weight) == torch.float32:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=at_once)
        return linear_cross_entropy(rows, weight, classes, reduction="sum", ignore_index=IGNORED, options=options)
    total = rows.sum(dtype=torch.float32) * 0  # keeps the graph when there is nothing to train on
    for some, theirs in zip(rows.split(at_once), classes.split(at_once), strict=True):
        total = total + checkpoint(_chunk_loss, some, weight, theirs, use_reentrant=False)
    return total


def rows_at_once(vocabulary: int) -> int:
    """Rows of logits to hold at once: 128 MiB of fp32, but at least 256 and at most 1,024 rows.

    Measured, forward and backward, 2,048 rows of width 128 on 2 CPU cores: plain logits 33 ms (vocabulary 2,048) and
    168 ms (8,192); chunks of 256 rows 27 and 111 ms, of 512 or 1,024 rows 22 and 103 ms. Chunks won at every
    vocabulary tried (2,048 to 151,936), so there is no other path. Torch's own choice, a few rows, is many times slower
    for large vocabularies.
    """
    return max(256, min(1024, 2**25 // vocabulary))


def computes_in(weight: torch.Tensor) -> torch.dtype:
    """The precision that a matrix product with `weight` has here, autocast considered."""
    device = weight.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _chunk_loss(rows: torch.Tensor, weight: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return cross_entropy(linear(rows, weight).float(), classes, ignore_index=IGNORED, reduction="sum")


@dataclass(frozen=True, eq=False)
class Scored:
    """Which log-probabilities are wanted: of `tokens` [n], each predicted at place `places[which]` of a row.

    A place [m] counts once, however many tokens are asked of it.
    """

    places: torch.Tensor
    which: torch.Tensor
    tokens: torch.Tensor

    def to(self, device: torch.device | str) -> Scored:
        """A copy on `device`."""
        return Scored(self.places.to(device), self.which.to(device), self.tokens.to(device))


def log_probabilities(
    hidden: torch.Tensor, weight: torch.Tensor, scored: Scored, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """log softmax(hidden[place] · weightᵀ + bias)[token] of each scored token: [n] in fp32, without gradients.

    `hidden` [1, length, width], `weight` [vocabulary, width]; logits are made at the scored places only, some at once.
    """
    rows, at_once = hidden[0].index_select(0, scored.places), rows_at_once(len(weight))
    found = torch.empty(len(scored.tokens), device=hidden.device)
    for start in range(0, len(rows), at_once):
        # this way round a few rows take a CPU 25 ms instead of 39 (8 rows, width 256, vocabulary 151,936)
        logits = linear(weight, rows[start : start + at_once]).T.float()
        if bias is not None:
            logits = logits + bias
        asked = ((scored.which >= start) & (scored.which < start + at_once)).nonzero().flatten()
        own, tokens = scored.which[asked] - start, scored.tokens[asked]
        found[asked] = log_softmax(logits.contiguous(), dim=-1)[own, tokens]
    return found
