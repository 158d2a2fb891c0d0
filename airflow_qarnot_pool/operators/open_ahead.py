"""Open a shared pool ahead of the scheduled run that needs it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
from airflow_qarnot_pool.operators.bases.warm_up import warm_up_name
from airflow_qarnot_pool.operators.create_pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.identity import DEFAULT_KEEP_WARM
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.validation import Duration, as_duration
from airflow_qarnot_pool.version_compat import AirflowSkipException
from airflow_qarnot_pool.waiting.conditions import EndReason

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.ownership.shared_pool import HoldOwner
    from airflow_qarnot_pool.waiting.conditions import WaitResult

#: Minimum time for which the warm-up holds a node, because the nodes do not boot at the same moment.
MIN_WARM_UP = timedelta(minutes=1)


class QarnotOpenAheadOperator(QarnotCreatePoolOperator):
    """Open a shared pool by a boot earlier than the next run of a DAG starts.

    :func:`~airflow_qarnot_pool.task_groups.ahead.open_ahead` creates this operator. It waits, deferred, until the time
    of the run minus the expected boot, and is skipped if the run is not to come. Then it opens the pool as
    ``QarnotCreatePoolOperator`` does, and holds it until the run opens the pool, too. If the run does not come within
    ``keep_warm``, it closes the pool.

    :param for_dag_id: the DAG whose runs need the pool.
    :param lead: how long before that run the run of this task is scheduled. A run that a user starts opens the pool at
        once, and leaves it to ``keep_warm``.
    :param boot_time: expected boot, as a timedelta or seconds; default: the 90th percentile of the last boots.
    """

    def __init__(
        self, *, for_dag_id: str, lead: timedelta, boot_time: Duration = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.for_dag_id = for_dag_id
        self.lead = lead
        self.boot_time = as_duration("boot_time", boot_time)
        if self.keep_warm is None:
            raise QarnotInvalidSpecError(
                "keep_warm must be a duration for a pool that is opened ahead, got None",
                field="keep_warm",
                remedy="Give keep_warm in place of elastic or scaling, so that the pool can be warmed up.",
            )
        if is_templated(self.warm_up) or not self._warms_up:
            raise QarnotInvalidSpecError(
                f"warm_up must be True for a pool that is opened ahead, got {self.warm_up!r}",
                field="warm_up",
                remedy="Remove it, because only the warm-up boots nodes before there is work.",
            )

    # --- before the pool is opened

    def execute(self, context: Context) -> str:
        """Wait until the pool is to be opened."""
        start, now = self._run_start(context), datetime.now(UTC)
        if start is not None and now < start:
            opening = start - self._expected_boot(context)
            if now < opening:
                self.log.info("Opening the pool at %s, for the run at %s", opening, start)
                self._wait_until(opening, "open_in_time")
        return self.open_in_time(context)

    def open_in_time(self, context: Context, event: Any = None) -> str:
        """Open the pool, unless the run has begun or is not to come."""
        if problem := self._why_no_run(context):
            self._give_back(context)  # an earlier try may have opened it
            raise self._skipped(problem)
        return super().execute(context)

    def _skipped(self, reason: str) -> AirflowSkipException:
        self.log.info("No pool is opened ahead: %s", reason)  # Airflow does not log it
        return AirflowSkipException(reason)

    def _has_begun(self, start: datetime | None) -> bool:
        return start is not None and datetime.now(UTC) >= start

    def _run_start(self, context: Context) -> datetime | None:
        """Return when the run that needs the pool starts; None if a user has started this task."""
        dag_run = context["dag_run"]
        if dag_run.run_type == "manual":
            return None
        return dag_run.run_after.astimezone(UTC) + self.lead

    def _expected_boot(self, context: Context) -> timedelta:
        if self.boot_time is not None:
            return min(self.boot_time, self.lead)
        from airflow_qarnot_pool.sizing.boots import expected_boot, read_boots

        name = warm_up_name(str(self._spec(self._given()).name))
        boots = [boot.duration for boot in read_boots(self.client, self._identity_of(context), name)]
        expected = expected_boot(boots, self.lead)
        self.log.info("Expecting a boot of %s, from a record of %d boots", expected, len(boots))
        return expected

    def _why_no_run(self, context: Context) -> str:
        """Return why no run needs the pool, as far as Airflow says so; "" if one does."""
        from airflow_qarnot_pool.ownership.liveness import planned_run

        start = self._run_start(context)
        if start is None:
            return ""
        if self._has_begun(start):
            return f"The run of {self.for_dag_id} at {start} has begun"
        try:
            planned = planned_run(self.for_dag_id)
        except LookupError as error:
            return f"{error}, so no run of it needs the pool"
        if planned is None:
            return ""  # on Airflow 3.1
        if planned.is_paused:
            return f"DAG {self.for_dag_id!r} is paused"
        own = context["dag_run"].logical_date
        expected = None if own is None else own + self.lead  # see AheadTimetable
        if planned.logical_date != expected:
            return (
                f"The next run of {self.for_dag_id} has the logical date {planned.logical_date}, and not {expected}. "
                "Its schedule has changed, or it is behind"
            )
        return ""

    def _yields_to_this(self, holder: HoldOwner) -> bool:
        """Return whether *holder* is an earlier run of this DAG. A later one never yields, so none take turns."""
        from airflow_qarnot_pool.ownership.shared_pool import scheduled_time

        own, other = scheduled_time(self._running.identity.run_id), scheduled_time(holder.run_id)
        return holder.dag_id == self.dag_id and own is not None and other is not None and other < own

    # --- while it boots

    def _warm_up_limit(self, context: Context) -> timedelta | None:
        """Return how long the warm-up holds a node if Airflow does not end it: about as long as a boot."""
        start = self._run_start(context)
        return (
            super()._warm_up_limit(context) if start is None else max(MIN_WARM_UP, start - datetime.now(UTC))
        )

    def _deadline(self, context: Context) -> datetime | None:
        ends = (super()._deadline(context), self._claimed_until(context))
        return min((end for end in ends if end is not None), default=None)

    # --- after it is ready

    def _claimed_until(self, context: Context) -> datetime | None:
        """Return until when the run may open the pool; None if a user has started this task."""
        start = self._run_start(context)
        return None if start is None else start + (self.keep_warm or DEFAULT_KEEP_WARM)

    def _ready(self, context: Context, outcome: WaitResult) -> str:
        is_closed = outcome.ending in (EndReason.IMPOSSIBLE, EndReason.GONE)
        if is_closed and self._has_begun(self._run_start(context)):
            # The run has used it, and may have ended.
            raise self._skipped(f"Pool {outcome.uuid} was closed before it was ready")
        uuid = super()._ready(context, outcome)
        until = self._claimed_until(context)
        if until is None:
            return uuid
        if until > datetime.now(UTC):
            self._wait_until(until, "close_unclaimed")
        return self.close_unclaimed(context)

    def close_unclaimed(self, context: Context, event: Any = None) -> str:
        """Close the pool if the run has not opened it, and no other run needs it."""
        self._give_back(context)
        uuid: str = xcoms.pull(context["ti"], self.uuid_key)
        return uuid

    def _give_back(self, context: Context) -> None:
        """Release the hold of this task, unless the run has done so, and close a pool that nothing else needs."""
        from airflow_qarnot_pool.operators.close_pool import run_lives
        from airflow_qarnot_pool.ownership.shared_pool import release

        identity = self._identity_of(context)
        for released in release(self.client, identity, run_lives, [self.task_id], only_held=True):
            if released.closed:
                self.log.warning(
                    "No run of %s has opened pool %s, so it was closed", self.for_dag_id, released.uuid
                )

    def _wait_until(self, when: datetime, method_name: str) -> NoReturn:
        from airflow.providers.standard.triggers.temporal import DateTimeTrigger

        self.defer(trigger=DateTimeTrigger(moment=when), method_name=method_name)
