"""Base of the operators: the connection, the wait for a remote object in both modes, and its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from airflow.sdk import BaseOperator

from airflow_qarnot_pool import exceptions
from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotError,
    QarnotQuotaError,
)
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.exceptions import QarnotKilledError, QarnotWaitTimeoutError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook, check_conn_id
from airflow_qarnot_pool.links.qarnot import remember_link, show_link
from airflow_qarnot_pool.operators.bases import remote_work
from airflow_qarnot_pool.operators.bases.cost_limits import CostWatch
from airflow_qarnot_pool.operators.bases.parameters import checked_partial, mapped_count, render
from airflow_qarnot_pool.operators.bases.remote_work import RemoteWork
from airflow_qarnot_pool.operators.kill_after_deferral import KillAfterDeferral
from airflow_qarnot_pool.ownership import liveness, xcoms
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.parameters.configuration import check_wait_options, default_defer_after
from airflow_qarnot_pool.parameters.places import CheckedOperatorMeta
from airflow_qarnot_pool.parameters.templating import hide_secrets
from airflow_qarnot_pool.parameters.unknown import refuse_hidden, refuse_unknown_defaults
from airflow_qarnot_pool.parameters.validation import (
    Duration,
    as_duration,
    check_durations,
    check_flags,
    default_deferrable,
)
from airflow_qarnot_pool.version_compat import TaskDeferralError, TaskDeferralTimeout
from airflow_qarnot_pool.waiting.conditions import (
    CAPITALIZED_NOUNS,
    TASK_SUCCEEDED,
    Condition,
    EndReason,
    Kind,
    WaitResult,
    result_if_met,
)
from airflow_qarnot_pool.waiting.intervals import (
    Forecast,
    has_few_siblings,
    steady_interval,
)
from airflow_qarnot_pool.waiting.polling import (
    KillFlag,
    PoolsOfTasks,
    poll_once_more,
    wait_on_worker,
)

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.specs import PoolSpec, TaskSpec
    from airflow_qarnot_pool.ownership.claim import Claim, ClaimRequest
    from airflow_qarnot_pool.ownership.quota import QuotaRoom
    from airflow_qarnot_pool.triggers.base import QarnotTrigger

#: How much later than the trigger's deadline Airflow's own deferral timeout comes, because the trigger may start late.
FALLBACK_DEADLINE = timedelta(minutes=5)
#: Parameters of a wait that take templates.
WAIT_FIELDS = ("wait_timeout", "wait_for_quota")


class QarnotOperator(BaseOperator, metaclass=CheckedOperatorMeta):
    """Base of the operators.

    An operator that waits for a remote object calls :meth:`_set_wait` in its constructor. A later try owns what earlier
    ones have left (:meth:`_own`), because a kill or an error may come before the claim. It claims the object with
    :meth:`_claim`, waits for it with :meth:`_wait`, and resumes after a deferral with :meth:`_resume`.

    :param qarnot_conn_id: connection of type ``qarnot``.
    """

    template_fields: tuple[str, ...] = ("qarnot_conn_id",)
    ui_color = "#e2f4ec"
    #: Whether the result is the uuid of a remote object, by which later tasks find it.
    returns_reference: ClassVar[bool] = False
    kind: ClassVar[Kind]
    #: XCom key of the uuid. It is stored before any wait, because the trigger's guard and the next try read it.
    uuid_key: ClassVar[str]
    #: Whether the operator runs on a worker between deferrals, to submit more.
    is_fan_out: ClassVar[bool] = False
    #: Whether the remote object ends if this operator fails. The teardown owns no object.
    owns: ClassVar[bool] = True

    wait_for_completion: bool
    deferrable: bool
    #: None means the option ``[qarnot] defer_after``.
    defer_after: Duration = None
    wait_timeout: Duration
    cancel_on_kill: bool
    wait_for_quota: Duration
    max_cost: float | str | None = None
    max_run_cost: float | str | None = None
    #: Parameters that must not be empty when the task runs.
    _filled: tuple[str, ...] = ()

    def __init__(self, *, qarnot_conn_id: str = QarnotHook.default_conn_name, **kwargs: Any) -> None:
        refuse_hidden(type(self), kwargs)
        refuse_unknown_defaults(type(self), kwargs.get("default_args"))
        super().__init__(**kwargs)
        check_conn_id(qarnot_conn_id)
        self.qarnot_conn_id = qarnot_conn_id
        if self.returns_reference:
            # Without the uuid the pool would boot and be billed, and its tasks would fail. The settings may come
            # from default_args that are meant for other tasks.
            self.do_xcom_push = True
            self.multiple_outputs = False
        self._quota_deadline: datetime | None = None
        #: Number of times in a row that the quota was full after a wait for it.
        self._refusals = 0
        #: Pools of the awaited Qarnot tasks.
        self._pools_of_tasks: tuple[str, ...] = ()
        #: Uuids of the objects of this slice, by kind, for lineage.
        self._objects: dict[Kind, str] = {}
        #: How the remote object was obtained.
        self._decision: str | None = None
        self._kill_asked = False
        self._remote_work: RemoteWork | None = None
        self._kill_after_deferral: KillAfterDeferral | None = None

    def _set_wait(
        self,
        *,
        wait_for_completion: bool,
        deferrable: bool | None,
        wait_timeout: Duration,
        cancel_on_kill: bool,
        wait_for_quota: Duration,
    ) -> None:
        """Check and store the parameters of the wait."""
        self.wait_for_completion = wait_for_completion
        self.deferrable = default_deferrable() if deferrable is None else deferrable
        self.wait_timeout = wait_timeout
        self.cancel_on_kill = cancel_on_kill
        self.wait_for_quota = wait_for_quota
        check_durations(wait_timeout=wait_timeout, wait_for_quota=wait_for_quota)
        check_wait_options()
        check_flags(
            wait_for_completion=wait_for_completion, deferrable=self.deferrable, cancel_on_kill=cancel_on_kill
        )

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Do as Airflow does, and check the parameters."""
        return checked_partial(cls, super().partial, kwargs)

    def as_setup(self) -> Self:
        """Do as Airflow does, with a type: DAGs can be checked strictly."""
        super().as_setup()  # type: ignore[no-untyped-call]
        return self

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as :func:`~airflow_qarnot_pool.operators.bases.parameters.render` does."""
        # Airflow shows the attributes, and OpenLineage may send them.
        return hide_secrets(render(content, context, jinja_env, seen_oids, super().render_template))

    # --- the connection

    @cached_property
    def hook(self) -> QarnotHook:
        """The hook of this operator's connection."""
        return QarnotHook(self.qarnot_conn_id)

    @property
    def client(self) -> QarnotClient:
        """The client of this operator's connection."""
        return self.hook.client

    @property
    def _poll_interval(self) -> float:
        """Seconds between two polls."""
        return self.hook.settings.poll_interval

    @property
    def _resource(self) -> Any:
        return self.client.pools if self.kind == "pool" else self.client.tasks

    def _get(self, kind: Kind, uuid: str) -> Any:
        """Request a remote object."""
        with self._reconnecting():
            return (self.client.pools if kind == "pool" else self.client.tasks).get(uuid)

    @contextmanager
    def _reconnecting(self) -> Iterator[None]:
        """Read the connection again after a 401. Its token may have been replaced, and the next poll uses it."""
        try:
            yield
        except QarnotCredentialsError:
            self.hook.reconnect()
            if self._work is not None:
                self._work.settings = self.hook.settings
            raise

    def _show_link(self, context: Context, kind: Kind, uuid: str) -> None:
        """Store the console link now. Airflow itself stores links only when a slice of the task ends."""
        # Not changed in place, because Airflow runs a shallow copy of the operator of the DAG.
        self._objects = {**self._objects, kind: uuid}
        show_link(self, context["ti"], self.hook.settings, kind, uuid)

    @cached_property
    def _costs(self) -> CostWatch:
        """The watch over the cost limits. It does nothing without one."""
        return CostWatch(self)

    @property
    def _has_cost_limit(self) -> bool:
        return self.max_cost is not None or self.max_run_cost is not None

    # --- for the operators that wait to define

    def _trigger_class(self) -> type[QarnotTrigger]:
        """Return the trigger that waits after a deferral."""
        raise NotImplementedError

    def _awaited(self) -> Condition:
        """Return the condition that still counts when the wait has ended otherwise."""
        raise NotImplementedError

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Resume with the outcome that the trigger found."""
        raise NotImplementedError

    def _trigger_options(self, uuid: str) -> dict[str, Any]:
        """Return the arguments that only the trigger of this operator takes."""
        return {}

    def _warm_up_on(self) -> Callable[[str], TaskInstanceIdentity] | None:
        """Return the function that identifies the warm-up on a shared pool, if there is one."""
        return None

    def _still_waiting(self, remote: Any) -> None:
        """Do what a poll of a wait on this worker calls for.

        :param remote: the pool or Qarnot task that the poll has shown.
        """

    def _identity_of(self, context: Context) -> TaskInstanceIdentity:
        """Return the owner of the remote object."""
        return TaskInstanceIdentity.of(context, self.hook.settings.namespace)

    # --- lineage

    def _given_specs(self) -> Sequence[PoolSpec | TaskSpec]:
        """Return the specs of the parameters, without additions of the provider. Of many, only some are returned."""
        return ()

    def _describe_work(self, spec: Any) -> dict[str, Any]:
        """Return fields of the facet ``qarnot_container``.

        :param spec: the first of the given specs.
        """
        return {}

    def _describe_items(self) -> dict[str, Any]:
        """Return the run facets of an operator that has many Qarnot tasks."""
        return {}

    def _executed_seconds(self, client: QarnotClient) -> float | None:
        """Return the execution seconds of many Qarnot tasks on one pool; None if they are unknown."""
        return None

    def _secrets(self) -> Iterable[str]:
        """Return the values of secret constants."""
        return ()

    def get_openlineage_facets_on_start(self) -> Any:
        """Return the lineage that the parameters give. The OpenLineage provider calls this."""
        from airflow_qarnot_pool.operators.bases.lineage import describe_start

        return describe_start(self)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the lineage of a run that has ended, with its cost. The OpenLineage provider calls this."""
        from airflow_qarnot_pool.operators.bases.lineage import describe_end

        return describe_end(self)

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> Any:
        """Return the lineage of a run that has failed, with its cost. The OpenLineage provider calls this."""
        return self.get_openlineage_facets_on_complete(task_instance)

    def post_execute(self, context: Context, result: Any = None) -> None:
        """Describe the results in the events of the assets among the ``outlets``. Airflow calls this after success."""
        super().post_execute(context, result)
        if self.outlets:
            from airflow_qarnot_pool.operators.bases.outlets import fill_outlets

            fill_outlets(self, context)

    # --- claiming the object

    @property
    def _work(self) -> RemoteWork | None:
        """The object that :meth:`on_kill` has to end. It learns at once of a kill that came before it."""
        return self._remote_work

    @_work.setter
    def _work(self, work: RemoteWork | None) -> None:
        self._remote_work, self._kill_after_deferral = work, None
        if work is not None:
            work.warm_up_on = self._warm_up_on()
        if work is not None and self._kill_asked:
            work.killed.set()

    @property
    def _running(self) -> RemoteWork:
        assert self._remote_work is not None
        return self._remote_work

    def _own(self, context: Context, uuid: str | None = None) -> RemoteWork:
        """Own an object from now on, or whatever this Airflow task has on Qarnot. A kill that came before ends it."""
        identity = self._identity_of(context)
        self._work = work = RemoteWork(self.kind, self.hook.settings, identity, uuid)
        if self._kill_asked:
            self._end_killed()
            raise self._killed()
        return work

    def _claim(self, context: Context, spec: Any, **options: Any) -> Claim:
        """Get the one remote object of this Airflow task, and publish it before anything else can fail.

        The caller ends an object that cannot be published, or that may exist unseen.

        :param options: of :class:`~airflow_qarnot_pool.ownership.claim.ClaimRequest`.
        """
        from airflow_qarnot_pool.ownership.claim import count_decision

        if self._has_cost_limit:
            self._costs.before_create(context, spec)
        pool: str | None = getattr(spec, "pool", None)
        resource, earlier, work = self._resource, self._work, self._own(context)
        try:
            claimed = self._acquire_with_room(context, work, resource=resource, spec=spec, **options)
            work.uuid, self._quota_deadline, self._refusals = claimed.uuid, None, 0
            self._decision = str(claimed.decision)
            count_decision(self.log, self.kind, claimed)
            if work.killed.is_set() and self.cancel_on_kill:
                # on_kill came while the request was under way and had nothing to end yet.
                self._end_killed()
                raise self._killed()
            xcoms.push(context["ti"], self.uuid_key, claimed.uuid)
            self._show_link(context, self.kind, claimed.uuid)
            if pool:
                self._show_link(context, "pool", pool)
        except Exception:
            if pool:
                remember_link(self, self.hook.settings, "pool", pool)
            if work.uuid is None and not work.unseen:
                self._work = earlier  # nothing was created
            raise
        self._costs.after_create(context, claimed)
        return claimed

    def _acquire_with_room(self, context: Context, work: RemoteWork, spec: Any, **options: Any) -> Claim:
        from airflow_qarnot_pool.ownership.claim import ClaimRequest
        from airflow_qarnot_pool.ownership.records import recorded_tasks

        if self.kind == "task":
            options["recorded"] = partial(recorded_tasks, self.client, work.identity)
        pool: str | None = getattr(spec, "pool", None)
        if self._has_cost_limit and pool:
            options["create"] = self._create_if_payable
        request = ClaimRequest(
            spec=spec,
            identity=work.identity,
            pause=work.killed.wait,
            unseen=work.unseen,
            make_room=self._make_room(work.identity, self.kind),
            **options,
        )
        while True:
            try:
                return self._acquire(request)
            except QarnotQuotaError as error:
                if pool:
                    self._show_link(context, "pool", pool)
                self._wait_for_room(context, error, work.killed)

    def _acquire(self, request: ClaimRequest) -> Claim:
        """Create the remote object, or find it."""
        from airflow_qarnot_pool.ownership.claim import claim

        return claim(request)

    def _create_if_payable(self, stamped: Any) -> str:
        """Check the limits before a submission: nothing may have watched since the last wait.

        An object of an earlier try is adopted all the same.
        """
        self._costs.raise_if_over()
        uuid: str = self._resource.create_once(stamped)
        return uuid

    def _make_room(self, identity: TaskInstanceIdentity, kind: Kind) -> Callable[[QarnotQuotaError], int]:
        """Return the function that makes room for an object of *kind*."""
        return lambda refusal: self._room(identity).make_room(kind, refusal)

    def _room(self, identity: TaskInstanceIdentity) -> QuotaRoom:
        """Return the means to make room under a full quota of the account."""
        from airflow_qarnot_pool.ownership.quota import QuotaRoom

        return QuotaRoom(self.client, self.hook.settings.namespace, identity)

    def _wait_for_room(
        self,
        context: Context,
        error: QarnotQuotaError,
        killed: KillFlag,
        resume_state: dict[str, Any] | None = None,
    ) -> None:
        """Wait before the next attempt, on this worker or deferred. Raise *error* if there is no time to wait.

        *resume_state* comes back in the event that ``execute_with_quota_room`` gets.
        """
        patience = as_duration("wait_for_quota", self.wait_for_quota)
        if patience is None or killed.is_set():
            raise error
        now = datetime.now(UTC)
        ends = [now + patience, *self._execution_ends(context, now)]
        self._quota_deadline = self._quota_deadline or min(ends)
        if now >= self._quota_deadline:
            raise error
        interval = steady_interval(self._poll_interval)
        deadline = self._quota_deadline.isoformat(timespec="seconds")
        self.log.info("%s Waiting for room until %s.", error, deadline)
        if self.deferrable:
            trigger, method_name = self._room_trigger(
                interval, self._quota_deadline.isoformat(), resume_state
            )
            timeout = self._quota_deadline - now + FALLBACK_DEADLINE
            self.defer(trigger=trigger, method_name=method_name, timeout=timeout)
        killed.wait(min(interval, (self._quota_deadline - now).total_seconds()))

    def _room_trigger(
        self, interval: float, deadline: str, resume_state: dict[str, Any] | None
    ) -> tuple[Any, str]:
        """Return the trigger that waits for room, and the method that it resumes."""
        from airflow_qarnot_pool.triggers.quota import QarnotQuotaTrigger

        trigger = QarnotQuotaTrigger(
            qarnot_conn_id=self.qarnot_conn_id,
            kind=self.kind,
            poll_interval=interval,
            deadline=deadline,
            refusals=self._refusals,
            resume_state=resume_state,
        )
        return trigger, "execute_with_quota_room"

    def execute_with_quota_room(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Try again, because the account has room or the time to wait for it has passed."""
        self._read_room_event(event)
        return self.execute(context)

    def _read_room_event(self, event: Mapping[str, Any]) -> None:
        self._quota_deadline = parse_stored_time(event["deadline"])
        self._refusals = int(event.get("refusals") or 0) + 1

    # --- waiting for it

    def _deadline(self, context: Context) -> datetime | None:
        """Return the end of this wait. It is computed once, at the start, and passed through every deferral."""
        now = datetime.now(UTC)
        ends = self._execution_ends(context, now)
        if (limit := as_duration("wait_timeout", self.wait_timeout)) is not None:
            ends.append(now + limit)
        return min(ends, default=None)

    def _execution_ends(self, context: Context, now: datetime) -> list[datetime]:
        """Return the end of ``execution_timeout``, if it is set. Airflow itself counts it for each slice anew."""
        if self.execution_timeout is None:
            return []
        return [(context["ti"].start_date or now) + self.execution_timeout]

    def _wait(
        self,
        uuid: str,
        condition: Condition,
        deadline: datetime | None,
        resume_state: dict[str, Any] | None = None,
        *,
        forecast: Forecast | None = None,
    ) -> WaitResult:
        """Wait on this worker, or defer. A deferral does not return: ``execute_complete`` gets the outcome.

        *resume_state* comes back in the outcome, with the deadline in it.

        :param forecast: given for an object that was just created. Any other is polled once before a deferral,
            because that costs another process and some seconds.
        """
        resume_state = {} if resume_state is None else resume_state
        resume_state["deadline"] = deadline.isoformat() if deadline else None
        killed = self._work.killed if self._work else KillFlag()
        wait = self._wait_before_deferring if self.deferrable else self._wait_here
        outcome = wait(uuid, condition, deadline, killed, forecast)
        if outcome is None and self.deferrable and not killed.is_set():
            self._defer(uuid, condition.to_kwargs(), deadline, resume_state)
        self._costs.count_warning()
        if outcome is None or killed.is_set():
            # The last state may be the work of on_kill, but no abort makes a success.
            outcome = self._success_before_kill(uuid)
            if outcome is None:
                raise self._killed()
        outcome = replace(outcome, resume_state={**resume_state, **outcome.resume_state})
        return outcome if outcome.ending is EndReason.MET else self._after_all(outcome)

    def _wait_here(
        self,
        uuid: str,
        condition: Condition,
        deadline: datetime | None,
        killed: KillFlag,
        forecast: Forecast | None,
    ) -> WaitResult | None:
        """Wait on this worker until the wait ends, or until a kill."""
        try:
            return wait_on_worker(
                partial(self._get, self.kind),
                uuid,
                condition,
                self._poll_interval,
                deadline,
                killed,
                self._still_waiting,
                self._costs.over_limit,
                self._polled_pools().why_stranded,
                forecast,
            )
        except QarnotError:
            self._end_unless_retried()
            raise

    def _wait_before_deferring(
        self,
        uuid: str,
        condition: Condition,
        deadline: datetime | None,
        killed: KillFlag,
        forecast: Forecast | None,
    ) -> WaitResult | None:
        """Wait on this worker for a moment. None means to wait in the triggerer, which also handles any error."""
        if forecast is not None and not forecast.ends_on_worker:
            return None  # a poll now would show nothing new
        limited = self.client.limited(retries=0, timeout=5.0, deadline=5.0)
        try:
            return wait_on_worker(
                (limited.pools if self.kind == "pool" else limited.tasks).get,
                uuid,
                condition,
                self._poll_interval,
                deadline,
                killed,
                self._still_waiting,
                self._costs.over_limit,
                forecast=forecast,
                limit=forecast.defer_after if forecast else 0.0,
            )
        except QarnotError as error:
            self.log.info("Deferring, because %s could not be polled: %s", uuid, error)
            return None

    def _polled_pools(self) -> PoolsOfTasks:
        """Return the poll of the pools of the awaited Qarnot tasks."""
        interval = steady_interval(self._poll_interval)
        return PoolsOfTasks(partial(self._get, "pool"), self._pools_of_tasks, interval)

    def _worker_seconds(self, context: Context) -> float:
        """Return how long a wait for a newly created object may stay on this worker before it defers."""
        if not has_few_siblings(context["ti"].map_index, mapped_count(self)):
            return 0.0
        limit = as_duration("defer_after", self.defer_after, zero=True)
        return default_defer_after() if limit is None else limit.total_seconds()

    def _forecast(self, context: Context, claimed: Claim, *, has_hint: bool = True) -> Forecast | None:
        """Return what is known about the wait for an object that this try has just created; None for any other.

        :param has_hint: whether earlier results of the Airflow task say how long its object took.
        """
        if claimed.existing is not None:
            return None
        seconds = self._worker_seconds(context)
        stays = seconds > 0 or not self.deferrable
        return Forecast(seconds, self._expected_seconds(context) if stays and has_hint else None)

    def _expected_seconds(self, context: Context) -> float | None:
        """Return after how many seconds a newly created object probably ends; None if that is not known."""
        return None

    def _success_before_kill(self, uuid: str) -> WaitResult | None:
        """Return the outcome of a Qarnot task that succeeded before this process was told to stop."""
        if self._work is None or self.kind != "task":
            return None
        hurried = self._work.settings.client(retries=0, timeout=2.0, deadline=2.0)
        with suppress(QarnotError):
            outcome = result_if_met(TASK_SUCCEEDED, hurried.tasks.get(uuid))
            return outcome if outcome is not None and outcome.ending is EndReason.MET else None
        return None

    def _after_all(self, outcome: WaitResult) -> WaitResult:
        """Return the outcome after one more poll: the object may have reached its target, or left it."""
        self._costs.close_if_over(outcome)
        pause = self._work.killed.wait if self._work else time.sleep
        try:
            polled = poll_once_more(self._resource, outcome.uuid, self._awaited(), outcome.state, pause)
        except QarnotError as error:
            self.log.info("Could not poll %s once more: %s", outcome.uuid, error)
            return outcome
        if polled is None or EndReason.MET not in (polled.ending, outcome.ending):
            return outcome
        if polled.ending is not outcome.ending:
            self.log.info(
                "%s %s is %s by now", CAPITALIZED_NOUNS[self.kind], outcome.uuid, polled.state or "deleted"
            )
        return replace(polled, resume_state=outcome.resume_state)

    # --- deferring it

    def _defer(
        self, uuid: str, condition: dict[str, Any], deadline: datetime | None, resume_state: dict[str, Any]
    ) -> NoReturn:
        trigger = self._trigger_class()(
            qarnot_conn_id=self.qarnot_conn_id,
            uuid=uuid,
            condition=condition,
            poll_interval=self._poll_interval,
            deadline=deadline.isoformat() if deadline else None,
            identity=self._work.identity.to_kwargs() if self._work else None,
            cancel_on_kill=self.cancel_on_kill,
            resume_state=resume_state,
            cost_limit=self._costs.cost_limit,
            pools=self._pools_of_tasks,
            **self._trigger_options(uuid),
        )
        timeout = max(deadline - datetime.now(UTC), timedelta()) + FALLBACK_DEADLINE if deadline else None
        self.defer(trigger=trigger, method_name="execute_complete", timeout=timeout)

    def defer(self, **kwargs: Any) -> NoReturn:
        """Defer as Airflow does. After this a SIGTERM may end only the process, while the wait continues."""
        if self._work is not None and self.cancel_on_kill:
            is_wanted = partial(liveness.is_still_wanted, self.kind, is_fan_out=self.is_fan_out)
            self._kill_after_deferral = KillAfterDeferral(
                self._work.identity, is_wanted, self._end_killed, self.log
            )
        super().defer(**kwargs)

    def _resume(self, context: Context, event: Mapping[str, Any]) -> WaitResult:
        """Return the outcome that the trigger found. This may be a new operator in a new process."""
        outcome = WaitResult.from_event(event)
        self._decision = outcome.resume_state.get("decision")
        with self._ending_on_error("the task could not resume"):
            self._own(context, outcome.uuid)
            self._prepare_to_resume(context, outcome)
            return outcome if outcome.ending is EndReason.MET else self._after_all(outcome)

    def _prepare_to_resume(self, context: Context, outcome: WaitResult) -> None:
        """Set up a new process. If that fails, the remote object is ended."""
        try:
            self._show_link(context, self.kind, outcome.uuid)
        except Exception as error:  # of Airflow's; it stores links once more when the slice ends
            noun = CAPITALIZED_NOUNS[self.kind]
            self.log.warning("The console link of %s %s could not be stored: %s", noun, outcome.uuid, error)
        self._costs.on_resume(context, outcome.uuid)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow does.

        If Airflow gave up the trigger, nothing else ends the remote object. It is ended unless it has reached its
        target by now.
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralTimeout, TaskDeferralError) as error:
            if not hasattr(self, "kind"):
                raise  # a subclass defers, and its operator has no remote object
            identity = self._identity_of(context)
            self._work = self._work or RemoteWork(self.kind, self.hook.settings, identity)
            given_up = error
        if (outcome := self._reached_without_trigger(context)) is not None:
            return self.execute_complete(context, outcome.to_event())
        self._end(f"the deferred wait failed ({type(given_up).__name__})", killed=True)
        raise given_up

    def _reached_without_trigger(self, context: Context) -> WaitResult | None:
        """Return the outcome of a wait whose trigger brought none, if the object has reached its target."""
        uuid = xcoms.pull(context["ti"], self.uuid_key)
        if not isinstance(uuid, str):
            return None
        outcome = self._after_all(WaitResult(ending=EndReason.TIMEOUT, uuid=uuid))
        return outcome if outcome.ending is EndReason.MET else None

    # --- ending it

    @contextmanager
    def _ending_on_error(self, why: str) -> Iterator[None]:
        """End the remote object if the block fails: it may have been the last try, and nothing else ends it."""
        try:
            yield
        except (QarnotKilledError, QarnotWaitTimeoutError):
            self._end(why, killed=True)
            raise
        except Exception:
            self._end(why)
            raise

    def _end_unless_retried(self) -> None:
        """End the remote object if no try remains that would adopt it."""
        if self._work is not None and self._work.identity.try_number > self._work.identity.max_tries:
            self._end("this try failed, and none remains to adopt it")

    def _end(self, why: str, *, killed: bool = False, hurried: bool = False) -> None:
        """End the remote object, and keep the error that is being handled.

        :param killed: the reason is a kill or a time limit, which ``cancel_on_kill=False`` exempts.
        """
        if self._work is None or not self.owns or (killed and not self.cancel_on_kill):
            return
        noun, uuid = CAPITALIZED_NOUNS[self.kind], self._work.uuid or "of this task"
        try:
            self._work.end(hurried=hurried)
        except QarnotError as error:
            self._work.end_error = error
            self.log.error("%s %s could not be ended (%s): %s", noun, uuid, why, error)
            return
        self._work.end_error = None
        if self._work.taken_over:
            self.log.info("%s %s is not ended, because a later try has adopted it: %s", noun, uuid, why)
        else:
            self.log.info("%s %s ended: %s", noun, uuid, why)

    def on_kill(self) -> None:
        """End the remote object, because Airflow ends this task while it runs."""
        self._kill_asked = True
        if self._work is None:
            return
        self._work.killed.set()
        if self._kill_after_deferral is not None:
            self._kill_after_deferral.resolve(remote_work.KILL_TIMEOUT)
        else:
            self._end_killed()

    def _end_killed(self) -> None:
        self._end("the Airflow task is killed", killed=True, hurried=True)

    def _raise_for(self, outcome: WaitResult) -> None:
        """Raise the error that an outcome other than MET means."""
        if outcome.ending is EndReason.TIMEOUT:
            self._end("the wait ran out of time", killed=True)
            raise QarnotWaitTimeoutError(
                f"{outcome.message}; {self._fate_of('the remote object')}. Raise wait_timeout if it needs longer",
                kind=self.kind,
                ref=outcome.uuid,
            )
        if outcome.ending is EndReason.GONE:
            self._end("it seems to be deleted")
            raise QarnotDeletedError(outcome.message, kind=self.kind, ref=outcome.uuid)
        if outcome.ending is EndReason.ERROR:
            self._end_unless_retried()
            error_class = getattr(exceptions, str(outcome.resume_state.get("error")), QarnotError)
            raise error_class(outcome.message, kind=self.kind, ref=outcome.uuid)

    def _killed(self) -> QarnotKilledError:
        uuid = self._work.uuid if self._work else None
        noun = f"{CAPITALIZED_NOUNS[self.kind]} {uuid}" if uuid else "all that it had started"
        return QarnotKilledError(
            f"Airflow stopped this task; {self._fate_of(noun)}", kind=self.kind, ref=uuid
        )

    def _fate_of(self, noun: str) -> str:
        """Return a clause on the remote object after a kill or a time limit."""
        if self._work is not None and self._work.taken_over:
            return f"{noun} continues for a later try, which has adopted it"
        if self._work is not None and self._work.end_error is not None:
            return f"{noun} may still run, because it could not be ended ({self._work.end_error})"
        return f"{noun} was ended" if self.cancel_on_kill else f"{noun} continues (cancel_on_kill=False)"
