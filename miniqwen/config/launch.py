"""How the model is spread, where no Accelerate file says so.

Promises: a file or a word that is not known is refused before any process is joined. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miniqwen.config.flags import Flags, flag
from miniqwen.shipped import shipped


@dataclass(frozen=True)
class LaunchFlags(Flags):
    """DeepSpeed, FSDP2, and what launchers add to the command line."""

    deepspeed: str | None = flag(
        None, "DeepSpeed JSON with ZeRO settings (ds_configs/ has some), where no Accelerate file asks for ZeRO",
        group="launch", path=True)  # fmt: skip
    fsdp: str | None = flag(
        None, "FSDP2, where no Accelerate file asks for it: full_shard, or shard_grad_op (parameters stay gathered "
        "until the backward pass); with offload, parameters rest on the CPU", group="launch",
        spelled={"True": "full_shard", "true": "full_shard"})  # fmt: skip
    local_rank: int = flag(-1, "given by some launchers; the environment says it too", group="launch")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.deepspeed is not None and not Path(shipped(self.deepspeed)).is_file():
            found.append(f"--deepspeed {self.deepspeed}: no such file; ds_configs/ has examples")
        if self.fsdp is not None:
            words = self.fsdp.split()
            unknown = [word for word in words if word not in ("full_shard", "shard_grad_op", "auto_wrap", "offload")]
            if unknown or len({"full_shard", "shard_grad_op"} & set(words)) != 1:
                found.append(f"--fsdp {self.fsdp!r}: expected full_shard or shard_grad_op, and perhaps offload")
        return found
