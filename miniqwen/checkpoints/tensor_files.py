"""How tensors lie in a folder: safetensors files, in shards with an index where they are large.

Promises: the layout of the Hugging Face hub, so that stock transformers loads a folder whose tensors are a model's;
tensors are written as they come and read one at a time. Costs: at most `SHARD_BYTES` in memory while writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from miniqwen.files import regular, write_json

SHARD_BYTES = 2 * 1024**3


class TensorWriter:
    """Writes STEM.safetensors, or STEM-00001-of-N.safetensors ... and STEM.safetensors.index.json."""

    def __init__(self, folder: Path, stem: str, dtype: torch.dtype = torch.float32, shard_bytes: int = SHARD_BYTES):
        self._folder, self._stem, self._dtype, self._shard_bytes = folder, stem, dtype, shard_bytes
        self._waiting: dict[str, torch.Tensor] = {}
        self._waiting_bytes, self._total = 0, 0
        self._shards: list[list[str]] = []  # the names in each file

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; it is written when its shard is full. Raises what `save_file` raises for a full disk."""
        value = tensor.to(self._dtype).contiguous()
        size = value.numel() * value.element_size()
        if self._waiting and self._waiting_bytes + size > self._shard_bytes:
            self._flush()
        self._waiting[name] = value
        self._waiting_bytes, self._total = self._waiting_bytes + size, self._total + size

    def close(self) -> None:
        """Write what is left, and give the files their final names."""
        self._flush()
        count = len(self._shards)
        names = [
            f"{self._stem}.safetensors" if count == 1 else f"{self._stem}-{number:05}-of-{count:05}.safetensors"
            for number in range(1, count + 1)
        ]
        for number, name in enumerate(names):
            self._part(number).rename(self._folder / name)
        if count > 1:
            where = {tensor: name for name, tensors in zip(names, self._shards, strict=True) for tensor in tensors}
            index = {"metadata": {"total_size": self._total}, "weight_map": where}
            write_json(self._folder / f"{self._stem}.safetensors.index.json", index)

    def _part(self, number: int) -> Path:
        return self._folder / f"{self._stem}.{number}.part"

    def _flush(self) -> None:
        if self._shards and not self._waiting:
            return
        path = self._part(len(self._shards))
        save_file(self._waiting, path, metadata={"format": "pt"})
        path.chmod(self._folder.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read
        self._shards.append(list(self._waiting))
        self._waiting, self._waiting_bytes = {}, 0


class StoredTensors(Mapping[str, torch.Tensor]):
    """The tensors of a folder's STEM*.safetensors by name, each read when it is asked for."""

    def __init__(self, folder: Path, stem: str) -> None:
        """Raises `SafetensorError` or `OSError` for files that cannot be read."""
        self._where: dict[str, Any] = {}
        for path in sorted(folder.glob(f"{stem}*.safetensors")):
            opened = safe_open(regular(path), framework="pt")
            self._where |= dict.fromkeys(opened.keys(), opened)

    def __getitem__(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._where[name].get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
