"""Every process that talks to Qarnot, killed at every boundary of every request, and what becomes of it.

A small workload (create a pool, run a Qarnot task on it, close the pool) runs once for each row. One of its
processes, a worker or a triggerer, is a child that kills itself with SIGKILL at the boundary; then Airflow's rules
hold: a killed worker means the next try with the same ``max_tries``, a killed triggerer means that another one runs
the trigger again. The tests are in ``test_crash_matrix_*.py``, one file for each operator, so that they run at the same
time. With CRASH_MATRIX=write they write their rows of ``docs/contributing/evidence/crash-matrix.md``; otherwise they
compare the page with what happens.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.transport import Response, Transport
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.operators.pool import QarnotClosePoolOperator, QarnotCreatePoolOperator
from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator
from airflow_qarnot_pool.ownership.identity import is_ending
from airflow_qarnot_pool.version_compat import TaskDeferred
from tests import readings
from tests.crash.children import (
    Child,
    Say,
    Serialized,
    StoringTI,
    eventually,
    fork,
    made_for,
    shape,
    triggerer,
    worker,
)
from tests.harness import FakeTI, again, fire, run
from tests.operators.conftest import connect

TABLE = Path(__file__).resolve().parents[2] / "docs" / "contributing" / "evidence" / "crash-matrix.md"
SERVERS = ("enforce", "free")
TRIES = 4

#: Requests of a teardown for the cost of its pool, after it has requested closing (and waited).
TELL_COST = (
    "GET /pools/{u}",
    "GET /credits/v1/pools/{u}/credits",
    "GET /carbon/v1/pools/{u}/carbon-facts",
    "GET /pools/{u}/tasks",
)
#: What each process of each step does, in order: requests, and the XCom that tells the next process.
STEPS: dict[str, dict[str, tuple[str, ...]]] = {
    "create, deferred": {
        "worker": ("POST /pools", "XCom qarnot_pool", "POST /tasks"),
        "triggerer": ("POST /pools/search", "POST /tasks/{u}/abort"),
        "worker, resumed": ("GET /pools/{u}",),
    },
    "create, on the worker": {
        "worker": ("POST /pools", "XCom qarnot_pool", "GET /pools/{u}"),
    },
    "create, second try": {
        "worker, second try": (
            "POST /pools/paginate",
            "PUT /pools/{u}",
            "GET /pools/{u}",
            "XCom qarnot_pool",
            "POST /tasks/paginate",
            "GET /tasks/{name}",
            "POST /tasks",
            "GET /pools/{u}",
            "POST /tasks/{u}/abort",
        ),
    },
    "run, deferred": {
        "worker": ("POST /tasks", "XCom qarnot_task"),
        "triggerer": ("POST /tasks/search",),
        "worker, resumed": ("GET /tasks/{u}", "GET /tasks/{u}/stdout", "GET /tasks/{u}/stderr"),
    },
    "run, on the worker": {
        "worker": (
            "POST /tasks",
            "XCom qarnot_task",
            "GET /tasks/{u}",
            "GET /tasks/{u}/stdout",
            "GET /tasks/{u}/stderr",
        ),
    },
    "run, second try": {
        "worker, second try": (
            "POST /tasks/paginate",
            "GET /jobs",
            "XCom qarnot_task",
            "GET /tasks/{u}",
            "GET /tasks/{u}/stdout",
            "GET /tasks/{u}/stderr",
        ),
    },
    "close": {"worker": ("POST /pools/{u}/close", *TELL_COST)},
    "close and wait": {"worker": ("POST /pools/{u}/close", "XCom qarnot_pool", *TELL_COST)},
}
#: Steps whose pool is managed (``keep_warm``); that of the others is of fixed size.
MANAGED = ("create, deferred", "create, second try")


def moments_of(at: str, *, is_last: bool) -> tuple[str, ...]:
    """Return the moments of a death at a boundary that leave different things behind.

    Before the request; it took effect, but no answer came; the answer came, but nothing was done with it yet. A dead
    process remembers nothing, so a read that took effect is no other case, and an answer is the next one's "before".
    """
    reads = at.startswith("GET") or at.endswith(("/paginate", "/search"))
    moments = ("before",) if reads or at.startswith("XCom") else ("before", "unanswered")
    return (*moments, "answered") if is_last else moments


@dataclass(frozen=True)
class Point:
    """Where a process dies."""

    step: str
    process: str
    at: str
    moment: str

    def __str__(self) -> str:
        return f"{self.step}, {self.process}, {self.at}, {self.moment}"


POINTS = [
    Point(step, process, at, moment)
    for step, processes in STEPS.items()
    for process, boundaries in processes.items()
    for at in dict.fromkeys(boundaries)
    for moment in moments_of(at, is_last=at == boundaries[-1])
]


def other_points(step: str, passed: Mapping[str, Sequence[str]]) -> list[Point]:
    """Return where processes could die that have *passed* boundaries which the table has not."""
    return [
        Point(step, process, at, moment)
        for process, boundaries in passed.items()
        for at in dict.fromkeys(boundaries)
        if at not in STEPS[step].get(process, ())
        for moment in moments_of(at, is_last=False)
    ]


# --- the child


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead processes do not get here")


def with_boundaries(
    work: Callable[[Say], None], ti: StoringTI | None, qarnot: LocalQarnot, point: Point | None
) -> Callable[[Say], None]:
    """*work* in a process that says what it passes, and dies at *point*."""

    def armed(say: Say) -> None:
        real = Transport._exchange

        def exchange(self: Transport, call: Any) -> Response:
            at = shape(call.method, call.path)
            say({"kind": "boundary", "at": at})
            if point is None or at != point.at:
                return real(self, call)
            if point.moment == "before":
                die()
            if point.moment == "unanswered":
                path = f"^{re.escape(call.path)}$"
                qarnot.faults([{"method": call.method, "path": path, "kind": "lost", "times": 1}])
                with pytest.raises(Exception, match=r"interrupted|without response|reset"):
                    real(self, call)
            else:
                real(self, call)
            die()

        def around(key: str, when: str) -> None:
            at = f"XCom {key}"
            if when == "before":
                say({"kind": "boundary", "at": at})
            if point and at == point.at and when == {"before": "before", "answered": "after"}[point.moment]:
                die()

        Transport._exchange = exchange  # type: ignore[method-assign]
        if ti is not None:
            ti.around = around
        work(say)

    return armed


# --- the workload


@dataclass
class Workload:
    """One run of the DAG, with at most one process that is killed."""

    qarnot: LocalQarnot
    client: QarnotClient
    run_id: str
    effects: Path
    point: Point | None = None
    #: What the processes of the watched step passed, by process.
    passed: dict[str, list[str]] = field(default_factory=dict)
    retries_created: int = 0

    def ti(self, task_id: str, try_number: int) -> StoringTI:
        return StoringTI(run_id=self.run_id, task_id=task_id, try_number=try_number, max_tries=TRIES - 1)

    def whole(self, step: str) -> None:
        """Create, run, close; the processes of *step* are children."""
        kind, _, how = step.partition(", ")
        create = partial(QarnotCreatePoolOperator, task_id="create", retries=TRIES - 1, instance_count=1)
        if step in MANAGED:
            create = partial(create, keep_warm=timedelta(minutes=5))
        deferred = how == "deferred"
        # A command that ends before its worker defers would leave nothing to defer for.
        go = self.effects.with_name(f"{self.effects.name}-go")
        if step != "run, deferred":
            go.touch()
        create = partial(create, deferrable=deferred)
        pool = self.step(create, "create", how) if kind == "create" else run(create, self.ti_here("create"))
        task = partial(
            QarnotRunTaskOperator,
            task_id="work",
            retries=TRIES - 1,
            qarnot_pool=pool,
            command=f"sh -c 'until test -e {go}; do sleep 0.02; done; echo done >> {self.effects}'",
            deferrable=deferred,
        )
        result = self.step(task, "work", how) if kind == "run" else run(task, self.ti_here("work"))
        assert result["state"] == "Success"
        close = partial(
            QarnotClosePoolOperator,
            task_id="close",
            retries=TRIES - 1,
            qarnot_pool=pool,
            wait_for_completion=step == "close and wait",
            deferrable=False,
        )
        if kind.startswith("close"):
            self.step(close, "close", how)
        else:
            run(close, self.ti_here("close"))

    def ti_here(self, task_id: str) -> FakeTI:
        return FakeTI(run_id=self.run_id, task_id=task_id, max_tries=TRIES - 1)

    def step(self, make: Any, task_id: str, how: str) -> Any:
        """One Airflow task through its slices; returns its result."""
        if how == "second try":
            # The first try dies unseen: its request took effect, and that is all anybody knows.
            path = {"create": "POST /pools", "work": "POST /tasks"}[task_id]
            first = Point("", "", path, "unanswered")
            ti = self.ti(task_id, 1)
            child = fork(with_boundaries(worker(make, ti), ti, self.qarnot, first))
            assert child.wait() == -signal.SIGKILL
            if task_id == "work":
                # What has succeeded is found and not taken over, which would be two requests more.
                eventually(lambda: all(is_ending(one) for one in made_for(self.client.tasks, self.run_id)))
        try_number = 2 if how == "second try" else 1
        ti = self.ti(task_id, try_number)
        said = self.child("worker, second try" if try_number == 2 else "worker", worker(make, ti), ti)
        self.effects.with_name(f"{self.effects.name}-go").touch()
        if said is None:
            return self.retry(make, task_id, try_number + 1)
        if said["kind"] == "success":
            return said["value"]
        trigger = tuple(said["trigger"])
        event = self.child("triggerer", triggerer(trigger), None)
        payload = event["event"] if event else self.trigger_again(trigger, said["method"])
        # What was stored before the deferral is what the resumed slice finds.
        ti = self.ti(task_id, try_number)
        ended = self.child("worker, resumed", worker(make, ti, (said["method"], {"event": payload})), ti)
        if ended is None:
            return self.retry(make, task_id, try_number + 1)
        assert ended["kind"] == "success", ended
        return ended["value"]

    def child(self, process: str, work: Callable[[Say], None], ti: StoringTI | None) -> dict[str, Any] | None:
        """Run *work* in a child; what it said last, or None where it was killed, as the point asks."""
        point = self.point if self.point and self.point.process == process else None
        self.qarnot.clear_requests()
        child = fork(with_boundaries(work, ti, self.qarnot, point))
        status = child.wait()
        self.passed[process] = in_order(child)
        if point is not None and status == 0 and readings.current() and point.at not in self.passed[process]:
            # Under other readings a process may need other requests; see check_boundaries.
            pytest.skip(f"no {point.at} under the readings {readings.current()}")
        if point is None:
            assert status == 0, child.said
            return child.last("event") or child.said[-1]
        assert status == -signal.SIGKILL, child.said
        self.show_boundary(point)
        self.qarnot.clear_requests()
        return None

    def show_boundary(self, point: Point) -> None:
        """The request log of the server must show where the child died."""
        if readings.current():
            return  # the request before it, and the responses, may be others
        log = [(shape(one["method"], one["path"]), one) for one in self.qarnot.requests()]
        if point.at.startswith("XCom"):
            assert log[-1][0] == self.passed[point.process][-2]
            assert log[-1][1]["status"] == 200
        elif point.moment == "before":
            assert point.at not in [at for at, _ in log]
        else:
            at, last = log[-1]
            assert at == point.at
            # Nothing has the name yet.
            status = 404 if "{name}" in point.at else 200
            expected = ("lost", None) if point.moment == "unanswered" else (None, status)
            assert (last.get("fault"), last["status"]) == expected

    def retry(self, make: Any, task_id: str, try_number: int) -> Any:
        """What Airflow does after a lost worker: the next try, here in this process, to the end."""
        ti = FakeTI(run_id=self.run_id, task_id=task_id, try_number=try_number, max_tries=TRIES - 1)
        result = run(make, ti)
        created = {"create": "POST /pools", "work": "POST /tasks", "close": ""}[task_id]
        log = [shape(one["method"], one["path"]) for one in self.qarnot.requests()]
        self.retries_created = log.count(created)
        return result

    def trigger_again(self, trigger: tuple[str, dict[str, Any]], method: str) -> Any:
        return fire(TaskDeferred(trigger=again(Serialized(*trigger)), method_name=method))


def in_order(child: Child) -> list[str]:
    """The boundaries a child passed; polls, however many, count once. Links are of no interest."""
    passed: list[str] = []
    for one in child.said:
        if one["kind"] == "boundary" and "_link_" not in one["at"] and passed[-1:] != [one["at"]]:
            passed.append(one["at"])
    return passed


# --- the outcome


@dataclass(frozen=True)
class Row:
    """What there was at the end."""

    pools: int
    tasks: int
    successes: int
    effects: int
    open: int
    then: str


async def _never(end: Any) -> None:
    """Poll no pool."""


@dataclass
class Matrix:
    """Runs a workload at most once for each point and server."""

    servers: dict[str, LocalQarnot]
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    rows: dict[tuple[Point, str], Row | Exception] = field(default_factory=dict)

    def workload(self, name: str, server: str, point: Point | None = None) -> Workload:
        qarnot = self.servers[server]
        connect(qarnot, self.monkeypatch)
        self.monkeypatch.setenv("AIRFLOW__QARNOT__POLL_INTERVAL", "0.02")
        # At this interval a wait for a Qarnot task would poll its pool, too, on a slow machine and not on a fast one.
        self.monkeypatch.setattr("airflow_qarnot_pool.triggers.pool_end.PoolEnd._run", _never)
        client = QarnotClient(qarnot.url, qarnot.token)
        effects = self.folder / re.sub(r"\W+", "-", f"{name} {server}")
        return Workload(qarnot, client, f"{name} {server}", effects, point)

    def row(self, point: Point, server: str) -> Row:
        key = point, server
        if key not in self.rows:
            try:
                self.rows[key] = self._run(str(point), point, server)
            except Exception as error:
                # A second run would find the objects of the first one, and count both.
                self.rows[key] = error
        row = self.rows[key]
        if isinstance(row, Exception):
            raise row
        return row

    def _run(self, name: str, point: Point, server: str) -> Row:
        workload = self.workload(name, server, point)
        workload.whole(point.step)
        workload.qarnot.faults([])
        return outcome(workload, point)

    def check_boundaries(self, step: str) -> None:
        """Check that without a kill the processes pass the boundaries of the table, in its order, and no others.

        Under other readings they may pass others, and a process dies at each of these, too.
        """
        workload = self.workload(f"{step} unharmed", "enforce")
        workload.whole(step)
        if readings.current():
            for point in other_points(step, workload.passed):
                self.check_kill(point, "enforce")
            return
        # The end may be shown by a query for changes, which counts its matches once. No one dies there.
        passed = {
            process: [at for at in all_of_it if not at.endswith("/summaries/paginate")]
            for process, all_of_it in workload.passed.items()
        }
        assert passed == {process: list(all_of_it) for process, all_of_it in STEPS[step].items()}

    def check_kill(self, point: Point, server: str) -> None:
        _assert_once(self.row(point, server))

    def check_kill_anew(self, point: Point, server: str) -> None:
        """As :meth:`check_kill`, in a run of the present readings."""
        _assert_once(self._run(f"{point}, {readings.current()}", point, server))

    def check_kill_after(self, seconds: float, point: Point, server: str) -> None:
        """As :meth:`check_kill`. Deferrable waits stay on the worker for *seconds* before they defer."""
        with self.monkeypatch.context() as changed:
            changed.setenv("AIRFLOW__QARNOT__DEFER_AFTER", str(seconds))
            _assert_once(self._run(f"{point}, after {seconds:g} s", point, server))

    def check_page(self, points: Iterable[Point]) -> None:
        """Compare the rows of *points* in the docs with what happens, or write them."""
        lines = {
            head_of(point): line_of(point, [self.row(point, one) for one in SERVERS]) for point in points
        }
        if os.environ.get("CRASH_MATRIX") == "write":
            with open(TABLE, "r+") as page:
                fcntl.flock(page, fcntl.LOCK_EX)
                written = rows_of(page.read()) | lines
                page.seek(0)
                page.truncate()
                page.write(table(written))
        text = TABLE.read_text()
        written = rows_of(text)
        assert {head: written.get(head) for head in lines} == lines, (
            "docs/contributing/evidence/crash-matrix.md is not what happens; CRASH_MATRIX=write renews it"
        )
        assert text == table(written)


def _assert_once(row: Row) -> None:
    assert (row.pools, row.tasks, row.successes, row.effects, row.open) == (1, 1, 1, 1, 0)


def outcome(workload: Workload, point: Point) -> Row:
    pools = made_for(workload.client.pools, workload.run_id)
    tasks = made_for(workload.client.tasks, workload.run_id, role="")
    if point.process == "triggerer":
        then = "another triggerer waits on"
    elif point.step.startswith("close"):
        then = "the retry closes it, or finds it closed"
    elif workload.retries_created:
        then = "the retry creates it"
    else:
        then = "the retry finds it"
    everything = [*pools, *made_for(workload.client.tasks, workload.run_id)]
    return Row(
        pools=len(pools),
        tasks=len(tasks),
        successes=sum(task.state == "Success" for task in tasks),
        effects=len(workload.effects.read_text().split()),
        open=sum(one.state not in ("Closing", "Closed", "Success", "Cancelled") for one in everything),
        then=then,
    )


# --- the document

INTRODUCTION = """\
# Crash matrix

