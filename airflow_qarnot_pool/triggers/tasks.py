"""Wait for many Qarnot tasks of one Airflow task."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import filters, states
from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError
from airflow_qarnot_pool.ownership.fan_out import FanOutProgress
from airflow_qarnot_pool.ownership.identity import LINEAGE_TAG, TaskInstanceIdentity, index_and_generation
from airflow_qarnot_pool.ownership.termination import end_lineage
from airflow_qarnot_pool.ownership.xcoms import TASKS_KEY
from airflow_qarnot_pool.triggers.base import QarnotTrigger, own_xcom, store_xcom, task_state
from airflow_qarnot_pool.triggers.poller import subscribe
from airflow_qarnot_pool.triggers.pool_end import PoolEnds
from airflow_qarnot_pool.waiting.conditions import EndReason, WaitResult, is_queued
from airflow_qarnot_pool.waiting.intervals import steady_interval

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.tasks import TaskResource
    from airflow_qarnot_pool.triggers.poller import Subscriber

log = logging.getLogger(__name__)

#: Maximum seconds between checks for deleted Qarnot tasks, which no change query shows.
MAX_CHECK_INTERVAL = 120.0
#: The same as a number of steady intervals. It is smaller near a quota, because finished items are deleted there.
CHECK_ROUNDS, CHECK_ROUNDS_NEAR_QUOTA = 24, 3
#: Seconds between log lines about the progress.
REPORT_INTERVAL = 10.0
POLL_FIELDS = ("Uuid", "Shortname", "State", "PoolUuid")


class QarnotTasksTrigger(QarnotTrigger):
    """Wait until no more than ``low_water`` of the pending Qarnot tasks of a lineage are unfinished.

    Here ``uuid`` is the lineage, and ``condition`` is ``{"expected": number of tasks, "low_water": n}``. The pending
    tasks are in ``resume_state`` (:class:`~airflow_qarnot_pool.ownership.fan_out.FanOutProgress`).
    """

    kind = "task"

    async def _wait(self) -> WaitResult:
        progress = FanOutProgress.from_resume_state(self.resume_state)
        ending, message, error_name = EndReason.ERROR, "", None
        try:
            async with subscribe(
                self.qarnot_conn_id,
                self.kind,
                LINEAGE_TAG + self.uuid,
                is_tag=True,
                interval=self.poll_interval,
            ) as subscriber:
                steady = steady_interval(self.poll_interval)
                with PoolEnds(self.qarnot_conn_id, self.pools, subscriber, steady):
                    await self._watch(subscriber, progress, int(self.condition["low_water"]))
                ending = EndReason.MET
        except QarnotPoolEndedError as error:
            ending, message = (
                EndReason.IMPOSSIBLE,
                f"Qarnot tasks stay queued, and {error.message}, so they never run",
            )
        except TimeoutError:
            ending = EndReason.TIMEOUT
            message = f"{len(progress.pending)} of {self.condition.get('expected')} Qarnot tasks did not end in time"
        except QarnotError as error:
            message, error_name = str(error), type(error).__name__
        resume_state = {**self.resume_state, **progress.to_resume_state()}
        if error_name:
            resume_state["error"] = error_name
        await self._store_resuming()
        return WaitResult(ending=ending, uuid=self.uuid, message=message, resume_state=resume_state)

    async def _watch(self, subscriber: Subscriber, progress: FanOutProgress, low_water: int) -> None:
        """Record ended tasks until *low_water* are pending, or until one was deleted, which the operator handles.

        :raises TimeoutError: the deadline has passed.
        :raises QarnotPoolEndedError: tasks stay queued on a pool that has ended.
        """
        clock = asyncio.get_running_loop().time
        rounds = CHECK_ROUNDS_NEAR_QUOTA if self.resume_state.get("met_quota") else CHECK_ROUNDS
        check_after = min(MAX_CHECK_INTERVAL, rounds * steady_interval(self.poll_interval))
        reported_at, check_at = clock(), clock() + check_after
        while len(progress.pending) > low_water:
            try:
                record_end(progress, await subscriber.next(self._timeout_until(check_at)))  # type: ignore[arg-type]
            except QarnotPoolEndedError as error:
                if await self._some_are_queued(error.ref):
                    raise
            except TimeoutError:
                if self.deadline is not None and not self._seconds_left():
                    raise
                if await self._some_vanished(progress):
                    return
                check_at = clock() + check_after
            if clock() - reported_at >= REPORT_INTERVAL or len(progress.pending) <= low_water:
                reported_at = clock()
                self._report(progress)

    def _timeout_until(self, check_at: float) -> float:
        """Return the seconds until *check_at*, on the event loop's clock, or until the deadline if it is sooner."""
        seconds = max(0.0, check_at - asyncio.get_running_loop().time())
        until_deadline = self._seconds_left()
        return seconds if until_deadline is None else min(seconds, until_deadline)

    def _report(self, progress: FanOutProgress) -> None:
        done, failed = len(progress.succeeded) + len(progress.failed), len(progress.failed)
        self.log.info("%d done (%d failed), %d unfinished", done, failed, len(progress.pending))

    async def _poll_all(self) -> list[Task] | None:
        try:
            tasks: list[Task] = await self._request(lambda client: poll_lineage(client.tasks, self.uuid))
        except QarnotError as error:
            self.log.info("Could not check whether all Qarnot tasks still exist: %s", error)
            return None
        return tasks

    async def _some_are_queued(self, pool: str | None) -> bool:
        tasks = await self._poll_all() or ()
        return any(task.pool == pool and is_queued(task.state) for task in tasks)

    async def _some_vanished(self, progress: FanOutProgress) -> bool:
        tasks = await self._poll_all()
        if tasks is None:
            return False
        for task in tasks:
            record_end(progress, task)
        return bool(progress.pending - {index_and_generation(task.shortname) for task in tasks})

    async def _store_resuming(self) -> None:
        """Store that the wait has ended: a queued Airflow task then resumes, and was not cleared.

        A triggerer that was frozen meanwhile reads it. The operator stores the bare lineage when it runs again.
        """
        if self.identity is None:
            return
        try:
            await store_xcom(self.identity, TASKS_KEY, resuming_marker(self.identity))
        except Exception as error:  # from Airflow; only a triggerer that was frozen needs the marker
            log.debug("Airflow did not store that the wait for the Qarnot tasks has ended: %s", error)

    async def _end_if_abandoned(self, identity: TaskInstanceIdentity) -> None:
        state = await task_state(identity)
        if is_still_waiting(state, await own_xcom(identity, TASKS_KEY), identity):
            self.log.info("The Qarnot tasks keep running: their Airflow task is %s", state)
            return
        ended = await self._request(lambda client: end_lineage(client.tasks, identity))
        if ended is None:
            self.log.info("The Qarnot tasks keep running: a later try of their Airflow task uses them")
        else:
            self.log.info("Aborted %d Qarnot tasks: their Airflow task is %s", len(ended), state or "cleared")


