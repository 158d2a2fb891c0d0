"""Run Qarnot tasks."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import QarnotError, QarnotInvalidSpecError, QarnotRefusedError
from airflow_qarnot_pool.claim import Decision
from airflow_qarnot_pool.conditions import TASK_ENDED
from airflow_qarnot_pool.exceptions import (
    QarnotPoolEndedError,
    QarnotTaskCancelledError,
    QarnotTaskFailedError,
)
from airflow_qarnot_pool.links import LINKS
from airflow_qarnot_pool.operators.base import WaitingOperator, already, reference
from airflow_qarnot_pool.operators.parameters import given, is_uuid, names_registry, task_spec
from airflow_qarnot_pool.output import failure_report, log_output
from airflow_qarnot_pool.templates import known_at_parse
from airflow_qarnot_pool.triggers.keys import TASK_KEY

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import ResourceBucket, RetrySettings, TaskSpec
    from airflow_qarnot_pool.claim import Claim
    from airflow_qarnot_pool.conditions import Outcome
    from airflow_qarnot_pool.triggers.base import QarnotTrigger

_FIELDS = (
    "name",
    "command",
    "image",
    "profile",
    "instance_count",
    "ranges",
    "constants",
    "resource_buckets",
    "result_bucket",
    "results_prefix",
    "results_whitelist",
    "tags",
)


class QarnotRunTaskOperator(WaitingOperator):
    """Run a command on a pool, or on nodes booted for it alone, and wait for its end.

    Each life of the Airflow task has one Qarnot task: a retry takes up the one of the try before it where that
    runs or succeeded, and submits another where it failed; a clear aborts the old one and submits another.
    Returns a small dict: ``uuid, name, state, pool, instances, succeeded, failed, created, ended,
    wall_seconds, execution_seconds, result_bucket``. The output of the instances goes to the Airflow task log.

    :param command: what each instance runs (``DOCKER_CMD``), as text or a list of words. ``${NAME}`` stands for
        constants and for ``${INSTANCE_ID}``; use ``sh -c '...'`` for a shell.
    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it. Without one the
        Qarnot task gets nodes of its own, which have to boot.
    :param image: ``[registry/]repository[:tag]``; default: the pool's, else Qarnot's.
    :param profile: profile of a Qarnot task without a pool.
    :param instance_count: how many instances, with ``INSTANCE_ID`` 0 to n-1.
    :param ranges: or their ids, such as ``"0-2,5"``.
    :param constants: constants, text to text; each instance sees them as environment variables.
    :param resource_buckets: buckets (names or ``ResourceBucket``) whose files the instances get.
    :param result_bucket: bucket that gets the files the instances write; made where it is missing.
    :param results_prefix: prefix of the results in that bucket.
    :param results_whitelist: regular expression of the files to keep.
    :param remote_retries: how often Qarnot itself runs a failed instance again; a number per instance, or
        :class:`~airflow_qarnot_pool.api.specs.RetrySettings`.
    :param registry_conn_id: Airflow connection with login and password (and host) of a private registry.
    :param tags: up to seven tags; three are the provider's.
    :param task_spec: any other field of :class:`~airflow_qarnot_pool.api.specs.TaskSpec`, by its name there or
        in the API.
    :param retry_scope: what an Airflow retry runs again: the instances that did not succeed (``"failed"``), or
        ``"all"``.
    :param log_output: write the instances' output to the Airflow task log when they are done.
    """

    kind = "task"
    uuid_key = TASK_KEY
    operator_extra_links = (LINKS["task"],)
    template_fields = (
        *WaitingOperator.template_fields,
        *_FIELDS,
        "qarnot_pool",
        "remote_retries",
        "registry_conn_id",
        "task_spec",
    )
    template_fields_renderers = {"command": "bash", "task_spec": "json", "constants": "json"}

    def __init__(
        self,
        *,
        command: str | Sequence[str] | None = None,
        qarnot_pool: Any = None,
        name: str | None = None,
        image: str | None = None,
        profile: str | None = None,
        instance_count: int | str | None = None,
        ranges: str | None = None,
        constants: Mapping[str, str] | None = None,
        resource_buckets: Iterable[str | ResourceBucket] | None = None,
        result_bucket: str | None = None,
        results_prefix: str | None = None,
        results_whitelist: str | None = None,
        remote_retries: int | str | RetrySettings | Mapping[str, Any] | None = None,
        registry_conn_id: str | None = None,
        tags: Iterable[str] | None = None,
        task_spec: Mapping[str, Any] | None = None,
        retry_scope: Literal["failed", "all"] = "failed",
        log_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.command = command
        self.qarnot_pool = qarnot_pool
        self.name = name
        self.image = image
        self.profile = profile
        self.instance_count = instance_count
        self.ranges = ranges
        self.constants = constants
        self.resource_buckets = resource_buckets
        self.result_bucket = result_bucket
        self.results_prefix = results_prefix
        self.results_whitelist = results_whitelist
        self.remote_retries = remote_retries
        self.registry_conn_id = registry_conn_id
        self.tags = tags
        self.task_spec = task_spec
        self.retry_scope = retry_scope
        self.log_output = log_output
        if retry_scope not in ("failed", "all"):
            raise QarnotInvalidSpecError(
                f"retry_scope must be 'failed' or 'all', not {retry_scope!r}", field="retry_scope"
            )
        if command is None and "DOCKER_CMD" not in (constants or {}) and not task_spec:
            raise QarnotInvalidSpecError(
                "command is missing: what should the Qarnot task run?", field="command"
            )
        # Only whether there is a pool matters here; which one is often known at run time only.
        self._spec(
            known_at_parse(self._given()), pool="known-at-run-time" if qarnot_pool is not None else None
        )

    # --- what to run

    def _given(self) -> dict[str, Any]:
        values = given(self, _FIELDS, self.task_spec, "task_spec")
        if isinstance(values.get("command"), (list, tuple)):
            values["command"] = shlex.join(map(str, values["command"]))
        if self.remote_retries is not None:
            per_instance = isinstance(self.remote_retries, (int, str)) and str(self.remote_retries).isdigit()
            values["retry"] = (
                {"max_per_instance_retries": self.remote_retries} if per_instance else self.remote_retries
            )
        return values

    def _spec(self, values: Mapping[str, Any], pool: str | None) -> TaskSpec:
        return task_spec({"name": f"{self.dag_id}.{self.task_id}", "pool": pool, **values})

    def _spec_now(self) -> TaskSpec:
        """The spec with everything rendered, the pool's uuid and the registry's login."""
        pool = None
        if self.qarnot_pool is not None:
            ref = reference(self.qarnot_pool, "qarnot_pool")
            pool = ref if is_uuid(ref) else self.client.pools.get(ref).uuid
        values = self._given()
        if self.registry_conn_id:
            values["constants"] = {**(values.get("constants") or {}), **self._registry_login()}
        return self._spec(values, pool)

    def _registry_login(self) -> dict[str, str]:
        from airflow.sdk import BaseHook
        from airflow.sdk.log import mask_secret

        connection = BaseHook.get_connection(str(self.registry_conn_id))
        login = {
            "DOCKER_REGISTRY_LOGIN": connection.login,
            "DOCKER_REGISTRY_PASSWORD": connection.password,
        }
        for name, value in login.items():
            if not value:
                raise QarnotInvalidSpecError(
                    f"Connection {self.registry_conn_id!r} has no {name.rsplit('_', 1)[-1].lower()}",
                    field="registry_conn_id",
                )
        mask_secret(connection.password)
        if connection.host and not names_registry(self.image):
            host = connection.host if "://" in connection.host else f"https://{connection.host}"
            login["DOCKER_SRV"] = host
        return {name: str(value) for name, value in login.items()}

    # --- running it

    def execute(self, context: Context) -> dict[str, Any]:
        return self._submit_and_wait(context, self._deadline(context), resubmitted=False)

    def _submit_and_wait(
        self, context: Context, deadline: datetime | None, *, resubmitted: bool
    ) -> dict[str, Any]:
        spec = self._spec_now()
        claimed = self._claim_task(context, spec)
        if not self.wait_for_completion:
            return {"uuid": claimed.uuid, "name": spec.name, "pool": spec.pool}
        carry = {"decision": str(claimed.decision), "resubmitted": resubmitted}
        outcome = already(claimed, TASK_ENDED)
        if outcome is None:
            outcome = self._wait(claimed.uuid, TASK_ENDED, deadline, carry)
        return self._finish(context, outcome, carry)

    def _claim_task(self, context: Context, spec: TaskSpec) -> Claim:
        refine = None if self.retry_scope == "all" else without_succeeded
        try:
            return self._claim(context, spec, refine)
        except QarnotRefusedError as error:
            if spec.pool:
                # The server's sentence need not name the pool, and a closed one is the usual reason.
                self._refuse_closed_pool(spec.pool, error)
            raise

    def _refuse_closed_pool(self, uuid: str, error: QarnotRefusedError) -> None:
        try:
            pool = self.client.pools.get(uuid)
        except QarnotError:
            return
        if not states.accepts_tasks(pool.state):
            raise QarnotPoolEndedError(
                f"Pool {uuid} is {pool.state} and takes no more tasks; run the task that creates it again "
                "(clearing this task clears its setup, too)",
                status=error.status,
                server_message=error.server_message,
                kind="pool",
                ref=uuid,
            ) from error

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of the Qarnot task that ended, or raise what became of it."""
        outcome = self._resumed(context, event)
        return self._finish(context, outcome, outcome.carry)

    def _finish(self, context: Context, outcome: Outcome, carry: Mapping[str, Any]) -> dict[str, Any]:
        self._raise_for(outcome)
        task = self.client.tasks.get(outcome.uuid)
        if self.log_output:
            log_output(self.client, task, self.log)
        state = states.parse_task_state(task.state)
        if state is states.TaskState.CANCELLED:
            return self._cancelled(context, task, carry)
        if state is not states.TaskState.SUCCESS:
            raise QarnotTaskFailedError(
                failure_report(self.client, task, self.hook.settings.console_link("task", task.uuid)),
                kind="task",
                ref=task.uuid,
            )
        return self._summary(task)

    def _cancelled(self, context: Context, task: Task, carry: Mapping[str, Any]) -> dict[str, Any]:
        """Somebody else cancelled it. One that an earlier try left may have been on its way out: run it again."""
        if carry.get("decision") == Decision.ADOPTED and not carry.get("resubmitted"):
            self.log.info(
                "Qarnot task %s, taken over from an earlier try, was cancelled; submitting again", task.uuid
            )
            deadline = carry.get("deadline")
            return self._submit_and_wait(
                context, datetime.fromisoformat(deadline) if deadline else None, resubmitted=True
            )
        raise QarnotTaskCancelledError(
            failure_report(self.client, task, self.hook.settings.console_link("task", task.uuid)),
            kind="task",
            ref=task.uuid,
        )

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
            "execution_seconds": task.execution_time.total_seconds() if task.execution_time else None,
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
    return replace(spec, instance_count=None, ranges=format_ranges(left))


__all__ = ["QarnotRunTaskOperator", "without_succeeded"]
