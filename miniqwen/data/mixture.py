"""Which source each block is of.

Promises: a function of shares, lanes and the numbers of lane and block alone, so nothing need be remembered; the
shares hold from the first update on: the lanes of an update are spread evenly over them, and so are the blocks of a
lane. Integers throughout: the same on every machine. Costs: nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

ONE = 1 << 64
# irrational steps, whose multiples lie evenly between 0 and 1 (Weyl): sqrt(2) - 1 and the golden ratio's fraction
TURN = 0x6A09E667F3BCC908  # of the lanes from one block to the next
WITHIN = 0x9E3779B97F4A7C15  # a lane's share of the shares


class Mixture:
    """Sources and their shares of the blocks of `lanes` lanes."""

    def __init__(self, shares: Mapping[str, float], lanes: int) -> None:
        self.names, self._lanes = tuple(shares), lanes
        parts = [Fraction(share) for share in shares.values()]
        upto = [sum(parts[: number + 1], Fraction()) for number in range(len(parts))]
        self._ends = [math.ceil(part / sum(parts) * lanes * ONE) for part in upto]  # u is whole

    def source(self, lane: int, block: int) -> str:
        """The source of block number `block` of `lane`: the one whose interval of the cumulative shares holds u.

        u = (((lane + turned) mod lanes) + within) / lanes, where `turned` and `within` go on evenly with the blocks.
        """
        turned = (self._lanes * (block * TURN % ONE)) // ONE
        u = (lane + turned) % self._lanes * ONE + block * WITHIN % ONE
        return next(name for name, end in zip(self.names, self._ends, strict=True) if u < end)
