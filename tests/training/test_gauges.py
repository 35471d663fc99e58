"""What a run says of its speed, its time and its memory; and the trace of a few updates."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from runs import TINY, lines, run_script

from miniqwen.config.training import TrainConfig
from miniqwen.training import gauges as room
from miniqwen.training.batches import MicroBatch, Update
from miniqwen.training.flops import Flops
from miniqwen.training.gauges import WARM_UP, Card, Gauges, first_began

TIMES = ("time_data", "time_forward_backward", "time_optimizer", "time_save", "time_evaluation")
REGIONS = {"data", "forward", "backward", "optimizer", "save", "evaluation"}


@pytest.fixture(scope="module")
def two_lives(model: Path, mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Six updates, two of them traced, and four more in a second life; a save and an evaluation behind each third."""
    output = tmp_path_factory.mktemp("gauges") / "out"
    flags = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *TINY[: TINY.index("--save_steps")]]
    flags += "--save_steps 3 --eval_strategy steps --eval_steps 3 --validation_blocks 8 --report_to tensorboard".split()
    said = []
    for steps, more in ((6, ("--profile", "2")), (10, ("--resume_from_checkpoint", "auto"))):
        done = run_script("train_loop.py", *flags, "--max_steps", steps, *more)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    return output, said


def test_every_line_has_speed_times_goodput_and_memory(two_lives: tuple[Path, list[str]]) -> None:
    written = [line for line in lines(two_lives[0]) if "loss" in line]
    assert [line["step"] for line in written] == list(range(1, 11))
    for line in written:
        assert line["tokens_per_second"] > 0
        assert line["tokens_per_second_per_device"] == line["tokens_per_second"]  # of one process
        assert line["seconds_left"] >= 0
        assert 0 <= line["data_wait"] <= 1
        assert 0.05 < line["max_memory_rss_gib"] < 50
        assert 0 <= line["goodput"] < 1
        assert "mfu" not in line, "no peak of a CPU is known"
        assert "tflops" not in line
        assert sum(line[name] for name in TIMES) <= line["elapsed"] + 60


def test_the_first_updates_of_each_life_are_left_out_of_times_and_goodput(two_lives: tuple[Path, list[str]]) -> None:
    written = {line["step"]: line for line in lines(two_lives[0]) if "loss" in line}
    cold = {1, 2, 7, 8}
    assert WARM_UP == 2
    for step, line in written.items():
        assert (line["time_forward_backward"] > 0) == (step not in cold), step
        assert (line["time_optimizer"] > 0) == (step not in cold), step
    productive = [line["productive_seconds"] for line in written.values()]
    assert productive == sorted(productive)
    total = {step: line["productive_seconds"] for step, line in written.items()}
    grows = {step for step in written if total[step] > total.get(step - 1, total[1])}
    assert grows == set(written) - cold
    for step in set(written) - cold:
        own = written[step]["time_forward_backward"] + written[step]["time_optimizer"]
        before = written[step - 1]["productive_seconds"]
        assert written[step]["productive_seconds"] == pytest.approx(before + own)


def test_a_save_and_an_evaluation_are_told_by_the_line_behind_them(two_lives: tuple[Path, list[str]]) -> None:
    written = {line["step"]: line for line in lines(two_lives[0]) if "loss" in line}
    assert {step for step, line in written.items() if line["time_save"] > 0} == {4, 10}
    assert {step for step, line in written.items() if line["time_evaluation"] > 0} == {4, 10}


def test_goodput_is_over_all_lives(two_lives: tuple[Path, list[str]]) -> None:
    output, _ = two_lives
    written = [line for line in lines(output) if "loss" in line]
    lives = yaml.safe_load((output / "config.yaml").read_text())["recorded"]["lives"]
    assert len(lives) == 2
    began = first_began(lives, 0.0)
    for line in (written[5], written[-1]):  # of each life, from the beginning of the first one
        assert line["goodput"] == pytest.approx(line["productive_seconds"] / (line["time"] - began), rel=0.02)
    assert "changed" not in lives[1] or set(lives[1]["changed"]) == {"max_steps"}, "--profile is of a start"


