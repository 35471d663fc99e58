"""Scripts that start at once: importing the libraries costs more than most of the runs that the tests make.

    python warm_start.py serve SOCKET                 imports the libraries, and forks a copy of itself for every order
    python -S warm_start.py run SOCKET SCRIPT FLAGS   runs a script of the project in such a copy

The copy has the caller's environment, folder, outputs, limit of file sizes and namespaces. Signals are passed on to it,
and its status comes back; when its caller is killed it is killed too. SOCKET.<process of the caller> is a link to its
number, for tests that kill or halt it. None of the project's own code is imported before the fork. Variables that
libraries read while they are imported must be the same on both sides: `run_script` sees to that.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import platform
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
NAMESPACES = ("net", "uts", "mnt")


def serve(address: str) -> list[str] | None:
    """Answer orders until nobody is left who may give one; returns in each copy, with what it is to run."""
    import accelerate
    import accelerate.commands.accelerate_cli
    import accelerate.commands.launch
    import datasets
    import pyarrow.csv
    import pyarrow.dataset
    import scipy.io
    import scipy.stats
    import sklearn.metrics
    import torch
    import torch.distributed.fsdp
    import torch.distributed.run
    import torch.distributed.tensor
    import torch.nn.attention.varlen
    import torch.nn.modules.linear_cross_entropy
    import torch.utils.checkpoint
    import torch.utils.tensorboard
    import transformers
    import transformers.optimization
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM, Qwen2TokenizerFast, Qwen3ForCausalLM
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.integrations import deepspeed, sdpa_attention

    assert all((accelerate, datasets, torch, transformers, AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM))
    assert all((Qwen2TokenizerFast, Qwen3ForCausalLM, deepspeed, sdpa_attention, pyarrow, scipy))
    assert all((sklearn, ConfigDict, TypeAdapter, ValidationError))
    get_checkpoint_conversion_mapping("qwen3")  # it compiles a thousand patterns before a first model is loaded
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the waiting processes are not waited for themselves
    gc.collect()
    gc.freeze()  # or every copy looks through all of this again and again, and so gets a memory of its own
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        listening.settimeout(5.0)
        while os.getppid() == parent:
            try:
                asked, _ = listening.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listening.close()
                asked.settimeout(None)
                return wait_for_copy(address, asked)
            asked.close()
    return None


def wait_for_copy(address: str, asked: socket.socket) -> list[str]:
    """Fork the copy, and in this process tell its number and its status; returns in the copy only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length = number(asked)
    order, passed, _, _ = socket.recv_fds(asked, length, 2 + len(NAMESPACES))
    told = json.loads(order + asked.recv(length - len(order), socket.MSG_WAITALL))
    copy = os.fork()
    if copy:
        for file in passed:
            os.close(file)
        link = Path(f"{address}.{told['process']}")
        link.unlink(missing_ok=True)  # of a process of the same number, long ago
        link.symlink_to(str(copy))
        with contextlib.suppress(OSError):  # the caller may be gone, now or later
            asked.sendall(copy.to_bytes(8, "big"))
        ended = os.pidfd_open(copy)
        ready, _, _ = select.select([ended, asked], [], [])
        if ended not in ready:  # callers say nothing more: this one is dead
            os.kill(copy, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        link.unlink()
        with contextlib.suppress(OSError):
            asked.sendall(status.to_bytes(8, "big", signed=True))
        os._exit(0)
    asked.close()
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    for output, place in zip(passed[:2], (1, 2), strict=True):
        os.dup2(output, place)
    for name, space in zip(NAMESPACES, passed[2:], strict=True):
        enter(name, space)
    for file in passed:
        os.close(file)
    resource.setrlimit(resource.RLIMIT_FSIZE, told["file_size"])
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    return list(told["words"])


def number(told: socket.socket) -> int:
    """One that the other side tells, of a process or of a status."""
    read = told.recv(8, socket.MSG_WAITALL)
    if len(read) < 8:
        raise SystemExit("warm_start.py: the other side has ended")
    return int.from_bytes(read, "big", signed=True)


def enter(name: str, space: int) -> None:
    """Go where the caller is, if that is elsewhere: on another node of test_two_nodes."""
    if os.fstat(space).st_ino != Path(f"/proc/self/ns/{name}").stat().st_ino:
        if ctypes.CDLL(None, use_errno=True).setns(space, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the caller's {name} namespace")
        platform.uname.__globals__["_uname_cache"] = None  # or the machine would have its name from before


def run(address: str, words: list[str]) -> int:
    """The status of the script, which another process runs."""
    with socket.socket(socket.AF_UNIX) as asked, contextlib.ExitStack() as stack:
        asked.connect(address)
        told = {
            "words": words,
            "process": os.getpid(),
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
            "file_size": resource.getrlimit(resource.RLIMIT_FSIZE),
        }
        order = json.dumps(told).encode()
        asked.sendall(len(order).to_bytes(8, "big"))
        spaces = [stack.enter_context(Path(f"/proc/self/ns/{name}").open("rb")).fileno() for name in NAMESPACES]
        sent = socket.send_fds(asked, [order], [1, 2, *spaces])
        asked.sendall(order[sent:])
        copy = number(asked)

        def pass_on(sent: int, frame: FrameType | None) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(copy, sent)

        for passed in PASSED_ON:
            signal.signal(passed, pass_on)
        return number(asked)


def main() -> None:
    verb, address, *words = sys.argv[1:]
    if verb == "run":
        status = run(address, words)
        if status < 0:
            if -status != signal.SIGKILL:
                signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        raise SystemExit(status)
    ordered = serve(address)
    if ordered is None:
        return
    import runpy

    sys.dont_write_bytecode, sys.pycache_prefix = False, f"{address}.compiled"  # the project's modules, for the next
    module = ordered[0] == "-m"
    sys.argv = ordered[1:] if module else ordered
    sys.path[0] = str(Path.cwd()) if module else str(Path(ordered[0]).resolve().parent)
    if module:
        runpy.run_module(ordered[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(ordered[0], run_name="__main__")


if __name__ == "__main__":
    main()
