"""Scale on paper: what 1 to 1,024 processes ask, read, keep and store, by the code that orders the data.

    python benchmarks/scale_simulation.py

Two corpora that are never read: the English Wikipedia's footprint (41 files, 6.4 million rows) and 10 TB in 20,000
files. Their lists of row groups are made up (sizes vary as in real files), and everything from there on is the
project's: units, lanes, pieces, cursors. 1,024 lanes, so that every world size sees the same order.
For each world size, for the process that has most to do:
    start     requests before the first update (the listing and the footers: of one process only, which tells the
              others), the first reads of its own lanes, and seconds (measured where there is work, 0.1 s a request
              over the threads that wait for them)
    update    reads and megabytes per update of 1,024 blocks of 1,024 tokens, over a stretch of the epoch, with
              the units that are kept in memory
    memory    of the list of units, the order of an epoch, the units that lanes hold and those kept. Its limit is what
              the rule of strands says (`Layout.of`): a gigabyte, or two pieces a lane where these are more, over all
              processes; and what each keeps beside that
    cursors   bytes in a checkpoint
    balance   the lane with most bytes in an epoch against the mean
Exit status 1 when a figure grows with the world size, or passes the plan in `PLAN`.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from miniqwen.data.documents import LEAST_STRANDS, STRAND_BYTES, Order
from miniqwen.data.held_out import HeldOut
from miniqwen.data.packing import Cursor
from miniqwen.data.sources import FOOTERS_KEPT, KEPT_BYTES, LISTING_THREADS
from miniqwen.data.strands import SourceCursor, Strand
from miniqwen.data.units import DataFile, Units

LANES = 1024
BLOCK = 1024
BYTES_A_TOKEN = 4.4  # of English text
WORLDS = (1, 8, 64, 1024)
REQUEST_SECONDS = 0.1
FOOTER_BYTES_A_GROUP = 500  # of a file with a few columns
FILES_A_PAGE = 1000  # of the hub's listing
PLAN: Mapping[str, float] = {
    "start_seconds": 180,  # 20,000 footers and 2 million units; the Wikipedia takes a second
    "cursor_kb": 512,
    "balance": 1.25,  # 64 pieces a lane, a third apart in size: 1 + 3.2 deviations of their sum, and one piece more
}


@dataclass(frozen=True)
class Corpus:
    """The shape of a data set: files, row groups a file, mean bytes of a row group, rows of one."""

    name: str
    files: int
    groups: int
    group_bytes: float
    rows: int


CORPORA = (
    Corpus("English Wikipedia", 41, 156, 3.2e6, 1000),
    Corpus("10 TB", 20_000, 100, 5.0e6, 2000),
)


class PlannedWindows:
    """A source that has only its list of units."""

    def __init__(self, corpus: Corpus, units: Units) -> None:
        self.name, self._units, self._rows = corpus.name, units, corpus.rows

    def units(self) -> Units:
        return self._units

    def is_large(self, unit: int) -> bool:
        return False

    def starts(self, unit: int) -> Sequence[int]:
        return [0, self._rows]

    def read(self, unit: int, window: int) -> Sequence[Any]:
        raise NotImplementedError("nothing is read in the simulation")

    def place(self, unit: int, row: int) -> str:
        return f"unit {unit}, row {row}"

    def skipped(self, unit: int) -> tuple[str, str] | None:
        return None

    def row_bytes(self, unit: int, window: int) -> np.ndarray:
        raise NotImplementedError("nothing is read in the simulation")

    def held_bytes(self, unit: int, stripes: int) -> float:
        return float(self._units.sizes[unit]) / stripes

    def paths(self) -> Sequence[str]:
        return []

    def fetched_whole(self) -> np.ndarray:
        return np.zeros(len(self._units), bool)


@dataclass(frozen=True)
class Figures:
    """Of one corpus and world size."""

    world: int
    start_requests: float
    told_mb: float
    start_seconds: float
    reads_an_update: float
    mb_an_update: float
    memory_mb: float
    memory_limit_mb: float
    cursor_kb: float
    balance: float


def listing_of(corpus: Corpus) -> dict[str, list[list[int]]]:
    """{path: [(rows, bytes)]} as footers would tell; sizes vary by a third."""
    drawn = np.random.default_rng(0)
    sizes = drawn.lognormal(np.log(corpus.group_bytes), 0.33, (corpus.files, corpus.groups)).astype(int)
    return {f"{number:05}.parquet": [[corpus.rows, int(size)] for size in row] for number, row in enumerate(sizes)}


def reads_of(order: Order, lanes: range, pieces: int, footers: int) -> tuple[int, int, int]:
    """(units read, their bytes, footers read) while each of `lanes` goes through `pieces` pieces, in turn."""
    sizes = order.source.units().sizes
    files = order.source.units().file
    kept: OrderedDict[int, int] = OrderedDict()
    known: OrderedDict[int, None] = OrderedDict()
    reads = total = opened = held = 0
    units = np.stack([order.pieces(0, lane)[:pieces, 0][: len(order.pieces(0, lanes[-1]))] for lane in lanes], axis=1)
    for opened_together in units.tolist():
        for unit in opened_together:
            if unit in kept:
                kept.move_to_end(unit)
                continue
            size, file = int(sizes[unit]), int(files[unit])
            reads, total, held = reads + 1, total + size, held + size
            kept[unit] = size
            while held > KEPT_BYTES:
                held -= kept.popitem(last=False)[1]
            if file not in known:
                opened += 1
                known[file] = None
                if len(known) > footers:
                    known.popitem(last=False)
    return reads, total, opened


def simulate(corpus: Corpus, world: int, told: str, began_listing: float) -> Figures:
    """The figures of the busiest process: rank 0, which lists and tells all others."""
    began = perf_counter()
    listing = json.loads(told)
    files = [DataFile(path, path, 0) for path in listing]
    units = Units.of(files, listing)
    order = Order(PlannedWindows(corpus, units), HeldOut(), 42, LANES)
    lanes = range(LANES // world)
    first = {int(order.pieces(0, lane)[0, 0]) for lane in lanes}
    computed = perf_counter() - began + began_listing
    requests = -(-corpus.files // FILES_A_PAGE) + corpus.files  # pages of the listing and footers, by rank 0
    first_reads = 2 * len(first)  # a footer again, where it is not kept, and the row group
    waited = REQUEST_SECONDS * (requests + first_reads) / LISTING_THREADS

    stretch = 64  # pieces of each lane: an epoch of the Wikipedia, the beginning of one of the large corpus
    reads, total, opened = reads_of(order, lanes, stretch, FOOTERS_KEPT)
    read_pieces = order._pieces(0)
    bytes_of_pieces = units.sizes[read_pieces[:, 0]] / read_pieces[:, 2]
    piece_bytes = float(bytes_of_pieces.mean())
    updates = stretch * piece_bytes / (BLOCK * BYTES_A_TOKEN)  # a lane gives one block to each update
    footer_bytes = opened * corpus.groups * FOOTER_BYTES_A_GROUP
    per_lane = np.zeros(LANES)
    np.add.at(per_lane, np.arange(len(read_pieces)) % LANES, bytes_of_pieces)
    table = sum(column.nbytes for column in (units.file, units.part, units.rows, units.sizes))
    orders = 2 * read_pieces.nbytes + order._stripes.nbytes
    held = len(lanes) * order.layout.strands * piece_bytes
    may_hold = max(1.05 * STRAND_BYTES, LEAST_STRANDS * LANES * piece_bytes) / world  # sizes are sampled
    strands = (Strand(1234, 0, 123, 1234, 123456),) * order.layout.strands
    cursor = Cursor(123456, {corpus.name: SourceCursor(12, 1234, 123456, strands, 10**9, 10**9)}, "0" * 16)
    cursors = len(json.dumps({str(lane): cursor.to_json() for lane in range(LANES)}))
    return Figures(
        world, requests + first_reads, len(told) / 1e6, computed + waited, (reads + opened) / updates,
        (total + footer_bytes) / updates / 1e6, (table + orders + held + min(total, KEPT_BYTES)) / 1e6,
        (table + orders + may_hold + KEPT_BYTES) / 1e6, cursors / 1e3,
        float(per_lane.max() / per_lane.mean()),
    )  # fmt: skip


def problems(corpus: Corpus, found: Sequence[Figures]) -> list[str]:
    """What grows with the world size, or is beyond the plan."""
    said = []
    alone = found[0]
    for at in found:
        where = f"{corpus.name}, {at.world} processes"
        for name, limit in {**PLAN, "memory_mb": at.memory_limit_mb}.items():
            if getattr(at, name) > limit:
                said.append(f"{where}: {name} {getattr(at, name):,.2f} is beyond the plan's {limit:,}")
        for name in ("start_requests", "told_mb", "memory_mb", "cursor_kb", "balance", "reads_an_update",
                     "mb_an_update"):  # fmt: skip
            if getattr(at, name) > 1.05 * getattr(alone, name):
                said.append(
                    f"{where}: {name} {getattr(at, name):,.2f} is more than alone ({getattr(alone, name):,.2f})"
                )
        # the text of an update is the lanes' share of it; a stripe costs its whole unit at most (DESIGN: lanes)
        whole_units = LANES / at.world * BLOCK * BYTES_A_TOKEN / 1e6 * stripes(corpus)
        if at.mb_an_update > 1.3 * whole_units:
            said.append(f"{where}: {at.mb_an_update:,.2f} MB an update where the plan says {whole_units:,.2f}")
    return said


def stripes(corpus: Corpus) -> int:
    """Pieces of a unit, as documents.py makes them."""
    return max(1, -(-64 * LANES // (corpus.files * corpus.groups)))


def main() -> int:
    said = []
    for corpus in CORPORA:
        units = corpus.files * corpus.groups
        listing = listing_of(corpus)
        began = perf_counter()
        told = json.dumps(listing)
        encoding = perf_counter() - began
        size = units * corpus.group_bytes / 1e12
        print(f"\n{corpus.name}: {corpus.files:,} files, {units:,} row groups, {size:.2f} TB, {LANES} lanes, "
              f"{stripes(corpus)} stripes a row group")  # fmt: skip
        print(f"{'processes':>9} {'requests':>9} {'told MB':>8} {'start s':>8} {'reads/upd':>10} {'MB/upd':>8} "
              f"{'memory MB':>10} {'cursors kB':>11} {'balance':>8}")  # fmt: skip
        found = []
        for world in WORLDS:
            figures = simulate(corpus, world, told, encoding)
            found.append(figures)
            print(f"{world:>9,} {figures.start_requests:>9,.0f} {figures.told_mb:>8.2f} {figures.start_seconds:>8.1f} "
                  f"{figures.reads_an_update:>10.2f} {figures.mb_an_update:>8.3f} {figures.memory_mb:>10,.0f} "
                  f"{figures.cursor_kb:>11.0f} {figures.balance:>8.3f}")  # fmt: skip
        said += problems(corpus, found)
    print("\n" + ("\n".join(f"FAILED: {line}" for line in said) or "nothing grows with the number of processes"))
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
