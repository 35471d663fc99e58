"""What going on costs, against how far the run is: seconds, units and bytes until the first update.

    python benchmarks/resume_cost.py [--files 41 --row_groups 150 --rows 100] [--dataset_name OWNER/NAME]

Claim: going on at update 1,000,000 costs what it costs at update 10, at most one unit a strand. The data set has the
footprint of the English Wikipedia (41 files of 150 row groups), with shorter rows, unless another one is given. The
cursors of updates 10 and 1,000 are made by reading up to there; those of later updates are calculated (the epoch and
the piece that a lane would have come to), as no run is long enough for a benchmark.
Beside it, the usual way: `datasets`, streaming, skipping the blocks that were seen. Exit status 1 if a resume reads
more than the claim says.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from miniqwen.config.training import TrainConfig
from miniqwen.data.documents import MOST_STRANDS
from miniqwen.data.formats import Batch
from miniqwen.data.packing import stored_cursors
from miniqwen.data.sources import Source
from miniqwen.data.units import Unit
from miniqwen.model.tokenization_miniqwen import train_tokenizer
from miniqwen.training.batches import Plan
from miniqwen.training.opening import list_data, make_task

LANES = 16
LENGTH = 256
WORDS = [f"w{number:x}" for number in range(3000)]


def write_footprint(folder: Path, files: int, row_groups: int, rows: int) -> None:
    """Parquet files of random words, in the Wikipedia's columns."""
    drawn = random.Random(0)
    made = [" ".join(drawn.choices(WORDS, k=drawn.randint(20, 150))) for _ in range(4000)]
    table = pa.table({"id": [str(number) for number in range(len(made))], "text": made})
    folder.mkdir(parents=True)
    for file in range(files):
        with pq.ParquetWriter(folder / f"train-{file:05}-of-{files:05}.parquet", table.schema) as writer:
            for group in range(row_groups):
                writer.write_table(table.slice((group * 37 + file * 11) % (len(made) - rows), rows))


class Reads:
    """Counts the units that sources read, while it is open, and their bytes."""

    def __init__(self) -> None:
        self.units, self.bytes = 0, 0

    def __enter__(self) -> Reads:
        self._real = real = Source.batches

        def counted(source: Source, unit: Unit) -> Iterator[Batch]:
            self.units, self.bytes = self.units + 1, self.bytes + unit.size
            return real(source, unit)

        Source.batches = counted  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        Source.batches = self._real  # type: ignore[method-assign]


def cursor_later(cursor: Mapping[str, Any], update: int, updates_per_epoch: float, pieces: int) -> dict[str, Any]:
    """Where each lane would stand at `update`, at the speed it has had: its strands in the middle of later pieces."""
    epoch, within = divmod(update / updates_per_epoch, 1)
    later = {}
    for lane, stored in cursor.items():
        ((name, source),) = stored["sources"].items()
        first = min(int(within * pieces), pieces - len(source["strands"]))
        strands = [
            None if strand is None else [first + number, *list(strand)[1:]]
            for number, strand in enumerate(source["strands"])
        ]
        moved = {"epoch": int(epoch), "next_piece": first + len(strands), "strands": strands}
        later[lane] = {**stored, "block": update, "sources": {name: {**source, **moved}}}
    return later


def skipping(folder: str, tokenizer: Any, blocks: int) -> float:
    """Seconds until the block after `blocks` of the usual streaming pipeline, which skips what was seen."""

    def grouped(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        tokens = [token for ids in rows["input_ids"] for token in ids]
        return {"input_ids": [tokens[at : at + LENGTH] for at in range(0, len(tokens) - LENGTH + 1, LENGTH)]}

    began = perf_counter()
    stream = datasets.load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", streaming=True)
    tokens = stream.map(lambda rows: tokenizer(rows["text"]), batched=True, remove_columns=["id", "text"])
    next(iter(tokens.map(grouped, batched=True, remove_columns=["attention_mask"]).skip(blocks)))
    return perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=41)
    parser.add_argument("--row_groups", type=int, default=150)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--dataset_name", help="measure this data set instead (text, parquet)")
    parser.add_argument("--data_root")
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        name = given.dataset_name
        if name is None:
            name = str(Path(temporary) / "footprint")
            write_footprint(Path(name), given.files, given.row_groups, given.rows)
        return measure(name, given.data_root, given.workers)


def measure(name: str, data_root: str | None, workers: int) -> int:
    config = TrainConfig(
        model_path="unused", output_dir="unused", dataset_name=name, data_root=data_root, task="pretrain", max_steps=1,
        block_size=LENGTH, validation_blocks=32, preprocessing_num_workers=workers,
    )  # fmt: skip
    tokenizer = train_tokenizer([" ".join(WORDS)], 1500)
    tokenizer(["start"])  # the library's own first call is not what is measured

    def first_update(cursor: Mapping[str, Any], updates: int = 1) -> tuple[Any, float, Reads, Any]:
        began = perf_counter()
        task = make_task(config, list_data(config, tokenizer), tokenizer, Plan(LANES, 1, 0, 1))
        opened = perf_counter()
        with Reads() as reads:
            stream = task.updates(cursor)
            for _ in range(updates):
                update = next(stream)
            seconds, counted = perf_counter() - began, (reads.units, reads.bytes)
            stream.close()
        reads.units, reads.bytes = counted
        print(f"    (listing, validation text: {opened - began:.2f} s)")
        return update, seconds, reads, task

    print(f"{'update':>10} {'seconds':>8} {'units':>6} {'MB':>7}   until the first update, {LANES} lanes")
    _, seconds, reads, _ = first_update({})
    ((_, listing),) = list_data(config, tokenizer)["repositories"].items()
    groups = [group for found in listing["row_groups"]["train"].values() for group in found]
    units, largest = len(groups), max(size for _, size in groups)
    print(f"{0:>10} {seconds:>8.2f} {reads.units:>6} {reads.bytes / 1e6:>7.2f}")
    cursors = {}
    for at in (10, 1000):
        reached, _, walked, _ = first_update({}, at)
        cursors[at] = stored_cursors(reached.cursor)
    per_epoch = 1000 * units / max(walked.units, 1)
    pieces = max(1, -(-64 * LANES // units)) * units // LANES
    for at in (100_000, 1_000_000):
        cursors[at] = cursor_later(cursors[1000], at, per_epoch, pieces)
    failed = False
    for at, cursor in cursors.items():
        _, seconds, reads, _ = first_update(cursor)
        print(f"{at:>10} {seconds:>8.2f} {reads.units:>6} {reads.bytes / 1e6:>7.2f}")
        # one unit for each strand whose turn comes: about two or three documents are in the first block, and working
        # ahead of the loop the lanes may be a few blocks on
        failed |= reads.bytes > MOST_STRANDS * LANES * largest
    if Path(name).is_dir():
        for at in (10, 1000):
            print(f"{at:>10} {skipping(name, tokenizer, at * LANES):>8.2f}   datasets, streaming: map, group, skip")
    print("FAILED: a resume reads more than a few units a lane" if failed else "a resume costs the same anywhere")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
