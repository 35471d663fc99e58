"""Laws of the loss: the value and gradients of plain cross-entropy, summed in fp32, without all logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from miniqwen.model.loss import IGNORED, cross_entropy_sum, rows_at_once

WIDTH, VOCABULARY = 16, 50_000  # at 50,000 entries 671 rows make a chunk
LENGTHS = (2, 350)  # so that the 700 rows are two chunks
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def example(ignored: float, dtype: torch.dtype = torch.float32, lengths: tuple[int, ...] = LENGTHS) -> Tensors:
    """Hidden states [*lengths, 16], an output matrix and targets, a share of them -100."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*lengths, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(VOCABULARY, WIDTH, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, lengths, generator=generator)
    targets[torch.rand(lengths, generator=generator) < ignored] = IGNORED
    return hidden, weight, targets


def exact(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> Tensors:
    """The sum and its gradients by the textbook, in fp64."""
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    loss = cross_entropy((h @ w.T).flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    loss.backward()
    assert h.grad is not None
    assert w.grad is not None
    return loss.detach(), h.grad, w.grad


def relative(found: torch.Tensor | None, expected: torch.Tensor) -> float:
    assert found is not None
    return float((found.detach().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("ignored", [0.0, 0.9])
def test_in_fp32_value_and_gradients_are_those_of_plain_cross_entropy(ignored: float, drop: bool) -> None:
    hidden, weight, targets = example(ignored)
    value, *gradients = exact(hidden, weight, targets)
    loss = cross_entropy_sum(hidden, weight, targets, drop_ignored=drop)
    (loss / 3).backward()  # the loop divides by the number of targets
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert relative(loss, value) < 1e-6
    for tensor, gradient in zip((hidden, weight), gradients, strict=True):
        assert relative(tensor.grad, gradient / 3) < 1e-5
    assert rows_at_once(VOCABULARY) < hidden.shape[0] * hidden.shape[1]


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_in_bf16_the_sum_is_still_fp32_and_gradients_are_as_near_as_bf16_allows(autocast: bool, drop: bool) -> None:
    hidden, weight, targets = example(0.5, torch.float32 if autocast else torch.bfloat16)
    value, *gradients = exact(hidden.bfloat16(), weight.bfloat16(), targets)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = cross_entropy_sum(hidden, weight, targets, drop_ignored=drop)
    loss.backward()
    assert loss.dtype == torch.float32
    assert relative(loss, value) < 1e-4  # a sum kept in bf16 is off by up to 4e-3
    for tensor, gradient in zip((hidden, weight), gradients, strict=True):
        assert relative(tensor.grad, gradient) < 1e-2


def test_no_targets_give_exactly_zero_with_zero_gradients() -> None:
    for drop in (True, False):
        for half in (True, False):
            hidden, weight, targets = example(1.0)
            assert (targets == IGNORED).all()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = cross_entropy_sum(hidden, weight, targets, drop_ignored=drop)
            assert loss.item() == 0
            loss.backward()
            assert hidden.grad is not None
            assert hidden.grad.abs().max() == 0
            assert weight.grad is None or weight.grad.abs().max() == 0


@pytest.mark.parametrize("half", [True, False])
def test_the_logits_of_all_rows_never_exist_at_once(half: bool) -> None:
    hidden, weight, targets = example(0.0, lengths=(1400,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = cross_entropy_sum(hidden, weight, targets)
        loss.backward()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    largest = max(event.nbytes() for event in events)
    chunk = rows_at_once(VOCABULARY) * VOCABULARY * 4
    assert chunk / 2 <= largest <= chunk  # not vacuous: a chunk of logits was seen
    assert largest < targets.numel() * VOCABULARY * 4 / 2


def test_rows_without_a_target_do_not_meet_the_output_matrix() -> None:
    """Infinite hidden states would make the sum infinite or undefined."""
    hidden, weight, targets = example(0.5)
    poisoned = torch.where((targets == IGNORED)[..., None], torch.inf, hidden)
    loss = cross_entropy_sum(poisoned, weight, targets)
    assert torch.equal(loss, cross_entropy_sum(hidden, weight, targets))


def test_a_chunk_is_128_mib_of_logits_within_256_and_1024_rows() -> None:
    assert [rows_at_once(size) for size in (300, 8_192, 32_768, 65_536, 151_936)] == [1024, 1024, 1024, 512, 256]
