"""kill -9, again and again: a run that is killed at random moments ends with the weights of one that was not.

    python benchmarks/crash_test.py                  # 30 kills of a run of two processes, minutes
    python benchmarks/crash_test.py --kills 3        # what the tests do

The script makes its own data and model. Each start is killed with SIGKILL, launcher and ranks together, at a random
moment: in the middle of a save every third time, else anywhere. Each next start resumes, sometimes on another number of
processes. After each kill the folder is audited, as `python -m miniqwen.audit` does. At the end the weights are
compared with those of a run that nobody touched. Exit status 1 if they differ, or if anything is not as it says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
WORDS = "stone river light metal cloud tower green amber north quiet heavy salt glass wind paper copper".split()
BATCH = 4  # blocks per update, however many processes share them
# Ranks add their gradients in another order than one process does: the last bits of a sum differ.
TOLERANCE_OTHER_WORLD = 1e-5


def text(number: int) -> str:
    drawn = random.Random(number)
    return f"Note {number}. " + " ".join(drawn.choices(WORDS, k=drawn.randint(20, 120)))


def make_world(folder: Path, hidden: int) -> tuple[Path, Path]:
    """The folder of a new model, and a file of texts."""
    sys.path.insert(0, str(ROOT))
    from miniqwen.model.modeling_miniqwen import MiniQwenConfig, new_model, save_model
    from miniqwen.model.tokenization_miniqwen import train_tokenizer

    texts = [text(number) for number in range(400)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_tokenizer(texts, 400)
    config = MiniQwenConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16, max_position_embeddings=64, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    save_model(new_model(config, seed=0), folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model", folder / "texts.jsonl"


@dataclass(frozen=True)
class Starts:
    """How runs are started, and what is killed with one: `below(PID)` are the processes that it has started."""

    python: str
    below: Callable[[int], list[int]]

    def family(self, process: subprocess.Popen[bytes]) -> list[int]:
        return [process.pid, *self.below(process.pid)]


def command(
    python: str, world: tuple[Path, Path], output: Path, steps: int, processes: int, extra: list[str]
) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    flags = (
        f"--model_path {world[0]} --dataset_name {world[1]} --task pretrain --output_dir {output} --block_size 32 "
        f"--per_device_train_batch_size 1 --gradient_accumulation_steps {BATCH // processes} --learning_rate 1e-3 "
        f"--max_steps {steps} --save_steps 3 --save_total_limit 2 --logging_steps 5 --eval_strategy steps "
        f"--eval_steps 10 --validation_blocks 4 --report_to none --resume_from_checkpoint auto"
    )
    return [python, *(torchrun if processes > 1 else []), "train_loop.py", *flags.split(), *extra]


def environment(python: str) -> dict[str, str]:
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return os.environ | settings | {"PYTHON_EXEC": python}  # torchrun's word for what starts its ranks


def descendants(pid: int) -> list[int]:
    """All living processes under `pid`."""
    try:
        tasks = [(task / "children").read_text().split() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    children = [int(child) for task in tasks for child in task]
    return [found for child in children for found in (child, *descendants(child))]


def send(family: list[int], number: signal.Signals) -> None:
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def halted(process: subprocess.Popen[bytes], starts: Starts) -> list[int]:
    """The launcher and all its processes, which stand still from now on."""
    family = starts.family(process)
    send(family, signal.SIGSTOP)
    return family


def saving(output: Path) -> bool:
    return any(output.glob(".checkpoint-*.tmp"))


def reached(output: Path) -> int:
    """The update of the newest complete checkpoint."""
    return max((int(path.name.split("-")[1]) for path in complete(output)), default=0)


def complete(output: Path) -> list[Path]:
    return [path.parent for path in output.glob("checkpoint-*/manifest.json")]


@dataclass(frozen=True)
class Kill:
    processes: int
    moment: str  # what the run was doing
    before: int  # update of the newest checkpoint at the start, and at the kill
    after: int


def start_and_kill(
    words: list[str], output: Path, processes: int, in_a_save: bool, drawn: random.Random, starts: Starts
) -> Kill:
    """One start, killed at a random moment after it has come further, or while it saves."""
    before = reached(output)
    with (output.parent / "log").open("ab") as log:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment(starts.python), stdout=log, stderr=log, start_new_session=True
        )
        patience = time.monotonic() + 300
        # a tenth of the kills come before anything is trained: at imports, loading, resuming
        early = not in_a_save and drawn.random() < 0.1
        if early:
            time.sleep(drawn.uniform(0.5, 6))
        else:
            while reached(output) <= before and process.poll() is None and time.monotonic() < patience:
                time.sleep(0.01)
            time.sleep(drawn.uniform(0, 0.6))
        family = halted(process, starts)
        while in_a_save and not saving(output) and process.poll() is None and time.monotonic() < patience:
            send(family, signal.SIGCONT)
            while not saving(output) and process.poll() is None and time.monotonic() < patience:
                pass
            family = halted(process, starts)  # and only then look: a small save is over before the next line
        moment = "saving" if saving(output) else "starting" if early else "training"
        if process.poll() is not None:
            raise SystemExit(f"a start ended by itself with status {process.returncode}; see {output.parent / 'log'}")
        send(family, signal.SIGKILL)
        process.wait()
        while any(lives(pid) for pid in family):
            time.sleep(0.01)
    return Kill(processes, moment, before, reached(output))


def run_to_the_end(words: list[str], log: Path, starts: Starts) -> None:
    with log.open("ab") as file:
        done = subprocess.run(words, cwd=ROOT, env=environment(starts.python), stdout=file, stderr=file, check=False)
    if done.returncode:
        raise SystemExit(f"status {done.returncode}; see {log}:\n{log.read_text()[-2000:]}")


def difference(one: Path, other: Path) -> float:
    """The largest absolute difference between two models' weights."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    if first.keys() != second.keys():
        raise SystemExit(f"{one} and {other} do not hold the same parameters")
    return max((first[name] - second[name]).abs().max().item() for name in first)


