"""``QarnotExecutor``: any Airflow task on a warm pool, exactly once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.executors.base_executor import PARALLELISM, BaseExecutor

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.executors.running import (
    FAILED,
    MAX_REQUEUES,
    REQUEUED,
    UNNEEDED_RUNNING_FOR,
    Attempt,
    End,
    EndAction,
    InstanceRow,
    Outcome,
    is_overdue,
    judge,
    left_on,
    name_of,
    unneeded,
)
from airflow_qarnot_pool.version_compat import queued_tasks

if TYPE_CHECKING:
    from airflow.executors.workloads import ExecuteTask
    from airflow.models.log import Log
    from airflow.models.taskinstance import TaskInstance

    from airflow_qarnot_pool.executors.options import ExecutorOptions
    from airflow_qarnot_pool.executors.remote import RemoteTasks
    from airflow_qarnot_pool.executors.tracked import Submission

#: Maximum seconds for which the scheduler waits for the names of another scheduler's Qarnot tasks.
ADOPTION_TIMEOUT = 10.0
#: Seconds between two comparisons of the Qarnot tasks with Airflow's database.
AUDIT_INTERVAL = 10.0
#: Seconds between two searches for Qarnot tasks that no scheduler watches, and until the first one.
SWEEP_INTERVAL, FIRST_SWEEP = 3600.0, 300.0
#: Seconds to send what is to be sent when the scheduler ends.
STOP_TIMEOUT = 5.0


class QarnotExecutor(BaseExecutor):
    """Run Airflow tasks as Qarnot tasks on a pool that all schedulers of the deployment share.

    Each attempt of a task instance has one Qarnot task, whose name is decided before it is created. So a scheduler
    that takes over from another finds it by its name, or knows that there is none.

    No method here sends a request: :class:`~airflow_qarnot_pool.executors.remote.RemoteTasks` does in a thread.
    """

    is_local = False
    is_production = True
    serve_logs = False
    supports_ad_hoc_ti_run = False
    #: From Airflow 3.2.2 on the scheduler commits an id together with the state ``queued``.
    pre_assigns_external_executor_id: ClassVar[bool] = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._options: ExecutorOptions | None = None
        self._remote: RemoteTasks | None = None
        #: Attempts whose ends this scheduler is to report, by name, and the name of the newest by key.
        self._attempts: dict[str, Attempt] = {}
        self._newest: dict[Any, str] = {}
        #: Ends that could not be reported, because Airflow's database was away.
        self._unreported: list[End] = []
        self._requeues: Counter[Any] = Counter()
        #: Entries that the scheduler takes next, and those that it took last.
        self._audit_log: list[Log] = []
        self._unneeded_since: dict[str, float] = {}
        self._audited = time.monotonic()
        self._next_sweep = self._audited + FIRST_SWEEP
        #: Since when Qarnot tasks that no scheduler watches are not needed, by uuid.
        self._left_on_since: dict[str, float] = {}

    def start(self) -> None:
        """Read the options, and log what makes tasks fail later.

        :raises QarnotInvalidSpecError: names the invalid option.
        """
        from airflow_qarnot_pool.executors.environment import environment_of
        from airflow_qarnot_pool.executors.options import read_options
        from airflow_qarnot_pool.executors.remote import RemoteTasks

        self._options = read_options(self.conf)
        for pool in self._options.pools.values():
            if pool.requirements is not None:
                environment_of(pool.requirements)
        # Airflow counts the tasks of all executors together. Those that wait for a slot here would take the places of
        # tasks that another executor could run.
        self.parallelism = min(self.parallelism, self._options.parallelism or self._options.slots)
        self._remote = RemoteTasks(self._options)
        for sentence in self._risks(self._options):
            self.log.warning("%s", sentence)

    def _risks(self, options: ExecutorOptions) -> list[str]:
        """Return sentences about settings with which tasks may fail, or start twice at a price."""
        from airflow_qarnot_pool.executors.workload_task import lifetime
        from airflow_qarnot_pool.version_compat import COMMITS_EXECUTOR_IDS

        risks = []
        if too_short := lifetime(options.token_seconds, options.boot_seconds, keeps_nodes=False):
            risks.append(too_short)
        has_others = "," in str(self.conf.get("core", "executor", fallback=""))
        if has_others and self.parallelism >= PARALLELISM:
            risks.append(
                f"QarnotExecutor may take all {PARALLELISM} places of [core] parallelism, and tasks of other executors "
                "wait then. Set [qarnot_executor] parallelism below it, or raise it."
            )
        if not COMMITS_EXECUTOR_IDS:
            risks.append(
                "Before 3.2.2 Airflow commits no id with a queued task. After a crash of the scheduler QarnotExecutor "
                "searches by tag, and a search may be late."
            )
        elif has_others and self.name is not None and self.name.alias != type(self).__name__:
            alias = f"the alias {self.name.alias!r}" if self.name.alias else "no alias"
            risks.append(
                f"QarnotExecutor has {alias} in [core] executor, so Airflow commits no id for tasks with "
                "executor='QarnotExecutor'. Write QarnotExecutor:" + self.name.module_path
            )
        return risks

    # --- queued tasks

    def queue_workload(self, workload: Any, session: Any) -> None:
        """Queue a task. A callback fails with the reason.

        The scheduler does not ask before it queues one, and an error here would end it.
        """
        if type(workload).__name__ == "ExecuteCallback":
            self.fail(
                workload.key,
                "QarnotExecutor runs no callbacks. Name another executor of [core] executor in the callback, "
                "for example SyncCallback(..., executor='LocalExecutor').",
            )
        else:
            super().queue_workload(workload, session)

    def _process_workloads(self, workloads: Sequence[Any]) -> None:
        """Submit *workloads*. A task that cannot be submitted fails with the reason."""
        from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError

        submissions = []
        for workload in workloads:
            key = workload.ti.key
            del queued_tasks(self)[key]
            try:
                submissions.append(self._submission(workload))
            except QarnotInvalidSpecError as error:
                self._fail(key, str(error))
        for submission in submissions:
            self._take(submission.attempt)
        if submissions:
            self._tasks.submit(submissions)

    def _submission(self, workload: ExecuteTask) -> Submission:
        from airflow_qarnot_pool.executors.bundle_archives import BUNDLES, archive_of
        from airflow_qarnot_pool.executors.options import task_config
        from airflow_qarnot_pool.executors.pool import PoolKey
        from airflow_qarnot_pool.executors.tracked import Submission
        from airflow_qarnot_pool.executors.workload_task import task_of

        assert self._options is not None
        ti = workload.ti
        config = task_config(ti.executor_config, self._options)
        external_id = getattr(ti, "external_executor_id", None) or ""
        attempt = Attempt(
            name=name_of(external_id, str(ti.id), workload.token),
            key=ti.key,
            instance_id=str(ti.id),
            external_id=external_id,
            pool=config.pool,
        )
        spec = task_of(workload, attempt.name, self._options, config)
        bundle = workload.bundle_info
        archive = archive_of(bundle.name, bundle.version, self._options.node_environment.get(BUNDLES))
        return Submission(attempt=attempt, spec=spec, pool=PoolKey.of(config), archive=archive)

    def _take(self, attempt: Attempt) -> None:
        self.running.add(attempt.key)
        self._attempts[attempt.name] = attempt
        self._newest[attempt.key] = attempt.name

    @property
    def _tasks(self) -> RemoteTasks:
        assert self._remote is not None, "start() comes first"
        return self._remote

    # --- ends

    def sync(self) -> None:
        """Report the ends since the last heartbeat, and abort what Airflow does not need any more."""
        self._abort_dropped()
        self._unreported += self._tasks.take_ends()
        if self._unreported:
            self._report()
        if self._attempts and time.monotonic() - self._audited >= AUDIT_INTERVAL:
            self._audit()
        self._sweep()
        self._send_gauges()

    def _send_gauges(self) -> None:
        """Send how many attempts of this scheduler run on each pool, and how many wait for a slot of it."""
        if self._options is None:
            return
        counts = Counter(
            (attempt.pool, self._tasks.has_started(name)) for name, attempt in self._attempts.items()
        )
        for name, pool in self._options.pools.items():
            metrics.gauge("executor.slots", pool.slots, pool=name)
            metrics.gauge("executor.running", counts[name, True], pool=name)
            metrics.gauge("executor.waiting", counts[name, False], pool=name)

    def _abort_dropped(self) -> None:
        """Abort the attempts that the scheduler has given up, such as those without a heartbeat."""
        dropped = [
            name for key, name in self._newest.items() if key not in self.running and name in self._attempts
        ]
        self._drop(dropped)

    def _drop(self, names: Sequence[str]) -> None:
        """Abort these attempts, without a report."""
        for name in names:
            self._forget(self._attempts[name])
        if names:
            self._tasks.abort(names)

    def _forget(self, attempt: Attempt) -> None:
        self._attempts.pop(attempt.name, None)
        if self._newest.get(attempt.key) == attempt.name:
            del self._newest[attempt.key]
            self.running.discard(attempt.key)
            self._requeues.pop(attempt.key, None)

    def _report(self) -> None:
        from airflow.utils.session import create_session
        from sqlalchemy.exc import SQLAlchemyError

        from airflow_qarnot_pool.executors import airflow_state

        ends = self._unreported
        try:
            with create_session() as session:
                ids = [end.attempt.instance_id for end in ends]
                instances = airflow_state.read_instances(session, ids, self.job_id)
                actions = [(end, self._judge(end, instances)) for end in ends]
                for end, action in actions:
                    if action is EndAction.REQUEUE:
                        airflow_state.requeue(session, end.attempt, self.job_id)
                    elif action is EndAction.RESET:
                        airflow_state.reset(session, end.attempt, self.job_id)
        except SQLAlchemyError as error:
            self.log.warning("The ends of %d tasks are reported later: %s", len(ends), error)
            return
        self._unreported = []
        for end, action in actions:
            self._carry_out(end, action)

    def _judge(self, end: End, instances: dict[str, InstanceRow]) -> EndAction:
        key = end.attempt.key
        # An attempt that was replaced or dropped has no report.
        if self._newest.get(key) != end.attempt.name or (
            not end.attempt.external_id and key in queued_tasks(self)
        ):
            return EndAction.FORGET
        return judge(end, instances.get(end.attempt.instance_id), self._requeues[key])

    def _carry_out(self, end: End, action: EndAction) -> None:
        key = end.attempt.key
        requeues = self._requeues[key]
        self._forget(end.attempt)
        if action is EndAction.SUCCESS:
            self.success(key)
        elif action is EndAction.FAIL:
            metrics.incr("executor.lost", pool=end.attempt.pool)
            self._fail(key, end.reason or f"Its Qarnot task {end.attempt.name} has failed")
        elif action is EndAction.REQUEUE:
            metrics.incr("executor.requeued", pool=end.attempt.pool)
            self.log.info("%s never started on Qarnot, queueing it again: %s", key, end.reason)
            extra = end.reason
            if end.outcome is not Outcome.WAITED:
                requeues += 1
                extra = f"{requeues} of {MAX_REQUEUES}: {end.reason}"
            self._requeues[key] = requeues
            self.log_task_event(event=REQUEUED, extra=extra, ti_key=key)
        elif action is EndAction.RESET:
            self.log.info("%s was not submitted by the scheduler before, resetting it", key)

    def _fail(self, key: Any, reason: str) -> None:
        """Fail a task, with *reason* in the log of the scheduler, the audit log, and so the log view of the task."""
        reason = _storable(reason)
        self.log.warning("%s failed: %s", key, reason)
        self.log_task_event(event=FAILED, extra=reason, ti_key=key)
        self.fail(key, reason)

    def log_task_event(self, *, event: str, extra: str, ti_key: Any) -> None:
        """Add an entry to the audit log."""
        super().log_task_event(event=event, extra=_storable(extra), ti_key=ti_key)
        # Airflow 3.3.2 gives the entries to SQLAlchemy by a generator. Those without another reference are garbage
        # before they are stored, and all entries of a heartbeat are lost.
        self._audit_log = list(self._task_event_logs)

    def _audit(self) -> None:
        """Abort the Qarnot tasks that Airflow has not needed for a while: of cleared tasks and deleted runs."""
        from airflow.utils.session import create_session
        from sqlalchemy.exc import SQLAlchemyError

        from airflow_qarnot_pool.executors.airflow_state import read_instances

        now = self._audited = time.monotonic()
        try:
            with create_session() as session:
                ids = [attempt.instance_id for attempt in self._attempts.values()]
                instances = read_instances(session, ids, self.job_id)
        except SQLAlchemyError as error:
            self.log.warning("The Qarnot tasks could not be compared with Airflow's database: %s", error)
            return
        self._unneeded_since = unneeded(self._attempts, instances, self._unneeded_since, now)
        overdue = [
            name
            for name, since in self._unneeded_since.items()
            if is_overdue(since, now, has_started=self._tasks.has_started(name))
        ]
        # A task that was cleared while it ran waits for the report to run again.
        cleared = [
            key
            for name in overdue
            if self._attempts[name].instance_id not in instances
            # A run that was deleted and created again has the same keys.
            and self._newest.get(key := self._attempts[name].key) == name
        ]
        self._drop(overdue)
        for key in cleared:
            self.success(key)

    def _sweep(self) -> None:
        """Abort Qarnot tasks that two sweeps show, and that Airflow does not need and no scheduler watches.

        A scheduler that was killed has not sent their abort, or has not seen that their process hangs. Another one may
        wait for the end of a process that stores its log.
        """
        from airflow.utils.session import create_session
        from sqlalchemy.exc import SQLAlchemyError

        from airflow_qarnot_pool.executors import airflow_state

        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_INTERVAL
            self._tasks.sweep()
        if (found := self._tasks.take_unwatched()) is None:
            return
        try:
            with create_session() as session:
                instances = airflow_state.read_instances(session, found.values(), self.job_id)
                replaced = airflow_state.read_replaced(session, found.values())
        except SQLAlchemyError as error:
            self.log.warning("The Qarnot tasks that no scheduler watches are looked for later: %s", error)
            return
        self._left_on_since = left_on(found, instances, replaced, self._left_on_since, now)
        uuids = [
            uuid for uuid, since in self._left_on_since.items() if is_overdue(since, now, has_started=True)
        ]
        if len(uuids) < len(self._left_on_since):
            self._next_sweep = now + UNNEEDED_RUNNING_FOR
        if uuids:
            self.log.warning("Aborting %d Qarnot tasks that Airflow does not need any more", len(uuids))
            self._tasks.end(uuids)

    # --- other calls of the scheduler

    def revoke_task(self, *, ti: TaskInstance) -> None:
        """Abort the Qarnot task of *ti*. This scheduler submits a new one only after the end of this one."""
        queued_tasks(self).pop(ti.key, None)
        name = self._newest.get(ti.key)
        if name is not None:
            self._drop([name])
        self.running.discard(ti.key)

    def try_adopt_task_instances(self, tis: Sequence[TaskInstance]) -> Sequence[TaskInstance]:
        """Adopt the tasks of a scheduler that has ended, if they are on Qarnot. Return the others.

        Those about which Qarnot does not respond within seconds are adopted. If they turn out not to be there, they are
        reset later.
        """
        attempts = {self._adopted(ti): ti for ti in tis}
        found = self._tasks.find(list(attempts), ADOPTION_TIMEOUT) if attempts else {}
        absent = {name for name, uuid in found.items() if uuid is None}
        adopted = {attempt: found.get(attempt.name) for attempt in attempts if attempt.name not in absent}
        for attempt in adopted:
            self._take(attempt)
        if adopted:
            self._tasks.watch(adopted)
        self.log.info(
            "QarnotExecutor adopts %d of %d tasks of another scheduler", len(adopted), len(attempts)
        )
        return [ti for attempt, ti in attempts.items() if attempt not in adopted]

    def _adopted(self, ti: TaskInstance) -> Attempt:
        external_id = ti.external_executor_id or ""
        return Attempt(
            name=name_of(external_id, str(ti.id)),
            key=ti.key,
            instance_id=str(ti.id),
            external_id=external_id,
            by_tag=not external_id,
            pool=self._pool_of(ti),
        )

    def _pool_of(self, ti: TaskInstance) -> str:
        """Return the name of the pool of *ti*; ``unknown`` if the options have no such pool any more."""
        from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError
        from airflow_qarnot_pool.executors.options import task_config

        if self._options is None:
            return "unknown"
        try:
            return task_config(ti.executor_config, self._options).pool
        except QarnotInvalidSpecError:
            return "unknown"

    def get_task_log(self, ti: TaskInstance, try_number: int) -> tuple[list[str], list[str]]:
        """Return the output of the Qarnot task of *ti*, while Airflow has no log of it. Called by the api-server."""
        from airflow_qarnot_pool.executors.lookups import names_of_instance
        from airflow_qarnot_pool.executors.options import read_options
        from airflow_qarnot_pool.executors.output import DEADLINE, task_log
        from airflow_qarnot_pool.hooks.qarnot import QarnotHook

        if ti.try_number != try_number:
            return [], []
        try:
            client = QarnotHook(read_options(self.conf).conn_id).client
            names = (
                [name_of(ti.external_executor_id, str(ti.id))]
                if ti.external_executor_id
                else names_of_instance(client.limited(deadline=DEADLINE), str(ti.id))
            )
        except Exception as error:  # of Airflow, of the connection or of the search
            return [], [f"The output on Qarnot could not be read: {error}"]
        return [f"Output of Qarnot task {name}" for name in names], task_log(client, names)

    def debug_dump(self) -> None:
        """Log the tasks of this executor, for SIGUSR2. Airflow before 3.2 would log their tokens, too."""
        from airflow.executors.workloads import ExecuteTask

        ExecuteTask.model_fields["token"].repr = False
        super().debug_dump()  # type: ignore[no-untyped-call]

    def terminate(self) -> None:
        """Do nothing: Qarnot tasks that run stay, and the next scheduler adopts them."""

    def end(self) -> None:
        """Submit what is to be submitted, for seconds at most. Qarnot tasks that run stay for the next scheduler."""
        if self._remote is not None:
            self._remote.stop(STOP_TIMEOUT)


def _storable(text: str) -> str:
    """Return *text* without NUL, which the output of a node may have. PostgreSQL refuses it, and the scheduler ends."""
    return text.replace("\0", "\ufffd")
