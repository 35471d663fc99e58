"""The crash test of benchmarks/, in its short form."""

from __future__ import annotations

import re
import sys

import pytest
from runs import ROOT, descendants, warm_python

sys.path.insert(0, str(ROOT))
from benchmarks import crash_test


def test_a_run_that_is_killed_three_times_ends_with_the_weights_of_one_that_was_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    starts = crash_test.Starts(warm_python(), descendants)
    with pytest.raises(SystemExit) as ended:
        crash_test.main("--kills 3 --steps 200 --worlds 2,1".split(), starts)
    told = capsys.readouterr().out
    assert ended.value.code == 0, f"{ended.value}\n{told}"
    assert re.search(r"3 kills \([123] in a save\)", told)
    assert "the weights are those of the undisturbed run, and all that is left is as it says" in told
