"""Wait for a Qarnot task."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, cast

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot, Usability, usability_of
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.termination import end, later_than
from airflow_qarnot_pool.ownership.xcoms import TASK_KEY
from airflow_qarnot_pool.triggers.base import QarnotTrigger, own_xcom, task_state
from airflow_qarnot_pool.triggers.log_follower import LogFollower
from airflow_qarnot_pool.waiting.array_progress import ArrayProgress
from airflow_qarnot_pool.waiting.conditions import WaitResult
from airflow_qarnot_pool.waiting.intervals import steady_interval
from airflow_qarnot_pool.waiting.polling import get_confirmed

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task


class QarnotTaskTrigger(QarnotTrigger):
    """Wait for a Qarnot task. A kill of the Airflow task aborts it.

    :param follow_logs: argument of :class:`~airflow_qarnot_pool.triggers.log_follower.LogFollower`, which follows the
        output. None to follow none.
    :param array: ``ArrayProgress.to_json()`` of an array, whose progress is logged.
    """

    kind = "task"

    def __init__(
        self, *, follow_logs: dict[str, Any] | None = None, array: dict[str, int] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.follow_logs = follow_logs
        self.array = array
        self._progress = None if array is None else ArrayProgress.from_json(array)
        self._follower: LogFollower | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the keyword arguments, from which Airflow makes the trigger again."""
        path, kwargs = super().serialize()
        own = {"follow_logs": self.follow_logs, "array": self.array}
        return path, kwargs | {name: value for name, value in own.items() if value}

    def _wait(self) -> Coroutine[Any, Any, WaitResult]:
        # A wait that follows no output needs no second coroutine. Thousands of them may be open.
        return super()._wait() if self.follow_logs is None else self._wait_and_follow(self.follow_logs)

    async def _wait_and_follow(self, follow_logs: dict[str, Any]) -> WaitResult:
        try:
            follower = self._follower = LogFollower(
                self.qarnot_conn_id,
                follow_logs,
                steady_interval(self.poll_interval),
                self.identity,
                self.log,
            )
        except QarnotError as error:
            self.log.warning("%s The output is written when the Qarnot task is done", error)
            return await super()._wait()
        following = asyncio.create_task(follower.follow())
        try:
            outcome = await super()._wait()
        finally:
            await follower.stop(following)
        # The operator writes the rest of the output when it resumes.
        outcome.resume_state["output"] = follower.to_json()
        return outcome

    @property
    def _polls_early(self) -> bool:
        return self.follow_logs is not None  # the output is read once the Qarnot task runs

    @property
    def _counts_instances(self) -> bool:
        return self._progress is not None

    def _on_poll(self, snapshot: Pool | Task) -> None:
        if self._follower is not None and states.task_phase(snapshot.state) is not states.Phase.TRANSIENT:
            self._follower.mark_running()
        if self._progress is not None and (
            line := self._progress.line(cast("Task", snapshot), time.monotonic())
        ):
            self.log.info("%s", line)

    async def _end_if_abandoned(self, identity: TaskInstanceIdentity) -> None:
        task = await self._request(lambda client: get_confirmed(client.tasks, self.uuid))
        if usability_of(task) is not Usability.LIVE or RemoteSnapshot.of(task).is_later_than(identity):
            return
        state = await task_state(identity)
        if state == "deferred" and await own_xcom(identity, TASK_KEY) == self.uuid:
            self.log.info("Qarnot task %s keeps running: its Airflow task still waits for it", self.uuid)
            return
        await self._request(lambda client: end(client.tasks, self.uuid, later_than(identity)))
        self.log.info("Aborted Qarnot task %s: its Airflow task is %s", self.uuid, state or "cleared")
