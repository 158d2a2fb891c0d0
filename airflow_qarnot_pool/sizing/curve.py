"""Euros against makespan for several sizes of a pool, and the size to choose. Pure functions.

The price of a node-second is that of the recorded pool: its cost over the node-seconds that it paid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.costs.model import format_euros
from airflow_qarnot_pool.ownership.identity import label
from airflow_qarnot_pool.sizing.demand import Demand, Upstreams, demand_of
from airflow_qarnot_pool.sizing.replay import replay

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool
    from airflow_qarnot_pool.costs.model import PoolCost

#: How much longer than the fastest size the chosen one may take, as a share.
TOLERANCE = 0.25
#: How much a size may exceed the tolerance, as a share, because a prediction is not exact. A dear size must not be
#: chosen for a second.
MARGIN = 0.03
#: Maximum difference between a record and its replay at the same size, as a share. A record that differs more has had
#: lost nodes, say, and its replay at other sizes is no better.
MAX_ERROR = 0.1
#: Ratios of the longest boot to the shortest one, of which the best is chosen if only the first boots are known.
BOOT_RATIOS = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
#: Maximum number of nodes of a curve, unless the recorded pool had more.
MAX_NODES = 256


@dataclass(frozen=True, slots=True)
class SizePoint:
    """A size in slots, with the makespan in seconds, the node-seconds and the euros of a run on it."""

    size: int
    seconds: float
    node_seconds: float
    euros: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRun:
    """A past run: its demand, and what it took and cost."""

    demand: Demand
    seconds: float
    node_seconds: float
    euros: float

    @property
    def actual(self) -> SizePoint:
        """The recorded size."""
        return SizePoint(self.demand.size, self.seconds, self.node_seconds, self.euros)

    def at(self, size: int) -> SizePoint:
        """Return the run at a size, which is the record itself at its own."""
        if size == self.demand.size:
            return self.actual
        run = replay(self.demand, size)
        return SizePoint(
            size, run.seconds, run.node_seconds, self.euros / self.node_seconds * run.node_seconds
        )

    @property
    def errors(self) -> tuple[float, float]:
        """How much the replay at the recorded size differs in makespan and in node-seconds, as shares."""
        run = replay(self.demand, self.demand.size)
        return (
            abs(run.seconds / self.seconds - 1) if self.seconds else float("inf"),
            abs(run.node_seconds / self.node_seconds - 1),
        )


@dataclass(frozen=True, slots=True)
class Curve:
    """Points in ascending order of their size, the recorded one and the chosen one."""

    points: tuple[SizePoint, ...]
    recorded: SizePoint
    chosen: SizePoint
    slots_per_node: int = 1

    def __str__(self) -> str:
        chosen = self._nodes(self.chosen)
        took = f"{format_seconds(self.recorded.seconds)}, {format_euros(self.recorded.euros)}"
        if self.chosen.size == self.recorded.size:
            return f"{chosen}: {took}. No cheaper size is within {TOLERANCE:.0%} of the fastest"
        would = f"{format_seconds(self.chosen.seconds)}, {format_euros(self.chosen.euros)}"
        return f"{chosen}: {would} instead of {took} with {self._nodes(self.recorded)}"

    def _nodes(self, point: SizePoint) -> str:
        nodes = -(-point.size // self.slots_per_node)
        return f"{nodes} node{'' if nodes == 1 else 's'}"

    def to_json(self) -> dict[str, Any]:
        """Return ``{points: [[size, seconds, euros]], chosen: size, recorded: size}``."""
        return {
            "points": [[p.size, round(p.seconds, 1), round(p.euros, 6)] for p in self.points],
            "chosen": self.chosen.size,
            "recorded": self.recorded.size,
        }


def record_of(pool: Pool, cost: PoolCost, upstreams: Upstreams | None, now: datetime) -> PastRun | None:
    """Return the record of a run; None if its figures are unknown, or another size would say nothing.

    A pool of several runs has none, because its life is not the makespan of one.

    :param cost: the cost of *pool*.
    :param upstreams: of the DAG. None if it is not known.
    :param now: end of the record of a pool that is still open.
    """
    euros, paid = cost.cost.euros, cost.cost.node_seconds
    if label(pool.labels, "shared") or len({task.run for task in cost.useful}) > 1:
        return None
    demand = demand_of(pool, cost, upstreams, now)
    if demand is None or cost.created is None or not euros or not paid:
        return None
    last = max(task.ended for task in cost.useful if task.has_run and task.ended)
    seconds = (last - cost.created).total_seconds()
    record = _fitted(PastRun(demand=demand, seconds=seconds, node_seconds=paid, euros=euros))
    return record if max(record.errors) <= MAX_ERROR else None


def _fitted(record: PastRun) -> PastRun:
    """Return *record* with boots that explain it best, if a warm-up has shown the first boots only."""
    demand = record.demand
    nodes, shortest = -(-demand.size // demand.slots_per_node), demand.boots[0]
    if demand.warm_up is None or len(demand.boots) >= nodes:
        return record
    steps = ((ratio - 1) * shortest / (nodes - 1) for ratio in BOOT_RATIOS)
    boots = (tuple(shortest + step * number for number in range(nodes)) for step in steps)
    fitted = (replace(record, demand=replace(demand, boots=each)) for each in boots)
    return min(fitted, key=lambda record: sum(record.errors))


def sizes_for(demands: Sequence[Demand], largest: int | None = None) -> list[int]:
    """Return the sizes to compare, in slots: whole nodes, in steps of a quarter beyond eight.

    :param largest: maximum slots. Default: twice the recorded size, or the instances of the run if they are fewer.
    """
    per_node = max(demand.slots_per_node for demand in demands)
    useful = max(demand.instances for demand in demands)
    recorded = {demand.size for demand in demands}
    most = min(useful, max(2 * max(recorded), 8 * per_node) if largest is None else largest)
    count, sizes = 1, set[int]()
    while count <= MAX_NODES and count * per_node < most:
        sizes.add(count * per_node)
        count += max(1, count // 4)
    sizes.add(
        -(-most // per_node) * per_node if largest is None else min(largest, -(-most // per_node) * per_node)
    )
    return sorted(sizes | {size for size in recorded if largest is None or size <= largest})


def curve_of(record: PastRun, largest: int | None = None) -> Curve:
    """Return the curve of one run."""
    points = points_of([record], largest)
    return Curve(tuple(points), record.actual, choose(points), record.demand.slots_per_node)


def points_of(records: Sequence[PastRun], largest: int | None = None) -> list[SizePoint]:
    """Return the mean of several runs at each size."""
    points = []
    for size in sizes_for([record.demand for record in records], largest):
        runs = [record.at(size) for record in records]
        points.append(
            SizePoint(
                size,
                _mean(run.seconds for run in runs),
                _mean(run.node_seconds for run in runs),
                _mean(run.euros for run in runs),
            )
        )
    return points


def choose(points: Sequence[SizePoint], tolerance: float = TOLERANCE) -> SizePoint:
    """Return the cheapest size within *tolerance* of the fastest, and of equal ones the smallest."""
    limit = min(point.seconds for point in points) * (1 + tolerance) * (1 + MARGIN)
    return min((p for p in points if p.seconds <= limit), key=lambda p: (p.euros, p.size))


def table_of(records: Sequence[PastRun]) -> str:
    """Return a table of sizes as text, which marks the recorded sizes and the one to choose."""
    points = points_of(records)
    chosen, recorded = choose(points), {record.demand.size for record in records}
    rows = [("instance_count", "makespan", "cost", "")]
    for point in points:
        notes = ["recorded"] * (point.size in recorded) + ["cheapest within the tolerance"] * (
            point is chosen
        )
        rows.append(
            (str(point.size), format_seconds(point.seconds), format_euros(point.euros), ", ".join(notes))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = (
        "  ".join(
            [*(cell.rjust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]
        ).rstrip()
        for row in rows
    )
    return "\n".join(lines)


def describe_choice(points: Sequence[SizePoint], chosen: SizePoint) -> str:
    """Return the time and the cost of the chosen size, and of the fastest one."""
    fastest = min(points, key=lambda point: (point.seconds, point.euros))
    slots = f"{fastest.size} slot{'' if fastest.size == 1 else 's'}"
    return (
        f"A run takes about {format_seconds(chosen.seconds)} and {format_euros(chosen.euros)}, and with {slots}, the "
        f"fastest size, {format_seconds(fastest.seconds)} and {format_euros(fastest.euros)}"
    )


def format_seconds(seconds: float) -> str:
    """Return ``45 s``, ``2 min 05 s``, ``11 min`` or ``1 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _mean(values: Iterable[float]) -> float:
    each = list(values)
    return sum(each) / len(each)
