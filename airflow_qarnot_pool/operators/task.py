"""Run Qarnot tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotBucketNotFoundError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.exceptions import (
    QarnotNodeLostError,
    QarnotPoolEndedError,
    QarnotTaskCancelledError,
    QarnotTaskFailedError,
)
from airflow_qarnot_pool.links.qarnot import LINKS, POOL_LINKS
from airflow_qarnot_pool.operators.bases.task import COMMON_FIELDS, TaskOperator
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.identity import MAX_GENERATIONS, RECORDABLE_LABEL
from airflow_qarnot_pool.ownership.ladder import Climb, is_lost, is_node_loss
from airflow_qarnot_pool.ownership.xcoms import TASK_KEY
from airflow_qarnot_pool.parameters.shell import (
    find_commands,
    warn_of_inserted_text,
    warn_of_shell_characters,
)
from airflow_qarnot_pool.parameters.validation import has_values, reject_empty
from airflow_qarnot_pool.version_compat import AirflowSkipException
from airflow_qarnot_pool.waiting.conditions import (
    TASK_DONE,
    TASK_ENDED,
    Condition,
    EndReason,
    is_queued,
)
from airflow_qarnot_pool.waiting.polling import find_confirmed, get_confirmed

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.logs.checkpoint import Offset
    from airflow_qarnot_pool.logs.cursor import LogCursor
    from airflow_qarnot_pool.logs.report import LineFinder, ProgressFinder
    from airflow_qarnot_pool.operators.bases.ladder import LadderStep
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.triggers.base import QarnotTrigger
    from airflow_qarnot_pool.waiting.conditions import WaitResult

#: Key of the XCom with the last progress that a node has reported.
PROGRESS_KEY = "qarnot_progress"


class QarnotRunTaskOperator(TaskOperator):
    """Run a command on a pool, or on nodes booted for it alone, and wait for its end.

    Between two clears the Airflow task has one Qarnot task. A retry adopts a Qarnot task that runs or succeeded, and
    submits another if it failed. Of several instances, a retry runs those that did not succeed, or all if the profile
    is one of a cluster, as its instances work together. A clear aborts the old Qarnot task and submits another.
    Returns a small dict: ``uuid, name, state, pool, instances, succeeded, failed, created, ended,
    wall_seconds, execution_seconds, result_bucket``. The output of the instances goes to the Airflow task log.

    With ``task_spec={"return_file": True}`` it returns the JSON that the command writes to ``$QARNOT_RETURN_FILE``.
    With ``task_spec={"skip_on_exit_code": 99}`` it is skipped if the command exits with that code.
    With ``task_spec={"snapshot_every": 600}`` a retry starts with the files of the last snapshot.
    With ``task_spec={"ladder": ["Flex", "OnDemand"]}`` lost nodes are replaced within the same try.

    Parameters besides these: :class:`~airflow_qarnot_pool.operators.bases.task.TaskOperator`.

    Work:

    :param command: what each instance runs (``DOCKER_CMD``), as text or a list of words. ``${NAME}`` stands for
        constants and for ``${INSTANCE_ID}``; use ``sh -c '...'`` for a shell.
    :param instance_count: how many instances, with ``INSTANCE_ID`` 0 to n-1. To choose the ids, give
        ``task_spec={"ranges": "0-2,5"}`` instead.
    :param log_output: write the instances' output to the Airflow task log: True: when they are done, with one
        fetch of each stream; "live": while they run, with a fetch every 5 s for each such task.
        The triggerer cannot mask secret constants. With them, a deferred wait is not live.
    """

    uuid_key = TASK_KEY
    #: Lost Qarnot tasks that count for the ladder, though they are of other specs.
    _lost_rounds: Sequence[Task] = ()
    #: Whether the last rung of a ladder leaves the pool.
    _leaves_pool: ClassVar[bool] = True
    #: Whether the result comes from the Qarnot task. Otherwise a record of its end is enough once it is deleted.
    returns_output: ClassVar[bool] = False
    operator_extra_links = (LINKS["task"], *POOL_LINKS)
    spec_fields: tuple[str, ...] = (*COMMON_FIELDS, "command", "instance_count")
    template_fields = (*TaskOperator.template_fields, "command", "instance_count")
    template_fields_renderers = {"command": "bash", "task_spec": "json", "constants": "json"}

    def __init__(
        self,
        *,
        command: str | Sequence[str] | None = None,
        instance_count: int | str | None = None,
        log_output: bool | Literal["live"] = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.command = command
        self.instance_count = instance_count
        self.log_output = log_output
        if not log_output and not self.returns_output:
            self._labels[RECORDABLE_LABEL] = "true"
        self._filled += has_values(self, ("command", "instance_count"))
        #: Set in each slice of an operator whose result comes from the output.
        self._identity: TaskInstanceIdentity | None = None
        self._position: Offset | None = None
        self._finders: dict[str, LineFinder[Any]] = {}
        self._progress: ProgressFinder | None = None
        #: The generations that this try has lost.
        self._climb = Climb()
        if log_output not in (True, False, "live"):
            raise QarnotInvalidSpecError(
                f"log_output is not known, got {log_output!r}",
                field="log_output",
                remedy="Give True, False or 'live'.",
            )
        if log_output == "live" and not self.wait_for_completion:
            raise QarnotInvalidSpecError(
                "log_output follows no output without a wait, got 'live' beside wait_for_completion=False",
                field="log_output",
                remedy="Leave one of them out.",
            )
        if command is None and self._needs_command():
            raise QarnotInvalidSpecError(
                "command is missing",
                field="command",
                remedy="Give what each instance runs, such as command='echo hello'.",
            )
        reject_empty(self, self._filled)
        self._spec(self._given(parsing=True), self._some_pool)
        warn_of_shell_characters(self.task_id, [command, *find_commands(self.constants, self.task_spec)])
        warn_of_inserted_text(self.task_id, command, self.constants)

    def _needs_command(self) -> bool:
        """Return whether nothing but ``command`` can name what the instances run."""
        return "DOCKER_CMD" not in (self.constants or {}) and not self.task_spec

    # --- running it

    def _claim_with_snapshots(self, context: Context, spec: TaskSpec, **options: Any) -> Claim:
        """Get a Qarnot task that starts with the last snapshot, and let Qarnot take the next ones."""
        from airflow_qarnot_pool.operators.bases import snapshots
        from airflow_qarnot_pool.ownership.claim import FINGERPRINT_EXCLUDES

        # The bucket of the snapshots may not exist for one try and exist for the next, which adopts all the same.
        options = {"fingerprint": spec.fingerprint(exclude=FINGERPRINT_EXCLUDES), **options}
        spec = snapshots.with_place(spec, self._identity_of(context).lineage)
        try:
            claimed = self._claim(context, snapshots.resuming(spec), **options)
        except QarnotBucketNotFoundError as error:
            self.log.info("Trying to start without a snapshot: %s", error)
            claimed = self._claim(context, spec, **options)
        with self._ending_on_error("its snapshots were refused"):
            snapshots.start(self.client.tasks, claimed.uuid, claimed.existing, spec, self.log)
        return claimed

    def execute(self, context: Context) -> Any:
        """Run the Qarnot task, or adopt it, and return its summary."""
        return self._submit_and_wait(context)

    def _set_identity(self, context: Context) -> None:
        """Keep the identity, which the node reports with the result."""
        self._identity = self._identity_of(context)

    def _submit_and_wait(
        self,
        context: Context,
        deadline: datetime | None = None,
        *,
        resubmitted: bool = False,
        pool: str | None = None,
        moved: int = 0,
        cancelled: Mapping[str, Task] = MappingProxyType({}),
    ) -> Any:
        """Claim the Qarnot task, wait for it, and return its result.

        :param pool: took the place of the one that was given, which was closed under *moved* submissions of this try.
        :param cancelled: the Qarnot task that this one replaces, by its uuid: it was cancelled, or lost its nodes.
        """
        look = bool(cancelled)
        with self._ending_in_the_last_try():
            if not look:
                self._begin(context)
                if self.returns_output:
                    self._set_identity(context)
            values = self._given_now()
            spec = self._spec(values, pool or self._pool_uuid())
            if spec.reports:
                self._labels.pop(RECORDABLE_LABEL, None)  # a record has no value
            refine = self._ladder_step(context, deadline) if spec.ladder else self._refine
            for _ in range(MAX_GENERATIONS):
                try:
                    claim = self._claim_with_snapshots if spec.snapshot_every else self._claim
                    claimed = claim(
                        context,
                        spec,
                        labels=self._labels,
                        refine=refine,
                        refines_first=bool(spec.ladder),
                        lookup_first=look,
                        ended=dict(cancelled),
                    )
                    break
                except (QarnotRefusedError, QarnotNotFoundError) as error:
                    spec = self._on_next_pool(context, spec, error)
            else:
                raise self._closed_too_often(spec.pool)
            # One that was taken over may be on the pool of an earlier try.
            self._stays_on(claimed.pool)
            if not self.wait_for_completion:
                return {"uuid": claimed.uuid, "name": spec.name, "pool": spec.pool}
            resume_state = {"decision": str(claimed.decision), "resubmitted": resubmitted, "moved": moved}
            resume_state |= self._carried()
            deadline = deadline or self._deadline(context)
            has_hint = self.do_xcom_push and not spec.return_file
            forecast = self._forecast(context, claimed, has_hint=has_hint)
        outcome = claimed.outcome_if_done(TASK_ENDED)
        if outcome is None:
            outcome = self._wait(claimed.uuid, TASK_ENDED, deadline, resume_state, forecast=forecast)
        return self._finish(context, outcome, resume_state)

    def _ladder_step(self, context: Context, deadline: datetime | None) -> LadderStep:
        """Return the function that makes the spec of each generation, with its nodes."""
        from airflow_qarnot_pool.operators.bases.ladder import LadderStep

        self._labels.pop(RECORDABLE_LABEL, None)  # a record does not tell a loss
        return LadderStep(self, context, deadline or self._deadline(context))

    def _refine(self, spec: TaskSpec, earlier: Iterable[Task]) -> TaskSpec:
        """Return the spec of the next generation, apart from its nodes."""
        return without_succeeded(spec, earlier)

    def _carried(self) -> dict[str, Any]:
        """Return what a resumed process has to know besides."""
        return {"ladder": self._climb.to_json()} if self._climb.losses else {}

    def _expected_seconds(self, context: Context) -> float | None:
        """Return how long the Qarnot task of the previous DAG run took, by the result of this Airflow task there."""
        try:
            return duration_of(xcoms.pull_newest(context["ti"], "return_value"))
        except Exception as error:  # of Airflow's; without the result the polls follow the age
            self.log.debug("The result of the previous DAG run could not be read: %s", error)
            return None

    def _stays_on(self, pool: str | None) -> None:
        """Remember the pool of the awaited Qarnot task."""
        self._pools_of_tasks = (pool,) if pool else ()

    def _on_next_pool(
        self, context: Context, spec: TaskSpec, error: QarnotRefusedError | QarnotNotFoundError
    ) -> TaskSpec:
        """Return *spec* for the pool that replaces a shared one that was closed. Raise *error* if there is none."""
        if not spec.pool or isinstance(error, QarnotBucketNotFoundError):
            raise error
        self._costs.raise_if_over(cause=error)
        # The server's sentence need not name the pool, and a closed one is the usual reason.
        pool = self._next_pool(context, spec.pool)
        if pool is None:
            self._explain_refusal(spec.pool, error)
            raise error
        return replace(spec, pool=pool)

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Return the result of the Qarnot task that ended, or raise what became of it."""
        outcome = self._resume(context, event)
        return self._finish(context, outcome, outcome.resume_state)

    def _prepare_to_resume(self, context: Context, outcome: WaitResult) -> None:
        if self.returns_output:
            self._set_identity(context)
        self._mask_secrets()
        super()._prepare_to_resume(context, outcome)

    def _ended(self, context: Context, outcome: WaitResult) -> tuple[Task, bool]:
        """Return the Qarnot task whose wait has ended, and whether it is deleted and comes from its record."""
        from airflow_qarnot_pool.ownership.records import recorded_tasks

        if outcome.ending is not EndReason.GONE:
            self._raise_for(outcome)
            if outcome.remote is not None:
                return outcome.remote, False
            with suppress(QarnotNotFoundError, QarnotRefusedError):
                return self.client.tasks.get(outcome.uuid), False
        # Another process may have needed its place under the account's quota.
        if found := recorded_tasks(self.client, self._identity_of(context)).get(outcome.uuid):
            return found, True
        self._raise_for(outcome)
        return get_confirmed(self.client.tasks, outcome.uuid), False

    def _finish(self, context: Context, outcome: WaitResult, resume_state: Mapping[str, Any]) -> Any:
        from airflow_qarnot_pool.logs.writer import acquire_lease

        if stored := resume_state.get("ladder"):
            self._climb = Climb.from_json(stored)
        if outcome.ending is EndReason.IMPOSSIBLE:
            return self._stranded(context, outcome, resume_state)
        task, is_deleted = self._ended(context, outcome)
        if self.log_output and not is_deleted:
            if written := resume_state.get("output"):
                self._position = acquire_lease(context["ti"], written, self.log)
            self._write_output(task.uuid, finished=True)
        state = states.parse_task_state(task.state)
        if state is states.TaskState.CANCELLED:
            return self._cancelled(context, task, resume_state)
        if self._is_to_be_replaced(context, task):
            return self._submit_again(context, task, resume_state, pool=task.pool)
        try:
            return self._result_or_error(task, succeeded=state is states.TaskState.SUCCESS)
        finally:
            self._push_progress(context)

    def _is_to_be_replaced(self, context: Context, task: Task) -> bool:
        """Return whether a Qarnot task that has ended lost its nodes, and its ladder has a generation for this try."""
        values = self._given()
        if not values.get("ladder"):
            return False
        from airflow_qarnot_pool.operators.bases.ladder import note_work

        spec = self._spec(values, task.pool)
        if not is_lost(task):
            if states.parse_task_state(task.state) is states.TaskState.SUCCESS:
                note_work(
                    context,
                    task,
                    self._climb,
                    resumed=spec.snapshot_every is not None,
                    repeats_all=self._repeats_all(spec),
                )
            return False
        self._climb = self._climb.after(task)
        rungs, losses = len(spec.ladder), self._climb.losses
        self.log.warning(
            "Qarnot task %s lost its nodes: loss %d of at most %d in a try", task.uuid, losses, rungs
        )
        return losses < rungs

    def _repeats_all(self, spec: TaskSpec) -> bool:
        """Return whether the Qarnot task that replaces one has all of the work, and not only what is left of it."""
        return len(spec.instance_ids()) == 1

    def _push_progress(self, context: Context) -> None:
        if (progress := self._last_progress()) is not None:
            context["ti"].xcom_push(key=PROGRESS_KEY, value=progress)

    def _last_progress(self) -> dict[str, Any] | None:
        """Return the last progress that the node has reported, if any."""
        return None if self._progress is None else self._progress.last

    def _result_or_error(self, task: Task, *, succeeded: bool) -> Any:
        """Return the result of a Qarnot task that has ended, or raise why it has none."""
        if succeeded:
            return self._result(task)
        failed = QarnotNodeLostError if is_node_loss(task) else QarnotTaskFailedError
        raise failed(self._report(task), kind="task", ref=task.uuid)

    # --- its output

    def _write_output(self, uuid: str, *, finished: bool) -> None:
        """Write the new output to the log."""
        from airflow_qarnot_pool.logs.checkpoint import Offset
        from airflow_qarnot_pool.logs.writer import write_new_output

        position = self._written(uuid) or Offset(cursor=self._nothing_written(uuid))
        self._position = write_new_output(partial(self._kept, uuid), position, self.log, finished=finished)

    def _still_waiting(self, remote: Task) -> None:
        if self.log_output == "live":
            self._write_output(remote.uuid, finished=False)

    def _trigger_options(self, uuid: str) -> dict[str, Any]:
        if self.log_output != "live":
            return {}
        if secrets := self._secret_constants():
            self.log.warning(
                "The output of Qarnot task %s is logged when it is done, and not live: the triggerer cannot mask "
                "the secret constants %s. With deferrable=False it is live",
                uuid,
                ", ".join(sorted(secrets)),
            )
            return {}
        written = self._written(uuid)
        cursor = written.cursor if written else self._nothing_written(uuid)
        return {"follow_logs": {"secrets_of": self.registry_conn_id, **cursor.to_json()}}

    def _written(self, uuid: str) -> Offset | None:
        """Return how much of the output this process has written, if any."""
        position = self._position
        return position if position is not None and position.cursor.uuid == uuid else None

    def _defer(
        self, uuid: str, condition: dict[str, Any], deadline: datetime | None, resume_state: dict[str, Any]
    ) -> NoReturn:
        if written := self._written(uuid):
            # The trigger replaces it. It may not follow the output, as with secret constants.
            resume_state["output"] = written.to_json()
        super()._defer(uuid, condition, deadline, resume_state)

    # --- the report in its output

    def _new_finder(self) -> LineFinder[Any] | None:
        """Return a finder of the report in the output of instance 0; None if there is none."""
        from airflow_qarnot_pool.operators.bases.command_result import command_finder

        return command_finder() if self._spec(self._given(), self._some_pool).reports else None

    def _nothing_written(self, uuid: str) -> LogCursor:
        from airflow_qarnot_pool.logs.cursor import LogCursor

        finder = self._new_finder()
        # The report is not logged.
        return (
            LogCursor(uuid=uuid) if finder is None else LogCursor(uuid=uuid, instance=0, hidden=finder.mark)
        )

    def _kept(self, uuid: str, stream: str, seconds: float) -> Iterable[str]:
        """Return all that Qarnot keeps of a stream of the output, read in *seconds*, and search it for the report."""
        from airflow_qarnot_pool.logs.report import ProgressFinder
        from airflow_qarnot_pool.logs.writer import fetch

        finder = self._new_finder()
        if finder is None:
            return fetch(self.client, uuid, stream, None, seconds)
        pieces = fetch(self.client, uuid, stream, 0, seconds)
        if stream != "stdout":
            return pieces
        self._finders[uuid] = finder
        self._progress = ProgressFinder()
        return finder.watch(self._progress.watch(pieces))

    def _output(self, uuid: str) -> LineFinder[Any]:
        """Read all of standard output, and return the finder of its report."""
        from airflow_qarnot_pool.logs.writer import RESULT_DEADLINE, retry_broken_read

        finder = self._finders.get(uuid)
        if finder is None or not finder.complete:
            reading = partial(self._kept, uuid, "stdout")
            retry_broken_read(lambda seconds: deque(reading(seconds), maxlen=0), RESULT_DEADLINE)
        return self._finders[uuid]

    def _report(self, task: Task) -> str:
        from airflow_qarnot_pool.logs.failure_report import failure_report

        return failure_report(self.client, task, self.hook.settings.console_link("task", task.uuid))

    def _result(self, task: Task) -> Any:
        """Return the summary, or the value that the command returned."""
        from airflow_qarnot_pool.operators.bases.command_result import result_of

        spec = self._spec(self._given(), task.pool)
        if not spec.reports:
            return self._summary(task)
        result = result_of(self._output(task.uuid), task.uuid)
        if result.skipped_with is not None:
            raise AirflowSkipException(f"The command exited with code {result.skipped_with}")
        return result.value if spec.return_file else self._summary(task)

    def _stranded(self, context: Context, outcome: WaitResult, resume_state: Mapping[str, Any]) -> Any:
        """Handle a Qarnot task that reaches no end: it is being deleted, or stays queued on a pool that has ended.

        The latter is ended, and then counts as cancelled.
        """
        from airflow_qarnot_pool.ownership.termination import end

        with self._ending_in_the_last_try():
            task = self._find_undeleted(outcome.uuid)
        if task is None:
            message = f"Qarnot task {outcome.uuid} was deleted before its end was seen"
            gone = replace(outcome, ending=EndReason.GONE, message=message)
            return self._finish(context, gone, resume_state)
        if not is_queued(task.state):
            limit = resume_state.get("deadline")
            deadline = parse_stored_time(limit) if limit else None
            self._stays_on(task.pool)
            return self._finish(
                context, self._wait(task.uuid, TASK_ENDED, deadline, dict(resume_state)), resume_state
            )
        end(self.client.tasks, task.uuid)
        error = QarnotPoolEndedError(
            outcome.message,
            kind="task",
            ref=task.uuid,
            remedy="Run the task that creates the pool again (clearing this task clears its setup, too).",
        )
        ended = replace(task, state=str(states.TaskState.CANCELLED))
        return self._cancelled(context, ended, resume_state, error)

    def _find_undeleted(self, uuid: str) -> Task | None:
        """Return a Qarnot task; None if it is deleted, which may last until its processes have ended."""
        task: Task | None = find_confirmed(self.client.tasks, uuid)
        if task is None:
            return None
        return None if states.parse_task_state(task.state) is states.TaskState.PENDING_DELETE else task

    def _cancelled(
        self, context: Context, task: Task, resume_state: Mapping[str, Any], error: QarnotError | None = None
    ) -> Any:
        """Run a Qarnot task again that another process cancelled, or raise.

        It runs again if an earlier try may have been about to end it, or if its shared pool was closed under it.

        :param error: what to raise otherwise; default: that it was cancelled.
        """
        self._costs.watch(context, task.pool or task.uuid, "pool" if task.pool else "task")
        self._costs.raise_if_over()
        moved = int(resume_state.get("moved") or 0)
        if moved < MAX_GENERATIONS and task.pool and (pool := self._next_pool(context, task.pool)):
            return self._submit_again(context, task, resume_state, pool=pool, moved=moved + 1)
        if resume_state.get("decision") == "adopted" and not resume_state.get("resubmitted"):
            self.log.info(
                "Qarnot task %s, taken over from an earlier try, was cancelled; submitting again", task.uuid
            )
            return self._submit_again(context, task, resume_state, resubmitted=True, moved=0)
        raise error or QarnotTaskCancelledError(self._report(task), kind="task", ref=task.uuid)

    def _submit_again(
        self, context: Context, ended: Task, resume_state: Mapping[str, Any], **options: Any
    ) -> Any:
        """Submit the Qarnot task that replaces one that has *ended*, and wait for it until the same deadline.

        :param options: of :meth:`_submit_and_wait`, in place of those in *resume_state*.
        """
        limit = resume_state.get("deadline")
        kept = {
            "deadline": parse_stored_time(limit) if limit else None,
            "resubmitted": bool(resume_state.get("resubmitted")),
            "moved": int(resume_state.get("moved") or 0),
        }
        return self._submit_and_wait(context, **{**kept, **options}, cancelled={ended.uuid: ended})

    def _summary(self, task: Task) -> dict[str, Any]:
        wanted = self._spec(self._given(), task.pool).instance_ids()
        failed = len(task.failed_instances)
        return {
            "uuid": task.uuid,
            "name": task.name,
            "state": task.state,
            "pool": task.pool,
            "instances": len(wanted),
            "succeeded": len(wanted) - failed,
            "failed": failed,
            "created": task.creation_date.isoformat() if task.creation_date else None,
            "ended": task.end_date.isoformat() if task.end_date else None,
            "wall_seconds": None if task.wall_time is None else task.wall_time.total_seconds(),
            "execution_seconds": task.executed_seconds,
            "result_bucket": task.result_bucket,
        }

    def _awaited(self) -> Condition:
        return TASK_DONE

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger

        return QarnotTaskTrigger


