"""What several tests need: scripts run as users run them, runs that go on in the background, and rows of small data."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import random
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent
Runner = Callable[..., subprocess.CompletedProcess[str]]


# Read by libraries while they are imported: a script with one of these has a Python of its own, warm if it is for
# several processes.
READ_AT_IMPORT = ("HF_", "OMP_", "PYTHON", "PATH")
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}


SHARED = "MINIQWEN_TESTS_WARM_PYTHON"  # its folder, where several workers of pytest have one together


@functools.cache
def warm_folder(**read_at_import: str) -> Path:
    """Where a Python listens, soon, that imports the libraries, and `python` runs scripts in copies of it."""
    if SHARED in os.environ and not read_at_import:
        return Path(os.environ[SHARED])
    server, folder = str(ROOT / "tests" / "warm_start.py"), Path(tempfile.mkdtemp(prefix="warm_"))
    python = folder / "python"  # torchrun says -u
    begin = shlex.join([sys.executable, "-S", server, "run", str(folder / "socket")])
    python.write_text(f'#!/bin/sh\n[ "$1" = -u ] && shift\nexec {begin} "$@"\n')
    python.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, server, "serve", str(folder / "socket")], cwd=ROOT, env=os.environ | OFFLINE | read_at_import
    )

    def end() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return folder


def warm_python(**read_at_import: str) -> str:
    """What runs scripts and modules of the project as Python does, without importing the libraries again."""
    folder = warm_folder(**read_at_import)
    wait_until((folder / "socket").exists, seconds=600)  # beside much other work
    return str(folder / "python")


def ranks_by(python: str) -> dict[str, str]:
    """The variable by which torchrun, and so `accelerate launch`, starts its ranks with this Python too."""
    return {"PYTHON_EXEC": python}


def run_script(
    script: str, *flags: object, processes: int = 1, environment: dict[str, str] | None = None, limit: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as a user does; several processes go through torchrun."""
    own = {name: value for name, value in (environment or {}).items() if name.startswith(READ_AT_IMPORT)}
    python = sys.executable if own and processes == 1 else warm_python(**own)
    launcher = torchrun(processes, python) if processes > 1 else [python]
    command = [*launcher, script, *map(str, flags)]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | OFFLINE | ranks_by(python) | (environment or {}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # not kill: torchrun takes its workers with it
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


WORDS = ("stone river light metal cloud tower green amber north quiet heavy salt glass wind paper copper").split()


def article(number: int) -> str:
    """A text of its own for every number: a heading and some sentences of random words."""
    drawn = random.Random(number)
    sentences = (" ".join(drawn.choices(WORDS, k=drawn.randint(3, 12))) for _ in range(drawn.randint(1, 9)))
    return f"Article {number}\n\n" + ". ".join(sentences) + "."


def sciq_row(number: int) -> dict[str, str]:
    turned = [WORDS[(number + i) % len(WORDS)] for i in range(4)]
    return {
        "question": f"Which word has number {number}?", "distractor3": turned[2], "distractor1": turned[0],
        "distractor2": turned[1], "correct_answer": turned[3], "support": "Words have numbers." * (number % 2),
    }  # fmt: skip


def commonsense_row(number: int, answered: bool = True) -> dict[str, Any]:
    texts = [WORDS[(number + i) % len(WORDS)] for i in range(5)]
    return {
        "id": f"c{number}", "question": f"Which word would one choose for {number}?", "question_concept": "word",
        "choices": {"label": list("ABCDE"), "text": texts}, "answerKey": "ABCDE"[number % 5] if answered else "",
    }  # fmt: skip


def write_parquet(folder: Path, split: str, rows: list[dict[str, Any]], shards: int = 1, group: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = rows[shard * len(rows) // shards : (shard + 1) * len(rows) // shards]
        pq.write_table(
            pa.Table.from_pylist(part), folder / f"{split}-{shard:05}-of-{shards:05}.parquet", row_group_size=group
        )


needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ninja", path=str(Path(sys.executable).parent))),
    reason="DeepSpeed compiles its CPU communication with g++ and ninja",
)

TINY = (
    "--dataset_name both --block_size 32 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 "
    "--learning_rate 1e-2 --warmup_steps 2 --logging_steps 1 --save_steps 1000 --validation_blocks 8 --report_to none"
).split()


def torchrun(processes: int, python: str = sys.executable) -> list[str]:
    return [python, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def command(*flags: object, processes: int = 1, launcher: Sequence[str] | None = None) -> list[str]:
    """The command line of one training; several processes go through torchrun."""
    if launcher is None:
        launcher = torchrun(processes, warm_python()) if processes > 1 else [warm_python()]
    return [*launcher, "train_loop.py", *map(str, flags)]


@contextlib.contextmanager
def running(words: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command in the background, in a session of its own, all of which ends with the block.

    A launcher that is started with `warm_python` starts its ranks with it.
    """
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    ranks_too = ranks_by(warm_python()) if warm_python() in words else {}
    with log.open("ab") as file:
        process = subprocess.Popen(
            list(words), cwd=ROOT, env=os.environ | offline | ranks_too | environment, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_until(
    condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None, seconds: float = 300
) -> Any:
    """What `condition()` gives once it is true; the process must live until then."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it takes too long"
        assert process is None or process.poll() is None, f"the run ended with status {process.returncode}"
        time.sleep(0.05)
    return found


def lines(output: Path) -> list[dict[str, Any]]:
    """The events told so far; a line that is being written does not count."""
    file = output / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def wait_for_updates(process: subprocess.Popen[bytes], output: Path, more: int = 3) -> None:
    """Until `more` lines of metrics than now are there."""
    before = len(lines(output))
    wait_until(lambda: len(lines(output)) >= before + more, process)


def state(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "trainer_state.json").read_text())
    return found


def copy_of(pid: int) -> int | None:
    """The process that really runs the script, if `pid` has it run by a warm Python."""
    with contextlib.suppress(OSError):
        return int(str((warm_folder() / f"socket.{pid}").readlink()))
    return None


def descendants(pid: int) -> list[int]:
    """All living processes under `pid`, and the copies of the warm Python that run their scripts."""
    try:
        children = [
            int(child)
            for thread in Path(f"/proc/{pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
    except OSError:
        return []
    copy = copy_of(pid)
    children += [] if copy is None else [copy]
    return [found for child in children for found in (child, *descendants(child))]


def ranks(launcher: int) -> dict[int, int]:
    """{rank: process} of the training processes under a launcher."""
    found = {}
    for pid in descendants(launcher):
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            rank = next((value[5:] for value in variables if value.startswith(b"RANK=")), None)
            if rank is not None and b"train_loop.py" in words and b"torch.distributed.run" not in words:
                found.setdefault(int(rank), copy_of(pid) or pid)
    return found


def metrics(output: Path) -> dict[int, dict[str, float]]:
    """{update: all that was logged there}."""
    found: dict[int, dict[str, float]] = {}
    for line in (output / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        found.setdefault(values["step"], {}).update(values)
    return found


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of an offline file: LevelDB log format, in blocks of 32 KiB, after a header of 7 bytes.

    What a killed run left of the last one is none.
    """
    from wandb.proto import wandb_internal_pb2

    data, offset, whole = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:  # too short for a header: padding
            offset += 32768 - offset % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, offset + 4)
        if offset + 7 + length > len(data):
            return
        whole += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # full, or last of several
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""
