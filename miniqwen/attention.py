"""Who sees whom: causal attention within documents that share a row, which never see each other.

Promises: a token sees the earlier tokens of its own document and nothing else, exactly: noise in one document changes
another by 0. Documents are given as cumulative lengths (`cu_seqlens`, as FlashAttention names them) over the rows laid
end to end; no [length, length] mask is ever built. Without documents this is the library's sdpa attention.
Documents that begin alike can share their beginning (`SharedPrefixes`): it is computed once for all that follows it.
Costs: documents of similar length are gathered into one causal call, padded on the right, which causal attention cannot
see: two copies of the tokens more than plain causal attention, and less than its work (benchmarks/document_masking.py).
On a GPU in half precision, torch's variable-length FlashAttention does it without copies and without waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
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
SHARED_PREFIX_ATTENTION = "shared_prefix_attention"
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


@dataclass(frozen=True, eq=False)
class Seeing:
    """One attention call: the places in the row of `queries` [texts, m] and of the `keys` [texts, n] that they see.

    `seen` [texts, 1, m, n]: which query sees which key; None: each the keys up to its own place, which are the queries.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    seen: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class SharedPrefixes:
    """Texts laid end to end in one row: each a prefix, then tails that see it and themselves, but not one another.

    `lengths`: of each text the prefix's tokens (at least one) and those of each tail (perhaps none). `groups`: texts of
    similar length, first their prefixes and then what follows them; `back` [tokens]: where each token of the row stands
    among the groups' queries laid end to end.
    """

    lengths: tuple[tuple[int, tuple[int, ...]], ...]
    groups: tuple[Seeing, ...]
    back: torch.Tensor


Documents = VariableLength | Grouped | SharedPrefixes


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


def _group_numbers(lengths: np.ndarray) -> np.ndarray:
    """Documents of the same number are of similar length."""
    return np.ceil(np.log(np.maximum(lengths / SHORTEST_GROUP, 1)) / np.log(GROUP_GROWTH))


def _grouped(starts: np.ndarray, lengths: np.ndarray, device: torch.device) -> Grouped:
    powers = _group_numbers(lengths)
    groups: list[torch.Tensor] = []
    back, taken = np.empty(int(lengths.sum()), dtype=np.int64), 0
    for power in np.unique(powers):
        begins, sizes = starts[powers == power], lengths[powers == power]
        places, real = _places(begins, sizes)
        back[places[real]] = taken + np.flatnonzero(real)
        taken += places.size
        groups.append(torch.from_numpy(places).to(device))
    return Grouped(tuple(groups), torch.from_numpy(back).to(device))


def share_prefixes(lengths: Sequence[tuple[int, Sequence[int]]], device: torch.device | str = "cpu") -> SharedPrefixes:
    """The layout of texts given by the lengths of their prefixes, and of the tails behind each."""
    prefix, tail = (np.array(sizes) for sizes in zip(*((own, sum(tails)) for own, tails in lengths), strict=True))
    starts = np.cumsum(prefix + tail) - prefix - tail
    groups: list[Seeing] = []
    back, taken = np.empty(int((prefix + tail).sum()), dtype=np.int64), 0

    def add(queries: np.ndarray, real: np.ndarray, keys: np.ndarray, seen: np.ndarray | None = None) -> None:
        nonlocal taken
        back[queries[real]] = taken + np.flatnonzero(real)
        taken += queries.size
        on_device = (None if part is None else torch.from_numpy(part).to(device) for part in (queries, keys, seen))
        groups.append(Seeing(*on_device))  # type: ignore[arg-type]

    numbers = _group_numbers(prefix)
    for number in np.unique(numbers):
        texts = np.flatnonzero(numbers == number)
        heads, real = _places(starts[texts], prefix[texts])
        add(heads, real, heads)
        followed = tail[texts] > 0
        if followed.any():
            texts, heads, real = texts[followed], heads[followed], real[followed]
            queries, own = _places((starts + prefix)[texts], tail[texts])
            tail_of = np.full(queries.shape, -1)
            tail_of[own] = np.concatenate([_numbered(lengths[text][1]) for text in texts.tolist()])
            earlier = np.tri(queries.shape[1], dtype=bool)
            same = (tail_of[:, :, None] == tail_of[:, None, :]) & earlier
            prefix_seen = np.broadcast_to(real[:, None], (*queries.shape, real.shape[1]))
            seen = np.concatenate([prefix_seen, same], axis=2)[:, None]
            add(queries, own, np.concatenate([heads, queries], axis=1), seen)
    shape = tuple((own, tuple(tails)) for own, tails in lengths)
    return SharedPrefixes(shape, tuple(groups), torch.from_numpy(back).to(device))


def _numbered(sizes: Sequence[int]) -> np.ndarray:
    """0 as often as the first size says, then 1, and so on."""
    return np.repeat(np.arange(len(sizes)), sizes)


def _places(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[texts, longest]: places of texts that begin at `starts`, a shorter one repeating its last; and which count."""
    within = np.arange(lengths.max())[None]
    return starts[:, None] + np.minimum(within, lengths[:, None] - 1), within < lengths[:, None]


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
    if isinstance(attention_mask, SharedPrefixes):
        return _with_shared_prefixes(query, key, value, attention_mask, scaling), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )  # fmt: skip


def shared_prefix_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, *, shared: SharedPrefixes, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The same for the library's own models, which hand `shared` through as an argument of their forward pass."""
    return _with_shared_prefixes(query, key, value, shared, scaling), None


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


@torch.compiler.disable
def _with_shared_prefixes(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shared: SharedPrefixes, scaling: float | None
) -> torch.Tensor:
    _, heads, length, width = query.shape
    repeats = heads // key.shape[1]
    rows = [x.transpose(1, 2).reshape(length, -1) for x in (query, key, value)]
    attended = []
    for group in shared.groups:
        q, k, v = (
            _side_by_side(x, at, width) for x, at in zip(rows, (group.queries, group.keys, group.keys), strict=True)
        )
        out = scaled_dot_product_attention(
            q, repeat_kv(k, repeats), repeat_kv(v, repeats), attn_mask=group.seen, is_causal=group.seen is None,
            scale=scaling,
        )  # fmt: skip
        attended.append(out.transpose(1, 2).reshape(group.queries.numel(), heads * width))
    return torch.cat(attended).index_select(0, shared.back).view(1, length, heads, width)


def _side_by_side(rows: torch.Tensor, places: torch.Tensor, width: int) -> torch.Tensor:
    """Tokens [tokens, heads * width] as documents [documents, heads, longest, width]."""
    return rows.index_select(0, places.flatten()).view(*places.shape, -1, width).transpose(1, 2)


AttentionInterface.register(ATTENTION, document_attention)
AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)  # without a mask, none is made for it
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # what `generate` and scoring need stays sdpa's
