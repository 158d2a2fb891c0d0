"""Preemption of Flex nodes at times that a seed decides. No I/O."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preemption:
    """Losses of Flex nodes.

    :param rate: mean number of losses per hour of a node, in virtual time.
    """

    seed: int
    rate: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Preemption:
        """Read ``SEED[:RATE]``. Raises ValueError."""
        seed, colon, rate = text.partition(":")
        found = cls(int(seed), float(rate)) if colon else cls(int(seed))
        if not 0 < found.rate <= 3600:
            raise ValueError(f"the rate is not above 0 and at most 3600, got {rate}")
        return found

    def lifetime(self, node: str) -> float:
        """Return after how many seconds a node that is up is lost, by its id."""
        return random.Random(f"{self.seed} {node}").expovariate(self.rate / 3600)
