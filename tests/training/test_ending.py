"""Runs in which something breaks: ranks that are killed, hang or differ, and losses that are not finite."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import (
    ROOT,
    TINY,
    article,
    command,
    lines,
    ranks,
    run_script,
    running,
    state,
    wait_for_updates,
    wait_until,
    warm_python,
)
from safetensors.torch import load_file
from torch.testing import assert_close

from miniqwen.distributed.peers import differing
from miniqwen.training.auditing import audit


def flags(model: Path, mirror: Path, output: Path, *more: object) -> list[object]:
    """Of a run that saves often and can be resumed."""
    given = ["--model_path", model, "--data_root", mirror, "--output_dir", output, *TINY, "--save_steps", "5"]
    return [*given, "--save_total_limit", "2", "--resume_from_checkpoint", "auto", *more]


@pytest.mark.parametrize(
    ("rank", "sent"),
    [(1, signal.SIGKILL), pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow), (1, signal.SIGSTOP)],
)
def test_a_killed_or_hung_rank_ends_the_job_is_named_and_the_next_start_resumes(
    model: Path, mirror: Path, tmp_path: Path, rank: int, sent: signal.Signals
) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    given = flags(model, mirror, output, "--max_steps", "100000", "--collective_timeout", "4")
    with running(command(*given, processes=2), log) as process:
        wait_for_updates(process, output, more=12)
        os.kill(ranks(process.pid)[rank], sent)
        assert process.wait(timeout=300) != 0
    now = state(output)
    assert now["status"] == "failed"
    assert f"no sign of life from rank {rank} on {platform.node()}" in now["reason"]
    assert f"no sign of life from rank {rank} on {platform.node()}" in log.read_text()
    assert (output / now["last_checkpoint"] / "manifest.json").exists()
    reached = int(now["last_checkpoint"].split("-")[1])
    done = run_script("train_loop.py", *given, "--max_steps", reached + 3, processes=2)
    assert done.returncode == 0, done.stderr
    assert f"update {reached}" in done.stdout
    assert (state(output)["status"], state(output)["step"]) == ("finished", reached + 3)
    assert audit(output).faults == []


ALONE_WITH_ITS_THREAD = """
import os, sys, threading, time
from pathlib import Path
import torch.distributed as dist
from miniqwen.distributed import peers
from miniqwen.training.ending import silence_noted
rank = int(sys.argv[1])
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2]}
if sys.argv[3] == "listen":
    store = dist.TCPStore("127.0.0.1", int(sys.argv[2]), None, True, wait_for_workers=False)
with silence_noted(Path(sys.argv[4]), peers.Peers(rank, ["here", "there"])):
    print("on", flush=True)
    time.sleep(120)  # as in a call into a library: no handler runs, and nothing is raised