What becomes of a workload (create a pool, run a Qarnot task on it, close the pool) when one of its processes is
killed with SIGKILL. Every row is a run of `tests/crash/test_crash_matrix_*.py`, which write this page
(`CRASH_MATRIX=write`) and fail when it is not what happens. The child's exit status (-9) and the server's request log
prove where it died.

- *before*: the request was not sent; *unanswered*: it took effect, and the answer never came; *answered*: the answer
  came, and the process died before anything was done with it. An XCom: *before* or *after* it was stored.
- A process that died after an answer, or after a read, left behind the same as one that died before the next boundary.
  So *answered* and *after* are rows of the last boundary of a process only, and *unanswered* of requests that change
  something.
- A killed worker means the next try, with the same `max_tries`. A killed triggerer means that another one runs the
  trigger again. In a *second try* the first one had died with its request unanswered.
- The pools of *create, deferred* and *create, second try* are managed (`keep_warm`, with a warm-up task), the others
  are of fixed size.
- Made: all pools and Qarnot tasks of the work that ever existed (a warm-up is not work). Ran: Qarnot tasks that
  succeeded, and what the command left behind. Open: pools not closed and Qarnot tasks not over at the end.
- Each column pair: a server that enforces unique shortnames / one that does not.
"""


def moment_of(point: Point) -> str:
    return "after" if point.at.startswith("XCom") and point.moment == "answered" else point.moment


def head_of(point: Point) -> str:
    """Return the cells that say where a process dies."""
    return f"| {point.step} | {point.process} | `{point.at}` | {moment_of(point)} |"


def line_of(point: Point, both: Sequence[Row]) -> str:
    thens = dict.fromkeys(row.then for row in both)
    counts = [
        " / ".join(str(getattr(row, name)) for row in both)
        for name in ("pools", "tasks", "successes", "effects", "open")
    ]
    return f"{head_of(point)} {' | '.join([' / '.join(thens), *counts])} |"


def rows_of(page: str) -> dict[str, str]:
    """Return the rows of a page by their first cells."""
    heads = {head_of(point) for point in POINTS}
    rows = {"|".join(line.split("|")[:5]) + "|": line for line in page.splitlines()}
    return {head: line for head, line in rows.items() if head in heads}


def table(rows: dict[str, str]) -> str:
    """Return the page with these rows."""
    lines = [
        INTRODUCTION,
        "| step | process | boundary | killed | then | pools made | Qarnot tasks made | ran | effects | open |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [rows[head] for head in map(head_of, POINTS) if head in rows]
    lines += ["", f"{len(POINTS)} points, {len(POINTS) * len(SERVERS)} runs.", ""]
    return "\n".join(lines)
