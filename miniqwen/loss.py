"""What is minimised: the sum of cross-entropies over the targets, without ever holding all logits.

Promises: an fp32 sum over exactly the positions whose target is not -100 (the mean is taken once per update, over all of
its targets: law 2); no targets give 0 with zero gradients. Costs: rows without a target never meet the output matrix; at
most `CHUNK` rows of logits exist at once, so memory does not grow with the vocabulary times the batch.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, linear, linear_cross_entropy
from torch.utils.checkpoint import checkpoint

IGNORED = -100
CHUNK = 256  # rows of logits at once; torch's own choice is a few rows, and many times slower, for large vocabularies
OPTIONS = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)


def cross_entropy_sum(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Σ −log softmax(hidden · weightᵀ)[target] over the targets that are not -100, as an fp32 scalar.

    `hidden` [..., width], `weight` [vocabulary, width], `targets` [...]. In fp32 this is torch's chunked
    `linear_cross_entropy`; in half precision its sum would be half precision too (2,160 for 2,161.33), so there the
    logits are made chunk by chunk in half precision, summed in fp32, and made again in the backward pass.
    """
    wanted = targets != IGNORED
    rows, classes = hidden[wanted], targets[wanted]
    device = hidden.device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if half == torch.float32:
        return linear_cross_entropy(rows, weight, classes, reduction="sum", options=OPTIONS)
    total = rows.sum(dtype=torch.float32) * 0  # keeps the graph when there is nothing to train on
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        total = total + checkpoint(_chunk_loss, rows[part], weight, classes[part], use_reentrant=False)
    return total


def _chunk_loss(rows: torch.Tensor, weight: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return cross_entropy(linear(rows, weight).float(), classes, reduction="sum")
