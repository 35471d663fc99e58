"""Whether a GPU does what the project says of it: one command, under ten minutes on one H100, a table and a JSON.

    python benchmarks/gpu_acceptance.py                    # the first visible GPU; acceptance.json beside it
    python benchmarks/gpu_acceptance.py --wheels           # what this machine lacks, for one without a network
    python benchmarks/gpu_acceptance.py --device cpu       # every line at small sizes: that the script itself works
    python benchmarks/gpu_acceptance.py --only resume waits

Each line is a law or a figure, what was asked for and what was found: pass, fail, or skip with its reason. On a CPU a
line that holds says "not shown here": only a card can pass. Lines of whole runs start train_loop.py as a user does and
read its metrics.jsonl; the others call the rooms that the loop calls. What does not begin before --minutes are over is
skipped. Exit status 1 when a line fails, 2 when packages are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

PASS, FAIL, SKIP, NOT_SHOWN = "pass", "fail", "skip", "not shown here"
H100 = "H100 80GB HBM3"  # the card that the figures of speed are asked of
LONGEST = 600  # seconds of one run
BUILT = "python -m pip download -c constraints.txt -d wheels"


@dataclass(frozen=True)
class Line:
    """One row of the table. `holds`: whether `figure` is as `wanted`; None with the reason why it is not known."""

    name: str
    holds: bool | None
    figure: str
    wanted: str


@dataclass(frozen=True)
class Setup:
    """Where it runs, and what all lines share. `small`: sizes for a CPU."""

    device: str
    work: Path
    python: str

    @property
    def small(self) -> bool:
        return self.device == "cpu"

    def size(self, name: str) -> Any:
        from miniqwen.model.sizes import SIZES, Size

        return Size(64, 2, 4, 2, 16, 128, 2_048, 1_024) if self.small else SIZES[name]

    def model(self, name: str) -> Path:
        """The folder of a fresh model of that size, made when it is first asked for."""
        from miniqwen.model.modeling_miniqwen import new_model, save_model
        from miniqwen.model.tokenization_miniqwen import load_tokenizer

        folder, size = self.work / name, self.size(name)
        if not folder.exists():
            tokenizer = load_tokenizer(self.work / "tokenizer")
            save_model(new_model(size.config(size.vocab_size, tokenizer.eos_token_id), seed=0), folder)
            tokenizer.save_pretrained(folder)
        return folder

    def train(self, name: str, *flags: object, launcher: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The lines of metrics of a run in the folder `name`; raises `RuntimeError` with what it said."""
        output = self.work / "runs" / name
        command = [self.python, *launcher, "train_loop.py", "--output_dir", str(output), "--report_to", "none"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        if self.small:
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                [*command, *map(str, flags)], cwd=ROOT, env=environment, capture_output=True, text=True,
                timeout=LONGEST, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{name}: not over in {LONGEST} s (DeepSpeed compiles when it first runs)") from None
        if done.returncode:
            raise RuntimeError(
                f"{name}: status {done.returncode}: {' '.join((done.stderr or done.stdout).split())[-400:]}"
            )
        return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]

    def text_flags(self, size: str, length: int, rows: int, updates: int) -> list[object]:
        data = ["--dataset_name", self.work / "text", "--task", "pretrain", "--text_column", "text"]
        shape = ["--block_size", length, "--per_device_train_batch_size", rows, "--max_steps", updates]
        how = "--do_train --validation_blocks 0 --learning_rate 1e-4 --logging_steps 1 --save_steps 1000000".split()
        return ["--model_path", self.model(size), *data, *shape, *how]


def prepared(device: str, work: Path, python: str) -> Setup:
    """Text, questions and a tokenizer."""
    import pyarrow.parquet as pq
    from against_trainer import write_questions
    from throughput import write_text

    from miniqwen.model.tokenization_miniqwen import train_tokenizer

    (work / "text").mkdir()
    files = write_text(work / "text", 0.5 if device == "cpu" else 30.0)
    write_questions(work / "mirror", (64, 8) if device == "cpu" else (2_000, 100))
    texts = pq.read_table(files[0])["text"].to_pylist()[:2000]
    train_tokenizer(texts, 1_000 if device == "cpu" else 16_384).save_pretrained(work / "tokenizer")
    return Setup(device, work, python)


