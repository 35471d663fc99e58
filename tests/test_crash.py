"""The crash test of benchmarks/, in its short form."""

from __future__ import annotations

import subprocess
import sys

from runs import ROOT


def test_a_run_that_is_killed_three_times_ends_with_the_weights_of_one_that_was_not() -> None:
    words = [sys.executable, "benchmarks/crash_test.py", "--kills", "3", "--steps", "300", "--worlds", "2,1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kills (1 in a save)" in done.stdout
    assert "the weights are those of the undisturbed run" in done.stdout
