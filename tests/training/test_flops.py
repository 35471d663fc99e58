"""What MFU is made of: the work of a model, counted and by formula; the peaks of cards."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config

from miniqwen.model.modeling_miniqwen import MiniQwen2ForCausalLM, MiniQwenConfig, MiniQwenForCausalLM
from miniqwen.questions.examples import Example
from miniqwen.training.batches import MicroBatch, block_batch, example_batch
from miniqwen.training.flops import PEAKS, Flops, peak_of

SHAPE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3 = MiniQwenForCausalLM(MiniQwenConfig(**SHAPE, head_dim=16))


@pytest.mark.parametrize("model", [QWEN3, MiniQwen2ForCausalLM(Qwen2Config(**SHAPE))])
def test_flops_are_two_a_weight_of_the_matrices_and_four_a_pair_and_channel(model: torch.nn.Module) -> None:
    found = Flops.of(model)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name)
    assert found.per_token == 2 * matrices > 0
    assert found.per_logits == 2 * 32 * 320
    width = 16 if model is QWEN3 else 8
    assert found.per_pair == 4 * 3 * 4 * width


def test_a_backward_pass_is_twice_the_forward_pass_as_torch_counts_both() -> None:
    tokens = torch.randint(0, 320, (2, 24))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        QWEN3(input_ids=tokens, use_cache=False).logits.sum().backward()
    flops = Flops.of(QWEN3)
    square = dataclasses.replace(flops, per_pair=0).training([MicroBatch(tokens, tokens)])
    # torch counts every pair of a row, those that causal attention masks too
    assert counter.get_total_flops() == square + 3 * flops.per_pair * 2 * 24 * 24


def test_attention_counts_the_pairs_that_see_each_other_within_documents() -> None:
    flops = Flops(per_token=0, per_logits=0, per_pair=1)
    whole = block_batch([np.arange(1, 9), np.arange(1, 9)], 8)
    assert flops.training([whole]) == 3 * 2 * (8 * 9 // 2)
    apart = block_batch([np.array([5, 5, 0, 5, 5, 5, 5, 5])], 8, end=0)  # documents of 3 and 5 tokens
    assert flops.training([apart]) == 3 * (3 * 4 // 2 + 5 * 6 // 2)
    assert flops.training([whole, apart]) == flops.training([whole]) + flops.training([apart])


def test_rows_without_a_target_cost_no_logits_where_they_are_left_out() -> None:
    flops = Flops(per_token=0, per_logits=1, per_pair=0)
    batch = example_batch([Example((1, 2, 3, 4, 5), 3), Example((1, 2, 3), 1)])
    assert flops.training([batch]) == 3 * (2 + 2)
    assert flops.training([MicroBatch(batch.input_ids, batch.targets)]) == 3 * 8


@pytest.mark.parametrize(
    ("card", "precision", "tf32", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4),  # not 1,979, which is with sparsity
        ("NVIDIA H100 PCIe", "bf16", False, 756),
        ("NVIDIA H100 NVL", "fp16", False, 835.5),
        ("NVIDIA H200", "bf16", False, 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312),
        ("NVIDIA A100 80GB PCIe", "fp32", True, 156),
        ("NVIDIA A100-PCIE-40GB", "fp32", False, 19.5),
        ("NVIDIA GeForce RTX 4090", "bf16", False, 165.2),  # sums in fp32
        ("NVIDIA GeForce RTX 3090", "bf16", False, 71),
        ("NVIDIA GeForce RTX 5090", "bf16", False, 209.5),
        ("Tesla T4", "fp16", False, 65),
        ("Tesla V100-SXM2-16GB", "fp32", True, 15.7),  # it has no TF32
        ("NVIDIA L4", "bf16", False, 121),
        ("NVIDIA L40S", "bf16", False, 362),
        # a cousin's figure would be wrong
        ("Tesla T4", "bf16", False, None),
        ("NVIDIA H100", "bf16", False, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", False, None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", False, None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", False, None),
        ("NVIDIA RTX PRO 9000", "bf16", False, None),
    ],
)
def test_peaks_are_dense_and_of_the_very_card(card: str, precision: str, tf32: bool, peak: float | None) -> None:
    assert peak_of(card, precision, tf32) == peak


def test_the_columns_of_the_table_agree_with_each_other() -> None:
    """Tensor cores do half as much in TF32 as in half precision: a figure with sparsity would stand out."""
    with_tf32 = [peak for _, peak in PEAKS if peak.tf32]
    assert len(with_tf32) > 15
    for peak in with_tf32:
        assert peak.fp16 == peak.bf16
        assert peak.fp16 == pytest.approx(2 * peak.tf32, rel=0.025)  # type: ignore[operator]
        assert peak.fp32 <= peak.tf32  # type: ignore[operator]
