"""The lives of a run: each start of it, from which update and on what, and the flags that had changed since the last.

Promises: what a resumed run does otherwise than before is told and kept; from the flags that count now and the changes,
those of every life can be told. Costs: config.yaml is read, and git is asked for the commit.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from miniqwen.checkpoints.checkpoint import Checkpoint
from miniqwen.config.flags import RECORDED, plain
from miniqwen.config.output import OF_A_START
from miniqwen.config.training import TrainConfig
from miniqwen.files import read_yaml

VERSIONS = ("miniqwen", "torch", "transformers", "accelerate", "deepspeed", "datasets", "tokenizers", "numpy")


def lives_until_now(
    config: TrainConfig, checkpoint: Checkpoint | None, runs_on: str, hosts: Sequence[str]
) -> list[dict[str, Any]]:
    """The lives in the config.yaml beside `checkpoint`, and this one, whose changed flags are {name: [was, is]}."""
    flags, lives = _before(checkpoint)
    life: dict[str, Any] = {
        "began": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "start_step": checkpoint.progress.step if checkpoint else 0,
        "checkpoint": str(checkpoint.folder) if checkpoint else None,
        "command": shlex.join(sys.argv),
        "runs_on": runs_on,
        "machine": {"hosts": sorted(set(hosts)), "platform": platform.platform(), "device": _device()},
        "git_commit": _git_commit(),
        "versions": versions(),
    }
    now = plain(config)
    changed = {
        name: [was, now[name]]
        for name, was in flags.items()
        if name in now and name not in OF_A_START and was != now[name]
    }
    return [*lives, {**life, "changed": changed} if changed else life]


def _before(checkpoint: Checkpoint | None) -> tuple[Mapping[str, Any], list[dict[str, Any]]]:
    """The flags and the lives in the config.yaml beside a checkpoint; nothing where that was copied without it."""
    if checkpoint is None:
        return {}, []
    try:
        flags = read_yaml(checkpoint.folder.absolute().parent / "config.yaml")
        lives = flags.pop(RECORDED)["lives"]
        return flags, list(lives)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}, []


def flags_of_lives(flags: Mapping[str, Any], lives: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The flags that counted in each life: `flags` are those of the last."""
    found = [dict(flags)]
    for life in reversed(lives[1:]):
        found.append({**found[-1], **{name: was for name, (was, _) in life.get("changed", {}).items()}})
    return found[::-1]


def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
            found[name] = "not installed"
    return found


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()


def _git_commit() -> str | None:
    """The commit of the code, `-dirty` where files differ from it; None outside a git checkout."""
    ask = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