def resuming_marker(identity: TaskInstanceIdentity) -> str:
    """Return the XCom of an Airflow task whose wait has ended and which has not run since."""
    return f"{identity.lineage} resumes"


def is_still_waiting(state: str | None, stored: Any, identity: TaskInstanceIdentity) -> bool:
    """Return whether the Airflow task of *identity* still wants its Qarnot tasks.

    Between two deferrals the same try is queued and runs on a worker, to submit more. A task that was cleared while it
    was deferred is queued, too. It keeps the XComs of the previous try until its new try starts.

    :param state: current state of the Airflow task, or None if it was cleared or removed.
    :param stored: its XCom :data:`TASKS_KEY`.
    """
    if state in ("queued", "scheduled"):
        return bool(stored == resuming_marker(identity))
    return state in ("deferred", "running") and stored in (identity.lineage, resuming_marker(identity))


def record_end(progress: FanOutProgress, task: Task) -> None:
    """Record *task* in *progress* if it is pending there and has ended."""
    numbers = index_and_generation(task.shortname)
    if numbers is not None and states.task_phase(task.state) is states.Phase.TERMINAL:
        progress.ended(numbers, success=states.parse_task_state(task.state) is states.TaskState.SUCCESS)


def poll_lineage(tasks: TaskResource, lineage: str) -> list[Task]:
    """Return all Qarnot tasks of *lineage*, with the fields that :func:`record_end` needs."""
    return tasks.search_all(filters.equal("Tags", LINEAGE_TAG + lineage), fields=POLL_FIELDS)
