"""What the user asked of `python -m miniqwen.create_model`.

Promises: as flags.py; a model that is already there is not replaced unasked. Costs: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from miniqwen.config.data import QA_DATASETS, DataFlags
from miniqwen.config.flags import flag, no_flag
from miniqwen.config.pasted import CREATING, Pasted
from miniqwen.config.values import LARGEST_SEED


@dataclass(frozen=True)
class CreateConfig(DataFlags):
    """Flags of `python -m miniqwen.create_model`."""

    pasted: ClassVar[Mapping[str, Pasted]] = CREATING
    example = "--output_dir M --size tiny --dataset_name both"

    dataset_name: str | None = flag(
        "both",
        "text to train the tokenizer on: wikipedia, arxiv, both, a hub id or a local file or folder",
        group="data",
        path=True,
    )
    question_column: str | None = no_flag(None)  # what is only for questions
    choices_column: str | None = no_flag(None)
    answer_column: str | None = no_flag(None)
    answer_is: str | None = no_flag(None)
    support_column: str | None = no_flag(None)
    id_column: str | None = no_flag(None)
    output_dir: str | None = flag(None, "folder for the new model", group="output", path=True, required=True)
    overwrite_output_dir: bool = flag(False, "replace a model that is already there", group="output")
    hints: bool = flag(True, "say which command comes next", group="output")
    size: str = flag("tiny", "model size", group="model", choices=("tiny", "small", "medium", "base", "large"))
    vocab_size: int | None = flag(None, "tokenizer vocabulary (default 8192 for tiny)", group="model")
    from_pretrained: str | None = flag(
        None, "import a Qwen3 (or Qwen2/2.5) checkpoint: folder or hub id", group="model", path=True
    )
    tokenizer_megabytes: float = flag(50.0, "megabytes of text to train the tokenizer on", group="model")
    seed: int = flag(42, "seed of the weights", group="model", least=0, most=LARGEST_SEED)

    def problems(self) -> list[str]:
        found = super().problems()
        if self.from_pretrained and self.vocab_size:
            found.append("--vocab_size contradicts --from_pretrained: an imported model keeps its vocabulary")
        if self.dataset_name in QA_DATASETS:
            found.append(
                f"--dataset_name {self.dataset_name}: the tokenizer is trained on text; use wikipedia, arxiv or both"
            )
        if self.vocab_size is not None and self.vocab_size < 300:
            found.append(f"--vocab_size {self.vocab_size}: must be at least 300 (256 bytes and the special tokens)")
        if not self.tokenizer_megabytes > 0:
            found.append(f"--tokenizer_megabytes {self.tokenizer_megabytes}: must be above 0")
        target = Path(self.output_dir) if self.output_dir else None
        if target and target.exists() and not target.is_dir():
            found.append(f"--output_dir {target} is a file, not a folder")
        elif target and target.is_dir() and any(target.iterdir()) and not self.overwrite_output_dir:
            found.append(f"--output_dir {target} is not empty; add --overwrite_output_dir to replace the model in it")
        return found
