"""Base of the operators that wait for a remote object."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from airflow_qarnot_pool import exceptions
from airflow_qarnot_pool.api.errors import QarnotDeletedError, QarnotError, QarnotQuotaError
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.exceptions import QarnotKilledError, QarnotWaitTimeoutError
from airflow_qarnot_pool.operators.bases.base import _ASK, QarnotOperator
from airflow_qarnot_pool.operators.kill_after_deferral import KillAfterDeferral
from airflow_qarnot_pool.ownership import liveness, xcoms
from airflow_qarnot_pool.ownership.claim import count_decision
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.parameters.validation import Duration, as_duration, check_flags, default_deferrable
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
from airflow_qarnot_pool.waiting.polling import (
    KillFlag,
    PoolsOfTasks,
    check_wait,
    poll_interval_of,
    poll_once_more,
    wait_on_worker,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.hooks.connection_settings import ConnectionSettings
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.ownership.quota import QuotaRoom
    from airflow_qarnot_pool.triggers.base import QarnotTrigger


#: How much later than the deadline in the trigger Airflow's own deferral timeout comes.
FALLBACK_DEADLINE = timedelta(minutes=5)


#: Seconds in which a kill must be done with ending things; Airflow gives 5.
KILL_TIMEOUT = 4.0


@dataclass
class RemoteWork:
    """What the running try has on Qarnot, for :meth:`on_kill`, which runs in a signal handler.

    The settings are kept because asking Airflow for the connection from there could meet an unfinished
    question of the interrupted code.
    """

    kind: Kind
    settings: ConnectionSettings
    identity: TaskInstanceIdentity
    uuid: str | None = None
    killed: KillFlag = field(default_factory=KillFlag)
    #: Life of the warm-up on the shared pool of that uuid, which ends when this gives the pool up.
    warm_up_on: Callable[[str], TaskInstanceIdentity] | None = None
    #: Whether a later try has taken it over: then this process stood still, and has nothing to end any more.
    taken_over: bool = False

    def end(self, *, hurried: bool) -> None:
        """End it, unless a later try has taken it over.

        *hurried*: within the 5 s that Airflow gives. A shared object ends only if nobody else needs it.
        """
        from airflow_qarnot_pool.ownership.termination import end, end_lineage

        began = time.monotonic()
        if self.uuid is not None and self._is_taken_over(hurried):
            self.taken_over = True
            return
        left = KILL_TIMEOUT - (time.monotonic() - began)
        seconds = max(0.1, left)  # the client takes no less than some
        limits: dict[str, Any] = (
            {"retries": 1, "timeout": min(3.0, seconds), "deadline": seconds} if hurried else {}
        )
        client = self.settings.client(**limits)
        if self.identity.shared:
            from airflow_qarnot_pool.ownership.shared_pool import release

            for pool in release(client, self.identity, opened_by=(self.identity.task_id,)):
                if self.warm_up_on is not None and not pool.closed:
                    end_lineage(client.tasks, self.warm_up_on(pool.uuid))
            return
        resource = client.pools if self.kind == "pool" else client.tasks
        if self.uuid is not None:
            end(resource, self.uuid)
        else:
            self.taken_over = end_lineage(resource, self.identity, within=left if hurried else None) is None

    def _is_taken_over(self, hurried: bool) -> bool:
        """Return whether a later try has the object; False if Qarnot does not say in time."""
        from airflow_qarnot_pool.ownership.claim import is_taken_over

        if self.uuid is None or self.identity.shared or self.identity.try_number > self.identity.max_tries:
            return False
        limits: dict[str, Any] = {"retries": 0, "timeout": _ASK, "deadline": _ASK} if hurried else {}
        client = self.settings.client(**limits)
        try:
            return is_taken_over(
                client.pools if self.kind == "pool" else client.tasks, self.identity, self.uuid
            )
        except QarnotError:
            return False


class WaitingOperator(QarnotOperator):
    """Base of the operators that may wait for a remote object.

    :param wait_for_completion: wait until it is done; otherwise return as soon as Qarnot has accepted.
    :param deferrable: wait in the triggerer, where all waits of a connection share one poll; default:
        ``[operators] default_deferrable`` of Airflow if it is set, else True.
    Durations are timedeltas or seconds.

    :param poll_interval: time between two looks; default: ``[qarnot] poll_interval``.
    :param wait_timeout: longest wait; default: no limit but ``execution_timeout``, which counts across deferral.
        The wait for room (``wait_for_quota``) is not part of it.
    :param cancel_on_kill: end the remote object when the Airflow task is killed, cleared or runs out of time. An
        object whose task fails in another way ends in any case, as nothing else would end it.
    :param wait_for_quota: how long to wait for room when a quota of the account is reached; default: fail at once.
    """

    template_fields = (*QarnotOperator.template_fields, "poll_interval", "wait_timeout", "wait_for_quota")
    kind: ClassVar[Kind]
    #: XCom key of the uuid, stored before any waiting: the trigger's guard and the next try read it.
    uuid_key: ClassVar[str]
    #: Whether it runs on a worker between deferrals, to submit more.
    many: ClassVar[bool] = False
    #: Whether the remote object is its own, which ends if this fails. The task that closes a pool owns none.
    owns: ClassVar[bool] = True

    def __init__(
        self,
        *,
        wait_for_completion: bool = True,
        deferrable: bool | None = None,
        poll_interval: Duration = None,
        wait_timeout: Duration = None,
        cancel_on_kill: bool = True,
        wait_for_quota: Duration = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.wait_for_completion = wait_for_completion
        self.deferrable = default_deferrable() if deferrable is None else deferrable
        self.poll_interval = poll_interval
        self.wait_timeout = wait_timeout
        self.cancel_on_kill = cancel_on_kill
        self.wait_for_quota = wait_for_quota
        self._quota_deadline: datetime | None = None
        #: How often in a row there was no room after a wait for it.
        self._refusals = 0
        #: What may cost no more than its limit while this waits (``Watched.to_kwargs()``).
        self._cost_limit: dict[str, Any] | None = None
        check_wait(poll_interval, wait_timeout=wait_timeout, wait_for_quota=wait_for_quota)
        check_flags(
            wait_for_completion=wait_for_completion, deferrable=self.deferrable, cancel_on_kill=cancel_on_kill
        )
        #: Pools of the Qarnot tasks that this waits for.
        self._pools_of_tasks: tuple[str, ...] = ()
        self._kill_asked = False
        self._remote_work: RemoteWork | None = None
        self._kill_after_deferral: KillAfterDeferral | None = None

    @property
    def _work(self) -> RemoteWork | None:
        """What :meth:`on_kill` has to end. A kill that came before there was any is told to it at once."""
        return self._remote_work

    @_work.setter
    def _work(self, work: RemoteWork | None) -> None:
        self._remote_work, self._kill_after_deferral = work, None
        if work is not None:
            work.warm_up_on = self._warm_up_on()
        if work is not None and self._kill_asked:
            work.killed.set()

    def _warm_up_on(self) -> Callable[[str], TaskInstanceIdentity] | None:
        """Return what names the warm-up on a shared pool; None for an operator that warms up none."""
        return None

    @property
    def _resource(self) -> Any:
        return self.client.pools if self.kind == "pool" else self.client.tasks

    @abstractmethod
    def _trigger_class(self) -> type[QarnotTrigger]:
        """The trigger that waits when this defers."""

    @abstractmethod
    def _awaited(self) -> Condition:
        """Return the condition that still counts when the wait has ended otherwise."""

    def _life_of(self, context: Context) -> TaskInstanceIdentity:
        """Whose the remote object is."""
        return TaskInstanceIdentity.of(context, self.hook.settings.namespace)

    # --- starting

    def _take(
        self, spec: Any, identity: TaskInstanceIdentity, pause: Callable[[float], Any], **options: Any
    ) -> Claim:
        """Create the remote object, or find it."""
        from airflow_qarnot_pool.ownership.claim import ClaimRequest, claim
        from airflow_qarnot_pool.ownership.records import recorded_tasks

        create = options.pop("create", None) or self._resource.create_once
        options["create"] = self._room(identity).wrap_create(self.kind, create)
        if self.kind == "task":
            options["recorded"] = partial(recorded_tasks, self.client, identity)
        request = ClaimRequest(resource=self._resource, spec=spec, identity=identity, pause=pause, **options)
        return claim(request)

    def _room(self, identity: TaskInstanceIdentity) -> QuotaRoom:
        """Return what makes room when a quota of the account is full."""
        from airflow_qarnot_pool.ownership.quota import QuotaRoom

        return QuotaRoom(self.client, self.hook.settings.namespace, identity)

    def _claim(self, context: Context, spec: Any, **options: Any) -> Claim:
        """Get the one remote object of this Airflow task, and make it known before anything else can fail.

        What cannot be made known, or may exist unseen, is ended: this may have been the last try.
        *options* are those of :class:`~airflow_qarnot_pool.ownership.claim.ClaimRequest`.
        """
        identity = self._life_of(context)
        self._work = work = RemoteWork(self.kind, self.hook.settings, identity)
        if work.killed.is_set():
            raise self._killed()
        try:
            while True:
                try:
                    claimed = self._take(spec, identity, work.killed.wait, **options)
                    break
                except QarnotQuotaError as error:
                    self._wait_for_room(context, error, work.killed)
            work.uuid, self._quota_deadline, self._refusals = claimed.uuid, None, 0
            count_decision(self.log, self.kind, claimed)
            if work.killed.is_set() and self.cancel_on_kill:
                # on_kill came while the request was under way and had nothing to end yet.
                work.end(hurried=True)
                raise self._killed()
            xcoms.push(context["ti"], self.uuid_key, claimed.uuid)
            self._show_link(context, self.kind, claimed.uuid)
        except Exception as error:
            if getattr(error, "ambiguous", work.uuid is not None) and not work.killed.is_set():
                self._end("it could not be made known")
            raise
        return claimed

    def _wait_for_room(
        self,
        context: Context,
        error: QarnotQuotaError,
        killed: KillFlag,
        resume_state: dict[str, Any] | None = None,
    ) -> None:
        """Wait before trying again, on this worker or deferred; raise *error* where there is no time to wait.

        *resume_state* comes back in the event that ``execute_with_quota_room`` gets.
        """
        patience = as_duration("wait_for_quota", self.wait_for_quota)
        if patience is None or killed.is_set():
            raise error
        now = datetime.now(UTC)
        self._quota_deadline = self._quota_deadline or min(
            [now + patience, *self._execution_ends(context, now)]
        )
        if now >= self._quota_deadline:
            raise error
        interval = poll_interval_of(self.poll_interval)
        self.log.info(
            "%s Waiting for room until %s.", error, self._quota_deadline.isoformat(timespec="seconds")
        )
        if self.deferrable:
            trigger, method_name = self._room_trigger(
                interval, self._quota_deadline.isoformat(), resume_state
            )
            self.defer(
                trigger=trigger,
                method_name=method_name,
                timeout=self._quota_deadline - now + FALLBACK_DEADLINE,
            )
        killed.wait(min(interval, (self._quota_deadline - now).total_seconds()))

    def _room_trigger(
        self, interval: float, deadline: str, resume_state: dict[str, Any] | None
    ) -> tuple[Any, str]:
        """What waits for room, and the method that goes on."""
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
        """Try again: the account has room, or the time to wait for it is over."""
        self._resume_with_room(event)
        return self.execute(context)

    def _resume_with_room(self, event: Mapping[str, Any]) -> None:
        """Read what the event of a wait for room says."""
        self._quota_deadline = parse_stored_time(event["deadline"])
        self._refusals = int(event.get("refusals") or 0) + 1

    # --- waiting

    def _deadline(self, context: Context) -> datetime | None:
        """When this wait must be over. Computed once, at the start, and carried through every deferral."""
        now = datetime.now(UTC)
        ends = self._execution_ends(context, now)
        if (limit := as_duration("wait_timeout", self.wait_timeout)) is not None:
            ends.append(now + limit)
        return min(ends, default=None)

    def _execution_ends(self, context: Context, now: datetime) -> list[datetime]:
        """When ``execution_timeout`` is over, where there is one; Airflow itself counts it for each slice anew."""
        if self.execution_timeout is None:
            return []
        return [(context["ti"].start_date or now) + self.execution_timeout]

    def _wait(
        self,
        uuid: str,
        condition: Condition,
        deadline: datetime | None,
        resume_state: dict[str, Any] | None = None,
    ) -> WaitResult:
        """Wait on this worker, or defer (then this does not return: ``execute_complete`` gets the outcome).

        *resume_state* comes back in the outcome, with the deadline in it.
        """
        resume_state = {} if resume_state is None else resume_state
        resume_state["deadline"] = deadline.isoformat() if deadline else None
        if self.deferrable:
            outcome = self._poll_before_deferring(uuid, condition)
            if outcome is not None:
                return replace(outcome, resume_state=resume_state)
            self._defer(uuid, condition.to_kwargs(), deadline, resume_state)
        killed = self._work.killed if self._work else KillFlag()
        interval = poll_interval_of(self.poll_interval)
        try:
            outcome = wait_on_worker(
                self._resource,
                uuid,
                condition,
                interval,
                deadline,
                killed,
                self._still_waiting,
                self._over_now,
                PoolsOfTasks(self.client.pools, self._pools_of_tasks, interval).why_stranded,
            )
        except QarnotError:
            self._end_unless_retried()
            raise
        if outcome is None or killed.is_set():
            # The state seen last may be the work of on_kill, but no abort makes a success.
            outcome = self._success_before_kill(uuid)
            if outcome is None:
                raise self._killed()
        outcome = replace(outcome, resume_state={**resume_state, **outcome.resume_state})
        return outcome if outcome.ending is EndReason.MET else self._after_all(outcome)

    def _poll_before_deferring(self, uuid: str, condition: Condition) -> WaitResult | None:
        """Return the outcome if the object is there already: a deferral would cost another process and some seconds."""
        limited = self.client.limited(retries=0, timeout=5.0, deadline=5.0)
        try:
            look = (limited.pools if self.kind == "pool" else limited.tasks).get(uuid)
            outcome = result_if_met(condition, look)
        except QarnotError:
            return None  # an outage, for one; the trigger waits it out
        return outcome if outcome is not None and outcome.ending is EndReason.MET else None

    def _after_all(self, outcome: WaitResult) -> WaitResult:
        """Return the outcome of a wait after one more poll: the object may have reached, or left, its target."""
        pause = self._work.killed.wait if self._work else time.sleep
        try:
            now = poll_once_more(self._resource, outcome.uuid, self._awaited(), outcome.state, pause)
        except QarnotError as error:
            self.log.info("Could not poll %s once more: %s", outcome.uuid, error)
            return outcome
        if now is None or EndReason.MET not in (now.ending, outcome.ending):
            return outcome
        if now.ending is not outcome.ending:
            self.log.info(
                "%s %s is %s by now", CAPITALIZED_NOUNS[self.kind], outcome.uuid, now.state or "gone"
            )
        return replace(now, resume_state=outcome.resume_state)

    def _success_before_kill(self, uuid: str) -> WaitResult | None:
        """Return the outcome of a Qarnot task that succeeded before this process was told to stop."""
        if self._work is None or self.kind != "task":
            return None
        try:
            look = self._work.settings.client(retries=0, timeout=2.0, deadline=2.0).tasks.get(uuid)
            outcome = result_if_met(TASK_SUCCEEDED, look)
        except QarnotError:
            return None
        return outcome if outcome is not None and outcome.ending is EndReason.MET else None

    def _over_now(self) -> str | None:
        """What to say where what is waited for has cost too much; None where it has not."""
        return None

    def _defer(
        self, uuid: str, condition: dict[str, Any], deadline: datetime | None, resume_state: dict[str, Any]
    ) -> NoReturn:
        trigger = self._trigger_class()(
            qarnot_conn_id=self.qarnot_conn_id,
            uuid=uuid,
            condition=condition,
            poll_interval=poll_interval_of(self.poll_interval),
            deadline=deadline.isoformat() if deadline else None,
            identity=self._work.identity.to_kwargs() if self._work else None,
            cancel_on_kill=self.cancel_on_kill,
            resume_state=resume_state,
            cost_limit=self._cost_limit,
            pools=self._pools_of_tasks,
            **self._trigger_options(uuid),
        )
        backstop = max(deadline - datetime.now(UTC), timedelta()) + FALLBACK_DEADLINE if deadline else None
        self.defer(trigger=trigger, method_name="execute_complete", timeout=backstop)

    def _trigger_options(self, uuid: str) -> dict[str, Any]:
        """What the trigger of this operator takes besides what all of them do."""
        return {}

    def _still_waiting(self, uuid: str) -> None:
        """Called after each look of a wait on this worker that goes on."""

    def _resumed(self, context: Context, event: Mapping[str, Any]) -> WaitResult:
        """Take up the work where the trigger left it: this may be a new object in a new process."""
        outcome = WaitResult.from_event(event)
        self._work = work = RemoteWork(self.kind, self.hook.settings, self._life_of(context), outcome.uuid)
        if work.killed.is_set():
            self._end_killed()
            raise self._killed()
        with self._ending_on_error("it could not be taken up again"):
            self._take_up(context, outcome)
        return outcome if outcome.ending is EndReason.MET else self._after_all(outcome)

    def _take_up(self, context: Context, outcome: WaitResult) -> None:
        """What a new process needs before it goes on; where that fails, the remote object is ended."""
        try:
            self._show_link(context, self.kind, outcome.uuid)
        except Exception as error:  # of Airflow's; it stores links once more when the slice ends
            self.log.warning(
                "The console link of %s %s could not be stored: %s",
                CAPITALIZED_NOUNS[self.kind],
                outcome.uuid,
                error,
            )

    # --- ending

    @contextmanager
    def _ending_on_error(self, why: str) -> Iterator[None]:
        """End the remote object where this fails: it may have been the last try, and nobody else does."""
        try:
            yield
        except (QarnotKilledError, QarnotWaitTimeoutError):
            self._end(why, killed=True)
            raise
        except Exception:
            self._end(why)
            raise

    def _end_unless_retried(self) -> None:
        """End the remote object where no try is left that would take it up."""
        if self._work is not None and self._work.identity.try_number > self._work.identity.max_tries:
            self._end("its wait failed, and no try is left to take it up")

    def _end(self, why: str, *, killed: bool = False, hurried: bool = False) -> None:
        """End the remote object, and keep the error that is being handled.

        *killed*: the reason is a kill or a time limit, which ``cancel_on_kill=False`` exempts.
        """
        if self._work is None or not self.owns or (killed and not self.cancel_on_kill):
            return
        noun, uuid = CAPITALIZED_NOUNS[self.kind], self._work.uuid
        try:
            self._work.end(hurried=hurried)
            if self._work.taken_over:
                left = "%s %s is left to a later try, which has taken it over: %s"
                self.log.info(left, noun, uuid or "of this task", why)
            else:
                self.log.info("%s %s ended: %s", noun, uuid or "of this task", why)
        except QarnotError as error:
            self.log.error("%s %s could not be ended (%s): %s", noun, uuid or "of this task", why, error)

    def on_kill(self) -> None:
        """Airflow ends this task while it runs."""
        self._kill_asked = True
        if self._work is not None:
            self._work.killed.set()
            if self._kill_after_deferral is not None:
                self._kill_after_deferral.resolve(KILL_TIMEOUT)
            else:
                self._end_killed()

    def _end_killed(self) -> None:
        self._end("the Airflow task is killed", killed=True, hurried=True)

    def defer(self, **kwargs: Any) -> NoReturn:
        """As Airflow's; from here on a kill of this process need not be one of the wait."""
        if self._work is not None and self.cancel_on_kill:
            is_wanted = partial(liveness.is_still_wanted, self.kind, is_fan_out=self.many)
            self._kill_after_deferral = KillAfterDeferral(
                self._work.identity, is_wanted, self._end_killed, self.log
            )
        super().defer(**kwargs)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow does.

        If Airflow gave up the trigger, nothing else ends the remote object. It is ended unless it has reached its
        target by now.
        """
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except (TaskDeferralTimeout, TaskDeferralError) as error:
            self._work = self._work or RemoteWork(self.kind, self.hook.settings, self._life_of(context))
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

    @abstractmethod
    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> Any:
        """Resume with the outcome that the trigger found."""

    def _raise_for(self, outcome: WaitResult) -> None:
        """Raise what an outcome other than MET means."""
        if outcome.ending is EndReason.TIMEOUT:
            self._end("the wait ran out of time", killed=True)
            raise QarnotWaitTimeoutError(
                f"{outcome.message}; {self._became('what runs')}. Raise wait_timeout if it needs longer",
                kind=self.kind,
                ref=outcome.uuid,
            )
        if outcome.ending is EndReason.GONE:
            self._end("it seems to be gone")
            raise QarnotDeletedError(outcome.message, kind=self.kind, ref=outcome.uuid)
        if outcome.ending is EndReason.ERROR:
            self._end_unless_retried()
            error_class = getattr(exceptions, str(outcome.resume_state.get("error")), QarnotError)
            raise error_class(outcome.message, kind=self.kind, ref=outcome.uuid)

    def _killed(self) -> QarnotKilledError:
        uuid = self._work.uuid if self._work else None
        return QarnotKilledError(
            f"Airflow stopped this task; {self._became(f'{CAPITALIZED_NOUNS[self.kind]} {uuid}')}"
            if uuid
            else "Airflow stopped this task before it had begun anything",
            kind=self.kind,
            ref=uuid,
        )

    def _became(self, noun: str) -> str:
        """Say what became of the remote object after a kill or a time limit."""
        if self._work is not None and self._work.taken_over:
            return f"{noun} goes on for a later try, which has taken it over"
        return f"{noun} was ended" if self.cancel_on_kill else f"{noun} goes on (cancel_on_kill=False)"
