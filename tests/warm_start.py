"""Scripts that start at once: importing the libraries costs more than most of the runs that the tests make.

    python warm_start.py serve SOCKET                 imports the libraries, and forks a copy of itself for every order
    python -S warm_start.py run SOCKET SCRIPT FLAGS   runs a script of the project in such a copy

The copy has the caller's environment, folder and outputs; signals are passed on to it, and its status comes back. None
of the project's own code is imported before the fork. Variables that libraries read while they are imported must be the
same on both sides: `run_script` starts a Python of its own where a test sets one of those.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def serve(address: str) -> tuple[list[str], socket.socket] | None:
    """Answer orders until nobody is left who may give one; returns in each copy, with what it is to run."""
    import accelerate
    import datasets
    import torch
    import torch.distributed.fsdp
    import torch.distributed.run
    import torch.distributed.tensor
    import torch.nn.attention.varlen
    import torch.utils.checkpoint
    import torch.utils.tensorboard
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM, Qwen3ForCausalLM
    from transformers.integrations import deepspeed, sdpa_attention

    assert all((accelerate, datasets, torch, transformers, AutoModelForCausalLM, AutoTokenizer, Qwen2ForCausalLM))
    assert all((Qwen3ForCausalLM, deepspeed, sdpa_attention))
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the waiting processes are not waited for themselves
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
                return wait_for_copy(asked)
            asked.close()
    return None


def wait_for_copy(asked: socket.socket) -> tuple[list[str], socket.socket]:
    """Fork the copy, and in this process tell its number and its status; returns in the copy only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length = int.from_bytes(asked.recv(8), "big")
    order, outputs, _, _ = socket.recv_fds(asked, length, 2)
    while len(order) < length:
        order += asked.recv(length - len(order))
    told = json.loads(order)
    copy = os.fork()
    if copy:
        for output in outputs:
            os.close(output)
        asked.sendall(copy.to_bytes(8, "big"))
        status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        asked.sendall(status.to_bytes(8, "big", signed=True))
        os._exit(0)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    for output, number in zip(outputs, (1, 2), strict=True):
        os.dup2(output, number)
        os.close(output)
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    return told["words"], asked


def run(address: str, words: list[str]) -> int:
    """The status of the script, which another process runs."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(address)
        told = {"words": words, "environment": dict(os.environ), "folder": str(Path.cwd())}
        order = json.dumps(told).encode()
        asked.sendall(len(order).to_bytes(8, "big"))
        sent = socket.send_fds(asked, [order], [1, 2])
        asked.sendall(order[sent:])
        copy = int.from_bytes(asked.recv(8), "big")

        def pass_on(number: int, frame: FrameType | None) -> None:
            os.kill(copy, number)

        for number in PASSED_ON:
            signal.signal(number, pass_on)
        return int.from_bytes(asked.recv(8), "big", signed=True)


def main() -> None:
    verb, address, *words = sys.argv[1:]
    if verb == "run":
        status = run(address, words)
        if status < 0:
            signal.signal(-status, signal.SIG_DFL)
            os.kill(os.getpid(), -status)
        raise SystemExit(status)
    order = serve(address)
    if order is None:
        return
    import runpy

    words, asked = order
    asked.close()
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    sys.path[0] = str(Path.cwd()) if module else str(Path(words[0]).resolve().parent)
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
