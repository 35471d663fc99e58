"""How long to wait for the hub: passing faults are waited out, final ones are explained.

Promises: rate limits (for as long as their Retry-After says), server errors, cut and reset connections, time-outs and
names that do not resolve are tried again after 1, 2, 4, ... up to 60 s, and the user reads what is waited for and how
long that may go on. After `--hub_timeout` seconds without an answer at one place it is `HubTimeout`, exit status 75.
401, 403, 404 and other final answers fail at once, with the reason. A hub that cannot be reached is never taken for a
data set that does not exist.
Costs: nothing while the hub answers.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from miniqwen.config.data import HUB_TIMEOUT
from miniqwen.errors import UserError

LONGEST_WAIT = 60.0  # seconds between two tries, where the hub does not ask for more
PASSING_STATUS = (408, 429, 500, 502, 503, 504)
# certificates and URLs do not mend themselves
FINAL_TRANSPORT = (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)

Result = TypeVar("Result")
_JITTER = random.SystemRandom()  # not the global generator: waiting must not change what training draws


class HubTimeout(UserError):
    """The hub stayed away for `--hub_timeout`. Status 75, sysexits' EX_TEMPFAIL: the same command may succeed later."""

    exit_status = 75
    of_one_rank = True  # the others may have read all they wanted


def is_passing(error: BaseException) -> bool:
    """Whether another try may succeed."""
    chain = (error, error.__cause__, error.__context__)
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain) or "OfflineModeIsEnabled" in str(error):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in PASSING_STATUS
    if isinstance(error, httpx2.TransportError):
        return not isinstance(error, FINAL_TRANSPORT) and "CERTIFICATE_VERIFY_FAILED" not in str(error)
    # what the libraries say when they could not ask: "not found", with the truth in the name or behind it
    if isinstance(error, FileNotFoundError):
        return isinstance(error, LocalEntryNotFoundError) or "LocalEntryNotFoundError" in str(error)
    return isinstance(error, (ConnectionError, TimeoutError))


def patiently(call: Callable[[], Result], what: str, limit: float = HUB_TIMEOUT) -> Result:
    """`call()`, again and again for up to `limit` seconds while its faults are passing ones.

    Raises `HubTimeout` after that, and `UserError` at once for a final fault of the hub: both name `what`, the fault
    and what to try. Other errors are not the hub's, and pass.
    """
    first_fault: float | None = None
    for attempt in itertools.count():
        try:
            result = call()
        except Exception as error:
            if not is_passing(error):
                if isinstance(error, (HfHubHTTPError, httpx2.TransportError, ConnectionError, EntryNotFoundError)):
                    raise UserError(f"{what}: {explanation(error)}") from error
                raise
            now = time.monotonic()
            first_fault = now if first_fault is None else first_fault
            left = limit - (now - first_fault)
            asked = _retry_after(error)
            if left <= 0 or (asked or 0) > left:
                raise HubTimeout(f"{what}: {_given_up(error, limit, asked)}") from error
            wait = min(asked or min(2.0**attempt, LONGEST_WAIT) * _JITTER.uniform(0.75, 1.25), left)
            _say(f"{what}: {_short(error)}; trying again in {wait:.0f} s, for up to {_span(left)} (--hub_timeout)")
            time.sleep(wait)
        else:
            if first_fault is not None:
                _say(f"{what}: the hub answers again, after {_span(time.monotonic() - first_fault)}")
            return result
    raise AssertionError("unreachable")


def explanation(error: BaseException) -> str:
    """What a final error of the hub means and what to try."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, OfflineModeIsEnabled) or "OfflineModeIsEnabled" in str(error):
        return "HF_HUB_OFFLINE is set, so the hub is not asked: unset it, or give a mirror with --data_root"
    if isinstance(error, GatedRepoError):
        return f"it is gated ({status}): accept its terms on its page on the hub, then run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has it, but not in this revision ({status})"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"the hub has no such repository, or does not show it to you ({status}): check the name OWNER/NAME, and "
            "run `hf auth login` if it is private"
        )
    if isinstance(error, EntryNotFoundError) or status == 404:
        return "the hub has no such file (404): it was renamed or removed since it was listed, or the name is wrong"
    if status in (401, 403):
        return f"the hub refuses access ({status}): run `hf auth login` with a token that may read it"
    return f"the hub cannot be used ({_short(error)})"


def _given_up(error: BaseException, limit: float, asked: float | None) -> str:
    tried = f"did not answer for {_span(limit)} (--hub_timeout)"
    if asked is not None and asked > 0:
        tried = f"wants to be asked again in {_span(asked)}, which is longer than --hub_timeout allows"
    return (
        f"the hub {tried}; last: {_short(error)}. Check the network, or work offline with --data_root (filled by "
        "`python prepare_datasets.py --download DIR` where there is a network)"
    )


def _retry_after(error: BaseException) -> float | None:
    """Seconds that the server asks to be left alone for, if it says so."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return float(asked) if asked.isdigit() else None


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _short(error: BaseException) -> str:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason_phrase}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
