"""Optimizers and schedules: transformers' values, torch's steps, one learning rate, state by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, get_scheduler

from miniqwen.config.schedule import SCHEDULES
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.shards import gathered, restore_optimizer
from miniqwen.errors import UserError
from miniqwen.model.modeling_miniqwen import UNTRAINED, MiniQwenConfig, load_model, new_model, save_model
from miniqwen.training.optimizers import (
    Muon,
    make_optimizer,
    make_schedule,
    orthogonal,
    parameter_groups,
    record_optimizer,
    set_learning_rate,
)

CONFIG = TrainConfig(learning_rate=1e-2, weight_decay=0.1, min_lr_ratio=0.1)


class Tiny(torch.nn.Module):
    """An embedding, two matrices, a norm and a head: what the parameter groups tell apart."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = torch.nn.Embedding(11, 6)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(6, 6, bias=False), torch.nn.Linear(6, 6, bias=True)])
        self.norm = torch.nn.LayerNorm(6)
        self.lm_head = torch.nn.Linear(6, 11, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed_tokens(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden).tanh()
        return self.lm_head(self.norm(hidden)).pow(2).mean()


def steps(model: Tiny, optimizer: torch.optim.Optimizer, count: int) -> None:
    for _ in range(count):
        model(torch.arange(11)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_has_transformers_values(name: str) -> None:
    total, warmup = 50, 7
    factor = make_schedule(dataclasses.replace(CONFIG, lr_scheduler_type=name), total, warmup)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    kwargs = {
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "polynomial": {"lr_end": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 10, "min_lr_ratio": 0.1},
    }.get(name, {})
    scheduler = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=kwargs)
    for step in range(total):
        assert factor(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()
    assert factor(warmup) == 1.0


def test_matrices_decay_and_muon_takes_those_of_the_layers_only() -> None:
    model = Tiny()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        (group["rule"], group["weight_decay"]): {names[id(parameter)] for parameter in group["params"]}
        for group in parameter_groups(model, 0.1, muon=True)
    }
    assert groups == {
        ("muon", 0.1): {"layers.0.weight", "layers.1.weight"},
        ("adamw", 0.1): {"embed_tokens.weight", "lm_head.weight"},
        ("adamw", 0.0): {"layers.1.bias", "norm.weight", "norm.bias"},
    }


def test_muon_with_adamw_steps_as_two_optimizers_do() -> None:
    ours, theirs = Tiny(), Tiny()
    config = dataclasses.replace(CONFIG, optim="muon")
    optimizer = make_optimizer(ours, config)
    optimizer.load_state_dict(optimizer.state_dict())  # as Accelerate does: learning rates must still arrive
    matrices = [layer.weight for layer in theirs.layers]
    rest = [p for p in theirs.parameters() if all(p is not matrix for matrix in matrices)]
    expected = [
        Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in rest if p.ndim >= 2], lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW([p for p in rest if p.ndim < 2], lr=1e-2, weight_decay=0.0),
    ]
    for step in range(4):
        set_learning_rate(optimizer, 1e-2 / (step + 1))
        steps(ours, optimizer, 1)
        theirs(torch.arange(11)).backward()
        for part in expected:
            part.param_groups[0]["lr"] = 1e-2 / (step + 1)
            part.step()
            part.zero_grad()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("shape", [(32, 32), (24, 64), (64, 24), (1, 5)])
def test_a_step_of_muon_goes_where_torchs_does_and_float32_takes_it_more_exactly(shape: tuple[int, int]) -> None:
    """Both against the same iteration in float64."""
    group = {"ns_coefficients": (3.4445, -4.775, 2.0315), "eps": 1e-7, "ns_steps": 5}
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    exact = orthogonal(matrix.double(), group)
    singular = torch.linalg.svdvals(exact)
    assert singular.min() > 0.3
    assert singular.max() < 1.3
    torch.testing.assert_close(orthogonal(matrix, group).double(), exact, rtol=0, atol=2e-5)
    moved = {}
    for kind in (torch.optim.Muon, Muon):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = matrix.clone()
        kind([parameter], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
        moved[kind] = parameter.detach().double() / (-0.2 * max(shape) ** 0.5)
    ours, theirs = ((moved[kind] - exact).norm() / exact.norm() for kind in (Muon, torch.optim.Muon))
    assert ours < 1e-4
    assert ours < theirs < 5e-2


def state_by_name(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in gathered(model, optimizer) if not name.startswith("model.")}


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_state_by_name_restores_the_optimizer_exactly(optim: str) -> None:
    config = dataclasses.replace(CONFIG, optim=optim)
    whole = Tiny()
    optimizer = make_optimizer(whole, config)
    steps(whole, optimizer, 3)
    weights = {name: value.clone() for name, value in whole.state_dict().items()}
    saved = state_by_name(whole, optimizer)
    steps(whole, optimizer, 3)

    resumed = Tiny()
    resumed.load_state_dict(weights)
    again = make_optimizer(resumed, config)
    restore_optimizer(resumed, again, {}, saved)
    steps(resumed, again, 3)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_state_of_another_optimizer_or_model_is_refused() -> None:
    model = Tiny()
    optimizer = make_optimizer(model, CONFIG)
    steps(model, optimizer, 1)
    saved = state_by_name(model, optimizer)
    with pytest.raises(UserError, match="another --optim"):
        restore_optimizer(model, make_optimizer(model, dataclasses.replace(CONFIG, optim="muon")), {}, saved)
    with pytest.raises(UserError, match="does not fit"):
        restore_optimizer(model, optimizer, {}, {"exp_avg.nobody": torch.zeros(1)})


def test_the_model_s_folder_says_by_which_optimizer_it_was_trained_and_muon_behind_adamw_is_told(
    tmp_path: Path,
) -> None:
    model = new_model(MiniQwenConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1), seed=0)
    before = {"muon": UNTRAINED, "adamw": "muon", "muon again": "adamw"}
    for optim, trained_with in before.items():
        save_model(model, tmp_path)
        model = load_model(tmp_path)
        assert model.config.trained_with == trained_with
        told = record_optimizer(model.config, optim.split()[0])
        assert bool(told) == (optim == "muon again")
    assert "with adamw" in told[0]
    del model.config.trained_with  # somebody else's model
    assert record_optimizer(model.config, "muon") == told
    save_model(model, tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)).__name__ == "Qwen3ForCausalLM"


def test_no_optimizer_state_is_pickled() -> None:
    source = "".join(path.read_text() for path in Path(__file__).parents[2].joinpath("miniqwen").rglob("*.py"))
    assert "torch.save" not in source
    assert "torch.load" not in source
    assert "import pickle" not in source
