"""What the triggers of pools and Qarnot tasks share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import weakref
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_qarnot_pool.api.errors import QarnotDeletedError, QarnotError
from airflow_qarnot_pool.api.limits import stored_moment
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.identity import FORMAT_VERSION, TaskInstanceIdentity
from airflow_qarnot_pool.ownership.liveness import check_addressable, task_instance_state
from airflow_qarnot_pool.triggers.age import TriggerAge
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

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.client import QarnotClient

#: References to clean-ups under way: the triggerer cancels ``on_kill`` after about a second, and an asyncio
#: task that nobody refers to may vanish half-way.
_cleanups: set[asyncio.Task[None]] = set()

#: One of each: thousands wait for the same.
_conditions: weakref.WeakValueDictionary[Condition, Condition] = weakref.WeakValueDictionary()

#: Seconds that the first look may take, whatever the deadline says.
MIN_FIRST_TIMEOUT = 10.0


class QarnotTrigger(BaseTrigger):
    """Wait for one remote object, together with all other waiters of its connection.

    Yields one event, the :class:`~airflow_qarnot_pool.waiting.conditions.WaitResult` of the wait.

    :param uuid: the object.
    :param condition: ``Condition.to_kwargs()``: what to wait for.
    :param poll_interval: seconds between two looks.
    :param deadline: ISO time at which the wait ends with "timeout". Wall clock, as triggers move between processes.
    :param identity: ``TaskInstanceIdentity.to_kwargs()`` of the owner of the object; None if the task only observes it.
    :param cancel_on_kill: whether a kill of the Airflow task ends the object.
    :param resume_state: handed back in the event, for the operator that resumes.
    :param cost_limit: ``CostLimit.to_kwargs()``: what may cost no more than its limit while this waits.
    :param pools: pools of the Qarnot tasks that this waits for. Tasks that stay queued on one that has ended end the
        wait.
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
        super().__init__()
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
        age = TriggerAge(self)
        try:
            outcome = await (self._wait() if self.cost_limit is None else self._wait_within(self.cost_limit))
            await age.reached()
        except asyncio.CancelledError:
            if not TRIGGERS_HAVE_ON_KILL:
                await self.on_kill()
            raise
        # From here on being cancelled means that Airflow has what it waited for.
        self._fired = True
        yield TriggerEvent(outcome.to_event())

    async def _wait_within(self, cost_limit: dict[str, Any]) -> WaitResult:
        """Wait until it is done or has cost too much, whatever comes first."""
        from airflow_qarnot_pool.costs.limits import CostLimit
        from airflow_qarnot_pool.triggers.cost_poller import wait_until_over_limit

        watched = CostLimit.from_kwargs(cost_limit)
        warn = partial(self.log.warning, "%s")
        wait = asyncio.ensure_future(self._wait())
        over = asyncio.ensure_future(
            wait_until_over_limit(self.qarnot_conn_id, watched, self.poll_interval, warn)
        )
        try:
            await asyncio.wait((wait, over), return_when=asyncio.FIRST_COMPLETED)
            if not over.done() or over.exception():
                # Where the watch cannot go on the wait still does: it meets the same, and says it better.
                return await wait
            verdict = over.result()
            error = {
                "error": "QarnotCostLimitError",
                "cost_limit": {**cost_limit, "close": list(verdict.close)},
            }
            return WaitResult(
                ending=EndReason.ERROR,
                uuid=self.uuid,
                message=verdict.message,
                resume_state={**self.resume_state, **error},
            )
        finally:
            wait.cancel()
            over.cancel()
            await asyncio.gather(wait, over, return_exceptions=True)

    async def _wait(self) -> WaitResult:
        condition = Condition.from_kwargs(self.condition)
        condition = _conditions.setdefault(condition, condition)
        history: tuple[str, ...] = ()
        ending, message, resume_state = EndReason.ERROR, "", self.resume_state
        try:
            async with subscribe(
                self.qarnot_conn_id,
                self.kind,
                self.uuid,
                interval=self.poll_interval,
                every_round=condition.ready_slots is not None,
            ) as subscriber:
                with PoolEnds(self.qarnot_conn_id, self.pools, subscriber, self.poll_interval):
                    while True:
                        left = self._seconds_left()
                        if left is not None and not history:
                            # A triggerer may come after the deadline: what is done by then is done.
                            left = max(left, MIN_FIRST_TIMEOUT)
                        try:
                            look = await subscriber.next(left)
                        except QarnotPoolEndedError as error:
                            if not history or not is_queued(history[-1]):
                                continue
                            return replace(
                                stranded_result(self.uuid, history[-1], error.message),
                                resume_state=dict(resume_state),
                            )
                        self._on_poll(look.state)
                        if changed := history[-1:] != (look.state,):
                            self.log.info("%s %s is %s", CAPITALIZED_NOUNS[self.kind], self.uuid, look.state)
                        outcome = result_if_met(condition, look, history)
                        if outcome is not None:
                            return WaitResult(
                                ending=outcome.ending,
                                uuid=self.uuid,
                                state=outcome.state,
                                message=outcome.message,
                                resume_state=dict(resume_state),
                            )
                        if changed:
                            history = _appended(history, look.state)
                        del look  # thousands may wait here for hours: only the state is needed any more
        except TimeoutError:
            ending, message = EndReason.TIMEOUT, timeout_message(self.kind, self.uuid, history, condition)
        except QarnotDeletedError as error:
            ending, message = (EndReason.MET if condition.met_by_absence else EndReason.GONE), str(error)
        except QarnotError as error:
            message, resume_state = str(error), {**resume_state, "error": type(error).__name__}
        return WaitResult(
            ending=ending,
            uuid=self.uuid,
            state=history[-1] if history else None,
            message=message,
            resume_state=dict(resume_state),
        )

    def _on_poll(self, state: str) -> None:
        """Called with what each look shows."""

    def _seconds_left(self) -> float | None:
        if self.deadline is None:
            return None
        return max(0.0, (stored_moment(self.deadline) - datetime.now(UTC)).total_seconds())

    # --- the Airflow task is killed, cleared or marked while it is deferred

    async def on_kill(self) -> None:
        """End the remote object where the Airflow task is really over.

        Airflow 3.3 also calls this when triggers move to another triggerer, and it really gives about one
        second. So the work is guarded by the task's state and runs shielded in an asyncio task of its own.
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
                "Could not find out whether %s %s is still wanted, so it is left alone; a next try of the "
                "Airflow task, its deadline or the reaper ends it: %s",
                self.kind,
                self.uuid,
                error,
            )

    @abstractmethod
    async def _end_if_abandoned(self, identity: TaskInstanceIdentity) -> None:
        """Look whether anybody still wants the object, and end it where nobody does."""

    async def _request(self, request: Callable[[QarnotClient], Any]) -> Any:
        """One request of our own: the poller may be gone already."""
        from airflow.sdk import BaseHook

        from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings

        settings = ConnectionSettings.of(await BaseHook.aget_connection(self.qarnot_conn_id))
        return await asyncio.to_thread(lambda: request(settings.client(retries=3, deadline=30.0)))


def _with_interned(value: Any) -> Any:
    """*value*, JSON, with each word kept once in this process: the kwargs of thousands of triggers are much alike."""
    if type(value) is str:
        return _interned(value)
    if isinstance(value, dict):
        return {_with_interned(key): _with_interned(one) for key, one in value.items()}
    return [_with_interned(one) for one in value] if isinstance(value, list) else value


@lru_cache(maxsize=1024)
def _interned(text: str) -> str:
    """Not ``sys.intern``: on some releases of Python 3.12 what that is given is never freed."""
    return text


def _shared_json(value: Any) -> Any:
    """*value*, JSON, or one that is equal: thousands of triggers have the same. Not to be changed."""
    return _parsed(json.dumps(value))


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return json.loads(text)


@lru_cache(maxsize=1024)
def _appended(history: tuple[str, ...], state: str) -> tuple[str, ...]:
    """What thousands have seen so far is much alike, too."""
    return (*history, state)


async def task_state(identity: TaskInstanceIdentity) -> str | None:
    """The state of the Airflow task instance now; None when it is cleared or removed."""
    state: str | None = await in_thread(lambda: task_instance_state(identity))
    return state


async def own_xcom(identity: TaskInstanceIdentity, key: str) -> Any:
    """Return what the task instance's current try stored under *key*; None when there is nothing.

    :raises LookupError: see :func:`~airflow_qarnot_pool.ownership.liveness.check_addressable`.
    """
    check_addressable(identity)
    with contextlib.suppress(KeyError):
        return await in_thread(partial(xcoms.get_direct, identity, key))
    return None


async def store_xcom(identity: TaskInstanceIdentity, key: str, value: Any) -> None:
    """Store *value* under *key* with the task instance's current try.

    :raises LookupError: see :func:`~airflow_qarnot_pool.ownership.liveness.check_addressable`.
    """
    check_addressable(identity)
    await in_thread(partial(xcoms.set_direct, identity, key, value))


async def in_thread(call: Callable[[], Any]) -> Any:
    """Run *call*, which asks Airflow, outside the event loop."""
    from asgiref.sync import sync_to_async

    run: Callable[[], Awaitable[Any]] = sync_to_async(call)
    return await run()