def duration_of(result: Any) -> float | None:
    """Return the seconds from the submission to the end of a Qarnot task, by the result of its Airflow task.

    None if *result* does not say. Qarnot may round the wall time down to a second, and the execution time is exact.
    """
    if not isinstance(result, Mapping):
        return None
    wall, executed, instances = (
        result.get(name) for name in ("wall_seconds", "execution_seconds", "instances")
    )
    if not isinstance(wall, (int, float)):
        return None
    exact = executed / instances if isinstance(executed, (int, float)) and instances else 0.0
    return max(wall, exact)


def without_succeeded(spec: TaskSpec, earlier: Iterable[Task]) -> TaskSpec:
    """Return *spec* for the instances that have not succeeded, or for all of them if none remains.

    The instances of a cluster profile (``docker-cluster``) work together, so all of them run again.
    """
    from airflow_qarnot_pool.api.ranges import format_ranges

    wanted = spec.instance_ids()
    alone = [task for task in earlier if "cluster" not in (task.profile or "")]
    done = frozenset().union(*(task.succeeded_instances for task in alone))
    left = wanted - done
    if not left or left == wanted:
        return spec
    return replace(spec, instance_count=None, ranges=format_ranges(left, explicit=True))


__all__ = ["QarnotRunTaskOperator", "duration_of", "without_succeeded"]
