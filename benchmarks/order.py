"""Whether a run reads what was asked for: shares that hold from the first update on, an order as good as a shuffle.

    python benchmarks/order.py [--data_root DIR]

shares    16 lanes x 1,024 tokens of Wikipedia, arXiv and a third source, through the task that the training loop uses;
          from --data_root, or of generated articles and papers. Claimed: after 20 updates within 0.02 of what was
          asked, in every window of 20 updates within 0.05.
shuffle   200 row groups of 1,000 rows (and the same rows in one gzipped file), 8 lanes: how often documents 1 to 8
          apart in a lane are of the same 1,000 rows (at random 0.005), and how their places in the file correlate, over
          a quarter of an epoch. Claimed: at most 0.10 and 0.25; two blocks of one document at least four updates
          apart. Units read before the first update: one a lane.
Exit status 1 if a claim does not hold.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))

from resume_cost import Reads

from miniqwen.config.data import DataFlags
from miniqwen.config.training import TrainConfig
from miniqwen.data.documents import Order
from miniqwen.data.held_out import HeldOut
from miniqwen.data.repositories import resolve
from miniqwen.data.strands import Reading, SourceCursor
from miniqwen.data.windows import TextWindows
from miniqwen.model.tokenization_miniqwen import train_tokenizer
from miniqwen.training.batches import Plan
from miniqwen.training.opening import list_data, make_task

LENGTH, UPDATES, WINDOW = 1024, 80, 20
SHARES = ((0.9, 0.1), (0.5, 0.5), (0.97, 0.03), (0.6, 0.3, 0.1))
AFTER, IN_A_WINDOW = 0.02, 0.05
GROUPS, ROWS, LANES = 200, 1000, 8
SAME, CORRELATION, APART = 0.10, 0.25, 4


def write_sources(folder: Path) -> list[str]:
    """Articles of a few hundred words, papers of twenty blocks, and notes: three files of lines."""
    drawn = random.Random(0)
    words = [f"w{number:x}" for number in range(2000)]
    names = []
    for name, count, length in (("articles", 4000, 300), ("papers", 120, 9000), ("notes", 500, 60)):
        file = folder / f"{name}.jsonl"
        texts = (" ".join(drawn.choices(words, k=drawn.randint(length // 2, 2 * length))) for _ in range(count))
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        names.append(str(file))
    return names


def measure_shares(names: Sequence[str], data_root: str | None) -> bool:
    tokenizer = train_tokenizer([" ".join(f"w{number:x}" for number in range(2000))], 2000)
    tokenizer.model_max_length = 10**9
    holds = True
    for shares in SHARES:
        asked = dict(zip(names, shares, strict=False))
        config = TrainConfig(
            dataset_name=tuple(asked), mixture=",".join(f"{name}={share}" for name, share in asked.items()),
            data_root=data_root, task="pretrain", max_steps=UPDATES, block_size=LENGTH, validation_blocks=16,
        )  # fmt: skip
        updates = make_task(config, list_data(config, tokenizer), tokenizer, Plan(16, 1, 0, 1)).updates({})
        made = [[source for _, source in update.rows] for update in itertools.islice(updates, UPDATES)]
        updates.close()
        counts = np.array([[update.count(name) for name in config.named] for update in made]) / 16
        wanted = np.array(shares)
        first = np.abs(counts[:WINDOW].mean(0) - wanted).max()
        windows = [np.abs(counts[at : at + WINDOW].mean(0) - wanted).max() for at in range(UPDATES - WINDOW + 1)]
        cumulative = {n: " ".join(f"{share:.3f}" for share in counts[:n].mean(0)) for n in (1, 10, 20, 40, 80)}
        told = "  ".join(f"{n}: {share}" for n, share in cumulative.items())
        print(f"asked {' '.join(map(str, shares)):14} cumulative after {told}")
        print(f"{'':20} off by {first:.4f} after {WINDOW}, at most {max(windows):.4f} in a window of {WINDOW}")
        holds &= bool(first <= AFTER and max(windows) <= IN_A_WINDOW)
    return holds


def rows_of_setup() -> Iterator[str]:
    """Texts that begin with their number, as long as articles of the Wikipedia."""
    drawn = random.Random(0)
    letters = "".join(drawn.choices("abcdefghijklmnop    ", k=1_200_000))
    for number in range(GROUPS * ROWS):
        start = drawn.randrange(1_000_000)
        yield f"{number} " + letters[start : start + int(min(drawn.lognormvariate(6.6, 1.1), 200_000))]


def write_setup(folder: Path, kind: str) -> None:
    folder.mkdir()
    rows = rows_of_setup()
    if kind == "parquet":
        with pq.ParquetWriter(folder / "train.parquet", pa.schema([("text", pa.string())])) as writer:
            for _ in range(GROUPS):
                writer.write_table(pa.table({"text": list(itertools.islice(rows, ROWS))}))
        return
    with gzip.open(folder / "train.jsonl.gz", "wt", compresslevel=1) as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in rows)


def numbered(texts: Sequence[str]) -> Any:
    """Four characters a token, each the number of its document."""
    return [np.full(max(len(text) // 4, 1), int(text.split(" ", 1)[0])) for text in texts]


def measure_shuffle(folder: Path) -> bool:
    flags = DataFlags(dataset_name=str(folder), cache_dir=str(folder.parent / "cache"))
    source = TextWindows(resolve(str(folder), flags).source("train", ("text",)))
    order = Order(source, HeldOut(), 42, LANES)
    held = source.held_bytes(0, order.layout.stripes) * order.layout.strands * LANES / 1e6
    print(f"{folder.name}: {order.layout}; about {held:.0f} MB of rows in memory")
    readings = [Reading(order, lane, numbered, lambda _: {}, SourceCursor()) for lane in range(LANES)]
    tokens = np.empty(LENGTH, np.int64)
    with Reads() as reads:
        for reading in readings:
            reading.fill(tokens, 0)
    print(f"  units read before the first update: {reads.units}, {LANES} lanes")
    same, correlation, nearest = [], [], []
    for lane in range(2):
        documents, last = dict[int, int](), dict[int, int]()
        reading, block = Reading(order, lane, numbered, lambda _: {}, SourceCursor()), 0
        while len(documents) < GROUPS * ROWS // LANES // 4:
            reading.fill(tokens, block)
            for number in dict.fromkeys(tokens.tolist()):
                documents.setdefault(number, block)
                nearest += [block - last[number]] if number in last else []
                last[number] = block
            block += 1
        numbers = np.array(list(documents))
        pairs = [(numbers[:-apart], numbers[apart:]) for apart in range(1, 9)]
        same.append([(first // ROWS == second // ROWS).mean() for first, second in pairs])
        correlation.append([np.corrcoef(first, second)[0, 1] for first, second in pairs])
    print("  distance            " + "".join(f"{apart:8}" for apart in range(1, 9)))
    for lane in range(2):
        print(f"  lane {lane} same {ROWS} rows" + "".join(f"{value:8.3f}" for value in same[lane]))
        print(f"  lane {lane} correlation   " + "".join(f"{value:8.3f}" for value in correlation[lane]))
    print(f"  blocks of one document: nearest {min(nearest)} updates apart")
    worst = (np.max(same), np.max(np.abs(correlation)))
    return bool(worst[0] <= SAME and worst[1] <= CORRELATION and min(nearest) >= APART and reads.units <= LANES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", help="folder with Wikipedia and arXiv, laid out like the hub")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        names = write_sources(folder)
        if given.data_root:
            names = ["wikipedia", "arxiv", names[2]]
        holds = measure_shares(names, given.data_root)
        for kind in ("parquet", "gzip"):
            write_setup(folder / kind, kind)
            holds &= measure_shuffle(folder / kind)
    print("all claims hold" if holds else "FAILED: a claim does not hold")
    return int(not holds)


if __name__ == "__main__":
    sys.exit(main())
