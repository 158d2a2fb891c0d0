"""Boot the nodes of a pool that cools down by itself, and wait for them.

A managed pool has one scaling policy: no node without demand, the asked size as soon as there is some, and
``keep_warm`` of idleness before a node goes. One Qarnot task, the *warm-up*, is the demand that boots all of
it: as many instances as slots, each asleep until all run or no longer than the boot may take. (Quick no-ops
would all run on the first node to boot; a forgotten sleep ends by itself; a ``Weekly`` floor would come back
every week.)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotQuotaError, QarnotRefusedError
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.operators.bases.pool import PoolOperator
from airflow_qarnot_pool.ownership.identity import WARM_UP_ROLE, with_suffix
from airflow_qarnot_pool.parameters.validation import as_duration, make_pool_spec
from airflow_qarnot_pool.waiting.conditions import (
    COLD,
    Condition,
    EndReason,
    WaitResult,
    result_if_met,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.specs import PoolSpec, Scaling, TaskSpec
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity


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
    def _ready(self, context: Context, outcome: WaitResult) -> str:
        """Goes on with the pool that the wait has ended for; its uuid."""

    def _found_warm(self, claimed: Claim, condition: Condition) -> WaitResult | None:
        """A shared pool may be ready as it is found. What warmed it up may have died before it could end that."""
        if not self.shared or claimed.existing is None or not self._warms_up:
            return None
        from airflow_qarnot_pool.ownership.termination import end_lineage

        if outcome := result_if_met(condition, claimed.existing):
            end_lineage(self.client.tasks, self._warm_up_life(claimed.uuid, condition))
        return outcome

    def _warm_up_life(self, pool: str, condition: Condition) -> TaskInstanceIdentity:
        """Those who share a pool and wait for the same of it share its warm-up: one for each would fill it."""
        assert self._work is not None
        return self._work.identity.for_role(
            f"{WARM_UP_ROLE} of {pool} to {condition}" if self.shared else WARM_UP_ROLE
        )

    def _warm_up_on(self) -> Callable[[str], TaskInstanceIdentity] | None:
        def life_on(pool: str) -> TaskInstanceIdentity:
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
    ) -> WaitResult:
        """Boot the nodes where nothing else does, and wait."""
        resume_state: dict[str, Any] = {"closed": closed}
        deadline = deadline or self._deadline(context)
        if self._warms_up:
            size = make_pool_spec({**values, "name": spec.name}).instance_count or 1
            try:
                submit = partial(self._submit_warm_up, context, spec, uuid, size, condition)
                resume_state["warm_up"] = submit()
                if self.shared:
                    self._keep_warming = partial(self._replace_warm_up, resume_state, submit)
            except QarnotRefusedError:
                now = self.client.pools.find(uuid) if self.shared else None
                if now is None or states.accepts_tasks(now.state):
                    raise
                resume_state["deadline"] = deadline.isoformat() if deadline else None
                return WaitResult(
                    ending=EndReason.IMPOSSIBLE, uuid=uuid, state=now.state, resume_state=resume_state
                )
        return self._wait(uuid, condition, deadline, resume_state)

    def _replace_warm_up(self, resume_state: dict[str, Any], submit: Callable[[], str]) -> None:
        """Start the shared warm-up again if another task ended it: nothing else boots the nodes."""
        found = self.client.tasks.find(resume_state["warm_up"])
        if found is None or states.is_terminal(found.state):
            self.log.info("The warm-up ended before the pool was ready; starting it again")
            resume_state["warm_up"] = submit()

    def _warm_again(self, context: Context, outcome: WaitResult) -> WaitResult:
        """Look at a pool whose warm-up ended early, and warm it up once more unless that decides the wait."""
        values = self._given()
        condition = self._condition(values)
        assert condition is not None
        limit = outcome.resume_state.get("deadline")
        resume_state = {name: value for name, value in outcome.resume_state.items() if name != COLD}
        if done := result_if_met(condition, self.client.pools.get(outcome.uuid)):
            return replace(done, uuid=outcome.uuid, resume_state=resume_state)
        self.log.info(
            "The warm-up of pool %s ended before the pool was ready; starting it again", outcome.uuid
        )
        deadline = parse_stored_time(limit) if limit else None
        closed = int(resume_state.get("closed") or 0)
        return self._warm(context, values, self._spec(values), condition, outcome.uuid, deadline, closed)

    def warm_up_with_room(self, context: Context, event: Mapping[str, Any]) -> str:
        """Go on with a pool whose warm-up had to wait for room under the account's quota of tasks."""
        outcome = self._resumed(context, event)
        with self._closing_on_error():
            self._quota_deadline = parse_stored_time(outcome.resume_state["room_until"])
            values = self._given()
            condition = self._condition(values)
            assert condition is not None
            warmed = self._warm(context, values, self._spec(values), condition, outcome.uuid)
            return self._ready(context, warmed)

    def _deadline(self, context: Context) -> datetime | None:
        deadline = super()._deadline(context)
        if deadline is None and self._warms_up:
            # The warm-up is over by then, and nothing boots nodes any more.
            return datetime.now(UTC) + BOOT_DEADLINE
        return deadline

    def _closing_on_error(self) -> AbstractContextManager[None]:
        """A pool that does not become ready is closed: nobody will use it, and a failed setup has no teardown."""
        return self._ending_on_error("it did not become ready")

    def _submit_warm_up(
        self, context: Context, spec: PoolSpec, pool: str, size: int, condition: Condition
    ) -> str:
        from airflow_qarnot_pool.ownership.claim import ClaimRequest, claim

        assert self._work is not None
        killed = self._work.killed
        task = warm_up(spec.name, pool, size, as_duration("wait_timeout", self.wait_timeout))
        while True:
            try:
                identity = self._warm_up_life(pool, condition)
                create = self._room(identity).wrap_create("task", self.client.tasks.create_once)
                request = ClaimRequest(
                    resource=self.client.tasks,
                    spec=task,
                    identity=identity,
                    pause=killed.wait,
                    create=create,
                )
                return claim(request).uuid
            except QarnotQuotaError as error:
                self._wait_for_room(context, error, killed)

    def _room_trigger(
        self, interval: float, deadline: str, resume_state: dict[str, Any] | None
    ) -> tuple[Any, str]:
        if self._work is None or self._work.uuid is None:
            return super()._room_trigger(interval, deadline, resume_state)
        from airflow_qarnot_pool.triggers.quota import QarnotWarmUpRoomTrigger

        trigger = QarnotWarmUpRoomTrigger(
            qarnot_conn_id=self.qarnot_conn_id,
            uuid=self._work.uuid,
            condition={},
            poll_interval=interval,
            deadline=deadline,
            identity=self._work.identity.to_kwargs(),
            cancel_on_kill=self.cancel_on_kill,
        )
        return trigger, "warm_up_with_room"

    def _end_warm_up(self, pool: str, uuid: str | None) -> None:
        """Free the slots. A pool that is ready is not closed because that fails: the sleep ends by itself.

        *uuid* is None if Airflow gave up the trigger that carried it.
        """
        from airflow_qarnot_pool.ownership.termination import end, end_lineage

        try:
            if uuid is not None:
                end(self.client.tasks, uuid)
            else:
                end_lineage(self.client.tasks, self._warm_up_life(pool, self._awaited()))
        except QarnotError as error:
            self.log.warning(
                "The pool is ready, but its warm-up, Qarnot task %s, could not be aborted and holds the slots "
                "until it ends by itself; abort it in the console if Qarnot tasks stay queued: %s",
                uuid or f"of pool {pool}",
                error,
            )


#: Longest that the nodes of a warm-up may take to boot, unless ``wait_timeout`` is shorter.
BOOT_DEADLINE = timedelta(minutes=30)


def cooling_down(size: int, keep_warm: timedelta) -> Scaling:
    """The scaling of a managed pool of *size* slots."""
    from airflow_qarnot_pool.api.specs import ManagedTasksQueuePolicy, Scaling

    return Scaling(
        policies=[
            ManagedTasksQueuePolicy(
                name="keep-warm",
                min_total_slots=0,
                max_total_slots=size,
                min_idle_slots=0,
                min_idle_time=keep_warm,
                scaling_factor=1,
            )
        ]
    )


def warm_up(name: str, pool: str, size: int, limit: timedelta | None) -> TaskSpec:
    """The Qarnot task whose demand boots all of *pool*."""
    from airflow_qarnot_pool.api.specs import TaskSpec

    longest = min(limit or BOOT_DEADLINE, BOOT_DEADLINE)
    return TaskSpec(
        name=with_suffix(name, " (warm-up)"),
        pool=pool,
        instance_count=size,
        command=f"sleep {max(1, int(longest.total_seconds()))}",
    )
