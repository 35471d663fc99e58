"""In which precision a command computes, and what it spends to save memory or time.

Promises: what this machine cannot compute in is refused, with what it can. Costs: torch is imported for --fp16,
--tf32 and --torch_compile alone.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from miniqwen.config.flags import Flags, flag


@dataclass(frozen=True)
class PrecisionFlags(Flags):
    """How numbers are held, and what is recomputed or compiled."""

    fp16: bool = flag(False, "mixed precision with float16 (needs a GPU)", group="precision")
    bf16: bool = flag(False, "mixed precision with bfloat16", group="precision")
    tf32: bool = flag(
        False, "multiply fp32 matrices as TF32 on GPUs since Ampere: several times faster, 3 digits instead of 7",
        group="precision")  # fmt: skip
    deterministic: bool = flag(
        False, "kernels that give the same bits each time, also on GPUs, where they are slower (without it what is "
        "resumed on a GPU is equal to rounding)", group="precision", aliases=("full_determinism",))  # fmt: skip
    gradient_checkpointing: bool = flag(
        False, "recompute activations: less memory, about a third slower", group="precision",
        aliases=("activation_checkpointing",))  # fmt: skip
    torch_compile: bool = flag(False, "compile the layers with torch.compile", group="precision")

    def problems(self) -> list[str]:
        found = [*super().problems(), *precision_problems(self.fp16, self.bf16)]
        if self.torch_compile:
            found += compiler_problems()
        if self.tf32:
            import torch

            if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
                found.append("--tf32 needs an Ampere GPU or a newer one, and none is visible: leave it out")
        return found


def compiler_problems() -> list[str]:
    """That torch.compile has no C++ compiler on a CPU, or no C compiler for Triton on a GPU."""
    import torch

    named = os.environ.get("CC" if torch.cuda.is_available() else "CXX")
    usual = ("gcc", "clang") if torch.cuda.is_available() else ("g++",)
    if any(map(shutil.which, (named,) if named else usual)):
        return []
    return [
        f"--torch_compile needs a compiler, and {named or usual[0]} cannot be found: install it (apt-get install g++), "
        "or leave --torch_compile out"
    ]


def precision_name(fp16: bool, bf16: bool) -> str:
    """What these flags ask for, as Accelerate names it."""
    return "fp16" if fp16 else "bf16" if bf16 else "no"


def precision_problems(fp16: bool, bf16: bool) -> list[str]:
    """Why a computation cannot run in the precision that these flags ask for."""
    if fp16 and bf16:
        return ["--fp16 and --bf16 contradict each other: give one"]
    if fp16:
        import torch  # only here: the other checks need nothing heavy

        if not torch.cuda.is_available():
            return ["--fp16 needs a GPU, and none is visible: use --bf16, which works on CPUs too"]
    return []
