"""How long to wait for the hub: passing faults are retried, final ones are explained.

Promises: rate limits (with their Retry-After), server errors, cut and reset connections and time-outs are waited for,
with a line that says what for; 401, 403 and 404 fail at once, and so does a hub that was never reached for a minute.
Costs: at most `PATIENCE` seconds of waiting at one place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub.errors import HfHubHTTPError
from tenacity import RetryCallState, Retrying, retry_if_exception

from miniqwen.config import UserError

PATIENCE = 600.0  # seconds
PATIENCE_UNREACHED = 60.0  # where nothing listens, waiting seldom helps
LONGEST_WAIT = 60.0
PASSING_STATUS = (408, 429, 500, 502, 503, 504)

Result = TypeVar("Result")


def is_passing(error: BaseException) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in PASSING_STATUS
    return isinstance(error, (httpx2.TransportError, ConnectionError, TimeoutError))


def patiently(call: Callable[[], Result], what: str) -> Result:
    """`call()`, again and again while its faults are passing ones.

    Raises `UserError` naming `what`, the fault and what to try.
    """
    retrying = Retrying(
        retry=retry_if_exception(is_passing), wait=_wait, stop=_enough, reraise=True,
        before_sleep=lambda state: print(_waiting(what, state), file=sys.stderr, flush=True),
    )  # fmt: skip
    try:
        return retrying(call)
    except (HfHubHTTPError, httpx2.TransportError, ConnectionError, TimeoutError) as error:
        raise UserError(f"{what}: {explanation(error)}") from error


def explanation(error: BaseException) -> str:
    """What a hub error means and what to try."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if status in (401, 403):
        return f"the hub refuses access ({status}): accept the data set's terms on its page, then run `hf auth login`"
    if status == 404:
        return (
            "the hub has no such repository, revision or file (404): check the name; `hf auth login` if it is private"
        )
    return (
        f"the hub cannot be reached ({_short(error)}): check the network, or work offline with --data_root "
        "(filled by `python prepare_datasets.py --download DIR` where there is a network)"
    )


def _wait(state: RetryCallState) -> float:
    """Seconds: what the server asks for, else 1, 2, 4, ... up to a minute."""
    error = state.outcome.exception() if state.outcome else None
    response = error.response if isinstance(error, HfHubHTTPError) else None
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked) if asked.isdigit() else 2.0 ** (state.attempt_number - 1), LONGEST_WAIT)


def _enough(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    # `datasets` reports an unreachable hub as a plain ConnectionError after half a minute of tries of its own
    unreached = isinstance(error, httpx2.ConnectError) or (type(error) is ConnectionError and "reach" in str(error))
    limit = PATIENCE_UNREACHED if unreached else PATIENCE
    return (state.seconds_since_start or 0.0) >= limit


def _waiting(what: str, state: RetryCallState) -> str:
    error = state.outcome.exception() if state.outcome else None
    seconds = state.next_action.sleep if state.next_action else 0
    return f"{what}: {_short(error)}; trying again in {seconds:.0f} s"


def _short(error: BaseException | None) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
