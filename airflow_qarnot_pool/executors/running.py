"""Names and ends of the Qarnot tasks that run Airflow tasks. Pure functions.

Airflow queues a task instance once for each try, for each resumption after a deferral, and after a try that could not
start. Each of these *attempts* has one Qarnot task. Its name is decided before the request that creates it:

* From Airflow 3.2.2 on the scheduler commits an id together with the state ``queued``, and the name is made from it. So
  the next scheduler finds the Qarnot task of each queued task instance by its name, or knows that there is none.
* Before that, the name is made from the id of the task instance and a digest of the attempt's token, which Airflow does
  not store. The next scheduler searches by the tag of the task instance, which finds its earlier attempts, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from typing import Any

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.ownership.identity import INSTANCE_TAG

#: Tag with the namespace, by which one search finds all Qarnot tasks of executors and no other.
EXECUTOR_TAG = "airflow-executors:"
#: Role in the labels, by which other processes know that no Airflow task reads how the Qarnot task ended.
ROLE = "executor"
#: How long a Qarnot task is kept after its end, for its output.
KEPT_FOR = timedelta(days=1)
#: How often an attempt that Airflow never saw start is queued again within its try. Waits for a slot do not count.
MAX_REQUEUES = 2
#: Events in the audit log of a task that the executor fails, or queues again within its try.
FAILED, REQUEUED = "failed by QarnotExecutor", "requeued by QarnotExecutor"
#: Seconds for which a Qarnot task may outlive the need of Airflow for it. One that runs ends by itself in this time,
#: because its process has seen that Airflow has stopped the task, or stores its log. The time is less than Airflow's
#: default heartbeat timeout, by which a task would fail that was cleared while it ran.
UNNEEDED_QUEUED_FOR, UNNEEDED_RUNNING_FOR = 30.0, 240.0
#: States that the task itself or a user has reported. A deferred or rescheduled task may be queued again at any moment.
_FINAL_STATES = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_LIVE_STATES = frozenset({"queued", "running", "restarting"})
#: Minimum age of the state of a Qarnot task that no scheduler watches, before it is taken for left on.
LEFT_ON_AFTER = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One queueing of an Airflow task instance, and the name of its Qarnot task.

    :param key: the key by which Airflow's executors know the task instance and its try.
    :param external_id: the id that Airflow has committed for the attempt; "" before Airflow 3.2.2.
    :param by_tag: whether the name is not known, because another scheduler made it from a token.
    :param pool: name of its pool in the options, for metrics.
    """

    name: str
    key: Any = field(repr=False)
    instance_id: str
    external_id: str = ""
    by_tag: bool = False
    pool: str = ""

    @property
    def tag(self) -> str:
        """The tag of all Qarnot tasks of the task instance."""
        return INSTANCE_TAG + self.instance_id


def name_of(external_id: str | None, instance_id: str, token: str = "") -> str:
    """Return the shortname of the Qarnot task of an attempt."""
    if external_id:
        return f"airflow-{external_id}"
    return f"airflow-{instance_id}-{hashlib.sha256(token.encode()).hexdigest()[:12]}"


class Outcome(Enum):
    """How a Qarnot task has ended, or why there is none."""

    SUCCESS = auto()
    #: Its command failed, its node was lost, or it was aborted.
    FAILURE = auto()
    #: It had no slot for as long as its token is of use, or could not be submitted for that long.
    WAITED = auto()
    #: It was deleted before its end was seen.
    DELETED = auto()
    #: It was never created: Qarnot refuses it, and will refuse it again.
    REFUSED = auto()
    #: An adopted attempt has no Qarnot task. The scheduler before has not created it, or may still do so.
    MISSING = auto()


_OUTCOMES = {
    states.TaskState.SUCCESS: Outcome.SUCCESS,
    states.TaskState.FAILURE: Outcome.FAILURE,
    states.TaskState.CANCELLED: Outcome.FAILURE,
}


