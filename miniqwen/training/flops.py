"""How much a model computes in an update, and how much its card could have: what MFU is made of.

Promises: peaks are dense ones of the very variant (SXM, PCIe, NVL), in the precision that is computed in; a card that
is not in the table has none, rather than that of a cousin. FLOPs are counted on the meta device, in the model's layers.
Costs: two forward passes without numbers, once, where there is a card.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from miniqwen.training.batches import MicroBatch


@dataclass(frozen=True)
class Peak:
    """TFLOP/s of a card's matrix products, dense: half the figure where a data sheet says "with sparsity".

    None: it has no units for that. fp16 is with sums in fp32, as torch has them, which is half the speed on GeForce.
    """

    fp32: float
    tf32: float | None
    fp16: float
    bf16: float | None

    def of(self, precision: str, allows_tf32: bool) -> float | None:
        """In `precision` (fp32, bf16, fp16)."""
        known: float | None = getattr(self, "tf32" if precision == "fp32" and allows_tf32 and self.tf32 else precision)
        return known


# By the whole name that torch.cuda.get_device_name gives, without the maker's. torchtitan's and nanochat's tables agree
# where they have the card (H100 989, 756, 835; A100 312; L40S 362; B200 2,250).
PEAKS: tuple[tuple[str, Peak], ...] = (
    # HGX B200 and GB200 data sheets; fp16 of 8 or of 2 cards with sparsity: 36 and 10 PFLOP/s
    (r"B200", Peak(75, 1_125, 2_250, 2_250)),
    (r"GB200", Peak(80, 1_250, 2_500, 2_500)),
    # H100 white paper, table of SXM5 and PCIe; H100, H200 and GH200 data sheets (1,979 and 1,671 with sparsity)
    (r"H100 80GB HBM3|H200|GH200 (96|120|144|480)G.*", Peak(66.9, 494.7, 989.4, 989.4)),
    (r"H100 PCIe", Peak(51.2, 378, 756, 756)),
    (r"H100 NVL|H200 NVL", Peak(60, 417.5, 835.5, 835.5)),
    (r"H20", Peak(44, 74, 148, 148)),
    # A100 white paper, the same for SXM4 and PCIe, 40 and 80 GB; A30, A40, A10 data sheets, A10G product brief
    (r"A[18]00(-SXM4-(40|80)GB|-PCI[Ee]-(40|80)GB| 80GB PCIe)", Peak(19.5, 156, 312, 312)),
    (r"A30", Peak(10.3, 82, 165, 165)),
    (r"A40", Peak(37.4, 74.8, 149.7, 149.7)),
    (r"A10", Peak(31.2, 62.5, 125, 125)),
    (r"A10G", Peak(31.5, 35, 70, 70)),
    # L4, L40, L40S data sheets
    (r"L4", Peak(30.3, 60, 121, 121)),
    (r"L40", Peak(90.5, 90.5, 181, 181)),
    (r"L40S", Peak(91.6, 183, 362, 362)),
    # Ampere GA102, Ada and Blackwell white papers, "with FP32 accumulate"
    (r"RTX A5000", Peak(27.8, 55.6, 111.1, 111.1)),
    (r"RTX A6000", Peak(38.7, 77.4, 154.8, 154.8)),
    (r"RTX 6000 Ada Generation", Peak(91.1, 182.1, 364.2, 364.2)),
    (r"GeForce RTX 3090", Peak(35.6, 35.6, 71, 71)),
    (r"GeForce RTX 3090 Ti", Peak(40, 40, 80, 80)),
    (r"GeForce RTX 4090", Peak(82.6, 82.6, 165.2, 165.2)),
    (r"GeForce RTX 5090", Peak(104.8, 104.8, 209.5, 209.5)),
    # T4 and V100 data sheets
    (r"T4", Peak(8.1, None, 65, None)),
    (r"V100-SXM2-(16|32)GB(-LS)?", Peak(15.7, None, 125, None)),
    (r"V100-PCIE-(16|32)GB", Peak(14, None, 112, None)),
    (r"V100S-PCIE-32GB", Peak(16.4, None, 130, None)),
    # AMD's data sheets; torch sees each half of an MI250X as a card
    (r"Instinct MI300X|Instinct MI325X", Peak(163.4, 653.7, 1_307.4, 1_307.4)),
    (r"Instinct MI250X", Peak(47.9, None, 191.5, 191.5)),
)


def peak_of(card: str, precision: str, allows_tf32: bool) -> float | None:
    """TFLOP/s, dense, of the card that torch calls `card`; None for one that is not known, or a part of one (MIG)."""
    name = re.sub(r"^(NVIDIA|AMD|Tesla|NVIDIA Tesla) ", "", card)
    return next((peak.of(precision, allows_tf32) for known, peak in PEAKS if re.fullmatch(known, name)), None)


def allows_tf32() -> bool:
    """Whether fp32 matrix products are made in TF32 here, by torch's old switches or its new ones."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a forward pass: two a multiplication and addition of a matrix product.

    `per_token`: of the layers but for attention's products; `per_logits`: of a row of logits; `per_pair`: of attention,
    for a query and a key that it sees, in all layers and heads.
    """

    per_token: int
    per_logits: int
    per_pair: int

    @classmethod
    def of(cls, model: Any) -> Flops:
        """Those of a model of ours, counted by torch's FlopCounterMode in a copy without numbers, at two lengths.

        Attention of n tokens is counted with n² pairs there, so that two lengths tell what depends on pairs.
        """
        with torch.device("meta"):
            twin = type(model)(model.config).eval()
        short, long = (_layers(twin, length) for length in (64, 128))
        per_pair = (long // 128 - short // 64) // 64
        row = torch.zeros((1, twin.config.hidden_size), device="meta")
        return cls(short // 64 - 64 * per_pair, _counted(twin.lm_head, row), per_pair)

    def training(self, batches: Sequence[MicroBatch]) -> int:
        """Of the forward and backward passes of one rank's micro-batches, which lie on the host.

        A backward pass has two products for each of the forward pass. Counted is what has to be computed: attention's
        pairs within a document, a query with itself and the earlier ones (n(n + 1)/2, where PaLM's 12·L·H·Q·T has n²:
        at 1,024 tokens that is 9 % more for the `large` size); a row of logits for each target where the others are
        left out, else for each token. What a kernel computes beside that, or once more (checkpointing, the loss by
        chunks), is no work of the model's.
        """
        total = 0
        for batch in batches:
            tokens = batch.input_ids.numel()
            rows, length = batch.input_ids.shape
            lengths = np.full(rows, length)
            if batch.cu_seqlens is not None:
                lengths = np.diff(np.asarray(batch.cu_seqlens).astype(np.int64))
            pairs = int((lengths * (lengths + 1) // 2).sum())
            total += 3 * (self.per_token * tokens + self.per_logits * batch.num_logits + self.per_pair * pairs)
        return total


def _layers(model: Any, length: int) -> int:
    tokens = torch.zeros((1, length), dtype=torch.int64, device="meta")
    # in this form the library makes no mask, for which it would have to read a number
    return _counted(model.model, input_ids=tokens, attention_mask={"full_attention": None}, use_cache=False)


@torch.no_grad()
def _counted(call: Any, *given: Any, **named: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call(*given, **named)
    return int(counter.get_total_flops())
