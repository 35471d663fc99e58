"""What every command does before its work begins: a Python that cannot run it, and Ctrl-C during the imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import OFFLINE, ROOT, wait_until

COMMANDS = (
    ["train_loop.py"], ["eval_loop.py"], ["prepare_datasets.py"], ["-m", "miniqwen.create_model"],
    ["-m", "miniqwen.generate"], ["-m", "miniqwen.audit"], ["-m", "miniqwen.report"],
    ["-m", "miniqwen.caches"], ["-m", "miniqwen.export"],
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_python_without_the_packages_is_told_how_to_get_them(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-S", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "has no yaml, pydantic" in line
    assert ". .venv/bin/activate" in line
    assert "pip install -c constraints.txt -e ." in line


OLDER = """
import runpy, sys
sys.version_info = type("V", (tuple,), {"major": 3, "minor": 9})((3, 9, 2))
sys.argv = [sys.argv[1]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("file", ["train_loop.py", "eval_loop.py", "prepare_datasets.py"])
def test_a_python_that_is_too_old_is_told_before_anything_else(file: str) -> None:
    done = subprocess.run([sys.executable, "-c", OLDER, file], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is Python 3.9, and 3.11 is needed" in done.stderr
    assert "Traceback" not in done.stderr
    compile((ROOT / file).read_text(), file, "exec", dont_inherit=True)


@pytest.mark.parametrize(
    ("command", "number", "told", "status"),
    [
        (["eval_loop.py", "--dataset_name", "sciq"], signal.SIGINT, "interrupted: what was answered is kept", 130),
        (["prepare_datasets.py", "--sciq"], signal.SIGINT, "interrupted: complete files are kept", 130),
        (["-m", "miniqwen.create_model"], signal.SIGTERM, "interrupted: no model was written", 143),
        (["-m", "miniqwen.generate", "stone"], signal.SIGINT, "interrupted: the answer ends here", 130),
        (["-m", "miniqwen.audit", "tests"], signal.SIGINT, "interrupted: nothing was changed", 130),
        (["train_loop.py", *"--dataset_name both --max_steps 2 --block_size 32 --preempted_exit_code 85".split()],
         signal.SIGINT, "SIGINT was received: nothing to save yet, the run ends", 85),
    ],
    ids=["eval_loop", "prepare_datasets", "create_model", "generate", "audit", "train_loop"],
)  # fmt: skip
def test_an_interrupt_during_the_imports_is_one_line(
    model: Path, mirror: Path, tmp_path: Path, command: list[str], number: int, told: str, status: int
) -> None:
    flags = {"--model_path": model, "--data_root": mirror, "--output_dir": tmp_path / "out"}
    unknown = {
        "prepare": ("--model_path", "--output_dir"),
        "create": ("--model_path",),
        "generate": ("--data_root", "--output_dir"),
        "audit": ("--model_path", "--data_root", "--output_dir"),
    }
    left_out = next((names for word, names in unknown.items() if any(word in part for part in command)), ())
    given = [str(word) for flag, value in flags.items() if flag not in left_out for word in (flag, value)]
    with subprocess.Popen(
        [sys.executable, *command, *given], cwd=ROOT, env=os.environ | OFFLINE, stderr=subprocess.PIPE, text=True
    ) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        wait_until(lambda: "libtorch_cpu" in maps.read_text(), process)  # type: ignore[arg-type]
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert told in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("*/*")), "nothing is left behind"
