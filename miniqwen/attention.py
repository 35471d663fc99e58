"""Who sees whom: causal attention within documents that share a row, which never see each other.

Promises: a token sees the earlier tokens of its own document and nothing else, exactly: noise in one document changes
another by 0. Documents are given as cumulative lengths (`cu_seqlens`, as FlashAttention names them) over the rows laid
end to end; no [length, length] mask is ever built. Without documents this is the library's sdpa attention.
Costs: documents of similar length are gathered into one causal call, padded on the right, which causal attention cannot
see: two copies of the tokens more than plain causal attention, and less than its work (benchmarks/document_masking.py).
On a GPU in half precision, torch's variable-length FlashAttention does it without copies and without waiting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "document_attention"  # its name in a model's configuration; never written to a folder
SHORTEST_GROUP, GROUP_GROWTH = 16, 1.5  # longest documents of the groups: 16, 24, 36, 54, ... tokens
FEWEST_DOCUMENTS = 64  # room in cu_seqlens, so that its size changes with the batch hardly ever


@dataclass(frozen=True, eq=False)
class VariableLength:
    """Documents for a kernel that takes `cu_seqlens` [documents + 1] itself; none is longer than `longest`."""

    cu_seqlens: torch.Tensor
    longest: int


@dataclass(frozen=True, eq=False)
class Grouped:
    """Documents of similar length side by side.

    `groups`: per group the places [documents, longest] of their tokens among the rows laid end to end, where a shorter
    document repeats its last token; `back` [tokens]: where each token stands in the groups laid end to end.
    """

    groups: tuple[torch.Tensor, ...]
    back: torch.Tensor


Documents = VariableLength | Grouped


def cumulative_lengths(starts: np.ndarray, total: int) -> torch.Tensor:
    """`cu_seqlens` int32 of documents that begin at `starts` (ascending, the first at 0) of `total` tokens.

    Its size is a power of two: empty documents at the end fill it, so that compiled code meets few sizes.
    """
    size = max(FEWEST_DOCUMENTS, 1 << len(starts).bit_length())
    filled = np.full(size, total, dtype=np.int32)
    filled[: len(starts)] = starts
    return torch.from_numpy(filled)


def lay_out(cu_seqlens: torch.Tensor, rows: int, length: int, dtype: torch.dtype) -> Documents | None:
    """How attention in `dtype` is to take the documents of a batch [rows, length]; None where each row is one document.

    The host must know the lengths except for the GPU's kernel: elsewhere this waits for the device.
    Raises `ValueError` unless the lengths add up to the batch and rows begin with documents of their own.
    """
    if cu_seqlens.device.type in ("cuda", "meta") and dtype in (torch.float16, torch.bfloat16):
        return VariableLength(cu_seqlens, length)
    ends = cu_seqlens.numpy(force=True).astype(np.int64)
    lengths = np.diff(ends)
    if ends[0] != 0 or ends[-1] != rows * length or (lengths < 0).any():
        raise ValueError(f"cu_seqlens go from {ends[0]} to {ends[-1]}; the batch has {rows * length} tokens")
    if not np.isin(np.arange(rows) * length, ends).all():
        raise ValueError("a document goes over the end of a row")
    starts, lengths = ends[:-1][lengths > 0], lengths[lengths > 0]
    return None if len(starts) == rows else _grouped(starts, lengths, cu_seqlens.device)


def _grouped(starts: np.ndarray, lengths: np.ndarray, device: torch.device) -> Grouped:
    powers = np.ceil(np.log(np.maximum(lengths / SHORTEST_GROUP, 1)) / np.log(GROUP_GROWTH))
    groups: list[torch.Tensor] = []
    back, taken = np.empty(int(lengths.sum()), dtype=np.int64), 0
    for power in np.unique(powers):
        begins, sizes = starts[powers == power], lengths[powers == power]
        within = np.arange(sizes.max())[None]
        places = begins[:, None] + np.minimum(within, sizes[:, None] - 1)
        real = within < sizes[:, None]
        back[places[real]] = taken + np.flatnonzero(real)
        taken += places.size
        groups.append(torch.from_numpy(places).to(device))
    return Grouped(tuple(groups), torch.from_numpy(back).to(device))


def document_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    dropout: float = 0.0, scaling: float | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The library's attention function: `query` [batch, heads, length, width] → [batch, length, heads, width].

    `attention_mask` is what the layers were given: `Documents`, or what sdpa takes. Raises `ValueError` for dropout in
    the kernel that has none.
    """
    if isinstance(attention_mask, VariableLength):
        if dropout:
            raise ValueError("variable-length attention has no dropout: set attention_dropout to 0 in config.json")
        return _variable_length(query, key, value, attention_mask, scaling), None
    if isinstance(attention_mask, Grouped):
        return _group_by_group(query, key, value, attention_mask, dropout, scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )  # fmt: skip


def _variable_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: VariableLength, scaling: float | None
) -> torch.Tensor:
    batch, heads, length, width = query.shape
    # under autocast norms and rotations leave fp32, which the kernel does not take
    q, k, v = (x.transpose(1, 2).reshape(batch * length, -1, width).to(value.dtype) for x in (query, key, value))
    ends, longest = documents.cu_seqlens, documents.longest
    attended: torch.Tensor = varlen_attn(  # type: ignore[assignment]  # a pair only with return_aux
        q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=heads != k.shape[1]
    )
    return attended.view(batch, length, heads, width)


@torch.compiler.disable  # sizes differ in every batch: compiled layers call this as it is, and are never compiled again
def _group_by_group(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, documents: Grouped, dropout: float,
    scaling: float | None,
) -> torch.Tensor:  # fmt: skip
    batch, heads, length, width = query.shape
    repeats = heads // key.shape[1]
    rows = [x.transpose(1, 2).reshape(batch * length, -1) for x in (query, key, value)]
    attended = []
    for places in documents.groups:
        q, k, v = (_side_by_side(x, places, width) for x in rows)
        seen = scaled_dot_product_attention(
            q, repeat_kv(k, repeats), repeat_kv(v, repeats), dropout_p=dropout, is_causal=True, scale=scaling
        )
        attended.append(seen.transpose(1, 2).reshape(places.numel(), heads * width))
    return torch.cat(attended).index_select(0, documents.back).view(batch, length, heads, width)


def _side_by_side(rows: torch.Tensor, places: torch.Tensor, width: int) -> torch.Tensor:
    """Tokens [tokens, heads * width] as documents [documents, heads, longest, width]."""
    return rows.index_select(0, places.flatten()).view(*places.shape, -1, width).transpose(1, 2)


AttentionInterface.register(ATTENTION, document_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # what `generate` and scoring need stays sdpa's
