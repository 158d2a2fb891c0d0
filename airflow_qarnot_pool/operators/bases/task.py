"""Base of the operators that run Qarnot tasks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.api.fields import is_uuid
from airflow_qarnot_pool.exceptions import (
    QarnotKilledError,
    QarnotPoolEndedError,
    QarnotTaskFailedError,
    QarnotWaitTimeoutError,
)
from airflow_qarnot_pool.operators.bases.base import WAIT_FIELDS, QarnotOperator
from airflow_qarnot_pool.operators.bases.cost_limits import (
    COST_LIMIT_FIELDS,
    accept_limits,
    check_limit_parameters,
)
from airflow_qarnot_pool.operators.bases.registry_login import RegistryLogin
from airflow_qarnot_pool.ownership.identity import DETACHED_LABEL, UNAWAITED_LABEL
from airflow_qarnot_pool.parameters.configuration import sends_parent_run
from airflow_qarnot_pool.parameters.references import (
    NOTSET,
    as_reference,
    reject_none,
    resolve_ref,
)
from airflow_qarnot_pool.parameters.templating import PLACEHOLDER, hide_secrets
from airflow_qarnot_pool.parameters.validation import (
    Duration,
    check_durations,
    check_rendered,
    has_values,
    make_task_spec,
    parse_rendered,
    secret_constants,
    spec_values,
)
from airflow_qarnot_pool.waiting.polling import get_confirmed

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.specs import ResourceBucket, TaskSpec

COMMON_FIELDS = ("image", "constants", "resource_buckets", "result_bucket")
#: Parameters whose loss would not be noticed, or only after the work.
FILLED = (*COMMON_FIELDS, "registry_conn_id", "task_spec")


class TaskOperator(QarnotOperator):
    """Base of the operators that run Qarnot tasks.

    Container and files:

    :param image: ``[registry/]repository[:tag]``; default: the pool's, else Qarnot's.
    :param registry_conn_id: Airflow connection with login and password of a private registry. Host (or URL) and port
        say which one; the login is sent to no other. Without a host it is sent to the registry of the image.
    :param constants: constants, text to text; each instance sees them as environment variables. Write secret ones
        (``QARNOT_SECRET__...``) as templates such as ``"{{ conn.vault.password }}"``: a literal is masked wherever
        Airflow shows parameters, but stands in the DAG's source all the same.
    :param resource_buckets: buckets (names or ``ResourceBucket``) whose files the instances get.
    :param result_bucket: bucket that gets the files the instances write. A missing bucket is created.
    :param task_spec: any other field of :class:`~airflow_qarnot_pool.api.specs.TaskSpec`, by its name there or
        in the API: ``name``, ``tags``, ``profile``, ``ranges``, ``retry``, ``results_prefix``, ``results_whitelist``
        and more. Its values may be templates.

    Pool:

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that created it. Without it, a Qarnot
        task gets separate nodes, which have to boot. None, which an upstream task can return, is refused.
    :param max_cost: maximum cost of the pool, or of a Qarnot task without a pool, in euros. The object that
        reaches it is ended, and all tasks that wait on it fail with ``QarnotCostLimitError``, which is never retried.
        Default: the limit of the operator that creates the pool, whose ``max_run_cost`` counts in any case. A template
        that renders to nothing is refused.

    Wait:

    :param wait_for_completion: wait until the Qarnot task has ended; otherwise return as soon as it is accepted.
    :param deferrable: wait in the triggerer, with one poll for all waits of a connection. Default:
        ``[operators] default_deferrable`` of Airflow if it is set, else True.
    :param defer_after: maximum wait on the worker before the task defers, as a timedelta or seconds. A short Qarnot
        task then needs no second process. The task defers at once if its Qarnot task stays queued or was adopted, or
        if it is mapped many times. Default: ``[qarnot] defer_after``; 0 defers at once.
    :param wait_timeout: maximum wait, as a timedelta or seconds; default: no limit but ``execution_timeout``, which
        counts across deferral. The wait for room (``wait_for_quota``) is not part of it.
    :param wait_for_quota: maximum wait for room when a quota of the account is full; default: fail at once.
    :param cancel_on_kill: abort the Qarnot task when the Airflow task is killed, cleared or runs out of time. If the
        Airflow task fails in another way, it is aborted in any case, as nothing else would end it.
    """

    kind = "task"
    #: Parameters that are fields of the spec as they are.
    spec_fields: tuple[str, ...] = COMMON_FIELDS
    template_fields = (
        *QarnotOperator.template_fields,
        *WAIT_FIELDS,
        *COST_LIMIT_FIELDS,
        *COMMON_FIELDS,
        "defer_after",
        "qarnot_pool",
        "registry_conn_id",
        "task_spec",
    )

    def __init__(
        self,
        *,
        qarnot_pool: Any = NOTSET,
        image: str | None = None,
        registry_conn_id: str | None = None,
        constants: Mapping[str, str] | None = None,
        resource_buckets: Iterable[str | ResourceBucket] | None = None,
        result_bucket: str | None = None,
        task_spec: Mapping[str, Any] | None = None,
        wait_for_completion: bool = True,
        deferrable: bool | None = None,
        defer_after: Duration = None,
        wait_timeout: Duration = None,
        wait_for_quota: Duration = None,
        cancel_on_kill: bool = True,
        max_cost: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._set_wait(
            wait_for_completion=wait_for_completion,
            deferrable=deferrable,
            wait_timeout=wait_timeout,
            cancel_on_kill=cancel_on_kill,
            wait_for_quota=wait_for_quota,
        )
        self.defer_after = defer_after
        check_durations(zero=True, defer_after=defer_after)
        self.max_cost = max_cost
        #: Set by the operator that creates the pool.
        self.max_run_cost: float | str | None = None
        check_limit_parameters(self)
        #: Parameters that must not be empty when the task runs.
        self._filled = has_values(self, COST_LIMIT_FIELDS)
        #: Kept, because a template of the pool may render to nothing, which must not mean "without a pool". The same
        #: holds for a None that is given here: the values of a mapped task come when they are known.
        self.on_pool = qarnot_pool is not NOTSET
        self.qarnot_pool = as_reference(qarnot_pool, "qarnot_pool") if self.on_pool else None
        if self.on_pool:
            reject_none(self.qarnot_pool, "qarnot_pool", self)
        accept_limits(self, getattr(qarnot_pool, "operator", None))
        self.image = image
        self.constants = hide_secrets(constants)
        self.resource_buckets = resource_buckets
        self.result_bucket = result_bucket
        self.registry_conn_id = registry_conn_id
        self.task_spec = hide_secrets(task_spec)
        self._registry: RegistryLogin | None = None
        self._parent_ids: dict[str, str] = {}
        self._sends_parent_run = sends_parent_run()
        #: Labels for the reaper, and for processes that make room under a quota.
        self._labels: dict[str, str] = {}
        if not (wait_for_completion and cancel_on_kill):
            self._labels[DETACHED_LABEL] = "true"
        if not wait_for_completion:
            self._labels[UNAWAITED_LABEL] = "true"
        self._filled += has_values(self, FILLED, "task_spec")

    def _given(self, *, parsing: bool = False) -> dict[str, Any]:
        """Return the fields of the spec, or those that are known when the DAG is parsed."""
        return spec_values(self, self.spec_fields, "task_spec", parsing=parsing)

    def _spec(self, values: Mapping[str, Any], pool: str | None) -> TaskSpec:
        spec = make_task_spec({"name": f"{self.dag_id}.{self.task_id}", "pool": pool, **values})
        if (spec.reports or spec.ladder) and not self.wait_for_completion:
            name = "ladder" if spec.ladder else "return_file" if spec.return_file else "skip_on_exit_code"
            raise QarnotInvalidSpecError(
                f"{name} has no effect without a wait, got wait_for_completion=False",
                field=name,
                remedy="Leave one of them out.",
            )
        spec = self._registry.added_to(spec) if self._registry else spec
        return self._with_parent_ids(spec) if self._parent_ids else spec

    @property
    def _some_pool(self) -> str | None:
        """Stands for the pool when the DAG is parsed: only whether there is one is known for sure then."""
        return PLACEHOLDER if self.on_pool else None

    def _pool_uuid(self) -> str | None:
        if self.qarnot_pool is None and not self.on_pool:
            return None
        ref = resolve_ref(self.qarnot_pool, "qarnot_pool")
        return ref if is_uuid(ref) else str(get_confirmed(self.client.pools, ref).uuid)

    def _mask_secrets(self) -> None:
        """Tell this process what to hide: each slice of a task is a new one."""
        from airflow.sdk.log import mask_secret

        for value in self._secrets():
            mask_secret(value)
        self._registry = self._registry_login() if self.registry_conn_id else None

    def _note_parent_run(self, context: Context) -> None:
        """Keep the ids of the OpenLineage runs for the constants of :meth:`_spec`."""
        from airflow_qarnot_pool.operators.bases.lineage import parent_constants

        self._parent_ids = parent_constants(self, context)

    def _with_parent_ids(self, spec: TaskSpec) -> TaskSpec:
        """Return *spec* with the ids of the OpenLineage runs as constants, if there is room for them."""
        if len(self._parent_ids) > spec.max_constants - len(spec.all_constants()):
            return spec
        return spec.with_values(constants={**self._parent_ids, **spec.constants})

    def _given_specs(self) -> Sequence[TaskSpec]:
        # Without the login of the registry, which replaces the image by constants.
        login, self._registry = self._registry, None
        try:
            return self._different_specs()
        finally:
            self._registry = login

    def _different_specs(self) -> Sequence[TaskSpec]:
        """Return the specs of the parameters. Of many, one for each set of buckets."""
        return [self._spec(self._given(), self._some_pool)]

    def _describe_work(self, spec: Any) -> dict[str, Any]:
        from airflow_qarnot_pool.lineage.facets import command_of

        return {"command": command_of(spec)}

    def _secrets(self) -> Iterable[str]:
        return self._secret_constants().values()

    def _secret_constants(self) -> dict[str, str]:
        given = [self.constants]
        if self.task_spec and isinstance(spec := parse_rendered(self.task_spec), Mapping):
            given.append(spec.get("constants"))
        return {name: value for one in given if one for name, value in secret_constants(one).items()}

    def _given_now(self) -> dict[str, Any]:
        """Return the parameters with everything rendered; :meth:`_spec` adds the registry's login."""
        check_rendered(self, self._filled, WAIT_FIELDS)
        values = spec_values(self, self.spec_fields, "task_spec")
        self._mask_secrets()
        return values

    def _begin(self, context: Context) -> None:
        """Own what earlier tries may have left."""
        if self._sends_parent_run:
            self._note_parent_run(context)
        if context["ti"].try_number > 1:
            self._own(context)

    @contextmanager
    def _ending_in_the_last_try(self) -> Iterator[None]:
        """End the Qarnot tasks if the block fails and no try remains that would adopt them."""
        try:
            yield
        except QarnotTaskFailedError:
            raise  # all of them have ended
        except (QarnotKilledError, QarnotWaitTimeoutError):
            self._end("the Airflow task was stopped", killed=True)
            raise
        except Exception:
            self._end_unless_retried()
            raise

    def _registry_login(self) -> RegistryLogin:
        from airflow.sdk import BaseHook
        from airflow.sdk.log import mask_secret

        login = RegistryLogin.of(BaseHook.get_connection(str(self.registry_conn_id)))
        mask_secret(login.password)
        return login

    def _next_pool(self, context: Context, pool: str) -> str | None:
        """Return the pool that replaces *pool*, if that is a shared one that was closed."""
        from airflow_qarnot_pool.ownership.shared_pool import open_replacement

        pause = self._work.killed.wait if self._work else time.sleep
        identity = self._identity_of(context)
        if self.get_closest_mapped_task_group() is None:
            # Its own copies use the pool of one group, whose teardown is done with all of them.
            identity = replace(identity, map_index=-1)
        return open_replacement(self.client, pool, identity, pause)

    @staticmethod
    def _closed_too_often(pool: str | None) -> QarnotPoolEndedError:
        return QarnotPoolEndedError(
            f"Shared pool {pool} and those before it were closed as soon as they were opened",
            remedy="Check in the console which user or program closes them.",
            kind="pool",
            ref=pool,
        )

    def _explain_refusal(self, uuid: str, error: QarnotRefusedError | QarnotNotFoundError) -> None:
        """Raise the error of pool *uuid* if it is deleted, or takes no more tasks."""
        try:
            pool = get_confirmed(self.client.pools, uuid)
        except QarnotNotFoundError as missing:
            raise missing from error
        except QarnotError:
            return
        if not states.accepts_tasks(pool.state):
            self._costs.raise_if_over(cause=error)
            raise QarnotPoolEndedError(
                f"Pool {uuid} is {pool.state} and takes no more tasks",
                remedy="Run the task that creates it again: clearing this task clears its setup, too.",
                status=error.status,
                server_message=error.server_message,
                kind="pool",
                ref=uuid,
            ) from error
