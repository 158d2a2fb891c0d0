"""Close pools, and delete them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import XComArg

from airflow_qarnot_pool.api.errors import QarnotInvalidSpecError, QarnotNotFoundError
from airflow_qarnot_pool.api.fields import is_uuid
from airflow_qarnot_pool.links.qarnot import POOL_LINKS
from airflow_qarnot_pool.operators.bases.base import QarnotOperator
from airflow_qarnot_pool.operators.bases.pool import PoolOperator
from airflow_qarnot_pool.operators.create_pool import QarnotCreatePoolOperator
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.identity import TaskInstanceIdentity
from airflow_qarnot_pool.parameters.references import as_reference, resolve_ref
from airflow_qarnot_pool.parameters.validation import check_flags, is_empty
from airflow_qarnot_pool.waiting.conditions import (
    POOL_CLOSED,
    Condition,
    EndReason,
    WaitResult,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Pool

log = logging.getLogger(__name__)

#: Key of the resume state: whether the request of this task has closed the pool.
_IS_CLOSER = "is_closer"


class QarnotClosePoolOperator(PoolOperator):
    """Close a pool, and return its uuid. A pool that is closed, closing or deleted is no error.

    If the task that creates the pool returned nothing (a user marked it success while it waited, say), the pools that
    it created in this DAG run are closed all the same. The result is None if there are none.

    The task is a teardown unless ``trigger_rule`` is given. So it closes the pool after a failure, too, and the DAG run
    has the state of the work.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    :param shared: give up the shared pool of this name, and close it if no other DAG run needs it and nothing is
        queued or running on it; else the last one to give it up closes it. ``qarnot_pool`` need not be given then.
    :param wait_for_completion: wait until it is Closed; default: no, as billing ends with the request.
    :param linger: keep a shared pool for the next scheduled run of this DAG, if it comes within ``keep_warm`` and the
        idle nodes cost less until then than a boot and this many euros, which a run without a boot is worth. Default:
        close it. See docs/on-time.md.
    :param report_cost: store the cost of the pool and of the DAG run as XCom ``qarnot_cost`` (see
        docs/what-a-run-costs.md). The cost of the pool is logged in any case.
    """

    owns = False
    template_fields = (*PoolOperator.template_fields, "qarnot_pool")

    def __init__(
        self,
        *,
        qarnot_pool: Any = None,
        wait_for_completion: bool = False,
        linger: float | None = None,
        report_cost: bool = False,
        **kwargs: Any,
    ) -> None:
        # A kill of this task must not undo anything: there is nothing that it would have to end.
        super().__init__(wait_for_completion=wait_for_completion, **{**kwargs, "cancel_on_kill": False})
        self.qarnot_pool = as_reference(qarnot_pool, "qarnot_pool")
        #: Kept, because rendering replaces the reference to the creating task by its result.
        self._makers = [one for one, _ in XComArg.iter_xcom_references(self.qarnot_pool) if _makes_pools(one)]
        self.report_cost = report_cost
        check_flags(report_cost=report_cost)
        self.linger = linger
        check_linger(linger, self.shared)
        if "trigger_rule" not in kwargs and self.trigger_rule == "all_success":
            self.as_teardown()
        if qarnot_pool is None and self.shared is None:
            raise QarnotInvalidSpecError(
                "qarnot_pool is missing",
                field="qarnot_pool",
                remedy="Give the output of the task that made the pool, its uuid or shortname, or shared.",
            )

    def execute(self, context: Context) -> str | None:
        """Close the pool, and return its uuid, or None if there was none to close."""
        from airflow_qarnot_pool.ownership.termination import end

        if self.shared is not None:
            return self._give_up(context)
        if is_empty(self.qarnot_pool) and (makers := self._makers or self._makers_upstream()):
            return self._after_requests(context, self._close_unseen(context, makers))
        ref = resolve_ref(self.qarnot_pool, "qarnot_pool")
        is_closer = end(self.client.pools, ref)
        self.log.info("Requested closing of pool %s", ref)
        try:
            uuid = ref if is_uuid(ref) else self.client.pools.get(ref).uuid
        except QarnotNotFoundError:
            return ref
        return self._after_request(context, uuid, is_closer=is_closer)

    def _after_requests(self, context: Context, uuids: list[str]) -> str | None:
        """Report all of several pools that this task has closed, and return the last one."""
        for uuid in uuids[:-1]:
            self._log_cost(context, uuid, is_closer=True)
        return self._after_request(context, uuids[-1], is_closer=True) if uuids else None

    def _after_request(self, context: Context, uuid: str, *, is_closer: bool) -> str:
        self._show_link(context, "pool", uuid)
        if not self.wait_for_completion:
            self._log_cost(context, uuid, is_closer=is_closer)
            return uuid
        xcoms.push(context["ti"], self.uuid_key, uuid)
        waited = self._wait(uuid, POOL_CLOSED, self._deadline(context), {_IS_CLOSER: is_closer})
        return self._closed(context, waited)

    def _makers_upstream(self) -> list[Any]:
        """Return the one upstream task that creates a pool, for a *qarnot_pool* that is a Jinja template."""
        has_dag = self.has_dag()  # type: ignore[no-untyped-call]
        makers = [one for one in self.upstream_list if _makes_pools(one)] if has_dag else []
        return makers if len(makers) == 1 else []

    def _close_unseen(self, context: Context, makers: Iterable[Any]) -> list[str]:
        """Close the pools that *makers* created in this run without returning them, and return their uuids."""
        from airflow_qarnot_pool.ownership.termination import end_owned

        closed = []
        for maker in makers:
            mine = TaskInstanceIdentity.of(context, self.hook.settings.namespace)
            map_index = mine.map_index if maker.get_closest_mapped_task_group() is not None else -1
            identity = replace(mine, task_id=maker.task_id, map_index=map_index)
            found = end_owned(self.client.pools, identity)
            self.log.warning(
                "Task %s returned no pool (was it marked success by hand?); of what it made in this run, %s",
                maker.task_id,
                f"closed {', '.join(found)}" if found else "nothing is open",
            )
            closed += found
        return closed

    def _give_up(self, context: Context) -> str:
        """Close the shared pool unless another DAG run needs it."""
        from airflow_qarnot_pool.ownership.shared_pool import release

        identity = self._identity_of(context)
        keep_unused = self._keep_for_next_run(context, identity)
        released = release(self.client, identity, run_lives, self._setups(), keep_unused=keep_unused)
        for one in released:
            if one.closed:
                return self._after_request(context, one.uuid, is_closer=one.is_closer)
        if not released:
            self.log.info("There is no open pool %r", self.shared)
        else:
            self._log_cost(context, released[0].uuid, is_closer=False)
        given = self.qarnot_pool if isinstance(self.qarnot_pool, str) else ""
        return released[0].uuid if released else given

    def _keep_for_next_run(
        self, context: Context, identity: TaskInstanceIdentity
    ) -> Callable[[Pool, bool], str | None]:
        if self.linger is None:
            return lambda pool, is_busy: None
        from airflow_qarnot_pool.operators.lingering import reason_to_linger

        return partial(reason_to_linger, self, context, identity, self.linger)

    def _setups(self) -> list[str] | None:
        """Return the setup tasks of this teardown; None for all tasks of the run, if they are not known."""
        if not (self.is_teardown and self.has_dag()):  # type: ignore[no-untyped-call]
            return None
        return [one.task_id for one in self.upstream_list if one.is_setup] or None

    def _awaited(self) -> Condition:
        return POOL_CLOSED

    def execute_complete(self, context: Context, event: Mapping[str, Any]) -> str:
        """Return the uuid of the pool that is closed."""
        return self._closed(context, self._resume(context, event))

    def _closed(self, context: Context, outcome: WaitResult) -> str:
        if outcome.ending is not EndReason.GONE:
            self._raise_for(outcome)
        self.log.info("Pool %s is %s", outcome.uuid, outcome.state or "gone")
        self._log_cost(context, outcome.uuid, is_closer=bool(outcome.resume_state.get(_IS_CLOSER)))
        return outcome.uuid

    def _log_cost(self, context: Context, uuid: str, *, is_closer: bool) -> None:
        from airflow_qarnot_pool.operators.teardown_cost import log_cost

        log_cost(self, context, uuid, whole_run=self.report_cost, counts=is_closer)


def _makes_pools(task: Any) -> bool:
    return isinstance(task, QarnotCreatePoolOperator)


class QarnotDeletePoolOperator(QarnotOperator):
    """Delete a pool, and close it first if it is open. A deleted pool is no error.

    :param qarnot_pool: uuid or shortname of the pool, or the output of the task that made it.
    """

    template_fields = (*QarnotOperator.template_fields, "qarnot_pool")
    operator_extra_links = POOL_LINKS

    def __init__(self, *, qarnot_pool: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.qarnot_pool = as_reference(qarnot_pool, "qarnot_pool")

    def execute(self, context: Context) -> None:
        """Delete the pool."""
        ref = resolve_ref(self.qarnot_pool, "qarnot_pool")
        self._show_link(context, "pool", ref)
        try:
            self.client.pools.delete(ref)
        except QarnotNotFoundError:
            self.log.info("Pool %s is gone already", ref)
        else:
            self.log.info("Pool %s is deleted", ref)


def check_linger(linger: Any, shared: Any) -> None:
    """Refuse a wrong value of the parameter ``linger``.

    :raises QarnotInvalidSpecError: it is no amount, or the pool is not shared.
    """
    if linger is None:
        return
    if isinstance(linger, bool) or not isinstance(linger, (int, float)) or not 0 <= linger < math.inf:
        raise QarnotInvalidSpecError(
            f"linger must be an amount in euros, got {linger!r}",
            field="linger",
            remedy="Give what a run without a boot is worth, 0 or more.",
        )
    if shared is None:
        raise QarnotInvalidSpecError(
            f"linger is for shared pools only, because the next run must find the pool, got {linger!r}",
            field="linger",
            remedy="Give shared='name', too.",
        )


def run_lives(dag_id: str, run_id: str) -> bool:
    """Return whether a DAG run is unfinished. True if Airflow does not say."""
    from airflow_qarnot_pool.ownership.liveness import dag_run_state
    from airflow_qarnot_pool.ownership.quota import FINISHED_RUN_STATES

    try:
        state = dag_run_state(dag_id, run_id)
    except Exception as error:
        log.warning("Airflow does not say whether run %s of %s still lives: %s", run_id, dag_id, error)
        return True
    return state is not None and state not in FINISHED_RUN_STATES
