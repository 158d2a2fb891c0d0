"""The curve of sizes of an ended pool, for the Pools page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_qarnot_pool.costs.model import pool_cost
from airflow_qarnot_pool.ownership.identity import label, run_of
from airflow_qarnot_pool.plugins.airflow_db import is_id
from airflow_qarnot_pool.plugins.cache import MAX_DETAILS
from airflow_qarnot_pool.plugins.phases import is_open
from airflow_qarnot_pool.sizing.curve import curve_of, record_of
from airflow_qarnot_pool.sizing.demand import Upstreams
from airflow_qarnot_pool.sizing.records import upstreams_in
from airflow_qarnot_pool.version_compat import dag_in_the_database

if TYPE_CHECKING:
    from airflow_qarnot_pool.api.models import Pool, Task

log = logging.getLogger(__name__)


class Sizes:
    """Computes the curve of a pool once for each reading of its bill, because a replay takes a part of a second."""

    def __init__(self) -> None:
        self._curves: dict[tuple[str, float], dict[str, Any] | None] = {}

    def of(self, pool: Pool, tasks: Sequence[Task], euros: float | None) -> dict[str, Any] | None:
        """Return the curve as JSON; None for an open pool, one of the executor, and without a record to replay."""
        if is_open(pool) or euros is None or label(pool.labels, "executor") is not None:
            return None
        key = (pool.uuid, euros)
        if key not in self._curves:
            self._curves[key] = _curve(pool, tasks, euros)
            while len(self._curves) > MAX_DETAILS:
                del self._curves[next(iter(self._curves))]
        return self._curves[key]


def _curve(pool: Pool, tasks: Sequence[Task], euros: float) -> dict[str, Any] | None:
    record = record_of(
        pool, pool_cost(pool, tasks, euros, None), _upstreams(run_of(pool).dag_id), datetime.now(UTC)
    )
    return None if record is None else curve_of(record).to_json()


def _upstreams(dag_id: str) -> Upstreams | None:
    """Return the upstreams of the tasks of a DAG; None if Airflow does not have it, or cannot read it."""
    if not dag_id or not is_id(dag_id):
        return None
    try:
        dag = dag_in_the_database(dag_id)
    except Exception as error:  # of Airflow, its database, or a plugin that the DAG needs
        log.warning("DAG %s cannot be read for the sizes of its pool: %s", dag_id, error)
        return None
    return None if dag is None else upstreams_in(dag)
