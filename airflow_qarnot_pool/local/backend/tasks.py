"""Life of tasks and their instances, from creation to deletion (Qarnot API: qarnot-api.md 3.3, 4.2, 5.2)."""

from __future__ import annotations

import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.local.backend import attempt, snapshots, states
from airflow_qarnot_pool.local.backend.billing import CORES_PER_NODE, BillingMeter
from airflow_qarnot_pool.local.backend.jobs import check_reference
from airflow_qarnot_pool.local.backend.models import (
    Instance,
    InstancePhase,
    Job,
    Node,
    Pool,
    Task,
)
from airflow_qarnot_pool.local.backend.store import Store
from airflow_qarnot_pool.local.schemas import requests
from airflow_qarnot_pool.local.schemas.errors import ApiError, invalid
from airflow_qarnot_pool.local.schemas.fields import (
    MAX_TASK_CONSTANTS,
    RequestFields,
    keep_secrets,
)

if TYPE_CHECKING:
    from airflow_qarnot_pool.local.backend.context import Context

MAX_ERRORS = 50
MAX_HISTORY = 100_000
"""Maximum number of deleted tasks in the history for tests, because it is kept in memory."""
SPECIFICATION = "local-8c-32g"
CPU_MODEL = "Local CPU"
_COUNTERS = {
    InstancePhase.WAITING: "waiting",
    InstancePhase.PLACED: "placed",
    InstancePhase.RUNNING: "running",
    InstancePhase.UPLOADING: "uploading",
}
_LISTS = {
    InstancePhase.SUCCESS: "succeeded",
    InstancePhase.FAILURE: "failed",
    InstancePhase.CANCELLED: "cancelled",
}


