"""Base of the sensors of pools and Qarnot tasks."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.sdk import BaseSensorOperator

from airflow_qarnot_pool import exceptions
from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
)
from airflow_qarnot_pool.api.fields import is_uuid, short_repr
from airflow_qarnot_pool.exceptions import QarnotStateUnreachableError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook, check_conn_id
from airflow_qarnot_pool.links.qarnot import show_link
from airflow_qarnot_pool.operators.bases.parameters import checked_partial, render
from airflow_qarnot_pool.parameters.configuration import check_wait_options
from airflow_qarnot_pool.parameters.places import CheckedOperatorMeta
from airflow_qarnot_pool.parameters.references import resolve_ref
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.unknown import refuse_hidden, refuse_unknown_defaults
from airflow_qarnot_pool.parameters.validation import (
    Duration,
    as_duration,
    check_durations,
    check_flags,
    default_deferrable,
)
from airflow_qarnot_pool.version_compat import TRIGGER_FAIL_REPR, AirflowSensorTimeout, AirflowSkipException
from airflow_qarnot_pool.waiting.conditions import (
    CAPITALIZED_NOUNS,
    NOUNS,
    Condition,
    EndReason,
    Kind,
    WaitResult,
    result_if_met,
    stranded_result,
)
from airflow_qarnot_pool.waiting.intervals import Backoff, steady_interval
from airflow_qarnot_pool.waiting.polling import (
    PoolsOfTasks,
    get_confirmed,
    is_transient,
    poll_once_more,
)

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

    from airflow_qarnot_pool.triggers.base import QarnotTrigger


class QarnotSensor(BaseSensorOperator, metaclass=CheckedOperatorMeta):
    """Base of the sensors. They wait for a state of a remote object, and fail as soon as it can no longer be reached.

    :param target_states: one state or several, any of which ends the wait.
    :param qarnot_conn_id: connection of type ``qarnot``.
    :param accept_passed: whether a state counts as reached if the object must have passed it between two polls.
    :param deferrable: wait in the triggerer, with one poll for all waits of a connection. Default:
        ``[operators] default_deferrable`` of Airflow if it is set, else True. If False, ``mode`` and
        ``poke_interval`` apply.
    :param wait_timeout: maximum wait, in both modes. Default: the sensor's ``timeout``.

    ``soft_fail`` skips if the target can no longer be reached, the object was deleted, or the wait times out. An error
    of the connection or the DAG still fails, as does an object that never existed. ``never_fail`` skips for every
    error. An outage ends no wait.
    """

    kind: ClassVar[Kind]
    ref_field: ClassVar[str]
    template_fields: tuple[str, ...] = ("qarnot_conn_id", "target_states", "wait_timeout")
    ui_color = "#d7ecf4"

    def __init__(
        self,
        *,
        target_states: str | Iterable[str] | None,
        accept_passed: bool = True,
        qarnot_conn_id: str = QarnotHook.default_conn_name,
        deferrable: bool | None = None,
        wait_timeout: Duration = None,
        **kwargs: Any,
    ) -> None:
        check_durations(wait_timeout=wait_timeout)
        check_wait_options()
        check_flags(accept_passed=accept_passed)
        if wait_timeout is not None and not is_templated(wait_timeout):
            kwargs["timeout"] = as_duration("wait_timeout", wait_timeout)
        refuse_hidden(type(self), kwargs)
        refuse_unknown_defaults(type(self), kwargs.get("default_args"))
        super().__init__(**kwargs)
        self.target_states = target_states
        self.accept_passed = accept_passed
        check_conn_id(qarnot_conn_id)
        self.qarnot_conn_id = qarnot_conn_id
        self.deferrable = default_deferrable() if deferrable is None else deferrable
        check_flags(deferrable=self.deferrable)
        self.wait_timeout = wait_timeout
        self._history: list[str] = []
        self._pools: PoolsOfTasks | None = None

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Do as Airflow does, and check the parameters."""
        return checked_partial(cls, super().partial, kwargs)

    def render_template(
        self,
        content: Any,
        context: Context,
        jinja_env: jinja2.Environment | None = None,
        seen_oids: set[int] | None = None,
    ) -> Any:
        """Render as :func:`~airflow_qarnot_pool.operators.bases.parameters.render` does."""
        return render(content, context, jinja_env, seen_oids, super().render_template)

    def _condition(self) -> Condition:
        targets = self.target_states
        if not isinstance(targets, (str, Iterable, NoneType)):
            raise QarnotInvalidSpecError(
                f"target_states must be a state or a list of states, got {short_repr(targets)}",
                field="target_states",
                remedy=f"Give a state of a {NOUNS[self.kind]}, such as 'FullyExecuting'.",
            )
        names = (targets,) if isinstance(targets, str) else tuple(targets or ())
        return Condition(kind=self.kind, targets=names, accept_passed=self.accept_passed)

    def _check_condition(self) -> None:
        """Refuse unknown states when the DAG is parsed, unless they are templated."""
        if not is_templated(self.target_states):
            self._condition()

    @abstractmethod
    def _trigger_class(self) -> type[QarnotTrigger]:
        """Return the trigger that waits while this is deferred."""

    @cached_property
    def hook(self) -> QarnotHook:
        """Return the hook of this sensor's connection."""
        return QarnotHook(self.qarnot_conn_id)

    @property
    def _resource(self) -> Any:
        return self.hook.client.pools if self.kind == "pool" else self.hook.client.tasks

    @property
    def _ref(self) -> str:
        return resolve_ref(getattr(self, self.ref_field), self.ref_field)

    def execute(self, context: Context) -> Any:
        """Wait for the target, deferred unless ``deferrable`` is False."""
        if (limit := as_duration("wait_timeout", self.wait_timeout)) is not None:
            self.timeout = limit.total_seconds()
        if not self.deferrable:
            return super().execute(context)
        try:
            snapshot = self._first_poll()
            self._show_link(context, snapshot.uuid)
            outcome = result_if_met(self._condition(), snapshot)
            if outcome is None:
                self._defer(snapshot.uuid, getattr(snapshot, "pool", None))
            return self._conclude(outcome)
        except QarnotError as error:
            raise self._skip_or_fail(error) from error

    def _poll(self) -> Any:
        """Return the object. A single 404, refusal or rejected token does not count."""
        try:
            return get_confirmed(self._resource, self._ref)
        except QarnotCredentialsError:
            self.hook.reconnect()  # the token may have been replaced
            return get_confirmed(self._resource, self._ref)

    def _first_poll(self) -> Any:
        """Poll, through an outage unless the uuid is known. The trigger then waits until the outage ends."""
        started, backoff = time.monotonic(), Backoff()
        while True:
            try:
                return self._poll()
            except QarnotNotFoundError:
                raise
            except QarnotError as error:
                if not is_transient(error):
                    raise
                self.log.warning("Could not poll %s, polling again: %s", self._ref, error)
                backoff.record_failure(error)
                if time.monotonic() - started >= self.timeout:
                    noun = CAPITALIZED_NOUNS[self.kind]
                    message = f"{noun} {self._ref} could not be polled in {self.timeout:.0f} s: {error}"
                    self._conclude(WaitResult(ending=EndReason.TIMEOUT, uuid=self._ref, message=message))
            if is_uuid(self._ref):
                self._defer(self._ref)
            pause = backoff.delay(steady_interval(self.hook.settings.poll_interval))
            time.sleep(max(0.0, min(pause, started + self.timeout - time.monotonic())))

    def _defer(self, uuid: str, pool: str | None = None) -> NoReturn:
        limit = timedelta(seconds=self.timeout)
        if self.execution_timeout is not None:
            limit = min(limit, self.execution_timeout)
        self.defer(
            trigger=self._trigger_class()(
                qarnot_conn_id=self.qarnot_conn_id,
                uuid=uuid,
                condition=self._condition().to_kwargs(),
                poll_interval=self.hook.settings.poll_interval,
                deadline=(datetime.now(UTC) + limit).isoformat(),
                cancel_on_kill=False,
                pools=(pool,) if pool else (),
            ),
            method_name="execute_complete",
            timeout=limit + timedelta(minutes=5),
        )
        raise AssertionError("defer() raises")

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Handle the event of the trigger."""
        outcome = WaitResult.from_event(event)
        self._show_link(context, outcome.uuid)
        try:
            if outcome.ending is not EndReason.MET and self._is_met_now(outcome.uuid, outcome.state):
                outcome = replace(outcome, ending=EndReason.MET)
            return self._conclude(outcome)
        except QarnotError as error:
            raise self._skip_or_fail(error) from error

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume, even if Airflow gave up the trigger, as long as the target has been reached."""
        if next_method == TRIGGER_FAIL_REPR and self._is_met_now(self._ref):
            return None
        return super().resume_execution(next_method, next_kwargs, context)

    def _is_met_now(self, ref: str, state: str | None = None) -> bool:
        """Return whether one more poll shows that the object has reached the target since the last poll."""
        try:
            outcome = poll_once_more(self._resource, ref, self._condition(), state)
        except QarnotError as error:
            self.log.info("Could not poll %s %s once more: %s", CAPITALIZED_NOUNS[self.kind], ref, error)
            return False
        return outcome is not None and outcome.ending is EndReason.MET

    def poke(self, context: Context) -> Any:
        """Poll once, on a worker."""
        try:
            snapshot = self._poll()
        except QarnotError as error:
            return self._is_met_by(error, context)
        if not self._history:
            self._show_link(context, snapshot.uuid)
        outcome = result_if_met(self._condition(), snapshot, self._history)
        self._history.append(snapshot.state)
        self.log.info("%s %s is %s", CAPITALIZED_NOUNS[self.kind], snapshot.uuid, snapshot.state)
        if outcome is None and (why := self._why_stranded(snapshot)):
            outcome = stranded_result(snapshot.uuid, snapshot.state, why)
        if outcome is None:
            return False
        try:
            self._conclude(outcome)
        except QarnotError as error:
            raise self._skip_or_fail(error) from error
        return True

    def _is_met_by(self, error: QarnotError, context: Context) -> bool:
        """Return whether a poll that failed shows that the target is reached. Raise permanent errors."""
        polled_before = self._has_polled_before(context)
        deleted = isinstance(error, QarnotNotFoundError) and not (error.foreign and polled_before)
        if deleted and polled_before and self._condition().met_by_absence:
            return True
        if deleted or not is_transient(error):
            raise self._skip_or_fail(error) from error
        self.log.warning("Could not poll %s, polling again: %s", self._ref, error)
        return False

    def _why_stranded(self, snapshot: Any) -> str | None:
        """Return why a Qarnot task never runs, if it stays queued on a pool that has ended."""
        pool = getattr(snapshot, "pool", None)
        if pool is None:
            return None
        if self._pools is None:
            interval = steady_interval(self.hook.settings.poll_interval)
            self._pools = PoolsOfTasks(lambda uuid: self.hook.client.pools.get(uuid), (pool,), interval)
        return self._pools.why_stranded((snapshot.state,))

    def _has_polled_before(self, context: Context) -> bool:
        """Return whether this try has polled the object before. A rescheduled sensor is a new object each time."""
        return bool(self._history) or (
            self.reschedule and context["ti"].get_first_reschedule_date(context) is not None
        )

    def _conclude(self, outcome: WaitResult) -> None:
        if outcome.ending is EndReason.MET:
            self.log.info(
                "%s %s has reached %s", CAPITALIZED_NOUNS[self.kind], outcome.uuid, self._condition()
            )
            return
        if outcome.ending is EndReason.TIMEOUT:
            if self.soft_fail or self.never_fail:
                raise AirflowSkipException(outcome.message)
            raise AirflowSensorTimeout(outcome.message)
        if outcome.ending is EndReason.IMPOSSIBLE:
            raise QarnotStateUnreachableError(outcome.message, kind=self.kind, ref=outcome.uuid)
        error_class = (
            QarnotDeletedError
            if outcome.ending is EndReason.GONE
            else getattr(exceptions, str(outcome.resume_state.get("error")), QarnotError)
        )
        raise error_class(outcome.message, kind=self.kind, ref=outcome.uuid)

    def _skip_or_fail(self, error: QarnotError) -> Exception:
        """Return the exception to raise for a permanent error, according to ``soft_fail`` and ``never_fail``."""
        concerns_object = isinstance(error, (QarnotStateUnreachableError, QarnotDeletedError))
        if self.never_fail or (self.soft_fail and concerns_object):
            return AirflowSkipException(str(error))
        return error

    def _show_link(self, context: Context, uuid: str) -> None:
        show_link(self, context["ti"], self.hook.settings, self.kind, uuid)
