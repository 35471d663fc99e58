"""What the user asked of `python -m miniqwen.caches`.

Promises: as flags.py. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.flags import Flags, flag


@dataclass(frozen=True)
class CachesConfig(Flags):
    """Flags of `python -m miniqwen.caches`."""

    example = "TOKENS --verify"

    token_caches: tuple[str, ...] = flag(
        (), "folders of prepare_datasets.py --tokenize, to be listed too", group="what", positional=True, path=True
    )
    cache_dir: str | None = flag(
        None, "where the runs' --cache_dir was; without it, Hugging Face's folder", group="what", path=True
    )
    verify: bool = flag(False, "read every byte, not lengths only", group="what")
    prune: float | None = flag(
        None, "delete windows of large files that were not used for so many days, or are damaged", group="what", least=0
    )

    def problems(self) -> list[str]:
        missing = [f"{folder}: no such folder" for folder in self.token_caches if not Path(folder).is_dir()]
        return [*super().problems(), *missing]
