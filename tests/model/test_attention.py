"""Documents in a row: exactly apart, equal to a dense mask, in every mode the layers run in."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import transformers.integrations.sdpa_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2Config

import miniqwen.model.attention
from miniqwen.model.attention import (
    Grouped,
    VariableLength,
    cumulative_lengths,
    document_attention,
    has_flash,
    lay_out,
    repeats_keys,
    share_prefixes,
)
from miniqwen.model.modeling_miniqwen import MiniQwen2ForCausalLM, MiniQwenConfig, MiniQwenForCausalLM, compile_layers

SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True, "initializer_range": 0.2,
    "eos_token_id": 0,
}  # fmt: skip
LENGTHS = ([1, 2, 60, 1], [64], [16, 17, 31], [40, 24], [3] * 21 + [1], [64])  # rows of 64 tokens


CPU = torch.device("cpu")


def cut(rows: list[list[int]]) -> np.ndarray:
    """`cu_seqlens` of rows of documents with these lengths."""
    lengths = [length for row in rows for length in row]
    return cumulative_lengths(np.cumsum([0, *lengths[:-1]]), sum(lengths))


def mask(ends: np.ndarray, rows: int, length: int) -> torch.Tensor:
    """The same as a dense mask [rows, 1, length, length]: the definition."""
    number = torch.searchsorted(torch.from_numpy(ends), torch.arange(rows * length), right=True).view(rows, length)
    return ((number[:, :, None] == number[:, None, :]) & torch.ones(length, length).tril().bool())[:, None]


def heads(rows: int, length: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Query of 4 heads, key and value of 2, as the layers make them."""
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, count, length, 8, generator=drawn).to(dtype).requires_grad_() for count in (4, 2, 2)]


def attended(parts: list[torch.Tensor], documents: Any) -> torch.Tensor:
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    return document_attention(module, *parts, documents, scaling=0.3)[0]  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.integers(1, 40), min_size=1, max_size=30).filter(lambda row: sum(row) <= 150), min_size=1,
        max_size=4,
    )
)  # fmt: skip
def test_any_lengths_give_what_a_dense_mask_gives_and_the_same_gradients(rows: list[list[int]]) -> None:
    length = max(map(sum, rows))
    rows = [row + [length - sum(row)] * (sum(row) < length) for row in rows]
    ends = cut(rows)
    documents = lay_out(ends, len(rows), length, CPU)
    ours, dense = heads(len(rows), length), heads(len(rows), length)
    found = attended(ours, documents)
    expected = scaled_dot_product_attention(
        dense[0], *(part.repeat_interleave(2, 1) for part in dense[1:]), attn_mask=mask(ends, len(rows), length),
        scale=0.3,
    ).transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * noise).sum().backward()
    (expected * noise).sum().backward()
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_whole_rows_take_the_plain_path_and_others_are_grouped_with_little_filling() -> None:
    assert lay_out(cut([[64], [64]]), 2, 64, CPU) is None
    documents = lay_out(cut([[100, 156], [110, 146]]), 2, 256, CPU)
    assert isinstance(documents, Grouped)
    lengths = np.random.default_rng(0).integers(1, 1000, 400)
    documents = lay_out(cut([lengths.tolist()]), 1, int(lengths.sum()), CPU)
    assert isinstance(documents, Grouped)
    assert sum(group.queries.numel() for group in documents.groups) < 1.35 * lengths.sum()
    assert len(documents.groups) <= 12


def test_lengths_that_do_not_fit_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="the batch has 20 tokens"):
        lay_out(torch.tensor([0, 9]), 2, 10, CPU)
    with pytest.raises(ValueError, match="over the end of a row"):
        lay_out(torch.tensor([0, 9, 20]), 2, 10, CPU)


def model(kind: str) -> MiniQwenForCausalLM | MiniQwen2ForCausalLM:
    torch.manual_seed(0)
    if kind == "qwen2":
        return MiniQwen2ForCausalLM(Qwen2Config(**SHAPE))
    return MiniQwenForCausalLM(MiniQwenConfig(**SHAPE, head_dim=8))


def batch(seed: int = 0, rows: Any = LENGTHS) -> dict[str, Any]:
    drawn = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 96, (len(rows), 64), generator=drawn)
    places = torch.cat([torch.arange(length) for row in rows for length in row]).view(len(rows), 64)
    return {"input_ids": tokens, "targets": tokens.roll(-1, 1), "position_ids": places, "cu_seqlens": cut(list(rows))}


