"""Jobs, and tasks that depend on each other (Qarnot API: qarnot-api.md 3.9 and `dependencies` in 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local.backend.models import Dependency, Job, Task
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.schemas.errors import ApiError, invalid, missing
from airflow_qarnot_pool.local.schemas.fields import RequestFields, is_uuid

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.context import Context

ACTIVE, COMPLETED = "Active", "Completed"


class Jobs:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.store: Store[Job] = Store(context.dial)
        self._waiting: dict[str, list[Task]] = {}
        """uuid of a task -> the tasks that wait for it."""

    def find(self, key: str) -> Job:
        """By uuid or shortname. Raises ApiError 404."""
        found = self.store.find(key)
        if found is None:
            raise missing("job", key)
        return found

    def create(self, body: Any) -> Job:
        """Raises ApiError 400, 403 (limit reached)."""
        context, fields = self._context, RequestFields(body, "job")
        name, shortname = fields.text("name", required=True), fields.shortname()
        pool_uuid = fields.text("poolUuid")
        pool = context.pools.store.get(pool_uuid) if pool_uuid and is_uuid(pool_uuid) else None
        if pool_uuid and (pool is None or not pool.is_open):
            fields.wrong("poolUuid")
        if shortname and context.settings.enforce_shortnames and self.store.named(shortname):
            fields.wrong("shortname-uniqueness")
        wall = fields.duration("maxWallTime")
        uuid, seq = context.identity()
        job = Job(
            uuid=uuid,
            seq=seq,
            name=name or "",
            shortname=shortname or uuid,
            created=context.now,
            state=ACTIVE,
            tags=fields.tags(),
            spec={"maxWallTime": fields.text("maxWallTime")},
            time_to_live=fields.duration("completionTimeToLive"),
            auto_delete=bool(fields.boolean("autoDeleteOnCompletion")),
            pool=pool,
            use_dependencies=bool(fields.boolean("useDependencies")),
        )
        fields.check()
        limit = context.account.limits.maxJob
        if limit is not None and len(self.store) >= limit:
            raise ApiError(403, f"Maximum number of jobs reached: {limit}")
        self.store.add(job)
        if wall:
            context.timeline.after(wall, lambda: self.terminate(job))
        return job

    def terminate(self, job: Job) -> None:
        """The tasks of the job are cancelled, and it takes no more."""
        if job.state != ACTIVE:
            return
        self.store.move(job, COMPLETED, self._context.now)
        job.ended = self._context.now
        for task in list(job.tasks.values()):
            self._context.tasks.cancel(task)
        if job.time_to_live:
            self._context.timeline.after(job.time_to_live, lambda: self.store.remove(job))

    def delete(self, job: Job, *, force: bool) -> None:
        """Raises ApiError 403 when it has tasks and `force` is not given."""
        if job.tasks and not force:
            raise ApiError(403, f"Action forbidden: the job has {len(job.tasks)} tasks")
        self.terminate(job)
        for task in list(job.tasks.values()):
            self._context.tasks.delete(task)
        self.store.remove(job)

    # ---- dependencies ----

    def watch(self, task: Task, depends_on: list[Dependency]) -> None:
        """Hold a new task back until the tasks it depends on are over."""
        task.held, task.depends_on = True, depends_on
        for dependency in depends_on:
            other = self._context.tasks.store.get(dependency.uuid)
            if other is not None and other.is_over:
                dependency.final = other.state
            else:
                self._waiting.setdefault(dependency.uuid, []).append(task)
        self._decide(task)

    def task_over(self, task: Task) -> None:
        """Release, or cancel, what waited for this task. Deleted before it was over, it counts as cancelled."""
        for waiting in self._waiting.pop(task.uuid, []):
            for dependency in waiting.depends_on:
                if dependency.uuid == task.uuid:
                    dependency.final = task.state if task.is_over else "Cancelled"
            self._decide(waiting)

    def _decide(self, task: Task) -> None:
        if not task.held or task.is_over or task.ending:
            return
        met = [dependency.met for dependency in task.depends_on]
        if False in met:
            self._context.tasks.cancel(task)
        elif None not in met:
            if task.pool is None or task.pool.is_open:
                self._context.tasks.release(task)
            else:
                self._context.tasks.cancel(task)

    def dependencies(self, task: Task) -> dict[str, Any] | None:
        """The `dependencies` field of a task."""
        if not task.depends_on:
            return None
        if not task.depends_on[0].advanced:
            return {"dependsOn": [dependency.uuid for dependency in task.depends_on]}
        return {
            "advancedDependsOn": [
                {
                    "taskUuid": dependency.uuid,
                    "taskFinalStateCondition": dependency.condition,
                    "actualFinalState": dependency.final.lower() if dependency.final else None,
                    "state": _fulfilment([dependency.met]),
                }
                for dependency in task.depends_on
            ],
            "state": _fulfilment([dependency.met for dependency in task.depends_on]),
        }


def _fulfilment(met: list[bool | None]) -> str:
    if False in met:
        return "dependencyConditionsNotFulfilled"
    return "waiting" if None in met else "dependencyConditionsFulfilled"


def check_reference(job: Job | None) -> None:
    """Raises ApiError 400 unless tasks can join the job."""
    if job is None or job.state != ACTIVE:
        raise invalid("task", ["jobUuid" if job is None else "job-not-active"])
