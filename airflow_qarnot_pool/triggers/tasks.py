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

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.tasks import TaskResource
    from airflow_qarnot_pool.triggers.poller import Subscriber

log = logging.getLogger(__name__)

#: Maximum seconds between two looks for what vanished, which no change tells.
MAX_CHECK_INTERVAL = 120.0
#: The same as a number of poll intervals; fewer near a quota, as finished items are deleted there.
CHECK_ROUNDS, CHECK_ROUNDS_NEAR_QUOTA = 24, 3
#: Seconds between two lines of progress.
REPORT_INTERVAL = 10.0
POLL_FIELDS = ("Uuid", "Shortname", "State", "PoolUuid")


class QarnotTasksTrigger(QarnotTrigger):
    """Wait until no more than ``low_water`` of the pending Qarnot tasks of a lineage are unfinished.

    ``uuid`` is the lineage here; ``condition`` is ``{"expected": how many there are, "low_water": n}``. Which are
    pending is in ``resume_state`` (:class:`~airflow_qarnot_pool.ownership.fan_out.FanOutProgress`).
    """

    kind = "task"

    async def _wait(self) -> WaitResult:
        memory, low_water = (
            FanOutProgress.from_resume_state(self.resume_state),
            int(self.condition["low_water"]),
        )
        ending, message, error_name = EndReason.ERROR, "", None
        try:
            async with subscribe(
                self.qarnot_conn_id,
                self.kind,
                LINEAGE_TAG + self.uuid,
                is_tag=True,
                interval=self.poll_interval,
            ) as subscriber:
                with PoolEnds(self.qarnot_conn_id, self.pools, subscriber, self.poll_interval):
                    await self._watch(subscriber, memory, low_water)
                ending = EndReason.MET
        except QarnotPoolEndedError as error:
            ending, message = (
                EndReason.IMPOSSIBLE,
                f"Qarnot tasks stay queued, and {error.message}, so they never run",
            )
        except TimeoutError:
            ending = EndReason.TIMEOUT
            message = (
                f"{len(memory.pending)} of {self.condition.get('expected')} Qarnot tasks did not end in time"
            )
        except QarnotError as error:
            message, error_name = str(error), type(error).__name__
        resume_state = {**self.resume_state, **memory.to_resume_state()}
        if error_name:
            resume_state["error"] = error_name
        await self._note_resuming()
        return WaitResult(ending=ending, uuid=self.uuid, message=message, resume_state=resume_state)

    async def _watch(self, subscriber: Subscriber, memory: FanOutProgress, low_water: int) -> None:
        """Note who ends, until few enough are left, or one is not there any more: the operator judges that.

        :raises TimeoutError: the deadline is over.
        :raises QarnotPoolEndedError: some stay queued on a pool that has ended.
        """
        clock = asyncio.get_running_loop().time
        rounds = CHECK_ROUNDS_NEAR_QUOTA if self.resume_state.get("met_quota") else CHECK_ROUNDS
        check_after = min(MAX_CHECK_INTERVAL, rounds * self.poll_interval)
        told, check_at = clock(), clock() + check_after
        while len(memory.pending) > low_water:
            left = [max(0.0, check_at - clock())]
            if (until_deadline := self._seconds_left()) is not None:
                left.append(until_deadline)
            try:
                record_end(memory, await subscriber.next(min(left)))  # type: ignore[arg-type]
            except QarnotPoolEndedError as error:
                if await self._some_are_queued(error.ref):
                    raise
            except TimeoutError:
                if self.deadline is not None and not self._seconds_left():
                    raise
                if await self._some_vanished(memory):
                    return
                check_at = clock() + check_after
            if clock() - told >= REPORT_INTERVAL or len(memory.pending) <= low_water:
                told = clock()
                done, failed = len(memory.succeeded) + len(memory.failed), len(memory.failed)
                self.log.info("%d done (%d failed), %d unfinished", done, failed, len(memory.pending))

    async def _look_at_all(self) -> list[Task] | None:
        tagged = filters.equal("Tags", LINEAGE_TAG + self.uuid)
        try:
            found: list[Task] = await self._request(lambda client: poll_all(client.tasks, tagged))
        except QarnotError as error:
            self.log.info("Could not look whether all Qarnot tasks are still there: %s", error)
            return None
        return found

    async def _some_are_queued(self, pool: str | None) -> bool:
        found = await self._look_at_all() or ()
        return any(look.pool == pool and is_queued(look.state) for look in found)

    async def _some_vanished(self, memory: FanOutProgress) -> bool:
        found = await self._look_at_all()
        if found is None:
            return False
        for look in found:
            record_end(memory, look)
        return bool(memory.pending - {index_and_generation(look.shortname) for look in found})

    async def _note_resuming(self) -> None:
        """Store that the wait is over: a queued Airflow task resumes then, and was not cleared.

        A triggerer that was frozen meanwhile reads it. The operator stores the bare lineage when it runs again.
        """
        if self.identity is None:
            return
        try:
            await store_xcom(self.identity, TASKS_KEY, resuming_marker(self.identity))
        except Exception as error:  # of Airflow's; only a triggerer that was frozen would miss it
            log.debug("Airflow did not store that the wait for the Qarnot tasks is over: %s", error)

    async def _end_if_abandoned(self, identity: TaskInstanceIdentity) -> None:
        state = await task_state(identity)
        if is_still_waiting(state, await own_xcom(identity, TASKS_KEY), identity):
            self.log.info("The Qarnot tasks keep running: their Airflow task is %s", state)
            return
        ended = await self._request(lambda client: end_lineage(client.tasks, identity))
        if ended is None:
            self.log.info("The Qarnot tasks keep running: a later try of their Airflow task has them")
        else:
            self.log.info("Aborted %d Qarnot tasks: their Airflow task is %s", len(ended), state or "cleared")


def resuming_marker(identity: TaskInstanceIdentity) -> str:
    """Return the XCom of an Airflow task whose wait is over, and which has not run since."""
    return f"{identity.lineage} resumes"


def is_still_waiting(state: str | None, stored: Any, identity: TaskInstanceIdentity) -> bool:
    """Return whether the Airflow task of *identity* still wants its Qarnot tasks.

    Between two deferrals the same try is queued and runs on a worker, to submit more. A task that was cleared while
    deferred is queued, too, with the XComs of the try before until its new try starts.

    :param state: of the Airflow task now; None for one that is cleared or removed.
    :param stored: its XCom :data:`TASKS_KEY`.
    """
    if state in ("queued", "scheduled"):
        return bool(stored == resuming_marker(identity))
    return state in ("deferred", "running") and stored in (identity.lineage, resuming_marker(identity))


def record_end(memory: FanOutProgress, look: Task) -> None:
    """Note in *memory* what *look* shows, where it is the end of a pending one."""
    numbers = index_and_generation(look.shortname)
    if numbers is not None and states.task_phase(look.state) is states.Phase.TERMINAL:
        memory.ended(numbers, success=states.parse_task_state(look.state) is states.TaskState.SUCCESS)


def poll_all(tasks: TaskResource, tagged: filters.Filter) -> list[Task]:
    """Every Qarnot task that *tagged* matches, with the fields that :func:`record_end` needs."""
    return tasks.search_all(tagged, fields=POLL_FIELDS)
