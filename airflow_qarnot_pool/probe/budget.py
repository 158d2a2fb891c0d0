"""Limits of a probe run: euros and time. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from airflow_qarnot_pool.probe.sender import Undecided


class LimitReached(Undecided):
    """The run has reached its limit of euros or minutes. Nothing more is started."""


@dataclass(slots=True)
class NodeMeter:
    """Node-seconds of one pool, from the moments at which it was seen with nodes. The estimate is never too low.

    :param nodes: the nodes that it may have.
    """

    nodes: int
    seen_at: float
    is_up: bool = False
    counted: float = 0.0

    def see(self, is_up: bool, now: float) -> None:
        """Count the time since the last look, if the pool had a node at either of the two."""
        if is_up or self.is_up:
            self.counted += (now - self.seen_at) * self.nodes
        self.seen_at, self.is_up = now, is_up

    def total(self, now: float) -> float:
        """Return the node-seconds up to *now*."""
        return self.counted + ((now - self.seen_at) * self.nodes if self.is_up else 0.0)


@dataclass(slots=True)
class RunBudget:
    """Euros and time of a run.

    Qarnot may report costs late. The estimate from node-seconds counts until the reported euros exceed it.

    :param euros: maximum cost of the run.
    :param euros_per_node_hour: price for the estimate. It should not be below the account's real price.
    :param ends_at: moment at which nothing more is started, in seconds of the same clock as ``now``.
    """

    euros: float
    euros_per_node_hour: float
    ends_at: float
    meters: dict[str, NodeMeter] = field(default_factory=dict)
    reported: dict[str, float] = field(default_factory=dict)

    def node_seconds(self, now: float) -> float:
        """Return the node-seconds of all pools."""
        return sum(meter.total(now) for meter in self.meters.values())

    def price(self, node_seconds: float) -> float:
        """Return the euros of so many node-seconds."""
        return node_seconds * self.euros_per_node_hour / 3600

    def spent(self, now: float) -> float:
        """Return the euros spent: the reported ones, or the estimate if that is higher."""
        return max(sum(self.reported.values()), self.price(self.node_seconds(now)))

    def check(self, now: float, node_seconds: float = 0.0) -> None:
        """Check that so many more node-seconds are within the limits. Raises LimitReached."""
        euros = self.spent(now) + self.price(node_seconds)
        if euros > self.euros:
            raise LimitReached(
                f"it would cost up to {euros:.4f} EUR in all, over the limit of {self.euros:g} EUR"
            )
        if now > self.ends_at:
            raise LimitReached("the time of the run is over")
