"""Who sees whom: causal attention within documents that share a row, which never see each other.

Promises: a token sees the earlier tokens of its own document and nothing else, exactly: noise in one document changes
another by 0. Documents are given as cumulative lengths (`cu_seqlens`, as FlashAttention names them) over the rows laid
end to end; no [length, length] mask is ever built. Without documents this is the library's sdpa attention.
Documents that begin alike can share their beginning (`SharedPrefixes`): it is computed once for all that follows it.
Costs: documents of similar length are gathered into one causal call, padded on the right, which causal attention cannot
see: two copies of the tokens more than plain causal attention, and less than its work (benchmarks/document_masking.py).
On a GPU that has FlashAttention (`has_flash`), torch's variable-length form of it does it without copies. Layouts are
made on the host, so that no device is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "document_attention"  # its name in a model's configuration; never written to a folder
SHARED_PREFIX_ATTENTION = "shared_prefix_attention"
SHORTEST_GROUP, GROUP_GROWTH = 16, 1.5  # longest documents of the groups: 16, 24, 36, 54, ... tokens
FEWEST_DOCUMENTS = 64  # room in cu_seqlens, so that its size changes with the batch hardly ever
# cuDNN's, which torch prefers on new GPUs, is planned for each new shape: 23 to 37 ms
KERNELS_OF_ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
PLAIN = torch.nn.Module()  # for the library: a causal layer with as many heads of keys as of queries


@dataclass(frozen=True, eq=False)
class VariableLength:
    """Documents for a kernel that takes `cu_seqlens` [documents + 1] itself; none is longer than `longest`."""

    cu_seqlens: torch.Tensor
    longest: int


@dataclass(frozen=True, eq=False)
class Seeing:
    """One attention call: the places of `queries` [documents, m] and of the `keys` [documents, n] that they see.

    Places are those among the rows laid end to end; a shorter document repeats its last. `seen` [documents, 1, m, n]:
    which query sees which key; None: the keys are the queries, and each sees those up to itself.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    seen: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Grouped:
    """Documents of similar length side by side.

    `back` [tokens]: where each token of the rows stands among the groups' queries laid end to end.
    """

    groups: tuple[Seeing, ...]
    back: torch.Tensor


@dataclass(frozen=True, eq=False)
class SharedPrefixes(Grouped):
    """Texts laid end to end in one row: each a prefix, then tails that see it and themselves, but not one another.

    `lengths`: of each text the prefix's tokens (at least one) and those of each tail (perhaps none).
    """

    lengths: tuple[tuple[int, tuple[int, ...]], ...]


Documents = VariableLength | Grouped


