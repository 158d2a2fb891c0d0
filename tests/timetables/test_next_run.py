"""When the next scheduled run of a DAG starts: by its timetable, and by the plan of the scheduler."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG
from airflow.sdk.definitions.timetables.interval import CronDataIntervalTimetable
from airflow.sdk.definitions.timetables.trigger import CronTriggerTimetable

from airflow_qarnot_pool.timetables.next_run import PlannedRun, next_run_time


def at(day: int, hour: int, minute: int = 0) -> Any:
    return pendulum.datetime(2026, 6, day, hour, minute, tz="UTC")


def run(run_type: str, start: Any, end: Any) -> Any:
    return SimpleNamespace(run_type=run_type, data_interval_start=start, data_interval_end=end)


def plan(logical_date: datetime | None, *, is_paused: bool = False) -> PlannedRun:
    return PlannedRun(is_paused=is_paused, logical_date=logical_date)


NIGHTLY = CronDataIntervalTimetable("0 3 * * *", timezone="UTC")
HOURLY = CronDataIntervalTimetable("0 * * * *", timezone="UTC")
TRIGGER = CronTriggerTimetable("0 3 * * *", timezone="UTC")
#: The run of the 2nd at 3 o'clock, and of 11 o'clock.
TODAY, ELEVEN = run("scheduled", at(1, 3), at(2, 3)), run("scheduled", at(2, 10), at(2, 11))
POINT = run("scheduled", at(2, 3), at(2, 3))
BY_HAND = run("manual", at(1, 3), at(2, 3))
#: By the case: schedule, current run, time, plan of the scheduler, and when the next run starts.
CASES: dict[str, tuple[Any, Any, Any, PlannedRun | None, Any]] = {
    "tomorrow": (NIGHTLY, TODAY, at(2, 4), None, at(3, 3)),
    "tomorrow, as the scheduler plans": (NIGHTLY, TODAY, at(2, 4), plan(at(2, 3)), at(3, 3)),
    "tomorrow, without data intervals": (TRIGGER, POINT, at(2, 4), plan(at(3, 3)), at(3, 3)),
    "in an hour": (HOURLY, ELEVEN, at(2, 11, 20), plan(at(2, 11)), at(2, 12)),
    "the run took longer than an hour, and the next is due": (
        HOURLY,
        ELEVEN,
        at(2, 12, 5),
        plan(at(2, 11)),
        at(2, 12),
    ),
    "the next has begun, and the one after comes": (HOURLY, ELEVEN, at(2, 12, 5), plan(at(2, 12)), at(2, 13)),
    "it is not known whether the next has begun": (HOURLY, ELEVEN, at(2, 12, 5), None, at(2, 13)),
    "a user started this run": (NIGHTLY, BY_HAND, at(2, 9), None, at(3, 3)),
    "a user started this run, and the scheduler has a plan": (
        NIGHTLY,
        BY_HAND,
        at(2, 9),
        plan(at(2, 3)),
        at(3, 3),
    ),
    "a backfill of long ago": (NIGHTLY, run("backfill", at(1, 3), at(2, 3)), at(20, 9), None, at(21, 3)),
    "a delta": (timedelta(hours=6), run("scheduled", at(2, 0), at(2, 6)), at(2, 7), None, at(2, 12)),
    "the DAG is paused": (HOURLY, ELEVEN, at(2, 11, 20), plan(at(2, 11), is_paused=True), None),
    "no run is planned": (HOURLY, ELEVEN, at(2, 11, 20), plan(None), None),
    "another schedule by now": (NIGHTLY, TODAY, at(2, 4), plan(at(2, 17)), None),
    "far behind": (HOURLY, run("scheduled", at(1, 0), at(1, 1)), at(1, 1).add(years=1), None, None),
}


@pytest.fixture(autouse=True)
def clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    now = request.node.callspec.params.get("now") if hasattr(request.node, "callspec") else None
    for module in ("interval", "trigger", "_delta"):
        monkeypatch.setattr(f"airflow.timetables.{module}.utcnow", lambda: now, raising=False)


@pytest.mark.parametrize(("schedule", "current", "now", "planned", "expected"), CASES.values(), ids=CASES)
def test_the_next_run(
    schedule: Any, current: Any, now: Any, planned: PlannedRun | None, expected: Any
) -> None:
    dag = DAG("d", schedule=schedule, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"))
    assert next_run_time(dag, current, now, planned) == expected


@pytest.mark.parametrize("now", [at(2, 4)])
def test_there_is_none_after_the_end_of_the_dag(now: Any) -> None:
    start = pendulum.datetime(2026, 1, 1, tz="UTC")
    dag = DAG("d", schedule=NIGHTLY, start_date=start, end_date=at(1, 3))
    assert next_run_time(dag, TODAY, now) is None