def outcome_of(state: str) -> Outcome | None:
    """Return the outcome of a Qarnot task in *state*; None if it has not ended.

    :raises QarnotUnknownStateError: this release does not know the state.
    """
    return _OUTCOMES.get(states.parse_task_state(state))


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of the Qarnot task of an attempt, with the reason of a failure."""

    attempt: Attempt
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class InstanceRow:
    """A task instance as Airflow's database has it.

    :param is_ours: whether this scheduler has queued it, or adopted it.
    """

    state: str | None
    external_id: str | None = None
    is_ours: bool = True

    def is_replaced(self, attempt: Attempt) -> bool:
        """Return whether Airflow has committed another attempt since."""
        return bool(attempt.external_id) and self.external_id != attempt.external_id

    def has(self, attempt: Attempt) -> bool:
        """Return whether this scheduler reports the end of *attempt*. Without an id only one scheduler does."""
        return not self.is_replaced(attempt) and (bool(attempt.external_id) or self.is_ours)


class EndAction(Enum):
    """What the end of an attempt means for Airflow."""

    #: Report success: the task has told Airflow its state itself, or was told to end.
    SUCCESS = auto()
    #: Report a failure with the reason.
    FAIL = auto()
    #: Queue the task instance again, in the same try. Its old Qarnot task cannot start any more.
    REQUEUE = auto()
    #: Reset the task instance, as Airflow does if it is not adopted. It gets a new id, so a Qarnot task that appears
    #: later cannot start it.
    RESET = auto()
    #: Report nothing, because Airflow has another attempt by now, or none, or will have one when the task resumes.
    FORGET = auto()


def judge(end: End, instance: InstanceRow | None, requeues: int) -> EndAction:
    """Decide what the end of an attempt means.

    :param instance: None if Airflow has no task instance of that id any more.
    :param requeues: how often the try was queued again already, without waits for a slot.
    """
    if instance is None:
        # A task that is cleared while it runs has another id at once, and waits for the report to run again.
        return EndAction.SUCCESS
    if not instance.has(end.attempt):
        return EndAction.FORGET
    if instance.state == "queued":
        return _judge_unstarted(end.outcome, requeues)
    if instance.state == "running" and end.outcome is not Outcome.SUCCESS:
        return EndAction.FAIL
    is_reported = instance.state in _LIVE_STATES or instance.state in _FINAL_STATES
    return EndAction.SUCCESS if is_reported else EndAction.FORGET


def _judge_unstarted(outcome: Outcome, requeues: int) -> EndAction:
    """Decide about an attempt whose start Airflow never saw, which includes a command that ended too early."""
    if outcome is Outcome.MISSING:
        return EndAction.RESET
    if outcome is Outcome.WAITED:
        return EndAction.REQUEUE
    if outcome is Outcome.REFUSED or requeues >= MAX_REQUEUES:
        return EndAction.FAIL
    return EndAction.REQUEUE


def unneeded(
    attempts: Mapping[str, Attempt],
    instances: Mapping[str, InstanceRow],
    since: Mapping[str, float],
    now: float,
) -> dict[str, float]:
    """Return since when Airflow has no need for an attempt, for the names of all for which it has none.

    :param attempts: attempts by name.
    :param instances: task instances by id.
    :param since: the last result.
    """
    names = [
        name
        for name, attempt in attempts.items()
        if (instance := instances.get(attempt.instance_id)) is None
        or instance.state not in _LIVE_STATES
        # A launch of an earlier attempt may be the one that runs the task.
        or (instance.is_replaced(attempt) and instance.state != "running")
    ]
    return {name: since.get(name, now) for name in names}


def left_on(
    found: Mapping[str, str],
    instances: Mapping[str, InstanceRow],
    replaced: Collection[str],
    since: Mapping[str, float],
    now: float,
) -> dict[str, float]:
    """Return since when Airflow has no need for Qarnot tasks that no scheduler watches, by uuid.

    An id that this Airflow has never had belongs to another deployment, or to a DAG run that was deleted.

    :param found: ids of task instances by uuid.
    :param replaced: ids of task instances that were cleared or retried since.
    :param since: the last result.
    """
    return {
        uuid: since.get(uuid, now)
        for uuid, instance_id in found.items()
        if instance_id in replaced
        or ((instance := instances.get(instance_id)) is not None and instance.state not in _LIVE_STATES)
    }


def is_overdue(since: float, now: float, *, has_started: bool) -> bool:
    """Return whether a Qarnot task that Airflow does not need since then is to be aborted."""
    return now - since >= (UNNEEDED_RUNNING_FOR if has_started else UNNEEDED_QUEUED_FOR)
