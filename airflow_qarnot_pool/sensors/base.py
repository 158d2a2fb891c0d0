"""What the sensors of pools and Qarnot tasks share."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow.sdk import BaseSensorOperator

from airflow_qarnot_pool import exceptions
from airflow_qarnot_pool.api.errors import QarnotDeletedError, QarnotError, QarnotNotFoundError
from airflow_qarnot_pool.api.resource import is_uuid
from airflow_qarnot_pool.exceptions import QarnotStateUnreachableError
from airflow_qarnot_pool.hooks.qarnot import QarnotHook, check_conn_id
from airflow_qarnot_pool.links.qarnot import show_link
from airflow_qarnot_pool.operators.bases.parameters import ParametersMixin
from airflow_qarnot_pool.parameters.references import resolve_ref
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.validation import (
    Duration,
    as_duration,
    check_flags,
    default_deferrable,
)
from airflow_qarnot_pool.version_compat import TRIGGER_FAIL_REPR, AirflowSensorTimeout, AirflowSkipException
from airflow_qarnot_pool.waiting.conditions import (
    CAPITALIZED_NOUNS,
    Condition,
    EndReason,
    Kind,
    WaitResult,
    result_if_met,
    stranded_result,
)
from airflow_qarnot_pool.waiting.polling import (
    PoolsOfTasks,
    check_wait,
    get_confirmed,
    is_transient,
    poll_interval_of,
    poll_once_more,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.triggers.base import QarnotTrigger


class QarnotSensor(ParametersMixin, BaseSensorOperator):
    """Base of the sensors: wait for a state of a remote object, and fail at once when it cannot come any more.

    :param target_states: any of these ends the wait.
    :param qarnot_conn_id: connection of type ``qarnot``.
    :param accept_passed: a state that must have been passed between two looks counts as reached.
    :param deferrable: wait in the triggerer, where all waits of a connection share one poll; default:
        ``[operators] default_deferrable`` of Airflow if it is set, else True. Otherwise ``mode`` and
        ``poke_interval`` apply.
    :param poll_interval: time between two looks while deferred, as a timedelta or seconds.
    :param wait_timeout: longest wait, in both modes; default: the sensor's ``timeout``.

    ``soft_fail`` skips where the target can no longer be reached, where the object is gone, and where the time is
    over; what is wrong with the connection or the DAG fails all the same, and so does an object that was never
    there. ``never_fail`` skips for every error. An outage ends no wait.
    """

    kind: ClassVar[Kind]
    ref_field: ClassVar[str]
    template_fields: tuple[str, ...] = ("qarnot_conn_id", "target_states", "poll_interval", "wait_timeout")
    ui_color = "#d7ecf4"

    def __init__(
        self,
        *,
        target_states: str | Iterable[str] | None,
        accept_passed: bool = True,
        qarnot_conn_id: str = QarnotHook.default_conn_name,
        deferrable: bool | None = None,
        poll_interval: Duration = None,
        wait_timeout: Duration = None,
        **kwargs: Any,
    ) -> None:
        check_wait(poll_interval, wait_timeout=wait_timeout)
        check_flags(accept_passed=accept_passed)
        if wait_timeout is not None and not is_templated(wait_timeout):
            kwargs["timeout"] = as_duration("wait_timeout", wait_timeout)
        super().__init__(**kwargs)
        self.target_states = target_states
        self.accept_passed = accept_passed
        check_conn_id(qarnot_conn_id)
        self.qarnot_conn_id = qarnot_conn_id
        self.deferrable = default_deferrable() if deferrable is None else deferrable
        check_flags(deferrable=self.deferrable)
        self.poll_interval = poll_interval
        self.wait_timeout = wait_timeout
        self._history: list[str] = []
        self._pools: PoolsOfTasks | None = None

    def _condition(self) -> Condition:
        targets = self.target_states
        names = (targets,) if isinstance(targets, str) else tuple(targets or ())
        return Condition(kind=self.kind, targets=names, passed=self.accept_passed)

    def _check_condition(self) -> None:
        """Refuse unknown states when the DAG is parsed, where they are not templated."""
        if not is_templated(self.target_states):
            self._condition()

    @abstractmethod
    def _trigger_class(self) -> type[QarnotTrigger]:
        """The trigger that waits when this defers."""

    @cached_property
    def hook(self) -> QarnotHook:
        """The hook of this sensor's connection."""
        return QarnotHook(self.qarnot_conn_id)

    @property
    def _resource(self) -> Any:
        return self.hook.client.pools if self.kind == "pool" else self.hook.client.tasks

    @property
    def _ref(self) -> str:
        return resolve_ref(getattr(self, self.ref_field), self.ref_field)

    def execute(self, context: Context) -> Any:
        if (limit := as_duration("wait_timeout", self.wait_timeout)) is not None:
            self.timeout = limit.total_seconds()
        if not self.deferrable:
            return super().execute(context)
        try:
            look = self._first_look()
            self._show_link(context, look.uuid)
            outcome = result_if_met(self._condition(), look)
            if outcome is None:
                self._defer(look.uuid, getattr(look, "pool", None))
            return self._conclude(outcome)
        except QarnotError as error:
            raise self._softened(error) from error

    def _first_look(self) -> Any:
        """Look, through an outage: where the uuid is known the trigger waits it out."""
        began = time.monotonic()
        while True:
            try:
                return get_confirmed(self._resource, self._ref)
            except QarnotNotFoundError:
                raise
            except QarnotError as error:
                if not is_transient(error):
                    raise
                self.log.warning("Could not look at %s, looking again: %s", self._ref, error)
                if time.monotonic() - began >= self.timeout:
                    noun = CAPITALIZED_NOUNS[self.kind]
                    late = f"{noun} {self._ref} could not be looked at in {self.timeout:.0f} s: {error}"
                    self._conclude(WaitResult(ending=EndReason.TIMEOUT, uuid=self._ref, message=late))
            if is_uuid(self._ref):
                self._defer(self._ref)
            time.sleep(poll_interval_of(self.poll_interval))

    def _defer(self, uuid: str, pool: str | None = None) -> NoReturn:
        limit = timedelta(seconds=self.timeout)
        if self.execution_timeout is not None:
            limit = min(limit, self.execution_timeout)
        self.defer(
            trigger=self._trigger_class()(
                qarnot_conn_id=self.qarnot_conn_id,
                uuid=uuid,
                condition=self._condition().to_kwargs(),
                poll_interval=poll_interval_of(self.poll_interval),
                deadline=(datetime.now(UTC) + limit).isoformat(),
                cancel_on_kill=False,
                pools=(pool,) if pool else (),
            ),
            method_name="execute_complete",
            timeout=limit + timedelta(minutes=5),
        )
        raise AssertionError("defer() raises")

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Take up the outcome that the trigger found."""
        outcome = WaitResult.from_event(event)
        self._show_link(context, outcome.uuid)
        try:
            if outcome.ending is not EndReason.MET and self._is_met_now(outcome.uuid, outcome.state):
                outcome = replace(outcome, ending=EndReason.MET)
            return self._conclude(outcome)
        except QarnotError as error:
            raise self._softened(error) from error

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow does. A trigger that Airflow gave up does not matter if the target is reached by now."""
        if next_method == TRIGGER_FAIL_REPR and self._is_met_now(self._ref):
            return None
        return super().resume_execution(next_method, next_kwargs, context)

    def _is_met_now(self, ref: str, state: str | None = None) -> bool:
        """Return whether one more poll shows that the object has reached the target since the last one."""
        try:
            now = poll_once_more(self._resource, ref, self._condition(), state)
        except QarnotError as error:
            self.log.info("Could not poll %s %s once more: %s", CAPITALIZED_NOUNS[self.kind], ref, error)
            return False
        return now is not None and now.ending is EndReason.MET

    def poke(self, context: Context) -> Any:
        """One look, on a worker."""
        try:
            look = get_confirmed(self._resource, self._ref)
        except QarnotError as error:
            looked = self._looked_before(context)
            gone = isinstance(error, QarnotNotFoundError) and not (error.foreign and looked)
            if gone and looked and self._condition().met_by_absence:
                return True
            if gone or not is_transient(error):
                raise self._softened(error) from error
            self.log.warning("Could not look at %s, looking again: %s", self._ref, error)
            return False
        if not self._history:
            self._show_link(context, look.uuid)
        outcome = result_if_met(self._condition(), look, self._history)
        self._history.append(look.state)
        self.log.info("%s %s is %s", CAPITALIZED_NOUNS[self.kind], look.uuid, look.state)
        if outcome is None and (why := self._why_stranded(look)):
            outcome = stranded_result(look.uuid, look.state, why)
        if outcome is None:
            return False
        try:
            self._conclude(outcome)
        except QarnotError as error:
            raise self._softened(error) from error
        return True

    def _why_stranded(self, look: Any) -> str | None:
        """Return why the Qarnot task *look* never runs, if it stays queued on a pool that has ended."""
        pool = getattr(look, "pool", None)
        if pool is None:
            return None
        if self._pools is None:
            self._pools = PoolsOfTasks(self.hook.client.pools, (pool,), poll_interval_of(self.poll_interval))
        return self._pools.why_stranded((look.state,))

    def _looked_before(self, context: Context) -> bool:
        """Whether this try has looked before, and seen the object; a rescheduled sensor is a new one each time."""
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

    def _softened(self, error: QarnotError) -> Exception:
        """What ``soft_fail`` and ``never_fail`` make of an error that will not pass."""
        about_the_object = isinstance(error, (QarnotStateUnreachableError, QarnotDeletedError))
        if self.never_fail or (self.soft_fail and about_the_object):
            return AirflowSkipException(str(error))
        return error

    def _show_link(self, context: Context, uuid: str) -> None:
        show_link(self, context["ti"], self.kind, self.hook.settings.console_link(self.kind, uuid))
