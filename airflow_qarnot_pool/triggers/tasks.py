"""Wait for many Qarnot tasks of one Airflow task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotError
from airflow_qarnot_pool.claim import end_life
from airflow_qarnot_pool.conditions import Ending, Outcome
from airflow_qarnot_pool.identity import LINEAGE_TAG, Life
from airflow_qarnot_pool.triggers.base import QarnotTrigger, own_xcom, task_state
from airflow_qarnot_pool.triggers.keys import TASKS_KEY
from airflow_qarnot_pool.triggers.poller import watch

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.triggers.poller import Waiter

#: Seconds after which the operator looks for itself, in case something vanished.
CHECK_AFTER = 900.0
#: Seconds between two lines of progress.
REPORT_EVERY = 10.0


class QarnotTasksTrigger(QarnotTrigger):
    """Wait until no more than ``low_water`` of the Qarnot tasks of a lineage are unfinished.

    ``uuid`` is the lineage here; ``condition`` is ``{"expected": how many there are, "low_water": n}``.
    """

    kind = "task"

    async def _wait(self) -> Outcome:
        expected, low_water = int(self.condition["expected"]), int(self.condition["low_water"])
        finished: dict[str, str] = {}
        ending, message, carry = Ending.ERROR, "", dict(self.carry)
        check_at = asyncio.get_running_loop().time() + CHECK_AFTER
        try:
            async with watch(
                self.qarnot_conn_id,
                self.kind,
                LINEAGE_TAG + self.uuid,
                is_tag=True,
                interval=self.poll_interval,
            ) as waiter:
                await self._watch(waiter, expected - low_water, finished, check_at)
                ending = Ending.MET
        except TimeoutError:
            late = self.deadline is not None and not self._seconds_left()
            ending = Ending.TIMEOUT if late else Ending.MET
            message = (
                f"{expected - len(finished)} of {expected} Qarnot tasks did not end in time" if late else ""
            )
        except QarnotError as error:
            message, carry["error"] = str(error), type(error).__name__
        return Outcome(ending=ending, uuid=self.uuid, message=message, carry=carry)

    async def _watch(self, waiter: Waiter, enough: int, finished: dict[str, str], check_at: float) -> None:
        clock: Callable[[], float] = asyncio.get_running_loop().time
        told = clock()
        running: set[str] = set()
        while len(finished) < enough:
            left = [max(0.0, check_at - clock())]
            if (until_deadline := self._seconds_left()) is not None:
                left.append(until_deadline)
            look: Task = await waiter.next(min(left))  # type: ignore[assignment]
            phase = states.task_phase(look.state)
            running.discard(look.uuid)
            if phase is states.Phase.TERMINAL:
                finished[look.uuid] = look.state
            elif phase is states.Phase.LIVE:
                running.add(look.uuid)
            if clock() - told >= REPORT_EVERY or len(finished) >= enough:
                told = clock()
                failed = sum(state != states.TaskState.SUCCESS for state in finished.values())
                self.log.info("%d done (%d failed), %d running", len(finished), failed, len(running))

    async def _end_if_abandoned(self, life: Life) -> None:
        state = await task_state(life)
        # Between two deferrals the same try runs on a worker, to submit more.
        if state in ("deferred", "running", "queued", "scheduled") and (
            await own_xcom(life, TASKS_KEY) == life.lineage
        ):
            self.log.info("The Qarnot tasks go on: their Airflow task is %s", state)
            return
        ended = await self._ask(lambda client: end_life(client.tasks, life))
        self.log.info("Aborted %d Qarnot tasks: their Airflow task is %s", len(ended), state or "cleared")