def test_where_the_time_of_a_start_went_is_told_at_its_end(two_lives: tuple[Path, list[str]]) -> None:
    for said in two_lives[1]:
        (told,) = [line for line in said.splitlines() if line.startswith("time since the start: ")]
        shares = [int(word.rstrip("%,;")) for word in told.split() if word.rstrip(",;").endswith("%")]
        assert len(shares) == 6
        assert 97 <= sum(shares) <= 103
        assert "GiB rss" in told


def test_trackers_get_the_gauges_too(two_lives: tuple[Path, list[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(two_lives[0]))
    reader.Reload()
    shown = {event.step: event.value for event in reader.Scalars("train/goodput")}
    expected = {line["step"]: line["goodput"] for line in lines(two_lives[0]) if "loss" in line}
    assert shown == pytest.approx(expected)


def test_a_trace_has_the_named_regions_of_the_updates_that_were_asked_for(two_lives: tuple[Path, list[str]]) -> None:
    output, (said, after) = two_lives
    (file,) = (output / "profile").iterdir()
    assert file.name == "updates-3-4-rank-0.pt.trace.json.gz"
    assert str(file) in said
    assert "the trace of" not in after, "the second life was not asked for one"
    with gzip.open(file, "rt") as opened:
        events = json.load(opened)["traceEvents"]
    regions = [event for event in events if event.get("name") in REGIONS and event["cat"] == "user_annotation"]
    counts = Counter(event["name"] for event in regions)
    # two updates of two micro-batches; between them, behind update 3, a save and an evaluation
    assert counts == {"data": 2, "forward": 4, "backward": 4, "optimizer": 2, "save": 1, "evaluation": 1}
    assert all(event["ph"] == "X" and event["dur"] > 0 for event in regions)
    (forward, *_) = [event for event in regions if event["name"] == "forward"]
    within = [
        e for e in events if e.get("cat") == "cpu_op" and forward["ts"] <= e["ts"] <= forward["ts"] + forward["dur"]
    ]
    assert {"aten::mm", "aten::embedding"} <= {event["name"] for event in within}


def test_of_two_processes_each_has_a_trace_and_half_of_the_speed(model: Path, mirror: Path, tmp_path: Path) -> None:
    flags = ["--model_path", model, "--data_root", mirror, "--output_dir", tmp_path / "out", *TINY]
    done = run_script("train_loop.py", *flags, "--max_steps", "4", "--profile", "1", processes=2)
    assert done.returncode == 0, done.stderr
    assert {file.name for file in (tmp_path / "out/profile").iterdir()} == {
        f"updates-3-3-rank-{rank}.pt.trace.json.gz" for rank in (0, 1)
    }
    for line in lines(tmp_path / "out"):
        assert line["tokens_per_second_per_device"] == pytest.approx(line["tokens_per_second"] / 2)
        assert line["max_memory_rss_gib"] > 0.05


def test_without_the_flag_no_profiler_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(torch.profiler, "profile", touched)
    monkeypatch.setattr(torch.profiler, "record_function", touched)
    measured = Gauges(TrainConfig(), FakeRuntime("cpu"), None, 0.0, 0.0)  # type: ignore[arg-type]
    for step in range(1, 6):
        measured.update_begins(step)
        with measured.part("forward"):
            pass
    measured.close()


class FakeRuntime:
    """A process on a device that is not here."""

    world_size, rank, precision = 1, 0, "bf16"

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def gather(self, value: Any) -> list[Any]:
        return [value]


class LateEvent:
    """A device's event: whoever asks for it before the device is there waits."""

    reached: ClassVar[bool] = False
    recorded: ClassVar[int] = 0

    def __init__(self, device: torch.device, enable_timing: bool) -> None:
        assert device.type == "cuda"
        assert enable_timing

    def record(self) -> None:
        LateEvent.recorded += 1
        self.at = LateEvent.recorded

    def elapsed_time(self, other: LateEvent) -> float:
        assert LateEvent.reached, "the host waits for the device"
        return 500.0 * (other.at - self.at)  # milliseconds


@pytest.fixture
def on_a_card(monkeypatch: pytest.MonkeyPatch) -> Gauges:
    monkeypatch.setattr(torch, "Event", LateEvent)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 4 * 2**30)
    monkeypatch.setattr(LateEvent, "reached", False)
    card = Card("NVIDIA H100 80GB HBM3", 989.4, Flops(10**9, 0, 0))
    return Gauges(TrainConfig(), FakeRuntime("cuda"), card, 100.0, 0.0)  # type: ignore[arg-type]


def test_on_a_gpu_nothing_is_read_before_the_line_of_metrics(on_a_card: Gauges) -> None:
    tokens = torch.zeros((2, 50), dtype=torch.int64)
    for step in range(1, WARM_UP + 4):
        on_a_card.update_begins(step)
        for name in ("data", "forward", "backward", "optimizer"):
            with on_a_card.part(name):
                pass
        update = Update.of([MicroBatch(tokens, tokens)], {}, 0)
        on_a_card.update_ended(update, 100, skipped=step == WARM_UP + 2)
    LateEvent.reached = True
    found = on_a_card.metrics(0)
    assert found["time_forward_backward"] == 3.0  # three updates that count, twice half a second
    assert found["time_optimizer"] == 1.5
    assert found["productive_seconds"] == 100 + 2 * 1.5, "the skipped one brought nothing"
    assert (found["max_memory_allocated_gib"], found["max_memory_reserved_gib"]) == (3, 4)
    assert "max_memory_rss_gib" not in found
    assert found["tflops"] == pytest.approx(3 * 1e9 * found["tokens_per_second"] / 1e12)
    assert found["mfu"] == pytest.approx(found["tflops"] / 989.4)


def test_there_is_no_mfu_of_first_updates_or_of_an_unknown_card(on_a_card: Gauges) -> None:
    assert "989.4 TFLOP/s, dense: NVIDIA H100 80GB HBM3, bf16" in on_a_card.card.note("bf16")  # type: ignore[union-attr]
    tokens = torch.zeros((1, 10), dtype=torch.int64)
    on_a_card.update_begins(1)
    on_a_card.update_ended(Update.of([MicroBatch(tokens, tokens)], {}, 0), 10, skipped=False)
    assert {"mfu", "tflops"} & on_a_card.metrics(0).keys() == set()
    on_a_card.card = Card("NVIDIA Thing", None, Flops(1, 1, 1))
    assert "NVIDIA Thing: its peak in bf16 is not in the table" in on_a_card.card.note("bf16")
    for step in range(2, WARM_UP + 3):
        on_a_card.update_begins(step)
        on_a_card.update_ended(Update.of([MicroBatch(tokens, tokens)], {}, 0), 10, skipped=False)
    found = on_a_card.metrics(0)
    assert "mfu" not in found
    assert found["tflops"] > 0


def test_a_cpu_has_no_card() -> None:
    assert Card.of(FakeRuntime("cpu"), torch.nn.Linear(1, 1)) is None  # type: ignore[arg-type]


def test_the_first_life_is_the_earliest_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.time, "time", lambda: 1_000_000_000.0)
    lives = [{"began": "2001-09-09T01:00:00+00:00"}, {"began": "2001-09-09T01:40:00+00:00"}]
    assert math.isclose(first_began(lives, 60.0), 1_000_000_000 - 46 * 60 - 40)
    assert first_began(lives, 9_000.0) == 1_000_000_000 - 9_000, "its lines tell of more"
    assert first_began([{}], 0.0) == 1_000_000_000
