"""What several tests need: scripts run as users run them, and a small world of data and a model, made here."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Many small processes share two cores here: threads that wait actively would stand in each other's way.
os.environ["OMP_NUM_THREADS"] = "1"

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parent.parent
Runner = Callable[..., subprocess.CompletedProcess[str]]


def run_script(
    script: str, *flags: object, processes: int = 1, environment: dict[str, str] | None = None, limit: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run a script of the project as a user does; several processes go through torchrun."""
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    )
    command = [sys.executable, *launcher, script, *map(str, flags)]
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | offline | (environment or {}), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # not kill: torchrun takes its workers with it
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


WORDS = ("stone river light metal cloud tower green amber north quiet heavy salt glass wind paper copper").split()


def article(number: int) -> str:
    """A text of its own for every number: a heading and some sentences of random words."""
    drawn = random.Random(number)
    sentences = (" ".join(drawn.choices(WORDS, k=drawn.randint(3, 12))) for _ in range(drawn.randint(1, 9)))
    return f"Article {number}\n\n" + ". ".join(sentences) + "."


def sciq_row(number: int) -> dict[str, str]:
    turned = [WORDS[(number + i) % len(WORDS)] for i in range(4)]
    return {
        "question": f"Which word has number {number}?", "distractor3": turned[2], "distractor1": turned[0],
        "distractor2": turned[1], "correct_answer": turned[3], "support": "Words have numbers." * (number % 2),
    }  # fmt: skip


def commonsense_row(number: int, answered: bool = True) -> dict[str, Any]:
    texts = [WORDS[(number + i) % len(WORDS)] for i in range(5)]
    return {
        "id": f"c{number}", "question": f"Which word would one choose for {number}?", "question_concept": "word",
        "choices": {"label": list("ABCDE"), "text": texts}, "answerKey": "ABCDE"[number % 5] if answered else "",
    }  # fmt: skip


def write_parquet(folder: Path, split: str, rows: list[dict[str, Any]], shards: int = 1, group: int = 20) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        part = rows[shard * len(rows) // shards : (shard + 1) * len(rows) // shards]
        pq.write_table(
            pa.Table.from_pylist(part), folder / f"{split}-{shard:05}-of-{shards:05}.parquet", row_group_size=group
        )


@pytest.fixture(scope="session")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like the hub, with all four data sets."""
    root = tmp_path_factory.mktemp("mirror")
    pages = [{"id": str(n), "url": "", "title": f"Article {n}", "text": article(n)} for n in range(120)]
    write_parquet(root / "wikimedia/wikipedia/20231101.en", "train", pages, shards=2)
    (root / "wikimedia/wikipedia/README.md").write_text(
        "---\nconfigs:\n- config_name: 20231101.en\n  data_files:\n  - split: train\n    path: 20231101.en/*\n---\n"
    )
    papers = root / "common-pile/arxiv_papers"
    papers.mkdir(parents=True)
    for shard in range(2):
        lines = [json.dumps({"id": f"{shard}.{n}", "text": article(1000 + shard * 30 + n) * 3}) for n in range(30)]
        with gzip.open(papers / f"{shard:05}_arxiv-papers.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    sciq = {"train": range(60), "validation": range(60, 75), "test": range(75, 90)}
    for split, numbers in sciq.items():
        write_parquet(
            root / "allenai/sciq/data", split, [sciq_row(n) for n in numbers], shards=2 if split == "train" else 1
        )
    commonsense = {"train": range(50), "validation": range(50, 65), "test": range(65, 70)}
    for split, numbers in commonsense.items():
        rows = [commonsense_row(n, answered=split != "test") for n in numbers]
        write_parquet(root / "tau/commonsense_qa/data", split, rows)
    return root


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model, with a tokenizer trained on the articles."""
    from miniqwen.modeling_miniqwen import MiniQwenConfig, new_model, save_model
    from miniqwen.tokenization_miniqwen import train_tokenizer

    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([article(n) for n in range(120)], 400)
    config = MiniQwenConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    save_model(new_model(config, seed=0), folder)
    tokenizer.save_pretrained(folder)
    return folder
