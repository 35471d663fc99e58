"""What the user asked of `python -m miniqwen.export`.

Promises: as flags.py. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.flags import Flags, flag
from miniqwen.config.models import model_problems

GGUF_TYPES = ("f32", "f16", "q8_0")


@dataclass(frozen=True)
class ExportConfig(Flags):
    """Flags of `python -m miniqwen.export`."""

    example = "--model_path runs/sciq --gguf sciq.gguf --type q8_0"

    model_path: str | None = flag(
        None, "folder of the Qwen3 or Qwen2 model: a run's, or any of transformers", group="what", path=True,
        required=True, aliases=("model_name_or_path",))  # fmt: skip
    gguf: str | None = flag(None, "the file to write", group="what", path=True, required=True)
    type: str = flag("f16", "how matrices are stored; q8_0: about a byte a weight", group="what", choices=GGUF_TYPES)
    overwrite: bool = flag(False, "replace the file, and the Modelfile beside it", group="what")

    def problems(self) -> list[str]:
        found = super().problems() + model_problems(self.model_path, None)
        if self.gguf:
            target = Path(self.gguf)
            if target.suffix != ".gguf":
                found.append(f"--gguf {target}: give a file that ends in .gguf")
            elif not target.parent.is_dir():
                found.append(f"--gguf {target}: there is no folder {target.parent}")
            elif not self.overwrite:
                there = [str(path) for path in (target, modelfile_of(target)) if path.exists()]
                found += [f"{path} is there already; add --overwrite to replace it" for path in there]
        return found


def modelfile_of(gguf: Path) -> Path:
    """Where the Modelfile of a GGUF file stands: beside it, as FILE.Modelfile, so that several may."""
    return gguf.with_suffix(".Modelfile")
