"""What users would pick instead, as whole commands from text, and a watch over any of them (against_trainer.py).

    python benchmarks/rivals.py MARKS.jsonl PROGRAM WORDS ...

PROGRAM is `ours` (WORDS are the flags of train_loop.py) or another one (WORDS are `name=value` pairs of `Plan`).
Promises: every program is run unchanged and noted alike: at each step of any optimizer of torch, CPU seconds of the
process so far and the most memory it has had; before that, the memory it had when it opened its tokenizer, which is
what its imports cost. Costs: one short line a step.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Plan:
    """What a rival is to do; `data`: parquet files of `text`, or of `prompt` and `completion`."""

    model: str
    data: str
    output: str
    updates: int
    rows: int  # of a micro-batch
    accumulation: int
    length: int

    @property
    def files(self) -> list[str]:
        return sorted(map(str, Path(self.data).glob("*.parquet")))


def memory(name: str) -> int:
    """Bytes of this process by a name of Linux's: VmRSS now, VmHWM at the most."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:")))


def watch(marks: Path) -> None:
    """From now on what this process does is noted in `marks`."""
    opened: list[int] = []

    def opening(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not opened and str(arguments[0]).endswith("tokenizer_config.json"):
            opened.append(memory("VmRSS"))

    def stepped(*_: Any) -> None:
        note = {"cpu": time.process_time(), "most": memory("VmHWM"), "imports": opened[0] if opened else None}
        with marks.open("a") as file:
            file.write(json.dumps(note) + "\n")

    sys.addaudithook(opening)
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(stepped)


def arguments_of(plan: Plan) -> dict[str, Any]:
    """What Trainer and SFTTrainer are told alike: the flags of ours, nothing written on the way."""
    return {
        "output_dir": plan.output, "max_steps": plan.updates, "per_device_train_batch_size": plan.rows,
        "gradient_accumulation_steps": plan.accumulation, "learning_rate": 1e-4, "lr_scheduler_type": "constant",
        "logging_steps": plan.updates, "save_strategy": "no", "report_to": [], "use_cpu": True, "seed": 1,
        "bf16": False,
    }  # fmt: skip


def trainer_on_text(plan: Plan) -> None:
    """transformers' Trainer as its example run_clm feeds it: map(tokenize), map(group_texts)."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

    tokenizer = AutoTokenizer.from_pretrained(plan.model)

    def tokenize(batch: dict[str, list[str]]) -> Any:
        return tokenizer([text + tokenizer.eos_token for text in batch["text"]])

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain(*rows)) for name, rows in batch.items()}
        total = len(joined["input_ids"]) // plan.length * plan.length
        blocks = {n: [ids[i : i + plan.length] for i in range(0, total, plan.length)] for n, ids in joined.items()}
        return {**blocks, "labels": blocks["input_ids"].copy()}

    text = load_dataset("parquet", data_files=plan.files, split="train")
    blocks = text.map(tokenize, batched=True, remove_columns=text.column_names).map(group_texts, batched=True)
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=torch.float32)
    trainer = Trainer(
        model, TrainingArguments(**arguments_of(plan)), train_dataset=blocks, data_collator=default_data_collator
    )
    trainer.train()
    trainer.save_model()


def bare_on_text(plan: Plan) -> None:
    """A loop of a page around our model and its loss: what anything more than this costs is the trainer's."""
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from miniqwen.model.modeling_miniqwen import load_model, save_model
    from miniqwen.model.tokenization_miniqwen import load_tokenizer

    tokenizer = load_tokenizer(plan.model)
    texts = [text for file in plan.files for text in pq.read_table(file)["text"].to_pylist()]
    encoded = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
    tokens = np.fromiter(itertools.chain(*encoded), dtype=np.int64)
    blocks = torch.from_numpy(tokens[: len(tokens) // plan.length * plan.length].reshape(-1, plan.length))
    model = load_model(plan.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    drawn = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(1)).split(plan.rows)
    targets = plan.rows * plan.accumulation * (plan.length - 1)
    for update in range(plan.updates):
        for number in range(plan.accumulation):
            rows = blocks[drawn[update * plan.accumulation + number]]
            following = torch.cat([rows[:, 1:], torch.full_like(rows[:, :1], -100)], dim=1)
            (model(input_ids=rows, targets=following) / targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, plan.output)


def trainer_on_questions(plan: Plan) -> None:
    """transformers' Trainer on examples padded to the longest of their micro-batch, prompts masked."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(plan.model)

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        prompts = tokenizer(batch["prompt"])["input_ids"]
        answers = tokenizer([text + tokenizer.eos_token for text in batch["completion"]])["input_ids"]
        pairs = list(zip(prompts, answers, strict=True))
        return {
            "input_ids": [(prompt + answer)[: plan.length] for prompt, answer in pairs],
            "labels": [([-100] * len(prompt) + answer)[: plan.length] for prompt, answer in pairs],
        }

    rows = load_dataset("parquet", data_files=plan.files, split="train")
    examples = rows.map(tokenize, batched=True, remove_columns=rows.column_names)
    model = AutoModelForCausalLM.from_pretrained(plan.model, dtype=torch.float32)
    trainer = Trainer(
        model, TrainingArguments(**arguments_of(plan)), train_dataset=examples,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )  # fmt: skip
    trainer.train()
    trainer.save_model()


def trl_on_questions(plan: Plan, **options: Any) -> None:
    """TRL's SFTTrainer on prompts and completions, padded, trained on the completions; `options` of its SFTConfig."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer

    rows = load_dataset("parquet", data_files=plan.files, split="train")
    config = SFTConfig(
        **arguments_of(plan), max_length=plan.length, completion_only_loss=True, gradient_checkpointing=False,
        model_init_kwargs={"dtype": "float32"}, **options,
    )  # fmt: skip
    trainer = SFTTrainer(model=plan.model, args=config, train_dataset=rows)
    trainer.train()
    trainer.save_model()


def main() -> None:
    marks, program, *words = sys.argv[1:]
    sys.path.insert(0, str(ROOT))
    if program == "ours":
        watch(Path(marks))
        os.chdir(ROOT)
        sys.argv = ["train_loop.py", *words]
        runpy.run_path("train_loop.py", run_name="__main__")
        return
    fields: dict[str, Any] = dict(word.split("=", 1) for word in words)
    plan = Plan(**fields | {name: int(fields[name]) for name in ("updates", "rows", "accumulation", "length")})
    watch(Path(marks))
    {
        "trainer text": trainer_on_text, "bare text": bare_on_text, "trainer questions": trainer_on_questions,
        "trl questions": trl_on_questions,
        "trl_chunked questions": lambda given: trl_on_questions(given, loss_type="chunked_nll"),
    }[program](plan)  # fmt: skip


if __name__ == "__main__":
    main()
