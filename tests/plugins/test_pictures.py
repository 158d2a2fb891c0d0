"""The numbers of the pictures: tables, and against the account of a local Qarnot."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from airflow_qarnot_pool.api.client import QarnotClient
from airflow_qarnot_pool.api.models import Pool, Task
from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
from airflow_qarnot_pool.local import LocalQarnot
from airflow_qarnot_pool.plugins import details, history, pictures, rows
from airflow_qarnot_pool.plugins.history import ObservedHistory, thinned
from airflow_qarnot_pool.plugins.pictures import Bar, NodeCount, bars_of, gantt
from tests.plugins.conftest import until

T0 = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ZERO = T0.timestamp()


def at(seconds: float) -> str:
    return (T0 + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def task(
    state: str, *, moved: float = 0, before: tuple[str, float] = ("Submitted", 0), **fields: Any
) -> Task:
    """A task of one instance, created at 0."""
    ended = {"endDate": at(moved)} if state in ("Success", "Failure", "Cancelled") else {}
    return Task.from_json(
        {
            "uuid": "t",
            "state": state,
            "creationDate": at(0),
            "stateTransitionTime": at(moved),
            "previousState": before[0],
            "previousStateTransitionTime": at(before[1]),
            "instanceCount": 1,
            **ended,
            **fields,
        }
    )


RAN = {"executionTime": "00:01:00"}
RETRIED = {"completedInstances": [{"instanceId": 0, "state": "Failure", "executionAttemptCount": 2}]}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (task("Submitted"), None),
        (task("FullyDispatched", moved=5), None),
        (task("FullyExecuting", moved=10), (10, None, "running", True)),
        (task("UploadingResults", moved=70, before=("FullyExecuting", 10)), (10, None, "running", True)),
        (task("Success", moved=70, before=("FullyExecuting", 10), **RAN), (10, 70, "succeeded", True)),
        (task("Success", moved=99, before=("UploadingResults", 70), **RAN), (10, 70, "succeeded", True)),
        (task("Failure", moved=70, before=("FullyDispatched", 10), **RAN), (10, 70, "failed", True)),
        (task("Cancelled", moved=71, before=("PendingCancel", 70), **RAN), (11, 71, "cancelled", True)),
        # cancelled in the queue, or executed several times, or nobody says how long
        (task("Cancelled", moved=70), None),
        (
            task("Failure", moved=99, before=("UploadingResults", 70), **RAN, **RETRIED),
            (0, 70, "failed", False),
        ),
        (task("Success", moved=70, status={"startedOnceRange": "0"}), (0, 70, "succeeded", False)),
    ],
)
def test_the_bar_of_a_task_with_one_instance(found: Task, expected: Any) -> None:
    bars = bars_of(found, {})
    assert len(bars) == (expected is not None)
    for bar in bars:
        end = None if bar.end is None else bar.end - ZERO
        assert (bar.start - ZERO, end, bar.group, bar.is_exact) == expected


def array(state: str, running: dict[int, float], done: dict[int, float], **more: Any) -> Task:
    """An array of four instances. *running*, *done*: seconds by id."""
    status = {
        "timestamp": at(100),
        "runningInstancesInfo": {
            "perRunningInstanceInfo": [
                {"instanceId": number, "phase": "execution", "executionTimeSec": seconds}
                for number, seconds in running.items()
            ]
        },
        **more,
    }
    completed = [
        {"instanceId": number, "state": "Success", "execTimeSec": seconds} for number, seconds in done.items()
    ]
    fields = {"instanceCount": 4, "runningInstanceCount": len(running), "completedInstances": completed}
    return task(state, moved=200, status=status, **fields)


def shown(bars: list[Bar]) -> list[tuple[Any, ...]]:
    return [
        (bar.start - ZERO, None if bar.end is None else bar.end - ZERO, bar.group, bar.instance)
        for bar in bars
    ]


def test_instances_of_an_array_are_placed_if_they_were_observed() -> None:
    starts: pictures.Starts = {}
    pictures.observe_starts(starts, array("FullyExecuting", {0: 30, 1: 20}, {}))
    first = array("FullyExecuting", {0: 33, 1: 20}, {})  # rounded differently
    pictures.observe_starts(starts, first)
    assert shown(bars_of(first, starts)) == [(70, None, "running", 0), (80, None, "running", 1)]
    later = array("PartiallyExecuting", {1: 20}, {0: 40, 2: 5})
    assert shown(bars_of(later, starts)) == [
        (70, 110, "succeeded", 0),
        (80, None, "running", 1),
        (0, None, "running", None),  # the third instance was not observed
    ]
    cancelled = {"executionTimeByInstanceId": [{"instanceId": 1, "time": 25}, {"instanceId": 3, "time": 0}]}
    ended = array("Cancelled", {}, {0: 40, 2: 5}, **cancelled)
    assert shown(bars_of(ended, starts)) == [
        (70, 110, "succeeded", 0),
        (80, 105, "cancelled", 1),
        (0, 200, "cancelled", None),
    ]
    work = pictures.work_over_time([ended], bars_of(ended, starts))
    assert work["missing"] == 1
    assert [(time - ZERO, busy, queued) for time, busy, queued in work["points"]] == [
        (0, 0, 3),
        (70, 1, 2),
        (80, 2, 1),
        (105, 1, 1),
        (110, 0, 1),
        (200, 0, 0),
    ]


def test_no_more_slots_are_busy_than_there_are() -> None:
    """Ends and starts are rounded, each in its own way."""
    bars = [Bar(n * 10.0, n * 10.0 + 10.6, "succeeded", "t0", n) for n in range(3)]
    bars += [Bar(30, None, "running", "t1", 0), Bar(0, 50, "failed", "t2", None, is_exact=False)]
    found = pictures.fitted(reversed(bars))
    assert [(bar.start, bar.end) for bar in found] == [(0, 10), (10, 20), (20, 30), (30, None), (0, 50)]
    assert max(busy for _, busy, _ in pictures.work_over_time([task("Success")], found)["points"]) <= 1
    # A start that is rounded to before the creation empties no queue that is not there.
    early = [Bar(ZERO - 1, ZERO + 5, "succeeded", "t")]
    queued = [queued for *_, queued in pictures.work_over_time([task("Success", moved=5)], early)["points"]]
    assert min(queued) == 0


def test_bars_of_a_lane_do_not_overlap_and_the_youngest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = [Bar(n * 10.0, n * 10.0 + 25, "succeeded", f"t{n % 3}", n) for n in range(30)]
    bars += [Bar(5, None, "running", "t0", 99), Bar(0, 400, "failed", "array", None, is_exact=False)]
    whole = gantt(bars)
    assert (whole["lanes"], whole["total"], whole["cut"]) == (4, 32, False)
    by_lane: dict[int, list[Any]] = {}
    for lane, start, end, *_ in whole["bars"]:
        by_lane.setdefault(lane, []).append((start, end))
    for placed in by_lane.values():
        assert all(end is not None and start >= end - 1 for (_, end), (start, _) in pairwise(sorted(placed)))
    assert [lane for lane, *_, exact in whole["bars"] if not exact] == [4]
    assert [whole["tasks"][bar[4]] for bar in whole["bars"]] == [
        bar.task for bar in sorted(bars[:-1], key=lambda bar: (bar.start, bar.task))
    ] + ["array"]
    monkeypatch.setattr(pictures, "MAX_BARS", 5)
    cut = gantt(bars)
    assert (len(cut["bars"]), cut["total"], cut["cut"]) == (5, 32, True)
    # What runs, and what has ended last, in the lanes of the whole picture.
    assert all(bar in whole["bars"] or bar[:4] in [each[:4] for each in whole["bars"]] for bar in cut["bars"])
    assert {(start, end) for _, start, end, *_ in cut["bars"]} == {
        (5, None),
        (0, 400),
        (290, 315),
        (280, 305),
        (270, 295),
    }


def test_a_thinned_series_keeps_its_points_while_it_grows() -> None:
    points = [(float(n), n) for n in range(2000)]
    kept = thinned(points, limit=500)
    assert 250 <= len(kept) <= 500
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    longer = thinned([*points, (2000.0, 2000)], limit=500)
    assert set(kept[:-1]) <= set(longer)
    assert thinned(points[:500], limit=500) == tuple(points[:500])


def pool(state: str = "FullyExecuting", ready: int = 2, **fields: Any) -> Pool:
    times = {"creationDate": at(0), "stateTransitionTime": at(300), "previousStateTransitionTime": at(200)}
    counts = {"instanceCount": 2, "targetRunningInstanceCount": 2, "runningInstanceCount": ready}
    return Pool.from_json({"uuid": "u", "state": state, **times, **counts, **fields})


def observed_at(*polls: tuple[float, Pool]) -> ObservedHistory:
    observed = None
    for seconds, found in polls:
        observed = history.updated_history(observed, found, T0 + timedelta(seconds=seconds))
    assert observed is not None
    return observed


def seconds(series: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    points = [(point[0] - ZERO, *point[1:]) for point in series["points"]]
    return points, [(start - ZERO, end - ZERO) for start, end in series["gaps"]]


ELASTIC = {"elasticProperty": {"isElastic": True, "minTotalSlots": 0, "maxTotalSlots": 2}}


@pytest.mark.parametrize(
    ("found", "polls", "lanes", "nodes"),
    [
        (pool(), [2], 1, 2),  # also a node without any work
        (pool(multiSlotsSettings={"slotsPerNode": 2}), [2], 1, 1),
        (pool(instanceCount=8, multiSlotsSettings={"slotsPerNode": 4}), [0], 5, 2),
        # A pool that follows its load may have had nodes that nobody saw, but not more than it may have.
        (pool(ready=0, **ELASTIC), [0], 1, 1),
        (pool(ready=0, **ELASTIC), [0], 7, 2),
        (pool(instanceCount=5000, ready=5000), [5000], 3, 3),
    ],
)
def test_bars_are_drawn_on_nodes(found: Pool, polls: list[int], lanes: int, nodes: int) -> None:
    observed = observed_at(*((100.0 * n, pool(ready=ready)) for n, ready in enumerate(polls, 1)))
    bars = [Bar(0, 10, "succeeded", f"t{n}") for n in range(lanes)]
    picture = gantt([*bars, Bar(0, 10, "failed", "a", None, is_exact=False)], NodeCount.of(found, observed))
    slots = picture["slots_per_node"]
    assert (picture["nodes"], picture["lanes"]) == (nodes, max(lanes, nodes * slots))
    assert picture["bars"][-1][0] == picture["lanes"], "below the nodes"


def test_what_was_not_observed_is_a_gap() -> None:
    observed = observed_at((500, pool()), (505, pool()), (1000, pool(ready=1)), (1005, pool()))
    # A pool of fixed size that is FullyExecuting has had all its slots since then.
    known = [(0, 2, 0), (300, 2, 2), (500, 2, 2), (1000, 2, 1), (1005, 2, 2)]
    assert seconds(pictures.slots_over_time(pool(), observed)) == (known, [(505, 1000)])
    # One that follows its load may have had any number.
    points, gaps = seconds(pictures.slots_over_time(pool(**ELASTIC), observed_at((400, pool(**ELASTIC)))))
    assert (points, gaps) == ([(0, None, 0), (400, 2, 2)], [(0, 400)])
    closed = pool("Closed", 0, endDate=at(1100))
    points, _ = seconds(pictures.slots_over_time(closed, observed_at((1005, pool()), (1200, closed))))
    assert points[-2:] == [(1005, 2, 2), (1100, 0, 0)]
    # Qarnot may leave out the end of a failed pool. It is that of its last transition.
    failed = pool("Failure", 0, stateTransitionTime=at(1100))
    points, _ = seconds(pictures.slots_over_time(failed, observed_at((1005, pool()), (1200, failed))))
    assert points[-2:] == [(1005, 2, 2), (1100, 0, 0)]
    [entry] = rows.build_rows(rows.PageData(now=T0, connection="c", pools=[failed]))
    detail = details.build_detail(entry, failed, [], ObservedHistory())
    assert detail.whole["pictures"]["until"] == ZERO + 1100


def test_the_cost_has_the_readings_of_the_bill() -> None:
    observed = observed_at((400, pool()))
    for moment, euros in ((400, 1.0), (430, 1.0), (450, 1.0), (460, 1.5), (490, None), (520, 1.5)):
        observed = history.with_cost(observed, euros, T0 + timedelta(seconds=moment))
    assert seconds(pictures.cost_over_time(pool(), observed)) == (
        [(0, 0.0), (400, 1.0), (450, 1.0), (460, 1.5)],
        [(0, 400)],
    )


OLD, YOUNG = pool(uuid="old"), pool(uuid="young", creationDate=at(1000))


@pytest.mark.parametrize(
    ("polls", "spent"),
    [
        # A few bills are read in a round: the first reading of an old pool is no spending, that of a young one is.
        ([{}, {"old": 50.0}, {"old": 50.5}], [None, 0.0, 0.5]),
        ([{"old": 50.0}, {"old": 50.0, "young": 2.0}, {"old": 51.0, "young": 2.5}], [0.0, 2.0, 3.5]),
        # What has left the list was spent all the same, and what comes again is not spent twice.
        ([{"old": 1.0}, {"old": 2.0}, {}, {"old": 2.5}], [0.0, 1.0, 1.0, 1.5]),
        ([{"old": 1.0}, {"old": 2.0}, {"old": None}, {"old": 1.9}, {"old": 2.5}], [0.0, 1.0, 1.0, 1.0, 1.5]),
        ([{"old": None}, {"old": None}], [None, None]),
    ],
)
def test_the_spending_of_the_last_day_is_the_growth_of_the_bills(
    polls: list[dict[str, Any]], spent: list[float | None]
) -> None:
    day, found = pictures.AccountHistory(), []
    for number, euros in enumerate(polls):
        day = day.updated([OLD, YOUNG], euros, T0 + timedelta(seconds=900 + number))
        found.append(day.points[-1][6])
    assert found == spent
    nothing = pictures.AccountHistory().updated([], {}, T0)
    assert nothing.points[-1][6] == 0.0


@pytest.mark.parametrize(
    ("states", "phases"),
    [
        (
            ["Submitted", "PartiallyDispatched", "FullyDispatched", "PartiallyExecuting", "FullyExecuting"],
            ["accepted", "placed", "all placed", "first node", "all nodes"],
        ),
        (["FullyDispatched", "FullyExecuting"], ["accepted", "all placed", "all nodes"]),
        # seen first long after the boot: the last two states say nothing of it
        (["PartiallyExecuting", "FullyExecuting"], []),
    ],
)
def test_the_phases_of_the_boot(states: list[str], phases: list[str]) -> None:
    polls = [
        (100.0 * n, pool(state, previousState=None, stateTransitionTime=at(100.0 * n - 10)))
        for n, state in enumerate(states, 1)
    ]
    observed = observed_at(*polls)
    steps = history.boot_phases(polls[-1][1], observed)
    assert [step["phase"] for step in steps] == phases
    assert sum(step["seconds"] for step in steps) == (100.0 * len(states) - 10 if phases else 0)


def test_the_newest_event_is_first_also_within_a_second() -> None:
    young = pool("FullyDispatched", 0, stateTransitionTime=at(0), previousState=None)
    events = history.events_of(young, observed_at((0, young)))
    assert [event["text"] for event in events] == ["FullyDispatched", "Submitted"]


def test_an_event_does_not_say_8_of_0_slots() -> None:
    polls = [(0, pool(ready=0)), (10, pool(ready=1)), (20, pool(ready=2, targetRunningInstanceCount=0))]
    events = history.events_of(polls[-1][1], observed_at(*polls))
    assert [event["text"] for event in events if event["kind"] == "up"] == [
        "1 slot up; 2 run",
        "1 slot up; 1 of 2 run",
    ]


# --- against the account


@pytest.fixture(scope="module")
def account() -> Iterator[tuple[LocalQarnot, QarnotClient]]:
    with LocalQarnot(boot_seconds=60, close_seconds=0) as server:
        yield server, QarnotClient(server.url, server.token)


def area(points: list[list[Any]], column: int, until: float) -> float:
    """Of steps, up to a moment."""
    ends = [point[0] for point in points[1:]] + [until]
    return float(sum((end - point[0]) * point[column] for point, end in zip(points, ends, strict=True)))


def test_the_pictures_add_up_to_the_account(
    account: tuple[LocalQarnot, QarnotClient], tmp_path: Path
) -> None:
    """Slots to the node-seconds, bars and work to the busy seconds, cost to the bill: on the virtual clock."""
    server, client = account
    uuid = client.pools.create(PoolSpec(name="p", instance_count=2))
    starts: pictures.Starts = {}
    memory: list[Any] = [None]

    def poll() -> tuple[Pool, list[Task]]:
        found, tasks = client.pools.get(uuid), client.pools.tasks(uuid)
        now = datetime.fromtimestamp(server.get_clock()["now"], UTC)
        observed = history.updated_history(memory[0], found, now)
        memory[0] = history.with_cost(observed, client.pools.credits(uuid), now)
        for remote in (found, *tasks):
            pictures.observe_starts(starts, remote)
        return found, tasks

    def running(count: int) -> bool:
        return sum(each.running_instance_count or 0 for each in poll()[1]) == count

    poll()
    server.advance_clock(60)
    until(lambda: poll()[0].ready_slots == 2, "the nodes")
    wait = f"sh -c 'while [ ! -e {tmp_path}/{{}}$INSTANCE_ID ]; do sleep 0.02; done'"
    client.tasks.create(TaskSpec(name="one", pool=uuid, command=wait.format("one")))
    until(lambda: running(1), "the first task")
    server.advance_clock(300)
    client.tasks.create(TaskSpec(name="many", pool=uuid, command=wait.format("many"), instance_count=2))
    until(lambda: running(2), "the first instance of the array")
    server.advance_clock(500)
    (tmp_path / "one0").touch()
    until(lambda: running(2) and "Success" in {each.state for each in poll()[1]}, "the second one")
    server.advance_clock(200)
    now, day = datetime.fromtimestamp(server.get_clock()["now"], UTC), pictures.AccountHistory()
    sums = day.updated([poll()[0]], {uuid: client.pools.credits(uuid)}, now).points[-1]
    nodes = [node for node in server.nodes() if node["pool"] == uuid]
    assert sums[1:6] == (1, 2, len(nodes), sum(len(node["running"]) for node in nodes), 0)
    for number in (0, 1):
        (tmp_path / f"many{number}").touch()
    until(lambda: all(each.state == "Success" for each in poll()[1]), "their ends")
    server.advance_clock(90)
    [lost, _] = [node for node in server.nodes() if node["pool"] == uuid]
    poll()
    server.kill_node(lost["id"])
    poll()
    server.advance_clock(60)
    until(lambda: poll()[0].ready_slots == 2, "another node")
    server.advance_clock(100)
    poll()
    client.pools.close(uuid)
    found, tasks = until(lambda: (seen := poll())[0].state == "Closed" and seen, "its end")

    [bill] = server.get_account()["pools"].values()
    observed = memory[0]
    assert found.end_date is not None
    slots = pictures.slots_over_time(found, observed)
    # Times of the API have whole seconds, and a slow machine polls a little after each change.
    assert area(slots["points"], 2, found.end_date.timestamp()) == pytest.approx(
        bill["nodeSeconds"], rel=0.02
    )
    bars = [bar for each in tasks for bar in bars_of(each, starts)]
    lengths = sum(bar.end - bar.start for bar in bars if bar.is_exact and bar.end is not None)
    work = pictures.work_over_time(tasks, bars)
    busy = sum(each.executed_seconds or 0 for each in tasks)
    assert (work["missing"], len(bars)) == (0, 3)
    assert lengths == pytest.approx(busy, abs=2 * len(bars))
    assert area(work["points"], 1, found.end_date.timestamp()) == pytest.approx(lengths, abs=0.001)
    assert bill["busySlotSeconds"] == pytest.approx(lengths, rel=0.02)
    kinds = [event["kind"] for event in history.events_of(found, observed)]
    assert kinds.count("lost") == 1
    cost = pictures.cost_over_time(found, observed)
    assert cost["points"][-1][1] == pytest.approx(bill["creditsSpent"], abs=1e-6)
    spent = server.get_account()["creditsSpent"]
    day = pictures.AccountHistory().updated([], {}, datetime.fromtimestamp(0, UTC))
    day = day.updated([found], {uuid: client.pools.credits(uuid)}, T0)
    assert day.points[-1][1:6] == (0, 0, 0, 0, 0)
    assert day.points[-1][6] == pytest.approx(spent, abs=1e-6)
    price = rows.slot_hour_of(found, client.pools.credits(uuid))
    assert price == pytest.approx(server.get_account()["eurosPerNodeSecond"] * 3600, rel=0.01)
