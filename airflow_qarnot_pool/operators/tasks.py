"""Run many Qarnot tasks from one Airflow task."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_qarnot_pool.api import filters
from airflow_qarnot_pool.api.errors import (
    QarnotCredentialsError,
    QarnotDeletedError,
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNameTakenError,
    QarnotNotFoundError,
    QarnotQuotaError,
    QarnotRefusedError,
    QarnotUnavailableError,
    QarnotUnknownStateError,
    named_items,
)
from airflow_qarnot_pool.api.fields import closest_name, normalise
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.api.states import TaskState, accepts_tasks
from airflow_qarnot_pool.exceptions import QarnotCostLimitError, QarnotPoolEndedError, QarnotTaskFailedError
from airflow_qarnot_pool.links.qarnot import POOL_LINKS
from airflow_qarnot_pool.operators.bases.task import COMMON_FIELDS, TaskOperator
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.identity import (
    MAX_GENERATIONS,
    OWNER_TAG,
    SPECS_LABEL,
    TaskInstanceIdentity,
    index_and_generation,
    with_suffix,
)
from airflow_qarnot_pool.ownership.xcoms import TASKS_KEY
from airflow_qarnot_pool.parameters.configuration import min_poll_interval
from airflow_qarnot_pool.parameters.shell import find_commands, warn_of_shell_characters
from airflow_qarnot_pool.parameters.templating import (
    PLACEHOLDER,
    hide_secrets,
    is_templated,
    known_at_parse_time,
    reveal_secrets,
)
from airflow_qarnot_pool.parameters.validation import (
    has_values,
    parse_commands,
    parse_rendered,
    reject_empty,
    secret_constants,
)
from airflow_qarnot_pool.version_compat import AirflowSkipException
from airflow_qarnot_pool.waiting.conditions import (
    TASK_DONE,
    Absence,
    Condition,
    EndReason,
    WaitResult,
    is_queued,
)
from airflow_qarnot_pool.waiting.intervals import Pace, may_keep_worker, steady_interval
from airflow_qarnot_pool.waiting.polling import (
    PoolsOfTasks,
    at_most_every,
    confirmed,
    ends_wait,
    find_confirmed,
    get_confirmed,
    wait_for_next_poll,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.operators.bases.command_result import CommandResult
    from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot
    from airflow_qarnot_pool.ownership.fan_out import FanOutProgress, FanOutState, ItemSubmission, Round
    from airflow_qarnot_pool.triggers.base import QarnotTrigger

#: Qarnot tasks in one bulk request.
CHUNK = 200
#: Qarnot tasks in flight beyond the slots of the pool: enough that nodes never wait for the next submission.
BACKLOG = 500
#: Maximum number of Qarnot tasks that a worker polls before it defers, because each poll requests all of them.
MAX_POLLED_ON_WORKER = 200
#: Maximum number of items in the result, because it becomes an XCom.
MAX_RESULTS = 10_000
#: Maximum characters of the values of all items, for the same reason.
MAX_VALUES = 10_000_000
#: Failed items whose reports go into the exception.
SHOWN_FAILURES = 3
#: Fields that identify the item of an object and its outcome.
SNAPSHOT_FIELDS = ("Uuid", "Shortname", "State", "Tags", "Labels", "CreationDate", "PoolUuid")
_MAX_LOOKUPS = 5
#: Maximum number of items whose execution seconds are requested for lineage.
MAX_PRICED = 1_000
#: Fields of an item that name buckets, by all their names.
_PLACE_FIELDS = {
    "resourcebuckets",
    "advancedresourcebuckets",
    "resultbucket",
    "resultsprefix",
    "resultsbucketprefix",
}


@dataclass
class _SubmitResult:
    """The result of a submission."""

    #: Item and generation of the accepted Qarnot tasks.
    done: set[tuple[int, int]] = field(default_factory=set)
    #: Whether only another lookup can tell which Qarnot tasks exist.
    unclear: bool = False
    #: The error of the full quota that refused the rest.
    full: QarnotQuotaError | None = None
    #: Whether finished objects were deleted on the way, this operator's own perhaps.
    made_room: bool = False


@dataclass(kw_only=True)
class _Slice:
    """A slice of the Airflow task, from its start or resumption to the next deferral."""

    identity: TaskInstanceIdentity
    progress: FanOutProgress
    values: Mapping[str, Any]
    pool: str | None
    specs: Sequence[TaskSpec]
    fingerprints: Sequence[str]
    #: Maximum number of Qarnot tasks in flight.
    limit: int
    #: Whether Qarnot tasks may exist already.
    must_look: bool
    is_first_look: bool
    snapshots: list[RemoteSnapshot] = field(default_factory=list)
    #: Shared pools, and whether each was closed.
    closed_pools: dict[str, bool] = field(default_factory=dict)
    #: Number of shared pools that were closed under this slice.
    moves: int = 0
    #: Rounds in a row after which only a lookup can tell which Qarnot tasks exist.
    unclear: int = 0

    def note_round(self, state: FanOutState, sent: _SubmitResult) -> Round:
        """Record the result of a submission, and return what decides the next step."""
        from airflow_qarnot_pool.ownership.fan_out import Round

        self.progress.pending |= sent.done
        if not (sent.made_room and sent.done):
            self.unclear = self.unclear + 1 if sent.unclear else 0
        return Round(
            accepted=len(sent.done),
            remaining=len(state.waiting) - len(sent.done),
            pending=len(self.progress.pending),
            unclear=self.unclear,
            is_quota_full=sent.full is not None,
            has_made_room=sent.made_room,
        )

    def pools_of(self, state: FanOutState, sent: _SubmitResult) -> tuple[str, ...]:
        """Return the pools of the Qarnot tasks in flight: those of *state*, and those of *sent* since."""
        in_flight = set(state.running.values())
        pools = {one.pool for one in self.snapshots if one.uuid in in_flight}
        if sent.done:
            pools.add(self.pool)
        return tuple(sorted(pool for pool in pools if pool))


def _known(command: Any) -> Any:
    """Return the part of a command that can be checked when the DAG is parsed."""
    if not is_templated(command):
        return command
    if not isinstance(command, Mapping):
        return PLACEHOLDER
    known = known_at_parse_time(command)
    constants = command.get("constants")
    by_constant = isinstance(constants, str) or "DOCKER_CMD" in (constants or {})
    is_known = "command" in known or "DOCKER_CMD" in (known.get("constants") or {})
    if not is_known and ("command" in command or by_constant):
        known["command"] = PLACEHOLDER
    return known


def _places(command: Any) -> dict[str, Any]:
    """Return the fields of a command that name buckets."""
    if not isinstance(command, Mapping):
        return {}
    return {name: value for name, value in command.items() if normalise(str(name)) in _PLACE_FIELDS}


class QarnotRunTasksOperator(TaskOperator):
    """Run many commands in one Airflow task, each as a separate Qarnot task, and wait for all of them.

    An Airflow task costs seconds of a worker's time to start; a Qarnot task on a warm pool costs none. A retry
    of the Airflow task runs only the items that have not succeeded. Fails after all have ended, if any failed.
    Returns ``{total, succeeded, failed, skipped, results: [{item, uuid, state}, ...]}``, ``results`` in the order of
    *commands*, for at most 10,000 of them. An item with ``return_file`` also has a ``value``. An item that exits with
    one of its ``skip_on_exit_code`` has the state ``Skipped``, and a retry does not run it again. If all items skip,
    the Airflow task is skipped.

    Parameters besides these: :class:`~airflow_qarnot_pool.operators.bases.task.TaskOperator`; they hold for
    every command.

    Work:

    :param commands: the commands, each as text, as a list of words, or as a mapping of
        :class:`~airflow_qarnot_pool.api.specs.TaskSpec` fields (``command``, ``constants`` and whatever differs).
    :param command: the command of the items that have none.
    :param max_in_flight: most Qarnot tasks that are submitted and not finished; default: the slots of the pool
        and 500 more. A quota of the account that is reached sooner limits it, too.
    """

    uuid_key = TASKS_KEY
    is_fan_out = True
    operator_extra_links = POOL_LINKS
    spec_fields = (*COMMON_FIELDS, "command")
    template_fields = (*TaskOperator.template_fields, "commands", "command", "max_in_flight")
    template_fields_renderers = {
        "commands": "json",
        "command": "bash",
        "task_spec": "json",
        "constants": "json",
    }

    def __init__(
        self,
        *,
        commands: Any,
        command: str | Sequence[str] | None = None,
        max_in_flight: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.commands = hide_secrets(commands)
        #: Whether a quota of the account was full: then this deletes its finished items when they are recorded.
        self._met_quota = False
        #: Number of items in the next request.
        self._chunk = CHUNK
        #: Where every item stood when all had ended.
        self._last_state: FanOutState | None = None
        self.max_in_flight = max_in_flight
        self.command = command
        self._filled += has_values(self, ("max_in_flight", "command"))
        reject_empty(self, self._filled)
        if not is_templated(max_in_flight):
            self._limit()
        if isinstance(commands, (str, Mapping, int)) and not is_templated(commands):
            self._specs(commands, {}, None)
        if isinstance(commands, (list, tuple)):
            self._specs([_known(one) for one in commands], self._known_values(), self._some_pool)
            warn_of_shell_characters(self.task_id, [command, *find_commands(*commands)])

    # --- what to run

    def _specs(self, commands: Any, values: Mapping[str, Any], pool: str | None) -> list[TaskSpec]:
        specs = []
        for index, one in enumerate(parse_commands(commands)):
            own = dict(reveal_secrets(one)) if isinstance(one, Mapping) else {"command": one}
            try:
                specs.append(self._spec(self._merged(values, own, index), pool))
            except QarnotInvalidSpecError as error:
                parameter = re.split(r"[.\[]", error.field or "")[0]
                if parameter in values and parameter not in own:
                    raise
                raise QarnotInvalidSpecError(
                    f"commands[{index}]: {error.message}", field="commands", remedy=error.remedy
                ) from None
        return specs

    def _spec(self, values: Mapping[str, Any], pool: str | None) -> TaskSpec:
        spec = super()._spec(values, pool)
        for name in ("snapshot_every", "ladder"):
            if getattr(spec, name):
                raise QarnotInvalidSpecError(
                    f"{name} is a parameter of one command, and these are many",
                    field=name,
                    remedy="Use QarnotRunTaskOperator, mapped over the commands.",
                )
        return spec

    def _known_values(self) -> dict[str, Any]:
        """Return the parameters that are known when the DAG is parsed, with a placeholder for a templated command."""
        values = self._given(parsing=True)
        return {**values, "command": PLACEHOLDER} if is_templated(self.command) else values

    def _merged(self, values: Mapping[str, Any], own: dict[str, Any], index: int) -> dict[str, Any]:
        by_constant = "DOCKER_CMD" in (own.get("constants") or {})
        if by_constant and "command" not in own:
            values = {key: value for key, value in values.items() if key != "command"}
        if not own.get("command", values.get("command")) and not by_constant:
            near = closest_name("command", own)
            raise QarnotInvalidSpecError(
                "command is missing",
                field="command",
                remedy=f"Write command instead of {near}."
                if near
                else "Give each item a command, or give command to the operator for all of them.",
            )
        if own.get("constants") and values.get("constants"):
            own["constants"] = {**values["constants"], **own["constants"]}
        name = values.get("name") or f"{self.dag_id}.{self.task_id}"
        return {**values, "name": with_suffix(str(name), f" [{index}]"), **own}

    def _given_now(self) -> dict[str, Any]:
        self.commands = parse_rendered(self.commands)
        return super()._given_now()

    def _different_specs(self) -> list[TaskSpec]:
        from airflow_qarnot_pool.lineage.facets import MAX_DATASETS

        # Building thousands of specs takes seconds, and most differ in the command only.
        different: dict[str, Any] = {}
        for one in parse_commands(self.commands):
            different.setdefault(repr(_places(one)), one)
        return self._specs(list(different.values())[:MAX_DATASETS], self._given(), self._some_pool)

    def _describe_work(self, spec: Any) -> dict[str, Any]:
        return {**super()._describe_work(spec), "items": len(parse_commands(self.commands))}

    def _describe_items(self) -> dict[str, Any]:
        from airflow_qarnot_pool.lineage.facets import tasks_facet

        if (state := self._last_state) is None:
            return {}
        return {"qarnot_task": tasks_facet(state.succeeded, state.failed, state.total)}

    def _executed_seconds(self, client: QarnotClient) -> float | None:
        state = self._last_state
        if state is None or state.total > MAX_PRICED or None in state.succeeded.values():
            return None
        tagged = filters.equal("Tags", self._running.identity.tags()[2])
        tasks = client.tasks.search_all(tagged, fields=("Uuid", "Status", "ExecutionTime"))
        return sum(task.executed_seconds or 0.0 for task in tasks)

    def _secrets(self) -> Iterable[str]:
        yield from super()._secrets()
        commands = parse_rendered(self.commands)
        for one in commands if isinstance(commands, (list, tuple)) else ():
            if isinstance(one, Mapping):
                yield from secret_constants(one.get("constants")).values()

    def _limit(self, slots: int | None = None) -> int:
        if self.max_in_flight is None:
            return (slots or 0) + BACKLOG
        try:
            limit = int(str(self.max_in_flight))
        except ValueError:
            limit = 0
        if limit < 1:
            raise QarnotInvalidSpecError(
                f"max_in_flight is not a whole number of at least 1, got {self.max_in_flight!r}",
                field="max_in_flight",
                remedy="Give a number, or leave it out.",
            )
        return limit

    # --- running it

    def execute(self, context: Context) -> dict[str, Any]:
        """Run all commands, each in a Qarnot task, and return a summary."""
        from airflow_qarnot_pool.ownership.fan_out import FanOutProgress

        with self._ending_in_the_last_try():
            self._begin(context)
            return self._advance(context, self._deadline(context), FanOutProgress())

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Submit more, wait again, or return the results."""
        outcome = WaitResult.from_event(event)
        self._own(context)
        if outcome.ending not in (EndReason.MET, EndReason.IMPOSSIBLE):
            outcome = self._after_all(outcome)
            self._raise_for(outcome)
        with self._ending_in_the_last_try():
            if outcome.ending is EndReason.IMPOSSIBLE:
                self._end_stranded(outcome.message)
            return self._resume_from(context, outcome.resume_state)

    def execute_with_quota_room(self, context: Context, event: Mapping[str, Any]) -> dict[str, Any]:
        """Resume after a quota of the account was full."""
        self._read_room_event(event)
        resume_state = event.get("resume_state") or {}
        if not resume_state:
            return self.execute(context)
        self._own(context)
        with self._ending_in_the_last_try():
            return self._resume_from(context, resume_state)

    def _resume_from(self, context: Context, resume_state: Mapping[str, Any]) -> dict[str, Any]:
        from airflow_qarnot_pool.ownership.fan_out import FanOutProgress

        self._met_quota = bool(resume_state.get("met_quota"))
        deadline = parse_stored_time(resume_state["deadline"]) if resume_state.get("deadline") else None
        pool = resume_state.get("pool")
        progress = FanOutProgress.from_resume_state(resume_state)
        return self._advance(context, deadline, progress, pool if isinstance(pool, str) else None)

    def _after_all(self, outcome: WaitResult) -> WaitResult:
        """Return MET if every item has ended by now, in whichever way the wait has ended."""
        from airflow_qarnot_pool.ownership.fan_out import FanOutProgress

        self._costs.close_if_over(outcome)
        now = self._all_done(FanOutProgress.from_resume_state(outcome.resume_state))
        return outcome if now is None else replace(outcome, ending=EndReason.MET)

    def _end_stranded(self, why: str) -> bool:
        """End the items that stay queued on a pool that has ended, and return whether there are any.

        They count as cancelled with their pool then.
        """
        from airflow_qarnot_pool.ownership.termination import end_all
        from airflow_qarnot_pool.triggers.tasks import poll_lineage

        tasks = poll_lineage(self.client.tasks, self._running.identity.lineage)
        queued = [task for task in tasks if task.pool and is_queued(task.state)]
        ended = {uuid for uuid in {str(task.pool) for task in queued} if self._has_ended(uuid)}
        stranded = [task.uuid for task in queued if task.pool in ended]
        if stranded:
            self.log.warning("%s. Ending %d of them", why, len(stranded))
        end_all(self.client.tasks, stranded)
        return bool(stranded)

    def _has_ended(self, uuid: str) -> bool:
        """Return whether a pool takes no tasks any more."""
        try:
            return not accepts_tasks(get_confirmed(self.client.pools, uuid).state)
        except QarnotNotFoundError as error:
            return not error.foreign

    def _all_done(self, progress: FanOutProgress) -> FanOutState | None:
        """Return where every item stands if each has succeeded or failed; None otherwise.

        A cancelled item does not count, as whatever ended the wait may have cancelled it.
        """
        from airflow_qarnot_pool.ownership.claim import FINGERPRINT_EXCLUDES
        from airflow_qarnot_pool.ownership.fan_out import fan_out_state

        identity = self._running.identity
        try:
            specs = self._specs(self.commands, self._given_now(), self._some_pool)
            fingerprints = [spec.fingerprint(exclude=FINGERPRINT_EXCLUDES) for spec in specs]
            snapshots = self._all_snapshots(identity, fingerprints)
            pools = self._closed_pools(identity, snapshots, {})
        except QarnotError as error:
            self.log.info("Could not poll the Qarnot tasks once more: %s", error)
            return None
        now = fan_out_state(identity, fingerprints, snapshots, progress, pools)
        cancelled = {one.uuid for one in snapshots if one.cancelled}
        return now if now.is_finished and not cancelled.intersection(now.failed.values()) else None

    def _awaited(self) -> Condition:
        return TASK_DONE

    def _carry(self, slice_: _Slice, deadline: datetime | None) -> dict[str, Any]:
        """Return the state for the next slice."""
        return {
            **slice_.progress.to_resume_state(),
            "deadline": deadline.isoformat() if deadline else None,
            "met_quota": self._met_quota,
            # The given one may have been replaced, and deleted since.
            "pool": slice_.pool,
        }

    def _advance(
        self, context: Context, deadline: datetime | None, progress: FanOutProgress, pool: str | None = None
    ) -> dict[str, Any]:
        """Submit as much as there is room for and wait, until every item has ended.

        :param pool: the pool of an earlier slice of this try.
        """
        from airflow_qarnot_pool.ownership.fan_out import NextStep, low_water_mark, next_step

        slice_ = self._prepare(context, progress, pool)
        while True:
            state = self._look_up(slice_)
            if state.is_finished:
                return self._finish(self._freed(state, slice_), slice_.specs)
            submissions = state.next(slice_.limit)
            if submissions:
                self._costs.raise_if_over()
            try:
                sent = self._submit(slice_.specs, slice_.fingerprints, submissions, slice_.identity)
            except (QarnotPoolEndedError, QarnotNotFoundError) as error:
                if self._move(context, slice_, error):
                    continue
                if isinstance(error, QarnotPoolEndedError):
                    self._end("its pool is closed")
                raise
            done = slice_.note_round(state, sent)
            step = next_step(done, waits=self.wait_for_completion)
            if step is NextStep.WAIT_FOR_ROOM:
                assert sent.full is not None
                resume_state = self._carry(slice_, deadline)
                self._wait_for_room(context, sent.full, self._running.killed, resume_state)
                continue
            if not sent.made_room or not sent.done:
                self._quota_deadline, self._refusals = None, 0
            if step is NextStep.GIVE_UP:
                raise QarnotUnavailableError(
                    "Qarnot did not confirm the submitted tasks",
                    ambiguous=True,
                    remedy="Clear the task: it looks for what was created before it submits more.",
                )
            if step is NextStep.LOOK_UP:
                continue
            self.log.info("Submitted %d. Before that: %s", len(sent.done), state)
            if step is NextStep.RETURN:
                return self._result(self._submitted(slice_))
            self._pools_of_tasks = slice_.pools_of(state, sent)
            is_short = bool(sent.done) and len(progress.pending) <= MAX_POLLED_ON_WORKER
            seconds = self._worker_seconds(context) if is_short else 0.0
            self._wait_for_some(low_water_mark(done, slice_.limit), state.total, deadline, slice_, seconds)

    def _prepare(self, context: Context, progress: FanOutProgress, pool: str | None) -> _Slice:
        """Check everything before there is a Qarnot task to end, and publish the identity of all of them."""
        from airflow_qarnot_pool.ownership.claim import FINGERPRINT_EXCLUDES, may_be_overtaken

        values, pool = self._given_now(), pool or self._pool_uuid()
        if self._sends_parent_run:
            self._note_parent_run(context)
        specs = self._specs(self.commands, values, pool)
        has_limit = self._costs.parameters is not None  # refuses what is no limit
        work = self._work or self._own(context)
        self._make_known(context, work.identity, pool, resumed=bool(progress))
        if pool:
            self._costs.watch(context, pool)
        elif has_limit:
            raise QarnotInvalidSpecError(
                "max_cost and max_run_cost are limits of a pool, and there is none",
                field="max_cost",
                remedy="Leave the limits out, or give qarnot_pool.",
            )
        return _Slice(
            identity=work.identity,
            progress=progress,
            values=values,
            pool=pool,
            specs=specs,
            fingerprints=[spec.fingerprint(exclude=FINGERPRINT_EXCLUDES) for spec in specs],
            limit=self._limit(self._slots(pool) if self.max_in_flight is None and specs else None),
            must_look=bool(progress) or work.identity.has_history or may_be_overtaken(work.identity),
            is_first_look=not progress,
        )

    def _look_up(self, slice_: _Slice) -> FanOutState:
        """Return the state of every item, and end the Qarnot tasks that no item needs."""
        from airflow_qarnot_pool.api.transport import backoff
        from airflow_qarnot_pool.ownership.fan_out import fan_out_state
        from airflow_qarnot_pool.ownership.termination import end_all

        identity, progress = slice_.identity, slice_.progress
        looks = slice_.must_look
        if slice_.unclear:
            self._pause(backoff(slice_.unclear))  # a search may be late
        for _ in range(_MAX_LOOKUPS):
            snapshots = self._lookup(identity, progress, slice_.fingerprints) if looks else []
            pools = self._closed_pools(identity, snapshots, slice_.closed_pools)
            # A wait counts every cancelled item as failed, for any cause.
            progress.failed -= {one.index for one in snapshots if one.cancelled and one.pool in pools}
            state = fan_out_state(identity, slice_.fingerprints, snapshots, progress, pools)
            if not (looks and slice_.is_first_look and self._is_search_late(identity, state)):
                break
            self._pause(1.0)
        else:
            raise QarnotUnavailableError("Searches do not show the Qarnot tasks of an earlier try")
        if looks and (slice_.is_first_look or slice_.unclear):
            self._adopt(slice_, snapshots, state)
        slice_.snapshots, slice_.must_look, slice_.is_first_look = snapshots, True, False
        progress.note(state)
        end_all(self.client.tasks, state.end)
        return state

    def _pause(self, seconds: float) -> None:
        if self._running.killed.wait(seconds):
            raise self._killed()

    def _is_search_late(self, identity: TaskInstanceIdentity, state: FanOutState) -> bool:
        """Return whether an earlier try has submitted the next item, though no search shows it."""
        if not state.waiting:
            return False
        item = state.waiting[0]
        found = self.client.tasks.find(identity.for_item(item.index).shortname(item.generation))
        return found is not None and OWNER_TAG + identity.owner in found.tags

    def _adopt(self, slice_: _Slice, snapshots: Iterable[RemoteSnapshot], state: FanOutState) -> None:
        """Mark the Qarnot tasks that a later try adopts, with its first lookup."""
        from airflow_qarnot_pool.ownership.claim import Decision, count_decisions, mark_adopted

        if slice_.is_first_look:  # another look, at what was unclear, shows the same ones
            count_decisions(self.log, Decision.ADOPTED, len(state.running))
            count_decisions(self.log, Decision.ALREADY_SUCCEEDED, len(state.succeeded))
        specs = {uuid: slice_.specs[index] for index, uuid in state.running.items()}
        running = [one for one in snapshots if one.uuid in specs]
        mark_adopted(self.client.tasks, slice_.identity, running, lambda one: specs[one.uuid])

    def _submitted(self, slice_: _Slice) -> FanOutState:
        """Return the state of every item for an operator that does not wait."""
        from airflow_qarnot_pool.ownership.fan_out import fan_out_state

        snapshots = self._lookup(slice_.identity, slice_.progress, slice_.fingerprints)
        return fan_out_state(slice_.identity, slice_.fingerprints, snapshots, slice_.progress)

    def _move(
        self, context: Context, slice_: _Slice, error: QarnotPoolEndedError | QarnotNotFoundError
    ) -> bool:
        """Continue on the pool that replaces the one of *error*, if that was shared and closed or deleted."""
        is_about_pool = error.kind == "pool" and not error.foreign
        if not is_about_pool or not slice_.pool or slice_.moves >= MAX_GENERATIONS:
            return False
        pool = self._next_pool(context, slice_.pool)
        if pool is None:
            return False
        slice_.pool, slice_.moves = pool, slice_.moves + 1
        slice_.specs = self._specs(self.commands, slice_.values, pool)
        self._show_pool(context, pool, required=False)
        self._costs.watch(context, pool)
        return True

    def _make_known(
        self, context: Context, identity: TaskInstanceIdentity, pool: str | None, *, resumed: bool
    ) -> None:
        """Store the XCom for the guard of the trigger, and the link. A resumed slice continues without the link."""
        xcoms.push(context["ti"], self.uuid_key, identity.lineage)
        if pool:
            self._show_pool(context, pool, required=not resumed)

    def _show_pool(self, context: Context, pool: str, *, required: bool) -> None:
        try:
            self._show_link(context, "pool", pool)
        except Exception as error:  # of Airflow's; it stores links once more when the slice ends
            if required:
                raise
            self.log.warning("The console link of pool %s could not be stored: %s", pool, error)

    def _freed(self, now: FanOutState, slice_: _Slice) -> FanOutState:
        """Give back the places under a quota that was full: delete the items that succeeded, once they are recorded.

        Other processes cannot always do it: in another namespace they do not know which objects may be deleted.
        """
        uuids = {uuid for uuid in now.succeeded.values() if uuid is not None} if self._met_quota else set()
        if not uuids or any(spec.reports for spec in slice_.specs):
            return now
        gone = self._record_and_delete(slice_.identity, uuids)
        left = {index: None if uuid in gone else uuid for index, uuid in now.succeeded.items()}
        return replace(now, succeeded=left)

    def _record_and_delete(self, identity: TaskInstanceIdentity, uuids: set[str]) -> set[str]:
        """Record and delete these Qarnot tasks, and return the uuids of those that were deleted."""
        try:
            tagged = filters.equal("Tags", identity.tags()[2])
            found = [one for one in self.client.tasks.iterate(tagged) if one.uuid in uuids]
            return {one.uuid for one in self._room(identity).record_and_delete(found)}
        except QarnotError as error:
            self.log.warning(
                "%d finished Qarnot tasks keep their places under the quota: %s", len(uuids), error
            )
            return set()

    def _slots(self, pool: str | None) -> int:
        """Return the number of slots of a pool; 0 if it is deleted, because a shared one may have been replaced."""
        if pool is None:
            return 0
        found = find_confirmed(self.client.pools, pool)
        if found is None:
            return 0
        return found.total_slot_capacity or found.instance_count or 0

    def _all_snapshots(
        self, identity: TaskInstanceIdentity, fingerprints: Sequence[str]
    ) -> list[RemoteSnapshot]:
        """Return everything that any lineage of this task instance made, with the records of deleted items."""
        from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot
        from airflow_qarnot_pool.ownership.records import outcomes

        tagged = filters.equal("Tags", OWNER_TAG + identity.owner)

        def request() -> list[RemoteSnapshot]:
            found = self.client.tasks.search_all(tagged, fields=SNAPSHOT_FIELDS)
            # In this order: an item is recorded before it is deleted.
            recorded = outcomes(self.client, identity.owner).snapshots(identity.lineage, fingerprints)
            return [RemoteSnapshot.of(one) for one in found] + recorded

        return confirmed(request, self._running.killed.wait)

    def _lookup(
        self, identity: TaskInstanceIdentity, progress: FanOutProgress, fingerprints: Sequence[str]
    ) -> list[RemoteSnapshot]:
        """Return everything that any lineage of this task instance created. Pending Qarnot tasks must exist.

        :raises QarnotDeletedError: some of them were deleted. The others are ended.
        """
        from airflow_qarnot_pool.ownership.claim import raise_if_overtaken
        from airflow_qarnot_pool.ownership.decisions import RemoteSnapshot

        for _ in range(_MAX_LOOKUPS):
            snapshots = self._all_snapshots(identity, fingerprints)
            raise_if_overtaken(identity, snapshots)
            missing = progress.pending - {
                (snapshot.index, snapshot.generation)
                for snapshot in snapshots
                if snapshot.lineage == identity.lineage
            }
            if not missing:
                return snapshots
            # A search may not show a new object yet.
            self._pause(1.0)
        for index, generation in sorted(missing):
            found = self._find_surely(identity.for_item(index).shortname(generation))
            if found is None:
                break
            snapshots.append(RemoteSnapshot.of(found))
        else:
            return snapshots
        self._end("some of them are gone")
        items = sorted(index for index, _ in missing)
        raise QarnotDeletedError(
            f"{len(missing)} of {len(self.commands)} Qarnot tasks are gone: they were deleted before their end was "
            f"seen ({named_items(items)}). A retry of this "
            "Airflow task runs them again, and whatever else has not succeeded",
            kind="task",
        )

    def _find_surely(self, shortname: str) -> Task | None:
        """Return the Qarnot task that searches have missed; None if the service itself says that it is gone."""
        try:
            found: Task = get_confirmed(self.client.tasks, shortname, self._running.killed.wait)
        except QarnotNotFoundError as error:
            if error.foreign:
                raise QarnotUnavailableError(error.message) from error
            return None
        return found

    def _submit(
        self,
        specs: Sequence[TaskSpec],
        fingerprints: Sequence[str],
        wanted: Sequence[ItemSubmission],
        identity: TaskInstanceIdentity,
    ) -> _SubmitResult:
        """Submit these, and make room for them under a full quota as long as that succeeds."""
        from airflow_qarnot_pool.ownership.claim import (
            MAX_CREATE_ATTEMPTS,
            Decision,
            count_decisions,
            with_identity,
        )

        sent, labels = _SubmitResult(), self._item_labels(specs, fingerprints)

        def stamped(one: ItemSubmission) -> TaskSpec:
            spec, item = specs[one.index], identity.for_item(one.index)
            made: TaskSpec = with_identity(spec, item, one.generation, fingerprints[one.index], labels)
            return made

        todo, in_vain = list(wanted), 0
        while todo:
            if self._running.killed.is_set():
                raise self._killed()
            chunk, before = todo[: self._chunk], len(sent.done)
            refused = self._send(chunk, [stamped(one) for one in chunk], sent)
            todo = [*refused, *todo[len(chunk) :]]
            if not refused:
                self._chunk = min(2 * self._chunk, CHUNK)
                continue
            assert sent.full is not None
            self._met_quota = True
            accepted = len(sent.done) - before
            in_vain = 0 if accepted else in_vain + 1
            helps = in_vain <= MAX_CREATE_ATTEMPTS
            places = self._room(identity).make_room("task", sent.full, len(todo)) if helps else 0
            # A server may refuse a whole list that is longer than the room there is.
            self._chunk = min(places or accepted or 1, CHUNK)
            if not places:
                break
            sent.full, sent.made_room = None, True
        count_decisions(self.log, Decision.FRESH_SUBMIT, len(sent.done))
        return sent

    def _item_labels(self, specs: Sequence[TaskSpec], fingerprints: Sequence[str]) -> dict[str, str]:
        """Return the labels of every item, with the digest that its record needs if items have no values."""
        from airflow_qarnot_pool.ownership.records import specs_digest

        if any(spec.reports for spec in specs):
            # A record has no value, so no process may record and delete an item that has one.
            return dict(self._labels)
        return {**self._labels, SPECS_LABEL: specs_digest(fingerprints)}

    def _send(
        self, chunk: Sequence[ItemSubmission], specs: Sequence[TaskSpec], sent: _SubmitResult
    ) -> Sequence[ItemSubmission]:
        """Submit *chunk* with one request; return those for which the account's quota has no room."""
        try:
            results = self.client.tasks.create_many(specs)
        except QarnotQuotaError as error:
            sent.full = error
            return chunk
        except QarnotRefusedError as error:
            if error.status != 400:
                raise
            # If all items fail, a server may say so with the error of one of them.
            self._refuse(error, specs[0].pool)
        refused = []
        for one, result in zip(chunk, results, strict=True):
            if result.error is None:
                sent.done.add((one.index, one.generation))
            elif isinstance(result.error, QarnotNameTakenError):
                sent.unclear = True
            elif isinstance(result.error, QarnotQuotaError):
                sent.full = result.error
                refused.append(one)
            else:
                self._refuse(result.error, specs[0].pool)
        return refused

    def _refuse(self, error: QarnotError, pool: str | None) -> NoReturn:
        """Raise the error of a refused item, and end the others: the DAG has a mistake, and they would run in vain.

        If the pool is closed, only raise. The caller continues on the pool that replaces a shared one.
        """
        if pool and isinstance(error, (QarnotRefusedError, QarnotNotFoundError)):
            self._explain_refusal(pool, error)
        self._end("a Qarnot task was refused")
        raise error

    def _closed_pools(
        self, identity: TaskInstanceIdentity, snapshots: Iterable[RemoteSnapshot], closed: dict[str, bool]
    ) -> set[str]:
        """Return the shared pools that were closed under Qarnot tasks of this lineage. *closed* caches the results."""
        from airflow_qarnot_pool.ownership.shared_pool import was_closed

        for snapshot in snapshots:
            if (
                snapshot.cancelled
                and snapshot.lineage == identity.lineage
                and snapshot.pool
                and snapshot.pool not in closed
            ):
                request = partial(was_closed, self.client, snapshot.pool, identity)
                closed[snapshot.pool] = confirmed(request, self._running.killed.wait)
        return {pool for pool, so in closed.items() if so}

    def _wait_for_some(
        self,
        low_water: int,
        total: int,
        deadline: datetime | None,
        slice_: _Slice,
        defer_after: float,
    ) -> None:
        """Wait until no more than *low_water* are unfinished, or one was deleted.

        :param defer_after: maximum seconds of a deferrable wait on this worker.
        """
        progress = slice_.progress
        if self.deferrable:
            if self._ends_soon(low_water, deadline, progress, defer_after):
                return
            condition = {"expected": total, "low_water": low_water}
            self._defer(self._running.identity.lineage, condition, deadline, self._carry(slice_, deadline))
        killed, interval = self._running.killed, self._poll_interval
        pools, absence = self._polled_pools(), Absence(interval)
        over_limit = at_most_every(steady_interval(interval), self._costs.over_limit)
        pace = Pace(time.monotonic(), interval, min_poll_interval())
        pending = len(progress.pending)
        while True:
            wait_for_next_poll(pace, killed, deadline)  # the lookup has just shown all of them
            if killed.is_set():
                self._raise_unless_done(progress)
                return
            polled = time.monotonic()
            if message := over_limit():
                self._stop_waiting(EndReason.ERROR, message, progress, error=QarnotCostLimitError.__name__)
                return
            try:
                with self._reconnecting():
                    if self._is_wait_met(low_water, progress, pools):
                        return
                absence.record_found()
                pace.backoff.record_response()
            except QarnotError as error:
                pace.backoff.record_failure(error)
                # A search that is refused says nothing about the Qarnot tasks, as in the triggerer.
                is_permanent = isinstance(error, (QarnotCredentialsError, QarnotUnknownStateError))
                if ends_wait(error, absence) and is_permanent:
                    raise
            if deadline is not None and datetime.now(deadline.tzinfo) >= deadline:
                late = f"{len(progress.pending)} of {total} Qarnot tasks did not end in time"
                self._stop_waiting(EndReason.TIMEOUT, late, progress)
                return
            if len(progress.pending) != pending:
                pace.record_change(polled)
                pending = len(progress.pending)
            pace.poll_seconds = time.monotonic() - polled

    def _ends_soon(
        self, low_water: int, deadline: datetime | None, progress: FanOutProgress, defer_after: float
    ) -> bool:
        """Wait on this worker for a moment, and return whether there is something to do on it.

        Otherwise the wait continues in the triggerer, which also handles any error.
        """
        from airflow_qarnot_pool.triggers.tasks import poll_lineage, record_end

        tasks = self.client.limited(retries=0, timeout=5.0, deadline=5.0).tasks
        killed = self._running.killed
        if deadline is not None:
            defer_after = min(defer_after, (deadline - datetime.now(deadline.tzinfo)).total_seconds())
        started, state = time.monotonic(), str(TaskState.SUBMITTED)
        pace = Pace(started, self._poll_interval, min_poll_interval(), limit=defer_after)
        while may_keep_worker(self.kind, state, time.monotonic() - started, defer_after):
            if not wait_for_next_poll(pace, killed, deadline):
                return False
            if killed.is_set():
                self._raise_unless_done(progress)
                return True
            try:
                polled = poll_lineage(tasks, self._running.identity.lineage)
                state = next((task.state for task in polled if not is_queued(task.state)), state)
                for task in polled:
                    record_end(progress, task)
            except QarnotError as error:
                self.log.info("Deferring, because the Qarnot tasks could not be polled: %s", error)
                return False
            if len(progress.pending) <= low_water:
                return True
        return False

    def _raise_unless_done(self, progress: FanOutProgress) -> None:
        """Raise the error of a kill, unless every item has succeeded by now."""
        state = self._all_done(progress)
        if state is None or state.failed:
            raise self._killed()

    def _is_wait_met(self, low_water: int, progress: FanOutProgress, pools: PoolsOfTasks) -> bool:
        """Poll all Qarnot tasks once, and return whether there is something to do on this worker."""
        from airflow_qarnot_pool.triggers.tasks import poll_lineage, record_end

        tasks = poll_lineage(self.client.tasks, self._running.identity.lineage)
        for task in tasks:
            record_end(progress, task)
        vanished = progress.pending - {index_and_generation(task.shortname) for task in tasks}
        if len(progress.pending) <= low_water or vanished:
            return True
        why = pools.why_stranded(task.state for task in tasks)
        # Those that are queued may be on another pool.
        return why is not None and self._end_stranded(
            f"Qarnot tasks stay queued, and {why}, so they never run"
        )

    def _stop_waiting(
        self, ending: EndReason, message: str, progress: FanOutProgress, **resume_state: Any
    ) -> None:
        """Raise what *ending* means, unless every item has ended by now."""
        outcome = WaitResult(
            ending=ending,
            uuid=self._running.identity.lineage,
            message=message,
            resume_state={**progress.to_resume_state(), **resume_state},
        )
        self._raise_for(self._after_all(outcome))

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.tasks import QarnotTasksTrigger

        return QarnotTasksTrigger

    # --- what became of it

    def _finish(self, now: FanOutState, specs: Sequence[TaskSpec]) -> dict[str, Any]:
        from airflow_qarnot_pool.logs.failure_report import failure_report

        self.log.info("%s", now)
        self._last_state = now
        if not now.failed:
            results = self._item_results(now, specs)
            skipped = sum(result.skipped_with is not None for result in results.values())
            if skipped and skipped == now.total:
                raise AirflowSkipException(f"All {now.total} commands exited with a code that skips")
            return self._result(now, results)
        reports = [
            failure_report(self.client, task, self.hook.settings.console_link("task", task.uuid))
            for task in self._some_failed(now)
        ]
        raise QarnotTaskFailedError(
            f"{len(now.failed)} of {now.total} Qarnot tasks failed: {named_items(list(now.failed))}. A retry runs only "
            f"{'these' if len(now.failed) > 1 else 'this'} again, on an open pool.\n" + "\n".join(reports),
            kind="task",
        )

    def _some_failed(self, now: FanOutState) -> list[Task]:
        known = [uuid for uuid in now.failed.values() if uuid is not None]
        found = (self.client.tasks.find(uuid) for uuid in known[:SHOWN_FAILURES])
        return [task for task in found if task is not None]

    def _item_results(self, now: FanOutState, specs: Sequence[TaskSpec]) -> dict[int, CommandResult]:
        """Return the results of the items that report any, with one request for each.

        :raises QarnotDeletedError: a Qarnot task was deleted before its result was read.
        """
        from airflow_qarnot_pool.operators.bases.command_result import read_all, read_result

        client, work = self.client, self._work

        def read(item: tuple[int, str | None]) -> CommandResult:
            index, uuid = item
            if work and work.killed.is_set():
                raise self._killed()
            try:
                if uuid is None:
                    raise QarnotNotFoundError("it was deleted")
                return read_result(client, uuid)
            except QarnotNotFoundError:
                raise QarnotDeletedError(
                    f"The Qarnot task of item {index} was deleted before its result was read. A retry runs it again",
                    kind="task",
                    ref=uuid,
                ) from None

        items = [(index, uuid) for index, uuid in now.succeeded.items() if specs[index].reports]
        results: dict[int, CommandResult] = {}
        size = 0
        for (index, _), result in zip(items, read_all(read, items), strict=True):
            results[index] = result
            size += len(json.dumps(result.value))
            if size > MAX_VALUES:
                raise QarnotTaskFailedError(
                    f"The values of the items have more than {MAX_VALUES:,} characters together",
                    remedy="Write them to files, give result_bucket= and return their names.",
                    kind="task",
                )
        return results

    def _result(self, now: FanOutState, results: Mapping[int, CommandResult] | None = None) -> dict[str, Any]:
        results = results or {}
        items: dict[int, dict[str, Any]] = {
            index: {"item": index, "uuid": uuid, "state": state}
            for state, uuids in (
                ("Success", now.succeeded),
                ("Failure", now.failed),
                ("Submitted", now.running),
            )
            for index, uuid in uuids.items()
        }
        for index, result in results.items():
            skips = result.skipped_with is not None
            items[index] |= {"state": "Skipped"} if skips else {"value": result.value}
        skipped = sum(item["state"] == "Skipped" for item in items.values())
        return {
            "total": now.total,
            "succeeded": len(now.succeeded) - skipped,
            "failed": len(now.failed),
            "skipped": skipped,
            "results": [items[index] for index in sorted(items)][:MAX_RESULTS],
        }
