"""What is minimised: the sum of cross-entropies over the targets, without ever holding all logits.

Promises: an fp32 sum over exactly the positions whose target is not -100 (the mean is taken once per update, over all
of its targets: law 2); no targets give 0 with zero gradients; in half precision logits, their sums and the output
matrix's gradient are fp32 all the same. Costs: some rows of logits at a time (`rows_at_once`), so memory does not grow
with the vocabulary times the batch; gradients are made with the loss, so that logits are never made twice.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, log_softmax

IGNORED = -100
FP16_SCALE = 4096.0  # lifts the probabilities of a large vocabulary, about 1e-5, out of what fp16 rounds coarsely


def cross_entropy_sum(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, places: torch.Tensor | None = None
) -> torch.Tensor:
    """Σ −log softmax(hidden · weightᵀ)[target] over the targets that are not -100, as an fp32 scalar.

    `hidden` [..., width], `weight` [vocabulary, width], `targets` [...]. `places` [n]: where in the flattened targets
    those stand that are not -100; then the other rows never meet the output matrix. Without, they cost as much as those
    that count, with the same result. The device is not waited for.
    """
    rows, classes = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if places is not None:
        rows, classes = rows.index_select(0, places), classes.index_select(0, places)
    loss: torch.Tensor = _SummedLoss.apply(rows, weight, classes, computes_in(weight), torch.is_grad_enabled())
    return loss


class _SummedLoss(torch.autograd.Function):
    """The loss and, at once, its gradients with respect to `rows` [n, width] and `weight` [vocabulary, width].

    As in Liger-Kernel (Hsu et al., 2024): what is left for the backward pass is a factor. Operands are rounded to
    `precision`, and products are added up in fp32 over all rows.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, classes: torch.Tensor, precision: torch.dtype, trains: bool
    ) -> torch.Tensor:
        at_once, held = rows_at_once(len(weight), weight.device), _multiplied_in(precision, weight.device)
        scale = FP16_SCALE if held == torch.float16 else 1.0
        empty = torch.empty_like if len(rows) else torch.zeros_like  # without rows nothing is written there
        moved = [empty(tensor, dtype=torch.float32) if trains and needed else None
                 for tensor, needed in zip((rows, weight), ctx.needs_input_grad, strict=False)]  # fmt: skip
        total = rows.new_zeros((), dtype=torch.float32)
        with torch.autocast(weight.device.type, enabled=False) if _autocasts(weight.device) else nullcontext():
            rows, matrix = (tensor.to(precision).to(held) for tensor in (rows, weight))
            for start in range(0, len(rows), at_once):
                some, theirs = rows[start : start + at_once], classes[start : start + at_once]
                logits = _product(some, matrix.T)
                total += _softmax_minus_target(logits, theirs)  # which the logits are now
                slope = logits.mul_(scale).to(held) if scale != 1.0 else logits.to(held)
                if moved[0] is not None:
                    moved[0][start : start + at_once] = _product(slope, matrix)
                if moved[1] is None:
                    pass
                elif held == torch.float32:  # beta 0: what stands there before the first rows is not read
                    moved[1].addmm_(slope.T, some, beta=min(start, 1))
                elif start:
                    moved[1] += _product(slope.T, some)
                else:
                    moved[1] = _product(slope.T, some)
                del logits, slope  # before the next ones are made
        ctx.scale = scale
        ctx.save_for_backward(*moved)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # in place: torch refuses a second backward pass then
        factor = slope / ctx.scale
        return (*(None if moved is None else moved.mul_(factor) for moved in ctx.saved_tensors), None, None, None)


def _softmax_minus_target(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The summed cross-entropy of `logits` [n, vocabulary], which become its gradient in place."""
    counted = (classes != IGNORED).to(logits.dtype)
    places = classes.clamp(min=0) + torch.arange(len(classes), device=classes.device) * logits.shape[1]
    logits -= logits.amax(dim=1, keepdim=True)
    chosen = logits.view(-1).index_select(0, places)
    sums = logits.exp_().sum(dim=1)
    logits *= (counted / sums)[:, None]
    logits.view(-1).index_add_(0, places, -counted)
    return ((sums.log() - chosen) * counted).sum()


def _product(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The matrix product, in fp32 whatever its operands are."""
    if one.device.type == "cuda" and one.dtype != torch.float32 and _has_half_products(one.dtype, one.device):
        return torch.mm(one, other, out_dtype=torch.float32)
    return (one @ other).float()


def _has_half_products(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a GPU multiplies in `dtype`, with a sum in fp32."""
    return torch.cuda.get_device_capability(device) >= ((8, 0) if dtype == torch.bfloat16 else (7, 0))


def _multiplied_in(precision: torch.dtype, device: torch.device) -> torch.dtype:
    """What operands in `precision` are held in: without units for it a CPU takes 3 to 40 times as long as in fp32."""
    if device.type == "cpu" and precision != torch.float32:
        capabilities = torch.cpu.get_capabilities()
        if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
            return torch.float32
    return precision


def rows_at_once(vocabulary: int, device: torch.device | None = None) -> int:
    """Rows of logits to hold at once: on a CPU 128 MiB of fp32, but at least 256 and at most 1,024 rows.

    Measured, forward and backward, 2,048 rows of width 128 on 2 CPU cores: plain logits 33 ms (vocabulary 2,048) and
    168 ms (8,192); chunks of 256 rows 27 and 111 ms, of 512 or 1,024 rows 22 and 103 ms. Chunks won at every
    vocabulary tried (2,048 to 151,936), so there is no other path.
    A GPU adds the whole gradient of the output matrix up once a chunk: there a 64th of its memory is one, at most
    16,384 rows (of 151,936 logits about 2,000 on 80 GB).
    """
    if device is not None and device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        return max(256, min(16_384, memory // 64 // (4 * vocabulary) // 8 * 8))
    return max(256, min(1024, 2**25 // vocabulary))


def computes_in(weight: torch.Tensor) -> torch.dtype:
    """The precision that a matrix product with `weight` has here, autocast considered."""
    device = weight.device.type
    if _autocasts(weight.device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type)


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
