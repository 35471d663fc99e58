"""How long the gradient is, and how it is cut to a length, wherever its pieces lie.

Promises: the norm of one process, DDP and FSDP2 is right to 1e-6, whatever the sizes of the tensors, and so the same;
DeepSpeed's own, which sums in fp64, agrees with it. Costs: one pass over the gradients; one all-reduce of a number.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate

# torch's CPU norm adds an fp32 tensor up in a few fp32 sums: 40 million numbers come out 0.25 % short, these 1e-7
PIECE = 2**15


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor, in the same memory; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """The 2-norm of all gradients as one vector: an fp64 scalar on their device, the same on every rank."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    pieces = [piece for gradient in gradients for piece in _pieces(local(gradient))]
    square = torch.nn.utils.get_total_norm(pieces).double().square()
    first = gradients[0] if gradients else None
    if isinstance(first, DTensor):
        summed = [Partial() if placement.is_shard() else Replicate() for placement in first.placements]
        mesh = first.device_mesh
        square = DTensor.from_local(square.to(mesh.device_type), mesh, summed).full_tensor()
    return square.sqrt()


def clip_gradients(parameters: Iterable[torch.nn.Parameter], norm: torch.Tensor, limit: float) -> None:
    """Scale gradients whose norm is `norm` down to `limit`, in place, as `torch.nn.utils.clip_grad_norm_` does."""
    parts = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    factor = (limit / (norm + 1e-6)).clamp(max=1.0).float()
    torch._foreach_mul_(parts, factor.to(parts[0].device))


def _pieces(gradient: torch.Tensor) -> Iterable[torch.Tensor]:
    """A GPU's kernels sum in pieces themselves."""
    return gradient.flatten().split(PIECE) if gradient.device.type == "cpu" else (gradient,)
