"""What Accelerate 1.15.0 and DeepSpeed 0.19.8 would do beside what was asked, and all that is done about it.

Promises: nothing outside this room writes into the libraries' environment or state before they run. Each step says what
it works around, and can go when the library has mended it: the tests of real launches then still pass. Costs: a dozen
variables, which stay set as long as the process lives, because the libraries read some of them late.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
from accelerate import PartialState
from accelerate.utils import DistributedType

from miniqwen.errors import UserError
from miniqwen.lock import this_machine

LONGEST_COMPILATION = 600.0  # seconds
MADE_ON = "lock.made_on"  # beside torch's lock: the machine that compiles

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


@contextlib.contextmanager
def compilation_told() -> Iterator[None]:
    """Around what may compile DeepSpeed's libraries, which takes minutes, once a machine, and says nothing.

    A compilation that was killed leaves a lock on which torch's FileBaton would wait without end: it is removed where
    no process has it open any more. Raises `UserError` where it failed and a tool for it is missing.
    """
    for lock in _compiler_locks():
        _remove_if_left(lock)
    over = threading.Event()
    watching = threading.Thread(target=_tell_of_compilers, args=(over,), daemon=True)
    watching.start()
    try:
        yield
    except Exception as error:
        tools = ("ninja", os.environ.get("CXX", "c++"))  # those that torch's extensions ask for
        missing = [tool for tool in tools if shutil.which(tool) is None]
        if not missing or isinstance(error, UserError):
            raise
        raise UserError(
            f"DeepSpeed compiles a library on this machine, and {' and '.join(missing)} cannot be found: install "
            "it (apt-get install g++ ninja-build), and activate the environment (. .venv/bin/activate), which has "
            f"ninja too ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        ) from None
    finally:
        over.set()
        watching.join()


def _compiler_locks() -> list[Path]:
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    return [*root.glob("*/lock"), *root.glob("*/*/lock")]


def _remove_if_left(lock: Path) -> None:
    """Of a compilation that was killed here; one that may go on on another machine gets ten minutes."""
    with contextlib.suppress(OSError):
        if _holders(lock):
            return
        made_on = lock.with_name(MADE_ON)
        here = made_on.exists() and made_on.read_text(encoding="utf-8") == repr(this_machine())
        if here or time.time() - lock.stat().st_mtime > LONGEST_COMPILATION:
            lock.unlink()
            print(f"removed {lock}: the compilation that made it has ended before its end", flush=True)


def _tell_of_compilers(over: threading.Event) -> None:
    """Say what is compiled, by this process, or waited for; and leave word of the machine beside a lock of our own."""
    told: set[Path] = set()
    while not over.wait(1.0):
        for lock in set(_compiler_locks()) - told:
            holders, name = _holders(lock), lock.parent.name
            if os.getpid() in holders:
                print(f"compiling {name} for DeepSpeed, once on this machine; it takes some minutes", flush=True)
                with contextlib.suppress(OSError):
                    lock.with_name(MADE_ON).write_text(repr(this_machine()), encoding="utf-8")
            elif os.environ.get("RANK", "0") == "0":
                who = f"process {min(holders)}" if holders else "a process that is not seen from here"
                print(f"waiting for {who}, which compiles {name} for DeepSpeed ({lock})", flush=True)
            told.add(lock)


def _holders(file: Path) -> set[int]:
    """The processes of this machine that have a file open, as far as they can be asked."""
    found, target = set(), str(file.resolve())
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            folder = Path(f"/proc/{process.pid}/fd")
            if any(str(handle.readlink()) == target for handle in folder.iterdir()):
                found.add(process.pid)
    return found


def _be_a_world_of_one() -> None:
    """What a launcher would say to the only process: without it DeepSpeed asks MPI (its pull request 8444)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