def as_it_says(output: Path) -> bool:
    """Whether the audit finds nothing wrong with what is left; says what is."""
    from miniqwen.training.auditing import audit

    if not complete(output) and not (output / "trainer_state.json").exists():
        return True  # killed before anything was written
    faults = audit(output).faults
    for fault in faults:
        print(f"WRONG: {fault}", flush=True)
    return not faults


def crash_test(
    folder: Path, kills: int, steps: int, hidden: int, seed: int, worlds: list[int], extra: list[str], starts: Starts
) -> bool:
    """Whether the killed run ended with the undisturbed run's weights; prints a table."""
    drawn = random.Random(seed)
    world = make_world(folder, hidden)
    print(f"undisturbed: {steps} updates on 2 processes", flush=True)
    run_to_the_end(command(starts.python, world, folder / "undisturbed", steps, 2, extra), folder / "log", starts)
    output, table = folder / "killed", []
    print(f"{'kill':>4}  {'processes':>9}  {'moment':<9}  {'had':>5}  {'left':>5}", flush=True)
    for number in range(kills):
        # every start gets its share of the way, so that the last kill is still before the end
        processes = drawn.choice(worlds)
        words = command(starts.python, world, output, steps, processes, extra)
        kill = start_and_kill(words, output, processes, number % 3 == 2, drawn, starts)
        table.append(kill)
        print(f"{number + 1:>4}  {processes:>9}  {kill.moment:<9}  {kill.before:>5}  {kill.after:>5}", flush=True)
        if kill.after < kill.before:
            print("a checkpoint was lost")
            return False
        if not as_it_says(output):
            return False
    run_to_the_end(command(starts.python, world, output, steps, 2, extra), folder / "log", starts)
    state = json.loads((output / "trainer_state.json").read_text())
    left = [path.name for path in output.glob(".*.tmp")]
    found = difference(folder / "undisturbed", output)
    same_world = all(kill.processes == 2 for kill in table)
    allowed = 0.0 if same_world else TOLERANCE_OTHER_WORLD
    print(
        f"{kills} kills ({sum(kill.moment == 'saving' for kill in table)} in a save), then to update {state['step']}: "
        f"largest difference {found:.3g} (allowed {allowed:g}); half-written files left: {left or 'none'}"
    )
    whole = all(as_it_says(folder / name) for name in ("undisturbed", "killed"))
    return found <= allowed and state["status"] == "finished" and not left and whole


def main(words: list[str] | None = None, starts: Starts = Starts(sys.executable, descendants)) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=0, help="updates in all (default: 200 for each kill)")
    parser.add_argument("--hidden", type=int, default=32, help="width of the model: larger ones save longer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--worlds", default="2,2,1", help="numbers of processes to draw from")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("extra", nargs="*", help="further flags of train_loop.py, after --")
    given = parser.parse_args(words)
    worlds = [int(world) for world in given.worlds.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        steps = given.steps or 200 * given.kills
        good = crash_test(folder, given.kills, steps, given.hidden, given.seed, worlds, given.extra, starts)
    print("the weights are those of the undisturbed run, and all that is left is as it says" if good else "FAILED")
    sys.exit(not good)


if __name__ == "__main__":
    main()
