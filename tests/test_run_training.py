"""How run_training.sh ends: with all it has started, saying how far the training is, and going on at the next start.

The script is the real one; what it starts is played by a few lines that save and stop as a training does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ROOT, wait_until

# Plays train_loop.py, eval_loop.py, prepare_datasets.py and miniqwen.create_model; 40 updates of 0.05 s, or for ever.
PLAYED = """
import json, os, pathlib, signal, sys, time
def value(flag):
    return pathlib.Path(sys.argv[sys.argv.index(flag) + 1])
if sys.argv[1:2] == ["-c"] or sys.argv[1:2] == ["-"]:
    os.execv(os.environ["REAL"], [os.environ["REAL"], *sys.argv[1:]])
if "--demo" in sys.argv:
    value("--demo").mkdir(parents=True)
elif "miniqwen.create_model" in sys.argv:
    value("--output_dir").mkdir(parents=True)
    (value("--output_dir") / "config.json").write_text("{}")
elif "train_loop.py" in sys.argv:
    time.sleep(float(os.environ.get("IMPORTS", 0)))
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    folder = value("--output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "trainer_state.json"
    step = json.loads(state.read_text())["step"] if state.exists() else 0
    def tell(status):
        told = {"status": status, "step": step, "max_steps": 40, "reason": status and "asked" * bool(asked)}
        state.with_name("new").write_text(json.dumps(told))
        state.with_name("new").rename(state)
    while step < 40:
        time.sleep(0.05)
        step += os.environ.get("ENDLESS", "none") not in str(folder) or step < 3
        if os.environ.get("FAILS", "none") in str(folder) and step == 5:
            tell("failed")
            sys.exit(7)
        if asked or (folder / "STOP").exists():
            time.sleep(float(os.environ.get("SAVING", 0.3)))
            tell("preempted")
            sys.exit(int(os.environ.get("STATUS", 0)))
        tell("running")
    tell("finished")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the script and a python that plays the commands."""
    place = tmp_path / "place"
    (place / "bin").mkdir(parents=True)
    (place / "run_training.sh").write_bytes((ROOT / "run_training.sh").read_bytes())
    (place / "environment.sh").write_text('PATH="$PWD/bin:$PATH"\n')
    (place / "bin" / "played.py").write_text(PLAYED)
    (place / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -S "$(dirname "$0")/played.py" "$@"\n')
    (place / "bin" / "python").chmod(0o755)
    return place


@contextlib.contextmanager
def script(place: Path, steps: str = "prepare model pretrain sciq", **environment: str) -> Iterator[Running]:
    words = [os.environ.get("TESTED_BASH", "bash"), str(place / "run_training.sh"), "demo"]
    given = {"STEPS": steps, "OUT": "out", "REAL": sys.executable, "PYTHONPATH": str(ROOT), **environment}
    with (place / "log").open("ab") as log:
        process = subprocess.Popen(
            words, cwd=place, env=os.environ | given, stdout=log, stderr=log, start_new_session=True,
            # a test may itself be run in the background, where Ctrl-C is ignored
            preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)] and None,
        )  # fmt: skip
    running = Running(process, place)
    try:
        yield running
    finally:
        process.kill()
        for pid in running.left():
            os.kill(pid, signal.SIGKILL)
        process.wait()


class Running:
    """The script while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], place: Path) -> None:
        self.process, self.place = process, place

    def until(self, run: str, step: int = 3) -> None:
        """Until a training is at an update."""
        wait_until(lambda: self.state(run).get("step", 0) >= step, self.process, seconds=30)

    def state(self, run: str) -> dict[str, object]:
        file = self.place / "out" / run / "trainer_state.json"
        found: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def ends(self) -> int:
        return self.process.wait(timeout=30)

    @property
    def told(self) -> str:
        return (self.place / "log").read_text()

    def left(self) -> list[int]:
        """The processes that it has started and that still live."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.place).encode() in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                    found.append(int(folder.name))
        return [pid for pid in found if pid != self.process.pid]


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda given: str(given),
)
def test_a_signal_to_the_script_alone_saves_what_runs_and_the_next_start_goes_on(
    place: Path, sent: signal.Signals, status: int
) -> None:
    with script(place, ENDLESS="sciq") as run:
        run.until("sciq_without_pretraining")
        run.until("sciq_finetuned")
        run.process.send_signal(sent)
        assert run.ends() == status
        assert run.left() == []
        assert [run.state(f"sciq_{name}")["status"] for name in ("finetuned", "without_pretraining")] == [
            "preempted"
        ] * 2
        assert "stopped at step sciq (out/sciq_finetuned: preempted at update 3 of 40: asked); the same" in run.told
        assert "failed" not in run.told
    with script(place) as run:
        assert run.ends() == 0, run.told
        assert "out/pretrained is finished already" in run.told
        assert run.state("sciq_without_pretraining")["status"] == "finished"


@pytest.mark.parametrize("status", ["0", "1", "85"])
def test_a_training_that_a_stop_file_ends_ends_the_script_whatever_its_status_says(place: Path, status: str) -> None:
    """0 is a preempted run's own, 1 that of a launcher, 85 one of the user's."""
    with script(place, ENDLESS="pretrained", STATUS=status) as run:
        run.until("pretrained")
        (place / "out" / "pretrained" / "STOP").touch()
        assert run.ends() == 85
        assert "stopped at step pretrain (out/pretrained: preempted at update 3 of 40)" in run.told
        assert "fine-tuning" not in run.told


def test_a_signal_in_the_first_moments_of_a_step_is_not_lost(place: Path) -> None:
    with script(place, IMPORTS="20") as run:
        wait_until(lambda: "pretraining" in run.told and run.left(), run.process)
        began = time.monotonic()
        run.process.send_signal(signal.SIGTERM)
        assert run.ends() == 143
        assert time.monotonic() - began < 10
        assert run.left() == []


def test_a_training_that_fails_takes_the_one_beside_it_along_which_saves(place: Path) -> None:
    with script(place, ENDLESS="without", FAILS="finetuned") as run:
        assert run.ends() == 7
        assert run.left() == []
        assert run.state("sciq_without_pretraining")["status"] == "preempted"
        assert "step sciq failed with status 7 (out/sciq_finetuned: failed at update 5 of 40)" in run.told


def test_a_second_ctrl_c_kills_at_once_what_takes_long_to_save(place: Path) -> None:
    with script(place, ENDLESS="pretrained", SAVING="60") as run:
        run.until("pretrained")
        run.process.send_signal(signal.SIGINT)
        time.sleep(2.1)  # the script's clock has seconds only
        assert run.process.poll() is None
        assert "Ctrl-C once more kills it" in run.told
        run.process.send_signal(signal.SIGINT)
        assert run.ends() == 130
        assert run.left() == []


def test_finished_steps_are_not_repeated_and_the_asked_for_ones_are_counted(place: Path) -> None:
    for _ in range(2):
        with script(place, "model pretrain") as run:
            assert run.ends() == 0, run.told
    assert run.told.count("out/pretrained is finished already") == 1
    assert run.told.count("[1/2] a model") == run.told.count("[2/2] pretraining") == 2


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
