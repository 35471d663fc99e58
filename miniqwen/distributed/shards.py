"""How parameters and optimizer state, spread over ranks by a backend, come together by name, and go back.

Promises: the same names and whole fp32 tensors whatever the backend (one process, DDP, FSDP2, ZeRO-1/2/3) and the
number of processes; what `gathered` took, `restore_optimizer` gives to any other (law 3). In half precision the fp32
masters are taken. Costs: one collective a tensor; one parameter at a time is whole in memory.
Source of the DeepSpeed part: its tensor-fragment API (`safe_get_full_fp32_param` and the like).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from miniqwen.errors import UserError

COUNTER = "step"  # AdamW's own count of updates: a scalar for each parameter
Tensors = Mapping[str, torch.Tensor]


def is_engine(model: Any) -> bool:
    """Whether DeepSpeed wraps the model."""
    return hasattr(model, "zero_optimization_stage")


def inner(model: Any) -> torch.nn.Module:
    """The model under DDP's or DeepSpeed's wrapper (FSDP2 has none)."""
    found: torch.nn.Module = getattr(model, "module", model)
    return found


def reshard(model: torch.nn.Module) -> None:
    """Put FSDP2's shards back as the parameters, where a forward pass without a backward pass has left whole ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_parameters(model: torch.nn.Module) -> int:
    """How many parameters this rank holds between two updates."""
    total = 0
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            total += parameter.to_local().numel()
        else:
            total += getattr(parameter, "ds_tensor", parameter).numel()
    return total


