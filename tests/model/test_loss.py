"""Laws of the loss: the value and gradients of plain cross-entropy, summed in fp32, without all logits."""

from __future__ import annotations

import types

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import miniqwen.model.loss
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


def places_of(targets: torch.Tensor, drop: bool) -> torch.Tensor | None:
    """Where the targets stand, for a loss that is to leave the other rows out."""
    return (targets.flatten() != IGNORED).nonzero().flatten() if drop else None


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("ignored", [0.0, 0.9])
def test_in_fp32_value_and_gradients_are_those_of_plain_cross_entropy(ignored: float, drop: bool) -> None:
    hidden, weight, targets = example(ignored)
    value, *gradients = exact(hidden, weight, targets)
    loss = cross_entropy_sum(hidden, weight, targets, places_of(targets, drop))
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
        loss = cross_entropy_sum(hidden, weight, targets, places_of(targets, drop))
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
                loss = cross_entropy_sum(hidden, weight, targets, places_of(targets, drop))
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
    places = places_of(targets, drop=True)
    loss = cross_entropy_sum(poisoned, weight, targets, places)
    assert torch.equal(loss, cross_entropy_sum(hidden, weight, targets, places))


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_in_bf16_the_output_matrix_s_gradient_is_as_near_after_65536_rows_as_after_one_chunk(
    held: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed in bf16 over chunks it would be 3 % off. On a CPU with units for bf16, and on one without."""
    monkeypatch.setattr(miniqwen.model.loss, "_multiplied_in", lambda precision, device: held)
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(65_536, 8, generator=generator) + 0.5).bfloat16()
    weight = torch.randn(64, 8, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(8, (65_536,), generator=generator)  # a coherent gradient, where small parts get lost
    _, _, expected = exact(hidden, weight, targets)
    master = weight.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cross_entropy_sum(hidden, master, targets).backward()
    assert relative(master.grad, expected) < 1e-3
    cross_entropy_sum(hidden, weight, targets).backward()
    assert relative(weight.grad, expected) < 5e-3  # it is rounded to bf16 once


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_value_and_gradients_are_as_near(dtype: torch.dtype) -> None:
    device = torch.device("cuda", 0)
    hidden, weight, targets = example(0.3, dtype, (65_536,))
    value, *gradients = exact(hidden.to(device), weight.to(device), targets.to(device))
    moved = [tensor.detach().to(device).requires_grad_() for tensor in (hidden, weight)]
    loss = cross_entropy_sum(*moved, targets.to(device))
    loss.backward()
    assert relative(loss, value) < 1e-5
    for tensor, gradient in zip(moved, gradients, strict=True):
        assert relative(tensor.grad, gradient) < (1e-5 if dtype == torch.float32 else 5e-3)


def test_fp16_keeps_the_gradients_of_small_probabilities() -> None:
    """Most are below fp16's smallest normal number, 6e-5; a CPU multiplies in fp16 too, if slowly."""
    hidden, weight, targets = example(0.0, torch.float16, (8,))
    _, *gradients = exact(hidden, weight, targets)
    multiplied_in, miniqwen.model.loss._multiplied_in = miniqwen.model.loss._multiplied_in, lambda dtype, device: dtype
    try:
        loss = cross_entropy_sum(hidden, weight, targets)
    finally:
        miniqwen.model.loss._multiplied_in = multiplied_in
    (loss * 1024).backward()
    for tensor, gradient in zip((hidden, weight), gradients, strict=True):
        assert relative(tensor.grad, 1024 * gradient) < 2e-3


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, targets = example(0.0)
    loss = cross_entropy_sum(hidden, weight, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_a_chunk_is_128_mib_of_logits_within_256_and_1024_rows() -> None:
    assert [rows_at_once(size) for size in (300, 8_192, 32_768, 65_536, 151_936)] == [1024, 1024, 1024, 512, 256]


@pytest.mark.parametrize(("gib", "rows"), [(15, [16_384, 1_920, 408]), (80, [16_384, 10_240, 2_208])])
def test_a_gpu_s_chunk_is_a_64th_of_its_memory(monkeypatch: pytest.MonkeyPatch, gib: int, rows: list[int]) -> None:
    properties = types.SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert [rows_at_once(size, torch.device("cuda")) for size in (400, 32_768, 151_936)] == rows
