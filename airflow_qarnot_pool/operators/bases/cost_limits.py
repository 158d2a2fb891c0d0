"""Watch the cost limits of an operator: before it creates something, while it waits, and when it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError
from airflow_qarnot_pool.costs.parameters import LimitParameters
from airflow_qarnot_pool.exceptions import QarnotCostLimitError
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.validation import has_values
from airflow_qarnot_pool.waiting.conditions import EndReason, WaitResult

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.models import Pool
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.costs.limits import CostLimit, LimitCheck, Spending
    from airflow_qarnot_pool.hooks.qarnot import QarnotHook
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.waiting.conditions import Kind

COST_LIMIT_FIELDS = ("max_cost", "max_run_cost")


class LimitedOperator(Protocol):
    """An operator that has a :class:`CostWatch`."""

    max_cost: float | str | None
    max_run_cost: float | str | None
    deferrable: bool
    _filled: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """Kind of the remote object."""

    @property
    def dag_id(self) -> str:
        """Id of the DAG."""

    @property
    def hook(self) -> QarnotHook:
        """Hook of the connection."""

    @property
    def log(self) -> Any:
        """Logger of the Airflow task."""

    def _identity_of(self, context: Context) -> TaskInstanceIdentity: ...


def check_limit_parameters(operator: LimitedOperator) -> None:
    """Refuse limits that no cost can have, if they are known when the DAG is parsed."""
    values = operator.max_cost, operator.max_run_cost
    known = [None if is_templated(value) else value for value in values]
    LimitParameters.of(known[0], known[1])


def accept_limits(operator: LimitedOperator, creator: Any) -> None:
    """Watch the limits of the operator that creates the pool. A ``max_cost`` of *operator* takes precedence."""
    if not all(hasattr(creator, name) for name in COST_LIMIT_FIELDS):
        return
    if operator.max_cost is None:
        operator.max_cost = creator.max_cost
    operator.max_run_cost = creator.max_run_cost
    operator._filled += has_values(operator, COST_LIMIT_FIELDS)


@dataclass(eq=False)
class CostWatch:
    """The cost limits of a running operator, which calls this before it creates, after that, and on resume."""

    _operator: LimitedOperator
    #: The watched object and its limits, for the trigger (``CostLimit.to_kwargs()``).
    cost_limit: dict[str, Any] | None = None
    _warned: bool = False
    _is_counted: bool = True

    @property
    def _client(self) -> QarnotClient:
        return self._operator.hook.client

    @property
    def parameters(self) -> LimitParameters | None:
        """The limits, rendered."""
        operator = self._operator
        return LimitParameters.of(operator.max_cost, operator.max_run_cost)

    def before_create(self, context: Context, spec: Any) -> None:
        """Check the limits, and watch the pool that a Qarnot task is submitted to: the task itself costs nothing.

        :raises QarnotInvalidSpecError: a limit has rendered to another value. It could not end an object that exists.
        """
        pool = getattr(spec, "pool", None)
        if self.parameters is not None and pool:
            self.watch(context, pool)

    def after_create(self, context: Context, claimed: Claim) -> None:
        """Watch a pool, or a Qarnot task without a pool."""
        kind = self._operator.kind
        if not claimed.pool:
            self.watch(context, claimed.uuid, kind)
        if kind == "pool":
            self._record_opened(context, claimed.uuid)

    def on_resume(self, context: Context, uuid: str) -> None:
        """Watch the pool that a new process waits for."""
        if self._operator.kind == "pool":
            self.watch(context, uuid)

    def watch(self, context: Context, uuid: str, kind: Kind = "pool") -> None:
        """Watch the cost of this object from now on."""
        limit = self.limit(context, uuid, kind)
        self.cost_limit = None if limit is None else limit.to_kwargs()

    def limit(self, context: Context, uuid: str, kind: Kind = "pool") -> CostLimit | None:
        """Return the limit to watch during a wait, if there is one."""
        from airflow_qarnot_pool.costs.limits import CostLimit

        limits = self.parameters
        if limits is None:
            return None
        ti = context["ti"]
        # Not the start of the run, which a clear of a finished run sets anew.
        since = getattr(context["dag_run"], "run_after", None)
        return CostLimit(
            uuid=uuid,
            kind=kind,
            max_cost=limits.max_cost,
            max_run_cost=limits.max_run_cost,
            warn_at=limits.warn_at,
            namespace=self._operator.hook.settings.namespace,
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            since=since.isoformat() if isinstance(since, datetime) else None,
        )

    def _record_opened(self, context: Context, pool: str) -> None:
        """Record that the DAG run has opened *pool*, which counts under its limit after it is deleted, too."""
        from airflow_qarnot_pool.costs.limits import CostLimit
        from airflow_qarnot_pool.ownership.records import record_opened_pool

        limit = None if self.cost_limit is None else CostLimit.from_kwargs(self.cost_limit)
        if limit is None or limit.max_run_cost is None or self._operator._identity_of(context).shared:
            return
        try:
            record_opened_pool(self._client, limit.namespace, limit.run, pool)
        except QarnotError as error:
            self._operator.log.warning(
                "If pool %s is deleted, max_run_cost will not count its cost: %s", pool, error
            )

    def over_limit(self) -> str | None:
        """Return a message if a limit is reached, after ending the objects over it."""
        from airflow_qarnot_pool.costs.limits import CostLimit, LimitLevel

        if self.cost_limit is None:
            return None
        operator = self._operator
        check = poll_cost(self._client, CostLimit.from_kwargs(self.cost_limit), operator.log)
        if check.level is LimitLevel.WARNING and not self._warned:
            self._warned = True
            operator.log.warning("%s", check.message)
            self._is_counted = False
            if not operator.deferrable:
                self.count_warning()
        return check.message if check.level is LimitLevel.OVER else None

    def count_warning(self) -> None:
        """Count a warning of this process, once. After a deferral the trigger counts it instead."""
        if not self._is_counted:
            self._is_counted = True
            metrics.incr("cost_limit.warnings", kind=self._operator.kind, dag_id=self._operator.dag_id)

    def raise_if_over(self, *, cause: BaseException | None = None) -> None:
        """Raise QarnotCostLimitError if a limit is reached. Another process may have closed the pool for it first."""
        if message := self.over_limit():
            raise QarnotCostLimitError(message, kind=self._operator.kind) from cause

    def close_if_over(self, outcome: WaitResult) -> None:
        """End the objects that a trigger found over a limit: the trigger has no retries, and only a moment."""
        if (
            outcome.ending is EndReason.ERROR
            and outcome.resume_state.get("error") == QarnotCostLimitError.__name__
        ):
            close_over(self._client, outcome.resume_state.get("cost_limit"), self._operator.log)

    def _why_not_payable(self, limit: CostLimit | None, spec: PoolSpec, estimate: float | None) -> str | None:
        from airflow_qarnot_pool.costs.model import format_euros
        from airflow_qarnot_pool.costs.spending import check_estimate, spending_of

        if limit is not None:
            reason = run_limit_reached(limit, spending_of(self._client, limit), estimate)
            if reason is not None:
                return reason
        if estimate is None:
            return None
        shortage = check_estimate(self._client, estimate, spec.project, _max_slots(spec))
        return shortage and f"it is estimated to cost {format_euros(estimate)}, and {shortage}"

    def check_can_pay(self, context: Context, spec: PoolSpec, estimate: float | None) -> None:
        """Refuse to create a pool that cannot be paid.

        Asks nothing if there is neither an estimate nor a limit for the run. A retry adopts a live pool of an earlier
        try: its cost is spent already.

        :raises QarnotCostLimitError: with the figures.
        """
        limit = self.limit(context, "")
        if limit is not None and limit.max_run_cost is None:
            limit = None
        if estimate is None and limit is None:
            return
        identity = self._operator._identity_of(context)
        if _has_adoptable(_live_pools(self._client, identity), identity):
            return
        reason = self._why_not_payable(limit, spec, estimate)
        if reason is None:
            return
        raise QarnotCostLimitError(
            f"The pool {spec.name} is not created: {reason}",
            kind="pool",
            remedy="Add credits, raise the limit or make the pool smaller, and clear the task.",
        )


def _live_pools(client: QarnotClient, identity: TaskInstanceIdentity) -> list[Pool]:
    """Return the usable pools of the Airflow task, or of the sharers of a pool, if there can be any."""
    from airflow_qarnot_pool.api import filters
    from airflow_qarnot_pool.ownership.decisions import Usability, usability_of
    from airflow_qarnot_pool.ownership.identity import OWNER_TAG

    if not identity.has_history and not identity.shared:
        return []
    owned = client.pools.iterate(filters.equal("Tags", OWNER_TAG + identity.owner))
    return [pool for pool in owned if usability_of(pool) is Usability.LIVE]


def _has_adoptable(pools: list[Pool], identity: TaskInstanceIdentity) -> bool:
    from airflow_qarnot_pool.ownership.identity import LINEAGE_TAG

    return any(LINEAGE_TAG + identity.lineage in pool.tags for pool in pools)


def run_limit_reached(limit: CostLimit, spending: Spending, estimate: float | None) -> str | None:
    """Return why a DAG run that has spent *spending* may open no pool of *estimate*, if that is so."""
    from airflow_qarnot_pool.costs.model import format_euros

    if spending.forgotten:
        return (
            f"DAG run {limit.run_id} has a max_run_cost of {format_euros(limit.max_run_cost)}, and the cost of its "
            f"deleted pools {', '.join(spending.forgotten)} is unknown"
        )
    spent = spending.run
    if spent is None or spent + (estimate or 0.0) < (limit.max_run_cost or 0.0):
        return None
    adds = f" and this pool may cost {format_euros(estimate)} more" if estimate else ""
    return (
        f"the pools of DAG run {limit.run_id} have cost {format_euros(spent)}{adds}, "
        f"and its max_run_cost is {format_euros(limit.max_run_cost)}"
    )


def _max_slots(spec: PoolSpec) -> int | None:
    if spec.scaling is not None:
        return max((getattr(policy, "max_total_slots", 0) for policy in spec.scaling.policies), default=0)
    if spec.elastic is not None:
        return spec.elastic.max_total_slots
    return spec.instance_count


def poll_cost(client: QarnotClient, limit: CostLimit, log: Any) -> LimitCheck:
    """Check a limit once, and end the objects over it. An unknown cost reaches no limit."""
    from airflow_qarnot_pool.costs.limits import LimitCheck, LimitLevel, check_limits
    from airflow_qarnot_pool.costs.spending import is_any_open, spending_of

    try:
        check = check_limits(limit, spending_of(client, limit))
    except QarnotError as error:
        log.warning("The cost of %s %s is unknown: %s", limit.kind, limit.uuid, error)
        return LimitCheck(level=LimitLevel.FINE)
    if check.level is LimitLevel.OVER:
        # Of all processes that watch, only the one that closes something counts.
        if is_any_open(client, limit, check):
            metrics.incr("cost_limit.exceeded", kind=limit.kind, dag_id=limit.dag_id)
        close_over(client, {**limit.to_kwargs(), "close": list(check.close)}, log)
    return check


def close_over(client: QarnotClient, over: Mapping[str, Any] | None, log: Any) -> None:
    """End the objects over a limit.

    :param over: ``CostLimit.to_kwargs()``, and the uuids to end under ``close``.
    """
    from airflow_qarnot_pool.costs.limits import CostLimit, LimitCheck, LimitLevel
    from airflow_qarnot_pool.costs.spending import close_pools

    if not over:
        return
    check = LimitCheck(level=LimitLevel.OVER, close=tuple(over.get("close") or ()))
    try:
        close_pools(client, CostLimit.from_kwargs(over), check)
    except QarnotNotFoundError:
        pass
    except QarnotError as error:
        log.error("The object over its limit could not be ended: %s", error)
