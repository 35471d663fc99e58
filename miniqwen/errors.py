"""What ends a command that the user can mend: `UserError`, and how it is told.

Promises: every mistake on one screen, once however many processes find it, and an exit status that scripts can read: 2,
unless the error has its own. Costs: nothing is imported.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Mistakes the user can mend, all of them: shown on one screen, exit status 2."""

    exit_status = 2
    of_one_rank = False  # every process finds the same, so one of them says it

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@contextlib.contextmanager
def user_errors_exit_2() -> Iterator[None]:
    """Print a `UserError` as a short list on stderr and leave with its status, 2 as a rule; other exceptions pass."""
    try:
        yield
    except UserError as error:
        if os.environ.get("RANK", "0") != "0" and not error.of_one_rank:
            raise SystemExit(error.exit_status) from None
        count = len(error.problems)
        print(f"error: {'1 problem' if count == 1 else f'{count} problems'}", file=sys.stderr)
        for problem in error.problems:
            print(f"  * {problem}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
