"""Ours against what users would pick: Trainer, TRL's SFTTrainer and a bare loop, whole commands from text, in turn.

    python benchmarks/against_trainer.py                                  # text at two vocabularies, then questions
    python benchmarks/against_trainer.py --tasks text --vocabularies 16384 --rounds 7
    python benchmarks/against_trainer.py --tasks questions --data_root DIR    # the hub's SciQ in place of made rows

Every program starts from files of text (or of questions; the rivals get them as prompts and completions), makes the
same number of updates of the same size on a fresh model of the same shape, in a process of its own, and writes the
model (rivals.py has them). Told for each are the median and the range over the rounds of
  rate       tokens (or examples) a CPU second from the end of the first update to the end of the last one
  start-up   CPU seconds until the first update begins: imports, reading, tokenising, the model
  memory     the most that was resident until the last update, above what there was when the tokenizer was opened
and for ours its ratios to each other one within a round. CPU seconds of one thread (--threads), so that other work on
the machine weighs little. TRL is no dependency of the project: where Python does not find it, its line says how to get
it. `trl_chunked` is its loss_type="chunked_nll", since TRL 1.16 another name of its default.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

PROGRAMS = {"text": ("ours", "trainer", "bare"), "questions": ("ours", "trainer", "trl", "trl_chunked")}
UNITS = {"text": "tokens", "questions": "examples"}
ENTRIES = 16_384  # of the tokenizer; a larger vocabulary is the model's alone, as Qwen's is larger than its tokenizer
SCIQ = (11_679, 1_000)  # rows to train and to validate on
TRL_HINT = "pip install --no-deps --target DIR trl, and PYTHONPATH=DIR"


@dataclass(frozen=True)
class Shape:
    """Of the model and of an update."""

    hidden: int
    layers: int
    vocabulary: int
    rows: int
    accumulation: int
    length: int
    updates: int


@dataclass(frozen=True)
class Found:
    """What one command took: see the top of this file; memory in MiB."""

    rate: float
    start: float
    memory: float
    cpu: float


def write_questions(folder: Path, numbers: tuple[int, int]) -> None:
    """A mirror with SciQ as the hub has it: passages as long as its own, of made words."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from throughput import words_drawn

    say, drawn = words_drawn(1), random.Random(1)
    (folder / "allenai/sciq/data").mkdir(parents=True)
    for split, rows in zip(("train", "validation"), numbers, strict=True):
        table = []
        for _ in range(rows):
            support = say(min(int(drawn.lognormvariate(4.1, 0.8)), 300)) if drawn.random() > 0.1 else ""
            choices = [say(drawn.choice((1, 1, 2, 3))) for _ in range(4)]
            names = ("distractor3", "distractor1", "distractor2", "correct_answer")
            question = f"{say(drawn.randint(8, 25))}?"
            table.append({"question": question, **dict(zip(names, choices, strict=True)), "support": support})
        pq.write_table(pa.Table.from_pylist(table), folder / f"allenai/sciq/data/{split}-00000-of-00001.parquet")


