"""Wait for a Qarnot task."""

from __future__ import annotations

from airflow_qarnot_pool.claim import end
from airflow_qarnot_pool.identity import Fate, Life, fate_of
from airflow_qarnot_pool.triggers.base import QarnotTrigger, own_xcom, task_state
from airflow_qarnot_pool.triggers.keys import TASK_KEY


class QarnotTaskTrigger(QarnotTrigger):
    """Wait for a Qarnot task; a kill of the Airflow task aborts it."""

    kind = "task"

    async def _end_if_abandoned(self, life: Life) -> None:
        look = await self._ask(lambda client: client.tasks.get(self.uuid))
        if fate_of(look) is not Fate.LIVE:
            return
        state = await task_state(life)
        if state == "deferred" and await own_xcom(life, TASK_KEY) == self.uuid:
            self.log.info("Qarnot task %s goes on: its Airflow task still waits for it", self.uuid)
            return
        await self._ask(lambda client: end(client.tasks, self.uuid))
        self.log.info("Aborted Qarnot task %s: its Airflow task is %s", self.uuid, state or "cleared")