def each_whole(
    parts: Sequence[torch.Tensor], matrices: Sequence[Any], make: Callable[[torch.Tensor], torch.Tensor]
) -> list[torch.Tensor]:
    """This rank's rows of `make(matrix)` of each matrix of which it has the rows `parts`.

    They lie on the ranks as FSDP2's parameters `matrices`, which are as many as there are ranks, or fewer. Every matrix
    is whole on one rank alone, which does the work for all: its rows travel there and back once, in two collectives
    for all of the matrices together. `make` keeps the shape.
    """
    mesh = matrices[0].device_mesh
    group, world, rank = mesh.get_group(), mesh.size(), mesh.get_local_rank()
    sent = [part.numel() for part in parts] + [0] * (world - len(parts))
    mine = matrices[rank] if rank < len(matrices) else None
    rows, columns = (0, 0) if mine is None else mine.shape
    chunk = -(-rows // world)
    received = [columns * max(0, min(chunk, rows - other * chunk)) for other in range(world)]
    outgoing = torch.cat([part.flatten() for part in parts]).to(mesh.device_type)
    incoming = outgoing.new_empty(sum(received))
    dist.all_to_all_single(incoming, outgoing, received, sent, group=group)
    if mine is not None:
        incoming = make(incoming.view(rows, columns)).flatten()
    dist.all_to_all_single(outgoing, incoming.contiguous(), sent, received, group=group)
    return [made.view(part.shape).to(part.device) for made, part in zip(outgoing.split(sent), parts, strict=False)]


def gathered(model: Any, optimizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """("model.NAME", weight), then ("KEY.NAME", state) for each parameter, whole, fp32, on the CPU.

    Every rank has to go through it to the end. `model` and `optimizer` are the prepared ones; without an optimizer,
    only the weights come.
    """
    if is_engine(model):
        yield from _gathered_from_engine(model, with_state=optimizer is not None)
        return
    reshard(model)
    states = _raw(optimizer).state if optimizer is not None else {}
    for name, parameter in inner(model).named_parameters():
        yield f"model.{name}", _whole(parameter)
        for key, value in states.get(parameter, {}).items():
            yield f"{key}.{name}", _whole(value)


def restore_optimizer(model: Any, optimizer: Any, weights: Tensors, state: Tensors) -> None:
    """Give prepared `model` and `optimizer` the state that `gathered` took, {"KEY.NAME": tensor}, read as it is needed.

    `weights` {NAME: tensor} become the fp32 masters where there are some beside the model's own half precision.
    Raises `UserError` for state of a parameter that the model does not have, or of another optimizer.
    """
    named = dict(inner(model).named_parameters())
    keys: dict[str, list[str]] = {}
    for full_name in state:
        key, _, name = full_name.partition(".")
        if name not in named:
            raise UserError(f"the checkpoint's optimizer state of {name} does not fit the model")
        keys.setdefault(name, []).append(key)
    _check_rules(optimizer, named, keys)
    if is_engine(model):
        _restore_engine(model, named, weights, state, keys)
        return
    for name, parameter in named.items():
        values = {key: state[f"{key}.{name}"] for key in keys.get(name, [])}
        for value in values.values():
            if value.ndim and value.shape != parameter.shape:
                raise UserError(f"the checkpoint's optimizer state of {name} does not fit the model")
        if values:
            fused = _group_of(optimizer, parameter).get("fused")
            state_here = {key: _spread(value, parameter, bool(fused)) for key, value in values.items()}
            _raw(optimizer).state[parameter] = state_here


def restore_masters(model: Any, weights: Tensors) -> None:
    """Give the fp32 masters the exact `weights` {NAME: tensor} of a new run: DeepSpeed has rounded them by then."""
    if is_engine(model):
        _set_engine(model, dict(inner(model).named_parameters()), lambda name: {"": weights[name]})


def _raw(optimizer: Any) -> Any:
    """torch's optimizer under Accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _group_of(optimizer: Any, parameter: torch.Tensor) -> Mapping[str, Any]:
    groups = _raw(optimizer).param_groups
    return next((group for group in groups if any(parameter is one for one in group["params"])), {})


def _check_rules(optimizer: Any, named: Tensors, keys: Mapping[str, list[str]]) -> None:
    for name, found in keys.items():
        group = _group_of(optimizer, named[name])
        muon = group.get("rule") == "muon" and "momentum" in group
        if ("momentum_buffer" if muon else "exp_avg") not in found:
            raise UserError("the checkpoint was made with another --optim; resume with the same one")


def _whole(value: torch.Tensor) -> torch.Tensor:
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.detach().to("cpu", torch.float32).contiguous()


def _spread(value: torch.Tensor, parameter: torch.Tensor, fused: bool) -> torch.Tensor:
    """`value` as the backend holds `parameter`; torch wants counters (AdamW's `step`) on the CPU, unless `fused`."""
    if not value.ndim:
        return value.to(parameter.device) if fused else value
    if isinstance(parameter, DTensor):
        return distribute_tensor(value.to(parameter.to_local().device), parameter.device_mesh, parameter.placements)
    return value.to(parameter.device)


def _gathered_from_engine(engine: Any, with_state: bool) -> Iterator[tuple[str, torch.Tensor]]:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    counts = [state[COUNTER] for state in engine.optimizer.optimizer.state.values() if COUNTER in state]
    if with_state and counts:
        _link(engine)
    for name, parameter in engine.module.named_parameters():
        yield f"model.{name}", _whole(safe_get_full_fp32_param(parameter))
        if with_state and counts:
            for key in ("exp_avg", "exp_avg_sq"):
                yield f"{key}.{name}", _whole(safe_get_full_optimizer_state(parameter, key))
            yield f"{COUNTER}.{name}", torch.tensor(float(max(counts)))


def _link(engine: Any) -> None:
    """DeepSpeed 0.19.8 links the moments of the first parameter group only when there are several; link them all."""
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _restore_engine(engine: Any, named: Tensors, weights: Tensors, state: Tensors, keys: Mapping[str, Any]) -> None:
    if not state:
        restore_masters(engine, weights)
        return
    _prime(engine)
    _link(engine)
    _set_engine(
        engine, named,
        lambda name: {"": weights[name], **{key: state[f"{key}.{name}"] for key in keys[name] if key != COUNTER}},
    )  # fmt: skip
    count = max(float(state[f"{COUNTER}.{name}"]) for name in keys)
    for values in engine.optimizer.optimizer.state.values():
        if COUNTER in values:  # torch counts in a tensor, DeepSpeed's CPU Adam in an int
            counter = values[COUNTER]
            values[COUNTER] = torch.full_like(counter, count) if torch.is_tensor(counter) else int(count)


def _prime(engine: Any) -> None:
    """One update that changes nothing: DeepSpeed makes its moments in the first one."""
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    token = torch.zeros((1, 2), dtype=torch.int64, device=engine.device)
    engine.set_gradient_accumulation_boundary(is_boundary=True)
    engine.backward(engine(input_ids=token, targets=token) * 0.0)
    engine.step()


def _set_engine(engine: Any, named: Tensors, values: Callable[[str], Tensors]) -> None:
    """Write this rank's share of each parameter's `values(NAME)`: {"": master weight, "KEY": moment}."""
    from deepspeed.utils import (
        safe_set_full_fp32_param,
        safe_set_full_optimizer_state,
        safe_set_local_fp32_param,
        safe_set_local_optimizer_state,
    )

    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for name, parameter in named.items():
        for key, whole in values(name).items():
            value = whole.to(engine.device, torch.float32)
            if engine.zero_optimization_stage() < 3:
                if key:
                    safe_set_full_optimizer_state(parameter, value, key)
                else:
                    safe_set_full_fp32_param(parameter, value)
                continue
            # the whole-tensor calls fail where the parameter cannot be divided by the number of ranks
            size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = torch.nn.functional.pad(value.flatten(), (0, size * world - value.numel()))
            mine = padded[size * rank : size * (rank + 1)]
            if key:
                safe_set_local_optimizer_state(parameter, mine, key)
            else:
                safe_set_local_fp32_param(parameter, mine)
