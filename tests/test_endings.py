"""How every command ends where the machine does not play along: one screen, an exit status, never a traceback."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from runs import OFFLINE, ROOT, run_script

from miniqwen.distributed.workarounds import compilation_told
from miniqwen.errors import UserError, disk_refusal, refused_by_disk, user_errors_exit_2

TEXT = "--dataset_name both --max_steps 2 --block_size 32 --report_to none --validation_blocks 2".split()


def commands(model: Path, mirror: Path, output: Path) -> dict[str, list[object]]:
    """{name: script and flags} of what writes something to `output`."""
    data = ["--data_root", mirror]
    return {
        "train": ["train_loop.py", "--model_path", model, *data, "--output_dir", output, *TEXT],
        "eval": ["eval_loop.py", "--model_path", model, *data, "--output_dir", output, "--dataset_name", "sciq"],
        "demo": ["prepare_datasets.py", "--demo", output],
        "download": ["prepare_datasets.py", "--sciq", *data, "--download", output],
        "tokenize": ["prepare_datasets.py", "--arxiv", *data, "--tokenize", output, "--model_path", model],
        "create": ["-m", "miniqwen.create_model", "--output_dir", output, *data, "--vocab_size", "300"],
    }  # fmt: skip


def ended(words: list[object], limit: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command's end; with `limit`, no file may become longer than so many bytes."""

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=os.environ | OFFLINE | environment, capture_output=True,
        text=True, errors="replace", check=False, preexec_fn=limited,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["train", "eval", "demo", "download", "tokenize", "create"])
def test_a_place_that_cannot_be_written_is_one_screen(model: Path, mirror: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file/out", Path("/proc/nowhere/out")):
        script, *flags = commands(model, mirror, place)[name]
        done = run_script(str(script), *flags)
        assert done.returncode == 2, done.stderr
        assert "error: 1 problem" in done.stderr
        assert "cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", ["tokenize", "create"])
def test_a_disk_that_is_full_is_one_screen_and_another_status(
    model: Path, mirror: Path, tmp_path: Path, name: str
) -> None:
    done = ended(commands(model, mirror, tmp_path / "out")[name], limit=512)
    assert done.returncode == 1, done.stderr
    assert "error: 1 problem" in done.stderr
    assert "File too large" in done.stderr
    assert "GB are free there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")], "nothing is left behind"


def test_what_a_terminal_cannot_show_is_spelled_out(model: Path) -> None:
    words = ["-m", "miniqwen.generate", "--model_path", model, "--max_new_tokens", "2", "naïve → 你好"]
    done = ended(words, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert "\\u2192 \\u4f60\\u597d" in done.stdout
    program = "from miniqwen.errors import check_python; check_python(); print(input())"
    read = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "utf-8"}, input=b"a\xffb\n",
        capture_output=True, check=True,
    )  # fmt: skip
    assert read.stdout.decode() == "a\ufffdb\n"


def test_who_stops_reading_ends_a_command_without_a_word(model: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "train_loop.py", "--help"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_training_outlives_who_reads_it(model: Path, mirror: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words = commands(model, mirror, tmp_path / "out")["train"]
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=os.environ | OFFLINE, stdout=writing, stderr=subprocess.PIPE,
        text=True, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (OSError(28, "No space left on device", "/a/b"), 1, "/a/b: cannot be written (No space left on device;"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "/a/b: cannot be written (Permission denied;"),
        (OSError(30, "Read-only file system", "/a/b"), 2, "mend its permissions, or choose another place"),
        (Exception("I/O error: No space left on device (os error 28)"), 1, "make room, or choose another place"),
    ],
)
def test_what_the_disk_refuses_is_told_with_a_status(
    error: Exception, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, user_errors_exit_2():
        raise error
    assert end.value.code == status
    assert told in capsys.readouterr().err


def test_other_errors_pass_and_what_is_told_is_not_told_twice() -> None:
    for error in (ValueError("(os error x)"), OSError(11, "again"), KeyError("a"), ConnectionError("gone")):
        with pytest.raises(type(error)), user_errors_exit_2():
            raise error
    told = disk_refusal(OSError(28, "full"), "/a", "mend it")
    assert refused_by_disk(told) is None


def test_a_disk_that_fails_is_told_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended_with, user_errors_exit_2():
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/a/b.json")
    assert ended_with.value.code == 1
    assert "/a/b.json: cannot be written (Input/output error" in capsys.readouterr().err


def test_a_tool_that_deepspeed_misses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    with pytest.raises(UserError, match=r"ninja and c\+\+ cannot be found: install it"), compilation_told():
        raise RuntimeError("Unable to JIT load the op")
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="another"), compilation_told():
        raise RuntimeError("another")


def test_compiling_without_a_compiler_is_refused_at_once(model: Path, mirror: Path, tmp_path: Path) -> None:
    words = [*commands(model, mirror, tmp_path / "out")["train"], "--torch_compile"]
    done = ended(words, PATH=str(tmp_path), CXX="", CC="")
    assert done.returncode == 2
    assert "--torch_compile needs a compiler" in done.stderr
    assert not (tmp_path / "out").exists()
