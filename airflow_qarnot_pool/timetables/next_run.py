"""When the next scheduled run of a DAG starts, as its timetable says. No function here sends a request."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

import pendulum

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.version_compat import core_timetable, timetable_base

log = logging.getLogger(__name__)

#: Maximum number of runs after the current one that are considered. A run further behind knows no next one.
MAX_RUNS = 100


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """The plan of the scheduler for a DAG. ``logical_date`` is that of the next run; None if there is none."""

    is_paused: bool
    logical_date: datetime | None


def check_timed(timetable: Any, dag_id: str) -> None:
    """Refuse a timetable that does not know the times of its runs.

    :raises QarnotInvalidSpecError: the runs follow assets or other runs, or only users start them.
    """
    if problem := _why_untimed(timetable):
        raise QarnotInvalidSpecError(
            f"dag {dag_id!r} has no schedule of times, got {type(timetable).__name__}: {problem}",
            field="dag",
            remedy="Give a DAG with a cron expression, or another timetable of times.",
        )


def _why_untimed(timetable: Any) -> str:
    # The classes of airflow.sdk lack some attributes. Their conversion would take a tenth of a second in each task.
    name = type(timetable).__name__
    if timetable.asset_condition:
        return "its runs follow assets"
    if "Partition" in name or getattr(timetable, "partitioned", False):
        return "its runs are partitions"
    if not timetable.can_be_scheduled:
        return "only users start its runs"
    if timetable.active_runs_limit is not None:
        return "each run starts when the one before has ended"
    if name == "OnceTimetable" or not getattr(timetable, "periodic", True):
        return "it runs once"
    return "the time of a run counts from the run before" if name.startswith("Delta") else ""


def next_run_time(dag: Any, run: Any, now: datetime, planned: PlannedRun | None = None) -> datetime | None:
    """Return when the scheduled run after *run* starts; None if there is none, or it is not known.

    :param dag: a parsed DAG.
    :param run: a DAG run of it, the current one.
    :param planned: the plan of the scheduler. It may name a run that is late, and its time is then before *now*.
        None: the first run after *now* counts.
    """
    if planned is not None and (planned.is_paused or planned.logical_date is None):
        return None
    for info in islice(_runs_after(dag, run), MAX_RUNS):
        if info.run_after > now if planned is None else info.logical_date == planned.logical_date:
            start: datetime = info.run_after
            return start
    return None


def _runs_after(dag: Any, run: Any) -> Iterator[Any]:
    """Yield Airflow's ``DagRunInfo`` of each scheduled run after *run*, or from about now on if a user started it."""
    base, timetable = timetable_base(), core_timetable(dag.timetable)
    last = None
    if getattr(run, "run_type", None) == "scheduled" and run.data_interval_start and run.data_interval_end:
        last = base.DataInterval(_instant(run.data_interval_start), _instant(run.data_interval_end))
    start, end = _instant(dag.start_date), _instant(dag.end_date)
    while True:
        # Without a last run, "no catchup" makes the timetable start at the latest interval.
        restriction = base.TimeRestriction(start, end, catchup=last is not None)
        info = timetable.next_dagrun_info(last_automated_data_interval=last, restriction=restriction)
        if info is None:
            return
        yield info
        last = info.data_interval


def _instant(when: datetime | None) -> Any:
    """Return *when* as the class that timetables compute with."""
    return None if when is None else pendulum.instance(when)
