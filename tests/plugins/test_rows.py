"""What the Pools page makes of pools, Qarnot tasks and runs: tables, no server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_qarnot_pool.api.models import CarbonFacts, Pool, Task
from airflow_qarnot_pool.plugins import rows
from airflow_qarnot_pool.plugins.queries import FIGURES_PER_ROUND, figures_due

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
LABELS = {"airflow.dag_id": "frames", "airflow.run_id": "run+1", "airflow.task_id": "open"}
POLICY = {
    "policies": [
        {
            "type": "ManagedTasksQueue",
            "name": "keep-warm",
            "minTotalSlots": 0,
            "maxTotalSlots": 4,
            "minIdleSlots": 0,
            "minIdleTimeSeconds": 600,
            "scalingFactor": 1,
        }
    ]
}


def ago(**span: float) -> str:
    return (NOW - timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pool(state: str = "FullyExecuting", age: float = 60, **fields: Any) -> Pool:
    """A pool of two slots, an hour old, busy."""
    values = {
        "uuid": "u",
        "name": "warm",
        "state": state,
        "creationDate": ago(minutes=age),
        "stateTransitionTime": ago(minutes=age - 1),
        "previousState": "FullyDispatched",
        "previousStateTransitionTime": ago(minutes=age),
        "labels": LABELS,
        "instanceCount": 2,
        "runningInstanceCount": 2,
        "targetRunningInstanceCount": 2,
        "queuedOrRunningTaskInstancesCount": 1,
    }
    return Pool.from_json({**values, **fields})


def row(found: Pool, *, run: str | None = "running", notes: Any = (), observed: Any = None) -> dict[str, Any]:
    [made] = rows.build_rows(
        rows.PageData(
            now=NOW,
            connection="q",
            pools=[found],
            tasks={"u": notes},
            runs={("frames", "run+1"): run} if run else {},
            histories={"u": observed} if observed else {},
            console_url="https://console",
        )
    )
    return made


def kinds(*args: Any, **kwargs: Any) -> list[str]:
    return [one["kind"] for one in row(*args, **kwargs)["warnings"]]


def note(group: str, minutes: float = 30) -> rows.TaskRow:
    return rows.TaskRow("u", group, NOW - timedelta(minutes=minutes), "frames", "run+1")


IDLE = {"queuedOrRunningTaskInstancesCount": 0}


@pytest.mark.parametrize(
    ("found", "run", "notes", "expected"),
    [
        (pool(), "running", [note("running")], []),
        # idle
        (pool(**IDLE), "running", [], ["idle"]),
        (pool(**IDLE, age=4), "running", [], []),
        (pool(**IDLE), "running", [note("succeeded", 6)], ["idle"]),
        (pool(**IDLE), "running", [note("succeeded", 4)], []),
        (pool(**IDLE), "running", [note("queued")], []),
        (pool(**IDLE, runningInstanceCount=0), "running", [], []),
        (pool(**IDLE, scaling=POLICY), "running", [note("succeeded", 9)], []),
        (pool(**IDLE, scaling=POLICY), "running", [note("succeeded", 11)], ["idle"]),
        (pool("Closed", **IDLE), "success", [], []),
        # the owner
        (pool(), "failed", [note("running")], ["owner"]),
        (pool(), "success", [note("running")], ["owner"]),
        (pool(), None, [note("running")], ["owner"]),
        (pool(age=1), "failed", [note("running")], []),
        (pool("Closing"), "failed", [], []),
        (pool(labels={**LABELS, "airflow.shared": "n"}), "failed", [note("running")], []),
        # boots that do not end
        (pool("Submitted", age=16, runningInstanceCount=0), "running", [], ["boot"]),
        (pool("Submitted", age=14, runningInstanceCount=0), "running", [], []),
        (pool("Submitted", age=60, runningInstanceCount=0, scaling=POLICY), "running", [], []),
        # what Qarnot says
        (pool(errors=[{"code": "X", "message": "no nodes"}]), "running", [note("running")], ["errors"]),
        (pool("Molten"), "running", [note("running")], ["state"]),
    ],
)
def test_warnings(found: Pool, run: str | None, notes: Any, expected: list[str]) -> None:
    assert kinds(found, run=run, notes=notes) == expected


def test_a_lost_node_is_told_of_also_after_another_took_its_place() -> None:
    observed = None
    for ready in (2, 1, 2):
        observed = rows.updated_history(observed, pool(runningInstanceCount=ready), NOW)
    [warning] = row(pool(), notes=[note("running")], observed=observed)["warnings"]
    assert warning == {"kind": "nodes", "text": "1 slot was lost; 2 of 2 run"}
    later = rows.updated_history(observed, pool(), NOW + timedelta(minutes=11))
    assert later.lost_at == observed.lost_at  # type: ignore[union-attr]


def test_a_lost_node_is_seen_at_the_first_look() -> None:
    hurt = pool("PartiallyExecuting", previousState="FullyExecuting", runningInstanceCount=1)
    assert rows.updated_history(None, hurt, NOW).lost == 1
    booting = pool("PartiallyExecuting", previousState="FullyDispatched", runningInstanceCount=1)
    assert rows.updated_history(None, booting, NOW).lost == 0


def test_a_node_lost_and_replaced_between_two_looks_is_told_of() -> None:
    observed = rows.updated_history(None, pool(), NOW)
    dipped = pool(
        previousState="PartiallyExecuting",
        previousStateTransitionTime=ago(seconds=3),
        stateTransitionTime=ago(seconds=2),
    )
    observed = rows.updated_history(observed, dipped, NOW)
    assert observed.lost == 1
    assert rows.updated_history(observed, dipped, NOW).lost == 1
    states = ["Submitted", "FullyExecuting", "PartiallyExecuting", "FullyExecuting"]
    assert [step["state"] for step in rows.timeline(dipped, observed)] == states


@pytest.mark.parametrize(
    "then",
    [
        pool(runningInstanceCount=0, targetRunningInstanceCount=0),  # asked for fewer
        pool("Closing", runningInstanceCount=0),
        pool(runningInstanceCount=1, scaling=POLICY),  # follows its load
    ],
)
def test_nodes_that_were_given_back_are_not_lost(then: Pool) -> None:
    observed = rows.updated_history(None, pool(scaling=POLICY if then.scaling else None), NOW)
    assert rows.updated_history(observed, then, NOW).lost == 0


def test_the_timeline_has_what_the_api_tells_and_what_was_seen() -> None:
    observed = rows.ObservedHistory()
    for state in ("FullyDispatched", "PartiallyExecuting"):
        observed = rows.updated_history(observed, pool(state, stateTransitionTime=ago(minutes=58)), NOW)
    now = pool(
        previousState="PartiallyExecuting",
        previousStateTransitionTime=ago(minutes=58),
        stateTransitionTime=ago(minutes=50),
    )
    steps = rows.timeline(now, observed)
    states = ["Submitted", "FullyDispatched", "PartiallyExecuting", "FullyExecuting"]
    assert [step["state"] for step in steps] == states
    times = [step["at"] for step in steps]
    assert times == sorted(times)


def test_links_name_run_and_map_index() -> None:
    assert rows.run_link("a/b", "manual__2026-01-01T00:00:00+00:00") == (
        "dags/a%2Fb/runs/manual__2026-01-01T00%3A00%3A00%2B00%3A00"
    )
    assert rows.task_link("d", "r", "t.x", "3") == "dags/d/runs/r/tasks/t.x/mapped/3"
    assert rows.task_link("d", "r", "t", "-1") == "dags/d/runs/r/tasks/t"
    assert rows.task_link(None, None, None, None) is None
    # Nothing that a label says can make a link lead elsewhere.
    assert rows.run_link("javascript:alert(1)", "//evil") == "dags/javascript%3Aalert%281%29/runs/%2F%2Fevil"


def test_tasks_that_have_not_been_read_are_not_none() -> None:
    [made] = rows.build_rows(rows.PageData(now=NOW, connection="q", pools=[pool(**IDLE)], tasks=None))
    assert made["tasks"] is None
    assert "idle" not in [one["kind"] for one in made["warnings"]]


def test_open_pools_come_first_then_the_youngest() -> None:
    pools = [
        pool("Closed", age=1, uuid="closed"),
        pool(age=30, uuid="old"),
        pool("Submitted", age=2, uuid="young"),
    ]
    made = rows.build_rows(rows.PageData(now=NOW, connection="q", pools=pools))
    assert [one["uuid"] for one in made] == ["young", "old", "closed"]


def test_unknown_states_and_missing_fields_make_a_row_all_the_same() -> None:
    made = row(Pool.from_json({"uuid": "u"}))
    assert (made["name"], made["phase"], made["owner"]["kind"]) == ("u", "unknown", "unknown")
    full = rows.build_detail(
        made, Pool.from_json({"uuid": "u"}), [Task.from_json({"uuid": "t"})], rows.ObservedHistory(), 5
    )
    assert full["tasks"][0]["link"] is None


SHARED = {"labels": {**LABELS, "airflow.shared": "nightly"}}
OPENER, OTHER = ("frames", "run+1"), ("report", "run+1")


def other(group: str = "succeeded") -> rows.TaskRow:
    return rows.TaskRow("u", group, NOW, *OTHER)


@pytest.mark.parametrize(
    ("fields", "notes", "shares", "run", "whole", "part"),
    [
        # the run has all of it
        ({}, [note("running")], None, OPENER, True, None),
        ({}, [], None, OPENER, True, None),
        # it shares it
        (SHARED, [note("running")], {OPENER: 1.0}, OPENER, False, 8.0),
        (SHARED, [note("running"), other()], {OPENER: 0.25, OTHER: 0.75}, OTHER, False, 6.0),
        ({}, [note("running"), other()], {OPENER: 0.25, OTHER: 0.75}, OPENER, False, 2.0),
        # whoever opened it and runs nothing on it has no part; all of it, while nobody does
        (SHARED, [other()], {OTHER: 1.0}, OPENER, False, 0.0),
        (SHARED, [], {OPENER: 1.0}, OPENER, False, 8.0),
        # not known yet: nobody has asked, or the run has come since
        (SHARED, [other()], None, OTHER, False, None),
        (SHARED, [note("running"), other()], {OPENER: 1.0}, OTHER, False, None),
    ],
)
def test_the_part_of_a_run(
    fields: Any, notes: Any, shares: Any, run: tuple[str, str], whole: bool, part: float | None
) -> None:
    figures = rows.PoolFigures(euros=8.0, at=NOW, shares=shares)
    [made] = rows.build_rows(
        rows.PageData(
            now=NOW, connection="q", pools=[pool(**fields)], tasks={"u": notes}, figures={"u": figures}
        )
    )
    seen = rows.row_of_run(made, run)
    assert seen is not None
    assert seen["figures"]["euros"] == 8.0
    assert (seen["mine"] is None) is whole
    if seen["mine"] is not None:
        assert (seen["mine"]["figures"] and seen["mine"]["figures"]["euros"]) == part
    assert rows.row_of_run(made, ("frames", "another")) is None
    assert "runs" not in seen


def job(name: str, run: tuple[str, str] | None) -> Task:
    """A Qarnot task that has failed; most are called the same."""
    labels = {"airflow.dag_id": run[0], "airflow.run_id": run[1]} if run else {}
    errors = [{"code": "E", "message": f"of {run[0] if run else 'nobody'}"}]
    return Task.from_json({"uuid": f"{name}-{run}", "name": name, "labels": labels, "errors": errors})


JOBS = [job("work", OPENER), job("work", OTHER), job("pool", OTHER), job("by hand", None)]
ALL = {"frames", "report", "nobody", "pool"}


@pytest.mark.parametrize(
    ("fields", "notes", "run", "seen"),
    [
        (SHARED, [note("failed"), other()], OPENER, {"frames", "pool"}),
        (SHARED, [note("failed"), other()], OTHER, {"report", "pool"}),
        ({}, [note("failed"), other()], OTHER, {"report", "pool"}),
        # its own pool, but another has come since its row was made
        ({}, [note("failed")], OPENER, {"frames", "nobody", "pool"}),
        # the run has come since
        (SHARED, [note("failed")], OTHER, None),
        ({}, [], OTHER, None),
    ],
)
def test_a_run_sees_no_qarnot_tasks_of_other_runs(
    fields: Any, notes: Any, run: tuple[str, str], seen: set[str] | None
) -> None:
    """Whatever they are called, and however old what is known of the pool."""
    found = pool(**fields, errors=[{"code": "E", "message": "of pool"}])
    [made] = rows.build_rows(rows.PageData(now=NOW, connection="q", pools=[found], tasks={"u": notes}))
    whole = rows.build_detail(made, found, JOBS, rows.ObservedHistory(), 200)
    assert {error["text"] for error in whole["errors"]} == {f"E: of {one}" for one in ALL}
    shown = rows.detail_of_run(whole, run)
    if seen is None:
        assert shown is None
        return
    assert shown is not None
    assert {error["text"] for error in shown["errors"]} == {f"E: of {one}" for one in seen}
    assert {task["dag_id"] or "nobody" for task in shown["tasks"]} == seen - {"pool"}
    assert shown["task_count"] == len(shown["tasks"])
    if fields and run == OTHER:
        assert "frames" not in str(shown)


def test_only_the_youngest_tasks_are_listed() -> None:
    tasks = [Task.from_json({"uuid": str(n), "creationDate": ago(minutes=n)}) for n in range(5)]
    full = rows.build_detail(row(pool()), pool(), tasks, rows.ObservedHistory(), 2)
    assert [one["uuid"] for one in full["tasks"]] == ["0", "1"]
    assert full["task_count"] == 5


def test_figures_of_what_may_not_be_seen_are_unknown_not_zero() -> None:
    assert rows.figures_of(None) is None
    shown = rows.figures_of(rows.PoolFigures(euros=None, carbon=None, at=NOW))
    assert shown is not None
    assert (shown["euros"], shown["carbon_g"]) == (None, None)
    facts = CarbonFacts.from_json(
        {"qarnot_carbon_footprint": 2.0, "saved_carbon_footprint_compute_heat": 3.0}
    )
    shown = rows.figures_of(rows.PoolFigures(euros=1.0, carbon=facts, at=NOW))
    assert shown is not None
    assert (shown["euros"], shown["carbon_g"], shown["saved_g"]) == (1.0, 2.0, 3.0)


def test_costs_are_asked_for_a_few_pools_at_a_time_those_in_sight_first() -> None:
    pools = {str(n): pool(uuid=str(n)) for n in range(20)}
    pools["closed"] = pool("Closed", uuid="closed")
    first = figures_due(pools, {}, {}, {"7": 1000.0}, 1000.0)
    assert first[0] == "7"
    assert len(first) == FIGURES_PER_ROUND
    assert "closed" not in first
    asked = dict.fromkeys(first, 1000.0)
    assert not set(first) & set(figures_due(pools, {}, asked, {}, 1010.0))
    assert figures_due({"0": pools["0"]}, {}, {"0": 1000.0}, {}, 1031.0) == ["0"]
    settled = {"closed": rows.PoolFigures(euros=1.0, final=True)}
    assert figures_due({"closed": pools["closed"]}, settled, {}, {}, 9e9) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (200_000, "2 days 7 h")],
)
def test_durations_are_spoken(seconds: int, text: str) -> None:
    assert rows.format_duration(timedelta(seconds=seconds)) == text


def test_the_mark_of_the_page_survives_wrong_clocks() -> None:
    from airflow_qarnot_pool.plugins.queries import next_mark

    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    before, soon, later = (now + timedelta(seconds=seconds) for seconds in (-60, 2, 3600))
    dated = (now, 0.0)
    assert next_mark(None, [], dated) is None
    assert next_mark(before, [None, now, soon], dated) == soon
    assert next_mark(before, [later], dated) == before  # one with a time in the future hides no change
    assert next_mark(later, [now], dated) is None  # set back: all are read again
    assert next_mark(before, [later], None) == later  # a server that does not date its responses
