"""Create pools."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotInvalidSpecError,
    QarnotQuotaError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.api.limits import parse_stored_time
from airflow_qarnot_pool.costs.parameters import parse_amount
from airflow_qarnot_pool.environments import shared
from airflow_qarnot_pool.environments.specification import (
    QarnotEnvironment,
    check_files,
    folders_being_loaded,
)
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError
from airflow_qarnot_pool.operators.bases import warm_up as warming
from airflow_qarnot_pool.operators.bases.auto_size import choose_size, first_guess, largest_size
from airflow_qarnot_pool.operators.bases.base import WAIT_FIELDS
from airflow_qarnot_pool.operators.bases.cost_limits import (
    COST_LIMIT_FIELDS,
    check_limit_parameters,
)
from airflow_qarnot_pool.operators.bases.pool import PoolOperator
from airflow_qarnot_pool.operators.bases.warm_up import WarmUp, WarmUpRequest, scaling_to_zero
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.identity import DEFAULT_KEEP_WARM, MAX_GENERATIONS
from airflow_qarnot_pool.ownership.ladder import pool_on_rung, share_of_wait
from airflow_qarnot_pool.parameters.templating import hide_secrets, is_templated
from airflow_qarnot_pool.parameters.validation import (
    Duration,
    as_duration,
    as_list,
    check_rendered,
    has_values,
    make_pool_spec,
    reject_empty,
    scales,
    secret_constants,
    spec_values,
)
from airflow_qarnot_pool.waiting.conditions import (
    COLD,
    POOL_READY,
    Condition,
    EndReason,
    WaitResult,
    result_if_met,
)
from airflow_qarnot_pool.waiting.intervals import Forecast
from airflow_qarnot_pool.waiting.polling import get_confirmed

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Pool
    from airflow_qarnot_pool.api.specs import PoolSpec, ResourceBucket
    from airflow_qarnot_pool.ownership.claim import Claim, ClaimRequest
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.ownership.shared_pool import HoldOwner


_YES, _NO = {"true", "yes", "1"}, {"false", "no", "0"}
_POOL_FIELDS = ("instance_count", "slots_per_node", "resource_buckets")
#: Parameters whose loss would not be noticed, or only after it has cost something.
_FILLED = (*COST_LIMIT_FIELDS, *_POOL_FIELDS, "estimated_cost", "pool_spec")


class QarnotCreatePoolOperator(PoolOperator):
    """Create a pool and return its uuid, by default when the pool is ready.

    Tasks find the pool by this result, so it is stored even with ``do_xcom_push=False``.

    Between two clears the Airflow task has one pool. A retry adopts the pool of the earlier try. A clear closes the
    old pool and creates another. If the wait fails, the pool is closed.

    Nodes:

    :param instance_count: size of a fixed pool, in slots (a node each, unless ``slots_per_node`` is given). ``"auto"``
        takes the cheapest size within 25 % of the fastest, from the records of earlier runs. It takes at most 16 nodes,
        or ``[qarnot] max_instance_count`` slots. ``"auto:20"`` takes at most 20 slots.
    :param slots_per_node: how many slots share one node.
    :param resource_buckets: buckets (names or ``ResourceBucket``) whose files every node gets.
    :param environment: a :class:`~airflow_qarnot_pool.environments.QarnotEnvironment` (packages, and modules of the
        DAG's bundle), or a mapping with its parameters, which Python functions on the pool can import.
    :param pool_spec: any other field of :class:`~airflow_qarnot_pool.api.specs.PoolSpec`, by its name there or
        in the API: ``name``, ``tags``, ``profile``, ``image``, ``constants``, ``elastic`` or ``scaling`` for a pool
        that follows its load, and more. Its values may be templates. With a ``ladder`` a pool that does not become
        ready is closed, and one on the next rung is opened in the same try.

    Life of the pool:

    :param shared: name of a pool that all DAGs and runs of the namespace share. The live pool of this name is opened,
        or else a new one. It scales down when it is idle (``keep_warm`` is 10 minutes unless ``pool_spec`` has
        ``scaling`` or ``elastic``). A kill, clear or failure of this task closes it only if no other DAG run needs it.
    :param ready_when: what to wait for: a state, or a number of running instances. Default: ``FullyExecuting``
        for a pool of fixed size, all slots for one with ``keep_warm``; a pool with ``elastic`` or ``scaling``,
        which may rest at no nodes, is not waited for.
    :param keep_warm: create a pool of ``instance_count`` slots that scales down when it is idle. Nodes boot on demand
        and shut down after this long without work, as a timedelta or seconds, even if Airflow is down.
    :param warm_up: boot all nodes of such a pool at once, and wait for them; otherwise, and without
        ``wait_for_completion``, the first Qarnot task boots them.

    Cost:

    :param max_cost: maximum cost of this pool, in euros. A pool that reaches it is closed, and all tasks that wait on
        it fail with ``QarnotCostLimitError``, which is never retried. A template that renders to nothing is refused.
    :param max_run_cost: the same for all pools that the DAG run opens, after clears, too.
    :param estimated_cost: expected cost, in euros. The pool is not created if credits, the budget of its project or
        quotas cannot cover it.
    """

    template_fields = (
        *PoolOperator.template_fields,
        *_POOL_FIELDS,
        "pool_spec",
        "ready_when",
        "warm_up",
        *COST_LIMIT_FIELDS,
        "estimated_cost",
    )
    template_fields_renderers = {"pool_spec": "json"}
    #: Name of the pool if ``pool_spec`` has none; default: the shared name, or the DAG's and the task's id.
    default_name: str | None = None
    #: The companion DAG that opens the pool ahead of scheduled runs, if there is one.
    opened_ahead_by: str | None = None
    #: How long before a run of this DAG the companion's run is scheduled.
    opened_ahead_lead = timedelta()

    def __init__(
        self,
        *,
        instance_count: int | str | None = None,
        slots_per_node: int | str | None = None,
        resource_buckets: Iterable[str | ResourceBucket] | None = None,
        environment: QarnotEnvironment | Mapping[str, Any] | None = None,
        pool_spec: Mapping[str, Any] | None = None,
        ready_when: str | int | None = None,
        keep_warm: Duration = None,
        warm_up: bool | str = True,
        max_cost: float | str | None = None,
        max_run_cost: float | str | None = None,
        estimated_cost: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_cost = max_cost
        self.max_run_cost = max_run_cost
        check_limit_parameters(self)
        self.instance_count = instance_count
        #: Slots that were chosen for ``instance_count="auto"``.
        self._chosen_size: int | None = None
        self.slots_per_node = slots_per_node
        self.resource_buckets = resource_buckets
        self.environment = environment
        known_environment = QarnotEnvironment.of(environment)
        if known_environment is not None and self.get_dag() is not None:
            # A DAG that is made in another file has its own one in ``fileloc`` only after it is parsed.
            check_files(known_environment, self._dag_folder, *folders_being_loaded())
        self.pool_spec = hide_secrets(pool_spec)
        self.ready_when = ready_when
        self.keep_warm = as_duration("keep_warm", keep_warm)
        self.warm_up = warm_up
        if not is_templated(warm_up):
            self._warm_up_wanted()
        self.estimated_cost = estimated_cost
        if not is_templated(estimated_cost):
            parse_amount("estimated_cost", estimated_cost)
        self._filled = has_values(self, _FILLED, "pool_spec")
        #: The number of pools of this lineage that did not become ready, which is the rung of the ladder.
        self._failed_boots = 0
        #: End of the wait for all of them, if it has one.
        self._boot_deadline: datetime | None = None
        reject_empty(self, self._filled)
        if self.shared is not None and keep_warm is None and not scales(pool_spec):
            self.keep_warm = DEFAULT_KEEP_WARM
        known = self._given(parsing=True)
        self._spec(known)
        if not is_templated([ready_when, instance_count]):
            self._condition(known)

    def _given(self, *, parsing: bool = False) -> dict[str, Any]:
        """Return the fields of the spec, or those that are known when the DAG is parsed."""
        values = spec_values(self, _POOL_FIELDS, "pool_spec", parsing=parsing)
        if (largest := self._largest_size(values)) is not None:
            size = self._chosen_size or first_guess(largest, values.get("slots_per_node"))
            values["instance_count"] = min(largest, max(size, self._least_size))
        return values

    def _largest_size(self, values: Mapping[str, Any]) -> int | None:
        """Return the maximum size if the provider chooses it, else None."""
        largest = largest_size(values.get("instance_count"), values.get("slots_per_node"))
        if largest is not None and self.shared is not None:
            raise QarnotInvalidSpecError(
                f"instance_count of the shared pool {self.shared!r} cannot be chosen from the runs of one DAG, got "
                f"{values['instance_count']!r}",
                field="instance_count",
                remedy="Give a number.",
            )
        return largest

    @property
    def _least_size(self) -> int:
        """Slots that the pool must have for ``ready_when``."""
        ready = str(self.ready_when).strip()
        return int(ready) if ready.isdecimal() else 1

    def _choose_size(self, context: Context) -> int | None:
        """Choose the size if ``instance_count`` is "auto". Return its maximum then, else None."""
        values = spec_values(self, _POOL_FIELDS, "pool_spec")
        largest = self._largest_size(values)
        if largest is not None:
            self._chosen_size = choose_size(self, context, values.get("slots_per_node"), largest)
        return largest

    def _settle_size(self, context: Context, claimed: Claim) -> None:
        """Take the size of a pool that existed, and store the size for the process that resumes after a deferral."""
        from airflow_qarnot_pool.costs.model import size_of

        if claimed.existing is not None:
            self._chosen_size = size_of(self.client.pools.get(claimed.uuid)) or self._chosen_size
        xcoms.push(context["ti"], xcoms.SIZE_KEY, self._chosen_size)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as the base does, with the size that was chosen."""
        if self._largest_size(spec_values(self, _POOL_FIELDS, "pool_spec")) is not None:
            size = xcoms.pull(context["ti"], xcoms.SIZE_KEY)
            self._chosen_size = size if isinstance(size, int) else None
        return super().resume_execution(next_method, next_kwargs, context)

    def _spec(self, values: Mapping[str, Any]) -> PoolSpec:
        default_name = self.default_name or self.shared or f"{self.dag_id}.{self.task_id}"
        values = {"name": default_name, **values}
        if values.get("ladder") and (self.shared is not None or not self.wait_for_completion):
            other = "wait_for_completion=False" if self.shared is None else f"shared={self.shared!r}"
            raise QarnotInvalidSpecError(
                f"ladder is for a pool of one DAG run that is waited for, got {other}",
                field="ladder",
                remedy="Leave one of them out.",
            )
        if self.keep_warm is None:
            return make_pool_spec(values)
        if {"elastic", "scaling"} & values.keys():
            raise QarnotInvalidSpecError(
                "keep_warm is given together with elastic or scaling, and makes the pool's scaling itself",
                field="keep_warm",
                remedy="Keep one of them.",
            )
        fixed = make_pool_spec(values)
        scaling = scaling_to_zero(fixed.instance_count or 1, self.keep_warm)
        return replace(fixed, instance_count=None, scaling=scaling)

    def _given_specs(self) -> list[PoolSpec]:
        return [self._spec(self._given())]

    def _secrets(self) -> Iterable[str]:
        return secret_constants(self._given().get("constants")).values()

    def _condition(self, values: Mapping[str, Any]) -> Condition | None:
        """Return the condition to wait for; None to return at once."""
        ready = self.ready_when
        if ready in (None, ""):
            if self.keep_warm is not None:
                slots = make_pool_spec({"name": "size", **values}).instance_count
                return Condition(kind="pool", ready_slots=slots) if self._warms_up else None
            return None if {"elastic", "scaling"} & values.keys() else POOL_READY
        if isinstance(ready, (int, float)) or re.fullmatch(r"-?\d+", str(ready).strip()):
            slots, size = _slots_of(ready), str(values.get("instance_count", "")).strip()
            if size.isdigit() and slots > int(size):
                raise QarnotInvalidSpecError(
                    f"ready_when is more than the pool of {size} has, got {slots}",
                    field="ready_when",
                    remedy=f"Give at most {size}, or raise instance_count.",
                )
            return Condition(kind="pool", ready_slots=slots)
        try:
            return Condition(kind="pool", targets=(str(ready),))
        except QarnotInvalidSpecError as error:
            message = error.message.replace("target_states", "ready_when")
            raise QarnotInvalidSpecError(message, field="ready_when", remedy=error.remedy) from None

    @property
    def _warms_up(self) -> bool:
        return self.keep_warm is not None and self._warm_up_wanted()

    def _warm_up_wanted(self) -> bool:
        word = str(self.warm_up).strip().lower()
        if word not in _YES | _NO:
            raise QarnotInvalidSpecError(
                f"warm_up must be True or False, got {self.warm_up!r}",
                field="warm_up",
                remedy="Check the template, or the task, that yields it.",
            )
        return word in _YES

    @cached_property
    def _warm_up(self) -> WarmUp:
        return WarmUp(self, per_pool=bool(self.shared or self._spec(self._given()).ladder))

    def execute(self, context: Context) -> str:
        """Create or adopt the pool, wait until it is ready, and return its uuid."""
        with self._closing_on_error():
            if context["ti"].try_number > 1:
                self._own(context)  # what earlier tries may have left
            return self._open(context)

    def _open(
        self,
        context: Context,
        deadline: datetime | None = None,
        closed: int = 0,
        failed: Mapping[str, Pool | None] = MappingProxyType({}),
    ) -> str:
        """Claim the pool, and wait until it is ready. The caller closes it on an error.

        :param closed: how many shared pools were closed during the wait.
        :param failed: the pool that this one replaces, by its uuid, because it did not become ready.
        """
        check_rendered(self, self._filled, WAIT_FIELDS)
        largest = self._choose_size(context)
        values = self._given()
        archive = self._prepare_environment(values)
        spec, condition = self._spec(values), self._condition(values)
        self._costs.check_can_pay(context, spec, parse_amount("estimated_cost", self.estimated_cost))
        claimed = self._claim(
            context,
            spec,
            refine=self._on_rung if spec.ladder else None,
            refines_first=True,
            lookup_first=bool(failed),
            ended=dict(failed),
            **self._claim_options(values),
        )
        if largest is not None:
            self._settle_size(context, claimed)
            condition = self._condition(self._given())
        if archive is not None and self.shared is not None:
            self._share_environment(context, claimed, archive)
        if self.opened_ahead_by is not None and context["dag_run"].run_type == "scheduled":
            until = context["dag_run"].run_after - self.opened_ahead_lead
            self._take_over_from_companion(self.opened_ahead_by, until)
        if not self.wait_for_completion or condition is None:
            return claimed.uuid
        outcome = claimed.outcome_if_done(condition) or self._found_ready(claimed, condition)
        if outcome is None:
            forecast = self._forecast(context, claimed)
            # A pool that an earlier try created.
            self._failed_boots = max(self._failed_boots, claimed.generation - 1)
            outcome = self._boot(context, claimed.uuid, deadline, closed, forecast=forecast)
        return self._ready(context, outcome)

    def _claim_options(self, values: Mapping[str, Any]) -> dict[str, Any]:
        limits = self._costs.parameters
        options: dict[str, Any] = {"labels": limits.labels() if limits else {}}
        given = spec_values(self, _POOL_FIELDS, "pool_spec")
        largest = largest_size(given.get("instance_count"), given.get("slots_per_node"), configured=False)
        if largest is not None:
            # A retry may choose another size, and may run on a worker with another maximum. It must adopt the pool
            # of this try nevertheless.
            from airflow_qarnot_pool.ownership.claim import FINGERPRINT_EXCLUDES

            sized = self._spec({**values, "instance_count": largest})
            options["fingerprint"] = f"{sized.fingerprint(exclude=FINGERPRINT_EXCLUDES)}.auto"
        return options

    def _on_rung(self, spec: PoolSpec, earlier: Iterable[Pool]) -> PoolSpec:
        """Return the spec of the next generation: each earlier one did not become ready."""
        self._failed_boots = max(self._failed_boots, len(list(earlier)))
        made = pool_on_rung(spec, self._failed_boots)
        self.log.info("Ladder: %s nodes, after %d pools", made.scheduling_type, self._failed_boots)
        return made

    def _prepare_environment(self, values: dict[str, Any]) -> str | None:
        """Add the resource of the environment to *values*, and return its archive, which is uploaded if missing."""
        environment = QarnotEnvironment.of(self.environment)
        if environment is None:
            return None
        from airflow_qarnot_pool.environments.storage import EnvironmentStorage, archive_in

        storage = EnvironmentStorage(self.hook.settings, environment.bucket)
        resource = storage.prepare(environment, self._dag_folder)
        archive = archive_in(resource)
        if self.shared is not None:
            folder = self._shared_folder(archive)
            storage.copy(archive, folder)
            resource = shared.resource_for(environment.bucket, folder)
            values.setdefault("task_default_wait_for_pool_resources_synchronization", True)
        values["resource_buckets"] = [*as_list(values.get("resource_buckets")), resource]
        return archive

    def _shared_folder(self, archive: str) -> str:
        return shared.folder_for(self.hook.settings.namespace, str(self.shared), archive)

    @property
    def _dag_folder(self) -> Path:
        return Path(self.dag.fileloc).resolve().parent

    def _share_environment(self, context: Context, claimed: Claim, archive: str) -> None:
        """Bring *archive* to a shared pool that exists, and store its name for the calls of this DAG run."""
        from airflow_qarnot_pool.environments.storage import EnvironmentStorage

        environment = QarnotEnvironment.of(self.environment)
        if claimed.existing is not None and environment is not None:
            storage = EnvironmentStorage(self.hook.settings, environment.bucket)
            pool = cast("Pool", claimed.existing)
            shared.bring(self.client, storage, pool, archive, self._shared_folder(archive))
        xcoms.push(context["ti"], xcoms.ENVIRONMENT_KEY, archive)

    def _closing_on_error(self) -> AbstractContextManager[None]:
        """Close a pool that does not become ready: no task will use it, and a failed setup has no teardown."""
        return self._ending_on_error("it did not become ready")

    def _acquire(self, request: ClaimRequest) -> Claim:
        from airflow_qarnot_pool.operators.close_pool import run_lives
        from airflow_qarnot_pool.ownership.shared_pool import acquire_shared_pool

        try:
            if request.identity.shared:
                return acquire_shared_pool(self.client, request, run_lives, self._yields_to_this)
            return super()._acquire(request)
        except QarnotQuotaError as error:
            raise _with_remedies(error) from error

    def _yields_to_this(self, holder: HoldOwner) -> bool:
        """Return whether *holder* holds the pool only for runs like this one, which may have another spec meanwhile."""
        return holder.dag_id == self.opened_ahead_by

    def _take_over_from_companion(self, dag_id: str, until: datetime) -> None:
        """Release the hold of the companion DAG, so that this run is the last user. It ends with its DAG run, too.

        :param until: when the companion of this run was scheduled. Later ones hold the pool for later runs.
        """
        from airflow_qarnot_pool.ownership.shared_pool import drop_holds_of_dag

        try:
            drop_holds_of_dag(self.client, self._running.identity.owner, dag_id, until)
        except QarnotError as error:
            self.log.warning(
                "The pool may stay open for DAG %s a while after its last run: %s", dag_id, error
            )

    # --- booting its nodes

    def _found_ready(self, claimed: Claim, condition: Condition) -> WaitResult | None:
        """Return the outcome of a shared pool that is ready as it is found, if this one is."""
        if not self.shared or claimed.existing is None or not self._warms_up:
            return None
        if outcome := result_if_met(condition, claimed.existing):
            self._warm_up.end_orphan(claimed.uuid, condition)
        return outcome

    def _boot(
        self,
        context: Context,
        uuid: str,
        deadline: datetime | None = None,
        closed: int = 0,
        *,
        forecast: Forecast | None = None,
    ) -> WaitResult:
        """Boot the nodes if nothing else does, and wait for them.

        :param forecast: as that of :meth:`_wait`.
        """
        values = self._given()
        condition = self._awaited()
        self._boot_deadline = deadline = deadline or self._deadline(context)
        resume_state: dict[str, Any] = {"closed": closed, "decision": self._decision}
        rungs_left = len(self._spec(values).ladder) - self._failed_boots
        if rungs_left > 1:
            stored = deadline.isoformat() if deadline else None
            resume_state["rung"] = {"failed": self._failed_boots, "deadline": stored}
            deadline = share_of_wait(deadline, rungs_left, datetime.now(UTC))
        if self._warms_up:
            spec = make_pool_spec({"name": self._spec(values).name, **values})
            request = WarmUpRequest(str(spec.name), uuid, spec.instance_count or 1, condition)
            try:
                self._warm_up.start(context, request, resume_state)
            except QarnotRefusedError:
                pool = self.client.pools.find(uuid) if self.shared else None
                if pool is None or states.accepts_tasks(pool.state):
                    raise
                resume_state["deadline"] = deadline.isoformat() if deadline else None
                return WaitResult(
                    ending=EndReason.IMPOSSIBLE, uuid=uuid, state=pool.state, resume_state=resume_state
                )
        return self._wait(uuid, condition, deadline, resume_state, forecast=forecast)

    def _boot_again(self, context: Context, outcome: WaitResult) -> WaitResult:
        """Poll a pool whose warm-up ended early, and warm it up once more unless the poll decides the wait."""
        resume_state = {name: value for name, value in outcome.resume_state.items() if name != COLD}
        self._failed_boots = _failed_boots(resume_state)
        if result := result_if_met(self._awaited(), get_confirmed(self.client.pools, outcome.uuid)):
            return replace(result, uuid=outcome.uuid, resume_state=resume_state)
        self.log.info(
            "The warm-up of pool %s ended before the pool was ready; starting it again", outcome.uuid
        )
        closed = int(resume_state.get("closed") or 0)
        return self._boot(context, outcome.uuid, _stored_deadline(resume_state), closed)

    def warm_up_with_room(self, context: Context, event: Mapping[str, Any]) -> str:
        """Resume with a pool whose warm-up had to wait for room under the account's quota of tasks."""
        outcome = self._resume(context, event)
        resume_state = outcome.resume_state
        with self._closing_on_error():
            self._quota_deadline = parse_stored_time(resume_state["room_until"])
            self._failed_boots = _failed_boots(resume_state)
            deadline = None
            if (seconds := resume_state.get("seconds_left")) is not None:
                now = datetime.now(UTC)
                deadline = min([now + timedelta(seconds=seconds), *self._execution_ends(context, now)])
            return self._ready(context, self._boot(context, outcome.uuid, deadline))

    def _room_trigger(
        self, interval: float, deadline: str, resume_state: dict[str, Any] | None
    ) -> tuple[Any, str]:
        if self._work is None or self._work.uuid is None:
            return super()._room_trigger(interval, deadline, resume_state)
        from airflow_qarnot_pool.triggers.quota import QarnotWarmUpRoomTrigger

        # The wait for room is no part of the wait for nodes.
        left = self._boot_deadline - datetime.now(UTC) if self._boot_deadline else None
        trigger = QarnotWarmUpRoomTrigger(
            qarnot_conn_id=self.qarnot_conn_id,
            uuid=self._work.uuid,
            condition={},
            poll_interval=interval,
            deadline=deadline,
            identity=self._work.identity.to_kwargs(),
            cancel_on_kill=self.cancel_on_kill,
            resume_state={
                "rung": {"failed": self._failed_boots},
                "seconds_left": left.total_seconds() if left is not None else None,
            },
        )
        return trigger, "warm_up_with_room"

    def _warm_up_on(self) -> Callable[[str], TaskInstanceIdentity] | None:
        if not (self.shared and self._warms_up and self.wait_for_completion):
            return None
        return lambda pool: self._warm_up.identity(pool, self._awaited())

    def _still_waiting(self, remote: Any) -> None:
        self._warm_up.on_poll()

    def _deadline(self, context: Context) -> datetime | None:
        deadline = super()._deadline(context)
        if deadline is None and self._warms_up:
            # The warm-up has ended by then, and nothing boots nodes any more.
            return datetime.now(UTC) + warming.BOOT_DEADLINE
        return deadline

    # --- returning it

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> str:
        """Return the uuid of the pool that is ready, or close the pool and report why it is not."""
        outcome = self._resume(context, event)
        self._running.warm_up = outcome.resume_state.get("warm_up")
        with self._closing_on_error():
            if outcome.resume_state.get(COLD):
                outcome = self._boot_again(context, outcome)
            elif outcome.ending is EndReason.MET:
                # The pool may have ended while this task waited for a worker.
                outcome = self._after_all(outcome)
            return self._ready(context, outcome)

    def _awaited(self) -> Condition:
        condition = self._condition(self._given())
        assert condition is not None
        return condition

    def _ready(self, context: Context, outcome: WaitResult) -> str:
        resume_state = outcome.resume_state
        lost = outcome.ending is EndReason.GONE or (
            outcome.ending is EndReason.IMPOSSIBLE and outcome.state != states.PoolState.FAILURE
        )
        closed = int(resume_state.get("closed") or 0)
        if self.shared and lost and closed < MAX_GENERATIONS:
            # The last one out had not seen us come in; or it has cost too much.
            self._costs.raise_if_over()
            self.log.info("Shared pool %s was closed before it was ready; opening the next", outcome.uuid)
            return self._open(context, _stored_deadline(resume_state), closed + 1)
        if _has_next_rung(outcome):
            return self._open_next(context, outcome)
        self._raise_for(outcome)
        if outcome.ending is EndReason.IMPOSSIBLE:
            raise QarnotPoolEndedError(outcome.message, kind="pool", ref=outcome.uuid)
        if (warm_up := resume_state.get("warm_up")) or (self._warms_up and not resume_state):
            self._warm_up.end(outcome.uuid, warm_up)
        self.log.info("Pool %s is %s", outcome.uuid, outcome.state)
        return outcome.uuid

    def _open_next(self, context: Context, outcome: WaitResult) -> str:
        """Close a pool that did not become ready on its rung, and open one on the next rung."""
        from airflow_qarnot_pool.ownership.termination import end

        self._costs.raise_if_over()
        self._failed_boots = 1 + _failed_boots(outcome.resume_state)
        self.log.warning("Pool %s did not become ready on its rung: %s", outcome.uuid, outcome.message)
        end(self.client.pools, outcome.uuid)
        if warm_up := outcome.resume_state.get("warm_up"):
            with suppress(QarnotError):  # it costs nothing there, and the reaper finds it
                end(self.client.tasks, warm_up)
        failed = {outcome.uuid: self.client.pools.find(outcome.uuid)}
        return self._open(context, _stored_deadline(outcome.resume_state), failed=failed)


def _has_next_rung(outcome: WaitResult) -> bool:
    """Return whether a pool did not become ready, and its ladder has another rung."""
    has_failed = outcome.ending is EndReason.TIMEOUT or outcome.state == states.PoolState.FAILURE
    return has_failed and "rung" in outcome.resume_state


def _failed_boots(resume_state: Mapping[str, Any]) -> int:
    return int((resume_state.get("rung") or {}).get("failed") or 0)


def _stored_deadline(resume_state: Mapping[str, Any]) -> datetime | None:
    deadline = (resume_state.get("rung") or resume_state).get("deadline")
    return parse_stored_time(deadline) if deadline else None


def _slots_of(ready_when: Any) -> int:
    from airflow_qarnot_pool.api.fields import Refusal, integer

    try:
        slots: int = integer(1)(ready_when)
    except Refusal as refusal:
        raise QarnotInvalidSpecError(
            f"ready_when {refusal.problem}", field="ready_when", remedy=f"{refusal.remedy} Or give a state."
        ) from None
    return slots


def _with_remedies(error: QarnotQuotaError) -> QarnotQuotaError:
    """Return the same error with the remedies of a DAG author."""
    return QarnotQuotaError(
        error.message,
        quota=error.quota,
        status=error.status,
        server_message=error.server_message,
        kind=error.kind,
        ref=error.ref,
        method=error.method,
        path=error.path,
        remedy="Many DAG runs at once need one pool and not one each: let them share it (shared='name' on "
        "QarnotPoolGroup or QarnotCreatePoolOperator), or lower max_active_runs of the DAG. Else delete finished "
        "pools, which count too, wait for room (wait_for_quota), or ask Qarnot for a higher quota.",
    )
