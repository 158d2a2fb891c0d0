"""Wait for a pool."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotDeletedError
from airflow_qarnot_pool.ownership.claim import is_taken_over
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.ownership.liveness import is_still_wanted
from airflow_qarnot_pool.ownership.shared_pool import release
from airflow_qarnot_pool.ownership.termination import end, later_than
from airflow_qarnot_pool.triggers.base import QarnotTrigger, task_state
from airflow_qarnot_pool.triggers.poller import subscribe
from airflow_qarnot_pool.waiting.conditions import COLD, EndReason, WaitResult
from airflow_qarnot_pool.waiting.intervals import steady_interval


class QarnotPoolTrigger(QarnotTrigger):
    """Wait for a pool. A kill of the Airflow task that creates the pool closes it, unless others share it."""

    kind = "pool"

    def _wait(self) -> Coroutine[Any, Any, WaitResult]:
        warm_up = self.resume_state.get("warm_up")
        return self._wait_and_end(warm_up) if warm_up else super()._wait()

    async def _wait_and_end(self, warm_up: str) -> WaitResult:
        """Wait, and end the warm-up of a pool that is ready.

        It holds the nodes, and Airflow may skip the setup and the teardown while the setup waits for a worker.
        """
        shared = self.identity is not None and self.identity.shared
        outcome = await (self._wait_while_warmed(warm_up) if shared else super()._wait())
        if outcome.ending is EndReason.MET and COLD not in outcome.resume_state:
            try:
                await self._request(lambda client: end(client.tasks, warm_up))
            except Exception as error:  # of Airflow or Qarnot; the resumed task tries it, too
                self.log.info("The warm-up %s of pool %s could not be ended: %s", warm_up, self.uuid, error)
            else:
                del outcome.resume_state["warm_up"]
        return outcome

    async def _wait_while_warmed(self, warm_up: str) -> WaitResult:
        """Wait for a shared pool, and resume if its warm-up ends first, because nothing boots its nodes then.

        The warm-up ends with any of the Airflow tasks that wait for it, if that task is killed or done.
        """
        wait = asyncio.ensure_future(super()._wait())
        cold = asyncio.ensure_future(self._ended(warm_up))
        try:
            await asyncio.wait((wait, cold), return_when=asyncio.FIRST_COMPLETED)
            grace = 2 * steady_interval(self.poll_interval)
            if not wait.done() and not cold.exception():
                # Another task may have seen earlier that the pool is ready or closed.
                await asyncio.wait((wait,), timeout=grace)
            seconds_left = self._seconds_left()
            if wait.done() or cold.exception() or (seconds_left is not None and seconds_left <= grace):
                return await wait
            return WaitResult(
                ending=EndReason.MET, uuid=self.uuid, resume_state={**self.resume_state, COLD: True}
            )
        finally:
            wait.cancel()
            cold.cancel()
            await asyncio.gather(wait, cold, return_exceptions=True)

    async def _ended(self, warm_up: str) -> None:
        """Return when the Qarnot task *warm_up* has ended."""
        try:
            interval = steady_interval(self.poll_interval)
            async with subscribe(
                self.qarnot_conn_id, "task", warm_up, interval=interval, follows_age=False
            ) as subscriber:
                while not states.is_terminal((await subscriber.next(None)).state):
                    pass
        except QarnotDeletedError:
            return

    async def _end_if_abandoned(self, identity: TaskInstanceIdentity) -> None:
        state = await task_state(identity)
        if is_still_wanted("pool", state):
            self.log.info("Pool %s stays open: its Airflow task is %s", self.uuid, state)
            return
        if identity.shared:
            await self._request(lambda client: release(client, identity, opened_by=(identity.task_id,)))
            await self._end_warm_up(identity)
            return
        if await self._request(lambda client: is_taken_over(client.pools, identity, self.uuid)):
            self.log.info("Pool %s stays open: a later try of its Airflow task uses it", self.uuid)
            return
        await self._request(lambda client: end(client.pools, self.uuid, later_than(identity)))
        await self._end_warm_up(identity)
        self.log.info("Closed pool %s: its Airflow task is %s", self.uuid, state or "cleared")

    async def _end_warm_up(self, identity: TaskInstanceIdentity) -> None:
        """End the warm-up: other runs need the slots of a shared pool, and one that is closed may keep it queued."""
        if warm_up := self.resume_state.get("warm_up"):
            await self._request(lambda client: end(client.tasks, warm_up, later_than(identity)))
