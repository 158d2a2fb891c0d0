"""Put each generation of a Qarnot task on its rung of the ladder (:mod:`airflow_qarnot_pool.ownership.ladder`)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.api.fields import is_secret_constant
from airflow_qarnot_pool.ownership import xcoms
from airflow_qarnot_pool.ownership.ladder import (
    Climb,
    Estimate,
    is_lost,
    on_rung,
    rung_of_task,
    without_pool,
    work_of,
)
from airflow_qarnot_pool.waiting.polling import get_confirmed

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_qarnot_pool.api.models import Task
    from airflow_qarnot_pool.api.specs import TaskSpec
    from airflow_qarnot_pool.operators.task import QarnotRunTaskOperator


class LadderStep:
    """Chooses the rung of each generation that a claim creates.

    :param deadline: end of the wait, if it has one.
    """

    def __init__(self, operator: QarnotRunTaskOperator, context: Context, deadline: datetime | None) -> None:
        self._operator, self._log, self._deadline = operator, operator.log, deadline
        self._work = None if deadline is None else work_before(context, operator.log)

    def __call__(self, spec: TaskSpec, earlier: Iterable[Task]) -> TaskSpec:
        """Return the spec of the next generation."""
        earlier = list(earlier)
        made, tasks = self._operator._refine(spec, earlier), [*self._operator._lost_rounds, *earlier]
        estimate = self._estimate()
        index, losses = rung_of_task(spec, tasks, estimate), sum(map(is_lost, tasks))
        last = len(spec.ladder) - 1
        why = f"after {losses} loss{'' if losses == 1 else 'es'}"
        if estimate is not None and index > min(losses, last):
            why = f"as {estimate.left:.0f} s for {estimate.work:.0f} s of work leave no time for another loss"
        leaves = bool(made.pool) and index == last and self._operator._leaves_pool
        made = (self._without_pool(made, losses) if leaves else None) or on_rung(made, index)
        place = "the nodes of its pool" if made.pool else f"{made.scheduling_type} nodes"
        self._log.info("Ladder: %s, %s", place, why)
        return made

    def _estimate(self) -> Estimate | None:
        if self._deadline is None or self._work is None:
            return None
        return Estimate(work=self._work, left=(self._deadline - datetime.now(UTC)).total_seconds())

    def _without_pool(self, spec: TaskSpec, losses: int) -> TaskSpec | None:
        """Return *spec* for separate nodes; None if they are no surer, or the container of the pool cannot be copied.

        Without a loss a pool that has nodes is kept: a boot costs time, too, and the nodes of the pool are paid.
        """
        from airflow_qarnot_pool.ownership.shared_pool import spec_of

        pool = get_confirmed(self._operator.client.pools, str(spec.pool))
        rung = spec.ladder[-1]
        is_sure = (pool.scheduling_type or "").lower() == rung.lower()
        if is_sure or (pool.ready_slots and not losses):
            why = f"are {rung}" if is_sure else "are ready, and none was lost"
            self._log.info("The Qarnot task stays on pool %s, whose nodes %s", pool.uuid, why)
            return None
        own = spec.all_constants()
        hidden = sorted(name for name in pool.constants if is_secret_constant(name) and name not in own)
        if hidden:
            self._log.warning(
                "The Qarnot task stays on pool %s, whose secret constants (%s) cannot be read back. Give them to the "
                "task, too",
                pool.uuid,
                ", ".join(hidden),
            )
            return None
        return without_pool(spec, spec_of(pool), rung)


def work_before(context: Context, log: Any) -> float | None:
    """Return how many seconds the work took in the newest DAG run that says so."""
    try:
        seconds = xcoms.pull_newest(context["ti"], xcoms.WORK_KEY)
    except Exception as error:  # of Airflow's; without an estimate only losses count
        log.info("The seconds of earlier work could not be read, so only losses count: %s", error)
        return None
    return float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else None


def note_work(context: Context, task: Task, climb: Climb, *, resumed: bool, repeats_all: bool) -> None:
    """Store the seconds of work for the estimates of the next DAG runs.

    A later try does not know the generations of the earlier ones, and stores nothing. Nor does a generation that had
    only the rest of the work.

    :param resumed: whether each generation resumed from a snapshot, and so did a part of the work.
    :param repeats_all: whether a generation after a loss has all of the work, and not only what is left of it.
    """
    if context["ti"].try_number > 1 or (climb.losses and not repeats_all):
        return
    seconds = work_of(task) + (climb.executed if resumed else 0.0)
    if seconds > 0:
        xcoms.push(context["ti"], xcoms.WORK_KEY, round(seconds, 3))
