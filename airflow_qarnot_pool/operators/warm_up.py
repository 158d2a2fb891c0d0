"""Boot the nodes of a pool that cools down by itself, and wait for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotQuotaError, QarnotRefusedError
from airflow_qarnot_pool.api.limits import stored_moment
from airflow_qarnot_pool.conditions import Condition, Ending, Outcome, concluded
from airflow_qarnot_pool.operators.parameters import as_duration, pool_spec
from airflow_qarnot_pool.operators.pool_base import PoolOperator
from airflow_qarnot_pool.warmth import COLD

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.claim import Claim
    from airflow_qarnot_pool.identity import Life


class WarmingOperator(PoolOperator):
    """Base of the operator that makes pools: how one gets warm.

    The warm-up is one Qarnot task with an instance for each slot, which sleeps until all of them run.
    """

    #: Called with each look of a wait on this worker, once there is a warm-up.
    _keep_warming: Callable[[], None] | None = None

    @property
    @abstractmethod
    def _warms_up(self) -> bool:
        """Whether the nodes are booted by a warm-up."""

    @abstractmethod
    def _given(self) -> dict[str, Any]:
        """The parameters, rendered, that are fields of the spec."""

    @abstractmethod
    def _spec(self, values: Mapping[str, Any]) -> PoolSpec:
        """The spec of the pool."""

    @abstractmethod
    def _condition(self, values: Mapping[str, Any]) -> Condition | None:
        """What is waited for; None for nothing."""

    @abstractmethod
    def _ready(self, context: Context, outcome: Outcome) -> str:
        """Goes on with the pool that the wait has ended for; its uuid."""

    def _found_warm(self, claimed: Claim, condition: Condition) -> Outcome | None:
        """A shared pool may be ready as it is found. What warmed it up may have died before it could end that."""
        if not self.shared or claimed.found is None or not self._warms_up:
            return None
        from airflow_qarnot_pool.claim import end_life

        if outcome := concluded(condition, claimed.found):
            end_life(self.client.tasks, self._warm_up_life(claimed.uuid, condition))
        return outcome

    def _warm_up_life(self, pool: str, condition: Condition) -> Life:
        """Those who share a pool and wait for the same of it share its warm-up: one for each would fill it."""
        from airflow_qarnot_pool.warmth import WARM_UP

        assert self._work is not None
        return self._work.life.for_part(f"{WARM_UP} of {pool} to {condition}" if self.shared else WARM_UP)

    def _warm_up_on(self) -> Callable[[str], Life] | None:
        def life_on(pool: str) -> Life:
            condition = self._condition(self._given())
            assert condition is not None
            return self._warm_up_life(pool, condition)

        return life_on if self.shared and self._warms_up and self.wait_for_completion else None

    def _still_waiting(self, uuid: str) -> None:
        super()._still_waiting(uuid)
        if self._keep_warming is not None:
            self._keep_warming()

    def _warm(
        self,
        context: Context,
        values: Mapping[str, Any],
        spec: PoolSpec,
        condition: Condition,
        uuid: str,
        deadline: datetime | None = None,
        closed: int = 0,
    ) -> Outcome:
        """Boot the nodes where nothing else does, and wait."""
        carry: dict[str, Any] = {"closed": closed}
        deadline = deadline or self._deadline(context)
        if self._warms_up:
            size = pool_spec({**values, "name": spec.name}).instance_count or 1
            try:
                submit = partial(self._submit_warm_up, context, spec, uuid, size, condition)
                carry["warm_up"] = submit()
                if self.shared:
                    self._keep_warming = partial(self._replace_warm_up, carry, submit)
            except QarnotRefusedError:
                now = self.client.pools.find(uuid) if self.shared else None
                if now is None or states.accepts_tasks(now.state):
                    raise
                carry["deadline"] = deadline.isoformat() if deadline else None
                return Outcome(ending=Ending.IMPOSSIBLE, uuid=uuid, state=now.state, carry=carry)
        return self._wait(uuid, condition, deadline, carry)

    def _replace_warm_up(self, carry: dict[str, Any], submit: Callable[[], str]) -> None:
        """Start the shared warm-up again if another task ended it: nothing else boots the nodes."""
        found = self.client.tasks.find(carry["warm_up"])
        if found is None or states.is_terminal(found.state):
            self.log.info("The warm-up ended before the pool was ready; starting it again")
            carry["warm_up"] = submit()

    def _warm_again(self, context: Context, outcome: Outcome) -> Outcome:
        """Look at a pool whose warm-up ended early, and warm it up once more unless that decides the wait."""
        values = self._given()
        condition = self._condition(values)
        assert condition is not None
        limit = outcome.carry.get("deadline")
        carry = {name: value for name, value in outcome.carry.items() if name != COLD}
        if done := concluded(condition, self.client.pools.get(outcome.uuid)):
            return replace(done, uuid=outcome.uuid, carry=carry)
        self.log.info(
            "The warm-up of pool %s ended before the pool was ready; starting it again", outcome.uuid
        )
        deadline = stored_moment(limit) if limit else None
        closed = int(carry.get("closed") or 0)
        return self._warm(context, values, self._spec(values), condition, outcome.uuid, deadline, closed)

    def warm_up_with_room(self, context: Context, event: Mapping[str, Any]) -> str:
        """Go on with a pool whose warm-up had to wait for room under the account's quota of tasks."""
        outcome = self._resumed(context, event)
        with self._closing_on_error():
            self._quota_deadline = stored_moment(outcome.carry["room_until"])
            values = self._given()
            condition = self._condition(values)
            assert condition is not None
            warmed = self._warm(context, values, self._spec(values), condition, outcome.uuid)
            return self._ready(context, warmed)

    def _deadline(self, context: Context) -> datetime | None:
        deadline = super()._deadline(context)
        if deadline is None and self._warms_up:
            from airflow_qarnot_pool.warmth import BOOT_DEADLINE

            # The warm-up is over by then, and nothing boots nodes any more.
            return datetime.now(UTC) + BOOT_DEADLINE
        return deadline

    def _closing_on_error(self) -> AbstractContextManager[None]:
        """A pool that does not become ready is closed: nobody will use it, and a failed setup has no teardown."""
        return self._ending_on_error("it did not become ready")

    def _submit_warm_up(
        self, context: Context, spec: PoolSpec, pool: str, size: int, condition: Condition
    ) -> str:
        from airflow_qarnot_pool.claim import claim
        from airflow_qarnot_pool.warmth import warm_up

        assert self._work is not None
        killed = self._work.killed
        task = warm_up(spec.name, pool, size, as_duration("wait_timeout", self.wait_timeout))
        while True:
            try:
                life = self._warm_up_life(pool, condition)
                create = self._room(life).creating("task", self.client.tasks.create_once)
                return claim(self.client.tasks, task, life, pause=killed.wait, create=create).uuid
            except QarnotQuotaError as error:
                self._wait_for_room(context, error, killed)

    def _room_trigger(self, interval: float, deadline: str, carry: dict[str, Any] | None) -> tuple[Any, str]:
        if self._work is None or self._work.uuid is None:
            return super()._room_trigger(interval, deadline, carry)
        from airflow_qarnot_pool.triggers.quota import QarnotWarmUpRoomTrigger

        trigger = QarnotWarmUpRoomTrigger(
            qarnot_conn_id=self.qarnot_conn_id,
            uuid=self._work.uuid,
            condition={},
            poll_interval=interval,
            deadline=deadline,
            life=self._work.life.to_kwargs(),
            cancel_on_kill=self.cancel_on_kill,
        )
        return trigger, "warm_up_with_room"

    def _end_warm_up(self, pool: str, uuid: str | None) -> None:
        """Free the slots. A pool that is ready is not closed because that fails: the sleep ends by itself.

        *uuid* is None if Airflow gave up the trigger that carried it.
        """
        from airflow_qarnot_pool.claim import end, end_life

        try:
            if uuid is not None:
                end(self.client.tasks, uuid)
            else:
                end_life(self.client.tasks, self._warm_up_life(pool, self._awaited()))
        except QarnotError as error:
            self.log.warning(
                "The pool is ready, but its warm-up, Qarnot task %s, could not be aborted and holds the slots "
                "until it ends by itself; abort it in the console if Qarnot tasks stay queued: %s",
                uuid or f"of pool {pool}",
                error,
            )
