"""Create, change, close and delete pools."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import XComArg

from airflow_qarnot_pool.api import states
from airflow_qarnot_pool.api.errors import (
    QarnotError,
    QarnotInvalidSpecError,
    QarnotNotFoundError,
    QarnotQuotaError,
    QarnotRefusedError,
)
from airflow_qarnot_pool.budget import amount
from airflow_qarnot_pool.conditions import (
    POOL_CLOSED,
    POOL_READY,
    Condition,
    Ending,
    Outcome,
    concluded,
)
from airflow_qarnot_pool.exceptions import QarnotPoolEndedError
from airflow_qarnot_pool.identity import Life
from airflow_qarnot_pool.links import LINKS
from airflow_qarnot_pool.operators.base import (
    QarnotOperator,
    WaitingOperator,
    already,
    nothing,
    output_of,
    reference,
)
from airflow_qarnot_pool.operators.budget import BUDGET_FIELDS, BudgetOperator, check_can_pay
from airflow_qarnot_pool.operators.parameters import (
    check_durations,
    check_flags,
    check_sizes,
    given,
    is_uuid,
    pool_spec,
    refuse_misplaced,
    sizes_given,
)
from airflow_qarnot_pool.shared import KEEP_WARM, MOST_GENERATIONS, check_name, release, shared_life
from airflow_qarnot_pool.templates import hide_secrets, is_templated, known_at_parse
from airflow_qarnot_pool.triggers.keys import POOL_KEY

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.specs import Elastic, PoolSpec, ResourceBucket, Scaling
    from airflow_qarnot_pool.claim import Claim
    from airflow_qarnot_pool.identity import Life
    from airflow_qarnot_pool.triggers.base import QarnotTrigger


log = logging.getLogger(__name__)

_POOL_FIELDS = (
    "name",
    "profile",
    "instance_count",
    "slots_per_node",
    "elastic",
    "scaling",
    "constants",
    "resource_buckets",
    "tags",
)


class _PoolOperator(WaitingOperator):
    kind = "pool"
    uuid_key = POOL_KEY
    operator_extra_links = (LINKS["pool"],)

    def __init__(self, *, shared: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shared = shared
        if shared is not None and not is_templated(shared):
            check_name(shared)

    def _life_of(self, context: Context) -> Life:
        life = super()._life_of(context)
        return life if self.shared is None else shared_life(life, self.shared, self.hook.settings)

    def _take(self, spec: Any, life: Life, pause: Any, **options: Any) -> Claim:
        if not life.shared:
            return super()._take(spec, life, pause, **options)
        from airflow_qarnot_pool.shared import acquire

        return acquire(self.client, spec, life, pause, **options)

    def _trigger_class(self) -> type[QarnotTrigger]:
        from airflow_qarnot_pool.triggers.pool import QarnotPoolTrigger

        return QarnotPoolTrigger


class QarnotCreatePoolOperator(BudgetOperator, _PoolOperator):
    """Create a pool and, unless told otherwise, wait until it is ready. Returns its uuid.

    Each life of the Airflow task has one pool: a retry takes up the pool of the try before it, a clear closes
    the old one and creates another. When the wait fails the pool is closed.

    :param shared: open the pool of this name, which all DAGs and runs of the namespace that say so share: the one
        that lives, else a new one. It cools down by itself (``keep_warm`` is 10 minutes unless ``scaling`` or
        ``elastic`` is given); a kill, clear or failure of this task closes it only where nobody else needs it.
    :param name: shown in the console; default: the DAG's and the task's id.
    :param profile: profile of the account, ``docker-batch`` unless told otherwise.
    :param instance_count: size of a fixed pool, in slots (a node each, unless ``slots_per_node`` is given).
    :param slots_per_node: how many slots share one node.
    :param elastic: settings of a pool that follows its load (:class:`~airflow_qarnot_pool.api.specs.Elastic`
        or a mapping of its fields).
    :param scaling: scaling policies, the newer form of the same (``Scaling`` or a mapping).
    :param constants: constants of the pool, text to text.
    :param resource_buckets: buckets (names or ``ResourceBucket``) whose files every node gets.
    :param tags: up to seven tags; three are the provider's.
    :param pool_spec: any other field of :class:`~airflow_qarnot_pool.api.specs.PoolSpec`, by its name there or
        in the API.
    :param ready_when: what to wait for: a state, or a number of running instances. Default: ``FullyExecuting``
        for a pool of fixed size, all slots for one with ``keep_warm``; a pool with ``elastic`` or ``scaling``,
        which may rest at no nodes, is not waited for.
    :param keep_warm: make a pool of ``instance_count`` slots that cools down by itself: nodes boot on demand and
        go after this long without work, whether Airflow is alive or not.
    :param warm_up: boot all nodes of such a pool at once, and wait for them; otherwise, and without
        ``wait_for_completion``, the first Qarnot task boots them.
    :param max_cost: most that this pool may cost, in euros; Qarnot tasks on it take this over (see
        :class:`~airflow_qarnot_pool.operators.budget.BudgetOperator` for ``max_run_cost`` and ``cost_warning``).
    :param estimated_cost: what it is expected to cost, in euros: it is not created where credits, the budget of its
        project or quotas cannot cover that.
    """

    template_fields = (
        *WaitingOperator.template_fields,
        *_POOL_FIELDS,
        "pool_spec",
        "ready_when",
        "warm_up",
        "shared",
        *BUDGET_FIELDS,
        "estimated_cost",
    )
    template_fields_renderers = {"pool_spec": "json", "scaling": "json", "elastic": "json"}

    def __init__(
        self,
        *,
        name: str | None = None,
        profile: str | None = None,
        instance_count: int | str | None = None,
        slots_per_node: int | str | None = None,
        elastic: Elastic | Mapping[str, Any] | str | None = None,
        scaling: Scaling | Mapping[str, Any] | str | None = None,
        constants: Mapping[str, str] | None = None,
        resource_buckets: Iterable[str | ResourceBucket] | None = None,
        tags: Iterable[str] | None = None,
        pool_spec: Mapping[str, Any] | None = None,
        ready_when: str | int | None = None,
        keep_warm: timedelta | None = None,
        warm_up: bool | str = True,
        estimated_cost: float | str | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_misplaced("pool", kwargs)
        super().__init__(**kwargs)
        self.name = name
        self.profile = profile
        self.instance_count = instance_count
        self.slots_per_node = slots_per_node
        self.elastic = elastic
        self.scaling = scaling
        self.constants = hide_secrets(constants)
        self.resource_buckets = resource_buckets
        self.tags = tags
        self.pool_spec = hide_secrets(pool_spec)
        self.ready_when = ready_when
        self.keep_warm = keep_warm
        check_durations(keep_warm=keep_warm)
        self.warm_up = warm_up
        self.estimated_cost = estimated_cost
        if not is_templated(estimated_cost):
            amount("estimated_cost", estimated_cost)
        self._sizes = sizes_given(self, ("instance_count", "slots_per_node"))
        if self.shared is not None:
            if keep_warm is None and not {"elastic", "scaling"} & self._given().keys():
                self.keep_warm = KEEP_WARM
            self.name = name or self.shared
        known = known_at_parse(self._given())
        self._spec(known)
        if not is_templated([ready_when, instance_count]):
            self._condition(known)

    def _given(self) -> dict[str, Any]:
        check_sizes(self, self._sizes)
        return given(
            self,
            (
                "name",
                "profile",
                "instance_count",
                "slots_per_node",
                "elastic",
                "scaling",
                "constants",
                "resource_buckets",
                "tags",
            ),
            self.pool_spec,
            "pool_spec",
        )

    def _spec(self, values: Mapping[str, Any]) -> PoolSpec:
        values = {"name": f"{self.dag_id}.{self.task_id}", **values}
        if self.keep_warm is None:
            return pool_spec(values)
        if {"elastic", "scaling"} & values.keys():
            raise QarnotInvalidSpecError(
                "keep_warm makes the pool's scaling, so elastic and scaling cannot be given, too",
                field="keep_warm",
            )
        from airflow_qarnot_pool.warmth import cooling_down

        fixed = pool_spec(values)
        return replace(
            fixed, instance_count=None, scaling=cooling_down(fixed.instance_count or 1, self.keep_warm)
        )

    def _condition(self, values: Mapping[str, Any]) -> Condition | None:
        """What to wait for, or None to go on at once."""
        ready = self.ready_when
        if ready in (None, ""):
            if self.keep_warm is not None:
                slots = pool_spec({"name": "size", **values}).instance_count
                return Condition(kind="pool", ready_slots=slots) if self._warms_up else None
            return None if {"elastic", "scaling"} & values.keys() else POOL_READY
        if isinstance(ready, int) or str(ready).strip().isdigit():
            slots, size = int(str(ready)), str(values.get("instance_count", "")).strip()
            if size.isdigit() and slots > int(size):
                raise QarnotInvalidSpecError(
                    f"ready_when asks for {slots} running instances of a pool of {size}", field="ready_when"
                )
            return Condition(kind="pool", ready_slots=slots)
        return Condition(kind="pool", targets=(str(ready),))

    @property
    def _warms_up(self) -> bool:
        return self.keep_warm is not None and str(self.warm_up).strip().lower() not in ("false", "no", "0")

    def execute(self, context: Context) -> str:
        return self._open(context)

    def _open(self, context: Context, deadline: datetime | None = None, closed: int = 0) -> str:
        """Get the pool, and wait until it is ready. *closed*: how many shared ones were closed while we waited."""
        values = self._given()
        spec, condition = self._spec(values), self._condition(values)
        check_can_pay(self, context, spec, amount("estimated_cost", self.estimated_cost))
        claimed = self._claim(context, spec)
        if not self.wait_for_completion or condition is None:
            return claimed.uuid
        with self._closing_on_error():
            outcome = already(claimed, condition) or self._found_warm(claimed, condition)
            return self._ready(
                context,
                outcome or self._warm(context, values, spec, condition, claimed.uuid, deadline, closed),
            )

    def _take(self, spec: Any, life: Life, pause: Any, **options: Any) -> Claim:
        try:
            return super()._take(spec, life, pause, **options)
        except QarnotQuotaError as error:
            raise _with_remedies(error) from error

    def _found_warm(self, claimed: Claim, condition: Condition) -> Outcome | None:
        """A shared pool may be ready as it is found. What warmed it up may have died before it could end that."""
        if not self.shared or claimed.found is None or not self._warms_up:
            return None
        from airflow_qarnot_pool.claim import end_life

        if outcome := concluded(condition, claimed.found):
            end_life(self.client.tasks, self._warm_up_life(claimed.uuid, condition))
        return outcome

    def _warm_up_life(self, pool: str, condition: Condition) -> Life:
        """Those who share a pool and wait for the same of it share its warm-up: one for each would fill it."""
        from airflow_qarnot_pool.warmth import WARM_UP

        assert self._work is not None
        return self._work.life.for_part(f"{WARM_UP} of {pool} to {condition}" if self.shared else WARM_UP)

    def _warm(
        self,
        context: Context,
        values: Mapping[str, Any],
        spec: PoolSpec,
        condition: Condition,
        uuid: str,
        deadline: datetime | None = None,
        closed: int = 0,
    ) -> Outcome:
        """Boot the nodes where nothing else does, and wait."""
        carry: dict[str, Any] = {"closed": closed}
        deadline = deadline or self._deadline(context)
        if self._warms_up:
            size = pool_spec({**values, "name": spec.name}).instance_count or 1
            try:
                carry["warm_up"] = self._submit_warm_up(context, spec, uuid, size, condition)
            except QarnotRefusedError:
                now = self.client.pools.find(uuid) if self.shared else None
                if now is None or states.accepts_tasks(now.state):
                    raise
                carry["deadline"] = deadline.isoformat() if deadline else None
                return Outcome(ending=Ending.IMPOSSIBLE, uuid=uuid, state=now.state, carry=carry)
        return self._wait(uuid, condition, deadline, carry)

    def warm_up_with_room(self, context: Context, event: Mapping[str, Any]) -> str:
        """Go on with a pool whose warm-up had to wait for room under the account's quota of tasks."""
        outcome = self._resumed(context, event)
        self._quota_deadline = datetime.fromisoformat(outcome.carry["room_until"])
        values = self._given()
        with self._closing_on_error():
            condition = self._condition(values)
            assert condition is not None
            warmed = self._warm(context, values, self._spec(values), condition, outcome.uuid)
            return self._ready(context, warmed)

    def _deadline(self, context: Context) -> datetime | None:
        deadline = super()._deadline(context)
        if deadline is None and self._warms_up:
            from airflow_qarnot_pool.warmth import BOOT_DEADLINE

            # The warm-up is over by then, and nothing boots nodes any more.
            return datetime.now(UTC) + BOOT_DEADLINE
        return deadline

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> str:
        """Return the uuid of the pool that is ready, or close it and say why it is not."""
        outcome = self._resumed(context, event)
        with self._closing_on_error():
            return self._ready(context, outcome)

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """A pool that does not become ready is closed: nobody will use it, and a failed setup has no teardown."""
        try:
            yield
        except Exception:
            self._end("it did not become ready")
            raise

    def _submit_warm_up(
        self, context: Context, spec: PoolSpec, pool: str, size: int, condition: Condition
    ) -> str:
        from airflow_qarnot_pool.claim import claim
        from airflow_qarnot_pool.warmth import warm_up

        assert self._work is not None
        killed = self._work.killed
        task = warm_up(spec.name, pool, size, self.wait_timeout)
        while True:
            try:
                life = self._warm_up_life(pool, condition)
                return claim(self.client.tasks, task, life, pause=killed.wait).uuid
            except QarnotQuotaError as error:
                self._wait_for_room(context, error, killed)

    def _room_trigger(self, interval: float, deadline: str, carry: dict[str, Any] | None) -> tuple[Any, str]:
        if self._work is None or self._work.uuid is None:
            return super()._room_trigger(interval, deadline, carry)
        from airflow_qarnot_pool.triggers.quota import QarnotWarmUpRoomTrigger

        trigger = QarnotWarmUpRoomTrigger(
            qarnot_conn_id=self.qarnot_conn_id,
            uuid=self._work.uuid,
            condition={},
            poll_interval=interval,
            deadline=deadline,
            life=self._work.life.to_kwargs(),
            cancel_on_kill=self.cancel_on_kill,
        )
        return trigger, "warm_up_with_room"

    def _ready(self, context: Context, outcome: Outcome) -> str:
        carry = outcome.carry
        lost = outcome.ending is Ending.GONE or (
            outcome.ending is Ending.IMPOSSIBLE and outcome.state != states.PoolState.FAILURE
        )
        closed = int(carry.get("closed") or 0)
        if self.shared and lost and closed < MOST_GENERATIONS:
            # The last one out had not seen us come in; or it has cost too much.
            self._raise_if_over()
            self.log.info("Shared pool %s was closed while it got ready; opening the next", outcome.uuid)
            deadline = carry.get("deadline")
            return self._open(context, datetime.fromisoformat(deadline) if deadline else None, closed + 1)
        self._raise_for(outcome)
        if outcome.ending is Ending.IMPOSSIBLE:
            raise QarnotPoolEndedError(outcome.message, kind="pool", ref=outcome.uuid)
        if warm := carry.get("warm_up"):
            self._end_warm_up(warm)
        self.log.info("Pool %s is %s", outcome.uuid, outcome.state)
        return outcome.uuid

    def _end_warm_up(self, uuid: str) -> None:
        """Free the slots. A pool that is ready is not closed because that fails: the sleep ends by itself."""
        from airflow_qarnot_pool.claim import end

        try:
            end(self.client.tasks, uuid)
        except QarnotError as error:
            self.log.warning(
                "The pool is ready, but its warm-up, Qarnot task %s, could not be aborted and holds the slots "
                "until it ends by itself; abort it in the console if Qarnot tasks stay queued: %s",
                uuid,
                error,
            )


