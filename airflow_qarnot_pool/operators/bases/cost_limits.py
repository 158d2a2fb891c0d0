"""What operators share that may set limits on cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool import metrics
from airflow_qarnot_pool.api.errors import QarnotError, QarnotNotFoundError
from airflow_qarnot_pool.costs.limits import (
    WARN_AT,
    CostLimit,
    LimitCheck,
    LimitLevel,
    LimitParameters,
    check_limits,
)
from airflow_qarnot_pool.costs.model import format_euros
from airflow_qarnot_pool.costs.spending import (
    check_estimate,
    close_pools,
    is_any_open,
    spending_of,
)
from airflow_qarnot_pool.exceptions import QarnotCostLimitError
from airflow_qarnot_pool.operators.bases.waiting import WaitingOperator
from airflow_qarnot_pool.ownership.identity import DETACHED_LABEL, UNAWAITED_LABEL
from airflow_qarnot_pool.parameters.templating import is_templated
from airflow_qarnot_pool.parameters.validation import has_values
from airflow_qarnot_pool.waiting.conditions import EndReason, WaitResult

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.client import QarnotClient
    from airflow_qarnot_pool.api.specs import PoolSpec
    from airflow_qarnot_pool.ownership.claim import Claim
    from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
    from airflow_qarnot_pool.waiting.conditions import Kind

COST_LIMIT_FIELDS = ("max_cost", "max_run_cost")


class CostLimitedOperator(WaitingOperator):
    """Base of the operators that watch what their pool costs: before they submit, while they wait, and between waits.

    :param max_cost: most that the pool may cost, in euros; what reaches it is closed, and all tasks that wait on
        it fail with ``QarnotCostLimitError``, which is never retried.
        None, in a row of a mapped task, too: no limit. A template that renders to nothing, or to None, is refused.
    :param max_run_cost: the same for all pools that the DAG run opens, after clears, too.
    :param cost_warning: share of a limit at which a warning is logged, 0 to 1.
    """

    template_fields = (*WaitingOperator.template_fields, *COST_LIMIT_FIELDS)

    def __init__(
        self,
        *,
        max_cost: float | str | None = None,
        max_run_cost: float | str | None = None,
        cost_warning: float = WARN_AT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_cost = max_cost
        self.max_run_cost = max_run_cost
        self.cost_warning = cost_warning
        self._warned = False
        #: What must not be empty when the task runs.
        self._filled = has_values(self, COST_LIMIT_FIELDS)
        known = [None if is_templated(one) else one for one in (max_cost, max_run_cost)]
        LimitParameters.of(known[0], known[1], cost_warning)

    def take_limits(self, maker: Any) -> None:
        """Watch what the operator that makes the pool says, where this one says nothing."""
        if isinstance(maker, CostLimitedOperator) and self.max_cost is None and self.max_run_cost is None:
            self.max_cost, self.max_run_cost = maker.max_cost, maker.max_run_cost
            self.cost_warning = maker.cost_warning
            self._filled += has_values(self, COST_LIMIT_FIELDS)

    def _watched(self, context: Context, uuid: str, kind: Kind = "pool") -> CostLimit | None:
        """What to watch while this waits; None where there is no limit."""
        limits = LimitParameters.of(self.max_cost, self.max_run_cost, self.cost_warning)
        if limits is None:
            return None
        ti = context["ti"]
        # Not its start, which a clear of a finished run sets anew.
        since = getattr(context["dag_run"], "run_after", None)
        return CostLimit(
            uuid=uuid,
            kind=kind,
            max_cost=limits.max_cost,
            max_run_cost=limits.max_run_cost,
            warn_at=limits.warn_at,
            namespace=self.hook.settings.namespace,
            dag_id=ti.dag_id,
            run_id=ti.run_id,
            since=since.isoformat() if isinstance(since, datetime) else None,
        )

    def _watch(self, context: Context, uuid: str, kind: Kind = "pool") -> None:
        """From here on waits watch what this costs."""
        watched = self._watched(context, uuid, kind)
        self._cost_limit = None if watched is None else watched.to_kwargs()

    def _claim(self, context: Context, spec: Any, **options: Any) -> Claim:
        # A Qarnot task on a pool costs nothing: the pool does.
        if pool := getattr(spec, "pool", None):
            self._watch(context, pool)
        claimed = super()._claim(context, spec, **options)
        if not pool:
            self._watch(context, claimed.uuid, self.kind)
        if self.kind == "pool":
            self._note_opened(claimed.uuid)
        return claimed

    def _note_opened(self, pool: str) -> None:
        """Record that the DAG run has opened *pool*, which counts under its limit when it is deleted, too."""
        from airflow_qarnot_pool.ownership.records import record_opened_pool

        watched = None if self._cost_limit is None else CostLimit.from_kwargs(self._cost_limit)
        if watched is None or watched.max_run_cost is None or (self._work and self._work.identity.shared):
            return
        try:
            record_opened_pool(self.client, watched.namespace, watched.run, pool)
        except QarnotError as error:
            self.log.warning("If pool %s is deleted, max_run_cost will not count its cost: %s", pool, error)

    def _take(self, spec: Any, identity: TaskInstanceIdentity, pause: Any, **options: Any) -> Claim:
        if self.kind == "pool":
            limits = LimitParameters.of(self.max_cost, self.max_run_cost, self.cost_warning)
            options["create"] = partial(self._create_labelled, limits.labels() if limits else {}, False)
        else:
            options["create"] = partial(self._create_labelled, self._mark(), bool(spec.pool))
        return super()._take(spec, identity, pause, **options)

    def _mark(self) -> dict[str, str]:
        """Return labels for the reaper, and for processes that make room under a quota."""
        waits = self.wait_for_completion
        return {
            **({} if waits and self.cancel_on_kill else {DETACHED_LABEL: "true"}),
            **({} if waits else {UNAWAITED_LABEL: "true"}),
        }

    def _create_labelled(self, labels: Mapping[str, str], on_pool: bool, stamped: Any) -> str:
        """Create the object with more labels. A Qarnot task on a pool that has cost too much is not created."""
        if on_pool and self._cost_limit is not None:
            # Nobody may have watched since the last wait; what an earlier try has left is taken up all the same.
            self._raise_if_over()
        created: str = self._resource.create_once(replace(stamped, labels={**stamped.labels, **labels}))
        return created

    def _take_up(self, context: Context, outcome: WaitResult) -> None:
        super()._take_up(context, outcome)
        if self.kind == "pool":
            self._watch(context, outcome.uuid)

    def _over_now(self) -> str | None:
        """What to say where a limit is reached, after ending what reached it; None where it is not."""
        if self._cost_limit is None:
            return None
        verdict = look_now(self.client, CostLimit.from_kwargs(self._cost_limit), self.log)
        if verdict.level is LimitLevel.WARNING and not self._warned:
            self._warned = True
            self.log.warning("%s", verdict.message)
            if not self.deferrable:  # else the triggerer's watch counts it
                metrics.incr("cost_limit.warnings", kind=self.kind, dag_id=self.dag_id)
        return verdict.message if verdict.level is LimitLevel.OVER else None

    def _after_all(self, outcome: WaitResult) -> WaitResult:
        if (
            outcome.ending is EndReason.ERROR
            and outcome.resume_state.get("error") == QarnotCostLimitError.__name__
        ):
            # The trigger has ended it; this one has retries, and more than a moment.
            close_over(self.client, outcome.resume_state.get("cost_limit"), self.log)
        return super()._after_all(outcome)

    def _raise_if_over(self, *, cause: BaseException | None = None) -> None:
        """Somebody else's watch may have closed the pool first: say so, instead of what that looked like here."""
        if message := self._over_now():
            raise QarnotCostLimitError(message, kind=self.kind) from cause


