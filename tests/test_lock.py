"""One writer a folder: the second is told whose it is, and who is gone, or lost it, does not hold it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ROOT, command, lines, run_script, running, state, wait_until

from miniqwen import lock
from miniqwen.config.output import OutputFlags
from miniqwen.errors import UserError
from miniqwen.lock import LOCK_FILE, FolderLock, LockLost

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom miniqwen.lock import FolderLock\n"
    "with FolderLock(Path(sys.argv[1]), 'other.py'):\n    print('held', flush=True)\n    time.sleep(600)\n"
)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that holds `tmp_path`/run."""
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "run"], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def seems_elsewhere(folder: Path) -> None:
    """As if the owner ran on a machine whose processes cannot be seen from here; in place, as beats are."""
    owner = json.loads((folder / LOCK_FILE).read_text())
    with (folder / LOCK_FILE).open("r+") as file:
        file.write(json.dumps({**owner, "machine": ["far"], "host": "far"}))
        file.truncate()


def test_a_second_writer_is_told_who_the_first_is_and_may_write_when_that_one_has_let_go(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "first.py"):
        with pytest.raises(UserError, match=rf"first\.py \(process {os.getpid()} on .*is writing there"):
            FolderLock(tmp_path, "second.py").acquire()
        with FolderLock(tmp_path, "second.py", file=".other.lock"):  # stands for something else there
            pass
    assert list(tmp_path.iterdir()) == []
    with FolderLock(tmp_path, "second.py"):
        pass


def test_a_killed_owner_is_asked_and_its_folder_taken_over_at_once(
    held: subprocess.Popen[bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    held.send_signal(signal.SIGSTOP)  # it lives, though it shows no sign of it
    with pytest.raises(UserError, match=r"other\.py"):
        FolderLock(folder, "second.py").acquire()
    held.kill()
    held.wait()
    with FolderLock(folder, "second.py"):
        assert "gone without having let go" in capsys.readouterr().out


def test_an_owner_elsewhere_is_known_by_its_beats(
    held: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(lock, "PATIENCE", 2.5 * lock.BEAT)
    seems_elsewhere(folder)
    with pytest.raises(UserError, match="on far"):
        FolderLock(folder, "second.py").acquire()
    held.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with FolderLock(folder, "second.py") as mine:
        assert time.monotonic() - began >= lock.PATIENCE
        held.send_signal(signal.SIGCONT)  # its beats are no longer this lock's
        mine.check()


def test_an_owner_that_was_taken_over_is_told_and_does_not_let_go_of_the_others_lock(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path, "first.py"), FolderLock(tmp_path, "second.py")
    first.acquire()
    first.check()
    (tmp_path / LOCK_FILE).unlink()
    second.acquire()
    with pytest.raises(LockLost, match=r"second\.py .* has taken over"):
        first.check()
    first.release()
    second.check()
    second.release()
    with pytest.raises(LockLost, match="is gone"):  # also once that one has ended, whose work it would overwrite
        first.check()


def test_a_copied_folder_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 1.5)
    with FolderLock(tmp_path / "run", "first.py"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with FolderLock(tmp_path / "copy", "second.py"):
            pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b'{"pid": "x"}'])
def test_a_lock_that_cannot_be_read_is_waited_for_like_one_from_elsewhere(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    (tmp_path / LOCK_FILE).write_bytes(content)
    with FolderLock(tmp_path, "second.py"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["program"] == "second.py"


def test_of_many_that_find_an_owner_gone_one_takes_over(tmp_path: Path) -> None:
    """Each that got it waits a little: a second one would find it living."""
    (tmp_path / LOCK_FILE).write_text(json.dumps({"machine": lock.this_machine(), "pid": 2**22 + 1, "began": 0}))
    program = HOLD.replace("600", "3") + "\n"
    several = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, stderr=-1)
        for _ in range(6)
    ]
    told = [process.communicate()[0].decode() for process in several]
    assert sum("held" in one for one in told) == 1, told


def test_a_folder_that_cannot_be_written_is_one_screen(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output_dir .*cannot be written"):
        FolderLock(tmp_path / "file" / "run", "first.py").acquire()


def test_a_lock_alone_does_not_make_a_folder_somebodys_run(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).touch()
    assert OutputFlags(output_dir=str(tmp_path), dataset_name="wikipedia").problems() == []


def test_a_second_training_in_a_folder_is_refused_and_the_first_goes_on(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    flags = (
        "--model_path", model, "--data_root", mirror, "--output_dir", output, "--dataset_name", "both", "--block_size",
        32, "--per_device_train_batch_size", 2, "--logging_steps", 1, "--save_steps", 5,
        "--report_to", "none", "--resume_from_checkpoint", "auto",
    )  # fmt: skip
    with running(command(*flags, "--max_steps", 100000), tmp_path / "log") as process:
        wait_until(lambda: len(lines(output)) > 5, process)
        for more in ((), ("--overwrite_output_dir",)):
            done = run_script("train_loop.py", *flags, "--max_steps", 100000, *more)
            assert done.returncode == 2, done.stderr
            assert "train_loop.py (process" in done.stderr
            assert "is writing there" in done.stderr
        assert state(output)["status"] == "running"
        before = len(lines(output))
        wait_until(lambda: len(lines(output)) > before + 3, process)
    # killed: the next one takes over, and goes on
    done = run_script("train_loop.py", *flags, "--max_steps", lines(output)[-1]["step"] + 8)
    assert done.returncode == 0, done.stderr
    assert "taking over" in done.stdout
    assert state(output)["status"] == "finished"
    assert not (output / LOCK_FILE).exists()