def blocks(setup: Setup, vocabulary: int, documents: bool, rows: int = 2, length: int = 1024) -> Any:
    """A micro-batch of random tokens; of several documents a row, where they are kept apart."""
    import numpy as np

    from miniqwen.training.batches import block_batch

    if setup.small:
        length = min(length, 128)
    drawn = np.random.default_rng(0)
    tokens = drawn.integers(1, vocabulary, (rows, length))
    tokens[:, length // 3], tokens[:, length // 2] = 0, 0
    return block_batch(list(tokens), length, end=0 if documents else None)


def in_precision(setup: Setup, precision: str) -> Any:
    """Autocast as training has it."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(setup.device, dtype=dtype, enabled=dtype is not None)


def card(setup: Setup) -> Iterator[Line]:
    """The card is in the table of peaks."""
    import torch

    from miniqwen.training.flops import allows_tf32, peak_of

    name = "a CPU" if setup.small else torch.cuda.get_device_name()
    peaks = {precision: peak_of(name, precision, allows_tf32()) for precision in ("fp32", "bf16", "fp16")}
    told = ", ".join(f"{precision} {peak}" for precision, peak in peaks.items())
    yield Line(f"peaks of {name}", None if setup.small else peaks["bf16"] is not None, told, "TFLOP/s, dense, known")


def kernels(setup: Setup) -> Iterator[Line]:
    """The attention kernel of each precision, with and without documents: never the one that builds [T, T]."""
    import torch

    from miniqwen.model.modeling_miniqwen import load_model

    model = load_model(setup.model("base")).to(setup.device)
    for precision in ("fp32", "bf16") if setup.small else ("fp32", "bf16", "fp16"):
        for documents in (False, True):
            batch = blocks(setup, model.config.vocab_size, documents).to(torch.device(setup.device))
            activities = [torch.profiler.ProfilerActivity.CPU]
            with torch.profiler.profile(activities=activities) as profiler, in_precision(setup, precision):
                model(**vars(batch)).backward()
            names = {event.key for event in profiler.key_averages() if "attention" in event.key or "attn" in event.key}
            used = sorted(re.sub(r".*::_?", "", name) for name in names if "backward" not in name)
            held = bool(used) and not any("math" in name for name in used)
            yield Line(
                f"kernel, {precision}, {'documents' if documents else 'plain blocks'}",
                held,
                ", ".join(used),
                "not math",
            )


def first_update(setup: Setup, precision: str, device: str) -> tuple[float, float]:
    """(mean loss, gradient norm) of the same weights and tokens."""
    import torch

    from miniqwen.model.modeling_miniqwen import load_model

    model = load_model(setup.model("base")).to(device)
    batch = blocks(setup, model.config.vocab_size, documents=True)
    targets = batch.num_targets
    with in_precision(dataclasses.replace(setup, device=device), precision):
        loss = model(**vars(batch.to(torch.device(device)))) / targets
    loss.backward()
    squares = [p.grad.double().pow(2).sum() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), float(torch.stack(squares).sum().sqrt())


def against_cpu(setup: Setup) -> Iterator[Line]:
    """The first loss and gradient norm are the CPU's in fp32."""
    expected = first_update(setup, "fp32", "cpu")
    for precision, limit in (("fp32", 1e-5), ("bf16", 6e-4)):
        found = first_update(setup, precision, setup.device)
        for what, own, other in zip(("loss", "gradient norm"), found, expected, strict=True):
            error = abs(own / other - 1)
            yield Line(f"first {what}, {precision}", error <= limit, f"{error:.1e} off", f"{limit:.0e} of the CPU's")


def isolation(setup: Setup) -> Iterator[Line]:
    """Other tokens in one document change the loss of another by nothing at all."""
    import torch

    from miniqwen.model.loss import IGNORED
    from miniqwen.model.modeling_miniqwen import load_model

    model = load_model(setup.model("base")).to(setup.device)
    batch = blocks(setup, model.config.vocab_size, documents=True)
    boundary = batch.input_ids.shape[1] // 3 + 1  # behind the first document
    batch.targets[:, :boundary] = IGNORED
    noisy = batch.input_ids.clone()
    noisy[:, : boundary - 1] = noisy[:, : boundary - 1].flip(1)
    for precision in ("fp32", "bf16"):
        differences = []
        for apart in (batch, dataclasses.replace(batch, cu_seqlens=None, position_ids=None)):
            losses = []
            for tokens in (batch.input_ids, noisy):
                given = dataclasses.replace(apart, input_ids=tokens).to(torch.device(setup.device))
                with torch.no_grad(), in_precision(setup, precision):
                    losses.append(float(model(**vars(given))))
            differences.append(abs(losses[0] - losses[1]))
        told = f"{differences[0]:g} (not apart: {differences[1]:.1g})"  # which shows that the noise is seen
        yield Line(f"documents apart, {precision}", differences[0] == 0 < differences[1], told, "0 exactly")


def head_gradient(setup: Setup) -> Iterator[Line]:
    """The output matrix's gradient in bf16 over many rows, against float64 of the same rounded inputs."""
    import torch

    from miniqwen.model.loss import cross_entropy_sum

    rows, width, vocabulary = (4_096, 32, 512) if setup.small else (65_536, 256, 8_192)
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, device=setup.device).bfloat16().float()
    weight = (torch.randn(vocabulary, width, device=setup.device) * 0.1).bfloat16().float().requires_grad_()
    targets = torch.randint(0, vocabulary, (rows,), device=setup.device)
    with in_precision(setup, "bf16"):
        cross_entropy_sum(hidden, weight, targets).backward()
    exact = torch.zeros_like(weight, dtype=torch.float64)
    with torch.no_grad():
        for some, classes in zip(hidden.split(2_048), targets.split(2_048), strict=True):
            share = torch.softmax(some.double() @ weight.double().T, dim=1)
            share[torch.arange(len(some)), classes] -= 1
            exact += share.T @ some.double()
        error = float((weight.grad - exact).norm() / exact.norm())  # type: ignore[operator]
    yield Line(f"head's gradient, bf16, {rows:,} rows", error < 0.005, f"{error:.2%} off", "under 0.5 %")


