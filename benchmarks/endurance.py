"""Does a long run stay as it was? Memory, handles, threads and disk over 100,000 updates of a tiny model.

    python benchmarks/endurance.py                      # 100,000 updates, 200 saves and evaluations: half an hour
    python benchmarks/endurance.py --updates 3000       # what `pytest -m slow` does

The script makes its own data and model, and starts `train_loop.py` on them, with TensorBoard and offline W&B. Each
second it looks at the process and at its folder. The first quarter of the run, in which caches fill, is left out; the
second quarter is compared with the last. What only grows by design is told per update and must not grow faster: lines
of metrics, events, the report. Exit status 1 if anything grew by more than its allowance (see `ALLOWED`).
Costs: a core; a look is a millisecond.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from crash_test import environment, make_world  # noqa: E402

SAVES = 200  # of a run, and evaluations
# What the last quarter may have more of than the second: MiB; handles, threads; files and MiB of all that is no log;
# bytes of logs an update, as a share.
ALLOWED = {"memory": 8.0, "handles": 0, "threads": 0, "files": 0, "disk": 0.05, "logs": 0.10}
LOGS = ("metrics.jsonl", "events.out.tfevents.", "report.html", "wandb")  # beginnings of what grows with the updates


@dataclass(frozen=True)
class Look:
    """What there was at one moment: `update` of the last line of metrics, MiB, numbers; `logs` in bytes."""

    update: int
    memory: float
    handles: int
    threads: int
    files: int
    disk: float
    logs: int


def command(world: tuple[Path, Path], output: Path, updates: int) -> list[str]:
    every = max(1, updates // SAVES)
    flags = (
        f"--model_path {world[0]} --dataset_name {world[1]} --task pretrain --output_dir {output} --block_size 32 "
        f"--per_device_train_batch_size 1 --learning_rate 1e-3 --max_steps {updates} --save_steps {every} "
        f"--save_total_limit 2 --eval_strategy steps --eval_steps {every} --validation_blocks 2 "
        f"--logging_steps {max(1, every // 10)} --report_to tensorboard wandb --sample_prompts none"
    )
    return [sys.executable, "train_loop.py", *flags.split()]


def looked_at(process: psutil.Process, output: Path) -> Look | None:
    """None before the first line of metrics, between two files of a save, and when the run has ended."""
    try:
        sizes = {path: path.stat().st_size for path in output.rglob("*") if path.is_file()}
        if any(".tmp" in part for path in sizes for part in path.relative_to(output).parts):
            return None
        if len(list(output.glob("checkpoint-*/manifest.json"))) < 2:
            return None
        lines = (output / "metrics.jsonl").read_bytes()[-4096:].split(b"\n")
        logs = {path for path in sizes if path.relative_to(output).parts[0].startswith(LOGS)}
        with process.oneshot():
            return Look(
                json.loads(lines[-2])["step"], process.memory_info().rss / 2**20, process.num_fds(),
                process.num_threads(), len(sizes), sum(sizes[path] for path in sizes.keys() - logs) / 2**20,
                sum(sizes[path] for path in logs),
            )  # fmt: skip
    except (OSError, IndexError, ValueError, KeyError, psutil.Error):  # it changes while it is looked at
        return None


def looks(running: subprocess.Popen[bytes], output: Path, seconds: float) -> Iterator[Look]:
    process = psutil.Process(running.pid)
    while running.poll() is None:
        if found := looked_at(process, output):
            yield found
        time.sleep(seconds)


def growth(found: Sequence[Look], updates: int) -> dict[str, float]:
    """What the last quarter has more of than the second, in the units of `ALLOWED`; medians of each quarter."""
    quarters = [[one for one in found if low < one.update / updates <= low + 0.25] for low in (0.25, 0.75)]
    if not all(quarters):
        raise SystemExit("the run was too short to be looked at in each quarter: more --updates")
    early, late = (
        {field.name: statistics.median(getattr(one, field.name) for one in quarter) for field in fields(Look)}
        for quarter in quarters
    )
    grown = {name: late[name] - early[name] for name in ("memory", "handles", "threads", "files", "disk")}
    first, middle, last = quarters[0][0], quarters[1][0], quarters[1][-1]
    rates = [(b.logs - a.logs) / max(1, b.update - a.update) for a, b in ((first, middle), (middle, last))]
    return grown | {"logs": rates[1] / rates[0] - 1}


def table(found: Sequence[Look]) -> Iterator[str]:
    names = [field.name for field in fields(Look)]
    yield " ".join(f"{name:>9}" for name in names)
    for place in range(10):
        one = found[place * (len(found) - 1) // 9]
        values = [getattr(one, name) for name in names]
        yield " ".join(f"{value:>9,.1f}" if isinstance(value, float) else f"{value:>9,}" for value in values)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=1.0, help="between two looks")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        output = folder / "run"
        world = make_world(folder, 32)
        with (folder / "log").open("wb") as log:
            running = subprocess.Popen(
                command(world, output, given.updates), cwd=ROOT, stdout=log, stderr=log,
                env=environment(sys.executable) | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"},
            )  # fmt: skip
            try:
                found = list(looks(running, output, given.seconds))
            finally:
                running.kill()
                running.wait()
        if running.returncode:
            raise SystemExit(f"the run ended with {running.returncode}:\n{(folder / 'log').read_text()[-3000:]}")
        grown = growth(found, given.updates)
    print("\n".join(table(found)))
    for name, more in grown.items():
        print(f"{'too much' if more > ALLOWED[name] else 'flat'}: {name} {more:+.3g} (allowed {ALLOWED[name]:g})")
    return int(any(more > ALLOWED[name] for name, more in grown.items()))


if __name__ == "__main__":
    sys.exit(main())
