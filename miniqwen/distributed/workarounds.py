"""What Accelerate 1.15.0 and DeepSpeed 0.19.8 would do beside what was asked, and all that is done about it.

Promises: nothing outside this room writes into the libraries' environment or state before they run. Each step says what
it works around, and can go when the library has mended it: the tests of real launches then still pass. Costs: a dozen
variables, which stay set as long as the process lives, because the libraries read some of them late.
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator

from accelerate import PartialState
from accelerate.utils import DistributedType

# Of Accelerate's launcher, read by us already. Accelerate would take them as its own orders:
ANSWERED = (
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",  # to divide the loss and hold back the optimizer: the loop accumulates
    "ACCELERATE_USE_CPU",  # to leave DeepSpeed off (AcceleratorState, `cpu=True`): PartialState is told of the CPU
    "ACCELERATE_CONFIG_DS_FIELDS",  # to refuse settings that do not come from its own file (DeepSpeedPlugin)
)


@contextlib.contextmanager
def said_plainly(fsdp2: bool, zero: bool, on_cpu: bool, fsdp_flag: str | None) -> Iterator[None]:
    """Around the making of the `Accelerator`: the backend that was chosen is the only thing that it is told.

    `fsdp_flag`: what `--fsdp` says, where it stands in for an Accelerate file.
    """
    for variable in ANSWERED:
        os.environ.pop(variable, None)
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed guesses it otherwise, with a warning in every run
    # DeepSpeed 0.19.8 calls names that torch 2.13 has renamed, and torch says so at every call
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed.c10d_logger")
    if fsdp2 or zero:
        os.environ["ACCELERATE_USE_FSDP" if fsdp2 else "ACCELERATE_USE_DEEPSPEED"] = "true"
        if "RANK" not in os.environ:
            _be_a_world_of_one()
    if fsdp_flag is not None:  # as Accelerate's launcher says it
        os.environ |= {
            "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_RESHARD_AFTER_FORWARD": str("shard_grad_op" not in fsdp_flag).lower(),
            "FSDP_OFFLOAD_PARAMS": str("offload" in fsdp_flag).lower(),
        }  # fmt: skip
    yield
    if zero:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        # transformers would load models in pieces from now on, and their folder could not be checked
        unset_hf_deepspeed_config()


def shard_on_this_device(on_cpu: bool) -> None:
    """Let FSDP2 shard on a CPU: Accelerate 1.15 does on GPUs only, and trains DDP there without a word."""
    if on_cpu:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _be_a_world_of_one() -> None:
    """What a launcher would say to the only process: without it DeepSpeed asks MPI (its pull request 8444)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
