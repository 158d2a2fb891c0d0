"""Jobs, and dependencies between tasks (Qarnot API: qarnot-api.md 3.9 and `dependencies` in 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local.backend.models import Dependency, Job, Pool, Task
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.schemas.errors import ApiError, invalid
from airflow_qarnot_pool.local.schemas.fields import RequestFields, is_uuid
from airflow_qarnot_pool.local.schemas.formats import parse_span

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.context import Context

ACTIVE, COMPLETED = "Active", "Completed"


class Jobs:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.store: Store[Job] = Store(context.shown_time, context.note)
        self._waiting: dict[str, list[Task]] = {}
        """Tasks that wait for another task, by the uuid of that task."""

    def find(self, key: str) -> Job:
        """Return the job with this uuid or shortname. Raises ApiError 404."""
        return self._context.find("job", self.store, key)

    def create(self, body: Any) -> Job:
        """Create a job. Raises ApiError 400, 403 (limit reached)."""
        context, fields = self._context, RequestFields(body, "job")
        name, shortname = fields.text("name", required=True), fields.shortname()
        pool = self._read_pool(fields)
        enforced = context.readings.name_of_closed_pool != "not enforced"
        if shortname and enforced and self.store.named(shortname):
            fields.wrong("shortname-uniqueness")
        if pool is None and context.readings.job_creation == "it needs a pool":
            fields.wrong("poolUuid")
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
        self._terminate_later(job, wall)
        return job

    def _terminate_later(self, job: Job, wall: float) -> None:
        if wall:
            self._context.clock.at(job.created + wall, lambda: self.terminate(job))

    def _read_pool(self, fields: RequestFields) -> Pool | None:
        uuid = fields.text("poolUuid")
        pool = self._context.pools.store.get(uuid) if uuid and is_uuid(uuid) else None
        if uuid and pool is None and self._context.readings.unknown_references == "404":
            raise self._context.unknown("poolUuid", uuid)
        if uuid and (pool is None or not pool.is_open):
            fields.wrong("poolUuid")
        return pool

    def terminate(self, job: Job) -> None:
        """Cancel the tasks of the job and let it take no more."""
        if job.state != ACTIVE:
            return
        self.store.move(job, COMPLETED, self._context.now)
        job.ended = self._context.now
        for task in list(job.tasks.values()):
            self._context.tasks.cancel(task)
        self._expire_later(job)

    def _expire_later(self, job: Job) -> None:
        if job.time_to_live and job.ended is not None:
            self._context.clock.at(job.ended + job.time_to_live, lambda: self.store.remove(job))

    def resume(self, job: Job) -> None:
        """Continue with a job after a restart."""
        if job.state == ACTIVE:
            self._terminate_later(job, parse_span(job.spec["maxWallTime"] or "00:00:00"))
        else:
            self._expire_later(job)

    def delete(self, job: Job, *, force: bool) -> None:
        """Delete a job. Raises ApiError 403 if it has tasks, unless *force* is set."""
        if job.tasks and not force:
            raise ApiError(403, f"Action forbidden: the job has {len(job.tasks)} tasks")
        self.terminate(job)
        for task in list(job.tasks.values()):
            self._context.tasks.delete(task)
        self.store.remove(job)

    # ---- dependencies ----

    def watch(self, task: Task, depends_on: list[Dependency]) -> None:
        """Hold a new task back until the tasks it depends on have finished."""
        task.held, task.depends_on = True, depends_on
        for dependency in depends_on:
            other = self._context.tasks.store.get(dependency.uuid)
            if other is not None and other.is_finished:
                dependency.final = other.state
        self.wait_for_dependencies(task)
        self._decide(task)

    def wait_for_dependencies(self, task: Task) -> None:
        for dependency in task.depends_on:
            if dependency.final is None:
                self._waiting.setdefault(dependency.uuid, []).append(task)

    def task_over(self, task: Task) -> None:
        """Release or cancel the tasks that wait for this one. If it was deleted unfinished, it counts as cancelled."""
        for waiting in self._waiting.pop(task.uuid, []):
            for dependency in waiting.depends_on:
                if dependency.uuid == task.uuid:
                    dependency.final = task.state if task.is_finished else "Cancelled"
            self._context.note(waiting)
            self._decide(waiting)

    def _decide(self, task: Task) -> None:
        if not task.held or task.is_finished or task.ending:
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
        """Return the `dependencies` field of a task."""
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


def check_reference(job: Job) -> None:
    """Check that tasks can join the job. Raises ApiError 400."""
    if job.state != ACTIVE:
        raise invalid("task", ["job-not-active"])