class Tasks:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.store: Store[Task] = Store(context.shown_time, context.note)
        self.unfinished = 0
        self.standalone = 0
        """Number of unfinished instances of tasks without a pool."""
        self._deleted: deque[dict[str, Any]] = deque(maxlen=MAX_HISTORY)

    def find(self, key: str) -> Task:
        """Return the task with this uuid or shortname. Raises ApiError 404."""
        return self._context.find("task", self.store, key)

    # ---- creation ----

    def create(self, creation: requests.TaskCreation) -> Task:
        """Create a task. Raises ApiError 400 (bad reference, shortname taken), 402 (no credit), 403 (limit reached)."""
        context, now = self._context, self._context.now
        pool, job = self._references(creation)
        context.check_shortname("task", self.store, creation.shortname)
        if context.credits_left() <= 0:
            raise ApiError(402, "Not enough credits")
        self._check_limits(creation, pool)
        replaces = context.readings.retries_replaced == "replaced"
        per_instance, total = _retries_of(creation, pool, replaces)
        uuid, seq = context.identity()
        task = Task(
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
            profile=pool.profile if pool else creation.profile or "",
            pool=pool,
            job=job,
            ranges=creation.ranges,
            instance_count=creation.instance_count,
            per_instance_retries=per_instance,
            total_retries=total,
            meter=BillingMeter(now),
        )
        task.instances = {i: Instance(task, i) for i in creation.ids}
        task.waiting = len(task.instances)
        self.store.add(task)
        self.unfinished += 1
        if pool is not None:
            pool.tasks[uuid] = task
        else:
            self.standalone += task.waiting
        if job is not None:
            job.tasks[uuid] = task
        self._limit_queue_time(task)
        if creation.depends_on:
            context.jobs.watch(task, creation.depends_on)
        else:
            self.release(task)
        return task

    def _limit_queue_time(self, task: Task) -> None:
        if limit := task.spec["maxTimeQueueSeconds"]:
            self._context.clock.at(task.created + limit, lambda: self._queued_too_long(task))

    def update(self, task: Task, body: Any) -> None:
        """Change the constants and tags that the body of a PUT has."""
        fields = RequestFields(body, "task")
        constants = fields.constants(MAX_TASK_CONSTANTS) if fields.has("constants") else None
        tags = fields.tags() if fields.has("tags") else None
        fields.check()
        if constants is not None:
            task.constants = keep_secrets(constants, task.constants)
        elif self._context.readings.put_absent_keys == "reset":
            task.constants = {}
        if tags is not None:
            self.store.retag(task, tags)
        task.modified = self._context.now
        self._context.note(task)

    def _references(self, creation: requests.TaskCreation) -> tuple[Pool | None, Job | None]:
        """Return the pool and the job of a new task. Raises ApiError 400."""
        job = self._job_of(creation)
        pool = job.pool if job else None
        if creation.pool_uuid:
            pool = self._context.pools.store.get(creation.pool_uuid)
            if pool is None:
                raise self._context.unknown("poolUuid", creation.pool_uuid)
        if pool is None:
            profiles = self._context.settings.profiles
            if creation.profile not in profiles:
                raise invalid("task", ["profile"], profiles.missing(creation.profile))
        elif not pool.is_open:
            raise self._not_open()
        elif creation.profile and creation.profile != pool.profile:
            raise invalid("task", ["profile"])
        return pool, job

    def _not_open(self) -> ApiError:
        error = invalid("task", ["pool-not-open"])
        error.status = int(self._context.readings.task_on_closed_pool)
        return error

    def _job_of(self, creation: requests.TaskCreation) -> Job | None:
        job = self._context.jobs.store.get(creation.job_uuid) if creation.job_uuid else None
        if creation.job_uuid:
            if job is None:
                raise self._context.unknown("jobUuid", creation.job_uuid)
            check_reference(job)
        if creation.depends_on:
            has_unknown = any(self.store.get(other.uuid) is None for other in creation.depends_on)
            if job is None or not job.use_dependencies or has_unknown:
                raise invalid("task", ["dependencies"])
        return job

    def _check_limits(self, creation: requests.TaskCreation, pool: Pool | None) -> None:
        limits = self._context.account.limits
        if limits.maxTask is not None and len(self.store) >= limits.maxTask:
            self._make_room()
            if len(self.store) >= limits.maxTask:
                raise ApiError(403, f"Maximum number of tasks reached: {limits.maxTask}")
        if limits.maxRunningTask is not None and self.unfinished >= limits.maxRunningTask:
            raise ApiError(403, f"Maximum number of tasks reached: {limits.maxRunningTask} running")
        if pool is None and limits.maxInstances is not None:
            requested = self._context.requested_instances() + len(creation.ids)
            if requested > limits.maxInstances:
                raise ApiError(403, f"Maximum number of instances reached: {limits.maxInstances}")

    def _make_room(self) -> None:
        """Delete the oldest finished task that allows it."""
        for task in self.store:
            if task.auto_delete and task.is_finished:
                self._remove(task)
                return

    def release(self, task: Task) -> None:
        """Queue the instances of a task in its pool, or boot a node for each."""
        task.held = False
        self._context.note(task)
        pool, nodes = task.pool, self._context.nodes
        for instance in task.instances.values():
            if pool is None:
                nodes.boot_for(instance)
            else:
                pool.queue.append(instance)
                pool.waiting += 1
        if pool is not None:
            nodes.dispatch(pool)
            nodes.resize(pool)

    def _queued_too_long(self, task: Task) -> None:
        if task.state == states.SUBMITTED and not task.ending:
            message = f"The task was queued for more than {task.spec['maxTimeQueueSeconds']} s"
            task.errors.append({"code": "LOCAL_QUEUE_TIME", "message": message, "debug": message})
            for instance in list(task.instances.values()):
                if instance.phase is InstancePhase.WAITING:
                    self._leave(instance)
                    self.enter(instance, InstancePhase.FAILURE)
            if task.pool is not None:
                self._context.nodes.resize(task.pool)

    def waits_for_sync(self, task: Task) -> bool:
        own = task.spec["waitForPoolResourcesSynchronization"]
        if own is None and task.pool is not None:
            own = task.pool.spec["taskDefaultWaitForPoolResourcesSynchronization"]
        return bool(own)

    # ---- instances ----

    def enter(self, instance: Instance, phase: InstancePhase) -> None:
        """Move an instance to another phase, and its task to the state that follows."""
        task = instance.task
        if counter := _COUNTERS.get(instance.phase):
            setattr(task, counter, getattr(task, counter) - 1)
        instance.phase = phase
        if counter := _COUNTERS.get(phase):
            setattr(task, counter, getattr(task, counter) + 1)
        else:
            getattr(task, _LISTS[phase]).append(instance.id)
            if (output := task.output.get(instance.id)) is not None:
                output.is_finished = True
            if task.pool is None:
                self.standalone -= 1
        if phase is InstancePhase.RUNNING:
            task.executed = True
        self._context.note(task)
        self._refresh(task)

    def _refresh(self, task: Task) -> None:
        if task.unfinished == 0:
            remaining = (task.cancelling_until or 0.0) - self._context.now
            if remaining > 0:
                self._context.clock.after(remaining, lambda: self._finish(task))
            else:
                self._finish(task)
        elif not task.ending:
            state = states.task_state(
                waiting=task.waiting,
                placed=task.placed,
                running=task.running,
                uploading=task.uploading,
                executed=task.executed,
            )
            assert state is not None
            self.store.move(task, state, self._context.now)

    def start(self, instance: Instance, node: Node) -> None:
        """Start an instance on a node that is up."""
        if node.pool is not None:
            node.pool.waiting -= 1
            node.pool.running += 1
        instance.attempts += 1
        instance.lost = False
        self._context.nodes.occupy(node, instance)
        if instance.phase is not InstancePhase.PLACED:
            self.enter(instance, InstancePhase.PLACED)
        self._context.spawn(self._attempt(instance, node))

    async def _attempt(self, instance: Instance, node: Node) -> None:
        context, task = self._context, instance.task

        def enter(phase: InstancePhase) -> bool:
            context.touch()
            if phase is InstancePhase.RUNNING:
                if task.ending or instance.lost:
                    return False
                instance.started = context.now
            self.enter(instance, phase)
            return True

        try:
            result = await attempt.carry_out(context, instance, node, enter)
        except Exception as error:
            traceback.print_exc()
            result = attempt.AttemptResult(attempt.INTERNAL, f"{type(error).__name__}: {error}")
        context.touch()
        if instance.lost:
            result = attempt.node_lost(node)
        self._finish_attempt(instance, node, result)

    def _finish_attempt(self, instance: Instance, node: Node, result: attempt.AttemptResult) -> None:
        context, task, pool = self._context, instance.task, node.pool
        if instance.started is not None:
            instance.executed += context.now - instance.started
        context.nodes.vacate(node, instance)
        if pool is not None:
            pool.running -= 1
        else:
            context.nodes.drop(node)
        if result.uploaded:
            task.results_count += 1
        self._settle(instance, result)
        instance.started = None
        if pool is not None:
            context.nodes.dispatch(pool)
            context.nodes.resize(pool)
            context.pools.try_finish(pool)

    def _settle(self, instance: Instance, result: attempt.AttemptResult) -> None:
        """Finish the instance after an attempt, or let it run again."""
        task = instance.task
        if result.ok and not result.killed:
            self._complete(instance, result)
            self.enter(instance, InstancePhase.SUCCESS)
        elif task.ending:
            self.enter(instance, InstancePhase.CANCELLED)
        elif states.may_retry(
            per_instance=task.per_instance_retries,
            total=task.total_retries,
            attempts=instance.attempts,
            retried=task.retried,
        ):
            task.retried += 1
            self.enter(instance, InstancePhase.WAITING)
            if task.pool is not None:
                task.pool.queue.appendleft(instance)
                task.pool.waiting += 1
            else:
                self._context.nodes.boot_for(instance)
        else:
            self._complete(instance, result)
            self.enter(instance, InstancePhase.FAILURE)

    def lost_before_start(self, instance: Instance) -> None:
        """Handle the loss of a booting node of a task without a pool."""
        instance.attempts += 1
        self._settle(instance, attempt.AttemptResult(attempt.NODE_LOST, "The node was lost while it booted"))

    def _complete(self, instance: Instance, result: attempt.AttemptResult) -> None:
        seconds = round(instance.executed, 3)
        error = None
        if not result.ok:
            reading = self._context.readings.error_codes
            code = (result.code or "") if reading == attempt.EXIT_CODE else reading
            error = {"code": code, "message": result.message, "debug": result.message}
            if len(instance.task.errors) < MAX_ERRORS:
                text = f"Instance {instance.id}: {result.message}"
                instance.task.errors.append({"code": code, "message": text, "debug": text})
        instance.task.completed.append(
            {
                "results": [],
                "instanceId": instance.id,
                "wallTimeSec": seconds,
                "execTimeSec": seconds,
                "execTimeSecGHz": seconds,
                "peakMemoryMB": 0,
                "state": "Success" if result.ok else "Failure",
                "error": error,
                "specificationKey": SPECIFICATION,
                "cpuModel": CPU_MODEL,
                "coreCount": CORES_PER_NODE,
                "clockRatio": 1.0,
                "averageGHz": 1.0,
                "executionAttemptCount": instance.attempts,
            }
        )

    # ---- end ----

    def abort(self, task: Task) -> None:
        """Abort a task. If it has finished or is being cancelled, do nothing, or raise ApiError 403."""
        if (task.is_finished or task.ending) and self._context.readings.abort_again == "403":
            raise ApiError(403, f"Action forbidden: abort of a task that is {task.state}")
        self.cancel(task)

    def cancel(self, task: Task, error: dict[str, str] | None = None) -> None:
        """Cancel the waiting instances of a task and kill the running ones."""
        if task.is_finished or task.ending:
            return
        if error is not None:
            task.errors.append(error)
        task.ending = True
        task.cancelling_until = self._context.now + self._context.settings.cancel_seconds
        self.store.move(task, states.PENDING_CANCEL, self._context.now)
        self._stop_instances(task)

    def _stop_instances(self, task: Task) -> None:
        for instance in list(task.instances.values()):
            if instance.on_node and instance.node is not None:
                if instance.run is not None:
                    self._context.runner.kill(instance.run)
            elif instance.phase in (InstancePhase.WAITING, InstancePhase.PLACED):
                self._leave(instance)
                self.enter(instance, InstancePhase.CANCELLED)
        if task.pool is not None:
            self._context.nodes.resize(task.pool)

    def _leave(self, instance: Instance) -> None:
        """Take a waiting instance out of its queue, or release the node that boots for it."""
        task = instance.task
        if task.pool is not None:
            task.pool.waiting -= 0 if task.held else 1
        elif instance.booting is not None:
            self._context.nodes.drop(instance.booting)
            instance.booting = None

    def history(self) -> list[dict[str, Any]]:
        """Return the history of all Qarnot tasks, also of deleted ones, for tests."""
        return [*self._deleted, *map(_history_of, self.store)]

    def delete(self, task: Task) -> None:
        """Delete a task at once if it has finished, or abort it and delete it when its processes have ended."""
        if task.is_finished:
            self._remove(task)
        elif task.state != states.PENDING_DELETE:
            self.store.move(task, states.PENDING_DELETE, self._context.now)
            if not task.ending:
                task.ending = True
                self._stop_instances(task)

    def _finish(self, task: Task) -> None:
        now = self._context.now
        self.unfinished -= 1
        if task.snapshot_timer is not None:
            task.snapshot_timer.cancel()
        task.ended = now
        if task.state == states.PENDING_DELETE:
            self._remove(task)
        else:
            if not task.ending:
                self.store.move(task, states.UPLOADING_RESULTS, now)
            # A cancellation after all instances had succeeded has no effect.
            cancelled = task.ending and bool(task.cancelled)
            self.store.move(task, states.final_state(cancelled=cancelled, failed=len(task.failed)), now)
            self._expire_later(task)
        self._context.jobs.task_over(task)

    def _expire_later(self, task: Task) -> None:
        if task.time_to_live and task.ended is not None:
            self._context.clock.at(task.ended + task.time_to_live, lambda: self._expire(task))

    def _expire(self, task: Task) -> None:
        if task.is_finished:
            self._remove(task)

    def _remove(self, task: Task) -> None:
        self._deleted.append(_history_of(task))
        self.store.remove(task)
        if task.pool is not None:
            task.pool.tasks.pop(task.uuid, None)
        if task.job is not None:
            task.job.tasks.pop(task.uuid, None)
        self._context.forget_output(task)

    # ---- restart ----

    def adopt(self, task: Task) -> None:
        """Count a task of an earlier server, and queue its waiting instances."""
        if task.pool is not None:
            task.pool.tasks[task.uuid] = task
        if task.job is not None:
            task.job.tasks[task.uuid] = task
        for instance in task.instances.values():
            if counter := _COUNTERS.get(instance.phase):
                setattr(task, counter, getattr(task, counter) + 1)
        if task.is_finished:
            return
        self.unfinished += 1
        if task.pool is None:
            self.standalone += task.unfinished
        if task.held:
            self._context.jobs.wait_for_dependencies(task)
        elif task.pool is not None:
            waiting = [i for i in task.instances.values() if i.phase is InstancePhase.WAITING]
            task.pool.queue.extend(waiting)
            task.pool.waiting += len(waiting)

    def resume(self, task: Task) -> None:
        """Continue with a task after all nodes were lost, once all tasks are adopted."""
        if task.is_finished:
            self._expire_later(task)
            return
        self._limit_queue_time(task)
        snapshots.await_next(self._context, task)
        if task.unfinished == 0:
            due = max(self._context.now, task.cancelling_until or 0.0)
            self._context.clock.at(due, lambda: self._finish(task))
        for instance in reversed(task.instances.values()):
            if instance.lost and instance.on_node:
                self._settle(
                    instance, attempt.AttemptResult(attempt.NODE_LOST, "Its node was lost in a restart")
                )
            elif task.pool is None and not task.held and not instance.is_finished:
                # The node was booting.
                self.enter(instance, InstancePhase.WAITING)
                self._context.nodes.boot_for(instance)


def _retries_of(
    creation: requests.TaskCreation, pool: Pool | None, replaces: bool
) -> tuple[int | None, int | None]:
    """Return the retries per instance and in total, which default to those of the pool.

    :param replaces: whether those of the task replace the default.
    """
    if pool is None or (creation.own_retries and replaces):
        return creation.per_instance_retries, creation.total_retries
    default = pool.spec["defaultRetrySettings"]
    return default["maxPerInstanceRetries"], default["maxTotalRetries"]


def _history_of(task: Task) -> dict[str, Any]:
    return {
        "uuid": task.uuid,
        "state": task.state,
        "labels": dict(task.spec["labels"]),
        "succeeded": sorted(task.succeeded),
    }
