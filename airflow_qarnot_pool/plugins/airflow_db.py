"""Requests of the Pools page to Airflow's database: states of DAG runs, and the audit log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from airflow.models.dagrun import DagRun
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.utils.session import create_session
from sqlalchemy import select, tuple_

from airflow_qarnot_pool.api.models import Pool
from airflow_qarnot_pool.ownership.identity import label
from airflow_qarnot_pool.plugins.rows import Closings, RunFacts
from airflow_qarnot_pool.version_compat import earlier_tries, instance_ids

log = logging.getLogger(__name__)

CLOSE_EVENT = "qarnot.close_pool"
IDLE_CLOSE_EVENT = "qarnot.close_pool_when_idle"
RESIZE_EVENT = "qarnot.resize_pool"
#: Maximum characters of an id in Airflow's database.
MAX_ID = 250
#: How old an entry of the audit log may be, and how many are read. Ended pools are kept for a week.
CLOSINGS_SINCE = timedelta(days=8)
MAX_CLOSINGS = 500


def is_id(text: str) -> bool:
    """Return whether *text* may be an id of Airflow. PostgreSQL refuses a query with a NUL or half a surrogate pair."""
    return len(text) <= MAX_ID and "\x00" not in text and text.encode(errors="replace").decode() == text


def askable_runs(runs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the runs that Airflow can have, each once. Labels can name others."""
    return sorted({run for run in runs if all(is_id(part) for part in run)})


def run_facts(runs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], RunFacts]:
    """Return the states of the DAG runs that exist."""
    keys, facts = askable_runs(runs), {}
    with create_session() as session:
        for start in range(0, len(keys), 200):
            chunk = keys[start : start + 200]
            query = select(DagRun.dag_id, DagRun.run_id, DagRun.state, DagRun.end_date).where(
                tuple_(DagRun.dag_id, DagRun.run_id).in_(chunk)
            )
            for dag_id, run_id, state, ended in session.execute(query):
                facts[dag_id, run_id] = RunFacts(str(getattr(state, "value", state)), ended)
    return facts


def instance_states(instances: Sequence[UUID]) -> dict[UUID, str]:
    """Return the states of Airflow task instances that exist, and of earlier tries, by their ids."""
    states: dict[UUID, str] = {}
    with create_session() as session:
        for start in range(0, len(instances), 500):
            chunk = instances[start : start + 500]
            current = select(TaskInstance.id, TaskInstance.state).where(
                TaskInstance.id.in_(instance_ids(chunk))
            )
            for query in (earlier_tries(chunk), current):
                for instance, value in session.execute(query):
                    states[UUID(str(instance))] = (
                        "none" if value is None else str(getattr(value, "value", value))
                    )
    return states


def closings() -> Closings:
    """Return the user and the time of the newest close of each pool from the Pools page."""
    found: dict[str, dict[str, tuple[str, datetime]]] = {CLOSE_EVENT: {}, IDLE_CLOSE_EVENT: {}}
    with create_session() as session:
        query = (
            select(Log.event, Log.owner, Log.dttm, Log.extra)
            .where(
                Log.event.in_(found),
                Log.dttm > datetime.now(UTC) - CLOSINGS_SINCE,
            )
            .order_by(Log.dttm.desc())
            .limit(MAX_CLOSINGS)
        )
        for event, owner, at, extra in session.execute(query):
            uuid = _pool_of(extra)
            if uuid is not None and at is not None:
                found[event].setdefault(uuid, (str(owner), at))
    return Closings(found[CLOSE_EVENT], found[IDLE_CLOSE_EVENT])


def _pool_of(extra: str | None) -> str | None:
    try:
        uuid = json.loads(extra or "{}").get("pool")
    except (ValueError, AttributeError):
        return None  # an entry of another program
    return uuid if isinstance(uuid, str) else None


def write_audit(event: str, user: Any, conn_id: str, pool: Pool, more: Mapping[str, Any]) -> None:
    """Write to Airflow's audit log who does what with the pool."""
    extra = {"connection_id": conn_id, "pool": pool.uuid, "name": pool.name, "state": pool.state, **more}
    with create_session() as session:
        session.add(
            Log(
                event=event,
                owner=user.get_name(),
                owner_display_name=user.get_name(),
                extra=json.dumps(extra),
                dag_id=_id(pool, "dag_id"),
                run_id=_id(pool, "run_id"),
                task_id=_id(pool, "task_id"),
            )
        )
    log.info(
        "%s: %s, pool %s (%r) of connection %s %s",
        event,
        user.get_name(),
        pool.uuid,
        pool.name,
        conn_id,
        more,
    )


def _id(pool: Pool, name: str) -> str | None:
    """Return the id in one of our labels, cut to Airflow's column, because all who have the token can write labels."""
    value = (label(pool.labels, name) or "")[:MAX_ID]
    return value if value and is_id(value) else None
