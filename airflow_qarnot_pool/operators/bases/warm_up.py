"""Boot the nodes of a pool that scales down when it is idle.

A managed pool has one scaling policy: no node without demand, the requested size as soon as there is some, and
``keep_warm`` of idleness before a node goes. One Qarnot task, the *warm-up*, is the demand that boots all nodes. It has
as many instances as the pool has slots, each of which sleeps until all of them run. (Quick no-ops would all run on the
first node to boot; a ``Weekly`` floor would come back every week.) A forgotten warm-up ends after the time that a boot
may take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotQuotaError
from airflow_qarnot_pool.ownership.identity import WARM_UP_ROLE, with_suffix

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.specs import Scaling, TaskSpec
    from airflow_qarnot_pool.operators.bases.pool import PoolOperator
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.waiting.conditions import Condition

#: Maximum time in which the nodes must boot, unless ``wait_timeout`` is shorter.
BOOT_DEADLINE = timedelta(minutes=30)


@dataclass(frozen=True)
class WarmUpRequest:
    """A warm-up to submit: all slots of a pool, until the condition is met."""

    name: str
    pool: str
    size: int
    condition: Condition


class WarmUp:
    """The warm-up of the pool of a running operator, which submits it, checks it with each poll, and ends it.

    :param per_pool: whether each pool of the operator has its own: it is shared, or may be replaced.
    """

    def __init__(self, operator: PoolOperator, *, per_pool: bool) -> None:
        self._operator, self._per_pool = operator, per_pool
        self._replace: Callable[[], None] | None = None

    def identity(self, pool: str, condition: Condition) -> TaskInstanceIdentity:
        """Return the owner of the warm-up.

        Sharers of a pool that wait for the same condition share its warm-up. One for each of them would fill the pool.
        A pool on the next rung of a ladder has one of its own, because that of the pool before may still be ending.
        """
        role = f"{WARM_UP_ROLE} of {pool} to {condition}" if self._per_pool else WARM_UP_ROLE
        return self._operator._running.identity.for_role(role)

    def start(self, context: Context, request: WarmUpRequest, resume_state: dict[str, Any]) -> None:
        """Submit the warm-up, and store its uuid in *resume_state*."""
        resume_state["warm_up"] = self._submit(context, request)

        def replace_if_ended() -> None:
            """Start a shared warm-up again if another task ended it: nothing else boots the nodes."""
            task = self._operator.client.tasks.find(resume_state["warm_up"])
            if task is None or states.is_terminal(task.state):
                self._operator.log.info("The warm-up ended before the pool was ready; starting it again")
                resume_state["warm_up"] = self._submit(context, request)

        if self._operator.shared:
            self._replace = replace_if_ended

    def on_poll(self) -> None:
        """Check the warm-up with a poll of a wait on this worker."""
        if self._replace is not None:
            self._replace()

    def _submit(self, context: Context, request: WarmUpRequest) -> str:
        from airflow_qarnot_pool.ownership.claim import ClaimRequest, claim

        operator = self._operator
        killed = operator._running.killed
        limit = operator._warm_up_limit(context)
        spec = warm_up(request.name, request.pool, request.size, limit)
        identity = self.identity(request.pool, request.condition)
        tasks = operator.client.tasks
        make_room = operator._make_room(identity, "task")
        claim_request = ClaimRequest(
            resource=tasks, spec=spec, identity=identity, pause=killed.wait, make_room=make_room
        )
        while True:
            try:
                operator._running.warm_up = uuid = claim(claim_request).uuid
                return uuid
            except QarnotQuotaError as error:
                operator._wait_for_room(context, error, killed)

    def end_orphan(self, pool: str, condition: Condition) -> None:
        """End a warm-up whose operator may have died before it could."""
        from airflow_qarnot_pool.ownership.termination import end_lineage

        end_lineage(self._operator.client.tasks, self.identity(pool, condition))

    def end(self, pool: str, uuid: str | None) -> None:
        """Free the slots. If that fails, the pool stays open: the warm-up ends after :data:`BOOT_DEADLINE`.

        :param uuid: of the warm-up; None if Airflow gave up the trigger that carried it.
        """
        from airflow_qarnot_pool.ownership.termination import end

        try:
            if uuid is not None:
                end(self._operator.client.tasks, uuid)
            else:
                self.end_orphan(pool, self._operator._awaited())
        except QarnotError as error:
            self._operator.log.warning(
                "The pool is ready, but its warm-up, Qarnot task %s, could not be aborted and holds the slots "
                "until it ends by itself; abort it in the console if Qarnot tasks stay queued: %s",
                uuid or f"of pool {pool}",
                error,
            )


def scaling_to_zero(size: int, keep_warm: timedelta) -> Scaling:
    """Return the scaling of a managed pool of *size* slots."""
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


def warm_up_name(pool_name: str) -> str:
    """Return the name of the warm-ups of a pool, by which its boots are found later."""
    return with_suffix(pool_name, " (warm-up)")


def warm_up(name: str, pool: str, size: int, limit: timedelta | None) -> TaskSpec:
    """Return the spec of the Qarnot task whose demand boots all of *pool*."""
    from airflow_qarnot_pool.api.specs import TaskSpec

    longest = min(limit or BOOT_DEADLINE, BOOT_DEADLINE)
    return TaskSpec(
        name=warm_up_name(name),
        pool=pool,
        instance_count=size,
        command=f"sleep {max(1, int(longest.total_seconds()))}",
    )
