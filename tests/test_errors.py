"""What ends a command says so on one screen."""

from __future__ import annotations

import pytest

from miniqwen.errors import UserError, printable, user_errors_exit_2


def test_control_characters_of_data_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, user_errors_exit_2():
        raise UserError("rows.jsonl: no column '\x1b]0;owned\x07 \u009b31m é\ud800'", "two\nlines")
    assert ended.value.code == 2
    told = r"""error: 2 problems
  * rows.jsonl: no column '\x1b]0;owned\x07 \x9b31m é\ud800'
  * two
lines
"""
    assert capsys.readouterr().err == told
    assert printable("a\tb\n", keep="\n") == "a\\tb\n"
