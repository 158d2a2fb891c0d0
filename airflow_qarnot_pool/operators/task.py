"""Run Qarnot tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError, QarnotRefusedError
from airflow_qarnot_pool.conditions import TASK_ENDED
from airflow_qarnot_pool.costs import executed
from airflow_qarnot_pool.exceptions import (
    QarnotNodeLostError,
    QarnotTaskCancelledError,
    QarnotTaskFailedError,
)
from airflow_qarnot_pool.links import LINKS
from airflow_qarnot_pool.operators.base import already
from airflow_qarnot_pool.operators.parameters import check_sizes, sizes_given
from airflow_qarnot_pool.operators.task_base import COMMON_FIELDS, TaskOperator
from airflow_qarnot_pool.output import failure_report, log_output, lost_nodes
from airflow_qarnot_pool.templates import known_at_parse
from airflow_qarnot_pool.triggers.keys import TASK_KEY

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.claim import Claim
    from airflow_qarnot_pool.conditions import Outcome
    from airflow_qarnot_pool.triggers.base import QarnotTrigger


class QarnotRunTaskOperator(TaskOperator):
    """Run a command on a pool, or on nodes booted for it alone, and wait for its end.

    Each life of the Airflow task has one Qarnot task: a retry takes up the one of the try before it where that
    runs or succeeded, and submits another where it failed; a clear aborts the old one and submits another.
    Returns a small dict: ``uuid, name, state, pool, instances, succeeded, failed, created, ended,
    wall_seconds, execution_seconds, result_bucket``. The output of the instances goes to the Airflow task log.

    Parameters besides these: :class:`~airflow_qarnot_pool.operators.task_base.TaskOperator`.

    :param command: what each instance runs (``DOCKER_CMD``), as text or a list of words. ``${NAME}`` stands for
        constants and for ``${INSTANCE_ID}``; use ``sh -c '...'`` for a shell.
    :param instance_count: how many instances, with ``INSTANCE_ID`` 0 to n-1.
    :param ranges: or their ids, such as ``"0-2,5"``.
    :param retry_scope: what an Airflow retry runs again: the instances that did not succeed (``"failed"``), or
        ``"all"``.
    :param log_output: write the instances' output to the Airflow task log when they are done.
    """

    uuid_key = TASK_KEY
    operator_extra_links = (LINKS["task"],)
    spec_fields = (*COMMON_FIELDS, "command", "instance_count", "ranges")
    template_fields = (*TaskOperator.template_fields, "command", "instance_count", "ranges")
    template_fields_renderers = {"command": "bash", "task_spec": "json", "constants": "json"}

    def __init__(
        self,
        *,
        command: str | Sequence[str] | None = None,
        instance_count: int | str | None = None,
        ranges: str | None = None,
        retry_scope: Literal["failed", "all"] = "failed",
        log_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.command = command
        self.instance_count = instance_count
        self.ranges = ranges
        self.retry_scope = retry_scope
        self.log_output = log_output
        self._sizes = sizes_given(self, ("instance_count", "ranges"))
        if retry_scope not in ("failed", "all"):
            raise QarnotInvalidSpecError(
                f"retry_scope must be 'failed' or 'all', not {retry_scope!r}", field="retry_scope"
            )
        if command is None and "DOCKER_CMD" not in (self.constants or {}) and not self.task_spec:
            raise QarnotInvalidSpecError(
                "command is missing: what should the Qarnot task run?", field="command"
            )
        self._spec(known_at_parse(self._given()), self._some_pool)

    def _given(self) -> dict[str, Any]:
        check_sizes(self, self._sizes)
        return super()._given()

    # --- running it

    def execute(self, context: Context) -> dict[str, Any]:
        return self._submit_and_wait(context, resubmitted=False)

    def _submit_and_wait(
        self, context: Context, deadline: datetime | None = None, *, resubmitted: bool
    ) -> dict[str, Any]:
        spec = self._spec(self._given_now(), self._pool_uuid())
        claimed = self._claim_task(context, spec)
        if not self.wait_for_completion:
            return {"uuid": claimed.uuid, "name": spec.name, "pool": spec.pool}
        carry = {"decision": str(claimed.decision), "resubmitted": resubmitted}
        outcome = already(claimed, TASK_ENDED)
        if outcome is None:
            deadline = deadline or self._deadline(context)
            outcome = self._wait(claimed.uuid, TASK_ENDED, deadline, carry)
        return self._finish(context, outcome, carry)

    def _claim_task(self, context: Context, spec: TaskSpec) -> Claim:
        refine = None if self.retry_scope == "all" else without_succeeded
        try:
            return self._claim(context, spec, refine)
        except QarnotRefusedError as error:
            if spec.pool:
                # The server's sentence need not name the pool, and a closed one is the usual reason.
                self._explain_refusal(spec.pool, error)
            raise

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of the Qarnot task that ended, or raise what became of it."""
        self._mask_secrets()
        outcome = self._resumed(context, event)
        return self._finish(context, outcome, outcome.carry)

    def _finish(self, context: Context, outcome: Outcome, carry: Mapping[str, Any]) -> Any:
        self._raise_for(outcome)
        task = self.client.tasks.get(outcome.uuid)
        if self.log_output:
            self._log_output(task)
        state = states.parse_task_state(task.state)
        if state is states.TaskState.CANCELLED:
            return self._cancelled(context, task, carry)
        if state is not states.TaskState.SUCCESS:
            failed = QarnotNodeLostError if lost_nodes(task) else QarnotTaskFailedError
            raise failed(self._report(task), kind="task", ref=task.uuid)
        return self._result(task)

    # What @task.qarnot does in its own way.

    def _log_output(self, task: Task) -> None:
        log_output(self.client, task, self.log)

    def _report(self, task: Task) -> str:
        return failure_report(self.client, task, self.hook.settings.console_link("task", task.uuid))

    def _result(self, task: Task) -> Any:
        return self._summary(task)

    def _cancelled(self, context: Context, task: Task, carry: Mapping[str, Any]) -> dict[str, Any]:
        """Somebody else cancelled it. One that an earlier try left may have been on its way out: run it again."""
        if carry.get("decision") == "adopted" and not carry.get("resubmitted"):
            self.log.info(
                "Qarnot task %s, taken over from an earlier try, was cancelled; submitting again", task.uuid
            )
            deadline = carry.get("deadline")
            return self._submit_and_wait(
                context, datetime.fromisoformat(deadline) if deadline else None, resubmitted=True
            )
        raise QarnotTaskCancelledError(self._report(task), kind="task", ref=task.uuid)

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
            "wall_seconds": task.wall_time.total_seconds() if task.wall_time else None,
            "execution_seconds": executed(task),
            "result_bucket": task.result_bucket,
        }

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.task import QarnotTaskTrigger

        return QarnotTaskTrigger


def without_succeeded(spec: TaskSpec, earlier: Iterable[Task]) -> TaskSpec:
    """*spec* for the instances that no earlier generation ran to success; all of them where none is left."""
    from dataclasses import replace

    from airflow_qarnot_pool.api.ranges import format_ranges

    wanted = spec.instance_ids()
    done = frozenset().union(*(task.succeeded_instances for task in earlier))
    left = wanted - done
    if not left or left == wanted:
        return spec
    return replace(spec, instance_count=None, ranges=format_ranges(left, explicit=True))


__all__ = ["QarnotRunTaskOperator", "without_succeeded"]
