"""Every n-th operation on a run's files fails, and the next start ends as if none had.

A few of the operations here, spread over the life of a run; all of them by

    DISK_FAULTS=all python -m pytest -n 2 tests/test_disk_faults.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from runs import TINY, run_script
from safetensors.torch import load_file
from torch.testing import assert_close

from miniqwen.training.auditing import audit

Done = subprocess.CompletedProcess[str]
HOWS = ("kill", "ENOSPC", "EIO")
TRIALS = os.environ.get("DISK_FAULTS", "5")  # of each kind of life, or all
MOST = 400  # operations that a life has; those beyond its last are none
ASKED = (
    *TINY, "--save_steps", 2, "--eval_strategy", "steps", "--eval_steps", 2, "--sample_prompts", "none",
    "--load_best_model_at_end", "--save_total_limit", 1,
)  # fmt: skip
# What a life is asked for. The first ends at update 4; the other begins in what the first left, goes back to update 2,
# sets aside what lies beyond it, saves the same steps again and prunes.
LIVES = {"first": ("--max_steps", 4), "back": ("--max_steps", 6)}


@dataclass(frozen=True)
class World:
    """Where the trials begin, and where they are to end."""

    flags: tuple[object, ...]
    begun: Path | None  # what lies in the output folder before
    weights: Path
    operations: list[str]

    def start(
        self, output: Path, resume: str, fault: dict[str, object] | None = None, told: Path | None = None
    ) -> object:
        words = ("train_loop.py", *self.flags, "--output_dir", output, "--resume_from_checkpoint", resume)
        if fault is None:
            return run_script(*words)
        asked = {"folder": str(output), "told": str(told), **fault}
        return run_script("tests/faulty_disk.py", json.dumps(asked), *words)


@pytest.fixture(scope="module")
def worlds(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    root = tmp_path_factory.mktemp("disk")
    data = (*ASKED, "--model_path", model, "--data_root", mirror)
    kept = (*data, "--save_total_limit", 2)  # so that there is one to go back to
    found = {}
    for life, more in LIVES.items():
        begun = root / "begun" if life == "back" else None
        if begun:
            done = run_script("train_loop.py", *kept, *LIVES["first"], "--output_dir", begun)
            assert done.returncode == 0, done.stderr
        output, told = root / life, root / f"{life}.txt"
        if begun:
            shutil.copytree(begun, output)
        world = World((*data, *more), begun, output, [])
        resume = str(output / "checkpoint-2") if begun else "auto"
        done = world.start(output, resume, {"at": 0, "how": "kill", "lasting": False}, told)
        assert done.returncode == 0, done.stderr
        world.operations.extend(told.read_text().splitlines())
        found[life] = world
    return found


@cache
def places(count: int) -> list[int]:
    """Which operations fail, spread over all of them."""
    wanted = count if TRIALS == "all" else min(count, int(TRIALS))
    return [1 + (2 * n + 1) * count // (2 * wanted) for n in range(wanted)]


def test_the_lives_have_operations_of_every_kind(worlds: dict[str, World]) -> None:
    for life, world in worlds.items():
        kinds = Counter(line.split()[0] for line in world.operations)
        assert set(kinds) >= {"open", "write", "sync", "replace", "rename", "mkdir", "unlink"}, (life, kinds)
        assert 60 < len(world.operations) < MOST


@pytest.mark.parametrize("number", range(MOST if TRIALS == "all" else int(TRIALS)))
@pytest.mark.parametrize("life", LIVES)
def test_whatever_operation_fails_the_next_start_ends_as_if_none_had(
    life: str, number: int, worlds: dict[str, World], tmp_path: Path
) -> None:
    world = worlds[life]
    chosen = places(len(world.operations))
    if number >= len(chosen):
        pytest.skip("the life has no so many operations")
    at = chosen[number]
    for how, lasting in ((HOWS[number % 3], number % 2 == 1),) if TRIALS != "all" else [
        ("kill", False), ("ENOSPC", False), ("ENOSPC", True), ("EIO", False)
    ]:  # fmt: skip
        output, told = tmp_path / f"{how}{lasting}", tmp_path / f"{how}{lasting}.txt"
        if world.begun:
            shutil.copytree(world.begun, output)
        resume = str(output / "checkpoint-2") if world.begun else "auto"
        failed = world.start(output, resume, {"at": at, "how": how, "lasting": lasting}, told)
        what = f"{life}, operation {at}: {world.operations[at - 1]}, {how}{', and all behind it' * lasting}"
        fired = [line for line in told.read_text().splitlines() if line.startswith("fired ")]
        assert fired, f"{what}: never reached\n{failed.stderr}"
        assert "Traceback" not in failed.stderr, f"{what}\n{failed.stderr}"
        if failed.returncode != 0 or lasting:
            there = world.begun is None or (output / "checkpoint-2" / "manifest.json").is_file()
            again = world.start(output, resume if there else "auto")  # the same command, while it can be given
            assert again.returncode == 0, f"{what}\n{again.stderr}"
        assert audit(output).faults == [], what
        for file in sorted(world.weights.rglob("model*.safetensors")):
            if "aside-" not in str(file):
                assert_close(
                    load_file(output / file.relative_to(world.weights)), load_file(file), rtol=0, atol=0, msg=what
                )
