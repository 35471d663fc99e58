"""The script that a GPU is tried with, run where there is none."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from runs import ROOT, run_script, warm_python

SCRIPT = "benchmarks/gpu_acceptance.py"
IN_PROCESS = "card kernels against_cpu isolation head_gradient fp16 waits tests".split()
RUNS = "speed saves resume memory".split()  # FSDP2 and ZeRO at one process start as slowly as everywhere


@pytest.mark.parametrize("checks", [IN_PROCESS, RUNS], ids=["in one process", "whole runs"])
def test_every_line_runs_on_a_cpu_and_none_passes_there(checks: list[str], tmp_path: Path) -> None:
    """What holds is not shown by it: only a card can pass."""
    file = tmp_path / "found.json"
    given = ["--device", "cpu", "--json", file, "--python", warm_python(), "--only", *checks]
    done = run_script(SCRIPT, *given, environment={"TORCH_CPP_LOG_LEVEL": "ERROR"})
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(file.read_text())
    lines = found["lines"]
    assert {line["status"] for line in lines} <= {"not shown here", "fail"}
    assert len(lines) >= len(checks)
    for line in lines:
        assert line["wanted"]
        assert line["name"] in done.stdout
        assert "Error" not in line["figure"], line
    failed = [line["name"] for line in lines if line["status"] == "fail"]
    assert done.returncode == bool(failed)
    assert sum(found["counts"].values()) == len(lines)
    held = {line["name"]: line["figure"] for line in lines if line["status"] == "not shown here"}
    if checks is RUNS:
        assert failed == []
        assert held["resume, bit for bit, fp32"].startswith("0 of ")
        assert "in the background" in held["stall of a save"]
    else:
        assert held["documents apart, fp32"].startswith("0 (not apart: ")
        assert "flash" in held["kernel, fp32, documents"]
        assert held["fp16 overflow"] == "weights untouched, scale 2^126, restored"


def test_an_error_in_a_check_is_a_line_that_fails(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    given = ["--device", "cpu", "--json", file, "--python", "/bin/false", "--only", "memory", "card"]
    done = run_script(SCRIPT, *given)
    assert done.returncode == 1, done.stderr
    statuses = {line["name"]: line["status"] for line in json.loads(file.read_text())["lines"]}
    assert statuses == {"memory": "fail", "peaks of a CPU": "not shown here"}, "and the next check is made"


def test_without_a_gpu_the_script_says_so_and_what_is_missing_is_listed(tmp_path: Path) -> None:
    done = run_script(SCRIPT, "--json", tmp_path / "found.json")
    assert done.returncode == 2
    assert "no GPU is visible; --device cpu" in done.stderr
    done = run_script(SCRIPT, "--wheels")
    assert (done.returncode, done.stdout.strip()) == (0, "nothing is missing")


def test_a_package_that_is_missing_or_too_old_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_acceptance

    assert gpu_acceptance.missing_wheels() == []
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "deepspeed":
            raise importlib.metadata.PackageNotFoundError
        return {"torch": "2.9.1+cu128", "numpy": "2.10.0"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert [requirement.partition(">")[0] for requirement in gpu_acceptance.missing_wheels()] == ["torch", "deepspeed"]
