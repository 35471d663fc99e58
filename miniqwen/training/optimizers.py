"""How the model moves: parameter groups, AdamW, Muon, and schedules as pure functions from step to factor.

Promises: schedules are transformers' own, value by value; Muon moves the hidden matrices and AdamW everything else,
with one learning rate for both. Costs: what torch's optimizers cost; Muon keeps one moment where AdamW keeps two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from miniqwen.config.training import TrainConfig
from miniqwen.distributed.gradients import local
from miniqwen.distributed.shards import each_whole
from miniqwen.model.modeling_miniqwen import ADAMW, UNTRAINED

MUON_MOMENTUM = 0.95


def parameter_groups(model: torch.nn.Module, weight_decay: float, muon: bool) -> list[dict[str, Any]]:
    """Groups by rule and decay: matrices decay, norms and biases do not; Muon takes the matrices of the layers."""
    groups: dict[tuple[str, float], list[torch.nn.Parameter]] = {}
    embeddings = {id(layer.weight) for layer in model.modules() if isinstance(layer, torch.nn.Embedding)}
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2
        hidden = is_matrix and id(parameter) not in embeddings and not name.startswith("lm_head")
        rule = "muon" if muon and hidden else "adamw"
        groups.setdefault((rule, weight_decay if is_matrix else 0.0), []).append(parameter)
    return [{"params": params, "weight_decay": decay, "rule": rule} for (rule, decay), params in groups.items()]


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al., 2024), which orthogonalises in bfloat16; on a CPU here in float32.

    Few CPUs have units for bfloat16: without them its matrix products take ten times as long, and most of an update.
    Under FSDP2 each matrix is made whole on one rank only, and all ranks work at the same time.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            moved.sort(key=torch.Tensor.numel)  # those who work at the same time have as much to do
            at_once = moved[0].device_mesh.size() if moved and isinstance(moved[0], DTensor) else 1
            for start in range(0, len(moved), at_once):
                some = moved[start : start + at_once]
                for parameter, direction in zip(some, self._directions(some, group), strict=True):
                    own = local(parameter)
                    own.mul_(1 - group["lr"] * group["weight_decay"])
                    own.add_(direction, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))

    def _directions(self, parameters: Sequence[torch.Tensor], group: dict[str, Any]) -> list[torch.Tensor]:
        """This rank's part of the orthogonal direction of each, by Nesterov momentum."""
        wanted = []
        for parameter in parameters:
            gradient, state = parameter.grad, self.state[parameter]
            assert gradient is not None
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            moment = local(state["momentum_buffer"]).lerp_(local(gradient), 1 - group["momentum"])
            direction = local(gradient).lerp(moment, group["momentum"])
            wanted.append(direction if direction.device.type == "cpu" else direction.bfloat16())
        if isinstance(parameters[0], DTensor):
            return each_whole(wanted, parameters, lambda matrix: orthogonal(matrix, group))
        return [orthogonal(matrix, group) for matrix in wanted]


def orthogonal(matrix: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """The nearest orthogonal matrix to `matrix` [rows, columns], about: singular values between 0.5 and 1.5.

    A quintic Newton-Schulz iteration, with the coefficients and the number of steps of torch's Muon.
    """
    a, b, c = group["ns_coefficients"]
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.T if tall else matrix
    found = found / found.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.T if tall else found


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for groups with rule "muon", AdamW for the others, as one optimizer.

    `match_rms_adamw` (Liu et al., 2025) scales Muon's step to AdamW's size, so that one learning rate serves both.
    Both halves work on this object's groups and state, so that learning rates and checkpoints see a single optimizer.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, fused: bool = False
    ) -> None:
        super().__init__(list(groups), {"lr": lr})
        muon, adamw = self._groups("muon"), self._groups("adamw")
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if muon:
            self._parts["muon"] = Muon(muon, lr=lr, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw")
        if adamw:
            self._parts["adamw"] = torch.optim.AdamW(adamw, lr=lr, betas=betas, eps=eps, fused=fused)
        self.param_groups = [group for part in self._parts.values() for group in part.param_groups]

    def _groups(self, rule: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["rule"] == rule]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for rule, part in self._parts.items():
            # linked here and not once: `load_state_dict` (Accelerate calls it) replaces groups and state
            part.param_groups, part.state = self._groups(rule), self.state
            part.step()


def make_optimizer(model: torch.nn.Module, config: TrainConfig, device_type: str = "cpu") -> torch.optim.Optimizer:
    """The optimizer that `--optim` names, over the parameters of `model`; on a GPU AdamW is torch's fused one."""
    groups = parameter_groups(model, config.weight_decay, muon=config.optim == "muon")
    betas, fused = (config.adam_beta1, config.adam_beta2), device_type == "cuda"
    if config.optim == "muon":
        return MuonWithAdamW(groups, config.learning_rate, betas, config.adam_epsilon, fused)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_epsilon, fused=fused)


def record_optimizer(model_config: Any, optim: str) -> list[str]:
    """Say in config.json what trains the model from here on; and to the user, if that is known to go badly."""
    before = getattr(model_config, "trained_with", ADAMW)
    model_config.trained_with = optim
    if optim != "muon" or before in ("muon", UNTRAINED):
        return []
    return [f"the model was trained with {before}: Muon goes on from there worse than AdamW (arXiv 2605.10468)"]


def make_schedule(config: TrainConfig, total_steps: int, warmup_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate for update `step` (from 0), as transformers' scheduler of that name has it.

    The scheduler itself is not kept: its function is pure, so that resuming needs no scheduler state.
    """
    kwargs: dict[str, Any] = {}
    if config.lr_scheduler_type == "cosine_with_min_lr":
        kwargs = {"min_lr_rate": config.min_lr_ratio}
    elif config.lr_scheduler_type == "polynomial":
        kwargs = {"lr_end": config.min_lr_ratio}
    elif config.lr_scheduler_type == "warmup_stable_decay":
        decay = min(max(1, round(config.decay_ratio * total_steps)), total_steps - warmup_steps)
        kwargs = {"num_decay_steps": decay, "min_lr_ratio": config.min_lr_ratio}
    throwaway = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(
        config.lr_scheduler_type, throwaway, warmup_steps, total_steps, scheduler_specific_kwargs=kwargs
    )
    factor: Callable[[int], float] = scheduler.lr_lambdas[0]
    return factor


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Before the backward pass, because some backends step inside it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
