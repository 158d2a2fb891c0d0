"""Life of pools, from creation to deletion (Qarnot API: qarnot-api.md 3.1, 4.1, 5.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local.backend import states
from airflow_qarnot_pool.local.backend.billing import BillingMeter
from airflow_qarnot_pool.local.backend.models import Pool, Task
from airflow_qarnot_pool.local.backend.scaling import Policy
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.schemas import requests
from airflow_qarnot_pool.local.schemas import scaling as scaling_module
from airflow_qarnot_pool.local.schemas.errors import ApiError, invalid
from airflow_qarnot_pool.local.schemas.fields import MAX_POOL_CONSTANTS, RequestFields, keep_secrets

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.context import Context

CANCELLED_ERROR = {
    "code": "GHX0782I",
    "message": "The task was cancelled",
    "debug": "The task was cancelled: The task was cancelled",
}


class Pools:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.store: Store[Pool] = Store(context.shown_time, context.note)

    def find(self, key: str) -> Pool:
        """Return the pool with this uuid or shortname. Raises ApiError 404."""
        return self._context.find("pool", self.store, key)

    # ---- creation ----

    def create(self, creation: requests.PoolCreation) -> Pool:
        """Create a pool. Raises ApiError 400 (shortname taken), 402 (no credit), 403 (limit reached)."""
        context, now = self._context, self._context.now
        context.check_shortname("pool", self.store, creation.shortname)
        if context.credits_left() <= 0:
            raise ApiError(402, "Not enough credits")
        self._check_limits(creation)
        uuid, seq = context.identity()
        pool = Pool(
            uuid=uuid,
            seq=seq,
            name=creation.name,
            shortname=creation.shortname or uuid,
            created=now,
            state=states.SUBMITTED,
            tags=creation.tags,
            constants=creation.constants,
            spec=creation.spec,
            time_to_live=creation.time_to_live,
            auto_delete=creation.auto_delete,
            profile=creation.profile or "",
            instance_count=creation.instance_count,
            slots_per_node=creation.slots_per_node,
            elastic=creation.elastic,
            scaling=creation.scaling,
            meter=BillingMeter(now),
        )
        self.store.add(pool)
        context.nodes.resize(pool)
        self._settle_later(pool)
        return pool

    def _settle_later(self, pool: Pool) -> None:
        context = self._context
        context.clock.after(context.settings.boot_seconds * 0.25, lambda: context.nodes.settle(pool))

    def _check_limits(self, creation: requests.PoolCreation) -> None:
        limits = self._context.account.limits
        if limits.maxPool is not None and len(self.store) >= limits.maxPool:
            self._make_room()
            if len(self.store) >= limits.maxPool:
                raise ApiError(403, f"Maximum number of pools reached: {limits.maxPool}")
        running = self.running()
        if limits.maxRunningPool is not None and running >= limits.maxRunningPool:
            raise ApiError(403, f"Maximum number of pools reached: {limits.maxRunningPool} running")
        fixed = (
            0 if creation.elastic["isElastic"] or creation.scaling is not None else creation.instance_count
        )
        requested = self._context.requested_instances() + fixed
        if limits.maxInstances is not None and requested > limits.maxInstances:
            raise ApiError(403, f"Maximum number of instances reached: {limits.maxInstances}")

    def _make_room(self) -> None:
        """Delete the oldest finished pool that allows it."""
        for pool in self.store:
            if pool.auto_delete and pool.state in states.POOL_TERMINAL:
                self._remove(pool)
                return

    def running(self) -> int:
        return sum(1 for pool in self.store if pool.is_open)

    # ---- change ----

    def update(self, pool: Pool, body: Any) -> None:
        """Change the constants, tags, elasticProperty and scaling that the body of a PUT has."""
        readings = self._context.readings
        if not pool.is_open and readings.put_on_closed == "ignored":
            return
        if readings.put_on_closed != "changed":
            self._require_open(pool, "update")
        fields = RequestFields(body, "pool")
        self._update_count(pool, fields)
        constants = fields.constants(MAX_POOL_CONSTANTS) if fields.has("constants") else None
        tags = fields.tags(readings.unit_of_limits) if fields.has("tags") else None
        elastic, scaling = _changed_sizing(pool, fields)
        fields.check()
        if constants is not None:
            pool.constants = keep_secrets(constants, pool.constants)
        elif readings.put_absent_keys == "reset":
            pool.constants = {}
        if tags is not None:
            self.store.retag(pool, tags)
        self._context.note(pool)
        if pool.is_open:
            self._rescale(pool, elastic, scaling)

    def _update_count(self, pool: Pool, fields: RequestFields) -> None:
        """Ignore instanceCount, or handle it as the reading says."""
        reading = self._context.readings.put_instance_count
        if reading == "refused" and fields.has("instanceCount"):
            fields.wrong("instanceCount")
        elif reading == "applied":
            pool.instance_count = fields.integer("instanceCount") or pool.instance_count

    def set_scaling(self, pool: Pool, body: Any) -> None:
        """Change the scaling (PUT /pools/{u}/scaling)."""
        self._require_open(pool, "scaling update")
        policies, problems = scaling_module.read_scaling(body)
        if problems:
            raise ApiError(400, "One or more validation errors occurred.", problems)
        if pool.elastic["isElastic"]:
            raise invalid("pool", ["elasticProperty-scaling-exclusive"])
        self._rescale(pool, pool.elastic, policies)

    def _rescale(self, pool: Pool, elastic: dict[str, Any], scaling: list[Policy] | None) -> None:
        pool.modified = self._context.now
        scaling = scaling or None  # an empty list is no scaling
        if (elastic, scaling) != (pool.elastic, pool.scaling):
            pool.elastic, pool.scaling = elastic, scaling
            pool.grow_after = 0.0
        self._context.nodes.resize(pool)
        self._context.nodes.refresh(pool)
        self._context.note(pool)

    def _require_open(self, pool: Pool, action: str) -> None:
        if not pool.is_open:
            raise ApiError(403, f"Action forbidden: {action} of a pool that is {pool.state}")

    # ---- end ----

    def close(self, pool: Pool) -> None:
        """Close a pool. Raises ApiError 403 if it is not open."""
        if not pool.is_open and self._context.readings.close_again == "200":
            return
        self._require_open(pool, "close")
        self._shut(pool, states.CLOSING)

    def fail(self, pool: Pool, code: str, message: str) -> None:
        """End a pool in error."""
        if pool.is_open:
            pool.errors.append({"code": code, "message": message, "debug": message})
            self._shut(pool, states.FAILURE)

    def delete(self, pool: Pool) -> None:
        """Delete a pool at once if it has finished, or close it and delete it when its processes have ended."""
        if pool.state in states.POOL_TERMINAL and not pool.running:
            self._remove(pool)
        elif pool.state != states.PENDING_DELETE:
            self._shut(pool, states.PENDING_DELETE)

    def _shut(self, pool: Pool, state: str) -> None:
        context = self._context
        self.store.move(pool, state, context.now)
        if pool.resize_timer is not None:
            pool.resize_timer.cancel()
        if context.readings.job_without_tasks == "the pool closes, the job goes":
            for job in [job for job in context.jobs.store if job.pool is pool and not job.tasks]:
                context.jobs.store.remove(job)
        cancelled = self._tasks_to_cancel(pool)
        if cancelled:
            pool.errors.append(CANCELLED_ERROR)
        for task in cancelled:
            context.tasks.cancel(task, CANCELLED_ERROR)
        if pool.close_timer is None:
            pool.close_timer = context.clock.after(
                context.settings.close_seconds, lambda: self._closing(pool)
            )

    def _tasks_to_cancel(self, pool: Pool) -> list[Task]:
        """Return the tasks that the end of the pool cancels."""
        unfinished = [task for task in pool.tasks.values() if not task.is_finished]
        if self._context.readings.queued_at_close == "queued ones stay":
            return [task for task in unfinished if task.state not in states.QUEUED]
        return unfinished

    def _closing(self, pool: Pool) -> None:
        pool.close_timer = None
        self.try_finish(pool)

    def try_finish(self, pool: Pool) -> None:
        """Finish a pool that closes, once its minimum time has passed and none of its instances runs."""
        if pool.is_open or pool.close_timer is not None or pool.running:
            return
        now = self._context.now
        for node in list(pool.nodes.values()):
            self._context.nodes.drop(node)
        if pool.state == states.PENDING_DELETE:
            self._remove(pool)
            return
        if pool.state == states.CLOSING:
            self.store.move(pool, states.CLOSED, now)
        if pool.ended is None:
            pool.ended = now
            self._context.note(pool)
            self._expire_later(pool)

    def _expire_later(self, pool: Pool) -> None:
        if pool.time_to_live and pool.ended is not None:
            self._context.clock.at(pool.ended + pool.time_to_live, lambda: self._expire(pool))

    def _expire(self, pool: Pool) -> None:
        if pool.state in states.POOL_TERMINAL:
            self._remove(pool)

    def _remove(self, pool: Pool) -> None:
        for node in list(pool.nodes.values()):
            self._context.nodes.drop(node)
        self.store.remove(pool)
        self._context.account.bill_deleted(pool.uuid, pool.meter.credits(self._context.now))
        self._context.forget_output(pool)

    # ---- restart ----

    def resume(self, pool: Pool, close_at: float | None) -> None:
        """Continue with a pool whose nodes were all lost, after its tasks.

        :param close_at: earliest end of a pool that closes, or None.
        """
        context = self._context
        if pool.is_open:
            if not pool.settled:
                self._settle_later(pool)
            context.nodes.resize(pool)
            context.nodes.refresh(pool)
        elif pool.ended is None:
            due = max(context.now, close_at or 0.0)
            pool.close_timer = context.clock.at(due, lambda: self._closing(pool))
        else:
            self._expire_later(pool)


def _changed_sizing(pool: Pool, fields: RequestFields) -> tuple[dict[str, Any], list[Policy] | None]:
    """Return elasticProperty and scaling, of which only one may be used, after the change of *fields*."""
    elastic, scaling = pool.elastic, pool.scaling
    if fields.has("elasticProperty"):
        changed = scaling_module.read_elastic(fields.raw("elasticProperty"), pool.elastic)
        if changed is None:
            fields.wrong("elasticProperty")
        else:
            elastic = changed
    if fields.has("scaling"):
        scaling, problems = scaling_module.read_scaling(fields.raw("scaling"))
        if problems:
            fields.wrong("scaling")
    if scaling and elastic["isElastic"]:
        fields.wrong("elasticProperty-scaling-exclusive")
    return elastic, scaling
