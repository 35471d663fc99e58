"""Several runs of the real training loop in one process (of several), because starting Python costs more than they do.

    torchrun --nproc_per_node 2 tests/runs_in_a_row.py RUNS.json

RUNS.json is a list of command lines of train_loop.py. Each run starts from the environment that the launcher made.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from accelerate.state import AcceleratorState, GradientState, PartialState

import train_loop
from miniqwen.config.flags import parse
from miniqwen.config.training import TrainConfig
from miniqwen.distributed.runtime import Runtime
from miniqwen.training.preemption import StopRequest


def main(runs: list[list[str]]) -> None:
    """All of them, one after the other."""
    launched = dict(os.environ)
    Runtime.close = Runtime.wait  # type: ignore[method-assign]  # the process group is joined once, and left at the end
    for flags in runs:
        os.environ.clear()
        os.environ.update(launched)
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
        config = parse(TrainConfig, flags, program="train_loop.py", description="")
        train_loop.main(config, StopRequest(config))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
