"""A ladder of Flex, Flex and OnDemand nodes under seeded preemption: in time, their price, and work that runs twice.

Each pattern is one Airflow task with a deadline, against a local Qarnot whose clock jumps. Its Flex nodes are lost at
times that the seed and the id of the node decide. The command is real and waits for a file. The program plays its work:
it writes the seconds of finished work to a file before each snapshot, and lets the command end when the work is
complete. A generation starts with the seconds that it finds in its files. The operator is the real one, slice by slice,
and its clock is that of the local Qarnot. It sees each loss a minute late.

All nodes of the local Qarnot cost the same, so the price of an OnDemand node is an option, as a multiple of that of a
Flex node. The cheapest conceivable run computes everything once on Flex nodes that are never lost.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from airflow_qarnot_pool.local.backend.preemption import Preemption
from benchmarks import environment
from benchmarks.report import Report, main, median

LADDER = ("Flex", "Flex", "OnDemand")
BOOT = 180.0
INTERVAL = 600.0
#: Seconds until a loss is seen.
DELAY = 60.0
BUCKET = "ladder"
#: Seconds of work, and seconds until the deadline. The last one leaves no time for a loss.
SHAPES = ((3600.0, 7200.0), (3600.0, 5400.0), (7200.0, 10_800.0), (1800.0, 3900.0), (3600.0, 4200.0))
#: Losses per hour of a Flex node.
RATES = (0.5, 1.0, 2.0, 4.0)
PATIENCE = 30.0
COMMAND = "sh -c 'touch here; until test -e finish; do sleep 0.02; done'"


@dataclass
class Generation:
    """One Qarnot task: the kind of its node, and the seconds of work that it started with and did."""

    kind: str
    began: float
    did: float = 0.0


@dataclass
class Pattern:
    """What became of one Airflow task. Times are virtual seconds from its start."""

    work: float
    deadline: float
    ended: float = 0.0
    generations: list[Generation] = field(default_factory=list)
    successes: int = 0
    created: int = 0

    @property
    def losses(self) -> int:
        return len(self.generations) - 1

    @property
    def again(self) -> float:
        """The largest number of seconds of work that one loss made necessary again."""
        pairs = itertools.pairwise(self.generations)
        return max((lost.began + lost.did - after.began for lost, after in pairs), default=0.0)

    def cost(self, ondemand: float) -> float:
        """The price, in seconds of a Flex node. A boot costs nothing."""
        return sum(one.did * (ondemand if one.kind == "ondemand" else 1.0) for one in self.generations)


def until(look: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < ends, f"not seen within {PATIENCE:.0f} s: {what}"
        time.sleep(0.01)
    return found


class Player:
    """Plays the work of one Airflow task on a local Qarnot whose clock stands still between two jumps."""

    def __init__(
        self, qarnot: Any, client: Any, preemption: Preemption, number: int, work: float, deadline: float
    ) -> None:
        from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
        from airflow_qarnot_pool.ownership.xcoms import WORK_KEY
        from tests.harness import FakeTI

        self._qarnot, self._client, self._preemption = qarnot, client, preemption
        self.run_id = f"pattern {number}"
        self.pattern = Pattern(work, deadline)
        earlier = FakeTI(run_id="earlier", xcoms={WORK_KEY: work})
        self._ti = FakeTI(run_id=self.run_id, others=(earlier,))
        self._make = partial(
            QarnotRunTaskOperator,
            task_id="task",
            command=COMMAND,
            log_output=False,
            wait_timeout=timedelta(seconds=deadline),
            task_spec={
                "ladder": LADDER,
                "snapshot_every": INTERVAL,
                "snapshot_bucket": BUCKET,
                "snapshot_whitelist": "^done$",
            },
        )
        self._virtual = self._started = qarnot.get_clock()["now"]
        self._real = datetime.now(UTC)

    def _now(self, zone: Any) -> datetime:
        return self._real + timedelta(seconds=self._virtual - self._started)

    def _advance(self, seconds: float) -> None:
        """Jump ahead, a little further than the event: seconds since 1970 are rounded."""
        self._virtual = self._qarnot.advance_clock(seconds + 0.001)["now"]

    def play(self) -> Pattern:
        """Run the Airflow task to its end."""
        from airflow_qarnot_pool.operators.bases import ladder
        from tests.harness import context_of, fire

        with mock.patch.object(ladder, "datetime", SimpleNamespace(now=self._now)):
            operator = self._make()
            context = context_of(operator, self._ti)
            deferred = self._slice(partial(operator.execute, context))
            while deferred is not None:
                self._generation()
                operator = self._make()
                resumed = partial(operator.resume_execution, deferred.method_name, {"event": fire(deferred)})
                deferred = self._slice(partial(resumed, {**context, "task": operator}))
        history = [
            one for one in self._qarnot.task_history() if one["labels"]["airflow.run_id"] == self.run_id
        ]
        self.pattern.created = len(history)
        self.pattern.successes = sum(one["state"] == "Success" for one in history)
        return self.pattern

    @staticmethod
    def _slice(work: Callable[[], Any]) -> Any:
        """One slice of the Airflow task: its deferral, or None when the task has succeeded."""
        from airflow_qarnot_pool.version_compat import TaskDeferred

        try:
            assert work()["state"] == "Success"
        except TaskDeferred as deferred:
            return deferred
        return None

    def _generation(self) -> None:
        """Play one Qarnot task, from its submission to its end."""
        uuid, submitted = self._ti.xcoms["qarnot_task"], self._virtual
        self._advance(BOOT)
        node, folder = until(partial(self._started_on, uuid), "the start of the command")
        done = folder / "done"
        kind = str(self._client.tasks.get(uuid).scheduling_type).lower()
        made = Generation(kind, float(done.read_text()) if done.exists() else 0.0)
        self.pattern.generations.append(made)
        up, tick = self._virtual, submitted + INTERVAL
        ends = up + self.pattern.work - made.began
        lost = up + self._preemption.lifetime(node) if kind == "flex" else math.inf
        while True:
            goal = min(tick, ends, lost)
            (folder / "done.new").write_text(str(made.began + goal - up))
            (folder / "done.new").rename(done)
            copies = self._client.tasks.get(uuid).results_count or 0
            self._advance(goal - self._virtual)
            made.did = goal - up
            if goal == lost:
                until(partial(self._has_ended, uuid), "the loss")
                self._advance(DELAY)
                return
            if goal == ends:
                (folder / "finish").touch()
                until(partial(self._has_ended, uuid), "the end of the command")
                self.pattern.ended = self._virtual - self._started
                return
            until(partial(self._is_copied, uuid, copies), "the snapshot")
            tick += INTERVAL

    def _is_copied(self, uuid: str, before: int) -> bool:
        return (self._client.tasks.get(uuid).results_count or 0) > before

    def _has_ended(self, uuid: str) -> bool:
        return self._client.tasks.get(uuid).state in ("Failure", "Success")

    def _started_on(self, uuid: str) -> tuple[str, Path] | None:
        """The node and the folder of the command, once it has started."""
        for node in self._qarnot.nodes():
            for one in node["running"]:
                if one["task"] == uuid and one["directory"] and (Path(one["directory"]) / "here").exists():
                    return node["id"], Path(one["directory"])
        return None


def play(count: int, rates: Sequence[float] = RATES) -> list[Pattern]:
    """Play *count* patterns, each with other times of losses."""
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.hooks.storage import QarnotStorageHook
    from airflow_qarnot_pool.local import LocalQarnot

    found: list[Pattern] = []
    for seed, rate in enumerate(rates, start=1):
        numbers = range(seed - 1, count, len(rates))
        with LocalQarnot(boot_seconds=BOOT, preempt=f"{seed}:{rate}", speed=0) as qarnot:
            environment.connect_qarnot(qarnot, poll_interval=0.05)
            QarnotStorageHook().upload(BUCKET, b"", key="so that the bucket exists")
            with QarnotClient(qarnot.url, qarnot.token) as client:
                for place, number in enumerate(numbers):
                    work, deadline = SHAPES[place % len(SHAPES)]
                    player = Player(qarnot, client, Preemption(seed, rate), number, work, deadline)
                    found.append(player.play())
    return found


def measure(report: Report) -> None:
    count = 4 if report.quick else report.waiters
    price = float(report.options["price"])
    patterns = play(count, RATES[-1:] if report.quick else RATES)
    report.say(f"{count} patterns")
    table = report.table(
        f"{count} patterns of losses, a snapshot every {INTERVAL:g} s, OnDemand at {price:g} times Flex",
        ("losses", "patterns", "in time", "cost / all OnDemand, median", "most", "work again, most s"),
        "A loss before the first snapshot saves nothing, and the lost work is an extra cost. Nothing avoids that once "
        "Flex is tried. It is at most one interval of a Flex node for each loss.",
    )
    for losses in sorted({one.losses for one in patterns}):
        some = [one for one in patterns if one.losses == losses]
        shares = [one.cost(price) / (one.work * price) for one in some]
        in_time = sum(one.ended <= one.deadline for one in some)
        table.row(losses, len(some), in_time, median(shares), max(shares), max(one.again for one in some))
    total = sum(one.cost(price) for one in patterns)
    flex, sure = sum(one.work for one in patterns), sum(one.work * price for one in patterns)
    #: Above all OnDemand by no more than the work that was lost, at the price of Flex.
    extra = max(one.cost(price) - one.work * price - one.losses * INTERVAL for one in patterns)
    report.figure("patterns", count)
    report.figure("losses", sum(one.losses for one in patterns))
    report.figure(
        "dearer_than_all_ondemand", sum(one.cost(price) > one.work * price + 1e-6 for one in patterns)
    )
    report.figure("cost_over_all_ondemand", total / sure)
    late = sum(one.ended > one.deadline for one in patterns)
    twice = sum(one.successes != 1 or one.created != len(one.generations) for one in patterns)
    report.target("patterns that ended late", late, 0)
    report.target("patterns in which something ran twice", twice, 0)
    report.target(
        "work again after one loss, in snapshot intervals", max(one.again for one in patterns) / INTERVAL, 1.0
    )
    report.target("cost over all OnDemand", total / sure, 1.0)
    report.target("cost over all Flex without a loss", total / flex, 1.0, least=True)
    report.target("cost above all OnDemand and one interval of Flex a loss", max(extra, 0.0), 0.0, unit=" s")


if __name__ == "__main__":
    main(
        "ladder",
        __doc__,
        measure,
        waiters=500,
        meaning="patterns",
        options={"price": ("2", "price of an OnDemand node, in prices of a Flex node")},
    )
