"""What the user asked of `python -m miniqwen.generate`.

Promises: as flags.py; a flag that would change nothing is refused. Costs: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from miniqwen.config.flags import Flags, flag
from miniqwen.config.models import model_problems
from miniqwen.config.pasted import GENERATING, Pasted
from miniqwen.config.precision import precision_name, precision_problems
from miniqwen.config.values import LARGEST_SEED


@dataclass(frozen=True)
class GenerateConfig(Flags):
    """Flags of `python -m miniqwen.generate`."""

    pasted: ClassVar[Mapping[str, Pasted]] = GENERATING
    example = '--model_path runs/text "The opposite of hot is"'

    prompts: tuple[str, ...] = flag(
        (), "texts to go on with or questions to answer, each in quotes; none: a dialogue, line by line",
        group="model", positional=True)  # fmt: skip
    model_path: str | None = flag(
        None, "folder of the model: MiniQwen's, or any causal language model of transformers", group="model", path=True,
        required=True, aliases=("model_name_or_path",))  # fmt: skip
    max_new_tokens: int = flag(64, "most tokens to write behind a prompt", group="generation", least=1)
    temperature: float = flag(0.0, "of sampling; 0: always the most likely token", group="generation")
    top_p: float = flag(
        1.0, "sample among the most likely tokens that have this probability together", group="generation"
    )
    seed: int = flag(0, "of sampling; the same for each prompt", group="generation", least=0, most=LARGEST_SEED)
    bf16: bool = flag(False, "compute in bfloat16", group="generation")
    fp16: bool = flag(False, "compute in float16, on a GPU", group="generation")

    @property
    def precision(self) -> str:
        """As Accelerate names it: no, bf16, fp16."""
        return precision_name(self.fp16, self.bf16)

    def problems(self) -> list[str]:
        found = super().problems() + precision_problems(self.fp16, self.bf16)
        if self.temperature < 0:
            found.append(f"--temperature {self.temperature}: must not be negative")
        if not 0 < self.top_p <= 1:
            found.append(f"--top_p {self.top_p}: must be above 0 and at most 1")
        for name in ("top_p", "seed"):
            if self.temperature == 0 and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                found.append(f"--{name} is for sampling: add --temperature 1 (with 0 the most likely token is taken)")
        return found + model_problems(self.model_path, None, any_kind=True)
