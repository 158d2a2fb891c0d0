"""Airflow's own tables, read directly.

Ten tests that ask the api-server several times a second take most of a core from the Airflow that they test.
"""

from __future__ import annotations

import threading
from typing import Any

_INSTANCES = """
    SELECT ti.task_id, ti.map_index, ti.state, ti.try_number, ti.max_tries, ti.pid,
           ti.last_heartbeat_at, job.unixname AS triggerer
    FROM task_instance ti
    LEFT JOIN trigger ON trigger.id = ti.trigger_id
    LEFT JOIN job ON job.id = trigger.triggerer_id
    WHERE ti.dag_id = %s AND ti.run_id = %s
"""
_WATCHER = """
    SELECT job.unixname
    FROM asset
    JOIN asset_watcher watcher ON watcher.asset_id = asset.id
    JOIN trigger ON trigger.id = watcher.trigger_id
    JOIN job ON job.id = trigger.triggerer_id
    WHERE asset.name = %s
"""
#: Changes whenever a task of any DAG run changes its state or its try. The time of the last update is no measure: every
#: heartbeat of a running task changes it, and a task that hangs sends heartbeats, too.
_PROGRESS = """
    SELECT md5(string_agg(concat_ws(' ', dag_id, run_id, task_id, map_index, state, try_number), ','
        ORDER BY dag_id, run_id, task_id, map_index))
    FROM task_instance
"""


class Database:
    """A reader; each thread has a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("+psycopg2", "")
        self._mine = threading.local()

    def run_state(self, dag_id: str, run_id: str) -> str | None:
        """Return the state of a DAG run; None if there is none."""
        found = self._rows("SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s", dag_id, run_id)
        return str(found[0]["state"]) if found else None

    def end_state(self, dag_id: str, run_id: str) -> str | None:
        """Return the state of a DAG run that has ended; None as long as it has not."""
        state = self.run_state(dag_id, run_id)
        return state if state in ("success", "failed") else None

    def instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Return the task instances of a run: state, tries, process, and the triggerer that has the trigger."""
        return self._rows(_INSTANCES, dag_id, run_id)

    def instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return one task instance."""
        (found,) = self._rows(
            f"{_INSTANCES} AND ti.task_id = %s AND ti.map_index = %s", dag_id, run_id, task_id, map_index
        )
        return found

    def story(self, dag_id: str, run_id: str) -> list[str]:
        """Return state and try of each task instance, for the message of a test that fails."""
        return [
            f"{one['task_id']}[{one['map_index']}] {one['state']}, try {one['try_number']}"
            for one in self.instances(dag_id, run_id)
        ]

    def payloads(self, asset: str) -> list[dict[str, Any]]:
        """Return the payloads of the events of an asset, which triggers have reported, the oldest first."""
        found = self._rows(
            "SELECT e.extra FROM asset_event e JOIN asset ON asset.id = asset_id WHERE name = %s ORDER BY e.id",
            asset,
        )
        return [row["extra"]["payload"] for row in found]

    def reported_files(self, asset: str) -> int:
        """Count the files in the events of an asset, with those that come twice."""
        (found,) = self._rows(
            "SELECT coalesce(sum(json_array_length(e.extra::json->'payload'->'files')), 0) AS files "
            "FROM asset_event e JOIN asset ON asset.id = asset_id WHERE name = %s",
            asset,
        )
        return int(found["files"])

    def asset_state(self, asset: str) -> str | None:
        """Return a value in the state store of an asset; None if there is none."""
        found = self._rows(
            "SELECT value FROM asset_state_store JOIN asset ON asset.id = asset_id WHERE name = %s", asset
        )
        return str(found[0]["value"]) if found else None

    def is_asset_state_locked(self, asset: str) -> bool:
        """Return whether a transaction has a value in the state store of an asset that others must wait for."""
        free = self._rows(
            "SELECT value FROM asset_state_store JOIN asset ON asset.id = asset_id WHERE name = %s "
            "FOR UPDATE OF asset_state_store SKIP LOCKED",
            asset,
        )
        return not free

    def watching_triggerer(self, asset: str) -> str | None:
        """Return the triggerer that has the trigger of a watcher; None if it is dead and none has taken over."""
        found = self._rows(_WATCHER, asset)
        return str(found[0]["unixname"]) if found else None

    def progress(self) -> str | None:
        """Return a value that changes with the state or the try of any task."""
        (digest,) = self._rows(_PROGRESS)[0].values()
        return digest

    def outlive(self, run_id: str, days: int) -> None:
        """Have Airflow believe that a DAG run has lasted so many days longer than it has."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE dag_run SET start_date = start_date - make_interval(days => %s) WHERE run_id = %s",
                (days, run_id),
            )
            assert cursor.rowcount == 1

    def bury_schedulers(self) -> None:
        """Have Airflow take a scheduler for dead at once if another process has started in its place."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE job SET latest_heartbeat = latest_heartbeat - make_interval(days => 1) "
                "WHERE job_type = 'SchedulerJob' AND state = 'running' AND id NOT IN "
                "(SELECT max(id) FROM job WHERE job_type = 'SchedulerJob' GROUP BY unixname)"
            )

    def schedulers(self) -> int:
        """Return the number of scheduler processes that there have been."""
        (found,) = self._rows("SELECT count(*) AS jobs FROM job WHERE job_type = 'SchedulerJob'")
        return int(found["jobs"])

    def orphans(self, run_id: str) -> int:
        """Return the number of task instances of a run that a scheduler has queued which is dead by now."""
        (found,) = self._rows(
            "SELECT count(*) AS orphans FROM task_instance WHERE run_id = %s AND state IN ('queued', 'running') "
            "AND queued_by_job_id NOT IN (SELECT max(id) FROM job WHERE job_type = 'SchedulerJob' GROUP BY unixname)",
            run_id,
        )
        return int(found["orphans"])

    def queued_long_ago(self, dag_id: str, run_id: str) -> None:
        """Have Airflow believe that the queued tasks of a run have been queued for a day."""
        with self._cursor() as cursor:
            cursor.execute(
                "UPDATE task_instance SET queued_dttm = queued_dttm - make_interval(days => 1) "
                "WHERE dag_id = %s AND run_id = %s AND state = 'queued'",
                (dag_id, run_id),
            )
            assert cursor.rowcount

    def _rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        with self._cursor() as cursor:
            cursor.execute(query, parameters)
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def _cursor(self) -> Any:
        if not hasattr(self._mine, "connection"):
            import psycopg2

            self._mine.connection = psycopg2.connect(self._url)
            self._mine.connection.autocommit = True
        return self._mine.connection.cursor()
