"""What the user asked of `python -m miniqwen.audit`.

Promises: as flags.py. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.flags import Flags, flag


@dataclass(frozen=True)
class AuditConfig(Flags):
    """Flags of `python -m miniqwen.audit`."""

    example = "runs/demo/pretrained"

    output_dirs: tuple[str, ...] = flag((), "output folders of runs", group="what", positional=True, path=True)

    def problems(self) -> list[str]:
        missing = [f"{folder}: no such folder" for folder in self.output_dirs if not Path(folder).is_dir()]
        return [*super().problems(), *(missing if self.output_dirs else ["say which run: its --output_dir"])]