def hidden(trained: Any, given: dict[str, Any]) -> torch.Tensor:
    """Last hidden states [rows, length, width], caught where the loss takes them."""
    caught: list[torch.Tensor] = []
    handle = trained.model.register_forward_hook(lambda _, __, output: caught.append(output.last_hidden_state))
    trained(**given)
    handle.remove()
    return caught[0]


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("autocast", [False, True])
def test_noise_in_any_document_changes_the_others_by_exactly_nothing(kind: str, autocast: bool) -> None:
    trained, given = model(kind), batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = hidden(trained, given).flatten(0, 1)
        ends = np.unique(given["cu_seqlens"]).tolist()
        assert len(ends) == 34
        for start, end in list(itertools.pairwise(ends))[::4]:
            noisy = dict(given, input_ids=given["input_ids"].clone())
            noisy["input_ids"].view(-1)[start:end] = (noisy["input_ids"].view(-1)[start:end] + 7) % 96
            after = hidden(trained, noisy).flatten(0, 1)
            assert torch.equal(after[:start], before[:start])
            assert torch.equal(after[end:], before[end:])
            assert not torch.equal(after[start:end], before[start:end])


@pytest.mark.parametrize("kind", ["qwen3", "qwen2"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_layers_give_the_same_gradients_and_are_compiled_once(kind: str, recomputed: bool) -> None:
    def gradients(compiled: bool) -> list[torch.Tensor]:
        trained = model(kind).train()
        if compiled and recomputed:
            trained.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if compiled:
            compile_layers(trained, backend="aot_eager")
        for seed, rows in enumerate((LENGTHS, [[64]] * 5 + [[63, 1]], [[8] * 8] * 6)):
            trained(**batch(seed, rows)).backward()
            if seed == 0:
                assert (counters["stats"]["unique_graphs"] > 0) == compiled
                counters.clear()
        return [parameter.grad for parameter in trained.parameters() if parameter.grad is not None]

    torch._dynamo.reset()
    counters.clear()
    expected, found = gradients(compiled=False), gradients(compiled=True)
    assert len(found) == len(list(model(kind).parameters()))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 0, "other documents must not compile the layers again"


def reference_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, key_ends: torch.Tensor,
    longest: int, longest_key: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """What torch documents of `varlen_attn`, document by document, for a machine without its kernel."""
    assert (window_size, enable_gqa, ends.dtype) == ((-1, 0), True, torch.int32)
    assert query.dtype == key.dtype == value.dtype
    assert torch.equal(ends, key_ends)
    assert longest == longest_key >= ends.diff().max()
    return torch.cat([
        scaled_dot_product_attention(
            *(x[start:end].transpose(0, 1)[None] for x in (query, key, value)), is_causal=True, scale=scale,
            enable_gqa=True,
        )[0].transpose(0, 1)
        for start, end in zip(ends.tolist(), ends.tolist()[1:], strict=False)
        if end > start
    ])  # fmt: skip


def test_what_the_variable_length_kernel_is_given_means_the_same_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself runs on GPUs only; here a plain one of the same signature stands in for it."""
    monkeypatch.setattr(miniqwen.model.attention, "varlen_attn", reference_varlen)
    ends = cut(list(LENGTHS))
    parts = heads(len(LENGTHS), 64)
    expected = attended(parts, lay_out(ends, len(LENGTHS), 64, CPU))
    torch.testing.assert_close(
        attended(parts, VariableLength(torch.from_numpy(ends), 64)), expected, rtol=1e-5, atol=1e-6
    )


def test_the_variable_length_path_makes_a_step_on_the_meta_device_with_the_real_kernels_shapes() -> None:
    """And waits for nothing: what is on the meta device cannot be read."""
    with torch.device("meta"):
        trained = model("qwen3").bfloat16()
        tokens = torch.zeros(6, 64, dtype=torch.long)
    ends = cut(list(LENGTHS))
    assert isinstance(lay_out(ends, 6, 64, tokens.device, flash=True), VariableLength)
    trained(input_ids=tokens, position_ids=tokens, targets=tokens, cu_seqlens=ends).backward()
    assert {parameter.grad.device.type for parameter in trained.parameters() if parameter.grad is not None} == {"meta"}


@pytest.mark.parametrize(("capability", "flash"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_flash_attention_is_for_gpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], flash: bool
) -> None:
    """T4 (7.5) and V100 (7.0) take fp16, but have no FlashAttention-2: documents are grouped there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    for half in (torch.float16, torch.bfloat16):
        assert has_flash(gpu, half, 64) == flash
        assert repeats_keys(gpu, half, 64) != flash
        assert not has_flash(CPU, half, 64)
        assert not has_flash(gpu, half, 320)
    assert not has_flash(gpu, torch.float32, 64)
    assert repeats_keys(gpu, torch.float32, 64)
    assert not repeats_keys(CPU, torch.float32, 64)


def test_where_no_fused_kernel_shares_keys_they_are_repeated_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[tuple[int, int, Any]] = []
    library = transformers.integrations.sdpa_attention.torch.nn.functional.scaled_dot_product_attention

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        given.append((query.shape[1], key.shape[1], kwargs.get("enable_gqa")))
        return library(query, key, value, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    expected = attended(heads(2, 64), None)
    monkeypatch.setattr(miniqwen.model.attention, "repeats_keys", lambda device, dtype, width: dtype == torch.float32)
    torch.testing.assert_close(attended(heads(2, 64), None), expected)
    assert given == [(4, 2, True), (4, 4, None)]


def test_the_size_of_cu_seqlens_hardly_ever_changes() -> None:
    sizes = {len(cumulative_lengths(np.arange(count), 4000)) for count in range(1, 500)}
    assert sizes == {64, 128, 256, 512}
    assert cumulative_lengths(np.array([0, 3]), 9).tolist()[:4] == [0, 3, 9, 9]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_the_kernel_gives_what_grouping_gives() -> None:
    ends, device = cut(list(LENGTHS)), torch.device("cuda", 0)
    parts = [part.detach().to(device) for part in heads(len(LENGTHS), 64, dtype=torch.bfloat16)]
    if not has_flash(device, torch.bfloat16, 8):
        pytest.skip("no FlashAttention-2 before Ampere")
    kernel = lay_out(ends, len(LENGTHS), 64, device, flash=True)
    assert isinstance(kernel, VariableLength)
    expected = attended(parts, lay_out(ends, len(LENGTHS), 64, device))
    torch.testing.assert_close(attended(parts, kernel), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("documents", [False, True])
def test_on_a_gpu_every_precision_has_a_fused_kernel(dtype: torch.dtype, documents: bool) -> None:
    """Without the math kernel, which builds [heads, length, length], torch has to find another one, or says so."""
    device = torch.device("cuda", 0)
    parts = [part.detach().to(device, dtype).requires_grad_() for part in heads(len(LENGTHS), 64)]
    layout = lay_out(cut(list(LENGTHS)), len(LENGTHS), 64, device, has_flash(device, dtype, 8)) if documents else None
    with torch.nn.attention.sdpa_kernel(miniqwen.model.attention.KERNELS_OF_ANY_SHAPE[:2]):
        attended(parts, layout).sum().backward()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 7), max_size=5)), min_size=1, max_size=6))
def test_tails_see_their_prefix_and_themselves_whatever_the_lengths(texts: list[tuple[int, list[int]]]) -> None:
    torch.manual_seed(0)
    total = sum(own + sum(tails) for own, tails in texts)
    seen = torch.zeros(total, total, dtype=torch.bool)  # the definition, as a dense mask
    start = 0
    for own, tails in texts:
        prefix = range(start, start + own)
        start += own
        seen[prefix[0] : start, prefix[0] : start] = torch.ones(own, own).tril().bool()
        for tail in tails:
            seen[start : start + tail, prefix[0] : prefix[-1] + 1] = True
            seen[start : start + tail, start : start + tail] = torch.ones(tail, tail).tril().bool()
            start += tail
    query, key, value = torch.randn(1, 4, total, 8), torch.randn(1, 2, total, 8), torch.randn(1, 2, total, 8)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True).transpose(1, 2)
    found, _ = document_attention(torch.nn.Identity(), query, key, value, share_prefixes(texts))
    assert torch.allclose(found, expected, atol=2e-6)