"""


@pytest.mark.parametrize("gone", [0, 1])
def test_a_process_that_a_watchdog_aborts_is_noted_by_a_thread_of_the_others_and_so_is_its_return(
    tmp_path: Path, gone: int
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    (tmp_path / "trainer_state.json").write_text(json.dumps({"status": "running", "reason": None, "step": 3}))
    processes = {}
    try:
        for rank in (1 - gone, gone):  # the launcher's store lives on
            how = [str(rank), port, "listen" if rank != gone else "", str(tmp_path)]
            words = [sys.executable, "-c", ALONE_WITH_ITS_THREAD, *how]
            processes[rank] = process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
            assert process.stdout
            assert process.stdout.readline() == b"on\n"
        processes[gone].send_signal(signal.SIGSTOP)
        wait_until(lambda: state(tmp_path)["status"] == "failed", seconds=60)
        assert state(tmp_path)["reason"] == f"no sign of life from rank {gone} on {['here', 'there'][gone]}"
        processes[gone].send_signal(signal.SIGCONT)
        wait_until(lambda: state(tmp_path)["status"] == "running", seconds=60)
        assert state(tmp_path)["reason"] is None
        processes[gone].send_signal(signal.SIGABRT)
        wait_until(lambda: state(tmp_path)["status"] == "failed", seconds=60)
        assert state(tmp_path)["step"] == 3
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def two_by_hand(first: list[str], second: list[str]) -> list[Any]:
    """Two ranks with command lines of their own, as on two machines: (status, errors) of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = []
    for rank, words in enumerate((first, second)):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        environment = os.environ | place | {"MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
        processes.append(subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    return [(process.wait(timeout=300), process.stderr.read()) for process in processes if process.stderr]


def test_ranks_that_differ_are_refused_at_the_start_and_the_difference_is_named(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    given = [warm_python(), "train_loop.py", *map(str, flags(model, mirror, tmp_path / "out", "--max_steps", "3"))]
    told = two_by_hand([*given, "--learning_rate", "0.01"], [*given, "--learning_rate", "0.02"])
    assert [status for status, _ in told] == [2, 2]
    host = platform.node()
    assert f"--learning_rate differs between ranks: 0.01 on rank 0 ({host}), 0.02 on rank 1 ({host})" in told[0][1]


def test_a_rank_with_other_files_is_refused_at_the_start_and_the_file_is_named(
    model: Path, mirror: Path, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here: two ranks of one machine see the same files")
    other = tmp_path / "other"
    shutil.copytree(mirror, other)
    changed = next((other / "common-pile/arxiv_papers").glob("00001*"))
    changed.write_bytes(changed.read_bytes() + b"more")
    words = [warm_python(), "train_loop.py", *map(str, flags(model, mirror, tmp_path / "out", "--max_steps", "3"))]
    elsewhere = ["unshare", "--mount", "sh", "-c", f'mount --bind {other} {mirror} && exec "$@"', "sh", *words]
    told = two_by_hand(words, elsewhere)
    assert [status for status, _ in told] == [2, 2], told
    size = changed.stat().st_size
    assert f"rank 1: UserError: {mirror / changed.relative_to(other)} has {size} bytes here" in told[0][1]
    assert f"and {size - 4} bytes where rank 0 runs" in told[0][1]


def test_differences_are_named_by_key_with_both_values() -> None:
    facts = [{"torch": "2.13", "--seed": 1}, {"torch": "2.13", "--seed": 1}, {"torch": "2.12", "--seed": 1, "x": 3}]
    assert differing(facts, ["a", "b", "c"]) == [
        "torch differs between ranks: '2.13' on rank 0 (a), '2.12' on rank 2 (c)",
        "x differs between ranks: None on rank 0 (a), 3 on rank 2 (c)",
    ]
    assert differing(facts[:2], ["a", "b"]) == []


@pytest.fixture(scope="module")
def hole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose embedding of one byte is no number, and texts of which a few hold that byte."""
    from miniqwen.model.modeling_miniqwen import load_model, new_model, save_model
    from miniqwen.model.tokenization_miniqwen import load_tokenizer

    folder = tmp_path_factory.mktemp("hole")
    shutil.copytree(model, folder / "model")
    tokenizer = load_tokenizer(model)
    config = load_model(model).config
    config.tie_word_embeddings = False
    broken = new_model(config, seed=0)
    (byte, *_) = tokenizer.encode("Ω")
    with torch.no_grad():
        broken.get_input_embeddings().weight[byte] = math.nan
    save_model(broken, folder / "model")
    texts = [article(number) + ("Ω" if number % 25 == 7 else "") for number in range(100)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder / "model", folder / "texts.jsonl"


def holed(hole: tuple[Path, Path], output: Path, *more: object) -> list[object]:
    tiny = [flag for flag in TINY if flag not in ("--dataset_name", "both")]
    data = ["--dataset_name", hole[1], "--task", "pretrain"]
    return ["--model_path", hole[0], "--output_dir", output, *data, *tiny, "--max_steps", "30", *more]


def sharded(kind: str, folder: Path) -> list[str]:
    """The flags for one backend; parameters are shared out however small they are."""
    if kind == "ddp":
        return []
    if kind == "fsdp2":
        return ["--fsdp", "full_shard"]
    settings = json.loads((ROOT / "ds_configs" / f"{kind}.json").read_text())
    settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero.json").write_text(json.dumps(settings))
    return ["--deepspeed", str(folder / "zero.json")]


@pytest.mark.parametrize(
    "kind", ["ddp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fsdp2", "zero1", "zero2", "zero3"))]
)
def test_updates_that_are_not_finite_are_skipped_on_every_rank_alike_and_counted(
    hole: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_script("train_loop.py", *holed(hole, one)).returncode == 0
    more = ["--gradient_accumulation_steps", "1", *sharded(kind, tmp_path)]
    done = run_script("train_loop.py", *holed(hole, two, *more), processes=2)
    assert done.returncode == 0, done.stderr
    told = lines(one)
    skipped = [line["step"] for line in told if line["grad_norm"] is None]
    assert 0 < len(skipped) < 15
    assert told[-1]["skipped_updates"] == len(skipped)
    assert all(line["loss"] is not None and line["loss"] < 20 for line in told)
    assert [line["step"] for line in lines(two) if line["grad_norm"] is None] == skipped
    first, second = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name, value in first.items():
        assert_close(value, second[name], rtol=0, atol=2e-5, equal_nan=True)
    assert first["lm_head.weight"].isfinite().all()
    assert f"update {skipped[0]}: an update was skipped: the loss or gradient was not finite. Look at:" in done.stderr
    fault, *others = audit(two).faults  # the model's own
    assert others == []
    assert fault.endswith("has values that are no numbers: model.embed_tokens.weight")
    written = json.loads((two / "bad_updates.json").read_text())["updates"]
    assert written[-1]["update"] == skipped[-1]
    texts = [text for rank in written[-1]["ranks"] for batch in rank["micro_batches"] for text in batch["texts"]]
    assert len(texts) == 4
    assert any("Ω" in text for text in texts)
    bad = [batch for rank in written[-1]["ranks"] for batch in rank["micro_batches"] if not batch["finite"]]
    assert bad
    assert all(any("Ω" in text for text in batch["texts"]) for batch in bad)


def test_a_run_of_bad_updates_ends_with_what_was_in_them_and_a_checkpoint_to_go_on_from(
    hole: tuple[Path, Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    done = run_script("train_loop.py", *holed(hole, output, "--max_bad_steps", "1", "--save_steps", "1"), processes=2)
    assert done.returncode != 0
    now = state(output)
    assert now["status"] == "failed"
    assert "1 updates in a row (--max_bad_steps)" in now["reason"]
    assert str(output / "bad_updates.json") in done.stderr
    (bad,) = json.loads((output / "bad_updates.json").read_text())["updates"]
    assert bad["update"] == now["step"] + 1
    assert now["last_checkpoint"] == (f"checkpoint-{now['step']}" if now["step"] else None)
    before = {lane for rank in bad["ranks"] for lane in rank["from"]}
    lanes = {str(lane) for lane in range(8)}
    assert before == (lanes if now["step"] else set())
    assert {lane for rank in bad["ranks"] for lane in rank["to"]} == lanes


def test_a_rank_whose_data_fails_ends_the_others_with_its_reason(model: Path, mirror: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": article(number)}) for number in range(900)]
    rows[850] = '{"text": 5}'
    texts.write_text("\n".join(rows) + "\n")
    tiny = [flag for flag in TINY if flag not in ("--dataset_name", "both")]
    given = ["--model_path", model, "--output_dir", tmp_path / "out", "--dataset_name", texts, "--task", "pretrain"]
    done = run_script("train_loop.py", *given, *tiny, "--max_steps", "3000", processes=2)
    assert done.returncode != 0
    now = state(tmp_path / "out")
    assert now["status"] == "failed"
    assert "5 is not text" in now["reason"]
    assert now["step"] > 0
    assert now["last_checkpoint"] == f"checkpoint-{now['step']}"
    assert "5 is not text" in done.stderr