def resume(setup: Setup) -> Iterator[Line]:
    """A run in two parts ends with the weights of one that was not interrupted, at 1,024 tokens."""
    import torch
    from safetensors.torch import load_file

    for precision in ([],) if setup.small else ([], ["--bf16"]):
        name = f"resume{''.join(precision)}"
        flags = [*setup.text_flags("small", 1024, 2, 4), "--document_masking", "True", "--deterministic", *precision]
        flags += ["--lr_scheduler_type", "constant"]  # a schedule depends on how long the run is to be
        setup.train(f"{name}-whole", *flags)
        setup.train(f"{name}-parts", *flags, "--max_steps", 2)
        setup.train(f"{name}-parts", *flags, "--resume_from_checkpoint", "auto")
        one, other = (
            load_file(setup.work / "runs" / f"{name}-{part}" / "checkpoint-4/model.safetensors")
            for part in ("whole", "parts")
        )
        differ = sum(not torch.equal(one[key], other[key]) for key in one)
        told = f"{differ} of {len(one)} tensors differ"
        yield Line(
            f"resume, bit for bit, {''.join(precision).strip('-') or 'fp32'}", differ == 0, told, "equal weights"
        )


def waits(setup: Setup) -> Iterator[Line]:
    """How often the host waits for the device in an update: for the norm alone."""
    import torch

    from miniqwen.model.modeling_miniqwen import MiniQwenForCausalLM
    from miniqwen.questions.examples import Example
    from miniqwen.training.batches import example_batch

    size = setup.size("base")
    config = size.config(size.vocab_size)
    questions = example_batch([Example(tuple(range(1, 40 + 7 * n)), 30) for n in range(4)])
    kinds = {
        "text": blocks(setup, size.vocab_size, False), "documents": blocks(setup, size.vocab_size, True),
        "questions": questions,
    }  # fmt: skip
    for kind, batch in kinds.items():
        if setup.small:  # a number that is read on the meta device is an error
            model, device = MiniQwenForCausalLM(config).to("meta"), torch.device("meta")
            try:
                with torch.autocast("cpu", dtype=torch.bfloat16):  # as the GPU's kernel has it, in half precision
                    model.to(torch.bfloat16)(**vars(batch.to(device))).backward()
                found = "none on the meta device"
            except (RuntimeError, NotImplementedError) as error:
                found = f"a read on the meta device: {str(error).splitlines()[0][:60]}"
            yield Line(f"waits of an update, {kind}", found.startswith("none"), found, "at most 1 on a GPU")
            continue
        found_waits = _waits_on_gpu(setup, config, batch)
        yield Line(f"waits of an update, {kind}", found_waits <= 1, str(found_waits), "at most 1")