def has_flash(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether FlashAttention-2 takes heads of this `width` there: fused, with fewer heads of keys than of queries.

    It wants half precision and an Ampere GPU (sm80) or a newer one.
    """
    if dtype not in (torch.float16, torch.bfloat16) or width > 256 or width % 8:
        return False
    return device.type == "meta" or (device.type == "cuda" and _capability(device) >= (8, 0))


def repeats_keys(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether a fused kernel there wants as many heads of keys as of queries; without one, [heads, length, length] is
    built: in fp32, and on GPUs before Ampere."""
    return device.type == "cuda" and not has_flash(device, dtype, width)


@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def to_device(array: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """A copy there, which the host does not wait for."""
    tensor = torch.from_numpy(array)
    return pinned(tensor, torch.device(device)).to(device, non_blocking=True)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` where a GPU fetches it by itself, if `device` is one."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def cumulative_lengths(starts: np.ndarray, total: int) -> np.ndarray:
    """`cu_seqlens` int32 of documents that begin at `starts` (ascending, the first at 0) of `total` tokens.

    Its size is a power of two: empty documents at the end fill it, so that compiled code meets few sizes.
    """
    size = max(FEWEST_DOCUMENTS, 1 << len(starts).bit_length())
    filled = np.full(size, total, dtype=np.int32)
    filled[: len(starts)] = starts
    return filled


def lay_out(
    cu_seqlens: np.ndarray | torch.Tensor, rows: int, length: int, device: torch.device, flash: bool = False
) -> Documents | None:
    """How attention on `device` takes the documents of a batch [rows, length]; None where each row is one document.

    `flash`: see `has_flash`. Lengths that are on a device already are waited for. Raises `ValueError` unless they add
    up to the batch and rows begin with documents of their own.
    """
    given = cu_seqlens.numpy(force=True) if isinstance(cu_seqlens, torch.Tensor) else cu_seqlens
    ends = given.astype(np.int64)
    lengths = np.diff(ends)
    if ends[0] != 0 or ends[-1] != rows * length or (lengths < 0).any():
        raise ValueError(f"cu_seqlens go from {ends[0]} to {ends[-1]}; the batch has {rows * length} tokens")
    if not np.isin(np.arange(rows) * length, ends).all():
        raise ValueError("a document goes over the end of a row")
    if flash:
        return VariableLength(to_device(given, device), length)
    starts, lengths = ends[:-1][lengths > 0], lengths[lengths > 0]
    return None if len(starts) == rows else _grouped(starts, lengths, device)


def _group_numbers(lengths: np.ndarray) -> np.ndarray:
    """Documents of the same number are of similar length."""
    return np.ceil(np.log(np.maximum(lengths / SHORTEST_GROUP, 1)) / np.log(GROUP_GROWTH))


class _Groups:
    """Groups that are being made, and where their queries come to stand."""

    def __init__(self, tokens: int, device: torch.device | str) -> None:
        self._made: list[Seeing] = []
        self._back, self._taken, self._device = np.empty(tokens, dtype=np.int64), 0, device

    def add(self, queries: np.ndarray, real: np.ndarray, keys: np.ndarray, seen: np.ndarray | None = None) -> None:
        """One more; those of its `queries` count that are `real`."""
        self._back[queries[real]] = self._taken + np.flatnonzero(real)
        self._taken += queries.size
        places = self._tensor(queries)
        seen_places = places if keys is queries else self._tensor(keys)
        self._made.append(Seeing(places, seen_places, None if seen is None else self._tensor(seen)))

    def made(self) -> tuple[tuple[Seeing, ...], torch.Tensor]:
        return tuple(self._made), self._tensor(self._back)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self._device)


def _grouped(starts: np.ndarray, lengths: np.ndarray, device: torch.device) -> Grouped:
    powers = _group_numbers(lengths)
    groups = _Groups(int(lengths.sum()), device)
    for power in np.unique(powers):
        places, real = _places(starts[powers == power], lengths[powers == power])
        groups.add(places, real, places)
    return Grouped(*groups.made())


def share_prefixes(lengths: Sequence[tuple[int, Sequence[int]]], device: torch.device | str = "cpu") -> SharedPrefixes:
    """The layout of texts given by the lengths of their prefixes, and of the tails behind each."""
    prefix, tail = (np.array(sizes) for sizes in zip(*((own, sum(tails)) for own, tails in lengths), strict=True))
    starts = np.cumsum(prefix + tail) - prefix - tail
    groups = _Groups(int((prefix + tail).sum()), device)
    powers = _group_numbers(prefix)
    for power in np.unique(powers):
        texts = np.flatnonzero(powers == power)
        heads, real = _places(starts[texts], prefix[texts])
        groups.add(heads, real, heads)
        followed = tail[texts] > 0
        if followed.any():
            texts, heads, real = texts[followed], heads[followed], real[followed]
            queries, own = _places((starts + prefix)[texts], tail[texts])
            tail_of = np.full(queries.shape, -1)
            tail_of[own] = np.concatenate([_numbered(lengths[text][1]) for text in texts.tolist()])
            same = (tail_of[:, :, None] == tail_of[:, None, :]) & np.tri(queries.shape[1], dtype=bool)
            prefix_seen = np.broadcast_to(real[:, None], (*queries.shape, real.shape[1]))
            seen = np.concatenate([prefix_seen, same], axis=2)[:, None]
            groups.add(queries, own, np.concatenate([heads, queries], axis=1), seen)
    return SharedPrefixes(*groups.made(), tuple((own, tuple(tails)) for own, tails in lengths))


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
    if attention_mask is None and query.shape[2] > 1 and repeats_keys(query.device, value.dtype, query.shape[-1]):
        groups = query.shape[1] // key.shape[1]
        module, key, value = PLAIN, repeat_kv(key, groups), repeat_kv(value, groups)
    with nullcontext() if torch.is_grad_enabled() else any_shape(query.device):  # blocks to train on are all alike
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )  # fmt: skip


def any_shape(device: torch.device) -> AbstractContextManager[None]:
    """Around attention whose shapes are new all the time."""
    return sdpa_kernel(KERNELS_OF_ANY_SHAPE) if device.type == "cuda" else nullcontext()


def shared_prefix_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any,
    scaling: float | None = None, *, shared: SharedPrefixes, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The same for the library's own models, which hand `shared` through as an argument of their forward pass."""
    return _group_by_group(query, key, value, shared, 0.0, scaling), None


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
    for group in documents.groups:
        sides = ((rows[0], group.queries), (rows[1], group.keys), (rows[2], group.keys))
        q, k, v = (_side_by_side(x, places, width) for x, places in sides)
        with any_shape(query.device):
            out = scaled_dot_product_attention(
                q, repeat_kv(k, repeats), repeat_kv(v, repeats), attn_mask=group.seen, dropout_p=dropout,
                is_causal=group.seen is None, scale=scaling,
            )  # fmt: skip
        attended.append(out.transpose(1, 2).reshape(group.queries.numel(), heads * width))
    return torch.cat(attended).index_select(0, documents.back).view(batch, length, heads, width)


def _side_by_side(rows: torch.Tensor, places: torch.Tensor, width: int) -> torch.Tensor:
    """Tokens [tokens, heads * width] as documents [documents, heads, longest, width]."""
    return rows.index_select(0, places.flatten()).view(*places.shape, -1, width).transpose(1, 2)


AttentionInterface.register(ATTENTION, document_attention)
AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention)  # without a mask, none is made for it
AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # what `generate` and scoring need stays sdpa's
