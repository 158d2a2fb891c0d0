"""Wait for a pool."""

from __future__ import annotations

from airflow_qarnot_pool.claim import end, is_taken_over
from airflow_qarnot_pool.identity import Life
from airflow_qarnot_pool.shared import release
from airflow_qarnot_pool.triggers.base import QarnotTrigger, task_state
from airflow_qarnot_pool.wanted import goes_on


class QarnotPoolTrigger(QarnotTrigger):
    """Wait for a pool; a kill of the Airflow task that makes it closes it, unless others share it."""

    kind = "pool"

    async def _end_if_abandoned(self, life: Life) -> None:
        state = await task_state(life)
        if goes_on("pool", state):
            self.log.info("Pool %s stays open: its Airflow task is %s", self.uuid, state)
            return
        if life.shared:
            await self._ask(lambda client: release(client, life, by=(life.task_id,)))
            return
        if await self._ask(lambda client: is_taken_over(client.pools, life, self.uuid)):
            self.log.info("Pool %s stays open: a later try of its Airflow task has taken it over", self.uuid)
            return
        await self._ask(lambda client: end(client.pools, self.uuid))
        self.log.info("Closed pool %s: its Airflow task is %s", self.uuid, state or "cleared")