def check_can_pay(
    operator: CostLimitedOperator, context: Context, spec: PoolSpec, estimate: float | None
) -> None:
    """Refuse to make a pool that cannot be paid; what earlier lives of this Airflow task left is closed then.

    Asks nothing where neither an estimate nor a limit for the run is given. A retry that finds the pool of the
    try before at work takes it up: what it costs is spent already.

    :raises QarnotCostLimitError: with the figures.
    """
    from airflow_qarnot_pool.api import filters
    from airflow_qarnot_pool.ownership.decisions import Usability, usability_of
    from airflow_qarnot_pool.ownership.identity import LINEAGE_TAG, OWNER_TAG
    from airflow_qarnot_pool.ownership.termination import end_all

    watched = operator._watched(context, "")
    limited = watched is not None and watched.max_run_cost is not None
    if estimate is None and not limited:
        return
    client = operator.client
    identity = operator._life_of(context)
    live = []
    if identity.has_history or identity.shared:
        owned = client.pools.iterate(filters.equal("Tags", OWNER_TAG + identity.owner))
        live = [one for one in owned if usability_of(one) is Usability.LIVE]
        if any(LINEAGE_TAG + identity.lineage in one.tags for one in live):
            return
    why = None
    if watched is not None and limited:
        spending = spending_of(client, watched)
        spent = spending.run
        if spending.forgotten:
            why = (
                f"DAG run {watched.run_id} has a max_run_cost of {format_euros(watched.max_run_cost)}, and what its "
                f"deleted pools {', '.join(spending.forgotten)} have cost cannot be found out"
            )
        elif spent is not None and spent + (estimate or 0.0) >= (watched.max_run_cost or 0.0):
            adds = f" and this pool may cost {format_euros(estimate)} more" if estimate else ""
            why = (
                f"the pools of DAG run {watched.run_id} have cost {format_euros(spent)}{adds}, "
                f"and its max_run_cost is {format_euros(watched.max_run_cost)}"
            )
    if why is None and estimate is not None:
        shortage = check_estimate(client, estimate, spec.project, _most_slots(spec))
        why = shortage and f"it is estimated to cost {format_euros(estimate)}, and {shortage}"
    if why is None:
        return
    if not identity.shared:
        end_all(client.pools, [one.uuid for one in live])
    raise QarnotCostLimitError(
        f"The pool {spec.name} is not created: {why}",
        kind="pool",
        remedy="Add credits, raise the limit or make the pool smaller, and clear the task.",
    )


