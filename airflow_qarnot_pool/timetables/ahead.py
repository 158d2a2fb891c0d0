"""The schedule of a companion DAG: the runs of another timetable, each some time earlier."""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import Any

from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction, Timetable

from airflow_qarnot_pool.version_compat import core_timetable, decode_timetable, encode_timetable


class AheadTimetable(Timetable):
    """Start a run *lead* before each run of another timetable.

    The lead is subtracted from instants, so changes to daylight saving time do not change it. It is subtracted from the
    data interval, too, because Airflow starts no run with a logical date in the future.

    :param timetable: the other timetable, of times.
    :param lead: time between the two runs.
    """

    def __init__(self, timetable: Any, lead: timedelta) -> None:
        self._given = timetable
        self.lead = lead

    @cached_property
    def timetable(self) -> Timetable:
        """The other timetable, as a class of Airflow's scheduler. Task processes do not need it."""
        timetable: Timetable = core_timetable(self._given)
        return timetable

    @property
    def summary(self) -> str:
        """The text for the UI."""
        return f"{self.timetable.summary}, {self.lead} ahead"

    def validate(self) -> None:
        """Validate the other timetable."""
        self._given.validate()

    def infer_manual_data_interval(self, *, run_after: Any) -> DataInterval:
        """Return the data interval of a run that a user starts, as the other timetable does."""
        return self.timetable.infer_manual_data_interval(run_after=run_after)

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """Return the next run of the other timetable, earlier by the lead."""
        last = _shifted(last_automated_data_interval, self.lead)
        info = self.timetable.next_dagrun_info(last_automated_data_interval=last, restriction=restriction)
        if info is None:
            return None
        data_interval = _shifted(info.data_interval, -self.lead)
        return info._replace(run_after=info.run_after - self.lead, data_interval=data_interval)

    def serialize(self) -> dict[str, Any]:
        """Return a JSON form for Airflow's database."""
        return {"timetable": encode_timetable(self.timetable), "lead": self.lead.total_seconds()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> AheadTimetable:
        """Read the result of :meth:`serialize`."""
        return cls(decode_timetable(data["timetable"]), timedelta(seconds=data["lead"]))


def _shifted(interval: DataInterval | None, by: timedelta) -> DataInterval | None:
    return None if interval is None else DataInterval(interval.start + by, interval.end + by)
