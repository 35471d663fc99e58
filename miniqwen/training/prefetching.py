"""Work that goes on ahead of the loop: blocks of several lanes at once, updates before they are asked for.

Promises: the same items in the same order as without; an error is raised in its place; what is closed, or lost, ends
its threads. Costs: `--preprocessing_num_workers` threads, and the memory of a few updates.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from miniqwen.data.packing import Block

ENDING_SECONDS = 10.0  # for a background thread to finish the item it is at; one that waits for the hub is left
UPDATES_AHEAD = 8  # that each lane makes at once where several threads share the lanes
Item = TypeVar("Item")


def rounds_of(lanes: Sequence[Iterator[Block]], rounds: int, workers: int) -> Iterator[list[list[Block]]]:
    """For each update, the next `rounds` blocks of each lane.

    Several `workers` (threads) make the blocks of several lanes at once, up to `UPDATES_AHEAD` updates of each, and the
    next ones of a lane as soon as these are fetched: lanes need the tokenizer at different times, and no thread waits
    for another. A lane is only ever in the hands of one of them, so its blocks are the same; and an error in a lane is
    raised where its block was to come.
    """
    if workers <= 1:
        while True:
            yield [list(itertools.islice(lane, rounds)) for lane in lanes]
    pool, updates = ThreadPoolExecutor(workers), 1  # the first update is waited for
    try:
        coming = [pool.submit(_some_of, lane, rounds) for lane in lanes]
        while True:
            count, updates = updates, min(2 * updates, UPDATES_AHEAD)
            made = []
            for number, lane in enumerate(lanes):
                made.append(coming[number].result())
                coming[number] = pool.submit(_some_of, lane, rounds * updates)
            for start in range(0, rounds * count, rounds):
                for blocks, error in made:
                    if error is not None and len(blocks) < start + rounds:
                        raise error
                yield [blocks[start : start + rounds] for blocks, _ in made]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _some_of(lane: Iterator[Block], number: int) -> tuple[list[Block], BaseException | None]:
    """The next blocks of a lane, and the error that cut them short."""
    blocks: list[Block] = []
    try:
        for block in itertools.islice(lane, number):
            blocks.append(block)
    except BaseException as error:
        return blocks, error
    return blocks, None


class Prefetched(Iterator[Item]):
    """The same items, made by a background thread that works up to `ahead` of them in advance; without one at 0.

    An error in the thread is raised here, in its place. Cursors travel with the items, so working ahead changes
    nothing. Closing this iterator, or losing it, ends the thread.
    """

    def __init__(self, items: Iterator[Item], ahead: int) -> None:
        self._items = items
        self._made: queue.Queue[tuple[Item | None, BaseException | None]] | None = None
        self._closed = threading.Event()
        if ahead:
            self._made = queue.Queue(maxsize=ahead)
            self._thread = threading.Thread(target=_work_ahead, args=(items, self._made, self._closed), daemon=True)
            self._thread.start()

    def within(self, seconds: float | None) -> Item | None:
        """The next item, or None when the thread does not have it in time; None `seconds` wait without end."""
        if self._made is None:
            return next(self._items)
        try:
            item, error = self._made.get(timeout=seconds)
        except queue.Empty:
            return None
        if error is not None:
            raise error
        return item

    def __next__(self) -> Item:
        item = self.within(None)
        assert item is not None
        return item

    def close(self) -> None:
        self._closed.set()
        while self._made is not None and not self._made.empty():  # a thread that waits to hand over can go on, and end
            self._made.get_nowait()
        # Python ending inside a thread that is in torch aborts the process; the collector may call from that thread
        if self._made is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=ENDING_SECONDS)

    def __del__(self) -> None:
        self.close()


def _work_ahead(
    items: Iterator[Item], made: queue.Queue[tuple[Item | None, BaseException | None]], closed: threading.Event
) -> None:
    try:
        for item in items:
            made.put((item, None))
            if closed.is_set():
                return
        made.put((None, StopIteration()))
    except BaseException as error:
        made.put((None, error))


def prefetched(items: Iterator[Item], ahead: int = 2) -> Prefetched[Item]:
    """`items`, made in advance; see `Prefetched`."""
    return Prefetched(items, ahead)
