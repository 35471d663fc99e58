"""Whether two checkouts do the same to the last bit: for refactorings, which should change nothing.

    python benchmarks/same_run.py OLD_CHECKOUT NEW_CHECKOUT [--wanted 'NAME=WHY' ...] [--work DIR]

Both run the same commands on the demo's data with this Python: the mirror and the model are made, 20 updates of its
pretraining, 10 of each fine-tuning, 10 on two DDP processes; both evaluations; `--help` and a screen of mistakes of
every command. NEW also goes on from OLD's checkpoint of update 10. Compared are losses, gradient norms and learning
rates, the digests of the data, every tensor file and every other file that is left, and what is printed; clocks, paths,
commits and the times of day are left out. Each line of the output is one comparison. A difference that was wanted is
named with --wanted, as the line names it, and why; one that is named and does not come is told too.
Exit status: 0 if all is equal but what was wanted, else 1. Costs: about six minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TRAIN = "train_loop.py --logging_steps 1 --report_to none --eval_strategy steps --max_eval_samples 40"
PRETRAIN = f"{TRAIN} --config recipes/demo_pretrain.yaml --model_path W/model --data_root W/mirror"
TWENTY = "--max_steps 20 --save_steps 10 --eval_steps 10"
TEN = "--max_steps 10 --save_steps 5 --eval_steps 5 --warmup_ratio 0 --warmup_steps 2"
TWO = "-m torch.distributed.run --standalone --nproc_per_node 2"
COMMANDS = {
    "mirror": "prepare_datasets.py --demo W/mirror",
    "listing": "prepare_datasets.py --all --data_root W/mirror",
    "model": "-m miniqwen.create_model --config recipes/demo_model.yaml --output_dir W/model --data_root W/mirror",
    "pretrained": f"{PRETRAIN} --output_dir W/pretrained {TWENTY}",
    "two processes": f"{TWO} {PRETRAIN} --output_dir W/two_processes {TEN} --per_device_train_batch_size 8",
    **{
        name: f"{TRAIN} --config recipes/demo_{name}.yaml --model_path W/pretrained --output_dir W/{name} "
        f"--data_root W/mirror {TEN}"
        for name in ("sciq", "commonsenseqa")
    },
    "evaluation": "eval_loop.py --model_path W/sciq --dataset_name both --output_dir W/evaluation --data_root W/mirror "
    "--max_eval_samples 60",
    "evaluation as the harness": "eval_loop.py --model_path W/sciq --dataset_name both --output_dir W/harness "
    "--data_root W/mirror --max_eval_samples 30 --protocol harness --num_fewshot 1",
}  # fmt: skip
RESUMED = f"{PRETRAIN} --output_dir W/resumed {TWENTY} --resume_from_checkpoint OLD/pretrained/checkpoint-10"
SCRIPTS = ("train_loop.py", "eval_loop.py", "prepare_datasets.py", "-m miniqwen.create_model")
MISTAKES = "--nonsense 1 --data_root nowhere --config none.yaml --dataset_name wikpedia"
SCREENS = {
    **{f"help of {script}": f"{script} --help" for script in SCRIPTS},
    **{f"mistakes of {script}": f"{script} {MISTAKES}" for script in SCRIPTS},
    "mistakes in numbers": "train_loop.py --dataset_name both --max_steps 0 --block_size -1 --learning_rate fast "
    "--save_steps 0 --bf16 maybe --warmup_ratio 2 --lr_scheduler_type cosin --max_time soon --packing",
}  # fmt: skip
# What no two runs have alike: names in lines of metrics, and what stands in printed lines and in records.
CLOCKS = (
    "tokens_per_second", "tokens_per_second_per_device", "data_wait", "seconds_left", "eval_seconds", "elapsed", "time",
    "time_data", "time_forward_backward", "time_optimizer", "time_save", "time_evaluation", "productive_seconds",
    "goodput", "max_memory_rss_gib",
)  # fmt: skip
PRINTED_CLOCKS = re.compile(
    r"[\d,.]+ tokens/s|\d+:\d\d:\d\d left|eval_seconds [\d.]+|\d+\.\d+ s\b|time since the start: .*"
)
LAUNCHERS_OWN = re.compile(r"[WE]\d{4} ")  # its warnings begin with the date
RECORDED = ("lives", "git_commit", "versions")


@dataclass(frozen=True)
class Checkout:
    """One of the two, and the folder that its commands write to."""

    root: Path
    work: Path

    def run(self, command: str, old: Path) -> tuple[int, str]:
        """(exit status, what was printed, without what is never alike) of a command in this checkout."""
        words = [word.replace("OLD/", f"{old}/").replace("W/", f"{self.work}/") for word in command.split()]
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                       "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}  # fmt: skip
        done = subprocess.run(
            [sys.executable, *words], cwd=self.root, env=environment, capture_output=True, text=True, check=False
        )
        printed = done.stdout.splitlines() + done.stderr.splitlines()
        said = "\n".join(line for line in printed if not LAUNCHERS_OWN.match(line))
        return done.returncode, self.plain(said)

    def plain(self, text: str) -> str:
        """`text` without this checkout's own paths, and without clocks."""
        for path, name in ((self.work, "W"), (self.root, "CHECKOUT")):
            text = text.replace(str(path), name)
        return PRINTED_CLOCKS.sub("TIME", text)


