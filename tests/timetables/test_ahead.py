"""The schedule of a companion DAG: each run of the DAG, some time earlier, in any time zone and through each change."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.definitions.timetables.assets import AssetOrTimeSchedule
from airflow.sdk.definitions.timetables.interval import CronDataIntervalTimetable
from airflow.sdk.definitions.timetables.trigger import CronTriggerTimetable, MultipleCronTriggerTimetable
from airflow.timetables.base import TimeRestriction

from airflow_qarnot_pool.exceptions import QarnotInvalidSpecError
from airflow_qarnot_pool.timetables.ahead import AheadTimetable
from airflow_qarnot_pool.timetables.next_run import check_timed
from airflow_qarnot_pool.version_compat import core_timetable, decode_timetable, encode_timetable

LEAD = timedelta(minutes=30)
PARIS = "Europe/Paris"
#: Schedules of a DAG. In 2026 the clocks of Paris change on 29 March and 25 October.
SCHEDULES: dict[str, Any] = {
    "every night": "0 3 * * *",
    "every night, in the hour that a day of March lacks": "30 2 * * *",
    "every hour": "0 * * * *",
    "on the first of the month": "@monthly",
    "data intervals": CronDataIntervalTimetable("0 3 * * *", timezone=PARIS),
    "data intervals of another length": CronTriggerTimetable(
        "15 4 * * 1-5", timezone=PARIS, interval=timedelta(days=1)
    ),
    "several times": MultipleCronTriggerTimetable("0 6 * * *", "30 18 * * 5", timezone=PARIS),
}
#: The days before the changes, and an ordinary one.
STARTS = [datetime(2026, 3, 28), datetime(2026, 10, 24), datetime(2026, 6, 1)]


def runs(timetable: Any, start: Any, count: int = 40) -> Iterator[Any]:
    """The scheduled runs of a DAG with catchup."""
    last, restriction = None, TimeRestriction(start, None, catchup=True)
    for _ in range(count):
        info = timetable.next_dagrun_info(last_automated_data_interval=last, restriction=restriction)
        yield info
        last = info.data_interval


@pytest.mark.parametrize("start", STARTS, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_each_run_comes_the_lead_earlier(schedule: Any, start: datetime) -> None:
    dag = DAG("d", schedule=schedule, start_date=pendulum.instance(start, tz=PARIS))
    ahead = AheadTimetable(dag.timetable, LEAD)
    for own, companion in zip(
        runs(core_timetable(dag.timetable), dag.start_date), runs(ahead, dag.start_date), strict=True
    ):
        assert companion.run_after == own.run_after - LEAD
        assert companion.logical_date == own.logical_date - LEAD
        assert companion.logical_date <= companion.run_after, "or Airflow would not start it"


@pytest.mark.parametrize("lead", [LEAD, timedelta(hours=5)], ids=["30 min", "longer than an interval"])
@pytest.mark.parametrize("schedule", ["0 * * * *", *list(SCHEDULES.values())[-3:]], ids=str)
def test_without_catchup_each_run_to_come_has_one_companion(
    schedule: Any, lead: timedelta, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the scheduler asks: the next run whenever one was created, at that time."""
    dag = DAG("d", schedule=schedule, start_date=pendulum.datetime(2026, 10, 1, tz=PARIS))
    begun = now = pendulum.datetime(2026, 10, 24, 7, 13, tz="UTC")
    for module in ("interval", "trigger", "_delta"):
        monkeypatch.setattr(f"airflow.timetables.{module}.utcnow", lambda: now, raising=False)
    monkeypatch.setattr("airflow.timetables.trigger.time", SimpleNamespace(time=lambda: now.timestamp()))
    ahead, companions, last = AheadTimetable(dag.timetable, lead), [], None
    while len(companions) < 30:
        restriction = TimeRestriction(dag.start_date, None, catchup=False)
        info = ahead.next_dagrun_info(last_automated_data_interval=last, restriction=restriction)
        assert info is not None
        now, last = max(now, info.run_after), info.data_interval
        companions.append(info.run_after + lead)
    planned = (one.run_after for one in runs(core_timetable(dag.timetable), dag.start_date, 10_000))
    # The first one may be of a run that has begun, as the DAG's own first run is.
    expected = list(islice((one for one in planned if one > begun), 25))
    assert [one for one in companions if one > begun][:25] == expected


def test_airflow_stores_it() -> None:
    dag = DAG("d", schedule="0 3 * * *", start_date=pendulum.datetime(2026, 1, 1, tz=PARIS))
    stored = decode_timetable(encode_timetable(AheadTimetable(dag.timetable, LEAD)))
    assert isinstance(stored, AheadTimetable)
    assert stored.lead == LEAD
    assert stored.summary == "0 3 * * *, 0:30:00 ahead"
    before, after = (
        list(runs(one, dag.start_date, 3)) for one in (AheadTimetable(dag.timetable, LEAD), stored)
    )
    assert before == after


RAW = Asset("raw")
#: Schedules that know no time of the next run, and why.
UNTIMED: dict[str, tuple[Any, str]] = {
    "none": (None, "only users start its runs"),
    "once": ("@once", "it runs once"),
    "continuous": ("@continuous", "each run starts when the one before has ended"),
    "a delta": (timedelta(hours=6), "the time of a run counts from the run before"),
    "an asset": ([RAW], "its runs follow assets"),
    "an asset, or a time": (
        AssetOrTimeSchedule(timetable=CronTriggerTimetable("0 3 * * *", timezone="UTC"), assets=[RAW]),
        "its runs follow assets",
    ),
}


@pytest.mark.parametrize(("schedule", "why"), UNTIMED.values(), ids=UNTIMED)
def test_a_schedule_without_times_is_refused_by_name(schedule: Any, why: str) -> None:
    dag = DAG("d", schedule=schedule, max_active_runs=1)
    with pytest.raises(
        QarnotInvalidSpecError, match=f"dag 'd' has no schedule of times, got .*: {why}"
    ) as caught:
        check_timed(dag.timetable, dag.dag_id)
    assert caught.value.field == "dag"
