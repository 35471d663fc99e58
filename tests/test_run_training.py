"""run_training.sh and what it starts: nothing outlives it, nothing is begun after a stop, nothing finished is repeated.

Its trainings are played by a program that starts, waits and stops as the loops do, but at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs import ROOT, descendants, wait_until

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
PLAYED = r"""
import json, os, signal, sys, time
output = sys.argv[sys.argv.index("--output_dir") + 1]
name = os.path.basename(output)
does = os.environ.get("DOES_" + name, "waits")
os.makedirs(output, exist_ok=True)

def state(status):
    with open(os.path.join(output, "trainer_state.json"), "w") as file:
        json.dump({"status": status}, file)
    print(name, status, flush=True)

def stop(number, frame):
    time.sleep(0.3)  # saving
    state("preempted")
    sys.exit(85)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
state("running")
if does == "finishes":
    state("finished")
    sys.exit(0)
if does == "fails":
    while not os.path.exists(os.path.join(output, "..", "sciq_without_pretraining", "trainer_state.json")):
        time.sleep(0.05)
    print("error: 1 problem")
    sys.exit(2)
if does == "stops":
    stop(0, None)
while True:
    time.sleep(0.05)
"""


def installed() -> bool:
    wanted = subprocess.run(
        "cat pyproject.toml constraints.txt | cksum", shell=True, cwd=ROOT, capture_output=True
    ).stdout
    mark = ROOT / ".venv" / ".installed"
    return mark.exists() and mark.read_bytes() == wanted


pytestmark = pytest.mark.skipif(not installed(), reason="the script would install .venv first: ./run_tests.sh does")


@contextmanager
def script(tmp_path: Path, steps: str, **does: str) -> Iterator[subprocess.Popen[bytes]]:
    """The demo's steps in a session of their own; what they print is in `tmp_path/log`."""
    played = tmp_path / "played.py"
    played.write_text(PLAYED)
    environment = {
        "LAUNCH": f"{sys.executable} -S {played}", "STEPS": steps, "OUT": str(tmp_path / "out"),
        **{f"DOES_{name}": what for name, what in does.items()},
    }  # fmt: skip
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(
        ["bash", "run_training.sh", "demo"], cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            for pid in (process.pid, *descendants(process.pid)):
                os.kill(pid, signal.SIGKILL) if process.poll() is None else None


def states(tmp_path: Path) -> dict[str, str]:
    found = {file.parent.name: file.read_text() for file in (tmp_path / "out").glob("*/trainer_state.json")}
    return {name: text.split('"')[3] for name, text in found.items()}


@pytest.mark.parametrize("number", STATUS, ids=lambda number: number.name)
def test_a_signal_to_the_script_alone_reaches_both_trainings_and_it_waits_until_they_have_saved(
    tmp_path: Path, number: signal.Signals
) -> None:
    with script(tmp_path, "sciq commonsenseqa") as process:
        wait_until(lambda: len(states(tmp_path)) == 2, process)
        begun = descendants(process.pid)
        assert len(begun) >= 2
        process.send_signal(number)
        assert process.wait(timeout=60) == STATUS[number]
        assert states(tmp_path) == {"sciq_finetuned": "preempted", "sciq_without_pretraining": "preempted"}
        assert not [pid for pid in begun if Path(f"/proc/{pid}").exists()]
    assert "stopped at step sciq; the same command goes on from there" in (tmp_path / "log").read_text()


def test_a_training_that_fails_takes_the_one_beside_it_along(tmp_path: Path) -> None:
    with script(tmp_path, "sciq commonsenseqa", sciq_finetuned="fails") as process:
        assert process.wait(timeout=60) == 2
    assert states(tmp_path)["sciq_without_pretraining"] == "preempted"
    assert "step sciq failed with status 2" in (tmp_path / "log").read_text()


def test_after_a_stopped_training_no_step_begins_and_the_next_start_goes_on_with_it(tmp_path: Path) -> None:
    done = {"sciq_finetuned": "finishes", "sciq_without_pretraining": "finishes"}
    with script(tmp_path, "pretrain sciq", pretrained="stops", **done) as process:
        assert process.wait(timeout=60) == 85
    assert states(tmp_path) == {"pretrained": "preempted"}
    with script(tmp_path, "pretrain sciq", pretrained="finishes", **done) as process:
        assert process.wait(timeout=60) == 0
    assert states(tmp_path) == dict.fromkeys(("pretrained", *done), "finished")
    with script(tmp_path, "pretrain sciq") as process:  # each would wait for ever
        assert process.wait(timeout=60) == 0
    said = (tmp_path / "log").read_text()
    assert said.count("is finished already") == 2, "the third is said in its log"
    assert "[1/2] pretraining" in said
    assert "[2/2] fine-tuning on sciq" in said


def test_an_unknown_mode_is_refused_before_anything_is_made() -> None:
    done = subprocess.run(["bash", "run_training.sh", "demp"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: ./run_training.sh [demo]\n")


OLD = "#!/bin/sh\ncase $1 in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac\n"


@pytest.mark.parametrize(
    ("python", "told"),
    [
        ("old", "PYTHON={0} is Python 3.9.2; 3.11 or newer is needed"),
        ("nothing", "PYTHON={0} is no Python that runs; 3.11 or newer is needed"),
    ],
)
def test_a_python_that_cannot_make_the_environment_is_named(tmp_path: Path, python: str, told: str) -> None:
    for name in ("environment.sh", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "old").write_text(OLD)
    (tmp_path / "old").chmod(0o755)
    given = str(tmp_path / python)
    made = {"cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(["bash", "-c", ". ./environment.sh; echo on"], env=os.environ | {"PYTHON": given}, **made)  # type: ignore[call-overload]
    assert (done.returncode, done.stdout) == (2, "")
    assert told.format(given) in done.stderr
    (tmp_path / ".venv").mkdir()
    done = subprocess.run(["bash", "-c", ". ./environment.sh; echo on"], **made)  # type: ignore[call-overload]
    assert (done.returncode, done.stdout) == (2, "")
    assert "delete the folder .venv and start again" in done.stderr
