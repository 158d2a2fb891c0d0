"""Base of the triggers of pools and Qarnot tasks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_qarnot_pool.api.errors import QarnotDeletedError, QarnotError
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.costs.limits import CostLimit
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.identity import FORMAT_VERSION, TaskInstanceIdentity
from airflow_qarnot_pool.ownership.liveness import check_addressable, task_instance_state
from airflow_qarnot_pool.triggers.age import TriggerAge
from airflow_qarnot_pool.triggers.airflow_requests import in_thread, read_settings
from airflow_qarnot_pool.triggers.cost_poller import wait_until_over_limit
from airflow_qarnot_pool.triggers.poller import subscribe
from airflow_qarnot_pool.triggers.pool_end import PoolEnds
from airflow_qarnot_pool.version_compat import TRIGGERS_HAVE_ON_KILL
from airflow_qarnot_pool.waiting.conditions import (
    CAPITALIZED_NOUNS,
    Condition,
    EndReason,
    Kind,
    WaitResult,
    is_queued,
    result_if_met,
    stranded_result,
    timeout_message,
)
from airflow_qarnot_pool.waiting.intervals import steady_interval

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool, Task

#: References to running clean-ups. The triggerer cancels ``on_kill`` after about a second, and an asyncio task without
#: a reference may be collected before it is done.
_cleanups: set[asyncio.Task[None]] = set()

#: One object for equal conditions, because thousands of triggers have the same.
_conditions: weakref.WeakValueDictionary[Condition, Condition] = weakref.WeakValueDictionary()

#: Minimum seconds for the first poll, even if the deadline is sooner.
MIN_FIRST_TIMEOUT = 10.0


class QarnotTrigger(BaseTrigger):
    """Wait for one remote object, with one poll for all triggers of its connection.

    Yields one event, the :class:`~airflow_qarnot_pool.waiting.conditions.WaitResult` of the wait.

    :param uuid: uuid of the object.
    :param condition: ``Condition.to_kwargs()`` of the condition that ends the wait.
    :param poll_interval: maximum seconds between polls.
    :param deadline: ISO time at which the wait ends with "timeout". It is wall clock time, because triggers move
        between processes.
    :param identity: ``TaskInstanceIdentity.to_kwargs()`` of the owner of the object. None if the Airflow task only
        observes it.
    :param cancel_on_kill: whether a kill of the Airflow task ends the object.
    :param resume_state: returned in the event, for the operator that resumes.
    :param cost_limit: ``CostLimit.to_kwargs()`` of the limit to enforce during the wait.
    :param pools: pools of the Qarnot tasks that this waits for. The wait ends if tasks stay queued on a pool that has
        ended.
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        *,
        qarnot_conn_id: str,
        uuid: str,
        condition: dict[str, Any],
        poll_interval: float,
        deadline: str | None = None,
        identity: dict[str, Any] | None = None,
        cancel_on_kill: bool = True,
        resume_state: dict[str, Any] | None = None,
        cost_limit: dict[str, Any] | None = None,
        pools: Sequence[str] = (),
        version: int = FORMAT_VERSION,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.qarnot_conn_id = qarnot_conn_id
        self.uuid = uuid
        self.condition = _shared_json(condition)
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.identity = (
            None if identity is None else TaskInstanceIdentity.from_kwargs(_with_interned(identity))
        )
        self.cancel_on_kill = cancel_on_kill
        self.resume_state = _with_interned(resume_state or {})
        self.cost_limit = _shared_json(cost_limit)
        self.pools: list[str] = _shared_json(list(pools))
        self.version = version
        self._fired = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the keyword arguments, from which Airflow makes the trigger again."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "qarnot_conn_id": self.qarnot_conn_id,
                "uuid": self.uuid,
                "condition": self.condition,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "identity": None if self.identity is None else self.identity.to_kwargs(),
                "cancel_on_kill": self.cancel_on_kill,
                "resume_state": self.resume_state,
                # Defaults are omitted, because Airflow stores the arguments of each wait.
                **({} if self.cost_limit is None else {"cost_limit": self.cost_limit}),
                **({"pools": self.pools} if self.pools else {}),
                "version": self.version,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield the one event."""
        age = TriggerAge(self)
        try:
            if not self._polls_early:
                await age.reached()
            outcome = await (self._wait() if self.cost_limit is None else self._wait_within(self.cost_limit))
            await age.reached()
        except asyncio.CancelledError:
            if not TRIGGERS_HAVE_ON_KILL:
                await self.on_kill()
            raise
        # A cancellation from here on means that Airflow has received the event.
        self._fired = True
        yield TriggerEvent(outcome.to_event())

    async def _wait_within(self, cost_limit: dict[str, Any]) -> WaitResult:
        """Wait until the wait ends or a cost limit is exceeded, whichever comes first."""
        watched = CostLimit.from_kwargs(cost_limit)
        warn = partial(self.log.warning, "%s")
        wait = asyncio.ensure_future(self._wait())
        limit_check = asyncio.ensure_future(
            wait_until_over_limit(self.qarnot_conn_id, watched, steady_interval(self.poll_interval), warn)
        )
        try:
            await asyncio.wait((wait, limit_check), return_when=asyncio.FIRST_COMPLETED)
            if not limit_check.done() or limit_check.exception():
                # A failed check of the limit does not end the wait, which meets the same error and describes it better.
                return await wait
            check = limit_check.result()
            error = {
                "error": "QarnotCostLimitError",
                "cost_limit": {**cost_limit, "close": list(check.close)},
            }
            return WaitResult(
                ending=EndReason.ERROR,
                uuid=self.uuid,
                message=check.message,
                resume_state={**self.resume_state, **error},
            )
        finally:
            wait.cancel()
            limit_check.cancel()
            await asyncio.gather(wait, limit_check, return_exceptions=True)

    async def _wait(self) -> WaitResult:
        condition = Condition.from_kwargs(self.condition)
        condition = _conditions.setdefault(condition, condition)
        history: tuple[str, ...] = ()
        try:
            async with subscribe(
                self.qarnot_conn_id,
                self.kind,
                self.uuid,
                interval=self.poll_interval,
                every_round=condition.ready_slots is not None,
                counts_instances=self._counts_instances,
            ) as subscriber:
                steady = steady_interval(self.poll_interval)
                with PoolEnds(self.qarnot_conn_id, self.pools, subscriber, steady):
                    while True:
                        try:
                            snapshot = await subscriber.next(self._timeout(history))
                        except QarnotPoolEndedError as error:
                            if not history or not is_queued(history[-1]):
                                continue
                            outcome: WaitResult | None = stranded_result(
                                self.uuid, history[-1], error.message
                            )
                        else:
                            outcome = self._outcome_of(snapshot, condition, history)
                            history = _appended(history, snapshot.state)
                            del snapshot  # thousands may wait here for hours, and need the states only
                        if outcome is not None:
                            return replace(outcome, uuid=self.uuid, resume_state=dict(self.resume_state))
        except (TimeoutError, QarnotError) as error:
            return self._outcome_after(error, condition, history)

    def _timeout(self, history: tuple[str, ...]) -> float | None:
        """Return the maximum seconds until the next change."""
        seconds_left = self._seconds_left()
        if seconds_left is None or history:
            return seconds_left
        # The trigger may start after the deadline. It polls at least once, because the object may have finished.
        return max(seconds_left, MIN_FIRST_TIMEOUT)

    def _outcome_of(
        self, snapshot: Pool | Task, condition: Condition, history: tuple[str, ...]
    ) -> WaitResult | None:
        """Return the result of the wait if *snapshot* ends it."""
        self._on_poll(snapshot)
        if history[-1:] != (snapshot.state,):
            self.log.info("%s %s is %s", CAPITALIZED_NOUNS[self.kind], self.uuid, snapshot.state)
        return result_if_met(condition, snapshot, history)

    def _outcome_after(self, error: Exception, condition: Condition, history: tuple[str, ...]) -> WaitResult:
        """Return the result of a wait that *error* ends."""
        ending, message, resume_state = EndReason.ERROR, str(error), dict(self.resume_state)
        if isinstance(error, TimeoutError):
            ending, message = EndReason.TIMEOUT, timeout_message(self.kind, self.uuid, history, condition)
        elif isinstance(error, QarnotDeletedError):
            ending = EndReason.MET if condition.met_by_absence else EndReason.GONE
        else:
            resume_state["error"] = type(error).__name__
        return WaitResult(
            ending=ending,
            uuid=self.uuid,
            state=history[-1] if history else None,
            message=message,
            resume_state=resume_state,
        )

    @property
    def _polls_early(self) -> bool:
        """Whether it polls before it may fire. Most polls would be of no use then."""
        return False

    @property
    def _counts_instances(self) -> bool:
        """Whether it needs the finished instances of its Qarnot task."""
        return False

    def _on_poll(self, snapshot: Pool | Task) -> None:
        """Handle the object that a poll shows."""

    def _seconds_left(self) -> float | None:
        if self.deadline is None:
            return None
        return max(0.0, (parse_stored_time(self.deadline) - datetime.now(UTC)).total_seconds())

    # --- clean-up when the Airflow task is killed, cleared or marked while it is deferred

    async def on_kill(self) -> None:
        """End the remote object if the Airflow task has really finished.

        Airflow 3.3 also calls this when triggers move to another triggerer, and allows about one second. So the
        clean-up checks the state of the Airflow task first, and runs shielded in a separate asyncio task.
        """
        if self._fired or not self.cancel_on_kill or self.identity is None:
            return
        cleanup = asyncio.get_running_loop().create_task(self._clean_up(self.identity))
        _cleanups.add(cleanup)
        cleanup.add_done_callback(_cleanups.discard)
        await asyncio.shield(cleanup)

    async def _clean_up(self, identity: TaskInstanceIdentity) -> None:
        try:
            await self._end_if_abandoned(identity)
        except Exception as error:
            self.log.warning(
                "Could not check whether %s %s is still wanted, so it keeps running until a next try of the "
                "Airflow task, its deadline or the reaper ends it: %s",
                self.kind,
                self.uuid,
                error,
            )

    @abstractmethod
    async def _end_if_abandoned(self, identity: TaskInstanceIdentity) -> None:
        """End the object unless an Airflow task still wants it."""

    async def _request(self, request: Callable[[QarnotClient], Any]) -> Any:
        """Send *request* outside the poller, which may have stopped already."""
        settings = await read_settings(self.qarnot_conn_id)
        return await asyncio.to_thread(lambda: request(settings.client(retries=3, deadline=30.0)))


def _with_interned(value: Any) -> Any:
    """Return the JSON *value* with one object for equal texts, which the kwargs of thousands of triggers repeat."""
    if type(value) is str:
        return _interned(value)
    if isinstance(value, dict):
        return {_with_interned(key): _with_interned(item) for key, item in value.items()}
    return [_with_interned(item) for item in value] if isinstance(value, list) else value


@lru_cache(maxsize=1024)
def _interned(text: str) -> str:
    """Return one object for equal texts. ``sys.intern`` never frees its texts on some releases of Python 3.12."""
    return text


def _shared_json(value: Any) -> Any:
    """Return one read-only object for equal JSON values, because thousands of triggers have the same."""
    return _parsed(json.dumps(value))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return json.loads(text)


@lru_cache(maxsize=1024)
def _appended(history: tuple[str, ...], state: str) -> tuple[str, ...]:
    """Return *history* with a new *state*, as one object for the thousands of triggers with equal histories."""
    return history if history[-1:] == (state,) else (*history, state)


async def task_state(identity: TaskInstanceIdentity) -> str | None:
    """Return the current state of the Airflow task instance, or None if it was cleared or removed."""
    state: str | None = await in_thread(lambda: task_instance_state(identity))
    return state


async def own_xcom(identity: TaskInstanceIdentity, key: str) -> Any:
    """Return the XCom *key* of the current try of the task instance, or None if there is none.

    :raises LookupError: see :func:`~airflow_qarnot_pool.ownership.liveness.check_addressable`.
    """
    check_addressable(identity)
    with contextlib.suppress(KeyError):
        return await in_thread(partial(xcoms.get_direct, identity, key))
    return None


async def store_xcom(identity: TaskInstanceIdentity, key: str, value: Any) -> None:
    """Store *value* as the XCom *key* of the current try of the task instance.

    :raises LookupError: see :func:`~airflow_qarnot_pool.ownership.liveness.check_addressable`.
    """
    check_addressable(identity)
    await in_thread(partial(xcoms.set_direct, identity, key, value))
