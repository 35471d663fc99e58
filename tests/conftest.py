"""A small world of data and a model, made here, for all tests."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

# Many small processes share two cores here: threads that wait actively would stand in each other's way.
os.environ["OMP_NUM_THREADS"] = "1"
# MKL's fastest code adds up in an order that depends on where in memory a matrix happens to lie: on some processors
# (AMD's, seen with AVX2) one process and two then differ in the last bits. What is exact is tested without that.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import pytest
from runs import SHARED, article, commonsense_row, sciq_row, warm_folder, write_parquet

# Files of tests that together take more than half a minute, the longest first: begun last, one of them would keep a
# worker long after the others have nothing left.
LONGEST_FIRST = """
test_backends test_train_loop test_preemption test_ending test_crash test_two_nodes test_parity test_launches test_hub
test_eval_loop test_disk_faults test_background test_data_order test_checkpoint test_hub_away
""".split()


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist share a warm Python, which starts while they do."""
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        os.environ[SHARED] = str(warm_folder())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


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
    from miniqwen.model.modeling_miniqwen import MiniQwenConfig, new_model, save_model
    from miniqwen.model.tokenization_miniqwen import train_tokenizer

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
