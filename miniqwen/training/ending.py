"""How a run ends: finished, preempted or failed, said where it is looked for.

Promises: `trainer_state.json` tells the truth also when rank 0 is the one that is gone: a rank that lives writes it.
The reason names the rank and the host where they can be known. Costs: a few seconds, at a failure of several ranks.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from miniqwen.checkpoints.checkpoint import Progress
from miniqwen.config.training import TrainConfig
from miniqwen.data.formats import BadData
from miniqwen.data.patience import HubTimeout
from miniqwen.distributed.peers import STORE_TIMEOUT, Peers
from miniqwen.distributed.runtime import Runtime
from miniqwen.errors import UserError
from miniqwen.lock import LockLost
from miniqwen.training.output_folder import OutputFolder, note_end
from miniqwen.training.preemption import Interrupted, Preempted, StopRequest, note_interrupt
from miniqwen.training.task import Steps
from miniqwen.training.tracking import Tracker


@contextlib.contextmanager
def failures_told(
    config: TrainConfig, runtime: Runtime, stop: StopRequest, tracker: Tracker, output: OutputFolder | None
) -> Iterator[None]:
    """Around the loop: what ends it before its time is told to the user, to the trackers and in trainer_state.json.

    Either way a save that goes on in the background is waited for.
    """
    try:
        stop.poll_from_now_on()
        with silence_noted(Path(str(config.output_dir)), runtime.peers):
            yield
            with runtime.together():
                if output:
                    output.wait()
    except BaseException as error:
        if output and not isinstance(error, Interrupted):
            with contextlib.suppress(UserError):  # it came too late to be the reason
                output.wait()
        try:  # first what is looked for later; trackers may take their time, or fail
            _note_failure(error, config, runtime, stop)
        except OSError as full:
            print(f"trainer_state.json cannot be written ({full})", file=sys.stderr, flush=True)
        finally:
            if output and not isinstance(error, LockLost):
                output.report(last=True)
            stopped = isinstance(error, (Preempted, Interrupted))
            tracker.close("preempted" if stopped else "failed", None if stopped else f"{type(error).__name__}: {error}")
        raise


@contextlib.contextmanager
def silence_noted(folder: Path, peers: Peers | None) -> Iterator[None]:
    """Around the loop: ranks that fall silent are noted in trainer_state.json while this one waits for them.

    NCCL's watchdog ends a process in which nothing of ours runs any more. Where they come back, the run is on again.
    """
    over = threading.Event()

    def note() -> None:
        noted = False
        for silent in peers.silence(over) if peers else ():
            if silent and not noted:
                note_end(folder, "failed", f"no sign of life from {', '.join(silent)}")
            elif noted and not silent:
                note_end(folder, "running", None)
            noted = bool(silent)

    watching = threading.Thread(target=note, name="silence", daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join(STORE_TIMEOUT.total_seconds())  # a store behind a dead link answers never


def _note_failure(error: BaseException, config: TrainConfig, runtime: Runtime, stop: StopRequest) -> None:
    """Say in trainer_state.json, and on stderr where nobody else will, what ended the run."""
    folder = Path(str(config.output_dir))
    if isinstance(error, LockLost):
        return
    if isinstance(error, Interrupted):
        if runtime.is_main:
            note_interrupt(folder)
        return
    if isinstance(error, Preempted):
        if runtime.is_main:
            note_end(folder, "preempted", str(stop.reason))
        return
    reason, writes = f"{type(error).__name__}: {error}", runtime.is_main
    if runtime.peers:
        reason, writes = runtime.peers.explain(error)
        if not isinstance(error, UserError) or not runtime.is_main:  # rank 0's own is shown on its way out
            print(f"the run failed: {reason}", file=sys.stderr, flush=True)
    if writes:
        note_end(folder, "failed", reason)


def ended_early(progress: Progress, steps: Steps, config: TrainConfig) -> str | None:
    """Why a run that has reached its end did so before its last update."""
    if progress.step >= steps.total or not config.trains:
        return None
    patience = config.early_stopping_patience
    return f"stopped early: {patience} evaluations without a better one (--early_stopping_patience)"


def closing_summary(config: TrainConfig, progress: Progress, steps: Steps, tracker: Tracker) -> list[str]:
    """What a run that has reached its end did, and what can be done with it now."""
    folder = shlex.quote(str(config.output_dir))
    early = ended_early(progress, steps, config)
    said = f"finished: {progress.step} updates{f' of {steps.total}, {early}' if early else ''}, "
    said += f"{progress.tokens:,} tokens in {tracker.elapsed / 60:.1f} minutes"
    if progress.best_step is not None:
        said += f"; best {config.best_metric} {progress.best_metric:.4f}, at update {progress.best_step}"
    if progress.skipped_updates:
        said += f"; {progress.skipped_updates} updates were skipped, see bad_updates.json"
    if not config.hints:
        return [said]
    curves = [f"curves: tensorboard --logdir {folder}"] if "tensorboard" in config.trackers else []
    curves += tracker.places
    return [said, *curves, f"next: talk to it, python -m miniqwen.generate --model_path {folder}"]


def reason_to_stop(stop: StopRequest, progress: Progress, runtime: Runtime, tracker: Tracker) -> str:
    """Why the ranks stopped, of the first that was asked to; the STOP file has done its work and goes.

    Raises the `UserError` that a rank's data ended with: the others have saved with it, where there was what to save.
    """
    fault = stop.data_error
    own = [stop.obeyed(), stop.signalled, [type(fault).__name__, *fault.problems] if fault else None]
    told = runtime.gather(own)
    stop.signalled = any(signalled for _, signalled, _ in told)  # all end with the same status
    faults = [fault for *_, fault in told if fault]
    is_saved = progress.step > 0
    if faults:
        problems = [problem for _, *problems in faults for problem in problems]
        raise _data_fault([kind for kind, *_ in faults], problems, is_saved)
    rank, reason = next((rank, reason) for rank, (reason, *_) in enumerate(told) if reason)
    reason = f"rank {rank}: {reason}" if runtime.world_size > 1 else reason
    kept = "stopped and saved" if is_saved else "stopped before the first update"
    tracker.say(f"{kept}: {reason}; --resume_from_checkpoint auto goes on")
    return str(reason)


def _data_fault(kinds: Sequence[str], problems: Sequence[str], is_saved: bool) -> UserError:
    """What the data of some ranks ended with, for all of them to raise, and how to go on."""
    go_on = "no update was made yet: the same command with --resume_from_checkpoint auto begins again"
    if is_saved:
        go_on = "what was trained is saved: the same command with --resume_from_checkpoint auto goes on from there"
    if all(kind == HubTimeout.__name__ for kind in kinds):
        error: UserError = HubTimeout(*dict.fromkeys(problems), go_on)
        error.of_one_rank = False
        return error
    if BadData.__name__ in kinds:
        go_on += "; add --on_bad_data skip to pass over what cannot be read"
    return UserError(*dict.fromkeys(problems), go_on)