def contents(checkout: Checkout) -> Iterator[tuple[str, Any]]:
    """(name, what it holds in a form that can be compared) of every file below the work folder."""
    for path in sorted(file for file in checkout.work.rglob("*") if file.is_file()):
        name = path.relative_to(checkout.work).as_posix()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            yield name, [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]
        elif path.name == "config.yaml":
            found = yaml.safe_load(checkout.plain(path.read_text()))
            found["recorded"] = {k: v for k, v in found["recorded"].items() if k not in RECORDED}
            yield name, found
        elif path.suffix == ".json" and path.name != "manifest.json":
            yield name, json.loads(checkout.plain(path.read_text()))
        elif path.name == "manifest.json":  # every file but the JSON, which may hold paths
            hashes = json.loads(path.read_text())["sha256"]
            yield name, {file: value for file, value in hashes.items() if file.endswith(".safetensors")}
        elif "events.out" not in path.name:
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def first_difference(before: Any, now: Any, where: str = "") -> str:
    """Where two values differ first, and how."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...))
        return first_difference(before.get(key), now.get(key), f"{where}.{key}")
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        number = next(i for i, (a, b) in enumerate(zip(before, now, strict=True)) if a != b)
        return first_difference(before[number], now[number], f"{where}[{number}]")
    if isinstance(before, str) and isinstance(now, str) and "\n" in before + now:
        pairs = zip([*before.split("\n"), "(end)"], [*now.split("\n"), "(end)"], strict=False)
        before, now = next(((a, b) for a, b in pairs if a != b), (len(before), len(now)))
    return f"{where}: {before!r:.150} is now {now!r:.150}"


def compared(old: Checkout, new: Checkout) -> Iterator[tuple[str, str | None]]:
    """(what, None or how it differs) of each comparison, as they are made."""

    def both(name: str, command: str) -> Iterator[tuple[str, str | None]]:
        (was, before), (status, now) = (checkout.run(command, old.work) for checkout in (old, new))
        yield f"exit status of {name}", None if was == status else f"{was} is now {status}: {now[-1500:]}"
        yield f"what {name} prints", None if before == now else first_difference(before, now)

    for name, command in SCREENS.items():
        for what, difference in both(name, command):
            yield what.removeprefix("what ").removesuffix(" prints"), difference
    for name, command in COMMANDS.items():
        yield from both(name, command)
    files = {name: value for name, value in contents(old) if not name.startswith("resumed/")}
    found = dict(contents(new))
    yield "names of the files", None if files.keys() == found.keys() else str(files.keys() ^ found.keys())
    for name in sorted(files.keys() & found.keys()):
        same = files[name] == found[name]
        yield name, None if same else first_difference({"": files[name]}, {"": found[name]})
    status, said = new.run(RESUMED, old.work)
    yield "resume from a checkpoint of OLD", None if status == 0 else said[-1500:]
    whole, resumed = (
        {n: v for n, v in contents(c) if n.startswith(f)} for c, f in ((old, "pretrained/"), (new, "resumed/"))
    )
    for part in ("checkpoint-20/manifest.json", "checkpoint-20/progress.json", "model.safetensors", "metrics.jsonl"):
        was, now = whole[f"pretrained/{part}"], resumed.get(f"resumed/{part}")
        if part == "metrics.jsonl":
            was = [line for line in was if line["step"] > 10]
            now = [line for line in now or [] if line["step"] > 10]
        same = was == now
        yield f"resumed/{part}", None if same else first_difference({"": was}, {"": now})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--wanted", action="append", default=[], metavar="NAME=WHY")
    parser.add_argument("--work", type=Path, help="keep what was written here")
    flags = parser.parse_args()
    for checkout in (flags.old, flags.new):
        if not (checkout / "train_loop.py").is_file():
            parser.error(f"{checkout}: no checkout (no train_loop.py)")
    wanted = dict(word.split("=", 1) for word in flags.wanted)
    work = Path(flags.work or tempfile.mkdtemp(prefix="same_run_")).resolve()
    shutil.rmtree(work, ignore_errors=True)
    # names of one length, because paths stand in fields whose width shows
    sides = [Checkout(root.resolve(), work / name) for root, name in ((flags.old, "old"), (flags.new, "new"))]
    for side in sides:
        side.work.mkdir(parents=True)
    count, unwanted, met = 0, 0, set()
    for what, difference in compared(*sides):
        count += 1
        if difference is None:
            print(f"equal      {what}", flush=True)
        elif what in wanted:
            met.add(what)
            print(f"wanted     {what}: {wanted[what]} ({difference})", flush=True)
        else:
            unwanted += 1
            print(f"DIFFERENT  {what}: {difference}", flush=True)
    for what in wanted.keys() - met:
        print(f"equal, though another was wanted: {what}")
    print(f"{count} comparisons: {count - unwanted - len(met)} equal, {len(met)} wanted, {unwanted} different")
    if not flags.work:
        shutil.rmtree(work)
    return 1 if unwanted else 0


if __name__ == "__main__":
    raise SystemExit(main())