def _with_remedies(error: QarnotQuotaError) -> QarnotQuotaError:
    """The same error with what a DAG author can do about it."""
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


class QarnotUpdatePoolOperator(QarnotOperator):
    """Change a running pool: its elastic or scaling settings, constants, tags; or re-sync its resources.

    What is not given stays as it is. Returns the pool's uuid.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    :param elastic: new settings of an elastic pool.
    :param scaling: new scaling policies.
    :param constants: constants to add or change.
    :param tags: the user's tags, instead of the present ones; the provider's own stay.
    :param sync_resources: fetch the files of the pool's resource buckets to the nodes once more. It goes on while
        this returns: a task that needs the new files waits for it with ``task_spec=
        {"wait_for_pool_resources_synchronization": True}``.
    """

    template_fields = (
        *QarnotOperator.template_fields,
        "qarnot_pool",
        "elastic",
        "scaling",
        "constants",
        "tags",
    )
    operator_extra_links = (LINKS["pool"],)

    def __init__(
        self,
        *,
        qarnot_pool: Any,
        elastic: Elastic | Mapping[str, Any] | str | None = None,
        scaling: Scaling | Mapping[str, Any] | str | None = None,
        constants: Mapping[str, str] | None = None,
        tags: Iterable[str] | None = None,
        sync_resources: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.qarnot_pool = output_of(qarnot_pool, "qarnot_pool")
        self.elastic = elastic
        self.scaling = scaling
        self.constants = hide_secrets(constants)
        self.tags = tags
        self.sync_resources = sync_resources
        check_flags(sync_resources=sync_resources)
        if not sync_resources and all(one is None for one in (elastic, scaling, constants, tags)):
            raise QarnotInvalidSpecError(
                "Nothing to change: give elastic, scaling, constants, tags or sync_resources=True"
            )
        self._changes(known_at_parse(self._given()))

    def _given(self) -> dict[str, Any]:
        return given(self, ("elastic", "scaling", "constants", "tags"))

    def _changes(self, values: Mapping[str, Any]) -> PoolSpec:
        return pool_spec({"name": "update", **values})

    def execute(self, context: Context) -> str:
        from airflow_qarnot_pool.api.fields import is_secret_constant

        changes = self._changes(self._given())
        pools = self.client.pools
        pool = pools.get(reference(self.qarnot_pool, "qarnot_pool"))
        self._show_link(context, "pool", pool.uuid)
        if not states.accepts_tasks(pool.state):
            raise QarnotPoolEndedError(
                f"Pool {pool.uuid} is {pool.state} and cannot be changed any more", kind="pool", ref=pool.uuid
            )
        wanted: dict[str, Any] = {"elastic": changes.elastic, "scaling": changes.scaling}
        if self.constants is not None:
            wanted["constants"] = {**pool.constants, **changes.constants}
            hidden = [
                name for name in pool.constants if is_secret_constant(name) and name not in changes.constants
            ]
            if hidden:
                raise QarnotInvalidSpecError(
                    f"Pool {pool.uuid} has the secret constants {', '.join(hidden)}, which cannot be read back and "
                    "would be overwritten: give them, too",
                    field="constants",
                )
        if self.tags is not None:
            ours = [tag for tag in pool.tags or () if tag.startswith("airflow-")]
            wanted["tags"] = [*ours, *changes.tags]
        wanted = {name: value for name, value in wanted.items() if value is not None}
        if wanted:
            pools.update(pool.uuid, **wanted)
            self.log.info("Changed %s of pool %s", ", ".join(wanted), pool.uuid)
        if self.sync_resources:
            pools.sync_resources(pool.uuid)
            self.log.info("Pool %s fetches its resource buckets again", pool.uuid)
        return pool.uuid


class QarnotClosePoolOperator(_PoolOperator):
    """Close a pool; one that is closed, closing or gone already is fine. Returns its uuid.

    Where the task that made it returned nothing (it was marked success by hand while it waited, say), whatever
    pool that task has made in this DAG run is closed all the same; None is returned where it made none.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    :param shared: give up the shared pool of this name, and close it if no other DAG run needs it and nothing is
        queued or running on it; else the last one to give it up closes it. ``qarnot_pool`` need not be given then.
    :param wait_for_completion: wait until it is Closed; default: no, as billing ends with the request.
    :param report_cost: store what the pool and the DAG run have cost as XCom ``qarnot_cost`` (see
        docs/what-a-run-costs.md); the log tells what the pool has cost in any case.
    """

    template_fields = (*WaitingOperator.template_fields, "qarnot_pool", "shared")

    def __init__(
        self,
        *,
        qarnot_pool: Any = None,
        wait_for_completion: bool = False,
        report_cost: bool = False,
        **kwargs: Any,
    ) -> None:
        # A kill of this task must not undo anything: there is nothing that it would have to end.
        super().__init__(wait_for_completion=wait_for_completion, **{**kwargs, "cancel_on_kill": False})
        self.qarnot_pool = output_of(qarnot_pool, "qarnot_pool")
        #: Kept, because rendering puts what the maker returned in the place of the reference to it.
        self._makers = [one for one, _ in XComArg.iter_xcom_references(self.qarnot_pool) if _makes_pools(one)]
        self.report_cost = report_cost
        check_flags(report_cost=report_cost)
        if qarnot_pool is None and self.shared is None:
            raise QarnotInvalidSpecError(
                "qarnot_pool is missing: which pool should be closed?", field="qarnot_pool"
            )

    def execute(self, context: Context) -> str | None:
        from airflow_qarnot_pool.claim import end

        if self.shared is not None:
            return self._give_up(context)
        ref = self.qarnot_pool
        if nothing(ref) and (makers := self._makers or self._makers_upstream()):
            ref = self._close_unseen(context, makers)
            if ref is None:
                return None
        ref = reference(ref, "qarnot_pool")
        end(self.client.pools, ref)
        self.log.info("Pool %s is told to close", ref)
        try:
            uuid = ref if is_uuid(ref) else self.client.pools.get(ref).uuid
        except QarnotNotFoundError:
            return ref
        return self._told(context, uuid)

    def _told(self, context: Context, uuid: str) -> str:
        self._show_link(context, "pool", uuid)
        if not self.wait_for_completion:
            self._tell_cost(context, uuid)
            return uuid
        return self._closed(context, self._wait(uuid, POOL_CLOSED, self._deadline(context)))

    def _makers_upstream(self) -> list[Any]:
        """The one task upstream that makes a pool, for a *qarnot_pool* that is a Jinja template."""
        makers = [one for one in self.upstream_list if _makes_pools(one)] if self.has_dag() else []
        return makers if len(makers) == 1 else []

    def _close_unseen(self, context: Context, makers: Iterable[Any]) -> str | None:
        """Close what *makers* made in this run though they returned nothing; the uuid of the last of it."""
        from airflow_qarnot_pool.claim import end_owned

        closed = []
        for maker in makers:
            mine = Life.of(context, self.hook.settings.namespace)
            map_index = mine.map_index if maker.get_closest_mapped_task_group() is not None else -1
            life = replace(mine, task_id=maker.task_id, map_index=map_index)
            found = end_owned(self.client.pools, life)
            self.log.warning(
                "Task %s returned no pool (was it marked success by hand?); of what it made in this run, %s",
                maker.task_id,
                f"closed {', '.join(found)}" if found else "nothing is open",
            )
            closed += found
        return closed[-1] if closed else None

    def _give_up(self, context: Context) -> str:
        """Close the shared pool, or leave it to those who need it."""
        released = release(self.client, self._life_of(context), _run_lives, self._setups())
        for one in released:
            if one.closed:
                return self._told(context, one.uuid)
        if not released:
            self.log.info("There is no open pool %r", self.shared)
        else:
            self._tell_cost(context, released[0].uuid)
        given = self.qarnot_pool if isinstance(self.qarnot_pool, str) else ""
        return released[0].uuid if released else given

    def _setups(self) -> list[str] | None:
        """The tasks that opened it and of which this is the teardown; None: not known, so all of the run."""
        if not self.is_teardown:
            return None
        return [one.task_id for one in self.upstream_list if one.is_setup] or None

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> str:
        """Return the uuid of the pool that is closed."""
        return self._closed(context, self._resumed(context, event))

    def _closed(self, context: Context, outcome: Outcome) -> str:
        if outcome.ending is not Ending.GONE:
            self._raise_for(outcome)
        self.log.info("Pool %s is %s", outcome.uuid, outcome.state or "gone")
        self._tell_cost(context, outcome.uuid)
        return outcome.uuid

    def _tell_cost(self, context: Context, uuid: str) -> None:
        from airflow_qarnot_pool.operators.cost import tell_cost

        tell_cost(self, context, uuid, whole_run=self.report_cost)


def _makes_pools(task: Any) -> bool:
    return isinstance(task, QarnotCreatePoolOperator)


class QarnotDeletePoolOperator(QarnotOperator):
    """Delete a pool, closing it first where it is open; one that is gone already is fine.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    """

    template_fields = (*QarnotOperator.template_fields, "qarnot_pool")
    operator_extra_links = (LINKS["pool"],)

    def __init__(self, *, qarnot_pool: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.qarnot_pool = output_of(qarnot_pool, "qarnot_pool")

    def execute(self, context: Context) -> None:
        ref = reference(self.qarnot_pool, "qarnot_pool")
        self._show_link(context, "pool", ref)
        try:
            self.client.pools.delete(ref)
        except QarnotNotFoundError:
            self.log.info("Pool %s is gone already", ref)
        else:
            self.log.info("Pool %s is deleted", ref)


def _run_lives(dag_id: str, run_id: str) -> bool:
    """Whether a DAG run is unfinished; also where Airflow does not say."""
    from airflow_qarnot_pool.operators.reap import run_state
    from airflow_qarnot_pool.reaper import OVER

    try:
        state = run_state(dag_id, run_id)
    except Exception as error:
        log.warning("Airflow does not say whether run %s of %s still lives: %s", run_id, dag_id, error)
        return True
    return state is not None and state not in OVER
