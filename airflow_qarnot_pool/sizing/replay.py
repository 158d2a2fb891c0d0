"""Replay the demand on a pool at another size. Pure functions.

The rules are those of Qarnot: works wait in a queue, first come first served. A free slot on the fullest node is taken
first. A node takes work once it is up, and is paid until it goes. The size follows the rule of the pool.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from airflow_qarnot_pool.local.backend import scaling
from airflow_qarnot_pool.sizing.demand import Demand, Key, Work


@dataclass(frozen=True, slots=True)
class Run:
    """A replayed run. ``seconds``: from the creation of the pool to the end of the last work."""

    seconds: float
    node_seconds: float


@dataclass(slots=True, eq=False)
class _Node:
    number: int
    slots: int
    up: float | None = None
    busy: int = 0
    idle_since: float = 0.0


def replay(demand: Demand, size: int) -> Run:
    """Return how long the run would have taken on a pool of *size* slots, and the node-seconds paid."""
    return _Replay(demand, size).run()


class _Replay:
    def __init__(self, demand: Demand, size: int) -> None:
        self._demand = demand
        self._size = size
        self._rule = demand.rule.at(size)
        self._nodes: dict[int, _Node] = {}
        self._slots = self._running = 0
        self._queue: deque[tuple[int, float]] = deque()
        self._paid = self._now = self._last_end = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._next_resize, self._grow_after, self._last_tick = float("inf"), 0.0, float("-inf")
        #: Slots that the warm-up occupies, or waits for.
        self._warming = 0
        self._is_warm = False
        self._ready = demand.ready(-(-size // demand.slots_per_node))
        self._left = [len(work.seconds) for work in demand.works]
        self._unfinished = len(self._left)
        self._ends: dict[Key, int] = {}
        #: Works that wait for a number of ends, by key. Each waits for one of its causes at a time.
        self._blocked: dict[Key, list[tuple[int, int]]] = {}

    def run(self) -> Run:
        demand = self._demand
        self._resize()
        if demand.warm_up is not None:
            self._at(demand.warm_up.at, self._start_warm_up)
        for index in range(len(demand.works)):
            self._wait(index)
        while self._unfinished:
            self._now, _, action = heapq.heappop(self._events)
            action()
        self._cool_down(self._last_end + demand.tail)
        return Run(self._last_end, self._paid)

    def _at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(when, self._now), next(self._order), action))

    def _cool_down(self, close: float) -> None:
        """Let nodes go until the pool closes, and pay for those that stay."""
        while self._events and self._events[0][0] < close:
            self._now, _, action = heapq.heappop(self._events)
            action()
        self._now = close
        for node in self._nodes.values():
            self._pay(node)

    # ---- work

    def _arrive(self, index: int) -> None:
        self._queue.extend((index, seconds) for seconds in self._demand.works[index].seconds)
        self._dispatch()
        self._resize()

    def _dispatch(self) -> None:
        """Give the queue to free slots."""
        if not self._queue or self._warming:
            return
        free = [node for node in self._nodes.values() if node.up is not None and node.busy < node.slots]
        for node in sorted(free, key=lambda node: (-node.busy, node.number)):
            while self._queue and node.busy < node.slots:
                self._start(node)

    def _start(self, node: _Node) -> None:
        index, seconds = self._queue.popleft()
        node.busy += 1
        self._running += 1
        self._at(self._now + seconds, lambda: self._end(node, index))

    def _end(self, node: _Node, index: int) -> None:
        node.busy -= 1
        node.idle_since = self._now
        self._running -= 1
        self._left[index] -= 1
        if not self._left[index]:
            self._unfinished -= 1
            self._last_end = self._now
            self._count(self._demand.works[index])
        if self._queue:
            self._start(node)  # no other slot was free
        else:
            self._resize()

    def _count(self, work: Work) -> None:
        """Count the end of a work, and submit the works that have waited for it."""
        for key in dict.fromkeys((work.key, (work.key[0], None))):
            self._ends[key] = self._ends.get(key, 0) + 1
            blocked = self._blocked.get(key, [])
            while blocked and blocked[0][0] <= self._ends[key]:
                self._wait(heapq.heappop(blocked)[1])

    def _wait(self, index: int) -> None:
        """Let a work wait for the first of its causes that has not come, or submit it after its delay."""
        work = self._demand.works[index]
        for key, count in work.causes:
            if self._ends.get(key, 0) < count:
                heapq.heappush(self._blocked.setdefault(key, []), (count, index))
                return
        since = self._now if work.causes else self._ready
        self._at(since + work.delay, lambda: self._arrive(index))

    # ---- nodes

    def _start_warm_up(self) -> None:
        self._warming = self._size
        self._resize()

    def _end_warm_up(self) -> None:
        self._warming = 0
        for node in self._nodes.values():
            node.idle_since = self._now
        self._dispatch()
        self._resize()

    def _up(self, node: _Node) -> None:
        node.up = node.idle_since = self._now
        warm_up = self._demand.warm_up
        if warm_up is not None and self._warming and not self._is_warm:
            up = sum(node.slots for node in self._nodes.values() if node.up is not None)
            self._is_warm = up >= self._size or not warm_up.waits_for_all
            if self._is_warm:
                self._at(self._now + warm_up.lag, self._end_warm_up)
        self._dispatch()
        self._resize()

    def _pay(self, node: _Node) -> None:
        if node.up is not None:
            self._paid += self._now - node.up

    def _resize(self) -> None:
        """Decide how many nodes the pool should have now, and act on it."""
        load = len(self._queue) + self._running + self._warming
        wanted = scaling.target(self._rule, load)
        if wanted == self._slots:
            return
        plan = scaling.plan(
            self._rule,
            scaling.DemandView(
                now=self._now,
                slots=self._slots,
                demand=load,
                idle=self._idle() if wanted < self._slots else (),
                grow_after=self._grow_after,
                last_tick=self._last_tick,
            ),
        )
        self._grow_after = plan.grow_after
        for number in plan.release:
            node = self._nodes.pop(number)
            self._slots -= node.slots
            self._pay(node)
        if plan.release and self._rule.ticks:
            self._last_tick = self._now
        self._grow(plan.grow)
        self._plan_resize(plan.next_decision)

    def _plan_resize(self, when: float | None) -> None:
        """Decide again later. An earlier plan is void."""
        self._next_resize = float("inf") if when is None else when
        if when is not None:
            self._at(when, lambda: self._resize() if when == self._next_resize else None)

    def _idle(self) -> list[scaling.IdleNode]:
        if self._warming:
            return []
        return [
            scaling.IdleNode(node.number, node.slots, node.idle_since)
            for node in self._nodes.values()
            if node.up is not None and not node.busy
        ]

    def _grow(self, slots: int) -> None:
        """Request whole nodes, of which the last one has fewer slots if the size asks for that."""
        per_node = self._demand.slots_per_node
        if slots and self._rule.fixed is None:
            whole = -(-slots // per_node) * per_node
            slots = max(slots, min(whole, self._rule.max_total - self._slots))
        sizes = [min(per_node, slots - start) for start in range(0, slots, per_node)]
        number = 0
        for rank, count in enumerate(sizes, start=1):
            while number in self._nodes:
                number += 1
            node = self._nodes[number] = _Node(number, count)
            self._slots += count
            self._at(self._now + self._demand.boot(rank, len(sizes)), lambda node=node: self._up(node))  # type: ignore[misc]