def _waits_on_gpu(setup: Setup, config: Any, batch: Any) -> int:
    import torch

    from miniqwen.config.training import TrainConfig
    from miniqwen.distributed.runtime import Runtime
    from miniqwen.model.modeling_miniqwen import MiniQwenForCausalLM
    from miniqwen.training.optimizers import make_optimizer

    flags = TrainConfig(bf16=True)
    runtime = Runtime(flags)
    plain = MiniQwenForCausalLM(config)
    model, optimizer = runtime.prepare(plain, make_optimizer(plain, flags))
    targets, found = batch.num_targets, 0
    for number in range(4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn" if number == 3 else "default")
            with runtime.accumulating(model, sync=True):
                runtime.backward(model(**vars(batch.to(runtime.device))), targets)
            runtime.step(model, optimizer, 1.0)
            torch.cuda.set_sync_debug_mode("default")
        found = sum("called a synchronizing" in str(warning.message) for warning in caught)
    return found


def speed(setup: Setup) -> Iterator[Line]:
    """Tokens a second of whole compiled runs in bf16."""
    import torch

    anchors = {"large": (81_000, 92_000), "base": (195_000, 260_000)}
    for name, (least, most) in anchors.items():
        rows, length, updates = (2, 64, 4) if setup.small else (16 if name == "base" else 8, 1024, 25)
        flags = [*setup.text_flags(name, length, rows, updates), "--bf16", "--preprocessing_num_workers", 4]
        flags += [] if setup.small else ["--torch_compile", "--gradient_accumulation_steps", 2]
        lines = [line for line in setup.train(f"speed-{name}", *flags) if "loss" in line][2:]
        rate = statistics.median(line["tokens_per_second"] for line in lines)
        mfu = f", {statistics.median(line['mfu'] for line in lines):.1%} MFU" if "mfu" in lines[0] else ""
        memory = max(line.get("max_memory_reserved_gib", line.get("max_memory_rss_gib", 0)) for line in lines)
        here = setup.small or H100 not in torch.cuda.get_device_name()
        holds = rate > 0 if setup.small else None if here else rate >= least
        yield Line(
            f"speed of {name}, compiled, bf16", holds, f"{rate:,.0f} tokens/s{mfu}, {memory:.1f} GiB",
            f"{least:,} to {most:,} on an {H100}",
        )  # fmt: skip


def flat_memory(setup: Setup) -> Iterator[Line]:
    """Reserved memory over micro-batches of ever other lengths, in fine-tuning."""
    updates, rows = (9, 4) if setup.small else (60, 16)
    flags = ["--model_path", setup.model("base"), "--dataset_name", "sciq", "--data_root", setup.work / "mirror"]
    flags += (
        f"--max_seq_length 512 --per_device_train_batch_size {rows} --max_steps {updates} --do_train --bf16 ".split()
    )
    flags += "--learning_rate 1e-4 --logging_steps 1 --save_steps 1000000".split()
    lines = [line for line in setup.train("shapes", *flags) if "loss" in line]
    name = "max_memory_rss_gib" if setup.small else "max_memory_reserved_gib"
    first, last = lines[len(lines) // 3][name], lines[-1][name]
    told = f"{first:.2f} to {last:.2f} GiB"
    more = 1.5 if setup.small else 1.05  # a process's heap on a CPU grows by what it keeps for reuse
    yield Line("reserved memory over changing shapes", last <= more * first, told, f"at most {more - 1:.0%} more")


def saves(setup: Setup) -> Iterator[Line]:
    """For how long a save stops the loop, and one in the background."""
    stalls = {}
    for name, how in (("plain", []), ("async", ["--async_save", "True"])):
        rows, length = (2, 64) if setup.small else (8, 1024)
        flags = [*setup.text_flags("base", length, rows, 8), "--bf16", "--save_steps", 4, *how]
        lines = [line for line in setup.train(f"save-{name}", *flags) if "loss" in line]
        stalls[name] = next(line["time_save"] for line in lines if line["step"] == 5)
    told = f"{stalls['plain']:.2f} s, in the background {stalls['async']:.2f} s"
    holds = all(stall > 0 for stall in stalls.values()) and (setup.small or stalls["async"] < stalls["plain"])
    yield Line("stall of a save", holds, told, "less in the background")


def fp16_scale(setup: Setup) -> Iterator[Line]:
    """An overflow is skipped and lowers the scale, which a checkpoint gives back."""
    import torch

    from miniqwen.distributed.runtime import scale_of, set_scale
    from miniqwen.model.modeling_miniqwen import load_model

    model = load_model(setup.model("base")).to(setup.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(setup.device, init_scale=2.0**127)
    before = model.model.norm.weight.detach().clone()
    batch = blocks(setup, model.config.vocab_size, documents=False).to(torch.device(setup.device))
    with in_precision(setup, "bf16" if setup.small else "fp16"):
        loss = model(**vars(batch))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    untouched, lower = torch.equal(before, model.model.norm.weight), scaler.get_scale() < 2.0**127
    other = torch.amp.GradScaler(setup.device)
    other.scale(torch.zeros((), device=setup.device))  # a scaler has its numbers from the first use on
    set_scale(other, scale_of(scaler))
    restored = scale_of(other) == scale_of(scaler)
    told = f"weights {'untouched' if untouched else 'CHANGED'}, scale 2^{torch.tensor(scaler.get_scale()).log2():.0f}"
    told += f", {'restored' if restored else 'NOT restored'}"
    yield Line("fp16 overflow", untouched and lower and restored, told, "skipped, lower, restored")


def backends(setup: Setup) -> Iterator[Line]:
    """FSDP2 and ZeRO at world size 1 give one process' losses and norms."""
    flags = setup.text_flags("small", 64 if setup.small else 1024, 2, 3)
    expected = setup.train("one-process", *flags)
    ways = {"FSDP2": ["--fsdp", "full_shard"]}
    ways |= {f"ZeRO-{stage}": ["--deepspeed", f"ds_configs/zero{stage}.json"] for stage in (1, 2, 3)}
    launcher = "-m torch.distributed.run --standalone --nproc_per_node 1".split()
    for name, how in ways.items():
        try:
            found = setup.train(name, *flags, *how, launcher=launcher)
        except RuntimeError as error:
            yield Line(f"{name}, world 1", False, str(error)[-300:].replace("|", "/"), "the losses of one process")
            continue
        pairs = [(a, b) for a, b in zip(found, expected, strict=True) if "loss" in a]
        off = max(abs(a["loss"] / b["loss"] - 1) for a, b in pairs)
        norm = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in pairs)
        told = f"losses {off:.1e}, norms {norm:.1e} off"
        yield Line(f"{name}, world 1", off <= 1e-4 and norm <= 1e-3, told, "1e-4, 1e-3 of one process")


def marked_tests(setup: Setup) -> Iterator[Line]:
    """The tests that are marked `gpu`."""
    if setup.small:
        yield Line("pytest -m gpu", None, "they need a GPU", "all pass")
        return
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LONGEST)
    told = (done.stdout.strip().splitlines() or ["nothing was said"])[-1]
    yield Line("pytest -m gpu", done.returncode == 0 and "passed" in told, told, "all pass")


# In the order of what is learned soonest; the longest last.
CHECKS: dict[str, Callable[[Setup], Iterator[Line]]] = {
    "card": card, "kernels": kernels, "against_cpu": against_cpu, "isolation": isolation,
    "head_gradient": head_gradient, "fp16": fp16_scale, "waits": waits, "speed": speed, "saves": saves,
    "resume": resume, "memory": flat_memory, "tests": marked_tests, "backends": backends,
}  # fmt: skip


def missing_wheels() -> list[str]:
    """Requirements of the project, and of the tests marked `gpu`, that this Python does not meet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tests = [one for one in project["optional-dependencies"]["dev"] if one.startswith(("pytest", "setuptools"))]
    missing = []
    for requirement in [*project["dependencies"], *tests, "ninja"]:  # DeepSpeed compiles with it
        name, _, rest = requirement.partition(";")[0].partition(">=")
        try:
            here = importlib.metadata.version(name.strip())
        except importlib.metadata.PackageNotFoundError:
            here = ""
        if not here or _numbers(here) < _numbers(rest):
            missing.append(requirement.partition(";")[0].strip())
    return missing


def _numbers(version: str) -> list[int]:
    """2.13.0+cu130 as [2, 13, 0]; what is no number ends it."""
    return [int(part) for part in re.match(r"[\d.]*", version)[0].strip(".").split(".") if part]  # type: ignore[index]


def run_checks(setup: Setup, names: Sequence[str], minutes: float) -> Iterator[dict[str, Any]]:
    """The lines as records with `status` and `seconds`; an error is a line that fails."""
    began = time.monotonic()
    for name in names:
        if time.monotonic() - began > 60 * minutes:
            yield {
                "name": name,
                "status": SKIP,
                "figure": f"--minutes {minutes:g} are over",
                "wanted": "",
                "seconds": 0,
            }
            continue
        lines, last = CHECKS[name](setup), time.monotonic()
        while True:
            try:
                line = next(lines, None)
            except Exception as error:
                told = " ".join(f"{type(error).__name__}: {error}".split())[-300:].replace("|", "/")
                line, lines = Line(name, False, told, "an answer"), iter(())
            if line is None:
                break
            now = time.monotonic()
            status = SKIP if line.holds is None else PASS if line.holds else FAIL
            if setup.small and status != FAIL:
                status = NOT_SHOWN
            record = {"name": line.name, "status": status, "figure": line.figure, "wanted": line.wanted}
            yield {**record, "seconds": round(now - last, 1)}
            last = now


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    flags.add_argument("--only", nargs="*", choices=CHECKS, default=list(CHECKS), help="some of the checks")
    flags.add_argument("--json", type=Path, default=Path("acceptance.json"))
    flags.add_argument("--minutes", type=float, default=10.0)
    flags.add_argument("--python", default=sys.executable, help="what runs train_loop.py")
    flags.add_argument("--wheels", action="store_true", help="only list the packages that are missing")
    given = flags.parse_args(arguments)
    if not shutil.which("g++"):
        print("no g++ here: torch.compile and DeepSpeed compile with it")
    if missing := missing_wheels():
        print(f"missing here: {' '.join(missing)}\nwhere there is a network: {BUILT} {' '.join(map(repr, missing))}")
        print("and here: python -m pip install --no-index --find-links wheels " + " ".join(map(repr, missing)))
        return 2
    if given.wheels:
        print("nothing is missing")
        return 0
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: no GPU is visible; --device cpu runs the script at small sizes", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}\n\n| | | found | wanted | s |\n|---|---|---|---|--:|", flush=True)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        setup = prepared(given.device, Path(folder), given.python)
        for record in run_checks(setup, given.only, given.minutes):
            records.append(record)
            print("| {name} | {status} | {figure} | {wanted} | {seconds} |".format(**record), flush=True)
    counts = {status: sum(r["status"] == status for r in records) for status in (PASS, FAIL, SKIP, NOT_SHOWN)}
    given.json.write_text(
        json.dumps({"device": name, "torch": torch.__version__, "counts": counts, "lines": records}, indent=1)
    )
    print(f"\n{', '.join(f'{count} {status}' for status, count in counts.items() if count)}; {given.json}")
    return 1 if counts[FAIL] else 0


if __name__ == "__main__":
    sys.exit(main())