def _most_slots(spec: PoolSpec) -> int | None:
    if spec.scaling is not None:
        return max((getattr(one, "max_total_slots", 0) for one in spec.scaling.policies), default=0)
    if spec.elastic is not None:
        return spec.elastic.max_total_slots
    return spec.instance_count


def look_now(client: QarnotClient, watched: CostLimit, log: Any) -> LimitCheck:
    """Look once, and end what has reached its limit. A cost that cannot be found out reaches none."""
    try:
        verdict = check_limits(watched, spending_of(client, watched))
    except QarnotError as error:
        log.warning("What %s %s costs could not be found out: %s", watched.kind, watched.uuid, error)
        return LimitCheck(level=LimitLevel.FINE)
    if verdict.level is LimitLevel.OVER:
        # Of all who look only the one that closes something counts.
        if is_any_open(client, watched, verdict):
            metrics.incr("cost_limit.exceeded", kind=watched.kind, dag_id=watched.dag_id)
        close_over(client, {**watched.to_kwargs(), "close": list(verdict.close)}, log)
    return verdict


def close_over(client: QarnotClient, over: Mapping[str, Any] | None, log: Any) -> None:
    """End what a watch found over its limit: ``CostLimit.to_kwargs()``, and the uuids under ``close``."""
    if not over:
        return
    verdict = LimitCheck(level=LimitLevel.OVER, close=tuple(over.get("close") or ()))
    try:
        close_pools(client, CostLimit.from_kwargs(over), verdict)
    except QarnotNotFoundError:
        pass
    except QarnotError as error:
        log.error("What is over its limit could not be ended: %s", error)