def write_pairs(mirror: Path, folder: Path) -> None:
    """The questions to train on as `prompt` and `completion`, put as ours puts them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from miniqwen.questions.rows import Question
    from miniqwen.questions.templates import Template, shuffle_choices

    folder.mkdir()
    template, pairs = Template(), []
    rows = [row for file in mirror.glob("allenai/sciq/data/train*.parquet") for row in pq.read_table(file).to_pylist()]
    for number, row in enumerate(rows):
        choices = tuple(row[name] for name in ("distractor1", "distractor2", "distractor3", "correct_answer"))
        question = Question(str(number), row["question"], choices, 3, choices[3], row["support"])
        prompt = template.render(shuffle_choices(question, seed=1))
        pairs.append({"prompt": prompt, "completion": template.completion(choices[3])})
    pq.write_table(pa.Table.from_pylist(pairs), folder / "train.parquet")


def write_model(folder: Path, shape: Shape, text: Path) -> None:
    """A fresh model, and a tokenizer trained on some of the text."""
    import pyarrow.parquet as pq

    from miniqwen.model.modeling_miniqwen import MiniQwenConfig, new_model, save_model
    from miniqwen.model.tokenization_miniqwen import train_tokenizer

    texts = pq.read_table(next(text.glob("*.parquet")))["text"].to_pylist()
    tokenizer = train_tokenizer(texts, min(ENTRIES, shape.vocabulary))
    config = MiniQwenConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers, num_attention_heads=max(shape.hidden // 64, 1), head_dim=64,
        num_key_value_heads=max(shape.hidden // 128, 1), max_position_embeddings=max(shape.length, 128),
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    save_model(new_model(config, seed=0), folder)
    tokenizer.save_pretrained(folder)


def words_of(program: str, task: str, shape: Shape, work: Path, mirror: Path) -> list[str]:
    """The command line behind `rivals.py MARKS`."""
    output = str(work / "output")
    if program != "ours":
        data = work / ("text" if task == "text" else "pairs")
        given = {"model": work / "model", "data": data, "output": output, "updates": shape.updates, "rows": shape.rows}
        given |= {"accumulation": shape.accumulation, "length": shape.length}
        return [f"{program} {task}", *(f"{name}={value}" for name, value in given.items())]
    data_flags = f"--dataset_name sciq --data_root {mirror} --max_seq_length {shape.length}"
    if task == "text":
        data_flags = f"--dataset_name {work / 'text'} --task pretrain --text_column text --block_size {shape.length} "
        data_flags += "--validation_blocks 0"
    flags = f"--model_path {work / 'model'} --output_dir {output} --do_train {data_flags} --max_steps {shape.updates} "
    flags += f"--per_device_train_batch_size {shape.rows} --gradient_accumulation_steps {shape.accumulation} "
    flags += f"--learning_rate 1e-4 --lr_scheduler_type constant --report_to none --logging_steps {shape.updates} "
    return ["ours", *flags.split(), "--save_steps", "1000000", "--seed", "1"]


def measured(program: str, task: str, shape: Shape, work: Path, mirror: Path, threads: int) -> Found:
    """One whole command; raises `RuntimeError` with the end of what it said where it fails."""
    shutil.rmtree(work / "output", ignore_errors=True)
    shutil.rmtree(work / "cache", ignore_errors=True)
    marks = work / "marks.jsonl"
    marks.unlink(missing_ok=True)
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "cache"),
        "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    command = [sys.executable, str(ROOT / "benchmarks/rivals.py"), str(marks)]
    with (work / "said.txt").open("w+") as said:
        process = subprocess.Popen(
            [*command, *words_of(program, task, shape, work, mirror)], env=environment, stdout=said, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{program} on {task} ended with {process.returncode}:\n{said.read()[-3000:]}")
    steps = [json.loads(line) for line in marks.read_text().splitlines()]
    assert len(steps) == shape.updates > 1, f"{program}: {len(steps)} updates"
    after_first = (steps[-1]["cpu"] - steps[0]["cpu"]) / (len(steps) - 1)
    count = shape.rows * shape.accumulation * (shape.length if task == "text" else 1)
    return Found(
        count / after_first, steps[0]["cpu"] - after_first, (steps[-1]["most"] - steps[0]["imports"]) / 2**20,
        used.ru_utime + used.ru_stime,
    )  # fmt: skip


def rounds_of(
    programs: Sequence[str], task: str, shape: Shape, work: Path, mirror: Path, rounds: int, threads: int
) -> Iterator[dict[str, Found]]:
    """Each round every program once, the first one last the next time."""
    for number in range(rounds):
        turn = [*programs[number % len(programs) :], *programs[: number % len(programs)]]
        found = {}
        for name in turn:
            found[name] = one = measured(name, task, shape, work, mirror, threads)
            said = f"{one.rate:,.2f} {UNITS[task]} a CPU second, start-up {one.start:.1f} CPU s, {one.memory:,.0f} MiB"
            print(f"  round {number + 1}: {name}: {said}", flush=True)
        yield {name: found[name] for name in programs}


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def table(task: str, rounds: Sequence[Mapping[str, Found]]) -> list[str]:
    """Markdown: median (least-most) over the rounds; ratios are ours / theirs, within a round."""
    head = (f"{UNITS[task]} / CPU s", "start-up, CPU s", "memory, MiB", "whole, CPU s")
    lines = [f"| | {' | '.join(head)} | ours: speed | start-up | memory |", f"|---|{'--:|' * 7}"]
    for name in rounds[0]:
        own, rival = [found["ours"] for found in rounds], [found[name] for found in rounds]
        cells = [
            spread(
                [getattr(one, field) for one in rival],
                1 if field == "rate" and max(one.rate for one in rival) > 20 else 2 if field == "rate" else 0,
            )
            for field in ("rate", "start", "memory", "cpu")
        ]
        for field in ("rate", "start", "memory") if name != "ours" else ():
            ratios = [getattr(a, field) / getattr(b, field) for a, b in zip(own, rival, strict=True)]
            cells.append(f"{spread(ratios)} ×")
        lines.append(f"| {name} | {' | '.join([*cells, *[''] * (7 - len(cells))])} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--tasks", nargs="*", choices=PROGRAMS, default=list(PROGRAMS))
    flags.add_argument("--vocabularies", type=int, nargs="*", default=[151_936, 16_384])
    flags.add_argument("--programs", nargs="*", default=["ours", "trainer", "bare", "trl"])
    flags.add_argument("--hidden", type=int, default=256)
    flags.add_argument("--layers", type=int, default=4)
    flags.add_argument("--length", type=int, default=512)
    flags.add_argument("--rows", type=int, default=4, help="of a micro-batch")
    flags.add_argument(
        "--accumulation", type=int, help="micro-batches of an update (default: 2 of text, 4 of questions)"
    )
    flags.add_argument("--updates", type=int, default=6)
    flags.add_argument("--rounds", type=int, default=5)
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--questions", type=int, nargs=2, default=SCIQ, help="made rows to train and to validate on")
    flags.add_argument("--data_root", type=Path, help="a mirror of the hub with SciQ")
    flags.add_argument("--json", type=Path, help="write what was found there too")
    given: Any = flags.parse_args(arguments)
    wanted = [name for name in given.programs if not name.startswith("trl") or importlib.util.find_spec("trl")]
    if len(wanted) < len(given.programs):
        print(f"TRL is left out: this Python has none ({TRL_HINT} gives it one)", flush=True)
    everything: dict[str, list[dict[str, Any]]] = {}
    for task in given.tasks:
        for vocabulary in given.vocabularies:
            accumulation = given.accumulation or {"text": 2, "questions": 4}[task]
            shape = Shape(given.hidden, given.layers, vocabulary, given.rows, accumulation, given.length, given.updates)
            print(f"\n{task}, vocabulary {vocabulary:,}, {shape.hidden} x {shape.layers} layers, ", end="")
            print(f"{shape.rows} x {accumulation} rows of at most {shape.length}, {shape.updates} updates", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                mirror = prepared(work, task, shape, given)
                programs = [name for name in PROGRAMS[task] if name in wanted]
                found: list[dict[str, Found]] = []
                for of_round in rounds_of(programs, task, shape, work, mirror, given.rounds, given.threads):
                    found.append(of_round)
                    everything[f"{task} {vocabulary}"] = [{n: vars(one) for n, one in of.items()} for of in found]
                    if given.json:  # a round may take long, and the next one may not be waited for
                        given.json.write_text(json.dumps(everything, indent=1))
            print("\n".join(table(task, found)), flush=True)
    return 0


def prepared(work: Path, task: str, shape: Shape, given: Any) -> Path:
    """Text, model and questions in `work`; returns the mirror with the questions."""
    from throughput import write_text

    (work / "text").mkdir()
    write_text(work / "text", 2.0)
    write_model(work / "model", shape, work / "text")
    mirror = given.data_root.resolve() if given.data_root else work / "mirror"
    if task == "questions":
        if not given.data_root:
            write_questions(mirror, tuple(given.questions))
        write_pairs(mirror, work / "pairs")
    return mirror


if __name__ == "__main__":
    sys.exit(main())
